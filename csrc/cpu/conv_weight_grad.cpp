// The weight gradient of a convolution, and its bias's.
#include "choose.h"
#include "depthwise.h"
#include "table.h"

namespace zf::ZF_ISA {
namespace {

// The weight gradient of a group of images, repacked so that what a tile reads is dense:
//   g as [image][block of kWidth maps][OH][OW][kWidth], with zeros for absent maps;
//   x, padded, as [image][slice of kSlice channels][Hp][Wp][slice], where the taps of a kernel row are one run again.
// Sums lie as [slice][block][KH][KW * kSlice][kWidth]: 9 KiB of a slice and block for 3x3 at AVX2.
template <typename T>
struct WeightGrad {
    static constexpr int64_t kSlice = 12;  // two tiles of 6
    // Of repacked images: 16 MiB were no faster, and a fifth of what a training step of a small network needed.
    static constexpr int64_t kGroupBytes = 4 << 20;

    const Conv& s;
    const int64_t blocks = ceil_div(s.K, kWidth<T>), slices = ceil_div(s.C, kSlice);
    const int64_t Hp = (s.OH - 1) * s.SH + s.span_h(), Wp = (s.OW - 1) * s.SW + s.span_w();
    const int64_t g_image = blocks * s.OH * s.OW * kWidth<T>, x_image = round_up(Hp * Wp * s.C, 16);
    const int64_t image_bytes = (g_image + x_image) * static_cast<int64_t>(sizeof(T));
    const int64_t group = larger(1, smaller(s.N, kGroupBytes / image_bytes));
    const int64_t row_sums = s.KW * kSlice * kWidth<T>, block_sums = s.KH * row_sums;
    const int64_t all_sums = blocks * (slices * block_sums + kWidth<T>);
    const Scratch memory{static_cast<std::size_t>(group * (g_image + x_image) + all_sums) * sizeof(T)};
    T* const g_packed = memory.template as<T>();
    T* const x_packed = g_packed + group * g_image;
    T* const sums = x_packed + group * x_image;
    T* const bias_sums = sums + slices * blocks * block_sums;

    explicit WeightGrad(const Conv& conv) : s(conv) { zero(sums, all_sums); }
    int64_t slice_width(int64_t slice) const { return smaller(kSlice, s.C - slice * kSlice); }

    // Row `row` of padded image n of x, to the group's image i.
    void repack_x(const T* x, int64_t n, int64_t i, int64_t row) const {
        const int64_t h = row - s.PH;
        for (int64_t slice = 0; slice < slices; ++slice) {
            const int64_t from = slice * kSlice, width = slice_width(slice);
            T* to = x_packed + i * x_image + Hp * Wp * from + row * Wp * width;
            const T* at = x + ((n * s.H + h) * s.W - s.PW) * s.XP + from;
            for (int64_t c = 0; c < Wp; ++c, to += width) {
                const bool inside = h >= 0 && h < s.H && c >= s.PW && c - s.PW < s.W;
                for (int64_t k = 0; k < width; ++k) to[k] = inside ? at[c * s.XP + k] : 0;
            }
        }
    }

    // Row `oh` of image n of g, to the group's image i.
    void repack_g(const T* g, int64_t n, int64_t i, int64_t oh) const {
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t maps = smaller(kWidth<T>, s.K - b * kWidth<T>);
            T* to = g_packed + i * g_image + (b * s.OH + oh) * s.OW * kWidth<T>;
            const T* from = g + (n * s.OH + oh) * s.OW * s.YP + b * kWidth<T>;
            for (int64_t c = 0; c < s.OW; ++c, to += kWidth<T>, from += s.YP) {
                copy(to, from, maps);
                zero(to + maps, kWidth<T> - maps);
            }
        }
    }

