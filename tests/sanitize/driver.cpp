// Runs every kernel of every instruction set that this CPU has, on awkward and on random shapes, in a program built
// with the sanitizers (run.py builds it). It also checks that each output is written in full, that no input changes,
// and that a wrong switch is found and not followed, and that the shapes made every kernel of choose.h run.
//
//     driver SEED CASES      the checks; exit code 0 when all hold
//     driver inject FAULT    commits the fault, which must end the program: read, read-guard, write, scratch, overflow,
//                            race
//
// Arrays are allocated in three ways in turn: on the heap, where AddressSanitizer watches both ends; ending at a page
// without access; and beginning after one. The pages also catch what inline assembly reads, which no sanitizer sees.
// Scratch memory (operator new with an alignment) ends at such a page too, and is filled with NaN, so that a value that
// is read before it was written reaches an output.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/calls.h"
#include "cpu/chain.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/threads.h"
#include "window.h"

namespace {

using Random = std::mt19937_64;

std::string now;  // what is running, for messages

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "FAILED: %s: %s\n", now.c_str(), what.c_str());
    std::exit(1);
}

int64_t among(Random& random, int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// Pages whose last, or first, cannot be accessed.
struct Guarded {
    char* pages;
    size_t size;
    char* begin;  // of the accessible part

    Guarded(size_t bytes, bool guard_last) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        size = (bytes + page - 1) / page * page + page;
        void* const mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) fail("mmap");
        pages = static_cast<char*>(mapped);
        char* const guard = guard_last ? pages + size - page : pages;
        if (mprotect(guard, page, PROT_NONE) != 0) fail("mprotect");
        begin = guard_last ? guard - bytes : guard + page;
    }
};

enum class Place { kHeap, kBeforeGuard, kAfterGuard };

