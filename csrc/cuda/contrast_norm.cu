// Cross-map contrast normalization, forward and backward, alone or in one pass with the pooling before it. A pixel's C
// maps are one contiguous stack.
//
//     W(c)   = {c - size/2, ..., c - size/2 + size - 1}, cut to the maps that exist
//     d_c    = x_c; if centred, the mean of x_c - x_j over W(c), exactly 0 where all are equal
//     s_c    = k + alpha/size * sum over j in W(c) of d_j^2
//     y_c    = d_c s_c^-beta
//     t_c    = g_c d_c s_c^(-beta-1)
//     gd_j   = g_j s_j^-beta - 2 alpha beta/size d_j * sum over {c: j in W(c)}, the mirrored window, of t_c
//     gx_j   = gd_j; if centred, gd_j - sum over {c: j in W(c)} of gd_c / |W(c)|
//
// Two ways:
//   vectors   size 5, not centred, 16-byte vectors: a thread computes a vector of maps from its own vector and the two
//             beside it, which L1 holds because neighbouring threads own them. No shared memory, no barrier.
//   stacks    everything else: a block keeps pieces of stacks, float32, in shared memory, and sums each window anew.
#include "cuda/launch.h"
#include "cuda/pack.cuh"
#include "cuda/pool_window.h"
#include "cuda/window_max.cuh"

namespace zf::cuda {
namespace {

constexpr int kThreads = 256;

// s^-beta and 1/s. The usual beta needs only roots.
struct Power {
    float minus_beta;
    bool three_quarters;

    explicit Power(const Norm& s) : minus_beta(static_cast<float>(-s.beta)), three_quarters(s.beta == 0.75) {}
    __device__ __forceinline__ float operator()(float s) const {
        if (!three_quarters) return powf(s, minus_beta);
        const float root = rsqrtf(s);
        return root * ptx::sqrt_approx(root);
    }
};

// Sums over windows of 5 maps within three vectors in a row: the thread's own and its neighbours'.
constexpr int kSize = 5, kReach = kSize / 2;

struct Factors {
    Power power;
    float k, alpha, backward;  // alpha / size; 2 alpha beta / size

    explicit Factors(const Norm& s)
        : power(s),
          k(static_cast<float>(s.k)),
          alpha(static_cast<float>(s.alpha / static_cast<double>(s.size))),
          backward(static_cast<float>(2 * s.alpha * s.beta / static_cast<double>(s.size))) {}
};

// The vector at `c` of a stack and kSide elements on both sides of it, zeros beyond the stack's ends; kSide <= V.
template <typename T, int kSide>
struct Around {
    static constexpr int V = kVector<T>;
    float values[V + 2 * kSide];  // map c - kSide + i

    // load(c) gives the pack at c, which lies in the stack.
    template <typename Load>
    __device__ __forceinline__ Around(int c, int C, const Load& load) {
        const auto own = load(c);
        const auto before = c > 0 ? load(c - V) : Pack<T, V>::zero();
        const auto after = c + V < C ? load(c + V) : Pack<T, V>::zero();
#pragma unroll
        for (int i = 0; i < V; ++i) values[kSide + i] = own[i];
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
            values[i] = before[V - kSide + i];
            values[kSide + V + i] = after[i];
        }
    }
};

template <typename T>
__device__ __forceinline__ Pack<T, kVector<T>> normalized(const Around<T, kReach>& x, const Factors& f) {
    constexpr int V = kVector<T>;
    float y[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kSize; ++j) sum += x.values[i + j] * x.values[i + j];
        y[i] = x.values[i + kReach] * f.power(f.k + f.alpha * sum);
    }
    return Pack<T, V>::rounded(y);
}

// A thread: vector `index` of all pixels' stacks, laid end to end.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    contrast_norm_vectors_kernel(int64_t vectors, int C, Factors f, const T* __restrict__ x, T* __restrict__ y) {
    constexpr int V = kVector<T>;
    const unsigned per_stack = static_cast<unsigned>(C / V);
    // The block's first vector in 64 bits; the rest of the arithmetic in 32.
    const int64_t first = int64_t{blockIdx.x} * kThreads;
    const unsigned place = static_cast<unsigned>(first % per_stack) + threadIdx.x;
    const int c = static_cast<int>(place % per_stack) * V;
    const int64_t index = first + threadIdx.x;
    if (index >= vectors) return;
    const T* const stack = x + index * V - c;
    const Around<T, kReach> around(c, C, [&](int at) { return Pack<T, V>::load(stack + at); });
    normalized<T>(around, f).store(y + index * V);
}

