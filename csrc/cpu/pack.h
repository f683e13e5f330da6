// Weights between torch's memory, through strides, and the kernels' blocks [row][kWidth outputs].
//
// Which row a filter's element becomes differs from kernel to kernel, but not from one output channel to the next: a
// Table lists the offsets of every element in torch's filter and in the block, and serves all blocks. Where four
// elements are neighbours in the filter, 4 outputs x 4 elements are transposed in registers (one by one, packing took
// 38% of a 3x3 convolution of 256 to 384 maps at N = 1).
#pragma once
#include <cstdint>

#include "simd.h"
#include "units.h"

namespace zf {
namespace {

// Output channels of a block.
template <typename T>
constexpr int64_t kWidth = 2 * Lanes<T>::count;

// Whether C channels leave half of a block's lanes empty, or more.
template <typename T>
constexpr bool few_channels(int64_t C) {
    return C <= kWidth<T> / 2;
}

struct Element {
    int64_t filter, block;  // offsets
};

// The elements (c, i, j) of a filter, c < channels, i < KH, j < KW, at c*sc + i*si + j*sj, in ascending order of memory
// for either of torch's memory formats; block_of(c, i, j) is an element's offset in the block.
class Table {
   public:
    template <typename BlockOf>
    Table(int64_t channels, int64_t sc, int64_t KH, int64_t si, int64_t KW, int64_t sj, const BlockOf& block_of)
        : count_(channels * KH * KW), memory_(static_cast<std::size_t>(count_) * sizeof(Element)) {
        Element* next = memory_.as<Element>();
        const bool taps_inside = sc >= si;
        const int64_t outer = taps_inside ? channels : 1, inner = taps_inside ? 1 : channels;
        for (int64_t a = 0; a < outer; ++a)
            for (int64_t i = 0; i < KH; ++i)
                for (int64_t j = 0; j < KW; ++j)
                    for (int64_t b = 0; b < inner; ++b)
                        *next++ = {(a + b) * sc + i * si + j * sj, block_of(a + b, i, j)};
    }
    const Element* begin() const { return memory_.as<Element>(); }
    const Element* end() const { return begin() + count_; }

   private:
    int64_t count_;
    Scratch memory_;
};

#if defined(__clang__) || __GNUC__ >= 12
#define ZF_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define ZF_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, decltype(a < b){i, j, k, l})
#endif

// Rows a, b, c, d of a 4 x 4 matrix become its columns.
template <typename V>
ZF_INLINE void transpose(V& a, V& b, V& c, V& d) {
    const V ac = ZF_SHUFFLE(a, c, 0, 4, 1, 5), AC = ZF_SHUFFLE(a, c, 2, 6, 3, 7);
    const V bd = ZF_SHUFFLE(b, d, 0, 4, 1, 5), BD = ZF_SHUFFLE(b, d, 2, 6, 3, 7);
    a = ZF_SHUFFLE(ac, bd, 0, 4, 1, 5), b = ZF_SHUFFLE(ac, bd, 2, 6, 3, 7);
    c = ZF_SHUFFLE(AC, BD, 0, 4, 1, 5), d = ZF_SHUFFLE(AC, BD, 2, 6, 3, 7);
}

// Calls four(element, output) for each 4 outputs x 4 elements that are neighbours in the filter, one(element, output)
// for the rest.
template <typename FourByFour, typename One>
ZF_INLINE void for_elements(const Table& table, int64_t outputs, const FourByFour& four, const One& one) {
    const Element* e = table.begin();
    while (e != table.end()) {
        const bool neighbours = table.end() - e >= 4 && e[1].filter - e[0].filter == 1 &&
                                e[2].filter - e[1].filter == 1 && e[3].filter - e[2].filter == 1;
        const int64_t whole = neighbours ? outputs / 4 * 4 : 0, elements = neighbours ? 4 : 1;
        for (int64_t o = 0; o < whole; o += 4) four(e, o);
        for (int64_t i = 0; i < elements; ++i)
            for (int64_t o = whole; o < outputs; ++o) one(e + i, o);
        e += elements;
    }
}

// `outputs` <= kWidth values.
template <typename T>
ZF_INLINE void copy_outputs(T* to, const T* from, int64_t outputs) {
    if (outputs == kWidth<T>) return copy(to, from, kWidth<T>);  // a size known to the compiler: two stores, not a call
    copy(to, from, outputs);
}

// One block from `outputs` <= kWidth filters, so elements apart. The block's other outputs are left as they are.
template <typename T>
void pack(const Table& table, T* block, const T* filters, int64_t outputs, int64_t so) {
    if (so == 1) {
        for (const Element& e : table) copy_outputs(block + e.block, filters + e.filter, outputs);
        return;
    }
    for_elements(
        table, outputs,
        [&](const Element* e, int64_t o) {
            const T* from = filters + e->filter + o * so;
            Four<T> a = load<Four<T>>(from), b = load<Four<T>>(from + so);
            Four<T> c = load<Four<T>>(from + 2 * so), d = load<Four<T>>(from + 3 * so);
            transpose(a, b, c, d);
            store(block + e[0].block + o, a);
            store(block + e[1].block + o, b);
            store(block + e[2].block + o, c);
            store(block + e[3].block + o, d);
        },
        [&](const Element* e, int64_t o) { block[e->block + o] = filters[e->filter + o * so]; });
}

// The way back: `outputs` filters from one block.
template <typename T>
void unpack(const Table& table, const T* block, T* filters, int64_t outputs, int64_t so) {
    for_elements(
        table, outputs,
        [&](const Element* e, int64_t o) {
            Four<T> a = load<Four<T>>(block + e[0].block + o), b = load<Four<T>>(block + e[1].block + o);
            Four<T> c = load<Four<T>>(block + e[2].block + o), d = load<Four<T>>(block + e[3].block + o);
            transpose(a, b, c, d);
            T* const to = filters + e->filter + o * so;
            store(to, a);
            store(to + so, b);
            store(to + 2 * so, c);
            store(to + 3 * so, d);
        },
        [&](const Element* e, int64_t o) { filters[e->filter + o * so] = block[e->block + o]; });
}

// All blocks of a convolution's weights: `pack_block(b, to)` writes the `size` elements of block b. Where each block is
// used just once, its thread packs it then, while it is in the nearest cache; otherwise all threads pack all of them at
// the start.
template <typename T, typename PackBlock>
class Packed {
   public:
    Packed(int64_t count, int64_t size, const PackBlock& pack_block, bool used_once, int threads)
        : pack_block_(pack_block), used_once_(used_once), memory_(used_once ? threads : count, size) {
        if (used_once) return;
        parallel_for(count, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t b = begin; b < end; ++b) pack_block_(b, memory_.of(b));
        });
    }
    const T* block(int64_t b, int thread) const {
        if (!used_once_) return memory_.of(b);
        pack_block_(b, memory_.of(thread));
        return memory_.of(thread);
    }

   private:
    const PackBlock& pack_block_;
    const bool used_once_;
    const PerThread<T> memory_;
};

// Packs block b of `size` elements: the filters from b * kWidth on, so elements apart, with zeros for absent ones and
// for rows that the table does not name.
template <typename T>
struct FilterPacker {
    const Table table;
    const int64_t size;
    const T* filters;
    const int64_t outputs, so;

    void operator()(int64_t b, T* to) const {
        const int64_t from = b * kWidth<T>, count = smaller(kWidth<T>, outputs - from);
        if (count < kWidth<T> || size > (table.end() - table.begin()) * kWidth<T>) zero(to, size);
        pack(table, to, filters + from * so, count, so);
    }
};

}  // namespace
}  // namespace zf