// An array of exactly `count` elements whose neighbours may not be touched.
template <typename T>
class Array {
   public:
    Array(int64_t count, Place place) : count_(count), place_(place) {
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        if (place == Place::kHeap) {
            data_ = static_cast<T*>(std::malloc(bytes ? bytes : 1));
            return;
        }
        const Guarded memory(bytes, place == Place::kBeforeGuard);
        pages_ = memory.pages, size_ = memory.size;
        data_ = reinterpret_cast<T*>(memory.begin);
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    ~Array() {
        if (place_ == Place::kHeap)
            std::free(data_);
        else
            munmap(pages_, size_);
    }

    T* data() const { return data_; }
    int64_t count() const { return count_; }

    // An input: random values, remembered.
    Array& random(Random& random) {
        std::normal_distribution<double> normal;
        for (int64_t i = 0; i < count_; ++i) data_[i] = static_cast<T>(normal(random));
        return remember();
    }
    Array& remember() {
        before_.assign(data_, data_ + count_);
        return *this;
    }
    void expect_unchanged() const {
        if (count_ && std::memcmp(before_.data(), data_, before_.size() * sizeof(T)) != 0) fail("an input was changed");
    }

    // An output: NaN, or 255, which every kernel must overwrite.
    Array& unwritten() {
        for (int64_t i = 0; i < count_; ++i)
            data_[i] = std::is_floating_point_v<T> ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(255);
        return *this;
    }
    void expect_written() const {
        for (int64_t i = 0; i < count_; ++i)
            if (std::is_floating_point_v<T> ? !std::isfinite(static_cast<double>(data_[i])) : data_[i] == T(255))
                fail("element " + std::to_string(i) + " of " + std::to_string(count_) + " was not written");
    }

   private:
    int64_t count_;
    Place place_;
    T* data_ = nullptr;
    char* pages_ = nullptr;
    size_t size_ = 0;
    std::vector<T> before_;
};

zf::Conv conv_of(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t KH, int64_t KW, int64_t SH, int64_t SW,
                 int64_t PH, int64_t PW, bool weights_channels_last) {
    zf::Conv s{
        N,  C,           H,       W,  K, (H + 2 * PH - KH) / SH + 1, (W + 2 * PW - KW) / SW + 1, KH, KW, SH, SW, PH,
        PW, C * KH * KW, KH * KW, KW, 1};
    if (weights_channels_last) s.wc = 1, s.wj = C, s.wi = KW * C;
    return s;
}

// The same in groups and dilated.
zf::Conv grouped(zf::Conv s, int64_t groups, int64_t DH, int64_t DW) {
    const int64_t depth = s.C / groups;
    s.DH = DH, s.DW = DW, s.G = groups;
    s.OH = (s.H + 2 * s.PH - s.span_h()) / s.SH + 1, s.OW = (s.W + 2 * s.PW - s.span_w()) / s.SW + 1;
    s.wk = depth * s.KH * s.KW;
    if (s.wc == 1) s.wj = depth, s.wi = s.KW * depth;
    return s;
}

// torch's rule for ceil mode: the last window starts inside the map or the padding before it.
int64_t pooled(int64_t H, int64_t K, int64_t S, int64_t P, bool ceil) {
    const int64_t out = (H + 2 * P - K + (ceil ? S - 1 : 0)) / S + 1;
    return ceil && (out - 1) * S >= H + P ? out - 1 : out;
}

zf::Pool pool_of(int64_t N, int64_t C, int64_t H, int64_t W, int64_t KH, int64_t KW, int64_t SH, int64_t SW, int64_t PH,
                 int64_t PW, bool ceil) {
    return {N, C, H, W, pooled(H, KH, SH, PH, ceil), pooled(W, KW, SW, PW, ceil), KH, KW, SH, SW, PH, PW};
}

std::string text(const zf::Conv& s) {
    std::string out = "conv";
    for (int64_t v : {s.N,  s.C,  s.H,  s.W,  s.K,  s.OH, s.OW, s.KH, s.KW, s.SH,
                      s.SW, s.PH, s.PW, s.wk, s.wc, s.wi, s.wj, s.DH, s.DW, s.G})
        out += " " + std::to_string(v);
    return out;
}

std::string text(const zf::Pool& s) {
    std::string out = "pool";
    for (int64_t v : {s.N, s.C, s.H, s.W, s.OH, s.OW, s.KH, s.KW, s.SH, s.SW, s.PH, s.PW})
        out += " " + std::to_string(v);
    return out;
}

// The first switch that points outside its window or the map, -1 when none does.
int64_t first_wrong(const zf::Pool& s, const uint8_t* switches) {
    for (int64_t i = 0; i < s.N * s.OH * s.OW * s.C; ++i) {
        const int64_t ow = i / s.C % s.OW, oh = i / s.C / s.OW % s.OH;
        const int64_t h = oh * s.SH - s.PH + switches[i] / s.KW, w = ow * s.SW - s.PW + switches[i] % s.KW;
        if (switches[i] >= s.KH * s.KW || h < 0 || h >= s.H || w < 0 || w >= s.W) return i;
    }
    return -1;
}

// What a kernel returned must be the first switch that is wrong.
void expect_wrong(int64_t index, const zf::Pool& s, const uint8_t* switches) {
    if (index != first_wrong(s, switches)) fail("found the wrong switch at " + std::to_string(index));
}

// One instruction set and element type.
template <typename T>
class Checks {
   public:
    Checks(const zf::KernelsOf<T>& kernels, std::string name, Random& random)
        : k_(kernels), name_(std::move(name)), random_(random) {}

