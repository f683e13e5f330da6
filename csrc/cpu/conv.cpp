// Convolution with bias and ReLU, and the same followed by max-pooling.
#include "conv_block.h"
#include "max_pool_row.h"
#include "table.h"
#include "winograd_rows.h"

namespace zf {
namespace ZF_ISA {
namespace {

// The bias of one block of output channels, zeros where there is none.
template <typename T>
void bias_of_block(const Conv& s, const T* bias, int64_t block, T (&values)[kWidth<T>]) {
    for (int64_t o = 0; o < kWidth<T>; ++o) {
        const int64_t k = block * kWidth<T> + o;
        values[o] = bias && k < s.K ? bias[k] : 0;
    }
}

// The rows of a convolution, a band of them at a time, block by block of output channels, by direct summation; made
// like WinogradRows.
template <typename T>
class DirectRows {
   public:
    static constexpr int64_t kBandPixels = kBlockPixels;

    DirectRows(const Conv& s, int64_t rows, T* memory)
        : s_(s), acc_(memory), band_{memory + rows * s.OW * kWidth<T>, band_cols(s), s.C} {}

    static int64_t elements(const Conv& s, int64_t rows) {
        return round_up(rows * s.OW * kWidth<T> + ((rows - 1) * s.SH + s.KH) * band_cols(s) * s.C, 16);
    }

    static int64_t block_size(const Conv& s) { return s.KH * s.KW * s.C * kWidth<T>; }

    static Table table(const Conv& s) {
        return Table(s.C, s.wc, s.KH, s.wi, s.KW, s.wj,
                     [&](int64_t c, int64_t i, int64_t j) { return ((i * s.KW + j) * s.C + c) * kWidth<T>; });
    }

    static auto packer(const Conv& s, const Table& table, const T* w) {
        return pack_filters(table, block_size(s), w, s.K, s.wk);
    }

    // Where no window needs padding the map itself is read, else the thread's band, which is filled here.
    void take(const T* x, int64_t n, int64_t from, int64_t to) {
        const Conv& s = s_;
        const T* image = x + n * s.H * s.W * s.C;
        const int64_t rows = to - from, run = s.KW * s.C;
        if (s.PH == 0 && s.PW == 0) {
            const int64_t pitch = s.W * s.C;
            block_ = {image + from * s.SH * pitch, s.SH * pitch, s.SW * s.C, rows, s.OW, pitch, s.KH, run};
            return;
        }
        band_.require(n, from * s.SH - s.PH, (to - 1) * s.SH - s.PH + s.KH, [&](int64_t, int64_t h, T* row) {
            copy_row(row, image, h, s.H, s.W, s.C, -s.PW, band_.cols, false);
        });
        block_ = {band_.data, s.SH * band_.pitch(), s.SW * s.C, rows, s.OW, band_.pitch(), s.KH, run};
    }

    bool make(const T* filters, const T* bias, bool relu, T* out, int64_t step, int64_t outputs) {
        T* const acc = step == kWidth<T> ? out : acc_;
        convolve_block(block_, filters, bias, acc, [=](int64_t begin, int64_t end) {
            T* const made = acc + begin * kWidth<T>;
            if (relu) rectify_all(made, (end - begin) * kWidth<T>);
            if (acc != out) copy_pixels(out + begin * step, step, made, end - begin, outputs);
        });
        return true;
    }

   private:
    static int64_t band_cols(const Conv& s) { return (s.OW - 1) * s.SW + s.KW; }

