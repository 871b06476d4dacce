/* gradclip's C kernel: norms and in-place edits over a list of dense buffers.
 *
 * The ABI is plain C and uses no header of Python, DLPack or a framework. Every function that
 * takes buffers takes `n` buffers as three parallel arrays, and several threads may call it at
 * once. The results depend only on the data, not on `threads`, timing or the instruction set.
 */
#ifndef GRADCLIP_H
#define GRADCLIP_H

#include <stdint.h>

#if defined(_WIN32)
#define GRADCLIP_API __declspec(dllexport)
#elif defined(__GNUC__)
#define GRADCLIP_API __attribute__((visibility("default")))
#else
#define GRADCLIP_API
#endif

#define GRADCLIP_ABI_VERSION 5

enum gradclip_dtype {
    GRADCLIP_FLOAT32 = 0,
    GRADCLIP_FLOAT64 = 1,
    GRADCLIP_BFLOAT16 = 2,
    GRADCLIP_FLOAT16 = 3,
    GRADCLIP_DTYPES = 4
};

enum gradclip_status {
    GRADCLIP_OK = 0,
    GRADCLIP_BAD_BUFFER = 1, /* negative size, unknown dtype, or NULL with size > 0 */
    GRADCLIP_BAD_BOUNDS = 2, /* lo > hi, or a NaN bound */
    GRADCLIP_NO_MEMORY = 3,
    GRADCLIP_UNREADABLE = 4, /* not on the CPU, another dtype, or gaps between the values */
    GRADCLIP_SHARED = 5,     /* two objects have a byte in common: one may be listed twice */
    GRADCLIP_UNUSUAL = 6     /* norms or bounds that a call in one step does not take */
};

typedef struct gradclip_buffers {
    void *const *pointers;  /* n addresses, aligned to their element */
    const int64_t *sizes;   /* n element counts; 0 allows a NULL pointer */
    const uint8_t *dtypes;  /* n values of enum gradclip_dtype */
    int64_t n;
} gradclip_buffers;

GRADCLIP_API int gradclip_abi_version(void);

/* The instruction set that the loops use on this CPU: "avx512", "avx2" or "baseline". */
GRADCLIP_API const char *gradclip_isa(void);

/* Measures the 2-norm of each buffer: out[i] = sqrt(sum x^2), accumulated in float64. The
 * result overflows or underflows only if the norm itself does. It is inf if an element is
 * inf, and NaN if an element is NaN. */
GRADCLIP_API int gradclip_norm2(const gradclip_buffers *buffers, int threads, double *out);

/* Measures the largest magnitude of each buffer: out[i] = max |x|; NaN if an element is NaN,
 * 0 for an empty buffer. */
GRADCLIP_API int gradclip_maxabs(const gradclip_buffers *buffers, int threads, double *out);

/* Multiplies each buffer by its factor in place: x = round(x * factors[i]), rounded to nearest
 * even. The product is taken in float64. For 16-bit dtypes the factor is rounded to float32
 * and the product is taken in float32, if the factor is a normal number there. The function
 * neither reads nor writes a buffer whose factor is exactly 1. */
GRADCLIP_API int gradclip_scale(const gradclip_buffers *buffers, const double *factors,
                                int threads);

/* Does what gradclip_scale does, with one factor for all buffers. */
GRADCLIP_API int gradclip_scale_all(const gradclip_buffers *buffers, double factor, int threads);

/* Clamps each element in place: x = min(max(x, lo), hi), with the bounds rounded to the
 * buffer's dtype first. NaN stays NaN. The function does not write memory that is inside the
 * bounds. stats[3i..] = sum before^2, sum after^2, sum before*after, in float64, without
 * scaling, so that float64 data may overflow. On GRADCLIP_BAD_* nothing is written. */
GRADCLIP_API int gradclip_clamp(const gradclip_buffers *buffers, double lo, double hi,
                                int threads, double *stats);

/* Measures sums of float32 buffers: sums[i] = x[i] + y[i], rounded, is not stored. y holds as many
 * addresses as x, of float32 data of the same sizes. stats[2i..] = sum x^2, sum (x + y)^2, in float64.
 * GRADCLIP_BAD_BUFFER: x has another dtype. */
GRADCLIP_API int gradclip_norms_of_sum(const gradclip_buffers *x, void *const *y, int threads,
                                       double *stats);

/* Scales sums of float32 buffers, and keeps what the scaling cuts off: with s = x + y, rounded,
 * x = round(s * factor), in place, and rest = s - x. stats[3i..] as gradclip_clamp. y and rest hold as
 * many addresses as x, of float32 data of the same sizes. GRADCLIP_BAD_BUFFER: see above. */
GRADCLIP_API int gradclip_scale_sum(const gradclip_buffers *x, void *const *y, void *const *rest,
                                    double factor, int threads, double *stats);

/* Describes the memory, dtype and layout of one object as a DLPack DLTensor; -1 on failure. */
struct gradclip_description;
typedef int (*gradclip_describe)(void *object, struct gradclip_description *out);

/* Finds the memory of n objects. `describe` comes from the library of the objects; the caller
 * holds the locks that `describe` needs. On GRADCLIP_UNREADABLE the outputs are undefined; on
 * GRADCLIP_SHARED they are right. */
GRADCLIP_API int gradclip_gather(gradclip_describe describe, void *const *objects, int64_t n,
                                 void **pointers, int64_t *sizes, uint8_t *dtypes);

/* How the library of the objects describes one, and lets other threads run in the meantime. */
typedef struct gradclip_host {
    gradclip_describe describe;
    void *(*unlock)(void); /* gives the caller's lock away */
    void (*lock)(void *);  /* takes the lock back; gets what `unlock` returned */
} gradclip_host;

/* The outcome of one call of gradclip_clip. In memory, four arrays of n entries follow it: norms
 * (double), sizes (int64_t), pointers (void *) and dtypes (uint8_t). */
typedef struct gradclip_step {
    double total;      /* the norm of all objects together, before */
    double factor;     /* what all values were multiplied by */
    double has_double; /* 1 if an object holds float64, else 0 */
} gradclip_step;

/* Finds the memory of n objects, measures the norm of each and of all together, and, if total + eps
 * is over the limit, scales all of them by limit / (total + eps). An infinite limit only measures.
 * The total is the largest norm, or the root of the sum of the norms' squares, which are added in
 * NumPy's order. Nothing is changed unless the status is GRADCLIP_OK.
 *
 * GRADCLIP_UNUSUAL: no norm, or the largest is not between 1e-140 and 1e140.
 *
 * `order` is 2, or 0 for the largest magnitude. `step` has room for the arrays behind it. */
GRADCLIP_API int gradclip_clip(const gradclip_host *host, void *const *objects, int64_t n,
                               int order, double limit, double eps, int threads,
                               gradclip_step *step);

/* Finds the memory of n objects, measures the 2-norm of each and of all together, and, if all norms
 * are finite, clamps every value as gradclip_clamp does, with its stats. The factor is 1. Nothing is
 * changed unless the status is GRADCLIP_OK. GRADCLIP_UNUSUAL: a norm is neither 0 nor between 1e-75
 * and 1e75, all are 0, or a finite bound is beyond the values of a dtype. */
GRADCLIP_API int gradclip_clip_values(const gradclip_host *host, void *const *objects, int64_t n,
                                      double lo, double hi, int threads, gradclip_step *step,
                                      double *stats);

#endif
