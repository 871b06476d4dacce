/* The least that clipping can cost: bare loops over the same memory, on the same threads. They sum in
 * float32, with the compiler's own choice of instructions for this processor, and check nothing. */
#define _GNU_SOURCE /* RTLD_DEFAULT */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

typedef struct job {
    float *values;
    int64_t count;
    int threads;
    float factor; /* 0: read only */
    atomic_int next;
    float sums[256];
} job;

static float read_part(const float *x, int64_t n) {
    enum { LANES = 128 }; /* enough sums that no addition waits for another */
    float sums[LANES] = {0}, sum = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += x[i + j] * x[i + j];
    for (; i < n; i++) sum += x[i] * x[i];
    for (int j = 0; j < LANES; j++) sum += sums[j];
    return sum;
}

static void scale_part(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

static void work(void *arg) {
    job *j = arg;
    for (int k = atomic_fetch_add(&j->next, 1); k < j->threads; k = atomic_fetch_add(&j->next, 1)) {
        int64_t start = j->count * k / j->threads, end = j->count * (k + 1) / j->threads;
        if (j->factor == 0.0f) j->sums[k] = read_part(j->values + start, end - start);
        else scale_part(j->values + start, end - start, j->factor);
    }
}

/* Runs on the threads of the process's OpenMP runtime, which torch and the kernel use as well. */
static void run(job *j) {
    void (*team)(void (*)(void *), void *, unsigned, unsigned) = NULL;
    void *found = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    memcpy(&team, &found, sizeof team);
    if (team && j->threads > 1) team(work, j, (unsigned)j->threads, 0);
    else work(j);
}

/* Returns the sum of squares, from one read. */
float limit_read(float *values, int64_t count, int threads) {
    job j = {.values = values, .count = count, .threads = threads};
    float sum = 0.0f;
    run(&j);
    for (int k = 0; k < threads; k++) sum += j.sums[k];
    return sum;
}

/* Multiplies in place: one read and one write. */
void limit_scale(float *values, int64_t count, float factor, int threads) {
    job j = {.values = values, .count = count, .threads = threads, .factor = factor};
    run(&j);
}
