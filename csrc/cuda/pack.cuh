// V neighbouring elements of a map in registers, moved in one access of up to 16 bytes.
#pragma once
#include "cuda/types.cuh"

namespace zf::cuda {

// The number of elements in 16 bytes.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Whether arrays that start here can be read and written `bytes` at a time.
template <typename... Pointers>
bool aligned(std::uintptr_t bytes, Pointers... pointers) {
    return ((reinterpret_cast<std::uintptr_t>(pointers) % bytes == 0) && ...);
}

template <typename T, int V>
struct Pack {
    static constexpr int kBytes = V * static_cast<int>(sizeof(T));
    static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;
    static_assert(kBytes == 2 || kBytes == 4 || kBytes == 16);
    uint32_t words[kWords];

    // `from` and `to` are aligned to kBytes.
    __device__ __forceinline__ static Pack load(const T* from) {
        Pack p;
        if constexpr (kBytes == 16) {
            const uint4 q = *reinterpret_cast<const uint4*>(from);
            p.words[0] = q.x, p.words[1] = q.y, p.words[2] = q.z, p.words[3] = q.w;
        } else if constexpr (kBytes == 4) {
            p.words[0] = *reinterpret_cast<const uint32_t*>(from);
        } else {
            p.words[0] = *reinterpret_cast<const uint16_t*>(from);
        }
        return p;
    }
    __device__ __forceinline__ void store(T* to) const {
        if constexpr (kBytes == 16) {
            *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        } else if constexpr (kBytes == 4) {
            *reinterpret_cast<uint32_t*>(to) = words[0];
        } else {
            *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(words[0]);
        }
    }

    __device__ __forceinline__ static Pack zero() {
        Pack p;
        for (int i = 0; i < kWords; ++i) p.words[i] = 0;
        return p;
    }
    __device__ __forceinline__ static Pack rounded(const float (&values)[V]) {
        Pack p;
        if constexpr (sizeof(T) == 4) {
            for (int i = 0; i < V; ++i) p.words[i] = __float_as_uint(values[i]);
        } else {
            for (int i = 0; i < kWords; ++i)
                p.words[i] = rounded_pair<T>(values[2 * i], V > 1 ? values[(2 * i + 1) % V] : 0.0f);
        }
        return p;
    }
    // Element i; i is known at compile time, where loops over it are unrolled.
    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(T) == 4)
            return __uint_as_float(words[i]);
        else
            return to_float(T{static_cast<uint16_t>(i % 2 ? words[i / 2] >> 16 : words[i / 2])});
    }
};

// V bytes: the switches of V neighbouring elements.
template <int V>
struct Bytes {
    uint32_t words[V > 4 ? 2 : 1];

    __device__ __forceinline__ static Bytes load(const uint8_t* from) {
        Bytes b;
        if constexpr (V == 8) {
            const uint2 q = *reinterpret_cast<const uint2*>(from);
            b.words[0] = q.x, b.words[1] = q.y;
        } else if constexpr (V == 4) {
            b.words[0] = *reinterpret_cast<const uint32_t*>(from);
        } else {
            b.words[0] = *from;
        }
        return b;
    }
    __device__ __forceinline__ void store(uint8_t* to) const {
        if constexpr (V == 8) {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else if constexpr (V == 4) {
            *reinterpret_cast<uint32_t*>(to) = words[0];
        } else {
            *to = static_cast<uint8_t>(words[0]);
        }
    }
    __device__ __forceinline__ uint32_t operator[](int i) const { return words[i / 4] >> i % 4 * 8 & 0xff; }
};

}  // namespace zf::cuda
