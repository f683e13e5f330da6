// Convolution with bias and ReLU, and the same followed by max-pooling.
//
// Both are written once, over the kernels that choose.h chooses among. A kernel computes lines, numbered through all
// images: single output rows, or rows of Winograd's tiles. A kernel K has
//   K::bands(s), K::steps(s, pool)      how its lines are cut for conv2d, and for pooling (conv_block.h)
//   K::packer(s, w)                     packs a block of filters; its `size`, a block's elements, it knows without w
//   K(s, lines, memory), K::elements(s, lines)                 one thread's state, for up to `lines` lines at a time
//   take(x, lines)                      takes the input under these lines
//   make(filters, bias, finish, target) computes them for one block of output channels; false if they must be made
//   again
//                                       by direct sums
// A convolution in groups is one of these for each group (for_groups), or depthwise.h's.
#include <limits>

#include "choose.h"
#include "depthwise.h"
#include "max_pool_row.h"
#include "rounding.h"
#include "table.h"

namespace zf::ZF_ISA {
namespace {

// By direct summation.
template <typename T>
class DirectRows {
   public:
    DirectRows(const Conv& s, int64_t rows, T* memory)
        : s_(s), acc_(memory), band_{memory + rows * s.OW * kWidth<T>, band_cols(s), s.C} {}
    static Bands bands(const Conv& s) { return row_bands(s, kBlockPixels); }
    static Steps steps(const Conv& s, const Pool& pool) { return row_steps(s, pool, kBlockPixels); }
    static int64_t elements(const Conv& s, int64_t rows) {
        return round_up(rows * s.OW * kWidth<T> + ((rows - 1) * s.SH + s.span_h()) * band_cols(s) * s.C, 16);
    }
    static FilterPacker<T> packer(const Conv& s, const T* w) {
        const auto row = [&](int64_t c, int64_t i, int64_t j) { return ((i * s.KW + j) * s.C + c) * kWidth<T>; };
        return {{w ? s.C : 0, s.wc, s.KH, s.wi, s.KW, s.wj, row}, s.KH * s.KW * s.C * kWidth<T>, w, s.K, s.wk};
    }

    // Where no window needs padding the map itself is read; otherwise the thread's band, which is filled here.
    void take(const T* x, Range lines) {
        const Conv& s = s_;
        n_ = lines.begin / s.OH, from_ = lines.begin % s.OH;
        const int64_t rows = lines.size(), pitch = s.W * s.XP;
        if (s.PH == 0 && s.PW == 0 && (s.OH - 1) * s.SH + s.span_h() <= s.H && band_cols(s) <= s.W) {
            block_ = block(x + (n_ * s.H + from_ * s.SH) * pitch, pitch, s.XP, rows);
            fresh_ = true;
            return;
        }
        const MapRows<T> map = input_rows(s, x);
        band_.require(n_, from_ * s.SH - s.PH, (from_ + rows - 1) * s.SH - s.PH + s.span_h(),
                      [&](int64_t n, int64_t h, T* row) { map(n, h, -s.PW, band_.cols, row); });
        block_ = block(band_.data, band_.pitch(), s.C, rows);
    }

    bool make(const T* filters, const T* bias, const Finish<T>& finish, const Target<T>& target) {
        T* const out = target.row(n_, from_);
        const bool in_place = target.step == kWidth<T> && target.outputs == kWidth<T>;
        const T* const next = fresh_ ? nullptr : filters + s_.KH * s_.KW * s_.C * kWidth<T>;
        fresh_ = false;
        convolve_block(block_, filters, bias, in_place ? out : acc_, target.outputs, in_place, next,
                       [&](int64_t begin, int64_t end, const T* sums) {
                           finish.pixels(out + begin * target.step, target.step, sums, end - begin, target.outputs);
                       });
        return true;
    }

   private:
    static int64_t band_cols(const Conv& s) { return (s.OW - 1) * s.SW + s.span_w(); }
    // The windows of `rows` output rows, in a map whose rows and pixels are so many elements apart.
    Block<T> block(const T* origin, int64_t pitch, int64_t pixel, int64_t rows) const {
        const Conv& s = s_;
        Block<T> block{origin, s.SH * pitch, s.SW * pixel, rows, s.OW, s.DH * pitch, s.KH, s.KW * s.C};
        if (s.DW != 1 || pixel != s.C) block.run = s.C, block.taps_w = s.KW, block.tap_step = s.DW * pixel;
        return block;
    }

