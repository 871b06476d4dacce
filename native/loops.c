/* All inner loops except the sums of exact products in products.c. Compile this file with
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
    LANES = 16    /* see products.c */
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

/* Each sum by itself, which the compiler can vectorise. */
static CLONES double dot_f64(const double *x, const double *y, int64_t n) {
    double sum[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sum[j] += x[i + j] * y[i + j];
    for (int j = 0; i < n; i++, j++) sum[j] += x[i] * y[i];
    for (int j = 1; j < LANES; j++) sum[0] += sum[j];
    return sum[0];
}

static void gradclip_products_f64(const double *x, const double *y, int64_t n, double stats[3]) {
    stats[0] += dot_f64(x, x, n);
    stats[1] += dot_f64(y, y, n);
    stats[2] += dot_f64(x, y, n);
}

/* Compares and stores in the buffer's own dtype, so that a value inside the bounds keeps its bits
 * (-0.0, NaN payloads) and a second clamp changes nothing.
 *
 * Integers do the same faster, if 0 is between the bounds and no value is NaN. As signed integers
 * positive floats have their own order, and every negative float is under them. As unsigned integers
 * negative floats have the order of their magnitudes, and every positive float is under them. */
#define DEFINE_CLAMP(T, INT, UINT, INF, AT_ONCE)                                                   \
    /* Returns the largest value and the most negative one, as integers. */                   \
    static CLONES void extremes_##T(const void *data, int64_t n, INT *top, UINT *bottom) {    \
        const INT *x = data;                                                                  \
        INT most = 0;                                                                         \
        UINT least = 0;                                                                       \
        for (int64_t i = 0; i < n; i++) {                                                     \
            most = x[i] > most ? x[i] : most;                                                 \
            least = (UINT)x[i] > least ? (UINT)x[i] : least;                                  \
        }                                                                                     \
        *top = most;                                                                          \
        *bottom = least;                                                                      \
    }                                                                                         \
    static CLONES void clamp_bits_##T(const void *data, void *out, int64_t n, INT high,       \
                                      UINT low) {                                             \
        const INT *x = data;                                                                  \
        UINT *kept = out;                                                                     \
        for (int64_t i = 0; i < n; i++) {                                                     \
            UINT lowered = (UINT)(x[i] < high ? x[i] : high);                                 \
            kept[i] = lowered < low ? lowered : low;                                          \
        }                                                                                     \
    }                                                                                         \
    static CLONES void clamp_values_##T(const T *x, T *kept, int64_t n, T low, T high) {      \
        for (int64_t i = 0; i < n; i++) {                                                     \
            T raised = widen_##T(x[i]) < widen_##T(low) ? low : x[i];                         \
            kept[i] = widen_##T(x[i]) > widen_##T(high) ? high : raised;                      \
        }                                                                                     \
    }                                                                                         \
    static void clamp_piece_##T(T *x, int64_t n, T low, T high, int by_bits, double stats[3]) { \
        T kept[BLOCK];                                                                        \
        INT ceiling;                                                                          \
        UINT floor;                                                                           \
        memcpy(&ceiling, &high, sizeof high);                                                 \
        memcpy(&floor, &low, sizeof low);                                                     \
        if (by_bits)                                                                          \
            clamp_bits_##T(x, kept, n, ceiling, floor);                                       \
        else                                                                                  \
            clamp_values_##T(x, kept, n, low, high);                                          \
        gradclip_products_##T(x, kept, n, stats);                                             \
        if (memcmp(x, kept, (size_t)n * sizeof *x)) memcpy(x, kept, (size_t)n * sizeof *x);   \
    }                                                                                         \
    static void clamp_##T(void *data, int64_t n, double lo, double hi, double stats[3]) {     \
        T *x = data, low = narrow_##T(lo), high = narrow_##T(hi);                             \
        int around = widen_##T(low) < 0 && widen_##T(high) > 0;                               \
        const UINT sign = (UINT)1 << (8 * sizeof(UINT) - 1);                                  \
        INT top, ceiling;                                                                     \
        UINT bottom, floor;                                                                   \
        memcpy(&ceiling, &high, sizeof high);                                                 \
        memcpy(&floor, &low, sizeof low);                                                     \
        for (int64_t i = 0; i < n; i += BLOCK, x += BLOCK) {                                  \
            int64_t count = n - i < BLOCK ? n - i : BLOCK, whole = count - count % 8;         \
            extremes_##T(x, count, &top, &bottom);                                            \
            if (around && top <= ceiling && (bottom < sign || bottom <= floor)) {             \
                double sum = gradclip_sumsq_##T(x, count);                                    \
                for (int k = 0; k < 3; k++) stats[k] += sum;                                  \
                continue;                                                                     \
            }                                                                                 \
            int by_bits = around && top <= (INF) && bottom <= (sign | (INF));                 \
            if (!(by_bits && AT_ONCE(x, whole, ceiling, floor, stats)))                       \
                clamp_piece_##T(x, whole, low, high, by_bits, stats);                         \
            if (whole < count)                                                                \
                clamp_piece_##T(x + whole, count - whole, low, high, by_bits, stats);         \
        }                                                                                     \
    }

#define NOT_AT_ONCE(...) 0

DEFINE_CLAMP(f32, int32_t, uint32_t, 0x7f800000, gradclip_clamp_at_once_f32)
DEFINE_CLAMP(f64, int64_t, uint64_t, 0x7ff0000000000000, NOT_AT_ONCE)
DEFINE_CLAMP(bf16, int16_t, uint16_t, 0x7f80, NOT_AT_ONCE)
DEFINE_CLAMP(f16, int16_t, uint16_t, 0x7c00, NOT_AT_ONCE)

/* ---- sums of two buffers, block after block in the cache ------------------------------ */

static CLONES void add_f32(const float *restrict x, const float *restrict y, float *restrict sum,
                           int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] = x[i] + y[i];
}

static CLONES void scale_sum_f32(const float *restrict x, const float *restrict y,
                                 float *restrict scaled, float *restrict rest, int64_t n,
                                 double factor) {
    for (int64_t i = 0; i < n; i++) {
        float sum = x[i] + y[i];
        scaled[i] = (float)((double)sum * factor);
        rest[i] = sum - scaled[i];
    }
}

void gradclip_norms_of_sum_f32(const float *x, const float *y, int64_t n, double stats[2]) {
    float sum[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t count = n - i < BLOCK ? n - i : BLOCK;
        add_f32(x + i, y + i, sum, count);
        stats[0] += gradclip_sumsq_f32(x + i, count);
        stats[1] += gradclip_sumsq_f32(sum, count);
    }
}

void gradclip_scale_sum_f32(float *x, const float *y, float *rest, int64_t n, double factor,
                            double stats[3]) {
    float scaled[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t count = n - i < BLOCK ? n - i : BLOCK;
        scale_sum_f32(x + i, y + i, scaled, rest + i, count, factor);
        gradclip_products_f32(x + i, scaled, count, stats);
        memcpy(x + i, scaled, (size_t)count * sizeof *x);
    }
}

#define LOOPS(T) {gradclip_sumsq_##T, maxabs_##T, scale_##T, clamp_##T}

const gradclip_loops gradclip_loops_of[GRADCLIP_DTYPES] = {
    [GRADCLIP_FLOAT32] = LOOPS(f32),
    [GRADCLIP_FLOAT64] = LOOPS(f64),
    [GRADCLIP_BFLOAT16] = LOOPS(bf16),
    [GRADCLIP_FLOAT16] = LOOPS(f16),
};
