// The transposed convolution (filtering with every filter flipped; the convolution's input gradient), and the same fed
// by unpooling.
#include "conv_block.h"
#include "max_pool_row.h"
#include "table.h"

namespace zf {
namespace ZF_ISA {
namespace {

// The positions h = q*S + r - P of one axis that residue class r makes: q in [begin, end).
struct Residue {
    int64_t r, taps, begin, end;
};

Residue residue(int64_t r, int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
    return {r, taps_of_residue(kernel, stride, r), ceil_div(padding - r, stride),
            floor_div(size - 1 + padding - r, stride) + 1};
}

// x[n][h][w][c] = sum over taps (i, j) with h + PH - i = oh*SH, w + PW - j = ow*SW, and maps k, of
// y[n][oh][ow][k] * w[k][c][i][j].
//
// Each pair of residues of (h + PH, w + PW) by the strides is a stride-1 correlation of y with its own share of the
// taps, flipped (window.h): SH*SW small convolutions that read one padded band of y and write interleaved pixels of x.
// A unit of work is (image, band of q rows, group of channel blocks). `fill_row(n, oh, row)` writes row oh of y, padded
// by band.cols x channels, or zeros where y has no such row.
template <typename T, typename FillRow>
void transpose(const Conv& s, const T* w, T* x, int threads, const Packing<T>& p, int64_t left, int64_t cols,
               const FillRow& fill_row) {
    const int64_t most_taps = ceil_div(s.KH, s.SH);
    const int64_t q_begin = floor_div(s.PH, s.SH), q_end = floor_div(s.H - 1 + s.PH, s.SH) + 1;
    const int64_t q_cols = floor_div(s.W - 1 + s.PW, s.SW) + 1 - floor_div(s.PW, s.SW);
    const int64_t rows = smaller(q_end - q_begin, larger(1, kBlockPixels / q_cols));
    const int64_t bands = ceil_div(q_end - q_begin, rows);
    const int64_t groups = smaller(p.blocks, ceil_div(4 * threads, larger(1, s.N * bands)));

    // Weights: [class][block][taps_h][taps_w * channels][width], classes in row-major order of residues.
    const int64_t taps = s.KH * s.KW, weights = p.elements(taps);  // of one block, all classes together
    const Scratch packed((p.blocks * weights + p.width) * sizeof(T));
    T* const no_bias = packed.as<T>() + p.blocks * weights;
    zero(no_bias, p.width);
    parallel_for(p.blocks, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t b = begin; b < end; ++b) {
            T* to = packed.as<T>() + b * weights;
            const int64_t from = b * p.width, outputs = smaller(p.width, s.C - from);
            for (int64_t ri = 0; ri < smaller(s.SH, s.KH); ++ri)
                for (int64_t rj = 0; rj < smaller(s.SW, s.KW); ++rj) {
                    const int64_t th = taps_of_residue(s.KH, s.SH, ri), tw = taps_of_residue(s.KW, s.SW, rj);
                    const T* last_tap = w + from * s.wc + (ri + (th - 1) * s.SH) * s.wi + (rj + (tw - 1) * s.SW) * s.wj;
                    pack_weights(p, to, last_tap, outputs, s.wc, s.K, s.wk, th, -s.SH * s.wi, tw, -s.SW * s.wj);
                    to += p.elements(th * tw);
                }
        }
    });