// As above. t is needed two maps beyond the vector, and x two beyond that.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    contrast_norm_backward_vectors_kernel(int64_t vectors, int C, Factors f, const T* __restrict__ g,
                                          const T* __restrict__ x, T* __restrict__ gx) {
    constexpr int V = kVector<T>;
    const unsigned per_stack = static_cast<unsigned>(C / V);
    const int64_t first = int64_t{blockIdx.x} * kThreads;
    const unsigned place = static_cast<unsigned>(first % per_stack) + threadIdx.x;
    const int c = static_cast<int>(place % per_stack) * V;
    const int64_t index = first + threadIdx.x;
    if (index >= vectors) return;
    const int64_t stack = index * V - c;
    const Around<T, 2 * kReach> xs(c, C, [&](int at) { return Pack<T, V>::load(x + stack + at); });
    const Around<T, kReach> gs(c, C, [&](int at) { return Pack<T, V>::load(g + stack + at); });
    float t[V + 2 * kReach], direct[V];  // t of map c - kReach + i; g s^-beta of map c + i
#pragma unroll
    for (int i = 0; i < V + 2 * kReach; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kSize; ++j) sum += xs.values[i + j] * xs.values[i + j];
        const float s = f.k + f.alpha * sum, scaled = gs.values[i] * f.power(s);
        // Beyond the stack x and g are 0, and so is t.
        t[i] = __fdividef(scaled * xs.values[i + kReach], s);
        if (i >= kReach && i < V + kReach) direct[i - kReach] = scaled;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kSize; ++j) sum += t[i + j];
        direct[i] -= f.backward * xs.values[i + 2 * kReach] * sum;
    }
    Pack<T, V>::rounded(direct).store(gx + index * V);
}

// Pooling and normalization in one pass: a thread pools a vector of maps (window_max), shows the rounded result to its
// neighbours in shared memory, and normalizes it. A block has the whole stacks of `pixels` pixels of a row.
template <typename T, int kWindow>
__global__ void __launch_bounds__(kThreads, 2)
    max_pool2d_contrast_norm_kernel(PoolWindow s, int pixels, int blocks_a_row, Factors f, const T* __restrict__ x,
                                    T* __restrict__ y, uint8_t* __restrict__ switches, T* __restrict__ z) {
    constexpr int V = kVector<T>;
    T* const shown = ptx::shared_memory<T>();
    const int per_stack = s.C / V;
    const int row = static_cast<int>(blockIdx.x) / blocks_a_row;
    const int local = static_cast<int>(threadIdx.x) / per_stack;
    const int ow = (static_cast<int>(blockIdx.x) - row * blocks_a_row) * pixels + local;
    const int c = (static_cast<int>(threadIdx.x) - local * per_stack) * V;
    const bool works = local < pixels && ow < s.OW;
    const int64_t at = (int64_t{row} * s.OW + ow) * s.C + c;
    if (works) {
        const int n = row / s.OH;
        const auto best = window_max<T, V, kWindow>(s, x + int64_t{n} * s.H * s.W * s.C + c, row - n * s.OH, ow);
        const auto value = best.values();
        value.store(shown + local * s.C + c);
        value.store(y + at);
        places(best).store(switches + at);
    }
    __syncthreads();
    if (!works) return;
    const T* const stack = shown + local * s.C;
    const Around<T, kReach> around(c, s.C, [&](int from) { return Pack<T, V>::load(stack + from); });
    normalized<T>(around, f).store(z + at);
}

// A block of the stacks kernel computes the piece [begin, end) of a stack; what it needs beyond that is cut to the
// stack. Windows reach `before` maps down and `after` up.
struct Pieces {
    int C, before, after, length, count;  // maps; the windows' reach; maps a piece; pieces a stack
    int64_t pixels;
    int pixels_a_block, width;  // width: floats of shared memory for one row of a piece
};

// out[i] of map c = begin - lower + i, for the maps [begin - lower, end + upper) that exist.
template <typename Value>
__device__ __forceinline__ void fill(const Pieces& p, int begin, int end, int lower, int upper, int pixels, float* rows,
                                     int origin, const Value& value) {
    const int from = max(0, begin - lower), to = min(p.C, end + upper), maps = to - from;
    for (int i = static_cast<int>(threadIdx.x); i < maps * pixels; i += static_cast<int>(blockDim.x)) {
        const int pixel = i / maps, c = from + i - pixel * maps;
        rows[pixel * p.width + c - origin] = value(pixel, c);
    }
    __syncthreads();
}