    void conv(const zf::Conv& s) {
        begin("conv2d", text(s));
        Array<T> x(s.N * s.H * s.W * s.C, place()), w(s.K * s.C / s.G * s.KH * s.KW, place()), b(s.K, place());
        Array<T> y(s.N * s.OH * s.OW * s.K, place()), add(y.count(), place());
        Array<T> packed(k_.pack_filters(s, w.data(), nullptr, 1), place());
        x.random(random_), w.random(random_), b.random(random_), add.random(random_);
        y.unwritten(), packed.unwritten();
        const zf::Epilogue<T> end{coin() ? b.data() : nullptr, coin() ? add.data() : nullptr, coin(), T(2)};
        k_.conv2d(s, x.data(), w.data(), nullptr, end, y.data(), threads());
        y.expect_written();
        now += " with packed filters";
        k_.pack_filters(s, w.data(), packed.data(), threads());
        packed.expect_written();
        Array<T> again(y.count(), place());
        again.unwritten();
        k_.conv2d(s, x.data(), w.data(), packed.data(), end, again.data(), threads());
        if (y.count() && std::memcmp(y.data(), again.data(), y.count() * sizeof(T)) != 0) fail("other results");

        now += ", pixels further apart";
        zf::Conv apart = s;
        apart.XP += 3, apart.YP += 2;
        const int64_t pixels = s.N * s.H * s.W, made = s.N * s.OH * s.OW;
        Array<T> spread(pixels ? (pixels - 1) * apart.XP + s.C : 0, place());
        Array<T> results(made ? (made - 1) * apart.YP + s.K : 0, place());
        results.unwritten(), spread.unwritten();
        for (int64_t p = 0; p < pixels; ++p) std::copy_n(x.data() + p * s.C, s.C, spread.data() + p * apart.XP);
        const zf::Epilogue<T> plain{end.bias, nullptr, end.relu, end.cap};
        k_.conv2d(s, x.data(), w.data(), packed.data(), plain, again.data(), threads());
        k_.conv2d(apart, spread.data(), w.data(), packed.data(), plain, results.data(), threads());
        for (int64_t e = 0; e < results.count(); ++e) {
            const int64_t p = e / apart.YP, k = e % apart.YP;
            const bool right =
                k < s.K ? results.data()[e] == again.data()[p * s.K + k] : results.data()[e] != results.data()[e];
            if (!right) fail("element " + std::to_string(e) + " is wrong");
        }

        now += ", zeros on one side alone";
        zf::Conv uneven = s;
        uneven.OH += uneven.OH > 0, uneven.OW += uneven.OW > 0;
        Array<T> more(s.N * uneven.OH * uneven.OW * s.K, place());
        more.unwritten();
        k_.conv2d(uneven, x.data(), w.data(), nullptr, plain, more.data(), threads());
        more.expect_written();

        begin("conv_transpose2d", text(s));
        Array<T> g(y.count(), place()), back(x.count(), place()), again_back(x.count(), place());
        g.random(random_), back.unwritten();
        const bool rectify = coin();
        const int team = threads();
        k_.conv_transpose2d(s, g.data(), w.data(), nullptr, back.data(), rectify, team);
        back.expect_written();
        now += " with packed filters";
        const int64_t most = s.OH * s.OW * s.K / s.G;
        note(s, most, rectify);
        Array<T> kept(k_.pack_transposed(s, w.data(), most, rectify, nullptr, team).elements, place());
        kept.unwritten(), again_back.unwritten();  // what a panel has no filters for stays so, and is not read
        k_.pack_transposed(s, w.data(), most, rectify, kept.data(), team);
        k_.conv_transpose2d(s, g.data(), w.data(), kept.count() ? kept.data() : nullptr, again_back.data(), rectify,
                            team);
        if (back.count() && std::memcmp(back.data(), again_back.data(), back.count() * sizeof(T)) != 0)
            fail("other results");

        begin("conv2d_weight_grad", text(s));
        Array<T> gw(w.count(), place()), gb(s.K, place());
        const bool bias = coin();
        gw.unwritten(), gb.unwritten();
        k_.conv2d_weight_grad(s, x.data(), g.data(), gw.data(), bias ? gb.data() : nullptr, threads());
        gw.expect_written();
        if (bias) gb.expect_written();
        for (const Array<T>* input : {&x, &w, &b, &g, &add}) input->expect_unchanged();
    }

