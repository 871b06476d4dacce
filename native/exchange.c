/* Finds the memory of many tensors with their library's function for one tensor. */
#include "exchange.h"

#include <stdlib.h>

#include "elements.h"
#include "gradclip.h"

typedef struct gradclip_description description;

static int dtype_of(const description *t) {
    if (t->dtype.lanes != 1) return GRADCLIP_DTYPES;
    if (t->dtype.code == CODE_BFLOAT && t->dtype.bits == 16) return GRADCLIP_BFLOAT16;
    if (t->dtype.code != CODE_FLOAT) return GRADCLIP_DTYPES;
    switch (t->dtype.bits) {
        case 16: return GRADCLIP_FLOAT16;
        case 32: return GRADCLIP_FLOAT32;
        case 64: return GRADCLIP_FLOAT64;
        default: return GRADCLIP_DTYPES;
    }
}

static int64_t size_of(const description *t) {
    int64_t size = 1;
    for (int32_t axis = 0; axis < t->ndim; axis++) size *= t->shape[axis];
    return size;
}

/* Returns whether the values are contiguous for some order of the axes, without holes or overlap. */
static int is_run(const description *t, int64_t size) {
    if (!t->strides || size < 2) return 1;
    for (int64_t covered = 1; covered < size;) {
        int32_t axis = t->ndim - 1;
        while (axis >= 0 && (t->strides[axis] != covered || t->shape[axis] < 2)) axis--;
        if (axis < 0) return 0;
        covered *= t->shape[axis];
    }
    return 1;
}

typedef struct span {
    uintptr_t start, end;
} span;

static int by_start(const void *one, const void *other) {
    uintptr_t a = ((const span *)one)->start, b = ((const span *)other)->start;
    return (a > b) - (a < b);
}

/* Returns whether two of the spans have a byte in common, or there is no memory to find out. */
static int any_shared(void *const *pointers, const int64_t *sizes, const uint8_t *dtypes,
                      int64_t n) {
    span *spans = malloc((size_t)n * sizeof *spans);
    int64_t count = 0;
    int rising = 1, falling = 1, shared = 0;
    if (!spans) return n > 0;
    for (int64_t i = 0; i < n; i++) {
        if (sizes[i] == 0) continue;
        uintptr_t start = (uintptr_t)pointers[i];
        spans[count] = (span){start, start + (uintptr_t)(sizes[i] * element_size(dtypes[i]))};
        if (count > 0) {
            rising &= spans[count - 1].end <= start;
            falling &= spans[count].end <= spans[count - 1].start;
        }
        count++;
    }
    if (!rising && !falling) {
        qsort(spans, (size_t)count, sizeof *spans, by_start);
        for (int64_t i = 1; i < count; i++) shared |= spans[i].start < spans[i - 1].end;
    }
    free(spans);
    return shared;
}

int gradclip_gather(gradclip_describe describe, void *const *objects, int64_t n,
                    void **pointers, int64_t *sizes, uint8_t *dtypes) {
    for (int64_t i = 0; i < n; i++) {
        description tensor;
        if (describe(objects[i], &tensor) != 0) return GRADCLIP_UNREADABLE;
        int dtype = dtype_of(&tensor);
        int64_t size = size_of(&tensor);
        if (tensor.device_type != DEVICE_CPU || dtype == GRADCLIP_DTYPES ||
            !is_run(&tensor, size))
            return GRADCLIP_UNREADABLE;
        pointers[i] = size ? (char *)tensor.data + tensor.byte_offset : 0;
        sizes[i] = size;
        dtypes[i] = (uint8_t)dtype;
    }
    return any_shared(pointers, sizes, dtypes, n) ? GRADCLIP_SHARED : GRADCLIP_OK;
}
