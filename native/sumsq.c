/* Sums of squares of float32 and narrower data. Such a square is exact in float64, so a fused
 * multiply-add rounds just as the two operations do: this file, and only this one, may be
 * compiled with -ffp-contract=fast and still give the same bits everywhere. */
#include "elements.h"
#include "loops.h"

/* LANES independent sums let a loop vectorise without -ffast-math and, added up in a fixed order,
 * give the same bits on every instruction set. A value of 16 bits takes longer to widen: more
 * sums, so that none of them is waited for. */
#define DEFINE_SUMSQ(T, LANES)                                                                \
    static CLONES double sumsq_##T(const void *data, int64_t n) {                             \
        const T *x = data;                                                                    \
        double sum[LANES] = {0};                                                              \
        int64_t i = 0;                                                                        \
        for (; i + LANES <= n; i += LANES)                                                    \
            for (int j = 0; j < LANES; j++) {                                                 \
                double value = widen_##T(x[i + j]);                                           \
                sum[j] += value * value;                                                      \
            }                                                                                 \
        for (int j = 0; i < n; i++, j++) {                                                    \
            double value = widen_##T(x[i]);                                                   \
            sum[j] += value * value;                                                          \
        }                                                                                     \
        for (int half = LANES / 2; half; half /= 2)                                           \
            for (int j = 0; j < half; j++) sum[j] += sum[j + half];                           \
        return sum[0];                                                                        \
    }                                                                                         \
    double gradclip_sumsq_##T(const void *data, int64_t n) { return sumsq_##T(data, n); }

DEFINE_SUMSQ(f32, 16)
DEFINE_SUMSQ(bf16, 32)
DEFINE_SUMSQ(f16, 32)