    // Three layers as a chain, by a team, against the same one by one.
    void chain(const zf::Conv& wide, const zf::Conv& deep, const zf::Conv& narrow) {
        begin("conv2d_chain", text(wide) + ", " + text(deep) + ", " + text(narrow));
        const zf::Conv sizes[] = {wide, deep, narrow};
        std::vector<std::unique_ptr<Array<T>>> filters, maps;
        std::vector<zf::Stage<T>> stages;
        maps.push_back(std::make_unique<Array<T>>(wide.N * wide.H * wide.W * wide.C, place()));
        maps[0]->random(random_);
        for (const zf::Conv& s : sizes) {
            filters.push_back(std::make_unique<Array<T>>(s.K * s.C / s.G * s.KH * s.KW, place()));
            filters.back()->random(random_);
            stages.push_back({s, filters.back()->data(), nullptr, nullptr, coin(), T(2)});
            maps.push_back(std::make_unique<Array<T>>(s.N * s.OH * s.OW * s.K, place()));
            const zf::Epilogue<T> end{nullptr, nullptr, stages.back().relu, stages.back().cap};
            k_.conv2d(s, maps.end()[-2]->data(), stages.back().w, nullptr, end, maps.back()->data(), 1);
        }
        Array<T> y(maps.back()->count(), place());
        zf::Calls calls;
        for (int i = 0; i < 2; ++i)
            calls.add([&](const zf::Calls::Bases& bases, int threads) {
                y.unwritten();
                zf::conv2d_chain<T>(k_, stages, reinterpret_cast<const T*>(zf::at(bases, {0, 0})), nullptr, y.data(),
                                    threads);
            });
        calls.run({reinterpret_cast<std::uintptr_t>(maps[0]->data())}, threads());
        if (y.count() && std::memcmp(y.data(), maps.back()->data(), y.count() * sizeof(T)) != 0) fail("other results");
        maps[0]->expect_unchanged();
    }

    void pool(const zf::Pool& s) {
        begin("max_pool2d", text(s));
        const int64_t large = s.N * s.H * s.W * s.C, small = s.N * s.OH * s.OW * s.C;
        Array<T> x(large, place()), y(small, place());
        Array<uint8_t> switches(small, place());
        x.random(random_), y.unwritten(), switches.unwritten();
        k_.max_pool2d(s, x.data(), y.data(), switches.data(), threads());
        y.expect_written();
        // In a window of 256 taps 255 is a switch.
        if (s.KH * s.KW < 256) switches.expect_written();
        if (first_wrong(s, switches.data()) >= 0) fail("a switch outside its window or the map");
        Array<T> maxima(small, place());
        maxima.unwritten();
        k_.max_pool2d(s, x.data(), maxima.data(), nullptr, threads());
        if (small && std::memcmp(y.data(), maxima.data(), small * sizeof(T)) != 0)
            fail("other maxima without switches");
        switches.remember(), y.remember();

        unpool(s, y, switches);
        begin("max_unpool2d_backward", text(s));
        Array<T> gy(small, place());
        gy.unwritten();
        if (k_.max_unpool2d_backward(s, x.data(), switches.data(), gy.data(), threads()) != -1) fail("refused");
        gy.expect_written();
        x.expect_unchanged(), switches.expect_unchanged();

        Array<uint8_t> wrong(small, place());
        for (int64_t i = 0; i < small; ++i) wrong.data()[i] = switches.data()[i];
        if (small) wrong.data()[among(random_, 0, small - 1)] = static_cast<uint8_t>(among(random_, 0, 255));
        wrong.remember();
        unpool(s, y, wrong);
        begin("max_unpool2d_backward", text(s) + " with a wrong switch");
        expect_wrong(k_.max_unpool2d_backward(s, x.data(), wrong.data(), gy.data(), threads()), s, wrong.data());
    }

    void average(const zf::Pool& s) {
        begin("avg_pool2d", text(s));
        Array<T> x(s.N * s.H * s.W * s.C, place()), y(s.N * s.OH * s.OW * s.C, place()), gx(x.count(), place());
        const bool padded = coin();
        x.random(random_), y.unwritten(), gx.unwritten();
        k_.avg_pool2d(s, x.data(), y.data(), padded, threads());
        y.expect_written(), y.remember();
        begin("avg_pool2d_backward", text(s));
        k_.avg_pool2d_backward(s, y.data(), gx.data(), padded, threads());
        gx.expect_written();
        x.expect_unchanged(), y.expect_unchanged();
    }

    void norm(const zf::Norm& s) {
        begin("contrast_norm",
              "norm " + std::to_string(s.P) + " " + std::to_string(s.C) + " " + std::to_string(s.size));
        Array<T> x(s.P * s.C, place()), g(x.count(), place()), y(x.count(), place()), gx(x.count(), place());
        x.random(random_), g.random(random_), y.unwritten(), gx.unwritten();
        k_.contrast_norm(s, x.data(), y.data(), threads());
        y.expect_written();
        k_.contrast_norm_backward(s, g.data(), x.data(), gx.data(), threads());
        gx.expect_written();
        x.expect_unchanged(), g.expect_unchanged();
    }

