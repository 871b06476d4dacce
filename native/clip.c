/* One whole step in one call: find the memory, measure, decide, scale or clamp. */
#include <float.h>
#include <math.h>

#include "gradclip.h"

enum { LONG = 1 << 16 /* elements; a call with more of them (5 us) lets other threads run */ };

/* Adds squares in the order in which NumPy adds an array, so that both give the same bits: its blocks
 * of 128, its eight sums a block, and the halves of longer arrays are multiples of eight. */
static double sum_of_squares(const double *x, int64_t n) {
    if (n > 128) {
        int64_t half = n / 2 - n / 2 % 8;
        return sum_of_squares(x, half) + sum_of_squares(x + half, n - half);
    }
    double sum = 0.0;
    int64_t i = 0;
    if (n >= 8) {
        double eight[8] = {0};
        for (; i + 8 <= n; i += 8)
            for (int j = 0; j < 8; j++) eight[j] += x[i + j] * x[i + j];
        sum = ((eight[0] + eight[1]) + (eight[2] + eight[3])) +
              ((eight[4] + eight[5]) + (eight[6] + eight[7]));
    }
    for (; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* Returns the largest norm: NaN if a norm is NaN, 0 without norms. */
static double greatest(const double *norms, int64_t n) {
    double most = 0.0;
    for (int64_t i = 0; i < n; i++)
        if (isnan(norms[i]) || norms[i] > most) most = norms[i];
    return most;
}

static int clip(const gradclip_buffers *buffers, int order, double limit, double eps, int threads,
                double *norms, gradclip_step *step) {
    int status = (order == 2 ? gradclip_norm2 : gradclip_maxabs)(buffers, threads, norms);
    if (status != GRADCLIP_OK) return status;
    double most = greatest(norms, buffers->n);
    if (!(most > 1e-140 && most < 1e140)) return GRADCLIP_UNUSUAL;
    step->total = order == 2 ? sqrt(sum_of_squares(norms, buffers->n)) : most;
    double size = step->total + eps;
    step->factor = size <= limit ? 1.0 : limit / size;
    return gradclip_scale_all(buffers, step->factor, threads);
}

/* Whether the sums of the squares stay far within float64, and the bounds within the dtypes. */
static int is_usual(const gradclip_buffers *buffers, const double *norms, double lo, double hi) {
    static const double largest[GRADCLIP_DTYPES] = {
        [GRADCLIP_FLOAT32] = FLT_MAX, [GRADCLIP_FLOAT64] = DBL_MAX,
        [GRADCLIP_BFLOAT16] = 0x1.fep127, [GRADCLIP_FLOAT16] = 65504.0};
    int some = 0;
    for (int64_t i = 0; i < buffers->n; i++) {
        double most = largest[buffers->dtypes[i]];
        if ((fabs(lo) > most && isfinite(lo)) || (fabs(hi) > most && isfinite(hi))) return 0;
        if (norms[i] == 0.0) continue;
        if (!(norms[i] > 1e-75 && norms[i] < 1e75)) return 0;
        some = 1;
    }
    return some;
}

static int clip_values(const gradclip_buffers *buffers, double lo, double hi, int threads,
                       double *norms, gradclip_step *step, double *stats) {
    int status = gradclip_norm2(buffers, threads, norms);
    if (status != GRADCLIP_OK) return status;
    if (!is_usual(buffers, norms, lo, hi)) return GRADCLIP_UNUSUAL;
    step->total = sqrt(sum_of_squares(norms, buffers->n));
    step->factor = 1.0;
    return gradclip_clamp(buffers, lo, hi, threads, stats);
}

/* Finds the memory of the objects, and lays out what follows the step. */
static int find(const gradclip_host *host, void *const *objects, int64_t n, gradclip_step *step,
                gradclip_buffers *buffers, int64_t *elements) {
    double *norms = (double *)(step + 1);
    int64_t *sizes = (int64_t *)(norms + n);
    void **pointers = (void **)(sizes + n);
    uint8_t *dtypes = (uint8_t *)(pointers + n);
    int status = gradclip_gather(host->describe, objects, n, pointers, sizes, dtypes);
    if (status != GRADCLIP_OK) return status;
    *buffers = (gradclip_buffers){pointers, sizes, dtypes, n};
    *elements = 0;
    step->has_double = 0.0;
    for (int64_t i = 0; i < n; i++) {
        if (dtypes[i] == GRADCLIP_FLOAT64) step->has_double = 1.0;
        *elements += sizes[i];
    }
    return GRADCLIP_OK;
}

int gradclip_clip(const gradclip_host *host, void *const *objects, int64_t n, int order,
                  double limit, double eps, int threads, gradclip_step *step) {
    gradclip_buffers buffers;
    int64_t elements;
    int status = find(host, objects, n, step, &buffers, &elements);
    if (status != GRADCLIP_OK) return status;
    void *held = elements > LONG ? host->unlock() : 0;
    status = clip(&buffers, order, limit, eps, threads, (double *)(step + 1), step);
    if (held) host->lock(held);
    return status;
}

int gradclip_clip_values(const gradclip_host *host, void *const *objects, int64_t n, double lo,
                         double hi, int threads, gradclip_step *step, double *stats) {
    gradclip_buffers buffers;
    int64_t elements;
    int status = find(host, objects, n, step, &buffers, &elements);
    if (status != GRADCLIP_OK) return status;
    void *held = elements > LONG ? host->unlock() : 0;
    status = clip_values(&buffers, lo, hi, threads, (double *)(step + 1), step, stats);
    if (held) host->lock(held);
    return status;
}
