// Cross-map contrast normalization. A pixel's C maps are one contiguous row; a unit of work is one pixel.
//
// W(c) = {c - size/2, ..., c - size/2 + size - 1}, cut to the maps that exist. d = x, or x - mean of x over W(c) where
// centred; s_c = k + alpha/size * sum_{j in W(c)} d_j^2; y_c = d_c * s_c^-beta.
// Backward: gd_j = g_j s_j^-beta - 2 alpha beta/size d_j sum_{c: j in W(c)} g_c d_c s_c^(-beta-1), where c runs over
// the mirrored window; centred, gx_j = gd_j - sum_{c: j in W(c)} gd_c / |W(c)|.
//
// Rows that a window slides over are copied between zeros, so that no loop over maps has a condition and all are
// vectorized; the one for beta = 0.75 by hand, with estimates of roots.
#include "../window.h"
#include "simd.h"
#include "table.h"
#include "units.h"

namespace zf::ZF_ISA {
namespace {

ZF_INLINE float root(float v) { return __builtin_sqrtf(v); }
ZF_INLINE double root(double v) { return __builtin_sqrt(v); }
ZF_INLINE float power(float v, float e) { return __builtin_powf(v, e); }
ZF_INLINE double power(double v, double e) { return __builtin_pow(v, e); }

// p[c] = s[c]^-beta. The usual betas need only roots, which vectorize and are right to an ulp or two; pow does not.
template <typename T>
void negative_power(const T* s, T* p, int64_t count, double beta) {
    const auto each = [&](const auto& f) {
        for (int64_t c = 0; c < count; ++c) p[c] = f(s[c]);
    };
    if (beta == 0.75) return each([](T v) { return 1 / (root(v) * root(root(v))); });
    if (beta == 0.5) return each([](T v) { return 1 / root(v); });
    if (beta == 1) return each([](T v) { return 1 / v; });
    each([=](T v) { return power(v, static_cast<T>(-beta)); });
}

// The maps [c - before, c + after]. A side longer than C covers no more maps than C does.
struct Window {
    int64_t before, after;
    explicit Window(const Norm& s) : before(smaller(s.size / 2, s.C)), after(smaller(s.size - 1 - s.size / 2, s.C)) {}
    Window(int64_t b, int64_t a) : before(b), after(a) {}
    Window mirrored() const { return {after, before}; }
};

// out[c] = sum of in over the window; `in` has zeros on both sides.
template <typename T>
void window_sums(const T* in, T* out, int64_t count, Window window) {
    in -= window.before;
    const int64_t size = window.before + 1 + window.after;
    if (size == 5) {
        for (int64_t c = 0; c < count; ++c) out[c] = in[c] + in[c + 1] + in[c + 2] + in[c + 3] + in[c + 4];
        return;
    }
    for (int64_t c = 0; c < count; ++c) out[c] = in[c];
    for (int64_t j = 1; j < size; ++j)
        for (int64_t c = 0; c < count; ++c) out[c] += in[c + j];
}

// One thread's rows of C maps: `slid` lies between zeros.
template <typename T>
struct Rows {
    const Norm& s;
    T* const memory;  // elements(s) elements
    const int64_t p = pitch(s);
    T *const slid = memory + side(s), *const centred = slid + p + side(s), *const power = centred + p;
    T *const sums = power + p, *const scale = sums + p, *const share = scale + p;  // share: 1 / |W(c)|

    static int64_t pitch(const Norm& s) { return round_up(s.C, 16); }
    static int64_t side(const Norm& s) { return round_up(larger(Window(s).before, Window(s).after), 16); }
    static int64_t elements(const Norm& s) { return 6 * pitch(s) + 2 * side(s); }
    Rows(const Norm& norm, T* of) : s(norm), memory(of) {
        zero(memory, elements(s));
        const Window w(s);
        for (int64_t c = 0; c < s.C; ++c)
            share[c] = 1 / static_cast<T>(smaller(s.C - 1, c + w.after) - larger(0, c - w.before) + 1);
    }

    // d, the row that is normalized: x, or `centred`, the mean of x_c - x_j, which is exactly 0 where all are equal.
    const T* normalized(const T* x) {
        if (!s.center) return x;
        const Window w(s);
        for (int64_t c = 0; c < s.C; ++c) centred[c] = 0;
        for (int64_t j = -w.before; j <= w.after; ++j)
            for (int64_t c = larger(0, -j); c < smaller(s.C, s.C - j); ++c) centred[c] += x[c] - x[c + j];
        for (int64_t c = 0; c < s.C; ++c) centred[c] *= share[c];
        return centred;
    }