    void linear(const zf::Linear& s) {
        begin("linear", "linear " + std::to_string(s.N) + " " + std::to_string(s.I) + " " + std::to_string(s.O));
        Array<T> x(s.N * s.I, place()), w(s.O * s.I, place()), b(s.O, place()), y(s.N * s.O, place());
        x.random(random_), w.random(random_), b.random(random_), y.unwritten();
        k_.linear(s, x.data(), w.data(), coin() ? b.data() : nullptr, y.data(), threads());
        y.expect_written();
        x.expect_unchanged(), w.expect_unchanged(), b.expect_unchanged();
    }

    void layer(const zf::Conv& s, const zf::Pool& p) {
        begin("conv2d_relu_max_pool2d", text(s) + " " + text(p));
        Array<T> x(s.N * s.H * s.W * s.C, place()), w(s.K * s.C * s.KH * s.KW, place()), b(s.K, place());
        Array<T> y(p.N * p.OH * p.OW * p.C, place());
        Array<uint8_t> switches(y.count(), place());
        x.random(random_), w.random(random_), b.random(random_);
        y.unwritten(), switches.unwritten();
        const auto rounding = static_cast<zf::Rounding>(sizeof(T) == 4 ? among(random_, 0, 2) : 0);
        k_.conv2d_relu_max_pool2d(s, p, x.data(), w.data(), nullptr, coin() ? b.data() : nullptr, y.data(),
                                  switches.data(), rounding, threads());
        y.expect_written();
        if (first_wrong(p, switches.data()) >= 0) fail("a switch outside its window or the map");

        begin("max_unpool2d_relu_conv_transpose2d", text(s) + " " + text(p));
        Array<T> back(x.count(), place());
        back.unwritten(), y.remember(), switches.remember();
        const bool rectify = coin();
        const int team = threads();
        const int64_t most = std::min(s.OH * s.OW, p.OH * p.OW) * s.K;
        Array<T> kept(k_.pack_transposed(s, w.data(), most, rectify, nullptr, team).elements, place());
        kept.unwritten();
        k_.pack_transposed(s, w.data(), most, rectify, kept.data(), team);
        const T* const packed = coin() && kept.count() ? kept.data() : nullptr;
        const int64_t wrong = k_.max_unpool2d_relu_conv_transpose2d(s, p, y.data(), switches.data(), w.data(), packed,
                                                                    back.data(), rectify, rounding, team);
        if (wrong != -1) fail("refused good switches");
        back.expect_written();
        if (switches.count()) {
            switches.data()[among(random_, 0, switches.count() - 1)] = static_cast<uint8_t>(among(random_, 0, 255));
            switches.remember();
            expect_wrong(k_.max_unpool2d_relu_conv_transpose2d(s, p, y.data(), switches.data(), w.data(), nullptr,
                                                               back.data(), coin(), rounding, threads()),
                         p, switches.data());
        }
        for (const Array<T>* input : {&x, &w, &b, &y}) input->expect_unchanged();
        switches.expect_unchanged();
    }

    // Every kernel, whatever the random cases are.
    void each_kernel() {
        for (int64_t taps = 2; taps <= 5; ++taps) conv(conv_of(1, 5, 9, 8, 40, taps, taps, 1, 1, 1, 1, taps % 2));
        conv(conv_of(1, 96, 5, 6, 150, 3, 3, 1, 1, 1, 1, false));
        for (int64_t size : {4, 5})
            for (double beta : {0.75, 0.5, 1.0, 1.3}) norm({7, 37, size, 0.1, beta, 2.0, size == 4});
    }

