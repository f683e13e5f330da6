// The functions of csrc/cuda/ptx.cuh on a CPU, fragment for fragment.
#pragma once
#include "emulator.h"

namespace zf::cuda::ptx {

template <typename T>
T* shared_memory() {
    return reinterpret_cast<T*>(emulator::machine().shared);
}

inline float float16_to_float(uint16_t bits) {
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return static_cast<float>(v);
}
inline uint16_t to_float16(float v) {
    if (v != v) return 0x7fff;
    const _Float16 h = static_cast<_Float16>(v);
    uint16_t bits;
    std::memcpy(&bits, &h, 2);
    return bits;
}
inline uint16_t to_bfloat16(float v) {
    if (v != v) return 0x7fff;
    const uint32_t bits = __float_as_uint(v);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint32_t to_float16x2(float low, float high) { return to_float16(low) | uint32_t{to_float16(high)} << 16; }
inline uint32_t to_bfloat16x2(float low, float high) { return to_bfloat16(low) | uint32_t{to_bfloat16(high)} << 16; }
inline float sqrt_approx(float v) { return std::sqrt(v); }
inline uint32_t to_tf32(float v) {
    if (!(std::fabs(v) <= 3.4028234e38f)) return __float_as_uint(v);
    return (__float_as_uint(v) + 0x1000) & 0xffffe000u;
}

inline float low_bf16(uint32_t v) { return __uint_as_float(v << 16); }
inline float high_bf16(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
inline float low_f16(uint32_t v) { return float16_to_float(static_cast<uint16_t>(v)); }
inline float high_f16(uint32_t v) { return float16_to_float(static_cast<uint16_t>(v >> 16)); }

// Products of two half values are exact in float32.
inline uint32_t fma_bfloat16x2(uint32_t a, uint32_t b, uint32_t c) {
    return to_bfloat16x2(low_bf16(a) * low_bf16(b) + low_bf16(c), high_bf16(a) * high_bf16(b) + high_bf16(c));
}
inline uint32_t fma_float16x2(uint32_t a, uint32_t b, uint32_t c) {
    return to_float16x2(low_f16(a) * low_f16(b) + low_f16(c), high_f16(a) * high_f16(b) + high_f16(c));
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = a | uint64_t{b} << 32;
    uint32_t v = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t nibble = selector >> 4 * i & 15;
        uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (nibble & 7)) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
        v |= byte << 8 * i;
    }
    return v;
}

struct MmaIn {
    float d[4];
    uint32_t a[4], b[2];
};
struct MmaOut {
    float d[4];
};
// D += A B for the 16 x K and K x 8 matrices that unpack(lane, in, A, B) collects from the lanes.
template <int K, typename Unpack>
void mma(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Unpack& unpack) {
    MmaIn mine;
    std::memcpy(mine.d, d, sizeof(d));
    std::memcpy(mine.a, a, sizeof(a));
    std::memcpy(mine.b, b, sizeof(b));
    const auto out = emulator::warp_operation<MmaOut>(name, ~0u, mine, [&](emulator::Thread** lanes) {
        float A[16][K], B[K][8], D[16][8];
        for (int l = 0; l < 32; ++l) {
            const auto in = emulator::input_of<MmaIn>(lanes[l]);
            const int g = l / 4, q = l % 4;
            for (int i = 0; i < 4; ++i) D[g + i / 2 * 8][2 * q + i % 2] = in.d[i];
            unpack(g, q, in, A, B);
        }
        for (int i = 0; i < 16; ++i)
            for (int k = 0; k < K; ++k)
                for (int j = 0; j < 8; ++j) D[i][j] += A[i][k] * B[k][j];
        for (int l = 0; l < 32; ++l) {
            const int g = l / 4, q = l % 4;
            emulator::set_output(lanes[l],
                                 MmaOut{{D[g][2 * q], D[g][2 * q + 1], D[g + 8][2 * q], D[g + 8][2 * q + 1]}});
        }
    });
    std::memcpy(d, out.d, sizeof(d));
}
template <typename Low, typename High>
void mma_m16n8k16(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Low low, High high) {
    mma<16>(name, d, a, b, [&](int g, int q, const MmaIn& in, float (&A)[16][16], float (&B)[16][8]) {
        for (int i = 0; i < 4; ++i) {
            A[g + i % 2 * 8][2 * q + i / 2 * 8] = low(in.a[i]);
            A[g + i % 2 * 8][2 * q + i / 2 * 8 + 1] = high(in.a[i]);
        }
        for (int i = 0; i < 2; ++i) {
            B[2 * q + i * 8][g] = low(in.b[i]);
            B[2 * q + i * 8 + 1][g] = high(in.b[i]);
        }
    });
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16("mma bf16", d, a, b, low_bf16, high_bf16);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16("mma f16", d, a, b, low_f16, high_f16);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const auto cut = [](uint32_t v) { return __uint_as_float(v & 0xffffe000u); };
    mma<8>("mma tf32", d, a, b, [&](int g, int q, const MmaIn& in, float (&A)[16][8], float (&B)[8][8]) {
        for (int i = 0; i < 4; ++i) A[g + i % 2 * 8][q + i / 2 * 4] = cut(in.a[i]);
        for (int i = 0; i < 2; ++i) B[q + i * 4][g] = cut(in.b[i]);
    });
}

template <int kCount>
void ldmatrix(const char* name, uint32_t (&r)[kCount], const void* row, bool trans) {
    struct Registers {
        uint32_t r[kCount];
    };
    if (emulator::lane_id() < 8 * kCount) emulator::check_shared(name, row, 16);
    const auto out = emulator::warp_operation<Registers>(name, ~0u, row, [&](emulator::Thread** lanes) {
        uint16_t m[kCount][8][8];
        for (int l = 0; l < 8 * kCount; ++l)
            std::memcpy(m[l / 8][l % 8], emulator::input_of<const void*>(lanes[l]), 16);
        for (int l = 0; l < 32; ++l) {
            const int g = l / 4, q = l % 4;
            Registers to;
            for (int i = 0; i < kCount; ++i)
                to.r[i] = trans ? m[i][2 * q][g] | uint32_t{m[i][2 * q + 1][g]} << 16
                                : m[i][g][2 * q] | uint32_t{m[i][g][2 * q + 1]} << 16;
            emulator::set_output(lanes[l], to);
        }
    });
    std::memcpy(r, out.r, sizeof(r));
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { ldmatrix("ldmatrix.x2", r, row, false); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix("ldmatrix.x4", r, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix("ldmatrix.x4.trans", r, row, true); }

// The target holds NaN until the wait: a read that is too early, or still of the old data, gets NaN.
template <int kBytes>
void cp_async(void* to, const void* from, int source_bytes = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
    emulator::check_shared("cp.async", to, kBytes);
    if (source_bytes < 0 || source_bytes > kBytes) emulator::fail("cp.async: source_bytes out of range");
    if (reinterpret_cast<std::uintptr_t>(from) % kBytes) emulator::fail("cp.async: misaligned global address");
    unsigned char probe[kBytes];
    std::memcpy(probe, from, static_cast<std::size_t>(source_bytes));  // detects an address outside its array
    asm volatile("" ::"r"(probe) : "memory");
    std::memset(to, 0xFF, kBytes);
    auto& thread = emulator::self();
    thread.copies.push_back({to, from, kBytes, source_bytes, thread.groups});
}
inline void cp_async_commit() { ++emulator::self().groups; }
template <int kLeft>
void cp_async_wait() {
    auto& thread = emulator::self();
    std::size_t left = 0;
    for (const emulator::Copy& c : thread.copies) {
        if (c.group >= thread.groups - kLeft) {
            thread.copies[left++] = c;
            continue;
        }
        std::memcpy(c.to, c.from, static_cast<std::size_t>(c.source_bytes));
        std::memset(static_cast<char*>(c.to) + c.source_bytes, 0, static_cast<std::size_t>(c.bytes - c.source_bytes));
    }
    thread.copies.resize(left);
}

}  // namespace zf::cuda::ptx
