// Vectors as wide as the instruction set that this file is compiled for, from the compiler's own vector types. All of
// it is in an unnamed namespace: the linker would merge an inline function that two instruction sets share, and an old
// CPU could get the new CPU's copy.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's header of AVX-512 warns about itself
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace zf {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2, NEON
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
    typedef float four __attribute__((vector_size(16)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
    typedef double four __attribute__((vector_size(32)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
template <typename T>
using Mask = typename VectorOf<T>::mask;  // all ones where true, as comparisons give it; also the type of indices
template <typename T>
using Four = typename VectorOf<T>::four;

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
    return value - Vec<T>{};  // not 0 + value, which is an addition: -0 + 0 is not -0
}

// An index in every lane.
template <typename T>
ZF_INLINE Mask<T> all_lanes(int64_t value) {
    return Mask<T>{} + static_cast<decltype(Mask<T>{}[0] + 0)>(value);
}

// One byte a lane to one integer a lane, and back (of values below 256). The compiler's own conversion goes through
// single elements, which makes unpooling 3 times slower.
template <typename T>
ZF_INLINE Mask<T> widen(const uint8_t* from) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Mask<T>)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
    if constexpr (sizeof(T) == 8) return (Mask<T>)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)from));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return (Mask<T>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
    if constexpr (sizeof(T) == 8) return (Mask<T>)_mm256_cvtepu8_epi64(_mm_loadu_si32(from));
#else
    Mask<T> v;
    for (int i = 0; i < Lanes<T>::count; ++i) v[i] = from[i];
    return v;
#endif
}

template <typename T>
ZF_INLINE void narrow(uint8_t* to, Mask<T> v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
    if constexpr (sizeof(T) == 8) return _mm_storel_epi64((__m128i*)to, _mm512_cvtepi64_epi8((__m512i)v));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
        const __m128i words =
            _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
        return _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(words, words));
    }
#endif
    for (int i = 0; i < Lanes<T>::count; ++i) to[i] = static_cast<uint8_t>(v[i]);
}

// Whether a sum of values times 0 is 0: it is NaN if one of them was not finite.
template <typename T>
bool is_zero(Vec<T> v) {
    T sum = 0;
    for (int i = 0; i < Lanes<T>::count; ++i) sum += v[i];
    return sum == 0;
}

// sum += v * w, in registers or w[0 .. lanes) in memory. Assembly where there is FMA: from intrinsics GCC 12 stores the
// sums of a loop to the stack.
template <typename T>
ZF_INLINE void add_product(Vec<T>& sum, Vec<T> v, Vec<T> w) {
#if defined(__x86_64__) && defined(__FMA__)
    if constexpr (sizeof(T) == 4)
        asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(v), "v"(w));
    else
        asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(v), "v"(w));
#else
    sum += v * w;
#endif
}
template <typename T>
ZF_INLINE void add_product(Vec<T>& sum, Vec<T> v, const T* w) {
#if defined(__x86_64__) && defined(__FMA__)
    if constexpr (sizeof(T) == 4)
        asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(v), "m"(*reinterpret_cast<const char (*)[kVectorBytes]>(w)));
    else
        asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(v), "m"(*reinterpret_cast<const char (*)[kVectorBytes]>(w)));
#else
    sum += v * load<Vec<T> >(w);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each set of lanes, as a mask: its members in ascending order, a byte each.
struct Members {
    uint8_t of[256][8] = {};
    constexpr Members() {
        for (int mask = 0; mask < 256; ++mask)
            for (int lane = 0, n = 0; lane < 8; ++lane)
                if (mask >> lane & 1) of[mask][n++] = static_cast<uint8_t>(lane);
    }
};
constexpr Members kMembers;
#endif

// The lanes of v that are not 0, in ascending order, to `value`, and first + numbers[lane] of each to `number`: returns
// how many. All lanes of both are written.
template <typename T>
ZF_INLINE int compress(Vec<T> v, int32_t first, const int32_t* numbers, T* value, int32_t* number) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        const int mask = _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NEQ_UQ));
        const __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kMembers.of[mask]));
        const __m256i of_lanes = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)numbers), from);
        _mm256_storeu_ps(value, _mm256_permutevar8x32_ps((__m256)v, from));
        _mm256_storeu_si256((__m256i*)number, _mm256_add_epi32(of_lanes, _mm256_set1_epi32(first)));
        return __builtin_popcount(static_cast<unsigned>(mask));
    }
#endif
    int count = 0;
    for (int lane = 0; lane < Lanes<T>::count; ++lane) {
        value[count] = v[lane], number[count] = first + numbers[lane];
        count += v[lane] != 0;
    }
    return count;
}

// v^-1/2 to two ulp, for 1e-30 < v < 1e30: the processor's estimate of 12 bits or more, and one Newton step. A root and
// a division take 3 times as long.
#if defined(__SSE2__)
constexpr bool kQuickRoots = true;
ZF_INLINE Vec<float> inverse_root(Vec<float> v) {
#if defined(__AVX512F__)
    const Vec<float> r = (Vec<float>)_mm512_rsqrt14_ps((__m512)v);
#elif defined(__AVX2__)
    const Vec<float> r = (Vec<float>)_mm256_rsqrt_ps((__m256)v);
#else
    const Vec<float> r = (Vec<float>)_mm_rsqrt_ps((__m128)v);
#endif
    return r * (1.5f - 0.5f * v * r * r);
}
#else
constexpr bool kQuickRoots = false;
ZF_INLINE Vec<float> inverse_root(Vec<float> v) { return v; }
#endif

// The first `count` lanes, fewer than all, in memory: the others are zeros, and are not touched there. AddressSanitizer
// does not see what these instructions touch.
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
constexpr bool kMasks = true;
template <typename T>
ZF_INLINE Vec<T> load_part(const T* from, int64_t count) {
    const unsigned mask = (1u << count) - 1;
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
    else
        return (Vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
}
template <typename T>
ZF_INLINE void store_part(T* to, Vec<T> v, int64_t count) {
    const unsigned mask = (1u << count) - 1;
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), (__m512)v);
    else
        _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), (__m512d)v);
}
#else
constexpr bool kMasks = false;
template <typename T>
Vec<T> load_part(const T*, int64_t);
template <typename T>
void store_part(T*, Vec<T>, int64_t);
#endif

template <int value>
struct Index {
    static constexpr int at = value;
};

// f(Index<0>{}), ..., f(Index<kCount - 1>{}), written out: arrays that f subscripts with `at` become registers. (GCC
// unrolls a loop only after the pass that makes them so, and every tile spills.)
template <int kCount, typename F>
ZF_INLINE void repeat(const F& f) {
    if constexpr (kCount > 0) {
        repeat<kCount - 1>(f);
        f(Index<kCount - 1>{});
    }
}

// call(Index<count>{}) for 1 <= count <= kMost.
template <int kMost, typename Call>
ZF_INLINE void with_count(int64_t count, const Call& call) {
    if (count == kMost)
        call(Index<kMost>{});
    else if constexpr (kMost > 1)
        with_count<kMost - 1>(count, call);
}

template <typename T>
ZF_INLINE void copy(T* to, const T* from, int64_t count) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

template <typename T>
ZF_INLINE void zero(T* to, int64_t count) {
    __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof(T));
}

}  // namespace
}  // namespace zf
