#include "threads.h"

#include <condition_variable>
#include <cstdlib>
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

}  // namespace

void run_team(int threads, Body body, void* context) {
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

const char* pool_name() { return uses_openmp() ? "torch's OpenMP" : "own"; }

}  // namespace zf
