// Every PTX instruction that the kernels use, each behind a function; sm_80 and up. Compiled by g++ for the tests, the
// same names come from tests/emulator, which runs them on a CPU.
//
// Fragments (PTX ISA, "Matrix fragments for mma"), lane = 4*g + q:
//   m16n8k16, 16-bit elements, two to a register, the lower k in the low half:
//     A  a0 (row g, k 2q)  a1 (row g+8, k 2q)  a2 (row g, k 2q+8)  a3 (row g+8, k 2q+8)      B  b0 (k 2q, col g)
//     b1 (k 2q+8, col g)                                       D  d0 d1 (row g, cols 2q 2q+1)  d2 d3 (row g+8)
//   m16n8k8, TF32, one to a register:
//     A  a0 (row g, k q)  a1 (row g+8, k q)  a2 (row g, k q+4)  a3 (row g+8, k q+4)   B  b0 (k q, col g)  b1 (k q+4)
//     D  as above
//   ldmatrix: lane l gives the address of row l%8 of matrix l/8, 16 bytes in shared memory aligned to 16; it receives
//   in register i elements 2q, 2q+1 of row g of matrix i, or with _trans elements (row 2q, column g), (2q+1, g).
#pragma once
#include <cstdint>

#ifndef __CUDACC__
#include "ptx_on_cpu.h"
#else

namespace zf::cuda::ptx {

// The block's dynamic shared memory, aligned to 128 bytes. There is no other: the size is given at the launch.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(128) unsigned char zf_shared[];
    return reinterpret_cast<T*>(zf_shared);
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ float float16_to_float(uint16_t bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
__device__ __forceinline__ uint32_t to_float16x2(float low, float high) {
    uint32_t v;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
__device__ __forceinline__ uint32_t to_bfloat16x2(float low, float high) {
    uint32_t v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
// Square root to 1 or 2 units in the last place, 0 and infinity exact; sqrtf is a subroutine of a dozen instructions.
__device__ __forceinline__ float sqrt_approx(float v) {
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(v));
    return root;
}
// The nearest TF32 value (ties away from 0); mma itself would cut off the lower 13 bits.
__device__ __forceinline__ uint32_t to_tf32(float v) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return bits;
}

// a * b + c in each half of the words, rounded once; NaN results are 0x7fff.
__device__ __forceinline__ uint32_t fma_bfloat16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t v;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
}
__device__ __forceinline__ uint32_t fma_float16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t v;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
}
// Byte i of the result is the byte that nibble i of the selector names among a's (0-3) and b's (4-7); with the nibble's
// highest bit, that byte's sign bit in all eight places.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
    return v;
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts copying kBytes (4, 8 or 16, both sides aligned to that) to shared memory: the first source_bytes from `from`,
// then zeros; with source_bytes = 0, `from` is not read. After the wait the data is there for the thread that waited,
// after a barrier for the others.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* to, const void* from, int source_bytes = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
    const auto global = __cvta_generic_to_global(from);
    if constexpr (kBytes == 16) {  // past L1: no other thread of the SM will want it
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(global),
                     "r"(source_bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(global),
                     "n"(kBytes), "r"(source_bytes)
                     : "memory");
    }
}
// Closes the thread's group of copies; waits until at most kLeft of its groups, the newest, are in flight.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace zf::cuda::ptx

#endif
