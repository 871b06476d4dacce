/* Cuts a list of buffers into tasks, distributes the tasks over threads, and combines the results
 * in a fixed order. The cuts of a buffer do not depend on the number of threads. */
#include "gradclip.h"

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "compensated.h"
#include "elements.h"
#include "loops.h"
#include "pool.h"

#ifdef GRADCLIP_THREADS
#include <stdatomic.h>
typedef atomic_int_fast64_t counter;
#define TAKE(next) atomic_fetch_add_explicit(&(next), 1, memory_order_relaxed)
#else
typedef int64_t counter;
#define TAKE(next) ((next)++)
#endif

/* The tasks that one thread does first; other threads help after their own tasks. Neighbours in
 * memory stay with one thread, which saves an eighth of the time because of prefetching. */
typedef struct share {
    counter next;
    int64_t end;
    char apart[64 - sizeof(counter) - sizeof(int64_t)]; /* a cache line of its own */
} share;

enum {
    CHUNK = 1 << 16,   /* elements of a big buffer per task */
    VISIT = 16,        /* the cost of visiting a buffer, in elements */
    ALONE = 1 << 19,   /* less work than this (20 us) is faster on one thread */
    MOST_PARTS = 3     /* doubles per chunk: clamp's */
};

/* Chunk `offset / CHUNK` of one buffer, or several small buffers. */
typedef struct task {
    int64_t first, last; /* buffers [first, last) */
    int64_t offset;      /* elements to skip in the first buffer */
    int64_t slot;        /* the number of chunks before this task, over all buffers */
} task;