    const Conv& s_;
    T* const acc_;
    Band<T> band_;
    Block<T> block_{};
};

// y[n][oh][ow][k] = max(0, bias[k] + sum_{i,j,c} x[n][oh*SH - PH + i][ow*SW - PW + j][c] * w[k][c][i][j]), rectified if
// asked; false, and y is of no use, where Rows met a result that is not finite. A unit of work is (image, band of
// output rows, group of channel blocks); its thread takes the band's input once and passes every block of the group
// over it.
template <typename Rows, typename T>
bool conv2d_by_rows(const Conv& s, const T* x, const T* w, const T* bias, T* y, bool relu, int threads) {
    const int64_t rows = rows_of_block(s.OW, s.OH, Rows::kBandPixels), bands = ceil_div(s.OH, rows);
    const Table table = Rows::table(s);
    const auto pack_block = Rows::packer(s, table, w);
    const int64_t blocks = ceil_div(s.K, kWidth<T>);
    const Packed<T, decltype(pack_block)> packed(blocks, Rows::block_size(s), pack_block, s.N * bands == 1, threads);
    const int64_t groups = groups_for(packed.blocks, s.N * bands, threads);
    const int64_t own = Rows::elements(s, rows);
    const Scratch memory(static_cast<std::size_t>(threads * own) * sizeof(T));
    bool finite = true;
    parallel_for(s.N * bands * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        Rows band(s, rows, memory.as<T>() + thread * own);
        bool all_finite = true;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t group = unit % groups, b = unit / groups % bands, n = unit / groups / bands;
            const int64_t from = s.OH * b / bands, to = s.OH * (b + 1) / bands;
            band.take(x, n, from, to);
            for (int64_t k = packed.blocks * group / groups; k < packed.blocks * (group + 1) / groups; ++k) {
                T block_bias[kWidth<T>];
                bias_of_block(s, bias, k, block_bias);
                T* const out = y + (n * s.OH + from) * s.OW * s.K + k * kWidth<T>;
                const int64_t outputs = smaller(kWidth<T>, s.K - k * kWidth<T>);
                all_finite &= band.make(packed.block(k, thread), block_bias, relu, out, s.K, outputs);
            }
        }
        if (!all_finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
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
    if constexpr (kWinograd<T>) {
        const Kernel kernel = forward_kernel<T>(s);
        if (kernel == Kernel::kTiles && conv2d_winograd(s, x, w, bias, y, relu, threads)) return;
        if (kernel == Kernel::kRows && conv2d_by_rows<WinogradRows<T>>(s, x, w, bias, y, relu, threads)) return;
    }
    conv2d_by_rows<DirectRows<T>>(s, x, w, bias, y, relu, threads);
}

// conv2d (rectified) and max_pool2d without the map between them. A unit of work is (image, span of pooled rows, group
// of channel blocks). It walks down its span: each step makes the convolution's rows that the next pooled rows need and
// nobody has made yet, into a buffer a block that keeps the overlap, and pools them. Only a span's first step makes
// rows that another unit makes too. False, and y is of no use, where Rows met a result that is not finite.
template <typename Rows, typename T>
bool conv2d_relu_max_pool2d_by_rows(const Conv& s, const Pool& pool, const T* x, const T* w, const T* bias, T* y,
                                    uint8_t* switches, Rounding rounding, int threads) {
    const Table table = Rows::table(s);
    const auto pack_block = Rows::packer(s, table, w);
    const int64_t blocks = ceil_div(s.K, kWidth<T>);
    const Packed<T, decltype(pack_block)> packed(blocks, Rows::block_size(s), pack_block, false, threads);
    const int64_t groups = groups_for(packed.blocks, s.N, threads);
    const int64_t spans = smaller(pool.OH, ceil_div(threads, larger(s.N * groups, 1)));
    const int64_t step = smaller(pool.OH, larger(1, Rows::kBandPixels / (s.OW * pool.SH)));  // pooled rows at a time
    const int64_t most_rows = smaller(s.OH, (step - 1) * pool.SH + pool.KH);
    const int64_t most_blocks = ceil_div(packed.blocks, groups);
    const int64_t pitch = s.OW * kWidth<T>, buffer = round_up(most_rows * pitch, 16);
    const int64_t own_size = most_blocks * buffer + Rows::elements(s, most_rows);
    const Scratch memory(static_cast<std::size_t>(threads * own_size) * sizeof(T));
    bool finite = true;
    parallel_for(s.N * spans * groups, threads, [&](int64_t begin, int64_t end, int thread) {
        T* const buffers = memory.as<T>() + thread * own_size;
        Rows band(s, most_rows, buffers + most_blocks * buffer);
        bool all_finite = true;
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
                if (fresh < to) band.take(x, n, fresh, to);
                for (int64_t k = first_block; k < end_block; ++k) {
                    T* const rows = buffers + (k - first_block) * buffer;
                    if (kept > 0)
                        __builtin_memmove(rows, rows + (from - kept_from) * pitch,
                                          static_cast<std::size_t>(kept * pitch) * sizeof(T));
                    if (fresh < to) {
                        T* const acc = rows + kept * pitch;
                        T block_bias[kWidth<T>];
                        bias_of_block(s, bias, k, block_bias);
                        all_finite &= band.make(packed.block(k, thread), block_bias, true, acc, kWidth<T>, kWidth<T>);
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
        if (!all_finite) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
    return finite;
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
    if constexpr (kWinograd<T>) {
        const Kernel kernel = forward_kernel<T>(s);
        if (kernel == Kernel::kTiles &&
            conv2d_relu_max_pool2d_winograd(s, pool, x, w, bias, y, switches, rounding, threads))
            return;
        if (kernel == Kernel::kRows &&
            conv2d_relu_max_pool2d_by_rows<WinogradRows<T>>(s, pool, x, w, bias, y, switches, rounding, threads))
            return;
    }
    conv2d_relu_max_pool2d_by_rows<DirectRows<T>>(s, pool, x, w, bias, y, switches, rounding, threads);
}

}  // namespace

template <typename T>
void add_conv(KernelsOf<T>& kernels) {
    kernels.conv2d = conv2d<T>;
    kernels.conv2d_relu_max_pool2d = conv2d_relu_max_pool2d<T>;
}
template void add_conv(KernelsOf<float>&);
template void add_conv(KernelsOf<double>&);

}  // namespace ZF_ISA
}  // namespace zf
