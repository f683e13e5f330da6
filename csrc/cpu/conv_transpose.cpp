// The transposed convolution (filtering with every filter flipped; the convolution's input gradient), and the same fed
// by unpooling:
//
//   x[n][h][w][c] = sum over taps (i, j) with h + PH - i = oh*SH, w + PW - j = ow*SW, and over maps k, of
//                   y[n][oh][ow][k] * w[k][c][i][j]
//
// All kernels take y through `fill_row(n, oh, left, cols, row)`, which writes columns [left, left + cols) of row oh of
// y, zeros where y has none: a copy, or a row of the unpooled map, which is never written elsewhere.
#include "choose.h"
#include "rounding.h"
#include "switches.h"
#include "table.h"
#include "unpool_row.h"

namespace zf::ZF_ISA {
namespace {

// The positions h = q*S + r - P of one axis that residue class r makes: q in [begin, end).
struct Residue {
    int64_t taps, begin, end;
    Residue(int64_t r, int64_t size, int64_t kernel, int64_t stride, int64_t padding)
        : taps(taps_of_residue(kernel, stride, r)),
          begin(ceil_div(padding - r, stride)),
          end(floor_div(size - 1 + padding - r, stride) + 1) {}
};

// Gather. Each pair of residues of (h + PH, w + PW) by the strides is a stride-1 correlation of y with its own share of
// the taps, flipped (window.h): SH*SW small convolutions that read one padded band of y and write interleaved pixels of
// x. A unit of work is (image, band of q rows, group of channel blocks).
template <typename T, typename FillRow>
void gather(const Conv& s, const T* w, T* x, int threads, const FillRow& fill_row) {
    const int64_t most_taps = ceil_div(s.KH, s.SH);
    const int64_t q_begin = floor_div(s.PH, s.SH), q_rows = floor_div(s.H - 1 + s.PH, s.SH) + 1 - q_begin;
    const int64_t q_left = floor_div(s.PW, s.SW), q_cols = floor_div(s.W - 1 + s.PW, s.SW) + 1 - q_left;
    const int64_t left = q_left - (ceil_div(s.KW, s.SW) - 1), cols = q_left + q_cols - left;  // of y
    const int64_t rows = rows_of_block(q_cols, q_rows);

    // [block][class][taps_h][taps_w * K][kWidth], classes in row-major order of residues, taps in descending order.
    const auto element = [&](int64_t k, int64_t i, int64_t j) {
        const int64_t th = taps_of_residue(s.KH, s.SH, i % s.SH), tw = taps_of_residue(s.KW, s.SW, j % s.SW);
        int64_t taps = 0;  // of the classes before this one
        for (int64_t ri = 0; ri < i % s.SH; ++ri) taps += taps_of_residue(s.KH, s.SH, ri) * s.KW;
        for (int64_t rj = 0; rj < j % s.SW; ++rj) taps += taps_of_residue(s.KW, s.SW, rj) * th;
        return ((taps + (th - 1 - i / s.SH) * tw + tw - 1 - j / s.SW) * s.K + k) * kWidth<T>;
    };
    const FilterPacker<T> packer{
        {s.K, s.wk, s.KH, s.wi, s.KW, s.wj, element}, s.KH * s.KW * s.K * kWidth<T>, w, s.C, s.wc};
    const T no_bias[kWidth<T>] = {};
    const int64_t acc_size = round_up(rows * q_cols * kWidth<T>, 16);
    const int64_t band_size = round_up((rows + most_taps - 1) * cols * s.K, 16);
    const PerThread<T> memory{threads, acc_size + band_size};
    // Block k of the pixels of class (ri, rj) in the band's q rows; `weights` are the class's.
    const auto make_class = [&](const Band<T>& band, int64_t k, int64_t ri, int64_t rj, const T* weights) {
        T* const acc = band.data - acc_size;
        const Residue rh(ri, s.H, s.KH, s.SH, s.PH), rw(rj, s.W, s.KW, s.SW, s.PW);
        const int64_t row = larger(band.begin + most_taps - 1, rh.begin), row_end = smaller(band.end, rh.end);
        const int64_t pixels = rw.end - rw.begin;
        if (row >= row_end || pixels <= 0) return;
        if (rh.taps * rw.taps > 0) {
            const int64_t first = (row - rh.taps + 1 - band.begin) * cols + rw.begin - rw.taps + 1 - left;
            const Block<T> block{band.data + first * s.K,
                                 band.pitch(),
                                 s.K,
                                 row_end - row,
                                 pixels,
                                 band.pitch(),
                                 rh.taps,
                                 rw.taps * s.K};
            convolve_block(block, weights, no_bias, acc, [](int64_t, int64_t) {});
        } else {
            zero(acc, (row_end - row) * pixels * kWidth<T>);
        }
        for (int64_t q = row; q < row_end; ++q) {
            const int64_t h = q * s.SH + ri - s.PH, w0 = rw.begin * s.SW + rj - s.PW;
            copy_pixels(x + ((band.image * s.H + h) * s.W + w0) * s.C + k * kWidth<T>, s.SW * s.C,
                        acc + (q - row) * pixels * kWidth<T>, pixels, smaller(kWidth<T>, s.C - k * kWidth<T>));
        }
    };
    for_blocks<T>(
        {s.N, q_rows, rows}, ceil_div(s.C, kWidth<T>), packer.size, packer, threads,
        [&](int thread) { return Band<T>{memory.of(thread) + acc_size, cols, s.K}; },
        [&](Band<T>& band, int64_t n, Range q) {
            band.require(n, q_begin + q.begin - (most_taps - 1), q_begin + q.end,
                         [&](int64_t image, int64_t oh, T* row) { fill_row(image, oh, left, cols, row); });
        },
        [&](const Band<T>& band, int64_t k, const T* weights) {
            for (int64_t ri = 0; ri < s.SH; ++ri)
                for (int64_t rj = 0; rj < s.SW; ++rj) {
                    make_class(band, k, ri, rj, weights);
                    weights += taps_of_residue(s.KH, s.SH, ri) * taps_of_residue(s.KW, s.SW, rj) * s.K * kWidth<T>;
                }
            return true;
        });
}

// Scatter, for few channels (an image's), which would leave most of a block's lanes empty: the lanes are the elements
// (i, j, c) of a filter instead, 147 of 160 for 7x7x3. Each row of y times the filters, a 1x1 convolution, gives for
// each pixel the KH runs of KW*C elements that it adds to x. A unit of work is (image, band of rows of x); it takes the
// rows of y that touch its band, rows and pixels in ascending order, so that how x was cut changes no sum.
template <typename T, typename FillRow>
void scatter(const Conv& s, const T* w, T* x, int threads, const FillRow& fill_row) {
    const int64_t run = s.KW * s.C, elements = s.KH * run, blocks = ceil_div(elements, kWidth<T>);
    const Scratch packed(static_cast<std::size_t>(blocks * s.K * kWidth<T>) * sizeof(T));
    parallel_for(blocks, threads, [&](int64_t begin, int64_t end, int) {
        T* to = packed.as<T>() + begin * s.K * kWidth<T>;
        for (int64_t b = begin; b < end; ++b)
            for (int64_t k = 0; k < s.K; ++k, to += kWidth<T>)
                for (int64_t o = 0; o < kWidth<T>; ++o) {
                    const int64_t e = b * kWidth<T> + o, i = e / run, j = e % run / s.C, c = e % s.C;
                    to[o] = e < elements ? w[k * s.wk + c * s.wc + i * s.wi + j * s.wj] : 0;
                }
    });

    const T no_bias[kWidth<T>] = {};
    const int64_t bands = smaller(s.H, ceil_div(threads, larger(1, s.N)));
    const int64_t acc_size = round_up(s.OW * kWidth<T>, 16);
    const PerThread<T> memory{threads, acc_size + round_up(s.OW * s.K, 16)};
    // Adds elements [e, e_end) of a tap row, whose values begin at acc, to the row of x `to`, for each pixel of row oh.
    // Element e of pixel ow goes to element `at` of the row; what lies beside the row is dropped.
    const auto add_run = [&](int64_t e, int64_t e_end, const T* acc, T* to) {
        for (int64_t ow = 0; ow < s.OW; ++ow, acc += kWidth<T>) {
            const int64_t at = (ow * s.SW - s.PW) * s.C + e;
            const int64_t first = larger(0, -at), last = smaller(e_end - e, s.W * s.C - at);
            for (int64_t q = first; q < last; ++q) to[at + q] += acc[q];
        }
    };
    for_units(
        1, s.N, bands, threads, [&](int thread) { return memory.of(thread); },
        [&](T* acc, int64_t, int64_t n, int64_t b, int) {
            T* const row = acc + acc_size;
            const Block<T> pixels{row, s.OW * s.K, s.K, 1, s.OW, s.OW * s.K, 1, s.K};
            const Range band = share(s.H, b, bands);
            zero(x + (n * s.H + band.begin) * s.W * s.C, band.size() * s.W * s.C);
            const int64_t last = last_window(band.end - 1, s.SH, s.PH, s.OH);
            for (int64_t oh = first_window(band.begin, s.KH, s.SH, s.PH); oh <= last; ++oh) {
                fill_row(n, oh, 0, s.OW, row);
                for (int64_t k = 0; k < blocks; ++k) {
                    convolve_block(pixels, packed.as<T>() + k * s.K * kWidth<T>, no_bias, acc, [](int64_t, int64_t) {});
                    const int64_t begin = k * kWidth<T>, end = smaller(begin + kWidth<T>, elements);
                    for (int64_t e = begin, next; e < end; e = next) {
                        const int64_t i = e / run, h = oh * s.SH - s.PH + i;
                        next = smaller((i + 1) * run, end);
                        if (h >= band.begin && h < band.end)
                            add_run(e - i * run, next - i * run, acc + e - begin, x + (n * s.H + h) * s.W * s.C);
                    }
                }
            }
            return true;
        });
}

// By Winograd's tiles over positions of y (winograd.h). False where a result is not finite; x is then undefined.
template <typename T, typename FillRow>
bool transpose_tiles(const Conv& s, const T* w, T* x, int threads, const FillRow& fill_row) {
    const Grid grid = transposed_grid(s);
    const int64_t q_top = grid.top + grid.taps - 1, q_left = grid.left + grid.taps - 1, run = s.SW * s.C;
    const Bands cut = Winograd<T>::bands(grid, s.N);
    const int64_t size = grid.taps * grid.taps * s.K * kWidth<T>;
    const auto pack_block = [&](int64_t b, T* to) {
        zero(to, size);
        const int64_t end = smaller(grid.outputs, (b + 1) * kWidth<T>);
        for (int64_t o = b * kWidth<T>, next; o < end; o = next) {  // outputs [o, next) are of one pixel
            next = smaller(end, (o / s.C + 1) * s.C);
            const int64_t i = o / run, j = o / s.C % s.SW;
            const Table table(s.K, s.wk, taps_of_residue(s.KH, s.SH, i), s.SH * s.wi, taps_of_residue(s.KW, s.SW, j),
                              s.SW * s.wj, [&](int64_t k, int64_t a, int64_t c) {
                                  return (((grid.taps - 1 - a) * grid.taps + grid.taps - 1 - c) * s.K + k) * kWidth<T>;
                              });
            pack(table, to + o - b * kWidth<T>, w + i * s.wi + j * s.wj + o % s.C * s.wc, next - o, s.wc);
        }
    };
    const PerThread<T> memory{threads, Winograd<T>::elements(grid, cut.band)};
    const T no_bias[kWidth<T>] = {};
    return for_blocks<T>(
        cut, ceil_div(grid.outputs, kWidth<T>), size, pack_block, threads,
        [&](int thread) { return Winograd<T>(grid, cut.band, memory.of(thread)); },
        [&](Winograd<T>& winograd, int64_t, Range lines) { winograd.take(lines, fill_row); },
        [&](Winograd<T>& winograd, int64_t k, const T* filters) {
            const int64_t first = k * kWidth<T>, last = smaller(grid.outputs, first + kWidth<T>);
            return winograd.products(
                filters, no_bias, false, [&](int64_t n, int64_t row, int64_t col, const T* values) {
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

// y has at most `most` values an image that are not 0.
template <typename T, typename FillRow>
void transpose(const Conv& s, const T* w, T* x, int64_t most, bool rectify, int threads, const FillRow& fill_row) {
    const Kernel kernel = transposed_kernel<T>(s, most, rectify, mode());
    if (kernel == Kernel::kNonzeros && scatter_nonzeros(s, w, x, threads, fill_row)) return;
    if (kernel == Kernel::kNonzerosPlain && scatter_nonzeros_plain(s, w, x, threads, fill_row)) return;
    if constexpr (kWinograd<T>)
        if (dense_transposed_kernel<T>(s, mode()) == Kernel::kTiles && transpose_tiles(s, w, x, threads, fill_row))
            return;
    if (few_channels<T>(s.C))
        scatter(s, w, x, threads, fill_row);
    else
        gather(s, w, x, threads, fill_row);
}

template <typename T>
void conv_transpose2d(const Conv& s, const T* y, const T* w, T* x, bool rectify, int threads) {
    transpose(s, w, x, s.OH * s.OW * s.K, rectify, threads, MapRows<T>{y, s.OH, s.OW, s.K, rectify});
}

template <typename T>
int64_t max_unpool2d_relu_conv_transpose2d(const Conv& s, const Pool& pool, const T* y, const uint8_t* switches,
                                           const T* w, T* x, bool rectify, Rounding rounding, int threads) {
    const int64_t bad = first_bad_switch(pool, switches, threads);
    if (bad >= 0) return bad;
    const int64_t most = smaller(s.OH * s.OW, pool.OH * pool.OW) * s.K;
    transpose(s, w, x, most, rectify, threads, [&](int64_t n, int64_t oh, int64_t left, int64_t cols, T* row) {
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

ZF_ADD(conv_transpose, table.conv_transpose2d = conv_transpose2d<T>;
       table.max_unpool2d_relu_conv_transpose2d = max_unpool2d_relu_conv_transpose2d<T>)

}  // namespace zf::ZF_ISA