    const int64_t band_size = round_up((rows + most_taps - 1) * cols * p.channels, 16);
    const int64_t acc_size = round_up(rows * q_cols * p.width, 16);
    const Scratch memory(threads * (band_size + acc_size) * sizeof(T));
    parallel_for(s.N * bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const acc = memory.as<T>() + thread * (band_size + acc_size);
        Band<T> band{acc + acc_size, cols, p.channels};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups % bands, n = unit / groups / bands;
            const int64_t from = q_begin + (q_end - q_begin) * b / bands;
            const int64_t to = q_begin + (q_end - q_begin) * (b + 1) / bands;
            band.require(n, from - (most_taps - 1), to, fill_row);
            for (int64_t k = p.blocks * group / groups; k < p.blocks * (group + 1) / groups; ++k) {
                const T* block_weights = packed.as<T>() + k * weights;
                const int64_t outputs = smaller(p.width, s.C - k * p.width);
                for (int64_t ri = 0; ri < s.SH; ++ri)
                    for (int64_t rj = 0; rj < s.SW; ++rj) {
                        const Residue rh = residue(ri, s.H, s.KH, s.SH, s.PH), rw = residue(rj, s.W, s.KW, s.SW, s.PW);
                        const int64_t row = larger(from, rh.begin), row_end = smaller(to, rh.end);
                        const bool tapped = rh.taps > 0 && rw.taps > 0;
                        if (row < row_end && rw.begin < rw.end) {
                            const int64_t pixels = rw.end - rw.begin;
                            const Block<T> block{band.data + ((row - rh.taps - from + most_taps) * cols +
                                                              rw.begin - (rw.taps - 1) - left) *
                                                                 p.channels,
                                                 band.pitch(),
                                                 p.channels,
                                                 row_end - row,
                                                 pixels,
                                                 band.pitch(),
                                                 rh.taps,
                                                 rw.taps * p.channels};
                            if (tapped)
                                convolve_block(p, block, block_weights, no_bias, false, acc);
                            else
                                zero(acc, (row_end - row) * pixels * p.width);
                            for (int64_t q = row; q < row_end; ++q) {
                                const int64_t h = q * s.SH + ri - s.PH, w0 = rw.begin * s.SW + rj - s.PW;
                                T* out = x + ((n * s.H + h) * s.W + w0) * s.C + k * p.width;
                                const T* in = acc + (q - row) * pixels * p.width;
                                for (int64_t i = 0; i < pixels; ++i)
                                    copy(out + i * s.SW * s.C, in + i * p.width, outputs);
                            }
                        }
                        if (tapped) block_weights += p.elements(rh.taps * rw.taps);
                    }
            }
        }
    });
}

// The columns of y that a band needs: [left, left + cols).
struct Columns {
    int64_t left, count;
    explicit Columns(const Conv& s)
        : left(floor_div(s.PW, s.SW) - (ceil_div(s.KW, s.SW) - 1)),
          count(floor_div(s.W - 1 + s.PW, s.SW) + 1 - left) {}
};

template <typename T>
void conv_transpose2d(const Conv& s, const T* y, const T* w, T* x, bool rectify, int threads) {
    const Packing<T> p(s.C, s.K);
    const Columns c(s);
    transpose(s, w, x, threads, p, c.left, c.count, [&](int64_t n, int64_t oh, T* row) {
        copy_row(row, y + n * s.OH * s.OW * s.K, oh, s.OH, s.OW, s.K, c.left, c.count, p.channels, rectify);
    });
}

// The same, from the pooled map and its switches: each row of the map between is gathered into the band and never
// written.
template <typename T>
int64_t max_unpool2d_relu_conv_transpose2d(const Conv& s, const Pool& pool, const T* y, const uint8_t* switches,
                                           const T* w, T* x, bool rectify, Rounding rounding, int threads) {
    const int64_t bad = first_bad_switch(pool, switches, threads);
    if (bad >= 0) return bad;
    const Packing<T> p(s.C, s.K);
    const Columns c(s);
    const int64_t first = larger(0, -c.left), last = smaller(c.count, s.OW - c.left);
    transpose(s, w, x, threads, p, c.left, c.count, [&](int64_t n, int64_t oh, T* row) {
        // The whole row is zeroed first: the gaps between K and `channels` are read as weights' zeros are.
        zero(row, c.count * p.channels);
        if (oh < 0 || oh >= s.OH || first >= last) return;
        const int64_t image = n * pool.OH * pool.OW * s.K;
        unpool_row(pool, oh, c.left + first, c.left + last, y + image, switches + image, row + first * p.channels,
                   p.channels);
        round_all(row, c.count * p.channels, rounding);
        if (rectify)
            for (int64_t i = 0; i < c.count * p.channels; ++i) row[i] = row[i] < 0 ? 0 : row[i];
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
