// The element types of the CUDA backend: float, BFloat16 and Float16, the last two as bits. Arithmetic is in float32;
// conversions to a half type round to nearest even, once.
#pragma once
#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace zf::cuda {

struct alignas(2) BFloat16 {
    uint16_t bits;
};
struct alignas(2) Float16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(BFloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
__device__ __forceinline__ float to_float(Float16 v) { return ptx::float16_to_float(v.bits); }

// f(T{}) with the element type T of `dtype`: host code chooses a kernel's instance by it.
template <typename Function>
void with_type(DType dtype, const Function& f) {
    switch (dtype) {
        case kFloat32:
            return f(float{});
        case kBFloat16:
            return f(BFloat16{});
        case kFloat16:
            return f(Float16{});
    }
}

// The nearest value of type T: rounded<T>(value).
template <typename T>
__device__ __forceinline__ T rounded(float v);
template <>
__device__ __forceinline__ float rounded<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ BFloat16 rounded<BFloat16>(float v) {
    return {static_cast<uint16_t>(ptx::to_bfloat16x2(v, 0.0f))};
}
template <>
__device__ __forceinline__ Float16 rounded<Float16>(float v) {
    return {static_cast<uint16_t>(ptx::to_float16x2(v, 0.0f))};
}

// Two values of a half type in one word, the first in its low half: what mma operands and 4-byte accesses want.
template <typename T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t rounded_pair<BFloat16>(float low, float high) {
    return ptx::to_bfloat16x2(low, high);
}
template <>
__device__ __forceinline__ uint32_t rounded_pair<Float16>(float low, float high) {
    return ptx::to_float16x2(low, high);
}

// max(0, v), NaN kept.
__device__ __forceinline__ float rectified(float v) { return v < 0.0f ? 0.0f : v; }

// D += A B on the tensor cores: A 16 x 16 and B 16 x 8 of a half type, D 16 x 8 float32; fragments as in ptx.cuh.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16x8x16<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma_16x8x16<Float16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_f16(d, a, b);
}

}  // namespace zf::cuda