// A block: pixels_a_block pixels' pieces. Rows of shared memory, each pixels_a_block * width: x, if centred d, backward
// also t, and if centred gd. A row's element for map c of a pixel lies at pixel * width + c - origin.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kThreads, 2)
    contrast_norm_stacks_kernel(Pieces p, Factors f, bool center, const T* __restrict__ g, const T* __restrict__ x,
                                T* __restrict__ out) {
    const int reach = p.before + p.after;
    const int piece = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.count));
    const int64_t first = int64_t{blockIdx.x / static_cast<unsigned>(p.count)} * p.pixels_a_block;
    const int pixels = static_cast<int>(min(int64_t{p.pixels_a_block}, p.pixels - first));
    const int begin = piece * p.length, end = min(p.C, begin + p.length);
    // The reach beyond the piece in which each row is needed: d as far as s needs it, s as t does, t as gd does.
    const int of_gd = kBackward && center ? reach : 0, of_t = kBackward ? of_gd + reach : 0, of_d = of_t + reach;
    const int of_x = of_d + (center ? reach : 0), origin = max(0, begin - of_x);
    const int row = p.pixels_a_block * p.width;
    float* const xs = ptx::shared_memory<float>();
    float* const ds = center ? xs + row : xs;
    float* const ts = ds + row;
    float* const gds = ts + row;
    const auto at = [&](const float* rows, int pixel, int c) { return rows[pixel * p.width + c - origin]; };
    const auto element = [&](int pixel, int c) { return (first + pixel) * p.C + c; };
    const auto lowest = [&](int c) { return max(0, c - p.before); };
    const auto highest = [&](int c) { return min(p.C - 1, c + p.after); };
    const auto scale = [&](int pixel, int c) {
        float sum = 0.0f;
        for (int j = lowest(c); j <= highest(c); ++j) sum += at(ds, pixel, j) * at(ds, pixel, j);
        return f.k + f.alpha * sum;
    };
    // The sum of a row over {c : j in W(c)}, the mirrored window.
    const auto mirrored = [&](const float* rows, int pixel, int j) {
        float sum = 0.0f;
        for (int c = max(0, j - p.after); c <= min(p.C - 1, j + p.before); ++c) sum += at(rows, pixel, c);
        return sum;
    };

    fill(p, begin, end, of_x, of_x, pixels, xs, origin,
         [&](int pixel, int c) { return to_float(x[element(pixel, c)]); });
    if (center)
        fill(p, begin, end, of_d, of_d, pixels, ds, origin, [&](int pixel, int c) {
            float sum = 0.0f;
            for (int j = lowest(c); j <= highest(c); ++j) sum += at(xs, pixel, c) - at(xs, pixel, j);
            return sum / static_cast<float>(highest(c) - lowest(c) + 1);
        });
    const int maps = end - begin;
    if constexpr (kBackward) {
        fill(p, begin, end, of_t, of_t, pixels, ts, origin, [&](int pixel, int c) {
            const float s = scale(pixel, c);
            return to_float(g[element(pixel, c)]) * at(ds, pixel, c) * f.power(s) / s;
        });
        const auto of_difference = [&](int pixel, int j) {
            return to_float(g[element(pixel, j)]) * f.power(scale(pixel, j)) -
                   f.backward * at(ds, pixel, j) * mirrored(ts, pixel, j);
        };
        if (center)
            // The sum to come divides each gd by the size of its own window.
            fill(p, begin, end, of_gd, of_gd, pixels, gds, origin, [&](int pixel, int c) {
                return of_difference(pixel, c) / static_cast<float>(highest(c) - lowest(c) + 1);
            });
        for (int i = static_cast<int>(threadIdx.x); i < maps * pixels; i += static_cast<int>(blockDim.x)) {
            const int pixel = i / maps, c = begin + i - pixel * maps;
            const float difference = of_difference(pixel, c);
            out[element(pixel, c)] = rounded<T>(center ? difference - mirrored(gds, pixel, c) : difference);
        }
    } else {
        for (int i = static_cast<int>(threadIdx.x); i < maps * pixels; i += static_cast<int>(blockDim.x)) {
            const int pixel = i / maps, c = begin + i - pixel * maps;
            out[element(pixel, c)] = rounded<T>(at(ds, pixel, c) * f.power(scale(pixel, c)));
        }
    }
}

// Whether the vectors kernels can serve.
template <typename T, typename... Maps>
bool vectors_fit(const Norm& s, Maps... maps) {
    return s.size == kSize && !s.center && s.C % kVector<T> == 0 && s.C <= INT32_MAX / 2 && aligned(16, maps...);
}

