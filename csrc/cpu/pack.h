// Weights between torch's memory, through strides, and the kernels' blocks [row][kWidth outputs].
//
// A Table lists the offsets of every element in torch's filter and in the block, and serves all blocks of a kernel.
// Where four elements are neighbours in the filter, 4 outputs x 4 elements are transposed in registers (one by one,
// packing took 38% of a 3x3 convolution of 256 to 384 maps at N = 1).
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
struct Table {
    const int64_t count;
    const Scratch memory{static_cast<std::size_t>(count) * sizeof(Element)};

    template <typename BlockOf>
    Table(int64_t channels, int64_t sc, int64_t KH, int64_t si, int64_t KW, int64_t sj, const BlockOf& block_of)
        : count(channels * KH * KW) {
        Element* next = memory.as<Element>();
        const bool taps_inside = sc >= si;
        const int64_t outer = taps_inside ? channels : 1, inner = taps_inside ? 1 : channels;
        for (int64_t a = 0; a < outer; ++a)
            for (int64_t i = 0; i < KH; ++i)
                for (int64_t j = 0; j < KW; ++j)
                    for (int64_t b = 0; b < inner; ++b)
                        *next++ = {(a + b) * sc + i * si + j * sj, block_of(a + b, i, j)};
    }
    const Element* begin() const { return memory.as<Element>(); }
    const Element* end() const { return begin() + count; }
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

// Moves `outputs` filters, so elements apart, to a block or, unless kPack, from one.
template <bool kPack, typename T>
void move_filters(const Table& table, T* block, T* filters, int64_t outputs, int64_t so) {
    for (const Element *e = table.begin(), *next; e != table.end(); e = next) {
        const bool neighbours = table.end() - e >= 4 && e[1].filter - e[0].filter == 1 &&
                                e[2].filter - e[1].filter == 1 && e[3].filter - e[2].filter == 1;
        const int64_t whole = neighbours ? outputs / 4 * 4 : 0;
        next = e + (neighbours ? 4 : 1);
        for (int64_t o = 0; o < whole; o += 4) {
            T* const filter = filters + e->filter + o * so;
            Four<T> v[4];
            repeat<4>([&](auto i) { v[i.at] = load<Four<T>>(kPack ? filter + i.at * so : block + e[i.at].block + o); });
            transpose(v[0], v[1], v[2], v[3]);
            repeat<4>([&](auto i) { store(kPack ? block + e[i.at].block + o : filter + i.at * so, v[i.at]); });
        }
        for (const Element* one = e; one != next; ++one)
            for (int64_t o = whole; o < outputs; ++o)
                if constexpr (kPack)
                    block[one->block + o] = filters[one->filter + o * so];
                else
                    filters[one->filter + o * so] = block[one->block + o];
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
    if (so != 1) return move_filters<true>(table, block, const_cast<T*>(filters), outputs, so);
    for (const Element& e : table) copy_outputs(block + e.block, filters + e.filter, outputs);
}

// All blocks of a convolution's weights: pack_block(b, to) writes the `size` elements of block b. A block that is used
// just once is packed then by its thread, in the nearest cache; otherwise all threads pack all of them at the start,
// unless all are `ready` there.
template <typename T, typename PackBlock>
struct Packed {
    const PackBlock& pack_block;
    const T* const ready;
    const bool used_once;
    const PerThread<T> memory;

    Packed(int64_t count, int64_t size, const PackBlock& pack, const T* all, bool once, int threads)
        : pack_block(pack),
          ready(all),
          used_once(once),
          memory{all    ? 0
                 : once ? threads
                        : count,
                 size} {
        if (ready || used_once) return;
        parallel_for(count, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t b = begin; b < end; ++b) pack_block(b, memory.of(b));
        });
    }
    const T* block(int64_t b, int thread) const {
        if (ready) return ready + b * memory.each;
        if (!used_once) return memory.of(b);
        pack_block(b, memory.of(thread));
        return memory.of(thread);
    }
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
