/* All inner loops except the sums of exact squares in sumsq.c. Compile this file with
 * -ffp-contract=off: a fused multiply-add would break the compensated sum, and the results would
 * depend on the instruction set. */
#include "loops.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "compensated.h"
#include "elements.h"
#include "gradclip.h"

enum {
    BLOCK = 1024, /* values that clamp holds back before it decides to write */
    LANES = 16    /* see sumsq.c */
};

const char *gradclip_isa(void) {
#ifdef GRADCLIP_CLONES
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return "avx512";
    if (__builtin_cpu_supports("x86-64-v3")) return "avx2";
#endif
    return "baseline";
}

/* ---- sum of squares of float64 --------------------------------------------------- */

static inline double square_of_product(double value, double factor) {
    double product = value * factor;
    return product * product;
}

/* No wider type is available for float64, so the loop keeps the rounding errors beside the sum. It
 * first adds four squares, with at most two roundings on the way of each, because a compensated
 * addition costs as much as seven plain ones. */
static CLONES double sumsq_scaled_f64(const void *data, int64_t n, double factor) {
    const double *x = data;
    double sum[LANES] = {0}, lost[LANES] = {0};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        double four[LANES];
        for (int j = 0; j < LANES; j++)
            four[j] = (square_of_product(x[i + j], factor) +
                       square_of_product(x[i + j + LANES], factor)) +
                      (square_of_product(x[i + j + 2 * LANES], factor) +
                       square_of_product(x[i + j + 3 * LANES], factor));
        for (int j = 0; j < LANES; j++) lost[j] += add_exactly(&sum[j], four[j]);
    }
    for (int j = 0; i < n; i++, j = (j + 1) % LANES)
        lost[j] += add_exactly(&sum[j], square_of_product(x[i], factor));
    for (int j = 1; j < LANES; j++) {
        lost[0] += add_exactly(&sum[0], sum[j]);
        lost[0] += lost[j];
    }
    return isfinite(sum[0]) ? sum[0] + lost[0] : sum[0];
}

double gradclip_sumsq_f64(const void *data, int64_t n) { return sumsq_scaled_f64(data, n, 1.0); }

double gradclip_sumsq_scaled_f64(const void *data, int64_t n, double factor) {
    return sumsq_scaled_f64(data, n, factor);
}

/* ---- max |x| ------------------------------------------------------------------------- */

/* Without their sign bits, floats have the order of integers, with NaN above inf. */
#define DEFINE_MAXABS(T, INT, MASK)                                                           \
    static CLONES INT maxbits_##T(const void *data, int64_t n) {                              \
        const INT *x = data;                                                                  \
        INT most = 0;                                                                         \
        for (int64_t i = 0; i < n; i++) {                                                     \
            INT bits = x[i] & MASK;                                                           \
            most = bits > most ? bits : most;                                                 \
        }                                                                                     \
        return most;                                                                          \
    }                                                                                         \
    static double maxabs_##T(const void *data, int64_t n) {                                   \
        INT bits = maxbits_##T(data, n);                                                      \
        T value;                                                                              \
        memcpy(&value, &bits, sizeof value);                                                  \
        return widen_##T(value);                                                              \
    }

DEFINE_MAXABS(f32, int32_t, INT32_MAX)
DEFINE_MAXABS(f64, int64_t, INT64_MAX)
DEFINE_MAXABS(bf16, int16_t, INT16_MAX)
DEFINE_MAXABS(f16, int16_t, INT16_MAX)

/* ---- scale --------------------------------------------------------------------------- */

#define DEFINE_SCALE(T)                                                                       \
    static CLONES void scale_##T(void *data, int64_t n, double factor) {                      \
        T *x = data;                                                                          \
        for (int64_t i = 0; i < n; i++) x[i] = narrow_##T((double)widen_##T(x[i]) * factor);  \
    }

/* For a 16-bit value a float32 product is precise enough and three times as fast as a float64
 * product. A factor that is not a normal float32 needs the float64 product. */
