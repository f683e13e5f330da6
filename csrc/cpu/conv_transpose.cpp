// The transposed convolution (filtering with every filter flipped; the convolution's input gradient), and the same fed
// by unpooling:
//
//   x[n][h][w][c] = sum over taps (i, j) with h + PH - i*DH = oh*SH, w + PW - j*DW = ow*SW, and over maps k, of
//                   y[n][oh][ow][k] * w[k][c][i][j]
//
// All kernels take y through `fill_row(n, oh, left, cols, row)`, which writes columns [left, left + cols) of row oh of
// y, zeros where y has none: a copy, or a row of the unpooled map, which is never written elsewhere.
#include "choose.h"
#include "depthwise.h"
#include "rounding.h"
#include "switches.h"
#include "table.h"
#include "unpool_row.h"

namespace zf::ZF_ISA {
namespace {

// The positions h = q*S + r - P of one axis that share their taps: first, first + step, ... below the kernel's size.
// Tap first + t*step reads y at q - shift - t*pace. Residues that no tap reaches are no class.
struct Class {
    int64_t r, taps, shift, pace, begin, end;  // q in [begin, end)

    // The classes of an axis, numbered by their first tap; without dilation S of them, if the kernel is that large.
    static int64_t step(int64_t stride, int64_t dilation) {
        int64_t a = stride, b = dilation;  // their greatest common divisor ends in a
        while (b) {
            const int64_t rest = a % b;
            a = b, b = rest;
        }
        return stride / a;
    }
    static int64_t taps_of(int64_t first, int64_t kernel, int64_t step) { return ceil_div(kernel - first, step); }