    void expect_all_ran() const {
        using zf::Kernel;
        std::vector<std::vector<Kernel>> plain = {
            {Kernel::kDirect, Kernel::kDepthwise},
            {Kernel::kDirect, Kernel::kDepthwise, Kernel::kScatter, Kernel::kNonzeros, Kernel::kNonzerosPlain},
            {Kernel::kDirect, Kernel::kDepthwise}};
        std::vector<std::tuple<size_t, Kernel, int64_t>> all;
        for (size_t way = 0; way < plain.size(); ++way) {
            for (const Kernel kernel : plain[way]) all.push_back({way, kernel, 0});
            for (int64_t taps = 2; taps <= 5 && sizeof(T) == 4; ++taps) all.push_back({way, Kernel::kTiles, taps});
        }
        for (int64_t taps = 2; taps <= 5 && sizeof(T) == 4; ++taps) all.push_back({0, Kernel::kRows, taps});
        for (const auto& [way, kernel, taps] : all)
            if (!ran_.count({way, kernel, taps}))
                fail("no case of " + name_ + " ran kernel " + std::to_string(static_cast<int>(kernel)) + " of " +
                     std::to_string(taps) + " taps (" + std::to_string(way) + ")");
    }

    void fixed() {
        each_kernel();
        conv(conv_of(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, false));
        conv(conv_of(2, 3, 17, 15, 96, 7, 7, 2, 2, 1, 1, false));
        conv(conv_of(1, 7, 13, 11, 5, 3, 3, 1, 1, 1, 1, true));
        conv(conv_of(2, 5, 4, 6, 3, 4, 6, 1, 1, 0, 0, false));
        conv(conv_of(1, 4, 9, 10, 6, 2, 1, 3, 4, 0, 0, false));
        conv(conv_of(1, 2, 3, 3, 4, 3, 3, 1, 1, 2, 2, false));
        conv(conv_of(2, 4, 11, 12, 8, 3, 3, 3, 3, 0, 1, true));
        conv(conv_of(1, 8, 1, 37, 16, 1, 5, 1, 2, 0, 2, false));
        conv(conv_of(1, 33, 6, 7, 17, 3, 3, 1, 1, 1, 1, false));
        conv(conv_of(1, 300, 5, 5, 2, 3, 3, 1, 1, 1, 1, false));
        conv(conv_of(0, 3, 8, 8, 4, 3, 3, 1, 1, 1, 1, false));
        conv(grouped(conv_of(1, 41, 9, 8, 41, 3, 3, 1, 1, 1, 1, true), 41, 1, 1));
        conv(grouped(conv_of(2, 33, 12, 11, 33, 5, 4, 2, 3, 2, 6, false), 33, 2, 1));
        conv(grouped(conv_of(1, 6, 9, 8, 40, 3, 3, 1, 2, 1, 1, true), 2, 1, 2));
        conv(grouped(conv_of(0, 32, 9, 8, 32, 3, 3, 1, 1, 1, 1, true), 32, 1, 1));
        pool(pool_of(2, 6, 12, 14, 3, 3, 2, 2, 0, 0, true));
        pool(pool_of(1, 33, 17, 16, 16, 16, 1, 1, 8, 8, false));
        pool(pool_of(1, 5, 7, 5, 2, 3, 1, 2, 1, 1, true));
        pool(pool_of(2, 3, 9, 11, 2, 2, 3, 3, 0, 0, false));
        pool(pool_of(0, 4, 6, 6, 3, 3, 2, 2, 0, 0, false));
        average(pool_of(2, 6, 12, 14, 3, 3, 2, 2, 0, 0, true));
        average(pool_of(2, 33, 7, 7, 7, 7, 1, 1, 0, 0, false));
        average(pool_of(1, 70, 25, 26, 25, 26, 1, 1, 0, 0, false));
        average(pool_of(1, 17, 9, 9, 2, 2, 2, 2, 1, 1, true));
        average(pool_of(0, 4, 6, 6, 6, 6, 1, 1, 0, 0, false));
        norm({0, 8, 5, 1e-4, 0.75, 2.0, true});
        norm({1, 1, 5, 1e-4, 0.75, 2.0, false});
        norm({7, 3, 9, 2.0, 0.5, 1.0, true});
        linear({0, 5, 7});
        linear({5, 0, 3});
        linear({4, 33, 1});
    }