    const Conv& s_;
    T* const acc_;
    Band<T> band_;
    Block<T> block_{};
    int64_t n_ = 0, from_ = 0;
    bool fresh_ = false;  // no block has read the map yet
};

// By Winograd's tiles; a line is a row of them.
template <typename T>
class WinogradTiles {
   public:
    WinogradTiles(const Conv& s, int64_t lines, T* memory) : s_(s), winograd_(forward_grid(s), lines, memory) {}
    static Bands bands(const Conv& s) { return Winograd<T>::bands(forward_grid(s), s.N); }
    // As many lines as fill the kernel: several whole images, or a part of one.
    static Steps steps(const Conv& s, const Pool& pool) {
        const Grid grid = forward_grid(s);
        const int64_t lines = grid.tile_rows(), most = Winograd<T>::rows_of_unit(grid);
        const int64_t images = larger(1, smaller(s.N, most / lines)), step = smaller(most, lines);
        return {images, images * step, grid.side(), 0, step, pool.KH + step * grid.side(), step == lines};
    }
    static int64_t elements(const Conv& s, int64_t lines) { return Winograd<T>::elements(forward_grid(s), lines); }
    static FilterPacker<T> packer(const Conv& s, const T* w) {
        const Grid grid = forward_grid(s);
        return {winograd_table<T>(s, w != nullptr), grid.taps * grid.taps * grid.depth() * kWidth<T>, w, s.K, s.wk};
    }

    void take(const T* x, Range lines) { winograd_.take(lines, input_rows(s_, x)); }
    bool make(const T* filters, const T* bias, const Finish<T>& finish, const Target<T>& target) {
        return winograd_.products(
            filters, bias, [&](int64_t n, int64_t row, int64_t col, int64_t cols, const T* values) {
                finish.pixels(target.row(n, row) + col * target.step, target.step, values, cols, target.outputs);
            });
    }

