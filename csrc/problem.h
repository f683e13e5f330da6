// What a kernel is asked to compute, the same for cpu/ and cuda/. Sizes are in elements.
#pragma once
#include <cstdint>

namespace zf {

// A convolution from (N, C, H, W) to (N, K, OH, OW); w[k][c][i][j] lies at k*wk + c*wc + i*wi + j*wj, c < C / G. Map k
// sums the channels of its own of G groups alone. Taps are DH rows and DW columns apart.
struct Conv {
    int64_t N, C, H, W, K, OH, OW;
    int64_t KH, KW, SH, SW, PH, PW;
    int64_t wk, wc, wi, wj;
    int64_t DH = 1, DW = 1, G = 1;
    int64_t XP = C,
            YP = K;  // elements from one pixel of x, of y to the next: more than C and K in one of several groups

    // The rows and columns that a window spans.
    int64_t span_h() const { return (KH - 1) * DH + 1; }
    int64_t span_w() const { return (KW - 1) * DW + 1; }
    bool dilated() const { return DH != 1 || DW != 1; }
    // One of its groups, whose tensors begin group * K (or C) of these channels further on.
    Conv group() const {
        Conv one = *this;
        one.C = C / G, one.K = K / G, one.G = 1;
        return one;
    }
};

// A pooling from (N, C, H, W) to (N, C, OH, OW). Windows may overhang the map; no window lies wholly outside it.
struct Pool {
    int64_t N, C, H, W, OH, OW;
    int64_t KH, KW, SH, SW, PH, PW;
};

// Cross-map normalization of P pixels of C maps.
struct Norm {
    int64_t P, C, size;
    double alpha, beta, k;
    bool center;
};

// A fully-connected layer from (N, I) to (N, O).
struct Linear {
    int64_t N, I, O;
};

}  // namespace zf
