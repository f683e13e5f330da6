// Rounding of float32 results to bfloat16 and float16, values still held as float32.
#pragma once
#include <cstdint>

#include "kernels.h"
#include "simd.h"

namespace zf {
namespace {

// To the nearest bfloat16, ties to even; NaN stays NaN.
ZF_INLINE float to_bfloat16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    bits = value == value ? rounded : bits;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest float16, ties to even, past 65504 to infinity; NaN stays NaN.
ZF_INLINE float to_float16(float value) {
    const float size = __builtin_fabsf(value);
    if (!(size >= 6.103515625e-05f)) {             // below 2^-14 float16 has the fixed step 2^-24,
        const float fixed = (size + 0.5f) - 0.5f;  // which is float32's step from 0.5 to 1
        return value == value ? __builtin_copysignf(fixed, value) : value;
    }
    if (size >= 65520.0f) return __builtin_copysignf(__builtin_inff(), value);
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fffu;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

ZF_INLINE void round_all(float* values, int64_t count, Rounding rounding) {
    if (rounding == kBfloat16)
        for (int64_t i = 0; i < count; ++i) values[i] = to_bfloat16(values[i]);
    else if (rounding == kFloat16)
        for (int64_t i = 0; i < count; ++i) values[i] = to_float16(values[i]);
}
ZF_INLINE void round_all(double*, int64_t, Rounding) {}

}  // namespace
}  // namespace zf