   private:
    const Conv& s_;
    Winograd<T> winograd_;
};

// The bias of one block of output channels, zeros where there is none.
template <typename T>
struct BlockBias {
    T values[kWidth<T>];
    BlockBias(const Conv& s, const T* bias, int64_t block) {
        for (int64_t o = 0, k = block * kWidth<T>; o < kWidth<T>; ++o, ++k) values[o] = bias && k < s.K ? bias[k] : 0;
    }
};

// y[n][oh][ow][k] = sum_{i,j,c} x[n][oh*SH - PH + i*DH][ow*SW - PW + j*DW][c] * w[k][c][i][j], finished by `end`. False
// where a kernel's make is; y is then undefined. A unit of work is (set of images, band of lines, group of channel
// blocks): its thread takes the band's input once and passes every block of the group over it.
template <typename K, typename T>
bool conv2d_by(K*, const Conv& s, const T* x, const T* w, const T* packed, const Epilogue<T>& end, T* y, int threads) {
    const Bands cut = K::bands(s);
    const auto packer = K::packer(s, packed ? nullptr : w);
    const PerThread<T> memory{threads, K::elements(s, cut.band)};
    const Finish<T> finish{y, end.add, end.relu, end.cap};
    return for_blocks<T>(
        cut, ceil_div(s.K, kWidth<T>), packer.size, packer, packed, threads,
        [&](int thread) { return K(s, cut.band, memory.of(thread)); },
        [&](K& kernel, int64_t set, Range lines) {
            kernel.take(x, {set * cut.lines + lines.begin, set * cut.lines + lines.end});
        },
        [&](K& kernel, int64_t k, const T* filters) {
            const BlockBias<T> block_bias(s, end.bias, k);
            const int64_t first = k * kWidth<T>, outputs = smaller(kWidth<T>, s.K - first);
            const Target<T> target{y + first, s.OH * s.OW * s.YP, s.OW * s.YP, s.YP, outputs, 0, 0};
            return kernel.make(filters, block_bias.values, finish, target);
        });
}

// conv2d (rectified) and max_pool2d without the map between them. A unit of work is (images, span of pooled rows, group
// of channel blocks). Each step down its span makes the convolution's rows that the next pooled rows still need, into a
// buffer for each block that keeps the overlap, and pools the rows that are complete. Only a span's first step makes
// rows that another unit makes too. False where a result is not finite; the results are then undefined.
template <typename K, typename T>
bool conv2d_relu_max_pool2d_by(K*, const Conv& s, const Pool& pool, const T* x, const T* w, const T* ready,
                               const T* bias, T* y, uint8_t* switches, Rounding rounding, int threads) {
    const Steps steps = K::steps(s, pool);
    const int64_t sets = ceil_div(s.N, steps.images), image_lines = ceil_div(s.OH, steps.side);
    const auto packer = K::packer(s, ready ? nullptr : w);
    const int64_t all_blocks = ceil_div(s.K, kWidth<T>);
    const Packed<T, decltype(packer)> packed(all_blocks, packer.size, packer, ready, steps.whole && sets == 1, threads);
    const Finish<T> finish{nullptr, nullptr, true, std::numeric_limits<T>::infinity()};
    const int64_t groups = groups_for(all_blocks, sets, threads);
    const int64_t spans = steps.whole ? 1 : smaller(pool.OH, ceil_div(threads, larger(1, sets * groups)));
    const int64_t pitch = s.OW * kWidth<T>, buffer = round_up(steps.rows * pitch, 16);
    const int64_t buffers = larger(steps.images, steps.whole ? 1 : ceil_div(all_blocks, groups));
    const int64_t own = K::elements(s, steps.lines);
    const PerThread<T> memory{threads, own + buffers * buffer};

    const auto unit = [&](K& kernel, int64_t set, int64_t span, int64_t group, int thread) {
        const Range images = share(s.N, set, sets), pooled = share(pool.OH, span, spans);
        const Range blocks = share(all_blocks, group, groups);
        bool finite = true;
        for (Step last{pooled.begin, 0, 0, 0}, step; last.row_end < pooled.end; last = step) {
            step = steps.next(s, pool, last, pooled.end);
            kernel.take(x, {images.begin * image_lines + step.from / steps.side,
                            (images.end - 1) * image_lines + ceil_div(step.to, steps.side)});
            for (int64_t k = blocks.begin; k < blocks.end; ++k) {
                T* const rows = memory.of(thread) + own + (steps.whole ? 0 : k - blocks.begin) * buffer;
                const int64_t kept = (step.from - step.base) * pitch;
                if (kept)
                    __builtin_memmove(rows, rows + (step.base - last.base) * pitch,
                                      static_cast<std::size_t>(kept) * sizeof(T));
                const BlockBias<T> block_bias(s, bias, k);
                const Target<T> target{rows, buffer, pitch, kWidth<T>, kWidth<T>, images.begin, step.base};
                finite &= kernel.make(packed.block(k, thread), block_bias.values, finish, target);
                const int64_t outputs = smaller(kWidth<T>, s.K - k * kWidth<T>);
                for (int64_t n = images.begin; n < images.end; ++n) {
                    const Window<T> map{target.row(n, step.base), pitch, kWidth<T>};
                    round_all(target.row(n, step.from), (step.to - step.from) * pitch, rounding);
                    for (int64_t r = last.row_end; r < step.row_end; ++r) {
                        const int64_t at = (n * pool.OH + r) * pool.OW * s.K + k * kWidth<T>;
                        pool_row(pool, r, map, step.base, outputs, at, y, switches);
                    }
                }
            }
        }
        return finite;
    };
    return for_units(
        sets, spans, groups, threads, [&](int thread) { return K(s, steps.lines, memory.of(thread)); }, unit);
}

// A 1x1 convolution without stride and padding as one of a map of one column: all pixels of all images.
inline Conv in_one_column(Conv s) {
    if (s.KH != 1 || s.KW != 1 || s.SH != 1 || s.SW != 1 || s.PH || s.PW || s.OH != s.H || s.OW != s.W) return s;
    s.H = s.OH = s.N * s.H * s.W, s.N = s.W = s.OW = 1;
    return s;
}

// run(K*, packed) with the kernel K that choose.h names, and again with direct sums, of filters that are not packed
// yet, where that returns false.
template <typename T, typename Run>
void with_kernel(const Conv& s, Mode mode, const T* w, const T* packed, const Run& run) {
    const Kernel kernel = forward_kernel<T>(s, mode);
    if constexpr (kWinograd<T>) {
        const bool tiny = kernel != Kernel::kDirect && filters_are_tiny(s, w);
        if (kernel == Kernel::kTiles && !tiny && run(static_cast<WinogradTiles<T>*>(nullptr), packed)) return;
        if (kernel == Kernel::kRows && !tiny && run(static_cast<WinogradRows<T>*>(nullptr), packed)) return;
    }
    run(static_cast<DirectRows<T>*>(nullptr), kernel == Kernel::kDirect ? packed : nullptr);
}

// Of a convolution in one group.
template <typename T>
int64_t group_elements(const Conv& s, Kernel kernel) {
    const int64_t blocks = ceil_div(s.K, kWidth<T>);
    const T* const none = nullptr;
    if constexpr (kWinograd<T>) {
        if (kernel == Kernel::kTiles) return blocks * WinogradTiles<T>::packer(s, none).size;
        if (kernel == Kernel::kRows) return blocks * WinogradRows<T>::packer(s, none).size;
    }
    return blocks * DirectRows<T>::packer(s, none).size;
}

template <typename T>
int64_t pack_filters(const Conv& s, const T* w, T* to, int threads) {
    if (depthwise<T>(s)) {
        if (to) pack_depthwise(s, w, to);
        return s.KH * s.KW * s.C;
    }
    const Conv one = s.group();
    const Kernel kernel = forward_kernel<T>(one, mode());
    const int64_t elements = group_elements<T>(one, kernel);
    const auto pack_all = [&](const auto& packer, T* group) {
        parallel_for(ceil_div(one.K, kWidth<T>), threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t b = begin; b < end; ++b) packer(b, group + b * packer.size);
        });
    };
    for (int64_t g = 0; to && g < s.G; ++g) {
        const T* const filters = w + g * one.K * s.wk;
        T* const group = to + g * elements;
        if constexpr (kWinograd<T>) {
            if (kernel == Kernel::kTiles) pack_all(WinogradTiles<T>::packer(one, filters), group);
            if (kernel == Kernel::kRows) pack_all(WinogradRows<T>::packer(one, filters), group);
        }
        if (kernel == Kernel::kDirect) pack_all(DirectRows<T>::packer(one, filters), group);
    }
    return s.G * elements;
}