    Class(int64_t first, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation)
        : r(first * dilation % stride),
          taps(taps_of(first, kernel, step(stride, dilation))),
          shift(first * dilation / stride),
          pace(step(stride, dilation) * dilation / stride),
          begin(ceil_div(padding - r, stride)),
          end(floor_div(size - 1 + padding - r, stride) + 1) {}
    int64_t reach() const { return shift + (taps - 1) * pace; }
};

// Zeros in the C channels of rows [begin, end) of x, numbered through all images.
template <typename T>
void clear_rows(const Conv& s, T* x, int64_t begin, int64_t end) {
    if (s.XP == s.C) return zero(x + begin * s.W * s.C, (end - begin) * s.W * s.C);
    for (int64_t p = begin * s.W; p < end * s.W; ++p) zero(x + p * s.XP, s.C);
}

// Filters as gather's blocks: [block][class][taps_h][taps_w * K][kWidth], classes in row-major order, taps in
// descending order. Its `size` it knows without w.
template <typename T>
FilterPacker<T> gather_packer(const Conv& s, const T* w) {
    const int64_t step_h = Class::step(s.SH, s.DH), step_w = Class::step(s.SW, s.DW);
    const auto element = [&](int64_t k, int64_t i, int64_t j) {
        const int64_t a = i % step_h, b = j % step_w;
        const int64_t th = Class::taps_of(a, s.KH, step_h), tw = Class::taps_of(b, s.KW, step_w);
        int64_t taps = 0;  // of the classes before this one
        for (int64_t e = 0; e < a; ++e) taps += Class::taps_of(e, s.KH, step_h) * s.KW;
        for (int64_t e = 0; e < b; ++e) taps += Class::taps_of(e, s.KW, step_w) * th;
        return ((taps + (th - 1 - i / step_h) * tw + tw - 1 - j / step_w) * s.K + k) * kWidth<T>;
    };
    return {{w ? s.K : 0, s.wk, s.KH, s.wi, s.KW, s.wj, element}, s.KH * s.KW * s.K * kWidth<T>, w, s.C, s.wc};
}

// Gather. The positions of each class of rows and of columns are a stride-1 correlation of y with the classes' taps,
// flipped (window.h): small convolutions that read one padded band of y and write interleaved pixels of x. A unit of
// work is (image, band of q rows, group of channel blocks). False where a result is not finite.
template <typename T, typename FillRow>
bool gather(const Conv& s, const T* w, const T* packed, T* x, int threads, const FillRow& fill_row) {
    const int64_t step_h = Class::step(s.SH, s.DH), step_w = Class::step(s.SW, s.DW);
    const int64_t down = smaller(step_h, s.KH), across = smaller(step_w, s.KW);  // classes
    const bool gaps = down < s.SH || across < s.SW;                              // pixels of x in none
    const int64_t above = (s.KH - 1) * s.DH / s.SH, before = (s.KW - 1) * s.DW / s.SW;
    const int64_t q_begin = floor_div(s.PH, s.SH), q_rows = floor_div(s.H - 1 + s.PH, s.SH) + 1 - q_begin;
    const int64_t q_left = floor_div(s.PW, s.SW), q_cols = floor_div(s.W - 1 + s.PW, s.SW) + 1 - q_left;
    const int64_t left = q_left - before, cols = q_cols + before;  // of y
    const int64_t rows = rows_of_block(q_cols, q_rows);
    const FilterPacker<T> packer = gather_packer(s, packed ? nullptr : w);
    const T no_bias[kWidth<T>] = {};
    const int64_t acc_size = round_up(rows * q_cols * kWidth<T>, 16);
    const int64_t band_size = round_up((rows + above) * cols * s.K, 16);
    const PerThread<T> memory{threads, acc_size + band_size};
    if (gaps) parallel_for(s.N * s.H, threads, [&](int64_t begin, int64_t end, int) { clear_rows(s, x, begin, end); });
    // Block k of the pixels of a class of rows and one of columns in the band's q rows; `weights` are theirs. Returns
    // the sum of the results times 0.
    const auto make_class = [&](const Band<T>& band, int64_t k, const Class& rh, const Class& rw, const T* weights) {
        T* const acc = band.data - acc_size;
        const int64_t row = larger(band.begin + above, rh.begin), row_end = smaller(band.end, rh.end);
        const int64_t pixels = rw.end - rw.begin;
        Vec<T> seen{};
        if (row >= row_end || pixels <= 0) return seen;
        const int64_t first = (row - rh.reach() - band.begin) * cols + rw.begin - rw.reach() - left;
        Block<T> block{band.data + first * s.K, band.pitch(), s.K,          row_end - row, pixels,
                       rh.pace * band.pitch(),  rh.taps,      rw.taps * s.K};
        if (rw.pace != 1) block.run = s.K, block.taps_w = rw.taps, block.tap_step = rw.pace * s.K;
        convolve_block(block, weights, no_bias, acc, kWidth<T>, true, weights, [&](int64_t begin, int64_t end, T*) {
            for (int64_t e = begin * kWidth<T>; e < end * kWidth<T>; e += Lanes<T>::count)
                seen += load<Vec<T>>(acc + e) * 0;
        });
        for (int64_t q = row; q < row_end; ++q) {
            const int64_t h = q * s.SH + rh.r - s.PH, w0 = rw.begin * s.SW + rw.r - s.PW;
            copy_pixels(x + ((band.image * s.H + h) * s.W + w0) * s.XP + k * kWidth<T>, s.SW * s.XP,
                        acc + (q - row) * pixels * kWidth<T>, pixels, smaller(kWidth<T>, s.C - k * kWidth<T>));
        }
        return seen;
    };
    return for_blocks<T>(
        {s.N, q_rows, rows, 6.0 / static_cast<double>(q_cols)}, ceil_div(s.C, kWidth<T>), packer.size, packer, packed,
        threads, [&](int thread) { return Band<T>{memory.of(thread) + acc_size, cols, s.K}; },
        [&](Band<T>& band, int64_t n, Range q) {
            band.require(n, q_begin + q.begin - above, q_begin + q.end,
                         [&](int64_t image, int64_t oh, T* row) { fill_row(image, oh, left, cols, row); });
        },
        [&](const Band<T>& band, int64_t k, const T* weights) {
            Vec<T> seen{};
            for (int64_t a = 0; a < down; ++a)
                for (int64_t b = 0; b < across; ++b) {
                    const Class rh(a, s.H, s.KH, s.SH, s.PH, s.DH), rw(b, s.W, s.KW, s.SW, s.PW, s.DW);
                    seen += make_class(band, k, rh, rw, weights);
                    weights += rh.taps * rw.taps * s.K * kWidth<T>;
                }
            return is_zero<T>(seen);
        });
}

// Filters as scatter's blocks, [block][K][kWidth] of the elements (i, j, c).
template <typename T>
int64_t scatter_elements(const Conv& s) {
    return round_up(s.KH * s.KW * s.C, kWidth<T>) * s.K;
}
template <typename T>
void pack_scatter(const Conv& s, const T* w, T* packed, int threads) {
    const int64_t row_elements = s.KW * s.C, elements = s.KH * row_elements;
    parallel_for(ceil_div(elements, kWidth<T>), threads, [&](int64_t begin, int64_t end, int) {
        T* to = packed + begin * s.K * kWidth<T>;
        for (int64_t b = begin; b < end; ++b)
            for (int64_t k = 0; k < s.K; ++k, to += kWidth<T>)
                for (int64_t o = 0; o < kWidth<T>; ++o) {
                    const int64_t e = b * kWidth<T> + o, i = e / row_elements, j = e % row_elements / s.C, c = e % s.C;
                    to[o] = e < elements ? w[k * s.wk + c * s.wc + i * s.wi + j * s.wj] : 0;
                }
    });
}

// Scatter, for few channels (an image's), which would leave most of a block's lanes empty: the lanes are the elements
// (i, j, c) of a filter instead, 147 of 160 for 7x7x3. Each row of y times the filters, a 1x1 convolution, gives for
// each pixel runs of elements that it adds to x: KW*C where these are neighbours in x, C where they are not. A unit of
// work is (image, band of rows of x); it takes the rows of y that touch its band, rows and pixels in ascending order,
// so that how x was cut changes no sum. What is not finite reaches only what a tap reaches.
template <typename T, typename FillRow>
void scatter(const Conv& s, const T* w, const T* ready, T* x, int threads, const FillRow& fill_row) {
    const int64_t row_elements = s.KW * s.C, run = s.DW == 1 && s.XP == s.C ? row_elements : s.C;
    const int64_t elements = s.KH * row_elements, blocks = ceil_div(elements, kWidth<T>);
    const Scratch own(ready ? 0 : static_cast<std::size_t>(scatter_elements<T>(s)) * sizeof(T));
    if (!ready) pack_scatter(s, w, own.as<T>(), threads);
    const T* const packed = ready ? ready : own.as<T>();

    const T no_bias[kWidth<T>] = {}, *const no_filters = nullptr;
    const int64_t bands = smaller(s.H, ceil_div(threads, larger(1, s.N)));
    const int64_t acc_size = round_up(s.OW * kWidth<T>, 16);
    const PerThread<T> memory{threads, acc_size + round_up(s.OW * s.K, 16)};
    // Adds `count` values of each pixel of row oh, from acc on, to the row of x `to`: those of pixel ow go to elements
    // from at + ow * step on. What lies beside the row is dropped.
    const auto add_run = [&](int64_t at, int64_t count, const T* acc, T* to) {
        const int64_t step = s.SW * s.XP, size = s.W * s.XP;
        for (int64_t ow = 0; ow < s.OW; ++ow, acc += kWidth<T>, at += step)
            for (int64_t q = larger(0, -at); q < smaller(count, size - at); ++q) to[at + q] += acc[q];
    };
    for_units(
        1, s.N, bands, threads, [&](int thread) { return memory.of(thread); },
        [&](T* acc, int64_t, int64_t n, int64_t b, int) {
            T* const row = acc + acc_size;
            const Block<T> pixels{row, s.OW * s.K, s.K, 1, s.OW, s.OW * s.K, 1, s.K};
            const Range band = share(s.H, b, bands);
            clear_rows(s, x, n * s.H + band.begin, n * s.H + band.end);
            const int64_t last = last_window(band.end - 1, s.SH, s.PH, s.OH);
            for (int64_t oh = first_window(band.begin, s.span_h(), s.SH, s.PH); oh <= last; ++oh) {
                fill_row(n, oh, 0, s.OW, row);
                for (int64_t k = 0; k < blocks; ++k) {
                    convolve_block(pixels, packed + k * s.K * kWidth<T>, no_bias, acc, kWidth<T>, true, no_filters,
                                   [](int64_t, int64_t, T*) {});
                    const int64_t begin = k * kWidth<T>, end = smaller(begin + kWidth<T>, elements);
                    for (int64_t e = begin, next; e < end; e = next) {
                        next = smaller((e / run + 1) * run, end);
                        const int64_t i = e / row_elements, h = oh * s.SH - s.PH + i * s.DH;
                        const int64_t column = e % row_elements / run * s.DW - s.PW;  // 0 - PW for a run of KW * C
                        if (h >= band.begin && h < band.end)
                            add_run(column * s.XP + e % run, next - e, acc + e - begin, x + (n * s.H + h) * s.W * s.XP);
                    }
                }
            }
            return true;
        });
}

// A transposed convolution's filters as a block of Winograd's kernel.
template <typename T>
struct TransposedTiles {
    const Conv& s;
    const T* w;
    const Grid grid = transposed_grid(s);
    const int64_t size = grid.taps * grid.taps * s.K * kWidth<T>;