template <typename T>
Grid grid_of_vectors(const char* name, const Norm& s) {
    const int64_t blocks = ceil_div(s.P * (s.C / kVector<T>), kThreads);
    if (blocks > INT32_MAX)
        throw std::runtime_error(std::string("the grid of CUDA kernel ") + name + " is too small for " + describe(s));
    return {name, dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
}

// Queues the stacks kernel: pieces as long as the shared memory allows, several short stacks to a block.
template <typename T, bool kBackward>
void queue_stacks(const Call& call, const Norm& s, const T* g, const T* x, T* out) {
    constexpr int64_t kFloats = kMostShared / 4, kPlaces = 4 * kThreads;
    const char* const name = kBackward ? "contrast_norm_backward" : "contrast_norm";
    const int64_t before = smaller(s.size / 2, s.C), after = smaller(s.size - 1 - s.size / 2, s.C);
    const int64_t rows = (kBackward ? 2 : 1) + (s.center ? (kBackward ? 2 : 1) : 0);
    const int64_t side = (before + after) * ((kBackward ? 2 : 1) + (s.center ? (kBackward ? 2 : 1) : 0));
    const int64_t room = kFloats / rows;
    int64_t width = s.C, length = s.C;
    if (width > room) width = room, length = room - 2 * side;
    if (length < 1 || s.C > INT32_MAX / 2)
        throw std::runtime_error("CUDA kernel " + std::string(name) + " has no room in shared memory for " +
                                 describe(s) + ": at most " + std::to_string(room) +
                                 " maps, or windows much smaller than that");
    const int64_t count = ceil_div(s.C, length);
    const int64_t pixels = larger(1, smaller(s.P, smaller(kPlaces / width, kFloats / (rows * width))));
    const int64_t blocks = ceil_div(s.P, pixels) * count;
    if (blocks > INT32_MAX)
        throw std::runtime_error(std::string("the grid of CUDA kernel ") + name + " is too small for " + describe(s));
    const Pieces p{static_cast<int>(s.C),    static_cast<int>(before), static_cast<int>(after),
                   static_cast<int>(length), static_cast<int>(count),  s.P,
                   static_cast<int>(pixels), static_cast<int>(width)};
    const Grid grid{name, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                    static_cast<std::size_t>(rows * pixels * width) * sizeof(float)};
    launch(call, s, grid, contrast_norm_stacks_kernel<T, kBackward>, p, Factors(s), s.center, g, x, out);
}

}  // namespace

void contrast_norm(const Call& call, const Norm& s, const void* x, void* y) {
    if (s.P == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        const auto* const from = static_cast<const T*>(x);
        if (!vectors_fit<T>(s, x, y)) return queue_stacks<T, false>(call, s, nullptr, from, static_cast<T*>(y));
        launch(call, s, grid_of_vectors<T>("contrast_norm", s), contrast_norm_vectors_kernel<T>,
               s.P * (s.C / kVector<T>), static_cast<int>(s.C), Factors(s), from, static_cast<T*>(y));
    });
}

void contrast_norm_backward(const Call& call, const Norm& s, const void* g, const void* x, void* gx) {
    if (s.P == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        const auto* const gs = static_cast<const T*>(g);
        const auto* const xs = static_cast<const T*>(x);
        if (!vectors_fit<T>(s, g, x, gx)) return queue_stacks<T, true>(call, s, gs, xs, static_cast<T*>(gx));
        launch(call, s, grid_of_vectors<T>("contrast_norm_backward", s), contrast_norm_backward_vectors_kernel<T>,
               s.P * (s.C / kVector<T>), static_cast<int>(s.C), Factors(s), gs, xs, static_cast<T*>(gx));
    });
}

void max_pool2d_contrast_norm(const Call& call, const Pool& s, const Norm& norm, const void* x, void* y,
                              uint8_t* switches, void* normalized) {
    if (s.N == 0) return;
    with_type(call.dtype, [&](auto type) {
        using T = decltype(type);
        constexpr int V = kVector<T>;
        const int64_t per_stack = s.C / V;
        if (!vectors_fit<T>(norm, x, y, normalized) || !aligned(V, switches) || per_stack > kThreads) {
            max_pool2d(call, s, x, y, switches);
            contrast_norm(call, norm, y, normalized);
            return;
        }
        const int64_t pixels = smaller(s.OW, kThreads / per_stack);
        const int threads = static_cast<int>(round_up(pixels * per_stack, 32));
        const PoolWindow window(s);
        const int64_t blocks_a_row = ceil_div(s.OW, pixels), blocks = blocks_a_row * window.N * window.OH;
        if (blocks > INT32_MAX)
            throw std::runtime_error("the grid of CUDA kernel max_pool2d_contrast_norm is too small for " +
                                     describe(s));
        const Grid grid{"max_pool2d_contrast_norm", dim3(static_cast<unsigned>(blocks)),
                        dim3(static_cast<unsigned>(threads)), static_cast<std::size_t>(pixels * s.C) * sizeof(T)};
        launch(call, s, grid,
               s.KH == 3 && s.KW == 3 ? max_pool2d_contrast_norm_kernel<T, 3> : max_pool2d_contrast_norm_kernel<T, 0>,
               window, static_cast<int>(pixels), static_cast<int>(blocks_a_row), Factors(norm),
               static_cast<const T*>(x), static_cast<T*>(y), switches, static_cast<T*>(normalized));
    });
}

}  // namespace zf::cuda
