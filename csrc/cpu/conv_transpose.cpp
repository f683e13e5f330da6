// The transposed convolution (filtering with every filter flipped; the convolution's input gradient), and the same fed
// by unpooling:
//
//   x[n][h][w][c] = sum over taps (i, j) with h + PH - i = oh*SH, w + PW - j = ow*SW, and over maps k, of
//                   y[n][oh][ow][k] * w[k][c][i][j]
//
// All kernels (the fourth is in nonzeros.h) take y through `fill_row(n, oh, left, cols, row)`, which writes columns
// [left, left + cols) of row oh of y, zeros where y has none: a copy, or a row of the unpooled map that is gathered
// here and never written elsewhere.
#include "conv_block.h"
#include "max_pool_row.h"
#include "nonzeros.h"
#include "table.h"
#include "winograd.h"

namespace zf {
namespace ZF_ISA {
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
    const int64_t q_begin = floor_div(s.PH, s.SH), q_end = floor_div(s.H - 1 + s.PH, s.SH) + 1;
    const int64_t q_left = floor_div(s.PW, s.SW), q_right = floor_div(s.W - 1 + s.PW, s.SW) + 1;
    const int64_t left = q_left - (ceil_div(s.KW, s.SW) - 1), cols = q_right - left;  // of y
    const int64_t rows = rows_of_block(q_right - q_left, q_end - q_begin);
    const int64_t bands = ceil_div(q_end - q_begin, rows), blocks = ceil_div(s.C, kWidth<T>);
    const int64_t groups = groups_for(blocks, s.N * bands, threads);

    // [block][class][taps_h][taps_w * K][kWidth], classes in row-major order of residues, taps in descending order.
    const Table table(s.K, s.wk, s.KH, s.wi, s.KW, s.wj, [&](int64_t k, int64_t i, int64_t j) {
        const int64_t th = taps_of_residue(s.KH, s.SH, i % s.SH), tw = taps_of_residue(s.KW, s.SW, j % s.SW);
        int64_t taps = 0;  // of the classes before this one
        for (int64_t ri = 0; ri < i % s.SH; ++ri) taps += taps_of_residue(s.KH, s.SH, ri) * s.KW;
        for (int64_t rj = 0; rj < j % s.SW; ++rj) taps += taps_of_residue(s.KW, s.SW, rj) * th;
        return ((taps + (th - 1 - i / s.SH) * tw + tw - 1 - j / s.SW) * s.K + k) * kWidth<T>;
    });
    const int64_t size = s.KH * s.KW * s.K * kWidth<T>;
    const auto pack_block = pack_filters(table, size, w, s.C, s.wc);
    const Packed<T, decltype(pack_block)> packed(blocks, size, pack_block, s.N * bands == 1, threads);

    T no_bias[kWidth<T>] = {};
    const int64_t acc_size = round_up(rows * (q_right - q_left) * kWidth<T>, 16);
    const int64_t band_size = round_up((rows + most_taps - 1) * cols * s.K, 16);
    const Scratch memory(static_cast<std::size_t>(threads * (acc_size + band_size)) * sizeof(T));
    parallel_for(s.N * bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const acc = memory.as<T>() + thread * (acc_size + band_size);
        Band<T> band{acc + acc_size, cols, s.K};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups % bands, n = unit / groups / bands;
            const int64_t from = q_begin + (q_end - q_begin) * b / bands;
            const int64_t to = q_begin + (q_end - q_begin) * (b + 1) / bands;
            const int64_t top = from - (most_taps - 1);  // y's row that the band begins with
            band.require(n, top, to, [&](int64_t image, int64_t oh, T* row) { fill_row(image, oh, left, cols, row); });
            for (int64_t k = blocks * group / groups; k < blocks * (group + 1) / groups; ++k) {
                const T* class_weights = packed.block(k, thread);
                const int64_t outputs = smaller(kWidth<T>, s.C - k * kWidth<T>);
                for (int64_t ri = 0; ri < s.SH; ++ri)
                    for (int64_t rj = 0; rj < s.SW; ++rj) {
                        const Residue rh(ri, s.H, s.KH, s.SH, s.PH), rw(rj, s.W, s.KW, s.SW, s.PW);
                        const int64_t row = larger(from, rh.begin), row_end = smaller(to, rh.end);
                        const int64_t pixels = rw.end - rw.begin, taps = rh.taps * rw.taps;
                        if (row < row_end && pixels > 0) {
                            if (taps > 0) {
                                const int64_t first = (row - rh.taps + 1 - top) * cols + rw.begin - rw.taps + 1 - left;
                                convolve_block(Block<T>{band.data + first * s.K, band.pitch(), s.K, row_end - row,
                                                        pixels, band.pitch(), rh.taps, rw.taps * s.K},
                                               class_weights, no_bias, acc);
                            } else {
                                zero(acc, (row_end - row) * pixels * kWidth<T>);
                            }
                            for (int64_t q = row; q < row_end; ++q) {
                                const int64_t h = q * s.SH + ri - s.PH, w0 = rw.begin * s.SW + rj - s.PW;
                                copy_pixels(x + ((n * s.H + h) * s.W + w0) * s.C + k * kWidth<T>, s.SW * s.C,
                                            acc + (q - row) * pixels * kWidth<T>, pixels, outputs);
                            }
                        }
                        class_weights += taps * s.K * kWidth<T>;
                    }
            }
        }
    });
}

