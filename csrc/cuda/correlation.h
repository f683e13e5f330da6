// A convolution, or its adjoint, as a set of plain correlations: the one form in which conv.cu computes both.
//
//     out[n][i][j][k] = sum over kh, kw, c of w'[k][kh][kw][c] * source[n][h + kh][w + kw][c],
//     h = i*step_h + from_h, w = j*step_w + from_w
//
// A convolution is one such correlation. The adjoint of a convolution of stride (SH, SW) is SH * SW of them, one for
// each residue class of (h + PH, w + PW) modulo the stride: each over the taps of its class alone, in reverse order
// (which flips the filters), so that nothing is multiplied by an inserted zero (window.h).
//
// Packed filters: for every output channel k of a class, its taps are taps_h runs of (kw, c), each run contiguous and
// padded with zeros to a multiple of 16 bytes: [class][k][kh][run]. A run of the source (kw, c) is contiguous memory
// too. A source whose channels are no multiple of 4 is first copied into the workspace with zeros behind them, so that
// its pixels lie on 8 or 16 bytes and are copied to shared memory as such: images have 4 channels.
#pragma once
#include <cstdint>

#include "cuda/kernels.h"
#include "window.h"

namespace zf::cuda {

struct Correlation {
    int64_t N;
    int H, W, C;         // the source map
    int OH, OW, K;       // the result's
    int KH, KW, SH, SW;  // of the convolution, forward
    int PH, PW;
    bool transposed;
    int64_t w_out, w_in, w_h, w_w;  // strides, in elements, of the filters' K, C, KH and KW here
};

// One residue class; of a convolution, the only one.
struct ResidueClass {
    int rows, cols;   // of its result pixels in one image; 0 or less: none
    int taps_h, run;  // runs of a filter; elements of a run with its zeros
    int taps_w;
    int step_h, step_w;  // of the source a result pixel
    int from_h, from_w;  // source position of the first tap of the first result pixel
    int to_h, to_w;      // where the first result pixel lies
    int hop_h, hop_w;    // from one result pixel to the next
    int64_t packed;      // where its filters start, in elements
};

ZF_HOST_DEVICE static inline int classes_of(const Correlation& p) { return p.transposed ? p.SH * p.SW : 1; }

// The length of a run of `taps` taps, in elements, a 16-byte chunk having `chunk` of them.
ZF_HOST_DEVICE static inline int run_of(const Correlation& p, int taps, int chunk) {
    return static_cast<int>(round_up(static_cast<int64_t>(taps) * p.C, chunk));
}

ZF_HOST_DEVICE static inline ResidueClass class_of(const Correlation& p, int index, int chunk) {
    ResidueClass r;
    if (!p.transposed) {
        return {p.OH, p.OW, p.KH, run_of(p, p.KW, chunk), p.KW, p.SH, p.SW, -p.PH, -p.PW, 0, 0, 1, 1, 0};
    }
    const int rh = index / p.SW, rw = index % p.SW;
    // Result row i = q*SH + rh - PH takes tap rh + j*SH from source row q - j.
    const int first_h = static_cast<int>(ceil_div(p.PH - rh, p.SH)),
              first_w = static_cast<int>(ceil_div(p.PW - rw, p.SW));
    r.rows = static_cast<int>(floor_div(p.OH - 1 + p.PH - rh, p.SH)) - first_h + 1;
    r.cols = static_cast<int>(floor_div(p.OW - 1 + p.PW - rw, p.SW)) - first_w + 1;
    r.taps_h = static_cast<int>(taps_of_residue(p.KH, p.SH, rh));
    r.taps_w = static_cast<int>(taps_of_residue(p.KW, p.SW, rw));
    r.run = run_of(p, r.taps_w, chunk);
    r.step_h = r.step_w = 1;
    r.from_h = first_h - r.taps_h + 1;
    r.from_w = first_w - r.taps_w + 1;
    r.to_h = first_h * p.SH + rh - p.PH;
    r.to_w = first_w * p.SW + rw - p.PW;
    r.hop_h = p.SH;
    r.hop_w = p.SW;
    // Residues below KW % SW have one tap more than the others, so the sums over earlier classes have closed forms.
    const int more_h = p.KH % p.SH, more_w = p.KW % p.SW;
    const int64_t long_run = run_of(p, p.KW / p.SW + 1, chunk), short_run = run_of(p, p.KW / p.SW, chunk);
    const int64_t rows_before = static_cast<int64_t>(rh) * (p.KH / p.SH) + smaller(rh, more_h);
    const int64_t runs_before = smaller(rw, more_w) * long_run + larger(0, rw - more_w) * short_run;
    const int64_t all_runs = more_w * long_run + (p.SW - more_w) * short_run;
    r.packed = p.K * (rows_before * all_runs + r.taps_h * runs_before);
    return r;
}

// Elements of the packed filters.
static inline int64_t packed_filters(const Correlation& p, int chunk) {
    const ResidueClass last = class_of(p, classes_of(p) - 1, chunk);
    return last.packed + static_cast<int64_t>(p.K) * last.taps_h * last.run;
}

// conv.cu: result = the correlation of source, rectified first if `rectify`, with the filters, plus bias (unless null),
// rectified if `relu`. `sizes` is for messages. The source begins at a multiple of 16 bytes. The workspace holds the
// packed filters, and the padded source.
void correlate(const Call&, const Conv& sizes, const Correlation&, const char* name, const void* source, const void* w,
               const void* bias, void* result, bool relu, bool rectify, void* workspace);
int64_t correlate_workspace(const Call&, const Correlation&);

// conv.cu: `runs` runs of `length` elements one behind the other, copied to where they lie `pitch` apart, a multiple of
// 4 elements, with zeros between them.
void pad_runs(const Call&, const Conv& sizes, const void* from, int64_t runs, int length, int pitch, void* to);

// Bytes of the convolution's map (N, OH, OW, K), rounded up to what a workspace is aligned to.
static inline int64_t map_bytes(const Call& call, const Conv& p) {
    return round_up(p.N * p.K * p.OH * p.OW * (call.dtype == kFloat32 ? 4 : 2), 256);
}

// The convolution as kernels.h describes it, and its adjoint.
Correlation forward_of(const Conv&);
Correlation adjoint_of(const Conv&);

}  // namespace zf::cuda
