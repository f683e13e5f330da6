// How a kernel's work is cut into units and shared out among threads.
//
// A unit is one combination of three indices, such as (image, band of rows, group of channel blocks). It writes results
// that no other unit touches, so neither the order of units nor the number of threads changes a bit.
#pragma once
#include <cstdint>

#include "../window.h"
#include "memory.h"
#include "threads.h"

namespace zf {
namespace {

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// Part `part` of [0, count) cut into `parts` of equal size, give or take one.
inline Range share(int64_t count, int64_t part, int64_t parts) {
    return {count * part / parts, count * (part + 1) / parts};
}

// Into how many groups `blocks` blocks of output channels are cut so that `others` units of work per group divide
// evenly among the threads. No more than needed: each group pads its input for itself.
inline int64_t groups_for(int64_t blocks, int64_t others, int64_t threads) {
    int64_t a = threads, b = others;  // their greatest common divisor ends in a
    while (b) {
        const int64_t rest = a % b;
        a = b, b = rest;
    }
    return larger(1, smaller(blocks, threads / a));
}

// parallel_for whose body says whether all its results are finite: whether they all are.
template <typename Body>
bool all_finite(int64_t count, int threads, const Body& body) {
    bool finite = true;
    parallel_for(count, threads, [&](int64_t begin, int64_t end, int thread) {
        if (!body(begin, end, thread)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

// Scratch memory of `count` times `each` elements, for threads or for blocks.
template <typename T>
struct PerThread {
    const int64_t count, each;
    const Scratch memory{static_cast<std::size_t>(count * each) * sizeof(T)};
    T* of(int64_t index) const { return memory.template as<T>() + index * each; }
};

// Calls body(state, i, j, k, thread) for every unit i < a, j < b, k < c, k fastest, in one contiguous range per thread;
// start(thread) returns the state that a thread keeps from unit to unit. A body returns whether its results are finite;
// for_units, whether all were.
template <typename Start, typename Body>
bool for_units(int64_t a, int64_t b, int64_t c, int threads, const Start& start, const Body& body) {
    return all_finite(a * b * c, threads, [&](int64_t begin, int64_t end, int thread) {
        auto state = start(thread);
        bool finite = true;
        for (int64_t unit = begin; unit < end; ++unit)
            finite &= body(state, unit / c / b, unit / c % b, unit % c, thread);
        return finite;
    });
}

}  // namespace
}  // namespace zf