    void operator()(int64_t b, T* to) const {
        zero(to, size);
        const int64_t run = s.SW * s.C, end = smaller(grid.outputs, (b + 1) * kWidth<T>);
        for (int64_t o = b * kWidth<T>, next; o < end; o = next) {  // outputs [o, next) are of one pixel
            next = smaller(end, (o / s.C + 1) * s.C);
            const int64_t i = o / run, j = o / s.C % s.SW;
            const Table table(s.K, s.wk, taps_of_residue(s.KH, s.SH, i), s.SH * s.wi, taps_of_residue(s.KW, s.SW, j),
                              s.SW * s.wj, [&](int64_t k, int64_t a, int64_t c) {
                                  return (((grid.taps - 1 - a) * grid.taps + grid.taps - 1 - c) * s.K + k) * kWidth<T>;
                              });
            pack(table, to + o - b * kWidth<T>, w + i * s.wi + j * s.wj + o % s.C * s.wc, next - o, s.wc);
        }
    }
};

// By Winograd's tiles over positions of y (winograd.h). False where a result is not finite; x is then undefined.
template <typename T, typename FillRow>
bool transpose_tiles(const Conv& s, const T* w, const T* packed, T* x, int threads, const FillRow& fill_row) {
    const TransposedTiles<T> packer{s, w};
    const Grid& grid = packer.grid;
    const int64_t q_top = grid.top + grid.taps - 1, q_left = grid.left + grid.taps - 1, run = s.SW * s.C;
    const Bands cut = Winograd<T>::bands(grid, s.N);
    const PerThread<T> memory{threads, Winograd<T>::elements(grid, cut.band)};
    const T no_bias[kWidth<T>] = {};
    return for_blocks<T>(
        cut, ceil_div(grid.outputs, kWidth<T>), packer.size, packer, packed, threads,
        [&](int thread) { return Winograd<T>(grid, cut.band, memory.of(thread)); },
        [&](Winograd<T>& winograd, int64_t, Range lines) { winograd.take(lines, fill_row); },
        [&](Winograd<T>& winograd, int64_t k, const T* filters) {
            const int64_t first = k * kWidth<T>, last = smaller(grid.outputs, first + kWidth<T>);
            return winograd.products(
                filters, no_bias, [&](int64_t n, int64_t row, int64_t col, int64_t cols, const T* values) {
                    for (const int64_t end = col + cols; col < end; ++col, values += kWidth<T>)
                        for (int64_t o = first, next; o < last; o = next) {  // outputs [o, next) are of one row of x
                            next = smaller(last, (o / run + 1) * run);
                            const int64_t h = (q_top + row) * s.SH + o / run - s.PH;
                            const int64_t at = ((q_left + col) * s.SW - s.PW) * s.C + o % run;
                            const int64_t from = larger(0, -at), to = smaller(next - o, s.W * s.C - at);
                            if (h < 0 || h >= s.H || from >= to) continue;
                            T* const out = x + (n * s.H + h) * s.W * s.C + at;
                            copy_pixels(out + from, 0, values + o - first + from, 1, to - from);
                        }
                });
        });
}

// Whether all filters are finite, wherever they lie.
template <typename T>
bool filters_are_finite(const Conv& s, const T* w, int threads) {
    return all_finite(s.K, threads, [&](int64_t begin, int64_t end, int) {
        T sum = 0;
        for (int64_t k = begin; k < end; ++k)
            for (int64_t c = 0; c < s.C; ++c)
                for (int64_t i = 0; i < s.KH; ++i)
                    for (int64_t j = 0; j < s.KW; ++j) sum += w[k * s.wk + c * s.wc + i * s.wi + j * s.wj] * 0;
        return sum == 0;
    });
}

// y has at most `most` values an image that are not 0. The padding of y that gather and Winograd's tiles read makes NaN
// of a filter that is not finite, where no tap may reach: then all is done by scatter. `packed`: null, or what
// pack_transposed made of w.
template <typename T, typename FillRow>
void transpose(const Conv& s, Mode mode, const T* w, const T* packed, T* x, int64_t most, bool rectify, int threads,
               const FillRow& fill_row) {
    const Kernel kernel = transposed_kernel<T>(s, most, rectify, mode);
    if (kernel == Kernel::kNonzeros && scatter_nonzeros(s, w, packed, x, threads, fill_row)) return;
    if (kernel == Kernel::kNonzerosPlain && scatter_nonzeros_plain(s, w, packed, x, threads, fill_row)) return;
    const Kernel dense = dense_transposed_kernel<T>(s, mode);
    const T* const own = kernel == dense ? packed : nullptr;
    if constexpr (kWinograd<T>)
        if (dense == Kernel::kTiles && !filters_are_tiny(s, w) && transpose_tiles(s, w, own, x, threads, fill_row))
            return;
    const T* const direct = dense == Kernel::kTiles ? nullptr : own;
    if (few_channels<T>(s.C)) return scatter(s, w, direct, x, threads, fill_row);
    if (gather(s, w, direct, x, threads, fill_row) || filters_are_finite(s, w, threads)) return;
    scatter(s, w, static_cast<const T*>(nullptr), x, threads, fill_row);
}

// Of one group: how many elements, and, unless they are kNonzeros' panels or not finite, at `to`.
template <typename T>
int64_t transposed_elements(const Conv& s, Kernel kernel, int threads) {
    const T* const none = nullptr;
    if (kernel == Kernel::kNonzeros) return panels_of<T>(s, Cut{s, threads}).elements();
    if (kernel == Kernel::kNonzerosPlain) return 1;
    if (kernel == Kernel::kScatter) return scatter_elements<T>(s);
    if constexpr (kWinograd<T>)
        if (kernel == Kernel::kTiles) {
            const TransposedTiles<T> packer{s, none};
            return ceil_div(packer.grid.outputs, kWidth<T>) * packer.size;
        }
    return ceil_div(s.C, kWidth<T>) * gather_packer(s, none).size;
}

// False if the kernel needs filters that are finite, and they are not.
template <typename T>
bool pack_group(const Conv& s, Kernel kernel, const T* w, T* to, int threads) {
    const auto pack_all = [&](const auto& packer, int64_t blocks) {
        parallel_for(blocks, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t b = begin; b < end; ++b) packer(b, to + b * packer.size);
        });
        return true;
    };
    if (kernel == Kernel::kNonzeros) return panels_of<T>(s, Cut{s, threads}).pack_all(w, to, threads);
    if (kernel == Kernel::kNonzerosPlain) {
        *to = 1;  // all there is to know
        return filters_are_finite(s, w, threads);
    }
    if (kernel == Kernel::kScatter) {
        pack_scatter(s, w, to, threads);
        return true;
    }
    if constexpr (kWinograd<T>)
        if (kernel == Kernel::kTiles) {
            const TransposedTiles<T> packer{s, w};
            return pack_all(packer, ceil_div(packer.grid.outputs, kWidth<T>));
        }
    return pack_all(gather_packer(s, w), ceil_div(s.C, kWidth<T>));
}

