/* Sums of squares of float32 and narrower data. Such a square is exact in float64, so that a fused
 * multiply-add rounds like the two separate operations. Therefore only this file may be compiled
 * with -ffp-contract=fast and still gives the same bits everywhere. */
#include "elements.h"
#include "loops.h"

/* With LANES independent sums the compiler can vectorise a loop without -ffast-math. The fixed order
 * of their addition gives the same bits on every instruction set. */
static inline double add_up(double *sum, int lanes) {
    for (int half = lanes / 2; half; half /= 2)
        for (int j = 0; j < half; j++) sum[j] += sum[j + half];
    return sum[0];
}

static inline double square(double value) { return value * value; }

/* Four registers of eight sums: one addition waits for the one four before, not two before, which
 * is half of the time in the cache. */
static CLONES double sumsq_f32(const void *data, int64_t n) {
    enum { LANES = 32 };
    const float *x = data;
    double sum[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sum[j] += square(x[i + j]);
    for (int j = 0; i < n; i++, j++) sum[j] += square(x[i]);
    return add_up(sum, LANES);
}

/* The loop reads two 16-bit values at a time, one from each half of a 32-bit word. Each value is then
 * in the lane of its float32 and need not move. bfloat16 becomes a third faster; float16, whose
 * widening takes longer, becomes 7 % slower. */
#define DEFINE_SUMSQ_HALF(T)                                                                  \
    static CLONES double sumsq_##T(const void *data, int64_t n) {                             \
        enum { LANES = 32 };                                                                  \
        const T *x = data;                                                                    \
        double low[LANES] = {0}, high[LANES] = {0};                                           \
        int64_t i = 0;                                                                        \
        for (; i + 2 * LANES <= n; i += 2 * LANES)                                            \
            for (int j = 0; j < LANES; j++) {                                                 \
                uint32_t two;                                                                 \
                memcpy(&two, x + i + 2 * j, sizeof two);                                      \
                low[j] += square(widen_##T((T)two));                                          \
                high[j] += square(widen_##T((T)(two >> 16)));                                 \
            }                                                                                 \
        for (int j = 0; i < n; i++, j = (j + 1) % LANES) low[j] += square(widen_##T(x[i]));   \
        return add_up(low, LANES) + add_up(high, LANES);                                      \
    }

DEFINE_SUMSQ_HALF(bf16)
DEFINE_SUMSQ_HALF(f16)

double gradclip_sumsq_f32(const void *data, int64_t n) { return sumsq_f32(data, n); }
double gradclip_sumsq_bf16(const void *data, int64_t n) { return sumsq_bf16(data, n); }
double gradclip_sumsq_f16(const void *data, int64_t n) { return sumsq_f16(data, n); }
