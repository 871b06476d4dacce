/* Sums of squares and products of float32 and narrower data. Such a product is exact in float64, so
 * that a fused multiply-add rounds like the two separate operations. Therefore only this file may be
 * compiled with -ffp-contract=fast and still gives the same bits everywhere. */
#include "elements.h"
#include "loops.h"

enum { LANES = 32, BLOCK = 1024 /* values that fit in the fastest cache with their float32 */ };

/* With independent sums the compiler can vectorise a loop without -ffast-math, and no addition waits
 * for the one before it. The fixed order of their addition gives the same bits on every instruction
 * set. */
static inline double add_up_lanes(double *sum, int lanes) {
    if (lanes == 32)
        for (int j = 0; j < 16; j++) sum[j] += sum[j + 16];
    if (lanes >= 16)
        for (int j = 0; j < 8; j++) sum[j] += sum[j + 8];
    for (int j = 0; j < 4; j++) sum[j] += sum[j + 4];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

#define VERSION(name) name##_anywhere
#define TARGET
#define PACK 1
#define WIDEN(at) ((double)*(at))
typedef double pack_anywhere;
#include "products.h"

#ifdef GRADCLIP_CLONES
#include <immintrin.h>
#define VERSION(name) name##_avx2
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define PACK 4
#define WIDEN4(at) _mm256_cvtps_pd(_mm_loadu_ps(at))
#define WIDEN WIDEN4
typedef __m256d pack_avx2;
#include "products.h"

/* Clamps as loops.c does by integers, and multiplies in the same step: n is a multiple of 8. */
static __attribute__((target("arch=x86-64-v3"))) void clamp_avx2(float *x, int64_t n, int32_t high,
                                                                 uint32_t low, double stats[3]) {
    const __m256i most = _mm256_set1_epi32(high), least = _mm256_set1_epi32((int32_t)low);
    __m256d xx[2] = {0}, yy[2] = {0}, xy[2] = {0};
    double lanes[3][8];
    for (int64_t i = 0; i < n; i += 8) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(x + i));
        __m256 kept = _mm256_castsi256_ps(_mm256_min_epu32(_mm256_min_epi32(bits, most), least));
        __m256d a[2] = {WIDEN4(x + i), WIDEN4(x + i + 4)};
        __m256d b[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(kept)),
                        _mm256_cvtps_pd(_mm256_extractf128_ps(kept, 1))};
        _mm256_storeu_ps(x + i, kept);
        for (int k = 0; k < 2; k++) {
            xx[k] += a[k] * a[k];
            yy[k] += b[k] * b[k];
            xy[k] += a[k] * b[k];
        }
    }
    memcpy(lanes[0], xx, sizeof xx);
    memcpy(lanes[1], yy, sizeof yy);
    memcpy(lanes[2], xy, sizeof xy);
    for (int k = 0; k < 3; k++) stats[k] += add_up_lanes(lanes[k], 8);
}
#define BEST(name) (__builtin_cpu_supports("x86-64-v3") ? name##_avx2 : name##_anywhere)
#else
#define BEST(name) name##_anywhere
#endif

double gradclip_sumsq_f32(const void *data, int64_t n) { return BEST(sumsq)(data, n); }

void gradclip_products_f32(const void *x, const void *y, int64_t n, double stats[3]) {
    BEST(products)(x, y, n, stats);
}

int gradclip_clamp_at_once_f32(void *x, int64_t n, int32_t high, uint32_t low, double stats[3]) {
#ifdef GRADCLIP_CLONES
    if (__builtin_cpu_supports("x86-64-v3")) {
        clamp_avx2(x, n, high, low, stats);
        return 1;
    }
#endif
    (void)x, (void)n, (void)high, (void)low, (void)stats;
    return 0;
}

/* Widens block after block to float32 in the cache. */
#define DEFINE_HALF(T)                                                                        \
    static CLONES void widen_all_##T(const T *x, float *wide, int64_t n) {                    \
        for (int64_t i = 0; i < n; i++) wide[i] = widen_##T(x[i]);                            \
    }                                                                                         \
    double gradclip_sumsq_##T(const void *data, int64_t n) {                                  \
        const T *x = data;                                                                    \
        float wide[BLOCK];                                                                    \
        double sum = 0.0;                                                                     \
        for (int64_t i = 0; i < n; i += BLOCK) {                                              \
            int64_t count = n - i < BLOCK ? n - i : BLOCK;                                    \
            widen_all_##T(x + i, wide, count);                                                \
            sum += BEST(sumsq)(wide, count);                                                  \
        }                                                                                     \
        return sum;                                                                           \
    }                                                                                         \
    void gradclip_products_##T(const void *a, const void *b, int64_t n, double stats[3]) {    \
        const T *x = a, *y = b;                                                               \
        float wide_x[BLOCK], wide_y[BLOCK];                                                   \
        for (int64_t i = 0; i < n; i += BLOCK) {                                              \
            int64_t count = n - i < BLOCK ? n - i : BLOCK;                                    \
            widen_all_##T(x + i, wide_x, count);                                              \
            widen_all_##T(y + i, wide_y, count);                                              \
            BEST(products)(wide_x, wide_y, count, stats);                                     \
        }                                                                                     \
    }

DEFINE_HALF(bf16)
DEFINE_HALF(f16)