    // scale = s_c, power = s_c^-beta.
    void denominators(const T* d) {
        T *const to_scale = scale, *const to_power = power;
        if (quick_denominators(d, [=](int64_t c, Vec<T> value, Vec<T> powered) {
                store(to_scale + c, value);
                store(to_power + c, powered);
            }))
            return;
        window_sums(slid, sums, s.C, Window(s));
        const T k = static_cast<T>(s.k), factor = static_cast<T>(s.alpha / static_cast<double>(s.size));
        for (int64_t c = 0; c < s.C; ++c) scale[c] = k + factor * sums[c];
        negative_power(scale, power, s.C, s.beta);
    }

    // Whether estimates of roots serve: for the usual size and beta.
    static bool quick(const Norm& s) {
        return kQuickRoots && sizeof(T) == sizeof(float) && s.size == 5 && s.beta == 0.75;
    }

    // slid = d^2, and each(c, s_c, s_c^-beta) for whole vectors, the last perhaps past C. False where estimates do not
    // serve, or an s_c is too large or too small for them.
    template <typename Each>
    bool quick_denominators(const T* d, const Each& each) {
        const int64_t channels = s.C;  // as a local: a store may change what a reference names
        for (int64_t c = 0; c < channels; ++c) slid[c] = d[c] * d[c];
        if constexpr (sizeof(T) == sizeof(float) && kQuickRoots) {
            if (!quick(s)) return false;
            constexpr int kLanes = Lanes<T>::count;
            const T k = static_cast<T>(s.k), factor = static_cast<T>(s.alpha / static_cast<double>(s.size));
            const T* const from = slid - Window(s).before;
            Mask<T> good = ~Mask<T>{};
            for (int64_t c = 0; c < channels; c += kLanes) {
                Vec<T> sum = load<Vec<T>>(from + c);
                repeat<4>([&](auto j) { sum += load<Vec<T>>(from + c + j.at + 1); });
                const Vec<T> value = k + factor * sum, half = inverse_root(value);
                good &= (value > T(1e-30)) & (value < T(1e30));
                each(c, value, half * inverse_root(value * half));
            }
            bool all = true;
            for (int i = 0; i < kLanes; ++i) all &= good[i] != 0;
            return all;
        }
        return false;
    }
};

template <typename T>
void contrast_norm(const Norm& s, const T* x, T* y, int threads) {
    const PerThread<T> memory{threads, Rows<T>::elements(s)};
    const bool whole = Rows<T>::quick(s) && s.C % Lanes<T>::count == 0;
    parallel_for(s.P, threads, [&](int64_t begin, int64_t end, int thread) {
        Rows<T> rows(s, memory.of(thread));
        for (int64_t p = begin; p < end; ++p) {
            const T* const d = rows.normalized(x + p * s.C);
            T* const out = y + p * s.C;
            if (whole && rows.quick_denominators(d, [=](int64_t c, Vec<T>, Vec<T> powered) {
                    store(out + c, load<Vec<T>>(d + c) * powered);
                }))
                continue;
            rows.denominators(d);
            for (int64_t c = 0; c < s.C; ++c) out[c] = d[c] * rows.power[c];
        }
    });
}

template <typename T>
void contrast_norm_backward(const Norm& s, const T* g, const T* x, T* gx, int threads) {
    const PerThread<T> memory{threads, Rows<T>::elements(s)};
    const Window mirrored = Window(s).mirrored();
    const T factor = static_cast<T>(2 * s.alpha * s.beta / static_cast<double>(s.size));
    parallel_for(s.P, threads, [&](int64_t begin, int64_t end, int thread) {
        Rows<T> rows(s, memory.of(thread));
        for (int64_t p = begin; p < end; ++p) {
            const T* d = rows.normalized(x + p * s.C);
            rows.denominators(d);
            const T* const from = g + p * s.C;
            T* const out = gx + p * s.C;
            for (int64_t c = 0; c < s.C; ++c) rows.slid[c] = from[c] * d[c] * rows.power[c] / rows.scale[c];
            window_sums(rows.slid, rows.sums, s.C, mirrored);
            for (int64_t c = 0; c < s.C; ++c) out[c] = from[c] * rows.power[c] - factor * d[c] * rows.sums[c];
            if (!s.center) continue;
            for (int64_t c = 0; c < s.C; ++c) rows.slid[c] = out[c] * rows.share[c];
            window_sums(rows.slid, rows.sums, s.C, mirrored);
            for (int64_t c = 0; c < s.C; ++c) out[c] -= rows.sums[c];
        }
    });
}

}  // namespace

ZF_ADD(contrast_norm, table.contrast_norm = contrast_norm<T>; table.contrast_norm_backward = contrast_norm_backward<T>)

}  // namespace zf::ZF_ISA