// Scatter, for few channels (an image's), which would leave most of a block's lanes empty: the lanes are the elements
// (i, j, c) of a filter instead, 147 of 160 for 7x7x3. Each row of y times the filters, a 1x1 convolution, gives for
// each pixel the KH runs of KW*C elements that it adds to x. A unit of work is (image, band of rows of x); it
// multiplies every row of y that touches its band and adds what falls into it, rows and pixels of y in ascending order,
// so that the sum of a pixel does not depend on how x was cut.
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

    T no_bias[kWidth<T>] = {};
    const int64_t bands = smaller(s.H, ceil_div(threads, larger(1, s.N)));
    const int64_t acc_size = round_up(s.OW * kWidth<T>, 16), own_size = acc_size + round_up(s.OW * s.K, 16);
    const Scratch memory(static_cast<std::size_t>(threads * own_size) * sizeof(T));
    parallel_for(s.N * bands, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const acc = memory.as<T>() + thread * own_size;
        T* const row = acc + acc_size;
        const Block<T> pixels{row, s.OW * s.K, s.K, 1, s.OW, s.OW * s.K, 1, s.K};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t b = unit % bands, n = unit / bands;
            const int64_t from = s.H * b / bands, to = s.H * (b + 1) / bands;
            zero(x + (n * s.H + from) * s.W * s.C, (to - from) * s.W * s.C);
            const int64_t last = last_window(to - 1, s.SH, s.PH, s.OH);
            for (int64_t oh = first_window(from, s.KH, s.SH, s.PH); oh <= last; ++oh) {
                fill_row(n, oh, 0, s.OW, row);
                for (int64_t k = 0; k < blocks; ++k) {
                    convolve_block(pixels, packed.as<T>() + k * s.K * kWidth<T>, no_bias, acc);
                    const int64_t block_end = smaller((k + 1) * kWidth<T>, elements);
                    for (int64_t e = k * kWidth<T>; e < block_end;) {
                        const int64_t i = e / run, e_end = smaller((i + 1) * run, block_end);
                        const int64_t h = oh * s.SH - s.PH + i;
                        if (h >= from && h < to)
                            for (int64_t ow = 0; ow < s.OW; ++ow) {
                                // Element e goes to element `at` of row h; what lies beside the row is dropped.
                                const int64_t at = (ow * s.SW - s.PW) * s.C + e - i * run;
                                const int64_t f = larger(0, -at), f_end = smaller(e_end - e, s.W * s.C - at);
                                T* const target = x + (n * s.H + h) * s.W * s.C + at;
                                const T* const value = acc + ow * kWidth<T> + e - k * kWidth<T>;
                                for (int64_t q = f; q < f_end; ++q) target[q] += value[q];
                            }
                        e = e_end;
                    }
                }
            }
        }
    });
}

