// Fully-connected layers for a few images:
//
//   y[n][o] = bias[o] + sum over i of x[n][i] * w[o][i]        x (N, I), w (O, I), y (N, O), rows dense
//
// A unit of work is kRows rows of w, which meet kImages images at a time: kRows x kImages vectors of sums. One image
// takes as long as reading the weights from memory (31 GB/s on two cores; one row at a time 21), eight 1.6 times that.
// Each sum is made by the same instructions in the same order, whatever the batch and the threads.
#include "../window.h"
#include "simd.h"
#include "table.h"
#include "threads.h"

namespace zf::ZF_ISA {
namespace {

// 12 sums, three images' vectors and one of weights fill the 16 registers of AVX2.
constexpr int kRows = 4, kImages = 3;

// Rows [o, o + kRowCount) for images [n, n + kImageCount).
template <typename T, int kRowCount, int kImageCount>
void dot(Index<kRowCount>, Index<kImageCount>, const Linear& s, int64_t n, int64_t o, const T* x, const T* w,
         const T* bias, T* y) {
    constexpr int64_t kLanes = Lanes<T>::count;
    const T *const image = x + n * s.I, *const row = w + o * s.I;
    Vec<T> sum[kRowCount * kImageCount];
    repeat<kRowCount * kImageCount>([&](auto at) { sum[at.at] = Vec<T>{}; });
    int64_t i = 0;
    for (; i + kLanes <= s.I; i += kLanes) {
        Vec<T> v[kImageCount], weights;
        repeat<kImageCount>([&](auto m) { v[m.at] = load<Vec<T>>(image + m.at * s.I + i); });
        repeat<kRowCount * kImageCount>([&](auto at) {
            if constexpr (at.at % kImageCount == 0) weights = load<Vec<T>>(row + at.at / kImageCount * s.I + i);
            add_product<T>(sum[at.at], v[at.at % kImageCount], weights);
        });
    }
    T sums[kRowCount * kImageCount][kLanes];
    repeat<kRowCount * kImageCount>([&](auto at) { store(sums[at.at], sum[at.at]); });
    for (int64_t r = 0; r < kRowCount; ++r)
        for (int64_t m = 0; m < kImageCount; ++m) {
            T total = 0;
            for (int64_t lane = 0; lane < kLanes; ++lane) total += sums[r * kImageCount + m][lane];
            for (int64_t j = i; j < s.I; ++j) total += image[m * s.I + j] * row[r * s.I + j];
            y[(n + m) * s.O + o + r] = bias ? total + bias[o + r] : total;
        }
}

template <typename T>
void linear(const Linear& s, const T* x, const T* w, const T* bias, T* y, int threads) {
    parallel_for(ceil_div(s.O, kRows), threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t o = begin * kRows; o < smaller(end * kRows, s.O); o += kRows)
            for (int64_t n = 0; n < s.N; n += kImages)
                with_count<kRows>(smaller(kRows, s.O - o), [&](auto rows) {
                    with_count<kImages>(smaller(kImages, s.N - n),
                                        [&](auto images) { dot(rows, images, s, n, o, x, w, bias, y); });
                });
    });
}

}  // namespace

ZF_ADD(linear, table.linear = linear<T>)

}  // namespace zf::ZF_ISA
