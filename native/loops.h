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

/* Returns the sum of (x * factor)^2 over float64 data, for data whose plain sum is out of range. */
double gradclip_sumsq_scaled_f64(const void *data, int64_t n, double factor);

#endif