    void random_case() {
        const int64_t KH = among(random_, 1, 5), KW = among(random_, 1, 5);
        const int64_t SH = among(random_, 1, 3), SW = among(random_, 1, 3);
        const int64_t PH = among(random_, 0, KH - 1), PW = among(random_, 0, KW - 1);
        const int64_t H = among(random_, std::max<int64_t>(1, KH - 2 * PH), 24);
        const int64_t W = among(random_, std::max<int64_t>(1, KW - 2 * PW), 24);
        const int64_t N = among(random_, 1, 3), C = among(random_, 1, 70), K = among(random_, 1, 70);
        const zf::Conv s = conv_of(N, C, H, W, K, KH, KW, SH, SW, PH, PW, coin());
        conv(s);
        const int64_t groups = coin() ? C : among(random_, 1, 4), depth = coin() ? 1 : among(random_, 1, 9);
        const int64_t DH = among(random_, 1, std::max<int64_t>(1, (H + 2 * PH - 1) / std::max<int64_t>(1, KH - 1)));
        const int64_t DW = among(random_, 1, std::max<int64_t>(1, (W + 2 * PW - 1) / std::max<int64_t>(1, KW - 1)));
        const int64_t filters = coin() ? depth : among(random_, 1, 20);
        conv(grouped(conv_of(N, groups * depth, H, W, groups * filters, KH, KW, SH, SW, PH, PW, coin()), groups, DH,
                     DW));
        const auto pool_on = [&](int64_t channels, int64_t h, int64_t w) {
            const int64_t kh = among(random_, 1, std::min<int64_t>(h, 4)),
                          kw = among(random_, 1, std::min<int64_t>(w, 4));
            return pool_of(N, channels, h, w, kh, kw, among(random_, 1, 4), among(random_, 1, 4),
                           among(random_, 0, kh / 2), among(random_, 0, kw / 2), coin());
        };
        pool(pool_on(C, H, W));
        average(pool_on(C, H, W));
        average(pool_of(N, C, H, W, H, W, 1, 1, 0, 0, false));
        layer(s, pool_on(K, s.OH, s.OW));
        if (zf::mode() == zf::Mode::kExact) {  // a band's rows may go by another of Winograd's kernels
            const zf::Conv deep = grouped(conv_of(N, K, s.OH, s.OW, K, 3, 3, SH, SW, 1, 1, coin()), K, 1, 1);
            chain(s, deep, conv_of(N, K, deep.OH, deep.OW, C, 1, 1, 1, 1, 0, 0, coin()));
        }
        norm({H * W, C, among(random_, 1, 11), 0.1, among(random_, 0, 1) ? 0.75 : 0.6, 1.5, coin()});
        linear({among(random_, 1, 9), H * W, C});
    }

   private:
    void unpool(const zf::Pool& s, const Array<T>& y, const Array<uint8_t>& switches) {
        begin("max_unpool2d", text(s));
        Array<T> x(s.N * s.H * s.W * s.C, place());
        x.unwritten();
        const int64_t wrong = k_.max_unpool2d(s, y.data(), switches.data(), x.data(), threads());
        expect_wrong(wrong, s, switches.data());
        if (wrong == -1) x.expect_written();
        y.expect_unchanged(), switches.expect_unchanged();
    }

    // What computes a convolution, its transpose and its weight gradient, and with how many of Winograd's taps.
    void note(const zf::Conv& s, int64_t most, bool rectify) {
        if (!s.N) return;
        const zf::Choice chosen = k_.choose(s, most, rectify, zf::mode());
        const int64_t across = zf::ceil_div(s.KW, s.SW), down = zf::ceil_div(s.KH, s.SH);
        size_t way = 0;
        for (const zf::Kernel kernel : {chosen.forward, chosen.transposed, chosen.weight_grad}) {
            const int64_t most_taps = kernel == zf::Kernel::kTiles ? std::max(across, down) : across;
            const bool winograd = kernel == zf::Kernel::kTiles || kernel == zf::Kernel::kRows;
            ran_.insert({way++, kernel, winograd ? most_taps : 0});
        }
    }

    void begin(const char* op, const std::string& shape) { now = name_ + " " + op + ", " + shape; }
    bool coin() { return among(random_, 0, 1) == 1; }
    int threads() { return static_cast<int>(among(random_, 1, 3)); }
    Place place() { return static_cast<Place>(turn_++ % 3); }

