/* The part of DLPack 1.x that the kernel reads: https://dmlc.github.io/dlpack, a public ABI. */
#ifndef GRADCLIP_EXCHANGE_H
#define GRADCLIP_EXCHANGE_H

#include <stdint.h>

enum { DEVICE_CPU = 1, CODE_FLOAT = 2, CODE_BFLOAT = 4 };

/* The layout of DLTensor. */
struct gradclip_description {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: row-major */
    uint64_t byte_offset;
};

#endif
