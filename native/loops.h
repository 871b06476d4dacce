/* The inner loops: each works on contiguous elements of one dtype, in one thread. */
#ifndef GRADCLIP_LOOPS_H
#define GRADCLIP_LOOPS_H

#include <stdint.h>

typedef struct gradclip_loops {
    double (*sumsq)(const void *data, int64_t n);
    double (*maxabs)(const void *data, int64_t n);
    void (*scale)(void *data, int64_t n, double factor);
    void (*clamp)(void *data, int64_t n, double lo, double hi, double stats[3]);
} gradclip_loops;

/* Indexed by enum gradclip_dtype. */
extern const gradclip_loops gradclip_loops_of[];

double gradclip_sumsq_f32(const void *data, int64_t n);
double gradclip_sumsq_f64(const void *data, int64_t n);
double gradclip_sumsq_bf16(const void *data, int64_t n);
double gradclip_sumsq_f16(const void *data, int64_t n);

/* Adds to stats the sums of x^2, y^2 and xy. */
void gradclip_products_f32(const void *x, const void *y, int64_t n, double stats[3]);
void gradclip_products_bf16(const void *x, const void *y, int64_t n, double stats[3]);
void gradclip_products_f16(const void *x, const void *y, int64_t n, double stats[3]);

/* Clamps to the floats that have these bits, low < 0 < high, and adds to stats what
 * gradclip_products_f32 would add. n is a multiple of 8, and no value is NaN. Returns 0, and has done
 * nothing, on a CPU without AVX2. */
int gradclip_clamp_at_once_f32(void *x, int64_t n, int32_t high, uint32_t low, double stats[3]);

/* One chunk of gradclip_norms_of_sum, and one of gradclip_scale_sum. They add to stats. */
void gradclip_norms_of_sum_f32(const float *x, const float *y, int64_t n, double stats[2]);
void gradclip_scale_sum_f32(float *x, const float *y, float *rest, int64_t n, double factor,
                            double stats[3]);

/* Returns the sum of (x * factor)^2 over float64 data, for data whose plain sum is out of range. */
double gradclip_sumsq_scaled_f64(const void *data, int64_t n, double factor);

#endif
