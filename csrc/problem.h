// What a kernel is asked to compute, the same for cpu/ and cuda/. Sizes are in elements.
#pragma once
#include <cstdint>

namespace zf {

// A convolution from (N, C, H, W) to (N, K, OH, OW); w[k][c][i][j] lies at k*wk + c*wc + i*wi + j*wj.
struct Conv {
    int64_t N, C, H, W, K, OH, OW;
    int64_t KH, KW, SH, SW, PH, PW;
    int64_t wk, wc, wi, wj;
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