    const zf::KernelsOf<T>& k_;
    std::string name_;
    Random& random_;
    int64_t turn_ = 0;
    std::set<std::tuple<size_t, zf::Kernel, int64_t>> ran_;  // way (forward, transposed, gradient), kernel, taps
};

int run(uint64_t seed, int64_t cases) {
    Random random(seed);
    for (const zf::Kernels* const* k = zf::usable_kernels(); *k; ++k) {
        Checks<float> f32((*k)->f32, std::string((*k)->name) + " float", random);
        Checks<double> f64((*k)->f64, std::string((*k)->name) + " double", random);
        for (const zf::Mode mode : {zf::Mode::kExact, zf::Mode::kTiles, zf::Mode::kRows, zf::Mode::kNonzeros}) {
            zf::set_mode(mode);
            f32.fixed();
            for (int64_t i = 0; i < cases / 2; ++i) f32.random_case();
            if (mode == zf::Mode::kExact || mode == zf::Mode::kRows) continue;  // for float64 as kTiles
            f64.fixed();
            for (int64_t i = 0; i < cases / 2; ++i) f64.random_case();
        }
        f32.expect_all_ran(), f64.expect_all_ran();
        const auto done = static_cast<long long>(cases / 2 * 6);
        std::printf("%s: %lld random cases and the fixed ones, clean\n", (*k)->name, done);
    }
    return 0;
}

// Faults that a sanitizer must report, so that a run without a report means something. The kernels commit most of them.
int inject(const std::string& fault) {
    Random random(0);
    const zf::KernelsOf<float>& k = zf::active_kernels().f32;
    now = "inject " + fault;
    const zf::Conv s = conv_of(1, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1, false);
    const Place place = fault == "read-guard" ? Place::kBeforeGuard : Place::kHeap;
    const bool reads = fault == "read" || fault == "read-guard";
    Array<float> x(s.H * s.W * s.C - reads, place), w(s.K * s.C * s.KH * s.KW, Place::kHeap);
    Array<float> y(s.OH * s.OW * s.K - (fault == "write"), Place::kHeap);
    x.random(random), w.random(random);
    if (fault == "overflow") {
        zf::Pool p = pool_of(1, 4, 6, 6, 2, 2, 2, 2, 0, 0, false);
        p.N = std::numeric_limits<int64_t>::max() / 2;  // times 3 rows
        Array<uint8_t> switches(y.count(), Place::kHeap);
        k.max_pool2d(p, x.data(), y.data(), switches.data(), 1);
        return 0;
    }
    if (fault == "scratch") {
        const zf::Scratch scratch(64 * sizeof(float));
        return *static_cast<volatile float*>(scratch.as<float>() + 64) > 0;
    }
    if (fault == "race") {
        int64_t sum = 0;
        zf::parallel_for(1 << 20, 2, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) sum += i;
        });
        std::printf("%lld\n", static_cast<long long>(sum));
        return 0;
    }
    const zf::Epilogue<float> end{nullptr, nullptr, true, std::numeric_limits<float>::infinity()};
    k.conv2d(s, x.data(), w.data(), nullptr, end, y.data(), 1);
    return 0;
}

// All live scratch memory.
std::mutex scratch_mutex;
std::map<void*, Guarded>& scratch_memory() {
    static auto* const live = new std::map<void*, Guarded>;
    return *live;
}

}  // namespace

void* operator new(size_t bytes, std::align_val_t alignment) {
    const size_t step = static_cast<size_t>(alignment);
    const Guarded memory((bytes + step - 1) / step * step, true);
    std::memset(memory.begin, 0xff, bytes);
    const std::lock_guard<std::mutex> lock(scratch_mutex);
    scratch_memory().emplace(memory.begin, memory);
    return memory.begin;
}

void operator delete(void* address, std::align_val_t) noexcept {
    const std::lock_guard<std::mutex> lock(scratch_mutex);
    if (!address) return;
    const auto found = scratch_memory().find(address);
    if (found == scratch_memory().end()) fail("scratch memory released twice");
    munmap(found->second.pages, found->second.size);
    scratch_memory().erase(found);
}

int main(int argc, char** argv) {
    if (argc == 3 && std::string(argv[1]) == "inject") return inject(argv[2]);
    if (argc == 3) return run(std::strtoull(argv[1], nullptr, 10), std::strtoll(argv[2], nullptr, 10));
    std::fprintf(stderr, "usage: driver SEED CASES | driver inject FAULT\n");
    return 2;
}