typedef struct job job;
struct job {
    const gradclip_buffers *buffers;
    /* Handles one chunk of buffer i, and writes its results into parts[0 .. width). */
    void (*chunk)(const job *, int64_t i, void *data, int64_t count, double *parts);
    int width;             /* the doubles that a chunk yields, at most MOST_PARTS */
    const double *factors; /* for scale, and for the rescue of float64 sums; NULL: `factor` */
    double factor;         /* of all buffers */
    double lo, hi;         /* for clamp */
    void *const *added;    /* for sums: as many addresses as buffers */
    void *const *rest;     /* for scaled sums */
    task *tasks;
    share *shares;
    int share_count;
    counter arrived; /* threads that have begun */
    double *parts;
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Even an empty buffer has one chunk, so that its result is written. */
static int64_t chunks_of(int64_t size) { return size <= CHUNK ? 1 : (size - 1) / CHUNK + 1; }

/* The time that one element takes, against one of float32 in the cache. */
static int64_t cost_of(uint8_t dtype) {
    static const uint8_t costs[GRADCLIP_DTYPES] = {
        [GRADCLIP_FLOAT32] = 1, [GRADCLIP_FLOAT64] = 2, [GRADCLIP_BFLOAT16] = 1,
        [GRADCLIP_FLOAT16] = 4};
    return costs[dtype];
}

static int check(const gradclip_buffers *buffers) {
    for (int64_t i = 0; i < buffers->n; i++)
        if (buffers->dtypes[i] >= GRADCLIP_DTYPES || buffers->sizes[i] < 0 ||
            (buffers->sizes[i] > 0 && !buffers->pointers[i]))
            return GRADCLIP_BAD_BUFFER;
    return GRADCLIP_OK;
}

/* ---- the work of one thread ---------------------------------------------------------- */

static void run_task(const job *j, const task *t) {
    double *parts = j->parts + t->slot * j->width;
    for (int64_t i = t->first; i < t->last; i++, parts += j->width) {
        int64_t offset = i == t->first ? t->offset : 0;
        int64_t count = least(j->buffers->sizes[i] - offset, CHUNK);
        char *data = j->buffers->pointers[i];
        if (count > 0) data += offset * element_size(j->buffers->dtypes[i]);
        j->chunk(j, i, data, count, parts);
    }
}

static void work(void *arg) {
    job *j = arg;
    fenv_t before;
    /* The host may flush subnormals to zero (torch.set_flush_denormal) or use another rounding
     * mode, and a thread inherits these settings from the thread that started it. */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    int64_t mine = TAKE(j->arrived);
    for (int k = 0; k < j->share_count; k++) {
        share *s = &j->shares[(mine + k) % j->share_count];
        for (int64_t t = TAKE(s->next); t < s->end; t = TAKE(s->next)) run_task(j, &j->tasks[t]);
    }
    fesetenv(&before);
}

/* ---- cutting and sharing out --------------------------------------------------------- */

/* Writes the tasks to `tasks` and returns their number; only counts them if `tasks` is NULL. */
static int64_t cut(const gradclip_buffers *buffers, task *tasks) {
    int64_t count = 0, slot = 0, first = 0, load = 0;
#define EMIT(...)                                                                             \
    do {                                                                                      \
        if (tasks) tasks[count] = (task){__VA_ARGS__};                                        \
        count++;                                                                              \
    } while (0)
    for (int64_t i = 0; i < buffers->n; i++) {
        int64_t size = buffers->sizes[i];
        if (size <= CHUNK && load + size + VISIT <= CHUNK) {
            load += size + VISIT;
            continue;
        }
        if (first < i) EMIT(first, i, 0, slot);
        slot += i - first;
        first = i;
        load = size + VISIT;
        if (size <= CHUNK) continue;
        for (int64_t offset = 0; offset < size; offset += CHUNK, slot++)
            EMIT(i, i + 1, offset, slot);
        first = i + 1;
        load = 0;
    }
    if (first < buffers->n) EMIT(first, buffers->n, 0, slot);
#undef EMIT
    return count;
}

/* Runs `j` and writes `width` doubles per chunk to j->parts. j->parts is `out` if every buffer is
 * one chunk; else it is new memory, which free_parts() frees. */
static int run(job *j, int threads, double *out) {
    const gradclip_buffers *b = j->buffers;
    int64_t slots = 0, load = 0;
    for (int64_t i = 0; i < b->n; i++) {
        int skipped = j->factors && j->factors[i] == 1.0;
        slots += chunks_of(b->sizes[i]);
        load += VISIT + (skipped ? 0 : b->sizes[i] * cost_of(b->dtypes[i]));
    }
    int64_t task_count = cut(b, NULL);
    int alone = load < ALONE || threads < 2 || task_count < 2;
    j->share_count = alone ? 1 : (int)least(threads, task_count);
    j->shares = malloc((size_t)j->share_count * sizeof *j->shares +
                       (size_t)task_count * sizeof *j->tasks);
    if (!j->shares) return GRADCLIP_NO_MEMORY;
    j->tasks = (task *)(j->shares + j->share_count);
    j->parts = out;
    if (j->width > 0 && slots > b->n) {
        j->parts = malloc((size_t)slots * (size_t)j->width * sizeof *j->parts);
        if (!j->parts) {
            free(j->shares);
            return GRADCLIP_NO_MEMORY;
        }
    }
    cut(b, j->tasks);
    for (int64_t k = 0; k < j->share_count; k++) {
        j->shares[k].next = task_count * k / j->share_count;
        j->shares[k].end = task_count * (k + 1) / j->share_count;
    }
    gradclip_parallel(work, j, j->share_count);
    free(j->shares);
    return GRADCLIP_OK;
}

static void free_parts(job *j, double *out) {
    if (j->parts != out) free(j->parts);
}

/* ---- putting the parts together ------------------------------------------------------ */

/* The sum is compensated, so that its error is at most one ulp for any number of chunks. */
static double add_up(const double *parts, int64_t count, int stride) {
    double sum = parts[0], lost = 0.0;
    for (int64_t i = 1; i < count; i++) lost += add_exactly(&sum, parts[i * stride]);
    return isfinite(sum) ? sum + lost : sum;
}

static double greatest(const double *parts, int64_t count) {
    double most = parts[0];
    for (int64_t i = 1; i < count; i++)
        if (isnan(parts[i]) || parts[i] > most) most = parts[i];
    return most;
}

static void add_up_all(job *j, double *out) {
    const double *parts = j->parts;
    for (int64_t i = 0; i < j->buffers->n; i++) {
        int64_t count = chunks_of(j->buffers->sizes[i]);
        for (int k = 0; k < j->width; k++)
            out[i * j->width + k] = add_up(parts + k, count, j->width);
        parts += count * j->width;
    }
}

/* ---- the calls ----------------------------------------------------------------------- */

int gradclip_abi_version(void) { return GRADCLIP_ABI_VERSION; }

static void maxabs_chunk(const job *j, int64_t i, void *data, int64_t count, double *parts) {
    *parts = gradclip_loops_of[j->buffers->dtypes[i]].maxabs(data, count);
}

static int maxabs(const gradclip_buffers *buffers, int threads, double *out) {
    job j = {.buffers = buffers, .chunk = maxabs_chunk, .width = 1};
    int status = run(&j, threads, out);
    if (status != GRADCLIP_OK) return status;
    const double *parts = j.parts;
    for (int64_t i = 0; i < buffers->n; i++) {
        int64_t count = chunks_of(buffers->sizes[i]);
        out[i] = greatest(parts, count);
        parts += count;
    }
    free_parts(&j, out);
    return GRADCLIP_OK;
}

int gradclip_maxabs(const gradclip_buffers *buffers, int threads, double *out) {
    int status = check(buffers);
    return status == GRADCLIP_OK ? maxabs(buffers, threads, out) : status;
}

static void sumsq_chunk(const job *j, int64_t i, void *data, int64_t count, double *parts) {
    *parts = gradclip_loops_of[j->buffers->dtypes[i]].sumsq(data, count);
}

static void sumsq_scaled_chunk(const job *j, int64_t i, void *data, int64_t count,
                               double *parts) {
    *parts = gradclip_sumsq_scaled_f64(data, count, j->factors[i]);
}

static int sumsq(const gradclip_buffers *buffers, const double *factors, int threads,
                 double *out) {
    job j = {.buffers = buffers, .width = 1, .factors = factors,
             .chunk = factors ? sumsq_scaled_chunk : sumsq_chunk};
    int status = run(&j, threads, out);
    if (status != GRADCLIP_OK) return status;
    add_up_all(&j, out);
    free_parts(&j, out);
    return GRADCLIP_OK;
}

/* Squares of float64 values can overflow or underflow; squares of the other dtypes cannot. In a sum
 * of 2^-900 or more, the squares that underflow (< 2^-1022) do not matter. */
static int needs_rescue(uint8_t dtype, int64_t size, double sum) {
    return dtype == GRADCLIP_FLOAT64 && size > 0 && !(sum >= 0x1p-900 && sum <= DBL_MAX);
}

/* Replaces the sums of squares in `out` by norms. Measures the `count` buffers that need a rescue
 * again, after a power of two has scaled their largest element to about 1. */
static int norms_with_rescues(const gradclip_buffers *all, int64_t count, int threads,
                              double *out) {
    size_t each = sizeof(void *) + 2 * sizeof(int64_t) + 3 * sizeof(double) + 1;
    char *memory = malloc((size_t)count * each);
    if (!memory) return GRADCLIP_NO_MEMORY;
    double *factors = (double *)memory, *most = factors + count, *sums = most + count;
    int64_t *sizes = (int64_t *)(sums + count), *index = sizes + count;
    void **pointers = (void **)(index + count);
    uint8_t *dtypes = (uint8_t *)(pointers + count);
    gradclip_buffers some = {pointers, sizes, dtypes, 0};
    for (int64_t i = 0; i < all->n; i++)
        if (needs_rescue(all->dtypes[i], all->sizes[i], out[i])) {
            pointers[some.n] = all->pointers[i];
            sizes[some.n] = all->sizes[i];
            dtypes[some.n] = all->dtypes[i];
            index[some.n++] = i;
        } else {
            out[i] = sqrt(out[i]);
        }
    int status = maxabs(&some, threads, most);
    for (int64_t k = 0; k < count && status == GRADCLIP_OK; k++) {
        int exponent = 0;
        if (most[k] > 0.0 && most[k] <= DBL_MAX) frexp(most[k], &exponent);
        /* In this range the factor is normal, and the square of the smallest subnormal is safe. */
        exponent = exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent;
        factors[k] = ldexp(1.0, -exponent);
    }
    if (status == GRADCLIP_OK) status = sumsq(&some, factors, threads, sums);
    for (int64_t k = 0; k < count && status == GRADCLIP_OK; k++) {
        int measured = most[k] > 0.0 && most[k] <= DBL_MAX;
        out[index[k]] = measured ? sqrt(sums[k]) / factors[k] : most[k];
    }
    free(memory);
    return status;
}

int gradclip_norm2(const gradclip_buffers *buffers, int threads, double *out) {
    int64_t rescues = 0;
    int status = check(buffers);
    if (status == GRADCLIP_OK) status = sumsq(buffers, NULL, threads, out);
    if (status != GRADCLIP_OK) return status;
    for (int64_t i = 0; i < buffers->n; i++)
        rescues += needs_rescue(buffers->dtypes[i], buffers->sizes[i], out[i]);
    if (rescues > 0) return norms_with_rescues(buffers, rescues, threads, out);
    for (int64_t i = 0; i < buffers->n; i++) out[i] = sqrt(out[i]);
    return GRADCLIP_OK;
}

static void scale_chunk(const job *j, int64_t i, void *data, int64_t count, double *parts) {
    (void)parts;
    double factor = j->factors ? j->factors[i] : j->factor;
    if (count > 0 && factor != 1.0)
        gradclip_loops_of[j->buffers->dtypes[i]].scale(data, count, factor);
}

int gradclip_scale(const gradclip_buffers *buffers, const double *factors, int threads) {
    job j = {.buffers = buffers, .chunk = scale_chunk, .width = 0, .factors = factors};
    double no_parts[1];
    int status = check(buffers);
    return status == GRADCLIP_OK ? run(&j, threads, no_parts) : status;
}

int gradclip_scale_all(const gradclip_buffers *buffers, double factor, int threads) {
    job j = {.buffers = buffers, .chunk = scale_chunk, .width = 0, .factor = factor};
    double no_parts[1];
    int status = check(buffers);
    return status == GRADCLIP_OK && factor != 1.0 ? run(&j, threads, no_parts) : status;
}

static void clamp_chunk(const job *j, int64_t i, void *data, int64_t count, double *parts) {
    for (int k = 0; k < MOST_PARTS; k++) parts[k] = 0.0;
    gradclip_loops_of[j->buffers->dtypes[i]].clamp(data, count, j->lo, j->hi, parts);
}

int gradclip_clamp(const gradclip_buffers *buffers, double lo, double hi, int threads,
                   double *stats) {
    job j = {.buffers = buffers, .chunk = clamp_chunk, .width = MOST_PARTS, .lo = lo, .hi = hi};
    if (!(lo <= hi)) return GRADCLIP_BAD_BOUNDS;
    int status = check(buffers);
    if (status == GRADCLIP_OK) status = run(&j, threads, stats);
    if (status != GRADCLIP_OK) return status;
    add_up_all(&j, stats);
    free_parts(&j, stats);
    return GRADCLIP_OK;
}

/* ---- sums of two buffers ------------------------------------------------------------- */

static int check_sums(const gradclip_buffers *x, void *const *const *others, int count) {
    int status = check(x);
    for (int64_t i = 0; i < x->n && status == GRADCLIP_OK; i++) {
        if (x->dtypes[i] != GRADCLIP_FLOAT32) return GRADCLIP_BAD_BUFFER;
        for (int k = 0; k < count; k++)
            if (x->sizes[i] > 0 && !others[k][i]) return GRADCLIP_BAD_BUFFER;
    }
    return status;
}

/* The values of another list of buffers that lie where `data` lies in buffer i. */
static float *beside(const job *j, int64_t i, const void *data, void *const *others) {
    return (float *)others[i] + ((const float *)data - (const float *)j->buffers->pointers[i]);
}

static void norms_of_sum_chunk(const job *j, int64_t i, void *data, int64_t count, double *parts) {
    for (int k = 0; k < j->width; k++) parts[k] = 0.0;
    if (count > 0) gradclip_norms_of_sum_f32(data, beside(j, i, data, j->added), count, parts);
}

static void scale_sum_chunk(const job *j, int64_t i, void *data, int64_t count, double *parts) {
    for (int k = 0; k < j->width; k++) parts[k] = 0.0;
    if (count > 0)
        gradclip_scale_sum_f32(data, beside(j, i, data, j->added), beside(j, i, data, j->rest),
                               count, j->factor, parts);
}

/* Runs a job over sums, and adds up what its chunks measured. */
static int run_sums(job *j, int threads, double *stats) {
    int status = run(j, threads, stats);
    if (status != GRADCLIP_OK) return status;
    add_up_all(j, stats);
    free_parts(j, stats);
    return GRADCLIP_OK;
}

int gradclip_norms_of_sum(const gradclip_buffers *x, void *const *y, int threads, double *stats) {
    job j = {.buffers = x, .chunk = norms_of_sum_chunk, .width = 2, .added = y};
    int status = check_sums(x, &y, 1);
    return status == GRADCLIP_OK ? run_sums(&j, threads, stats) : status;
}

int gradclip_scale_sum(const gradclip_buffers *x, void *const *y, void *const *rest, double factor,
                       int threads, double *stats) {
    job j = {.buffers = x, .chunk = scale_sum_chunk, .width = MOST_PARTS, .added = y, .rest = rest,
             .factor = factor};
    void *const *const others[] = {y, rest};
    int status = check_sums(x, others, 2);
    return status == GRADCLIP_OK ? run_sums(&j, threads, stats) : status;
}