// By Winograd's kernel (winograd.h): a correlation of stride 1 over positions of y, whose outputs are the SH x SW
// pixels of x that a position makes, C channels each; false, and x is of no use, where a result is not finite. A unit
// of work is (rows of tiles, of one image or several; group of blocks of outputs).
template <typename T, typename FillRow>
bool transpose_winograd(const Conv& s, const Grid& grid, const T* w, T* x, int threads, const FillRow& fill_row) {
    const int64_t q_top = grid.top + grid.taps - 1, q_left = grid.left + grid.taps - 1, run = s.SW * s.C;
    const int64_t all_rows = s.N * grid.tile_rows(), rows = smaller(all_rows, Winograd<T>::rows_of_unit(grid));
    const int64_t bands = ceil_div(all_rows, larger(rows, 1));
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
    const Packed<T, decltype(pack_block)> packed(ceil_div(grid.outputs, kWidth<T>), size, pack_block, bands == 1,
                                                 threads);
    const int64_t groups = groups_for(packed.blocks, bands, threads), own = Winograd<T>::elements(grid, rows);
    const Scratch memory(static_cast<std::size_t>(threads * own) * sizeof(T));
    const T no_bias[kWidth<T>] = {};
    bool finite = true;
    parallel_for(bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        Winograd<T> winograd(grid, rows, memory.as<T>() + thread * own);
        bool all_finite = true;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups;
            winograd.take(all_rows * b / bands, all_rows * (b + 1) / bands, fill_row);
            for (int64_t k = packed.blocks * group / groups; k < packed.blocks * (group + 1) / groups; ++k) {
                const int64_t first = k * kWidth<T>, last = smaller(grid.outputs, first + kWidth<T>);
                const auto pixel = [&](int64_t n, int64_t row, int64_t col, const T* values) {
                    for (int64_t o = first, next; o < last; o = next) {  // outputs [o, next) are of one row of x
                        next = smaller(last, (o / run + 1) * run);
                        const int64_t h = (q_top + row) * s.SH + o / run - s.PH;
                        const int64_t at = ((q_left + col) * s.SW - s.PW) * s.C + o % run;
                        const int64_t from = larger(0, -at), to = smaller(next - o, s.W * s.C - at);
                        if (h < 0 || h >= s.H || from >= to) continue;
                        T* const out = x + (n * s.H + h) * s.W * s.C + at;
                        copy_pixels(out + from, 0, values + o - first + from, 1, to - from);
                    }
                };
                all_finite &= winograd.products(packed.block(k, thread), no_bias, false, pixel);
            }
        }
        if (!all_finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

// What the direct kernels take for an image of `positions` positions of gather, in cycles: 82% of the peak, and 62%
// where products are added to memory.
template <typename T>
double transpose_cycles(const Conv& s, int64_t positions) {
    const int64_t elements = s.KH * s.KW * s.C, lanes = s.KH * s.KW * round_up(s.C, kWidth<T>);
    if (s.C <= kWidth<T> / 2)
        return static_cast<double>(s.OH * s.OW * s.K * round_up(elements, kWidth<T>)) / (0.62 * kWidth<T>);
    return static_cast<double>(positions * s.K * lanes) / (0.82 * kWidth<T>)+0.6 * static_cast<double>(s.K * elements);
}

// y has at most `most` values an image that are not 0. Half of those that are rectified are taken to be 0: a guess, but
// the kernel must not depend on them, lest an image's bits depend on its batch.
template <typename T, typename FillRow>
void transpose(const Conv& s, const T* w, T* x, int64_t most, bool rectify, int threads, const FillRow& fill_row) {
    const int64_t q_top = floor_div(s.PH, s.SH), q_left = floor_div(s.PW, s.SW), taps = ceil_div(s.KH, s.SH);
    const int64_t rows = floor_div(s.H - 1 + s.PH, s.SH) + 1 - q_top,
                  cols = floor_div(s.W - 1 + s.PW, s.SW) + 1 - q_left;
    const Grid grid{taps, 1, 1, s.K, q_top - (taps - 1), q_left - (taps - 1), rows, cols, s.SH * s.SW * s.C};
    const double direct = transpose_cycles<T>(s, rows * cols);
    bool tiles = false;
    if constexpr (kWinograd<T>) tiles = winograd_serves<T>(grid, ceil_div(s.KW, s.SW), direct);
    const double nonzeros = static_cast<double>(most) * (rectify ? 0.5 : 1);
    const double otherwise = tiles ? smaller(direct, winograd_cycles<T>(grid)) : direct;
    const WinogradMode mode = winograd_mode();
    const bool barred = mode == kWhereItCan || mode == kRowsWhereItCan;
    const bool pays = mode == kNonzerosWhereItCan || 1.1 * nonzero_cycles<T>(s, nonzeros) < otherwise;
    if (!barred && pays && Panels<T>::serve(s) && scatter_nonzeros(s, w, x, nonzeros, threads, fill_row)) return;
    if constexpr (kWinograd<T>)
        if (tiles && transpose_winograd(s, grid, w, x, threads, fill_row)) return;
    if (s.C <= kWidth<T> / 2)
        scatter(s, w, x, threads, fill_row);
    else
        gather(s, w, x, threads, fill_row);
}

template <typename T>
void conv_transpose2d(const Conv& s, const T* y, const T* w, T* x, bool rectify, int threads) {
    const int64_t most = s.OH * s.OW * s.K;
    transpose(s, w, x, most, rectify, threads, [&](int64_t n, int64_t oh, int64_t left, int64_t cols, T* row) {
        copy_row(row, y + n * s.OH * s.OW * s.K, oh, s.OH, s.OW, s.K, left, cols, rectify);
    });
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

template <typename T>
void add_conv_transpose(KernelsOf<T>& kernels) {
    kernels.conv_transpose2d = conv_transpose2d<T>;
    kernels.max_unpool2d_relu_conv_transpose2d = max_unpool2d_relu_conv_transpose2d<T>;
}
template void add_conv_transpose(KernelsOf<float>&);
template void add_conv_transpose(KernelsOf<double>&);

}  // namespace ZF_ISA
}  // namespace zf