template <typename T>
PackedSize pack_transposed(const Conv& s, const T* w, int64_t most, bool rectify, T* to, int threads) {
    if (depthwise<T>(s)) return {0, 0};
    const Conv one = s.group();
    const Kernel kernel = transposed_kernel<T>(one, most, rectify, mode());
    const int64_t elements = transposed_elements<T>(one, kernel, threads);
    for (int64_t g = 0; to && g < s.G; ++g)
        if (!pack_group(one, kernel, w + g * one.K * s.wk, to + g * elements, threads)) return {0, 0};
    return {s.G * elements, kernel == Kernel::kNonzeros ? panels_of<T>(one, Cut{one, threads}).slots : 0};
}

// y in dense memory, rectified.
template <typename T>
const T* rectified(const Conv& s, const T* y, T* to, int threads) {
    parallel_for(s.N * s.OH * s.OW, threads, [&](int64_t begin, int64_t end, int) {
        copy(to + begin * s.K, y + begin * s.K, (end - begin) * s.K);
        rectify_all(to + begin * s.K, (end - begin) * s.K);
    });
    return to;
}

template <typename T>
void conv_transpose2d(const Conv& s, const T* y, const T* w, const T* packed, T* x, bool rectify, int threads) {
    if (depthwise<T>(s)) {
        const PerThread<T> memory{1, rectify ? s.N * s.OH * s.OW * s.K : 0};
        const T* const values = rectify ? rectified(s, y, memory.of(0), threads) : y;
        if (depthwise_transposed(s, values, w, x, threads)) return;
    }
    const Mode of_caller = mode();  // another thread's may differ
    const int64_t most = s.OH * s.OW * s.group().K;
    for_groups(s, threads, [&](const Conv& one, int64_t g, int own_threads) {
        const T* ready = packed;
        if (packed && g) {
            const Kernel kernel = transposed_kernel<T>(one, most, rectify, of_caller);
            ready += g * transposed_elements<T>(one, kernel, threads);
        }
        transpose(one, of_caller, w + g * one.K * s.wk, ready, x + g * one.C, most, rectify, own_threads,
                  output_rows(one, y + g * one.K, rectify));
    });
}

