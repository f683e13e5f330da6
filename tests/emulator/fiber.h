// Fibers: stacks that run one at a time on one system thread and hand control to each other.
//
// swapcontext saves the signal mask by a system call at every switch; on x86-64 a dozen instructions switch without.
// Under AddressSanitizer each switch is announced, as its run-time asks.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define ZF_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ZF_EMULATOR_ASAN 1
#endif
#endif
#ifdef ZF_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace zf::emulator {

#if defined(__x86_64__)
// Saves the callee-saved registers on the running stack and that stack's pointer in *save; continues at `load`.
extern "C" void zf_emulator_switch(void** save, void* load);
asm(R"(
    .text
    .weak zf_emulator_switch
    .type zf_emulator_switch, @function
zf_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size zf_emulator_switch, .-zf_emulator_switch
)");
#endif

class Fiber {
   public:
    static constexpr std::size_t kStack = 256 * 1024;  // reserved; the pages that are touched cost memory

    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() {
        if (stack_) munmap(stack_ - guard(), kStack + guard());
    }

    // Makes the fiber begin at `entry`, which must never return, when it is next switched to.
    void start(void (*entry)()) {
        if (!stack_) {
            void* memory = mmap(nullptr, kStack + guard(), PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for a thread's stack");
            mprotect(memory, guard(), PROT_NONE);
            stack_ = static_cast<char*>(memory) + guard();
        }
#ifdef ZF_EMULATOR_ASAN
        __asan_unpoison_memory_region(stack_, kStack);  // of frames that a failed block abandoned
        fake_ = nullptr;
#endif
#if defined(__x86_64__)
        void** top = reinterpret_cast<void**>(stack_ + kStack) - 1;  // rsp = 8 mod 16 at the entry, as after a call
        *--top = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        pointer_ = top;
#else
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_;
        context_.uc_stack.ss_size = kStack;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
#endif
    }

    // Leaves this fiber, which is running, for another; returns when it is switched to again. `last`: never.
    void switch_to(Fiber& other, bool last = false) {
#ifdef ZF_EMULATOR_ASAN
        __sanitizer_start_switch_fiber(last ? nullptr : &fake_, other.bottom(), other.size());
        came_from() = this;
#endif
#if defined(__x86_64__)
        zf_emulator_switch(&pointer_, other.pointer_);
#else
        swapcontext(&context_, &other.context_);
#endif
        arrived();
        (void)last;
    }

    // The first thing that a fiber's entry calls, and what every return from switch_to does.
    void arrived() {
#ifdef ZF_EMULATOR_ASAN
        const void* bottom = nullptr;
        std::size_t size = 0;
        __sanitizer_finish_switch_fiber(fake_, &bottom, &size);
        // The system thread's own stack is known only from here.
        if (!came_from()->stack_) came_from()->own_bottom_ = bottom, came_from()->own_size_ = size;
#endif
    }

   private:
    static std::size_t guard() {
        static const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        return page;
    }

    char* stack_ = nullptr;  // null for the system thread's own
#if defined(__x86_64__)
    void* pointer_ = nullptr;
#else
    ucontext_t context_;
#endif
#ifdef ZF_EMULATOR_ASAN
    const void* bottom() const { return stack_ ? stack_ : own_bottom_; }
    std::size_t size() const { return stack_ ? kStack : own_size_; }
    static Fiber*& came_from() {
        static Fiber* fiber = nullptr;
        return fiber;
    }
    void* fake_ = nullptr;
    const void* own_bottom_ = nullptr;
    std::size_t own_size_ = 0;
#endif
};

}  // namespace zf::emulator