#define DEFINE_SCALE_HALF(T)                                                                  \
    static CLONES void scale_exactly_##T(void *data, int64_t n, double factor) {              \
        T *x = data;                                                                          \
        for (int64_t i = 0; i < n; i++) x[i] = narrow_##T((float)(widen_##T(x[i]) * factor)); \
    }                                                                                         \
    static CLONES void scale_fast_##T(void *data, int64_t n, float factor) {                  \
        T *x = data;                                                                          \
        for (int64_t i = 0; i < n; i++) x[i] = narrow_##T(widen_##T(x[i]) * factor);          \
    }                                                                                         \
    static void scale_##T(void *data, int64_t n, double factor) {                             \
        double size = fabs(factor);                                                           \
        if (size >= FLT_MIN && size <= FLT_MAX)                                               \
            scale_fast_##T(data, n, (float)factor);                                           \
        else                                                                                  \
            scale_exactly_##T(data, n, factor);                                               \
    }

DEFINE_SCALE(f32)
DEFINE_SCALE(f64)
DEFINE_SCALE_HALF(bf16)
DEFINE_SCALE_HALF(f16)

/* ---- clamp --------------------------------------------------------------------------- */

/* Compares and stores in the buffer's own dtype, so that a value inside the bounds keeps its bits
 * (-0.0, NaN payloads) and a second clamp changes nothing. */
#define DEFINE_CLAMP(T)                                                                       \
    /* Returns whether a value is outside. */                                                 \
    static CLONES int keep_inside_##T(const T *x, T *kept, int64_t n, T low, T high) {        \
        int outside = 0;                                                                      \
        for (int64_t i = 0; i < n; i++) {                                                     \
            int under = widen_##T(x[i]) < widen_##T(low);                                     \
            int over = widen_##T(x[i]) > widen_##T(high);                                     \
            T raised = under ? low : x[i];                                                    \
            kept[i] = over ? high : raised;                                                   \
            outside |= under | over;                                                          \
        }                                                                                     \
        return outside;                                                                       \
    }                                                                                         \
    static CLONES void add_products_##T(const T *x, const T *kept, int64_t n,                 \
                                        double stats[3]) {                                    \
        double before2[LANES] = {0}, after2[LANES] = {0}, dot[LANES] = {0};                   \
        int64_t i = 0;                                                                        \
        for (; i + LANES <= n; i += LANES) {                                                  \
            for (int j = 0; j < LANES; j++) {                                                 \
                double before = widen_##T(x[i + j]), after = widen_##T(kept[i + j]);          \
                before2[j] += before * before;                                                \
                after2[j] += after * after;                                                   \
                dot[j] += before * after;                                                     \
            }                                                                                 \
        }                                                                                     \
        for (int j = 0; i < n; i++, j++) {                                                    \
            double before = widen_##T(x[i]), after = widen_##T(kept[i]);                      \
            before2[j] += before * before;                                                    \
            after2[j] += after * after;                                                       \
            dot[j] += before * after;                                                         \
        }                                                                                     \
        for (int j = 0; j < LANES; j++) {                                                     \
            stats[0] += before2[j];                                                           \
            stats[1] += after2[j];                                                            \
            stats[2] += dot[j];                                                               \
        }                                                                                     \
    }                                                                                         \
    static void clamp_##T(void *data, int64_t n, double lo, double hi,                        \
                                   double stats[3]) {                                         \
        T *x = data, kept[BLOCK];                                                             \
        T low = narrow_##T(lo), high = narrow_##T(hi);                                        \
        for (int64_t i = 0; i < n; i += BLOCK) {                                              \
            int64_t count = n - i < BLOCK ? n - i : BLOCK;                                    \
            if (keep_inside_##T(x + i, kept, count, low, high)) {                             \
                add_products_##T(x + i, kept, count, stats);                                  \
                memcpy(x + i, kept, (size_t)count * sizeof *x);                               \
            } else {                                                                          \
                double sum = gradclip_sumsq_##T(x + i, count);                                \
                for (int k = 0; k < 3; k++) stats[k] += sum;                                  \
            }                                                                                 \
        }                                                                                     \
    }

DEFINE_CLAMP(f32)
DEFINE_CLAMP(f64)
DEFINE_CLAMP(bf16)
DEFINE_CLAMP(f16)

#define LOOPS(T) {gradclip_sumsq_##T, maxabs_##T, scale_##T, clamp_##T}

const gradclip_loops gradclip_loops_of[GRADCLIP_DTYPES] = {
    [GRADCLIP_FLOAT32] = LOOPS(f32),
    [GRADCLIP_FLOAT64] = LOOPS(f64),
    [GRADCLIP_BFLOAT16] = LOOPS(bf16),
    [GRADCLIP_FLOAT16] = LOOPS(f16),
};
