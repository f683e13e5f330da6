// CUDA on a CPU, for tests: csrc/cuda/*.cu compiled by g++ against this header run their grids in host memory.
//
// A thread is a fiber. Blocks run one after another; within a block, control changes hands where threads meet: at block
// and warp barriers, shuffles, mma and ldmatrix. The environment variable ZFKERNELS_EMULATOR_ORDER says which thread
// goes on: "forward" (the lowest thread, as far as it can get), "reverse", or a number, the seed of a random choice at
// each meeting. Blocks run in that order too. A kernel that lacks a barrier gives other results in one of them.
//
// It detects: accesses outside an array (AddressSanitizer: arrays, and the dynamic shared memory, which is a heap block
// of exactly the size asked for), misaligned vector accesses (UndefinedBehaviorSanitizer), reads of shared memory that
// was not written (each block starts with NaN in it), barriers that not every thread reaches, lanes that disagree about
// a warp operation, a copy read before its wait (cp.async fills its target with NaN and delivers at the wait), a copy
// that is never waited for. Faults that it detects itself are exceptions that name kernel, block and thread.
//
// It does not model: the order of memory operations between barriers, bank conflicts, registers, time, and float
// rounding where PTX leaves it open (rsqrt.approx; the order of sums inside mma).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// __shared__ is left undefined: kernels take dynamic shared memory (shared_memory in ptx.cuh), which can be poisoned.

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
// The vector types are aligned, so that a misaligned access is detected.
#define ZF_VECTORS(type, name)                                       \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };         \
    struct alignas(4 * sizeof(type)) name##4 { type x, y, z, w; };   \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
