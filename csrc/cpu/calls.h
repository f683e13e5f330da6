// A list of kernel calls that is made once and run many times: what a compiled graph does between two calls of others.
//
// An operand is (base, offset in bytes): bases are addresses that each run gives, offsets stay. What never moves
// (packed filters, biases) is an address from the beginning. All calls of a run are one team's work (threads.h), so
// that a call costs neither the interpreter nor a fork of threads.
#pragma once
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace zf {

struct Operand {
    int base;  // none: negative, and the operand is a null pointer
    int64_t offset;
};

class Calls {
   public:
    using Bases = std::vector<std::uintptr_t>;
    using Call = std::function<void(const Bases&, int threads)>;

    void add(Call call) { calls_.push_back(std::move(call)); }

    void run(const Bases& bases, int threads) const {
        struct Context {
            const Calls& calls;
            const Bases& bases;
            int threads;
        } context{*this, bases, threads};
        in_team(
            threads,
            [](void* opaque) {
                const Context& c = *static_cast<const Context*>(opaque);
                for (const Call& call : c.calls.calls_) call(c.bases, c.threads);
            },
            &context);
    }

   private:
    std::vector<Call> calls_;
};

inline std::uintptr_t at(const Calls::Bases& bases, Operand o) {
    return o.base < 0 ? 0 : bases[static_cast<std::size_t>(o.base)] + static_cast<std::uintptr_t>(o.offset);
}

}  // namespace zf