    // Adds what output rows `rows` of the group's image i give to tap row `tap` of one slice and block.
    void add_tap_row(int64_t slice, int64_t b, int64_t i, Range rows, int64_t tap) const {
        alignas(64) T partial[kPixels * kWidth<T>];
        const int64_t width = slice_width(slice), run = s.KW * width, tiles = ceil_div(run, kPixels);
        const T* gradients = g_packed + i * g_image + (b * s.OH + rows.begin) * s.OW * kWidth<T>;
        const T* row =
            x_packed + i * x_image + Hp * Wp * slice * kSlice + (rows.begin * s.SH + tap * s.DH) * Wp * width;
        T* const total = sums + (slice * blocks + b) * block_sums + tap * row_sums;
        const Walk walk{rows.size(), s.OW, s.SH * Wp * width, s.SW * width};
        for (int64_t tile_at = 0; tile_at < tiles; ++tile_at) {
            const int64_t e = run * tile_at / tiles, count = run * (tile_at + 1) / tiles - e;
            const T* at[kPixels];
            for (int64_t q = 0; q < count; ++q) at[q] = row + (e + q) / width * s.DW * width + (e + q) % width;
            // Summed apart, then added: sums of blocks lose less to rounding than one long sum.
            tile(count, at, walk, gradients, kZeros<T>, partial);
            for (int64_t q = 0; q < count * kWidth<T>; ++q) total[e * kWidth<T> + q] += partial[q];
        }
    }

    // Adds the gradients of output rows `rows` of the group's image i to one block's bias.
    void add_bias(int64_t b, int64_t i, Range rows) const {
        const T* gradients = g_packed + i * g_image + (b * s.OH + rows.begin) * s.OW * kWidth<T>;
        T partial[kWidth<T>] = {};
        for (int64_t q = 0; q < rows.size() * s.OW; ++q)
            for (int64_t k = 0; k < kWidth<T>; ++k) partial[k] += gradients[q * kWidth<T> + k];
        for (int64_t k = 0; k < kWidth<T>; ++k) bias_sums[b * kWidth<T> + k] += partial[k];
    }
};

// The blocks' sums to gw and gb.
template <typename T>
void unpack_blocks(const Conv& s, const Table& table, T* sums, int64_t block_size, const T* bias_sums, T* gw, T* gb,
                   int threads) {
    parallel_for(ceil_div(s.K, kWidth<T>), threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t k = b * kWidth<T>, outputs = smaller(kWidth<T>, s.K - k);
            move_filters<false>(table, sums + b * block_size, gw + k * s.wk, outputs, s.wk);
            if (gb) copy(gb + k, bias_sums + k, outputs);
        }
    });
}

// gw[k][c][i][j] = sum over n, oh, ow of g[n][oh][ow][k] * x[n][oh*SH - PH + i*DH][ow*SW - PW + j*DW][c]; gb[k], if
// not null, = sum of g. A unit of work is (slice, block, range of tap rows): it passes over the group's images in bands
// of rows whose gradients stay in L1. No other unit adds to its sums, so threads change no bit.
template <typename T>
void weight_grad_direct(const Conv& s, const T* x, const T* g, T* gw, T* gb, int threads) {
    const WeightGrad<T> grad(s);
    const int64_t cuts = smaller(s.KH, ceil_div(4 * threads, grad.slices * grad.blocks));  // of the tap rows
    const int64_t bands = ceil_div(s.OH, rows_of_block(s.OW, s.OH));
    const auto stateless = [](int) { return 0; };
    for (int64_t first = 0; first < s.N; first += grad.group) {
        const int64_t count = smaller(grad.group, s.N - first);
        for_units(1, count, grad.Hp + s.OH, threads, stateless, [&](int, int64_t, int64_t i, int64_t row, int) {
            if (row < grad.Hp)
                grad.repack_x(x, first + i, i, row);
            else
                grad.repack_g(g, first + i, i, row - grad.Hp);
            return true;
        });
        for_units(grad.slices, grad.blocks, cuts, threads, stateless,
                  [&](int, int64_t slice, int64_t b, int64_t cut, int) {
                      const Range taps = share(s.KH, cut, cuts);
                      for (int64_t i = 0; i < count; ++i)
                          for (int64_t band = 0; band < bands; ++band) {
                              const Range of = share(s.OH, band, bands);
                              for (int64_t tap = taps.begin; tap < taps.end; ++tap)
                                  grad.add_tap_row(slice, b, i, of, tap);
                              if (gb && slice == 0 && cut == 0) grad.add_bias(b, i, of);
                          }
                      return true;
                  });
    }
    const Table table(s.C, s.wc, s.KH, s.wi, s.KW, s.wj, [&](int64_t c, int64_t i, int64_t j) {
        const int64_t slice = c / grad.kSlice;
        return slice * grad.blocks * grad.block_sums + i * grad.row_sums +
               (j * grad.slice_width(slice) + c % grad.kSlice) * kWidth<T>;
    });
    unpack_blocks(s, table, grad.sums, grad.block_sums, grad.bias_sums, gw, gb, threads);
}

