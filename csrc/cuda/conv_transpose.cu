// conv_transpose2d: the correlations of the residue classes (correlation.h), all in one launch of conv.cu's kernel.
//
// Rectification happens to fragments in registers, between ldmatrix and mma.sync: no pass over the map, and one
// instruction for 2 elements where 32 products follow. A block belongs to one class; the longest classes have the
// lowest indices, so they start first and the short ones fill the tail.
#include "cuda/correlation.h"

namespace zf::cuda {

void conv_transpose2d(const Call& call, const Conv& p, const void* y, const void* w, void* x, bool rectify,
                      void* workspace) {
    correlate(call, p, adjoint_of(p), "conv_transpose2d", y, w, nullptr, x, false, rectify, workspace);
}

int64_t conv_transpose2d_workspace(const Call& call, const Conv& p) { return correlate_workspace(call, adjoint_of(p)); }

}  // namespace zf::cuda