ZF_VECTORS(float, float)
ZF_VECTORS(unsigned, uint)
#undef ZF_VECTORS

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace zf::emulator {

constexpr int kLargestBlock = 1024;
constexpr std::size_t kLargestShared = 227 * 1024;

struct Copy {  // one cp.async in flight
    void* to;
    const void* from;
    int bytes, source_bytes, group;
};

struct Thread {
    Fiber fiber;
    uint3 index;
    enum State { kReady, kAtBlockBarrier, kAtWarp, kReturned } state;
    int line;                                   // of the block barrier it waits at
    uint32_t mask;                              // of the warp operation it waits at
    const char* operation;                      // that operation
    alignas(16) unsigned char in[64], out[64];  // its operands and results there
    std::vector<Copy> copies;
    int groups;  // committed
};

struct Machine {
    std::vector<std::unique_ptr<Thread>> threads;
    Fiber system;
    std::vector<int> ready;
    uint32_t arrived[kLargestBlock / 32];  // at the warp's operation
    int count, current, at_barrier, returned;
    unsigned char* shared;
    std::size_t shared_bytes;
    void (*body)(void*);
    void* arguments;
    const char* kernel;
    std::string fault;
    enum Order { kForward, kReverse, kRandom } order;
    uint64_t random;
};

inline Machine& machine() {
    static Machine m{};
    return m;
}
// The kernels that were launched, each instance of a template by its own address.
inline std::set<const void*>& launched() {
    static std::set<const void*> kernels;
    return kernels;
}
inline Thread& self() { return *machine().threads[machine().current]; }

inline uint32_t draw(uint32_t below) {
    uint64_t& r = machine().random;
    r = r * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>((r >> 33) % below);
}

inline std::string triple(const char* name, unsigned x, unsigned y, unsigned z) {
    return std::string(name) + " (" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

// Ends the launch: every fiber is abandoned where it stands, and launch() throws.
[[noreturn]] inline void fail(const std::string& what) {
    Machine& m = machine();
    m.fault = what;
    self().fiber.switch_to(m.system, true);
    std::abort();
}

inline void resume(int thread) {
    machine().current = thread;
    threadIdx = self().index;
}

// Hands control to another thread that can run; returns when the caller's state is kReady again and its turn comes.
inline void yield_turn() {
    Machine& m = machine();
    Thread& me = self();
    const bool last = me.state == Thread::kReturned;
    if (m.ready.empty()) {
        if (m.returned == m.count) me.fiber.switch_to(m.system, true);
        for (int t = 0; t < m.count; ++t)
            if (m.threads[t]->state == Thread::kAtBlockBarrier)
                fail("some threads wait at __syncthreads (line " + std::to_string(m.threads[t]->line) +
                     ") and others can never get there: " + std::to_string(m.returned) + " returned");
        fail("threads wait for each other for ever at " + std::string(me.operation ? me.operation : "a barrier"));
    }
    if (m.order == Machine::kRandom) std::swap(m.ready[draw(m.ready.size())], m.ready.back());
    const int next = m.ready.back();
    m.ready.pop_back();
    const int mine = m.current;
    if (next == mine) return;
    resume(next);
    me.fiber.switch_to(self().fiber, last);
    resume(mine);
}

// The listed threads become ready; in forward order the lowest goes on first.
inline void wake(const std::vector<int>& threads) {
    Machine& m = machine();
    const auto begin = m.ready.size();
    for (int t : threads) {
        m.threads[t]->state = Thread::kReady;
        m.ready.push_back(t);
    }
    if (m.order == Machine::kForward) std::reverse(m.ready.begin() + begin, m.ready.end());
}

inline void block_barrier(int line) {
    Machine& m = machine();
    Thread& me = self();
    me.state = Thread::kAtBlockBarrier;
    me.line = line;
    if (++m.at_barrier == m.count) {
        std::vector<int> all(m.count);
        std::iota(all.begin(), all.end(), 0);
        for (int t : all)
            if (m.threads[t]->line != line)
                fail("threads wait at different __syncthreads (lines " + std::to_string(line) + " and " +
                     std::to_string(m.threads[t]->line) + ")");
        m.at_barrier = 0;
        wake(all);
    }
    yield_turn();
}

// A warp operation: every lane of `mask` passes `in`; the last to arrive runs compute(lanes), which reads their `in`
// and writes their `out` (lanes[l] is null outside the mask); then each returns its own.
template <typename Out, typename In, typename Compute>
Out warp_operation(const char* name, uint32_t mask, const In& in, const Compute& compute) {
    static_assert(sizeof(In) <= sizeof(Thread::in) && sizeof(Out) <= sizeof(Thread::out));
    static_assert(std::is_trivially_copyable_v<In> && std::is_trivially_copyable_v<Out>);
    Machine& m = machine();
    Thread& me = self();
    const int lane = m.current % 32, base = m.current - lane;
    if (!(mask >> lane & 1)) fail(std::string(name) + ": the mask leaves out the lane that calls");
    if (m.count - base < 32 && mask >> (m.count - base))
        fail(std::string(name) + ": the mask names lanes of no thread");
    std::memcpy(me.in, &in, sizeof(In));
    me.mask = mask;
    me.operation = name;
    me.state = Thread::kAtWarp;
    uint32_t& arrived = m.arrived[base / 32];
    arrived |= 1u << lane;
    if ((arrived & mask) == mask) {
        Thread* lanes[32] = {};
        std::vector<int> others;
        for (int l = 0; l < 32; ++l) {
            if (!(mask >> l & 1)) continue;
            lanes[l] = m.threads[base + l].get();
            if (lanes[l]->mask != mask) fail(std::string(name) + ": lanes of a warp give different masks");
            if (std::strcmp(lanes[l]->operation, name))
                fail(std::string("lanes of a warp meet at ") + name + " and " + lanes[l]->operation);
            others.push_back(base + l);
        }
        arrived &= ~mask;
        compute(lanes);
        wake(others);
    }
    yield_turn();
    Out out;
    std::memcpy(&out, me.out, sizeof(Out));
    return out;
}

template <typename T>
T input_of(const Thread* lane) {
    T value;
    std::memcpy(&value, lane->in, sizeof(T));
    return value;
}
template <typename T>
void set_output(Thread* lane, const T& value) {
    std::memcpy(lane->out, &value, sizeof(T));
}

template <typename T>
struct Shuffled {
    T value;
    int source;  // -1: the lane's own
};

template <typename T>
T shuffle(const char* name, uint32_t mask, T value, int source) {
    return warp_operation<T>(name, mask, Shuffled<T>{value, source}, [&](Thread** lanes) {
        for (int l = 0; l < 32; ++l) {
            if (!lanes[l]) continue;
            const auto in = input_of<Shuffled<T>>(lanes[l]);
            if (in.source >= 0 && !lanes[in.source]) fail(std::string(name) + " reads a lane outside the mask");
            set_output(lanes[l], in.source < 0 ? in.value : input_of<Shuffled<T>>(lanes[in.source]).value);
        }
    });
}
inline int lane_id() { return machine().current % 32; }
// The lane that a shuffle within groups of `width` reads, -1 for the lane's own where it would leave the group.
inline int within(int lane, int source, int width) {
    return source / width == lane / width && source >= 0 ? source : -1;
}

// Waits for the other lanes of the mask.
inline void warp_barrier(uint32_t mask) {
    warp_operation<int>("__syncwarp", mask, 0, [](Thread**) {});
}

// Fails for an address outside the block's shared memory, or not aligned to `bytes`.
inline void check_shared(const char* name, const void* at, int bytes) {
    Machine& m = machine();
    const auto* p = static_cast<const unsigned char*>(at);
    if (p < m.shared || p + bytes > m.shared + m.shared_bytes) fail(std::string(name) + " leaves the shared memory");
    if (reinterpret_cast<std::uintptr_t>(p) % bytes) fail(std::string(name) + ": misaligned shared address");
}

inline void entry() {
    Machine& m = machine();
    Thread& me = self();
    me.fiber.arrived();
    m.body(m.arguments);
    if (!me.copies.empty()) fail("returned with a cp.async that was never waited for");
    me.state = Thread::kReturned;
    me.operation = "return";
    ++m.returned;
    yield_turn();
    std::abort();
}

inline void run_block() {
    Machine& m = machine();
    std::memset(m.shared, 0xFF, m.shared_bytes);  // NaN in float32, bfloat16 and float16
    std::fill(std::begin(m.arrived), std::end(m.arrived), 0u);
    m.at_barrier = m.returned = 0;
    m.ready.clear();
    std::vector<int> all(m.count);
    std::iota(all.begin(), all.end(), 0);
    for (int t : all) {
        Thread& thread = *m.threads[t];
        thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        thread.fiber.start(entry);
        thread.copies.clear();
        thread.groups = 0;
        thread.operation = nullptr;
    }
    wake(all);
    if (m.order == Machine::kRandom) std::swap(m.ready[draw(m.ready.size())], m.ready.back());
    const int first = m.ready.back();
    m.ready.pop_back();
    resume(first);
    m.system.switch_to(self().fiber);
    if (!m.fault.empty())
        throw std::runtime_error("emulator: kernel " + std::string(m.kernel) + ", " +
                                 triple("block", blockIdx.x, blockIdx.y, blockIdx.z) + ", " +
                                 triple("thread", threadIdx.x, threadIdx.y, threadIdx.z) + ": " + m.fault);
}

inline void choose_order() {
    Machine& m = machine();
    const char* order = std::getenv("ZFKERNELS_EMULATOR_ORDER");
    const std::string name = order && *order ? order : "forward";
    m.order = name == "forward" ? Machine::kForward : name == "reverse" ? Machine::kReverse : Machine::kRandom;
    if (m.order == Machine::kRandom) m.random = std::stoull(name) * 2654435761u + 1;
}

// While it is on, launches are noted and nothing runs.
struct Launch {
    const void* kernel;
    int threads;
    std::size_t shared;
};
struct Record {
    bool on = false;
    std::vector<Launch> launches;
};
inline Record& record() {
    static Record r;
    return r;
}

// Runs kernel(arguments...) on the grid, here and now. `name` is for messages.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
            std::tuple<std::decay_t<Parameters>...> arguments) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    Machine& m = machine();
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    const auto refuse = [&](const std::string& what) {
        throw std::runtime_error("kernel " + std::string(name) + ": " + what);
    };
    if (threads < 1 || threads > kLargestBlock || block.z > 64)
        refuse("a block of " + std::to_string(threads) + " threads");
    if (shared > kLargestShared) refuse(std::to_string(shared) + " bytes of shared memory");
    if (blocks < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        refuse(triple("grid", grid.x, grid.y, grid.z));
    launched().insert(reinterpret_cast<const void*>(kernel));
    if (record().on) {
        record().launches.push_back({reinterpret_cast<const void*>(kernel), static_cast<int>(threads), shared});
        return;
    }
    while (m.threads.size() < threads) m.threads.push_back(std::make_unique<Thread>());

    struct Work {
        void (*kernel)(Parameters...);
        std::tuple<std::decay_t<Parameters>...>* arguments;
    } work{kernel, &arguments};
    m.body = [](void* w) {
        auto* call = static_cast<Work*>(w);
        std::apply(call->kernel, *call->arguments);
    };
    m.arguments = &work;
    m.kernel = name;
    m.count = static_cast<int>(threads);
    m.fault.clear();
    gridDim = grid;
    blockDim = block;
    choose_order();

    struct Shared {
        void* memory = nullptr;
        ~Shared() { std::free(memory); }
    } memory;
    if (posix_memalign(&memory.memory, 1024, shared) != 0) throw std::bad_alloc();
    m.shared = static_cast<unsigned char*>(memory.memory);
    m.shared_bytes = shared;

    std::vector<uint64_t> order(blocks);
    std::iota(order.begin(), order.end(), uint64_t{0});
    if (m.order == Machine::kReverse) std::reverse(order.begin(), order.end());
    if (m.order == Machine::kRandom)
        for (uint64_t i = blocks - 1; i > 0; --i) std::swap(order[i], order[draw(static_cast<uint32_t>(i + 1))]);
    for (uint64_t b : order) {
        blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y)};
        run_block();
    }
}

}  // namespace zf::emulator

#define __syncthreads() zf::emulator::block_barrier(__LINE__)
inline void __syncwarp(uint32_t mask = ~0u) { zf::emulator::warp_barrier(mask); }
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
    const int lane = zf::emulator::lane_id();
    return zf::emulator::shuffle("__shfl_xor_sync", mask, value, zf::emulator::within(lane, lane ^ bits, width));
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline float __fdividef(float a, float b) { return a / b; }
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