// By Winograd's kernel (winograd.h), whose adjoint it is: with U = G g G^T and Y = A^T [U * V] A,
//
//   dg = G^T [ sum over tiles of (A dY A^T) * (B^T d B) ] G
//
// For each batch of tiles all threads make B^T d B of all channels, 6 MiB. Then a unit of work is (block of kWidth
// maps, cut of the channels): it transforms its gradients and makes 36 products of matrices over the batch's tiles. No
// other unit adds to its sums. False where a result is not finite; gw is then undefined.
template <typename T>
struct WinogradGrad {
    using V = Vec<T>;
    static constexpr int kLanes = Lanes<T>::count;
    static constexpr int64_t kBatch = 128;  // tiles

    WinogradGrad(const Conv& conv, int threads) : s_(conv), threads_(threads) {}

    bool run(const T* x, const T* g, T* gw, T* gb) {
        zero(bias_sums_, blocks_ * kWidth<T>);
        const MapRows<T> map = input_rows(s_, x);
        bool finite = true;
        for (int64_t from = 0; from < all_rows_; from += rows_) {
            const int64_t to = smaller(from + rows_, all_rows_);
            parallel_for(to - from, threads_, [&](int64_t begin, int64_t end, int thread) {
                Band<T> band = InputTiles<T>::band(grid_, mine_ + thread * own_);
                for (int64_t row = from + begin; row < from + end; ++row)
                    inputs_.take_row(band, row, (row - from) * grid_.tile_cols(), map);
            });
            finite &= for_units(
                1, blocks_, cuts_, threads_, [](int thread) { return thread; },
                [&](int thread, int64_t, int64_t b, int64_t cut, int) { return add(b, cut, from, to, g, thread); });
        }
        unpack_blocks(s_, winograd_table<T>(s_), packed_, packed_size_, bias_sums_, gw, gb, threads_);
        return finite;
    }

   private:
    // Adds what tile rows [from, to) give to one block and cut; transforms the sums back after the last rows.
    bool add(int64_t b, int64_t cut, int64_t from, int64_t to, const T* g, int thread) {
        T* const gradients = mine_ + thread * own_ + InputTiles<T>::band_elements(grid_);
        T* const sums = sums_ + (rows_ == all_rows_ ? thread : b) * kTaps * filter_plane_;
        const Walk walk{1, (to - from) * grid_.tile_cols(), 0, inputs_.chunk};
        const int64_t c_begin = depth_ * cut / cuts_, c_end = depth_ * (cut + 1) / cuts_;
        bool finite = true;
        with_taps(grid_.taps, [&](auto taps) {
            transform_gradients<taps.at>(b, cut == 0, from, to, g, gradients);
            for (int64_t z = 0; z < kTaps; ++z)
                for (int64_t c = c_begin, end; c < c_end; c = end) {
                    end = smaller(smaller(c + kPixels, c_end), (c / inputs_.chunk + 1) * inputs_.chunk);
                    T* const total = sums + z * filter_plane_ + c * kWidth<T>;
                    const T* at[kPixels];
                    for (int64_t i = 0; i < end - c; ++i) at[i] = inputs_.at(z, 0, c + i);
                    alignas(64) T partial[kPixels * kWidth<T>];
                    tile(end - c, at, walk, gradients + z * gradient_plane_, kZeros<T>, from ? partial : total);
                    if (from)
                        for (int64_t q = 0; q < (end - c) * kWidth<T>; ++q) total[q] += partial[q];
                }
            if (to == all_rows_) finite = transform_back<taps.at>(sums, c_begin, c_end, packed_ + b * packed_size_);
        });
        return finite;
    }

