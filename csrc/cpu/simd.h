// Vectors as wide as the instruction set that this file is compiled for, from the compiler's own vector types.
//
// Everything here is in an unnamed namespace, and the kernels use nothing else that is inline: an inline function that
// two instruction sets share would be merged by the linker, and an old CPU could get the new CPU's copy.
#pragma once
#include <cstdint>

namespace zf {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kPixels = 12;  // of a tile: 12 x 2 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kPixels = 6;  // 6 x 2 accumulators of 16 registers, 2 for weights, 2 for pixels
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kPixels = 8;
#else
constexpr int kVectorBytes = 16;
constexpr int kPixels = 6;
#endif

template <typename T>
struct Lanes {
    static constexpr int count = kVectorBytes / static_cast<int>(sizeof(T));
};

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
template <typename T>
using Mask = typename VectorOf<T>::mask;  // all ones where true, as comparisons give it; also the type of indices

// One byte a lane.
template <typename T>
struct BytesOf {
    typedef uint8_t type __attribute__((vector_size(kVectorBytes / sizeof(T))));
};
template <typename T>
using Bytes = typename BytesOf<T>::type;

#define ZF_INLINE inline __attribute__((always_inline))

template <typename V>
ZF_INLINE V load(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <typename V>
ZF_INLINE void store(void* to, V v) {
    __builtin_memcpy(to, &v, sizeof v);
}

template <typename T>
ZF_INLINE Vec<T> broadcast(T value) {
    return Vec<T>{} + value;
}

// acc += a * b. One instruction in assembly, because GCC 12 otherwise reorders the operands of the fused form and
// spills accumulators: 1.1x on a 3x3 convolution.
ZF_INLINE void multiply_add(Vec<float>& acc, Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
    asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#elif defined(__FMA__)
    asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#else
    acc += a * b;
#endif
}

ZF_INLINE void multiply_add(Vec<double>& acc, Vec<double> a, Vec<double> b) {
#if defined(__AVX512F__)
    asm("vfmadd231pd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#elif defined(__FMA__)
    asm("vfmadd231pd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#else
    acc += a * b;
#endif
}

// max(0, v) that lets NaN through.
template <typename V>
ZF_INLINE V rectified(V v) {
    return v < V{} ? V{} : v;
}

template <typename T>
ZF_INLINE T sum_of_lanes(Vec<T> v) {
    T lanes[Lanes<T>::count];
    store(lanes, v);
    for (int width = Lanes<T>::count / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

}  // namespace
}  // namespace zf