template <typename T>
void conv2d(const Conv& s, const T* x, const T* w, const T* packed, const Epilogue<T>& end, T* y, int threads) {
    if (depthwise<T>(s)) return depthwise_forward(s, x, w, packed, end, y, threads);
    const Mode of_caller = mode();  // another thread's may differ
    for_groups(s, threads, [&](const Conv& one, int64_t g, int own_threads) {
        const T* const ready =
            packed ? packed + g * group_elements<T>(one, forward_kernel<T>(one, of_caller)) : nullptr;
        const T* const filters = w + g * one.K * s.wk;
        const Epilogue<T> own{end.bias ? end.bias + g * one.K : nullptr, end.add ? end.add + g * one.K : nullptr,
                              end.relu, end.cap};
        with_kernel(one, of_caller, filters, ready, [&](auto* kernel, const T* blocks) {
            return conv2d_by(kernel, in_one_column(one), x + g * one.C, filters, blocks, own, y + g * one.K,
                             own_threads);
        });
    });
}

template <typename T>
void conv2d_relu_max_pool2d(const Conv& s, const Pool& pool, const T* x, const T* w, const T* packed, const T* bias,
                            T* y, uint8_t* switches, Rounding rounding, int threads) {
    with_kernel(s, mode(), w, packed, [&](auto* kernel, const T* blocks) {
        return conv2d_relu_max_pool2d_by(kernel, s, pool, x, w, blocks, bias, y, switches, rounding, threads);
    });
}

}  // namespace

ZF_ADD(conv, table.conv2d = conv2d<T>; table.pack_filters = pack_filters<T>;
       table.conv2d_relu_max_pool2d = conv2d_relu_max_pool2d<T>; table.choose = choose<T>)

}  // namespace zf::ZF_ISA