    // A dY A^T of a block's maps for tile rows [from, to); adds the gradients to the bias's if `with_bias`.
    template <int kTapsOf>
    void transform_gradients(int64_t b, bool with_bias, int64_t from, int64_t to, const T* g, T* gradients) {
        constexpr int kSide = 7 - kTapsOf;
        const int64_t maps = smaller(kWidth<T>, s_.K - b * kWidth<T>);
        T bias[kWidth<T>] = {};
        for (int64_t row = from; row < to; ++row) {
            const int64_t n = row / grid_.tile_rows(), top = row % grid_.tile_rows() * kSide;
            for (int64_t col = 0; col < grid_.tile_cols(); ++col) {
                alignas(64) T values[kSide * kSide * kWidth<T>] = {};
                const int64_t left = col * kSide;
                for (int64_t i = 0; i < smaller(kSide, s_.OH - top); ++i)
                    for (int64_t j = 0; j < smaller(kSide, s_.OW - left); ++j)
                        copy_pixels(values + (i * kSide + j) * kWidth<T>, 0,
                                    g + ((n * s_.OH + top + i) * s_.OW + left + j) * s_.YP + b * kWidth<T>, 1, maps);
                if (with_bias)
                    for (int64_t p = 0; p < kSide * kSide; ++p)
                        for (int64_t o = 0; o < kWidth<T>; ++o) bias[o] += values[p * kWidth<T> + o];
                T* const to_tile = gradients + ((row - from) * grid_.tile_cols() + col) * kWidth<T>;
                for (int64_t o = 0; o < kWidth<T>; o += kLanes) {
                    V d[kSide * kSide], columns[6 * kSide], z[6];
                    repeat<kSide * kSide>([&](auto i) { d[i.at] = load<V>(values + i.at * kWidth<T> + o); });
                    repeat<kSide>([&](auto j) { spread<kSide>(d + j.at, kSide, columns + j.at, kSide); });
                    repeat<6>([&](auto i) {
                        spread<kSide>(columns + i.at * kSide, 1, z, 1);
                        repeat<6>([&](auto j) { store(to_tile + (i.at * 6 + j.at) * gradient_plane_ + o, z[j.at]); });
                    });
                }
            }
        }
        if (with_bias)
            for (int64_t o = 0; o < kWidth<T>; ++o) bias_sums_[b * kWidth<T> + o] += bias[o];
    }

    // A of kCount values.
    template <int kCount>
    static ZF_INLINE void spread(const V* y, int step, V* z, int z_step) {
        V even = y[0], even_2 = y[0], odd = y[step], odd_2 = 2 * y[step];
        if constexpr (kCount > 2) even += y[2 * step], even_2 += 4 * y[2 * step];
        if constexpr (kCount > 3) odd += y[3 * step], odd_2 += 8 * y[3 * step];
        if constexpr (kCount > 4) even += y[4 * step], even_2 += 16 * y[4 * step];
        z[0] = y[0], z[z_step] = even + odd, z[2 * z_step] = even - odd;
        z[3 * z_step] = even_2 + odd_2, z[4 * z_step] = even_2 - odd_2, z[5 * z_step] = y[(kCount - 1) * step];
    }

    // G^T of six values.
    template <int kTapsOf>
    static ZF_INLINE void gather_taps(const V* z, int step, V* g, int g_step) {
        const V even = (z[step] + z[2 * step]) * T(-1.0 / 6), odd = (z[step] - z[2 * step]) * T(-1.0 / 6);
        const V even_2 = (z[3 * step] + z[4 * step]) * T(1.0 / 24), odd_2 = (z[3 * step] - z[4 * step]) * T(1.0 / 12);
        g[0] = z[0] * T(0.25) + even + even_2, g[g_step] = odd + odd_2;
        if constexpr (kTapsOf > 2) g[2 * g_step] = even + 4 * even_2;
        if constexpr (kTapsOf > 3) g[3 * g_step] = odd + 4 * odd_2;
        if constexpr (kTapsOf > 4) g[4 * g_step] = even + 16 * even_2;
        g[(kTapsOf - 1) * g_step] += z[5 * step];
    }

