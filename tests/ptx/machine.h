// What translated PTX runs on: a block of threads, each a fiber, on one system thread. translate.py writes calls of
// these functions. Copies (cp.async) are done at once, so a missing wait for one is the emulator's to find.
//
// A fault (an access beyond shared memory or unaligned, threads that wait for different things) ends the launch, and
// the launch returns an error whose text says what, in which kernel, block and thread.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace zf::ptx_machine {

struct Thread {
    uint32_t x;
};
struct Block {
    uint32_t threads, x, y, z, blocks_x, blocks_y;
};
extern Thread thread;  // the one that runs
extern Block block;
extern char* shared;
extern uint64_t shared_bytes;

[[noreturn]] void fault(const char* what, uint64_t address, uint64_t bytes);

// Threads wait here for all of their block that have not ended.
void wait_for_block();

// Each lane of the warp takes part; the results are the running lane's.
const uint32_t* load_matrices(uint64_t row, int count, bool transposed);
struct Words4 {
    uint32_t word[4];
};
struct Words2 {
    uint32_t word[2];
};
const float* mma_bfloat16(Words4 a, Words2 b, Words4 c);
const float* mma_float16(Words4 a, Words2 b, Words4 c);
const float* mma_tf32(Words4 a, Words2 b, Words4 c);
uint32_t exchanged(uint32_t value, uint32_t lane_mask, uint32_t clamp, uint32_t members);

// Memory

inline char* shared_memory(uint64_t at, uint64_t bytes) {
    at = static_cast<uint32_t>(at);
    if (at + bytes > shared_bytes) fault("shared memory is accessed beyond its end", at, bytes);
    if (at % bytes != 0) fault("misaligned access to shared memory", at, bytes);
    return shared + at;
}
inline char* global_memory(uint64_t at, uint64_t bytes) {
    if (at < 4096) fault("access through a null pointer", at, bytes);
    if (at % bytes != 0) fault("misaligned access to global memory", at, bytes);
    return reinterpret_cast<char*>(at);
}
template <typename T>
inline T load(const char* from) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
}
template <typename T>
inline void store(char* to, T value) {
    std::memcpy(to, &value, sizeof(T));
}
inline void copy_to_shared(uint64_t to, uint64_t from, uint64_t bytes, uint32_t given) {
    char* const place = shared_memory(to, bytes);
    if (given > bytes) fault("cp.async of more bytes than its size", given, bytes);
    if (given > 0) std::memcpy(place, global_memory(from, bytes), given);
    std::memset(place + given, 0, bytes - given);
}

// Numbers

inline float float_of(uint64_t bits) { return load<float>(reinterpret_cast<const char*>(&bits)); }
inline uint32_t bits_of(float value) { return load<uint32_t>(reinterpret_cast<const char*>(&value)); }

inline float from_bfloat16(uint16_t v) { return float_of(uint32_t{v} << 16); }
inline uint16_t to_bfloat16(float v) {
    if (std::isnan(v)) return 0x7fff;
    const uint32_t bits = bits_of(v);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_float16(uint64_t v) {
    const uint16_t bits = static_cast<uint16_t>(v);
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}
template <typename F>
uint16_t to_float16(F v) {
    if (std::isnan(v)) return 0x7fff;
    const _Float16 half = static_cast<_Float16>(v);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline uint32_t to_tf32(float v) {
    const uint32_t bits = bits_of(v);
    if (std::isnan(v)) return 0x7fffffffu;
    return std::isinf(v) ? bits : (bits + 0x1000) & ~0x1fffu;
}

// The products of two halves are exact in double; one rounding to float, then to the half, is the halves' own to within
// what a double cannot hold, and so is the other's.
inline uint16_t fma_bfloat16(uint16_t a, uint16_t b, uint16_t c) {
    return to_bfloat16(static_cast<float>(double{from_bfloat16(a)} * from_bfloat16(b) + from_bfloat16(c)));
}
inline uint16_t fma_float16(uint16_t a, uint16_t b, uint16_t c) {
    return to_float16(double{from_float16(a)} * from_float16(b) + from_float16(c));
}
template <float (*kTo)(uint16_t)>
inline uint16_t max_nan(uint16_t a, uint16_t b) {
    const float x = kTo(a), y = kTo(b);
    if (std::isnan(x) || std::isnan(y)) return 0x7fff;
    if (x == y) return a & 0x8000 ? b : a;  // 0 is larger than -0
    return x > y ? a : b;
}
inline float narrow_float16(uint16_t v) { return from_float16(v); }
inline uint16_t max_nan_bfloat16(uint16_t a, uint16_t b) { return max_nan<from_bfloat16>(a, b); }
inline uint16_t max_nan_float16(uint16_t a, uint16_t b) { return max_nan<narrow_float16>(a, b); }

template <typename F, typename... Words>
inline uint32_t in_halves(F f, Words... words) {
    const uint32_t low = f(static_cast<uint16_t>(words)...), high = f(static_cast<uint16_t>(words >> 16)...);
    return low | high << 16;
}

// Integers

template <typename T>
inline T divided(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    return std::numeric_limits<T>::is_signed && b == static_cast<T>(-1) ? static_cast<T>(0 - a) : a / b;
}
template <typename T>
inline T remainder_of(T a, T b) {
    if (b == 0) return a;
    return std::numeric_limits<T>::is_signed && b == static_cast<T>(-1) ? T{0} : a % b;
}
template <typename T>
inline T shifted_left(T a, uint32_t by) {
    return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << by);
}
template <typename T>
inline T shifted_right(T a, uint32_t by) {
    if (by >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T{0};
    return static_cast<T>(a >> by);
}
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t nibble = selector >> 4 * i & 15;
        uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (nibble & 7)) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline uint32_t inserted(uint32_t field, uint32_t into, uint32_t at, uint32_t length) {
    const uint64_t mask = ((uint64_t{1} << (length & 255)) - 1) << (at & 255);
    return static_cast<uint32_t>((into & ~mask) | ((uint64_t{field} << (at & 255)) & mask));
}

// Kernels

using Kernel = void (*)(const char* parameters);
struct Parameter {
    int offset, bytes;
};
struct Registered {
    const char* symbol;
    Kernel kernel;
    int threads;  // the most of a block
    int parameters;
    const Parameter* layout;
};
// translate.py's table, ended by a null symbol.
extern const Registered kernels[];

// Runs the grid; false after a fault, which fault_text() describes.
bool run(const Registered& kernel, const char* parameters, const uint32_t (&blocks)[3], uint32_t threads,
         uint64_t shared_bytes);
const char* fault_text();

}  // namespace zf::ptx_machine
