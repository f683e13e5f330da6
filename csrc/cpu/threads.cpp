#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace zf {
namespace {

using Body = void (*)(void*, int, int);

struct Job {
    Body body;
    void* context;
};

struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;
};

// Looked up once, at the first parallel call; torch is loaded by then, since Python imports it first.
const OpenMP& openmp() {
    static const OpenMP runtime = [] {
        OpenMP o;
        const char* pool = std::getenv("ZFKERNELS_POOL");
        if (pool && pool[0] == 'o') return o;  // "own"
#if defined(__linux__)
        o.parallel = reinterpret_cast<decltype(o.parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        o.thread = reinterpret_cast<decltype(o.thread)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
        o.threads = reinterpret_cast<decltype(o.threads)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
        if (!o.thread || !o.threads) o.parallel = nullptr;
#endif
        return o;
    }();
    return runtime;
}

// Workers that sleep between jobs. One job at a time: a second caller waits for the first.
// Never destroyed: joining threads while a process exits can wait forever.
class Pool {
   public:
    void run(int threads, Job job) {
        std::lock_guard<std::mutex> one_job(callers_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < threads - 1) {
                const int thread = static_cast<int>(workers_.size()) + 1;
                workers_.emplace_back([this, thread, seen = round_] { work(thread, seen); });
            }
            job_ = job;
            team_ = threads;
            left_ = threads - 1;
            ++round_;
        }
        start_.notify_all();
        job.body(job.context, 0, threads);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return left_ == 0; });
    }

   private:
    void work(int thread, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (thread >= team_) continue;
            const Job job = job_;
            const int team = team_;
            lock.unlock();
            job.body(job.context, thread, team);
            lock.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }

    std::mutex callers_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    Job job_{};
    int team_ = 0, left_ = 0;
    uint64_t round_ = 0;
};

// A process that was forked has none of its parent's threads: it gets a pool of its own, and leaves OpenMP alone, whose
// threads would be waited for without end.
bool forked = false;
Pool* pool = new Pool;

#if defined(__linux__)
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
    forked = true;
    pool = new Pool;
});
#endif

bool uses_openmp() { return !forked && openmp().parallel; }

void fork_and_join(int threads, Body body, void* context) {
    if (uses_openmp()) {
        Job job{body, context};
        openmp().parallel(
            [](void* opaque) {
                const Job& j = *static_cast<const Job*>(opaque);
                j.body(j.context, openmp().thread(), openmp().threads());
            },
            &job, static_cast<unsigned>(threads), 0u);
        return;
    }
    pool->run(threads, Job{body, context});
}

// A team that stays together from job to job. Each round has a part for each member, which is made by who takes it
// first: the member, or the leader, when it is through with its own and the member has not begun, because its core is
// another's. So a round waits for nobody who does not work.
class Team {
   public:
    explicit Team(int most) : taken_(static_cast<std::size_t>(most)) {}
    int size = 1;  // of those that came

    void run(int threads, Job job) {
        job_ = job, members_ = threads < size ? threads : size;
        const unsigned round = round_.load(std::memory_order_relaxed) + 1;
        for (int i = members_; i < size; ++i) part(i).store(round, std::memory_order_relaxed);  // there is none
        left_.store(members_ - 1, std::memory_order_relaxed);
        round_.store(round, std::memory_order_release);
        job.body(job.context, 0, members_);
        for (int i = 1; i < members_; ++i) take(i, round);
        for (int looks = 0; left_.load(std::memory_order_acquire) > 0;) pause(looks);
    }

    void follow(int thread) {
        for (unsigned seen = 0;;) {
            unsigned round = seen;
            for (int looks = 0; round == seen; round = round_.load(std::memory_order_acquire)) {
                if (over_.load(std::memory_order_acquire)) return;
                pause(looks);
            }
            take(thread, seen = round);
        }
    }

    void dismiss() { over_.store(true, std::memory_order_release); }

   private:
    std::atomic<unsigned>& part(int i) { return taken_[static_cast<std::size_t>(i)]; }

    // Makes part i of this round unless somebody has taken it. All parts of the round before were taken, and a round
    // does not end before they are made: who comes too late finds another number.
    void take(int i, unsigned round) {
        unsigned before = round - 1;
        if (!part(i).compare_exchange_strong(before, round, std::memory_order_acq_rel)) return;
        job_.body(job_.context, i, members_);
        left_.fetch_sub(1, std::memory_order_release);
    }

    static void pause(int& looks) {
        if (++looks > kLooks) return std::this_thread::yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    static constexpr int kLooks = 4000;  // 0.1 ms or so
    std::vector<std::atomic<unsigned>> taken_;
    Job job_{};
    int members_ = 0;
    std::atomic<unsigned> round_{0};
    std::atomic<int> left_{0};
    std::atomic<bool> over_{false};
};

thread_local Team* team_led = nullptr;  // by this thread

}  // namespace

void run_team(int threads, Body body, void* context) {
    if (team_led) return team_led->run(threads, {body, context});
    fork_and_join(threads, body, context);
}

void in_team(int threads, void (*run)(void*), void* context) {
    if (threads <= 1 || team_led) return run(context);
    struct Shared {
        void (*run)(void*);
        void* context;
        Team team;
        std::exception_ptr thrown{};
    } shared{run, context, Team(threads)};
    fork_and_join(
        threads,
        [](void* opaque, int thread, int size) {
            Shared& s = *static_cast<Shared*>(opaque);
            if (thread > 0) return s.team.follow(thread);
            s.team.size = size, team_led = &s.team;
            try {
                s.run(s.context);
            } catch (...) {
                s.thrown = std::current_exception();
            }
            team_led = nullptr;
            s.team.dismiss();
        },
        &shared);
    if (shared.thrown) std::rethrow_exception(shared.thrown);
}

const char* pool_name() { return uses_openmp() ? "torch's OpenMP" : "own"; }

}  // namespace zf
