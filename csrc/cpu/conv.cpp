// Convolution with bias and ReLU, the same followed by max-pooling, and the weight gradient.
#include "conv_block.h"
#include "max_pool_row.h"
#include "table.h"
#include "winograd.h"

namespace zf {
namespace ZF_ISA {
namespace {

// A forward convolution's filters as rows of a block: [KH][KW][C].
template <typename T>
Table forward_table(const Conv& s) {
    return Table(s.C, s.wc, s.KH, s.wi, s.KW, s.wj,
                 [&](int64_t c, int64_t i, int64_t j) { return ((i * s.KW + j) * s.C + c) * kWidth<T>; });
}

// The bias of one block of output channels, zeros where there is none.
template <typename T>
void bias_of_block(const Conv& s, const T* bias, int64_t block, T (&values)[kWidth<T>]) {
    for (int64_t o = 0; o < kWidth<T>; ++o) {
        const int64_t k = block * kWidth<T> + o;
        values[o] = bias && k < s.K ? bias[k] : 0;
    }
}

// Output rows [from, to) of image n as a Block that reads the map itself where no window needs padding, else the
// thread's band, which is filled here.
template <typename T>
Block<T> input_block(const Conv& s, const T* x, Band<T>& band, int64_t n, int64_t from, int64_t to) {
    const T* image = x + n * s.H * s.W * s.C;
    const int64_t rows = to - from, run = s.KW * s.C;
    if (s.PH == 0 && s.PW == 0) {
        const int64_t pitch = s.W * s.C;
        return {image + from * s.SH * pitch, s.SH * pitch, s.SW * s.C, rows, s.OW, pitch, s.KH, run};
    }
    band.require(n, from * s.SH - s.PH, (to - 1) * s.SH - s.PH + s.KH,
                 [&](int64_t, int64_t h, T* row) { copy_row(row, image, h, s.H, s.W, s.C, -s.PW, band.cols, false); });
    return {band.data, s.SH * band.pitch(), s.SW * s.C, rows, s.OW, band.pitch(), s.KH, run};
}

int64_t band_cols(const Conv& s) { return (s.OW - 1) * s.SW + s.KW; }

// Elements of the band under `rows` output rows.
int64_t band_elements(const Conv& s, int64_t rows) { return ((rows - 1) * s.SH + s.KH) * band_cols(s) * s.C; }

// y[n][oh][ow][k] = max(0, bias[k] + sum_{i,j,c} x[n][oh*SH - PH + i][ow*SW - PW + j][c] * w[k][c][i][j]), rectified if
// asked. A unit of work is (image, band of output rows, group of channel blocks); its thread pads the band once and
// passes every block of the group over it.
template <typename T>
void conv2d_direct(const Conv& s, const T* x, const T* w, const T* bias, T* y, bool relu, int threads) {
    const int64_t rows = rows_of_block(s.OW, s.OH), bands = ceil_div(s.OH, rows);
    const Table table = forward_table<T>(s);
    const int64_t size = s.KH * s.KW * s.C * kWidth<T>;
    const auto pack_block = pack_filters(table, size, w, s.K, s.wk);
    const Packed<T, decltype(pack_block)> packed(ceil_div(s.K, kWidth<T>), size, pack_block, s.N * bands == 1, threads);
    const int64_t groups = groups_for(packed.blocks, s.N * bands, threads);
    const int64_t acc_size = round_up(rows * s.OW * kWidth<T>, 16), band_size = round_up(band_elements(s, rows), 16);
    const Scratch memory(static_cast<std::size_t>(threads * (acc_size + band_size)) * sizeof(T));
    parallel_for(s.N * bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const acc = memory.as<T>() + thread * (acc_size + band_size);
        Band<T> band{acc + acc_size, band_cols(s), s.C};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups % bands, n = unit / groups / bands;
            const int64_t from = s.OH * b / bands, to = s.OH * (b + 1) / bands;
            const Block<T> block = input_block(s, x, band, n, from, to);
            for (int64_t k = packed.blocks * group / groups; k < packed.blocks * (group + 1) / groups; ++k) {
                T block_bias[kWidth<T>];
                bias_of_block(s, bias, k, block_bias);
                convolve_block(block, packed.block(k, thread), block_bias, acc);
                if (relu) rectify_all(acc, (to - from) * s.OW * kWidth<T>);
                const int64_t outputs = smaller(kWidth<T>, s.K - k * kWidth<T>);
                T* out = y + (n * s.OH + from) * s.OW * s.K + k * kWidth<T>;
                copy_pixels(out, s.K, acc, (to - from) * s.OW, outputs);
            }
        }
    });
}

// The convolution as Winograd's kernel sees it.
Grid forward_grid(const Conv& s) { return {ceil_div(s.KH, s.SH), s.SH, s.SW, s.C, -s.PH, -s.PW, s.OH, s.OW, s.K}; }

template <typename T>
bool forward_winograd(const Conv& s) {
    return winograd_serves<T>(forward_grid(s), ceil_div(s.KW, s.SW), s.OH * s.OW * s.K * s.KH * s.KW * s.C);
}

// A forward convolution's filters as rows of a block for Winograd's kernel: [taps][taps][SH][SW][C].
template <typename T>
Table winograd_table(const Conv& s) {
    const int64_t taps = ceil_div(s.KH, s.SH);
    return Table(s.C, s.wc, s.KH, s.wi, s.KW, s.wj, [=](int64_t c, int64_t i, int64_t j) {
        const int64_t tap = i / s.SH * taps + j / s.SW, phase = i % s.SH * s.SW + j % s.SW;
        return ((tap * s.SH * s.SW + phase) * s.C + c) * kWidth<T>;
    });
}

// conv2d by Winograd's kernel; false, and y is of no use, where a result is not finite. A unit of work is (rows of
// tiles, of one image or several; group of channel blocks).
template <typename T>
bool conv2d_winograd(const Conv& s, const T* x, const T* w, const T* bias, T* y, bool relu, int threads) {
    const Grid grid = forward_grid(s);
    const int64_t all_rows = s.N * grid.tile_rows(), rows = smaller(all_rows, Winograd<T>::rows_of_unit(grid));
    const int64_t bands = ceil_div(all_rows, larger(rows, 1));
    const Table table = winograd_table<T>(s);
    const int64_t size = grid.taps * grid.taps * grid.depth() * kWidth<T>;
    const auto pack_block = pack_filters(table, size, w, s.K, s.wk);
    const Packed<T, decltype(pack_block)> packed(ceil_div(s.K, kWidth<T>), size, pack_block, bands == 1, threads);
    const int64_t groups = groups_for(packed.blocks, bands, threads), own = Winograd<T>::elements(grid, rows);
    const Scratch memory(static_cast<std::size_t>(threads * own) * sizeof(T));
    bool finite = true;
    parallel_for(bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        Winograd<T> winograd(grid, rows, memory.as<T>() + thread * own);
        bool all_finite = true;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups;
            winograd.take(all_rows * b / bands, all_rows * (b + 1) / bands,
                          [&](int64_t n, int64_t h, int64_t left, int64_t cols, T* row) {
                              copy_row(row, x + n * s.H * s.W * s.C, h, s.H, s.W, s.C, left, cols, false);
                          });
            for (int64_t k = packed.blocks * group / groups; k < packed.blocks * (group + 1) / groups; ++k) {
                T block_bias[kWidth<T>];
                bias_of_block(s, bias, k, block_bias);
                const int64_t outputs = smaller(kWidth<T>, s.K - k * kWidth<T>);
                const auto pixel = [&](int64_t n, int64_t row, int64_t col, const T* values) {
                    copy_pixels(y + ((n * s.OH + row) * s.OW + col) * s.K + k * kWidth<T>, 0, values, 1, outputs);
                };
                all_finite &= winograd.products(packed.block(k, thread), block_bias, relu, pixel);
            }
        }
        if (!all_finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

template <typename T>
void conv2d(const Conv& s, const T* x, const T* w, const T* bias, T* y, bool relu, int threads) {
    if (forward_winograd<T>(s) && conv2d_winograd(s, x, w, bias, y, relu, threads)) return;
    conv2d_direct(s, x, w, bias, y, relu, threads);
}

// conv2d (rectified) and max_pool2d without the map between them. A unit of work is (image, span of pooled rows, group
// of channel blocks). It walks down its span: each step makes the convolution's rows that the next pooled rows need and
// nobody has made yet, into a buffer a block that keeps the overlap, and pools them. Only a span's first step makes
// rows that another unit makes too.
template <typename T>
void conv2d_relu_max_pool2d_direct(const Conv& s, const Pool& pool, const T* x, const T* w, const T* bias, T* y,
                                   uint8_t* switches, Rounding rounding, int threads) {
    const Table table = forward_table<T>(s);
    const int64_t size = s.KH * s.KW * s.C * kWidth<T>;
    const auto pack_block = pack_filters(table, size, w, s.K, s.wk);
    const Packed<T, decltype(pack_block)> packed(ceil_div(s.K, kWidth<T>), size, pack_block, false, threads);
    const int64_t groups = groups_for(packed.blocks, s.N, threads);
    const int64_t spans = smaller(pool.OH, ceil_div(threads, larger(s.N * groups, 1)));
    const int64_t step = smaller(pool.OH, larger(1, kBlockPixels / (s.OW * pool.SH)));  // pooled rows at a time
    const int64_t most_rows = smaller(s.OH, (step - 1) * pool.SH + pool.KH);
    const int64_t most_blocks = ceil_div(packed.blocks, groups);
    const int64_t pitch = s.OW * kWidth<T>, buffer = round_up(most_rows * pitch, 16);
    const int64_t own_size = most_blocks * buffer + round_up(band_elements(s, most_rows), 16);
    const Scratch memory(static_cast<std::size_t>(threads * own_size) * sizeof(T));
    parallel_for(s.N * spans * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const buffers = memory.as<T>() + thread * own_size;
        Band<T> band{buffers + most_blocks * buffer, band_cols(s), s.C};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, span = unit / groups % spans, n = unit / groups / spans;
            const int64_t first_block = packed.blocks * group / groups;
            const int64_t end_block = packed.blocks * (group + 1) / groups;
            int64_t kept_from = 0, kept_to = 0;  // the convolution's rows that the buffers hold
            const int64_t span_end = pool.OH * (span + 1) / spans;
            for (int64_t row = pool.OH * span / spans; row < span_end; row += step) {
                const int64_t row_end = smaller(row + step, span_end);
                const int64_t from = larger(0, row * pool.SH - pool.PH);
                const int64_t to = smaller(s.OH, (row_end - 1) * pool.SH - pool.PH + pool.KH);
                const int64_t kept = larger(0, kept_to - from), fresh = from + kept;
                Block<T> block{};
                if (fresh < to) block = input_block(s, x, band, n, fresh, to);
                for (int64_t k = first_block; k < end_block; ++k) {
                    T* const rows = buffers + (k - first_block) * buffer;
                    if (kept > 0)
                        __builtin_memmove(rows, rows + (from - kept_from) * pitch,
                                          static_cast<std::size_t>(kept * pitch) * sizeof(T));
                    if (fresh < to) {
                        T* const acc = rows + kept * pitch;
                        T block_bias[kWidth<T>];
                        bias_of_block(s, bias, k, block_bias);
                        convolve_block(block, packed.block(k, thread), block_bias, acc);
                        rectify_all(acc, (to - fresh) * pitch);
                        round_all(acc, (to - fresh) * pitch, rounding);
                    }
                    const int64_t outputs = smaller(kWidth<T>, s.K - k * kWidth<T>);
                    for (int64_t r = row; r < row_end; ++r) {
                        const int64_t at = (n * pool.OH + r) * pool.OW * s.K + k * kWidth<T>;
                        pool_row(pool, r, rows, from, pitch, kWidth<T>, outputs, y + at, switches + at);
                    }
                }
                kept_from = from, kept_to = to;
            }
        }
    });
}

// The same by Winograd's kernel; false, and y is of no use, where a result is not finite. A unit of work is (image,
// span of pooled rows, group of channel blocks), or several whole images instead of one where an image has few tiles. A
// step makes as many rows of tiles as fill the kernel, and pools what has become complete.
template <typename T>
bool conv2d_relu_max_pool2d_winograd(const Conv& s, const Pool& pool, const T* x, const T* w, const T* bias, T* y,
                                     uint8_t* switches, Rounding rounding, int threads) {
    const Grid grid = forward_grid(s);
    const int64_t side = grid.side(), image_rows = grid.tile_rows(), unit_rows = Winograd<T>::rows_of_unit(grid);
    const int64_t images = larger(1, smaller(s.N, unit_rows / image_rows)), sets = ceil_div(s.N, images);
    const int64_t step = smaller(unit_rows, image_rows), rows = images * step;
    const Table table = winograd_table<T>(s);
    const int64_t size = grid.taps * grid.taps * grid.depth() * kWidth<T>;
    const auto pack_block = pack_filters(table, size, w, s.K, s.wk);
    const bool used_once = sets == 1 && step == image_rows;
    const Packed<T, decltype(pack_block)> packed(ceil_div(s.K, kWidth<T>), size, pack_block, used_once, threads);
    const int64_t groups = groups_for(packed.blocks, sets, threads);
    const int64_t wanted_spans = ceil_div(threads, larger(sets * groups, 1));
    const int64_t spans = step == image_rows ? 1 : smaller(pool.OH, wanted_spans);
    const int64_t pitch = s.OW * kWidth<T>, buffer = round_up((pool.KH + step * side) * pitch, 16);
    const int64_t buffers = larger(images, step == image_rows ? 1 : ceil_div(packed.blocks, groups));
    const int64_t own = Winograd<T>::elements(grid, rows), all = own + buffers * buffer;
    const Scratch memory(static_cast<std::size_t>(threads * all) * sizeof(T));
    bool finite = true;
    parallel_for(sets * spans * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const mine = memory.as<T>() + thread * all;
        Winograd<T> winograd(grid, rows, mine);
        bool all_finite = true;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, span = unit / groups % spans, set = unit / groups / spans;
            const int64_t first_image = s.N * set / sets, end_image = s.N * (set + 1) / sets;
            const int64_t first_block = packed.blocks * group / groups;
            const int64_t end_block = packed.blocks * (group + 1) / groups;
            const int64_t span_end = pool.OH * (span + 1) / spans;
            int64_t row = pool.OH * span / spans;               // the next to pool
            int64_t base = larger(0, row * pool.SH - pool.PH);  // the convolution's row that the buffers begin with
            int64_t made = base = base / side * side;           // and the one that they end before
            while (row < span_end) {
                const int64_t needed = smaller(s.OH, (span_end - 1) * pool.SH - pool.PH + pool.KH);
                const int64_t keep = larger(base, row * pool.SH - pool.PH), kept = larger(0, made - keep);
                const int64_t from = kept ? made : keep / side * side, new_base = from - kept;
                const int64_t tile_end = smaller(from / side + step, ceil_div(needed, side));
                const int64_t to = smaller(tile_end * side, s.OH);
                winograd.take(first_image * image_rows + from / side, (end_image - 1) * image_rows + tile_end,
                              [&](int64_t n, int64_t h, int64_t left, int64_t cols, T* into) {
                                  copy_row(into, x + n * s.H * s.W * s.C, h, s.H, s.W, s.C, left, cols, false);
                              });
                int64_t row_end = row;  // the first whose window is not complete
                while (row_end < span_end && smaller(s.OH, row_end * pool.SH - pool.PH + pool.KH) <= to) ++row_end;
                for (int64_t k = first_block; k < end_block; ++k) {
                    T* const rows_of = mine + own + (images > 1 || step == image_rows ? 0 : k - first_block) * buffer;
                    if (kept)
                        __builtin_memmove(rows_of, rows_of + (new_base - base) * pitch,
                                          static_cast<std::size_t>(kept * pitch) * sizeof(T));
                    T block_bias[kWidth<T>];
                    bias_of_block(s, bias, k, block_bias);
                    const auto pixel = [&](int64_t n, int64_t r, int64_t col, const T* values) {
                        copy(rows_of + (n - first_image) * buffer + (r - new_base) * pitch + col * kWidth<T>, values,
                             kWidth<T>);
                    };
                    all_finite &= winograd.products(packed.block(k, thread), block_bias, true, pixel);
                    const int64_t outputs = smaller(kWidth<T>, s.K - k * kWidth<T>);
                    for (int64_t n = first_image; n < end_image; ++n) {
                        T* const map = rows_of + (n - first_image) * buffer;
                        round_all(map + kept * pitch, (to - from) * pitch, rounding);
                        for (int64_t r = row; r < row_end; ++r) {
                            const int64_t at = (n * pool.OH + r) * pool.OW * s.K + k * kWidth<T>;
                            pool_row(pool, r, map, new_base, pitch, kWidth<T>, outputs, y + at, switches + at);
                        }
                    }
                }
                row = row_end, base = new_base, made = to;
            }
        }
        if (!all_finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
}

template <typename T>
void conv2d_relu_max_pool2d(const Conv& s, const Pool& pool, const T* x, const T* w, const T* bias, T* y,
                            uint8_t* switches, Rounding rounding, int threads) {
    if (forward_winograd<T>(s) && conv2d_relu_max_pool2d_winograd(s, pool, x, w, bias, y, switches, rounding, threads))
        return;
    conv2d_relu_max_pool2d_direct(s, pool, x, w, bias, y, switches, rounding, threads);
}

// The weight gradient of a group of images, repacked so that what a tile reads is dense:
//   g as [image][block of kWidth maps][OH][OW][kWidth], with zeros for absent maps;
//   x, padded, as [image][slice of kSlice channels][Hp][Wp][slice], where the taps of a kernel row are one run again.
// Sums lie as [slice][block][KH][KW * kSlice][kWidth]: 9 KiB of a slice and block for 3x3 at AVX2.
template <typename T>
struct WeightGrad {
    static constexpr int64_t kSlice = 12;             // two tiles of 6
    static constexpr int64_t kGroupBytes = 16 << 20;  // of repacked images: half of a desktop's L3

    const Conv& s;
    int64_t blocks, slices, Hp, Wp, g_image, x_image, group, row_sums, block_sums;
    Scratch memory;
    T *g_packed, *x_packed, *sums, *bias_sums;

    explicit WeightGrad(const Conv& conv)
        : s(conv),
          blocks(ceil_div(s.K, kWidth<T>)),
          slices(ceil_div(s.C, kSlice)),
          Hp((s.OH - 1) * s.SH + s.KH),
          Wp((s.OW - 1) * s.SW + s.KW),
          g_image(blocks * s.OH * s.OW * kWidth<T>),
          x_image(round_up(Hp * Wp * s.C, 16)),
          group(larger(1, smaller(s.N, kGroupBytes / ((g_image + x_image) * static_cast<int64_t>(sizeof(T)))))),
          row_sums(s.KW * kSlice * kWidth<T>),
          block_sums(s.KH * row_sums),
          memory(static_cast<std::size_t>(group * (g_image + x_image) + blocks * (slices * block_sums + kWidth<T>)) *
                 sizeof(T)) {
        g_packed = memory.template as<T>();
        x_packed = g_packed + group * g_image;
        sums = x_packed + group * x_image;
        bias_sums = sums + slices * blocks * block_sums;
        zero(sums, blocks * (slices * block_sums + kWidth<T>));
    }

    int64_t slice_width(int64_t slice) const { return smaller(kSlice, s.C - slice * kSlice); }

    // Row `row` of padded image n of x, to the group's image i.
    void repack_x(const T* x, int64_t n, int64_t i, int64_t row) const {
        const int64_t h = row - s.PH;
        for (int64_t slice = 0; slice < slices; ++slice) {
            const int64_t from = slice * kSlice, width = slice_width(slice);
            T* to = x_packed + i * x_image + Hp * Wp * from + row * Wp * width;
            const T* at = x + ((n * s.H + h) * s.W - s.PW) * s.C + from;
            for (int64_t c = 0; c < Wp; ++c, to += width) {
                const bool inside = h >= 0 && h < s.H && c >= s.PW && c - s.PW < s.W;
                for (int64_t k = 0; k < width; ++k) to[k] = inside ? at[c * s.C + k] : 0;
            }
        }
    }

    // Row `oh` of image n of g, to the group's image i.
    void repack_g(const T* g, int64_t n, int64_t i, int64_t oh) const {
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t maps = smaller(kWidth<T>, s.K - b * kWidth<T>);
            T* to = g_packed + i * g_image + (b * s.OH + oh) * s.OW * kWidth<T>;
            const T* from = g + (n * s.OH + oh) * s.OW * s.K + b * kWidth<T>;
            for (int64_t c = 0; c < s.OW; ++c, to += kWidth<T>, from += s.K) {
                copy(to, from, maps);
                zero(to + maps, kWidth<T> - maps);
            }
        }
    }

    // Adds what output rows [from, to) of the group's image i give to tap row `tap` of one slice and block.
    void add_tap_row(int64_t slice, int64_t b, int64_t i, int64_t from, int64_t to, int64_t tap) const {
        alignas(64) T partial[kPixels * kWidth<T>];
        const int64_t width = slice_width(slice), run = s.KW * width, tiles = ceil_div(run, kPixels);
        const T* gradients = g_packed + i * g_image + (b * s.OH + from) * s.OW * kWidth<T>;
        const T* row = x_packed + i * x_image + Hp * Wp * slice * kSlice + (from * s.SH + tap) * Wp * width;
        T* const total = sums + (slice * blocks + b) * block_sums + tap * row_sums;
        const Walk walk{to - from, s.OW, s.SH * Wp * width, s.SW * width};
        for (int64_t tile_at = 0; tile_at < tiles; ++tile_at) {
            const int64_t e = run * tile_at / tiles, count = run * (tile_at + 1) / tiles - e;
            const T* at[kPixels];
            for (int64_t q = 0; q < count; ++q) at[q] = row + e + q;
            // Summed apart and added: sums of blocks lose less to rounding than one long sum.
            tile(count, at, walk, gradients, kZeros<T>, partial);
            for (int64_t q = 0; q < count * kWidth<T>; ++q) total[e * kWidth<T> + q] += partial[q];
        }
    }

    // Adds the gradients of output rows [from, to) of the group's image i to one block's bias.
    void add_bias(int64_t b, int64_t i, int64_t from, int64_t to) const {
        const T* gradients = g_packed + i * g_image + (b * s.OH + from) * s.OW * kWidth<T>;
        T partial[kWidth<T>] = {};
        for (int64_t q = 0; q < (to - from) * s.OW; ++q)
            for (int64_t k = 0; k < kWidth<T>; ++k) partial[k] += gradients[q * kWidth<T> + k];
        for (int64_t k = 0; k < kWidth<T>; ++k) bias_sums[b * kWidth<T> + k] += partial[k];
    }
};

// gw[k][c][i][j] = sum over n, oh, ow of g[n][oh][ow][k] * x[n][oh*SH - PH + i][ow*SW - PW + j][c]; gb[k], where it is
// not null, = sum of g. A unit of work is (slice, block, range of tap rows): it passes over the group's images in bands
// of rows whose gradients stay in L1. Nobody else adds to its sums, so that threads change no bit.
template <typename T>
void conv2d_weight_grad(const Conv& s, const T* x, const T* g, T* gw, T* gb, int threads) {
    const WeightGrad<T> grad(s);
    const int64_t cuts = smaller(s.KH, ceil_div(4 * threads, grad.slices * grad.blocks));  // of the tap rows
    const int64_t rows = rows_of_block(s.OW, s.OH), bands = ceil_div(s.OH, rows);
    for (int64_t first = 0; first < s.N; first += grad.group) {
        const int64_t count = smaller(grad.group, s.N - first), image_rows = grad.Hp + s.OH;
        parallel_for(count * image_rows, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t i = unit / image_rows, row = unit % image_rows;
                if (row < grad.Hp)
                    grad.repack_x(x, first + i, i, row);
                else
                    grad.repack_g(g, first + i, i, row - grad.Hp);
            }
        });
        parallel_for(grad.slices * grad.blocks * cuts, threads, [&](int64_t begin, int64_t end, int) {
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t cut = unit % cuts, b = unit / cuts % grad.blocks, slice = unit / cuts / grad.blocks;
                for (int64_t i = 0; i < count; ++i)
                    for (int64_t band = 0; band < bands; ++band) {
                        const int64_t from = s.OH * band / bands, to = s.OH * (band + 1) / bands;
                        for (int64_t tap = s.KH * cut / cuts; tap < s.KH * (cut + 1) / cuts; ++tap)
                            grad.add_tap_row(slice, b, i, from, to, tap);
                        if (gb && slice == 0 && cut == 0) grad.add_bias(b, i, from, to);
                    }
            }
        });
    }
    const Table table(s.C, s.wc, s.KH, s.wi, s.KW, s.wj, [&](int64_t c, int64_t i, int64_t j) {
        const int64_t slice = c / grad.kSlice;
        return slice * grad.blocks * grad.block_sums + i * grad.row_sums +
               (j * grad.slice_width(slice) + c % grad.kSlice) * kWidth<T>;
    });
    parallel_for(grad.blocks, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t from = b * kWidth<T>, outputs = smaller(kWidth<T>, s.K - from);
            unpack(table, grad.sums + b * grad.block_sums, gw + from * s.wk, outputs, s.wk);
            if (gb) copy(gb + from, grad.bias_sums + from, outputs);
        }
    });
}

}  // namespace

template <typename T>
void add_conv(KernelsOf<T>& kernels) {
    kernels.conv2d = conv2d<T>;
    kernels.conv2d_weight_grad = conv2d_weight_grad<T>;
    kernels.conv2d_relu_max_pool2d = conv2d_relu_max_pool2d<T>;
}
template void add_conv(KernelsOf<float>&);
template void add_conv(KernelsOf<double>&);

}  // namespace ZF_ISA
}  // namespace zf