    template <int kTapsOf>
    bool transform_back(const T* sums, int64_t c_begin, int64_t c_end, T* packed) const {
        Seen<T> seen;
        for (int64_t o = c_begin * kWidth<T>; o < c_end * kWidth<T>; o += kLanes) {
            V rows[6 * kTapsOf], g[kTapsOf];
            repeat<6>([&](auto i) {
                V z[6];
                repeat<6>([&](auto j) { z[j.at] = load<V>(sums + (i.at * 6 + j.at) * filter_plane_ + o); });
                gather_taps<kTapsOf>(z, 1, rows + i.at * kTapsOf, 1);
            });
            repeat<kTapsOf>([&](auto j) {
                gather_taps<kTapsOf>(rows + j.at, kTapsOf, g, 1);
                repeat<kTapsOf>([&](auto i) {
                    seen.add(g[i.at]);
                    store(packed + (i.at * kTapsOf + j.at) * depth_ * kWidth<T> + o, g[i.at]);
                });
            });
        }
        return seen.sound();
    }

    const Conv& s_;
    const int threads_;
    const Grid grid_ = forward_grid(s_);
    const int64_t all_rows_ = s_.N * grid_.tile_rows();
    const int64_t rows_ = larger(1, smaller(all_rows_, (kBatch + grid_.tile_cols() / 2) / grid_.tile_cols()));
    const int64_t tiles_ = rows_ * grid_.tile_cols(), depth_ = grid_.depth(), blocks_ = ceil_div(s_.K, kWidth<T>);
    const int64_t cuts_ = smaller(ceil_div(depth_, kPixels), ceil_div(threads_, blocks_));
    const int64_t filter_plane_ = odd_lines<T>(depth_ * kWidth<T>), gradient_plane_ = odd_lines<T>(tiles_ * kWidth<T>);
    const int64_t packed_size_ = grid_.taps * grid_.taps * depth_ * kWidth<T>;
    // What is summed over several batches must be kept for all blocks.
    const int64_t sums_kept_ = rows_ == all_rows_ ? threads_ : blocks_;
    const int64_t own_ = InputTiles<T>::band_elements(grid_) + kTaps * gradient_plane_;
    const int64_t inputs_size_ = InputTiles<T>::elements(grid_, tiles_);
    const Scratch memory_{static_cast<std::size_t>(inputs_size_ + threads_ * own_ + sums_kept_ * kTaps * filter_plane_ +
                                                   blocks_ * (packed_size_ + kWidth<T>)) *
                          sizeof(T)};
    InputTiles<T> inputs_{grid_, tiles_, memory_.template as<T>()};
    T* const mine_ = memory_.template as<T>() + inputs_size_;
    T* const sums_ = mine_ + threads_ * own_;
    T* const packed_ = sums_ + sums_kept_ * kTaps * filter_plane_;
    T* const bias_sums_ = packed_ + blocks_ * packed_size_;
};

template <typename T>
void conv2d_weight_grad(const Conv& s, const T* x, const T* g, T* gw, T* gb, int threads) {
    if (depthwise<T>(s)) return depthwise_weight_grad(s, x, g, gw, gb, threads);
    const Mode of_caller = mode();  // another thread's may differ
    for_groups(s, threads, [&](const Conv& one, int64_t group, int own) {
        const T *const xs = x + group * one.C, *const gs = g + group * one.K;
        T *const gws = gw + group * one.K * s.wk, *const gbs = gb ? gb + group * one.K : nullptr;
        if constexpr (kWinograd<T>)
            if (weight_grad_kernel<T>(one, of_caller) == Kernel::kTiles &&
                WinogradGrad<T>(one, own).run(xs, gs, gws, gbs))
                return;
        weight_grad_direct(one, xs, gs, gws, gbs, own);
    });
}

}  // namespace

ZF_ADD(conv_weight_grad, table.conv2d_weight_grad = conv2d_weight_grad<T>)

}  // namespace zf::ZF_ISA