template <typename T>
int64_t max_unpool2d_relu_conv_transpose2d(const Conv& s, const Pool& pool, const T* y, const uint8_t* switches,
                                           const T* w, const T* packed, T* x, bool rectify, Rounding rounding,
                                           int threads) {
    const int64_t bad = first_bad_switch(pool, switches, threads);
    if (bad >= 0) return bad;
    const int64_t most = smaller(s.OH * s.OW, pool.OH * pool.OW) * s.K;
    transpose(s, mode(), w, packed, x, most, rectify, threads,
              [&](int64_t n, int64_t oh, int64_t left, int64_t cols, T* row) {
                  const int64_t first = larger(0, -left), last = smaller(cols, s.OW - left);
                  if (oh < 0 || oh >= s.OH || first >= last) return zero(row, cols * s.K);
                  const int64_t image = n * pool.OH * pool.OW * s.K;
                  zero(row, first * s.K);
                  zero(row + last * s.K, (cols - last) * s.K);
                  unpool_row(pool, oh, left + first, left + last, y + image, switches + image, row + first * s.K, s.K);
                  round_all(row, cols * s.K, rounding);
                  if (rectify) rectify_all(row, cols * s.K);
              });
    return -1;
}

}  // namespace

ZF_ADD(conv_transpose, table.conv_transpose2d = conv_transpose2d<T>; table.pack_transposed = pack_transposed<T>;
       table.max_unpool2d_relu_conv_transpose2d = max_unpool2d_relu_conv_transpose2d<T>)

}  // namespace zf::ZF_ISA
