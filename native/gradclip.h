/* gradclip's C kernel: norms and in-place edits over a list of dense buffers.
 *
 * A plain C ABI: it includes no header of Python, DLPack or a framework. Every call but the last
 * takes `n` buffers as three parallel arrays and may be made from several threads at once. The
 * results depend on the data alone: not on `threads`, on timing or on the instruction set.
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

#define GRADCLIP_ABI_VERSION 2

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
    GRADCLIP_UNREADABLE = 4 /* not on the CPU, another dtype, or gaps between the values */
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

/* out[i] = sqrt(sum x^2), accumulated in float64. Never overflows or underflows
 * unless the norm itself does; inf if an element is inf, NaN if one is NaN. */
GRADCLIP_API int gradclip_norm2(const gradclip_buffers *buffers, int threads, double *out);

/* out[i] = max |x|; NaN if an element is NaN; 0 for an empty buffer. */
GRADCLIP_API int gradclip_maxabs(const gradclip_buffers *buffers, int threads, double *out);

/* x = round(x * factors[i]) in place, rounded to nearest even. The product is taken in
 * float64; for 16-bit dtypes in float32, by the factor rounded to that, if it is a normal
 * number there. A buffer whose factor is exactly 1 is neither read nor written. */
GRADCLIP_API int gradclip_scale(const gradclip_buffers *buffers, const double *factors,
                                int threads);

/* x = min(max(x, lo), hi) in place, the bounds first rounded to the buffer's dtype.
 * NaN stays NaN. Memory already inside the bounds is not written.
 * stats[3i..] = sum before^2, sum after^2, sum before*after, in float64 (unscaled: may
 * overflow for float64 data). Nothing is written on GRADCLIP_BAD_*. */
GRADCLIP_API int gradclip_clamp(const gradclip_buffers *buffers, double lo, double hi,
                                int threads, double *stats);

/* Fills in the memory, dtype and layout of one object, as a DLPack DLTensor; -1 if it cannot. */
struct gradclip_description;
typedef int (*gradclip_describe)(void *object, struct gradclip_description *out);

/* Finds the memory of n objects. `describe` comes from the library that made them; the caller
 * holds the locks that `describe` needs. On GRADCLIP_UNREADABLE the outputs are undefined. */
GRADCLIP_API int gradclip_gather(gradclip_describe describe, void *const *objects, int64_t n,
                                 void **pointers, int64_t *sizes, uint8_t *dtypes);

#endif
