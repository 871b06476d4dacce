/* The element types, their conversions, and the macro for loops in several instruction sets. */
#ifndef GRADCLIP_ELEMENTS_H
#define GRADCLIP_ELEMENTS_H

#include <stdint.h>
#include <string.h>

#include "gradclip.h"

/* The compiler builds a function with CLONES for several instruction sets; the loader selects one. */
#ifdef GRADCLIP_CLONES
#define CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CLONES
#endif

typedef float f32;
typedef double f64;
typedef uint16_t bf16;
typedef uint16_t f16;

static inline int64_t element_size(uint8_t dtype) {
    return dtype == GRADCLIP_FLOAT64 ? 8 : dtype == GRADCLIP_FLOAT32 ? 4 : 2;
}

static inline uint32_t bits32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float widen_f32(float value) { return value; }
static inline double widen_f64(double value) { return value; }
static inline float widen_bf16(bf16 value) { return float32((uint32_t)value << 16); }

static inline float widen_f16(f16 value) {
    uint32_t magnitude = value & 0x7fffu;
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t normal = (magnitude << 13) + (112u << 23);
    /* Subnormals: give the bits the exponent of 2^-14, then subtract 2^-14. */
    uint32_t subnormal = bits32(float32((magnitude << 13) + (113u << 23)) - float32(113u << 23));
    uint32_t bits = magnitude < 0x0400u ? subnormal : normal;
    bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;
    return float32(bits | sign);
}

static inline float narrow_f32(double value) { return (float)value; }
static inline double narrow_f64(double value) { return value; }

static inline bf16 narrow_bf16(float value) {
    uint32_t bits = bits32(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t nan = (bits >> 16) | 0x40u;
    return (bf16)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline f16 narrow_f16(float value) {
    uint32_t bits = bits32(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    /* Normals: change the bias and round to nearest even; a carry gives inf correctly. */
    uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    /* Subnormals: the sum with 0.5 has the rounded value in its low bits. */
    uint32_t subnormal = bits32(float32(magnitude) + 0.5f) - bits32(0.5f);
    uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= (143u << 23) ? special : result;
    return (f16)(result | sign);
}

#endif
