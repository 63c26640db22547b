// What every kernel shares: 16-bit floats, vector loads, warp sums, matrix instructions, the dependent-launch wait.
// Put before each source by its launcher; no header of the toolkit is needed. -DELEM_F16 selects f16, otherwise bf16.

// -DAMPERE_PATH keeps to the instructions of Ampere, also on a newer GPU.
#if __CUDA_ARCH__ >= 900 && !defined(AMPERE_PATH)
#define HOPPER
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef u16 elem;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
#define FULL 0xffffffffu
#define NEG_INF __int_as_float(0xff800000)
#define LOG2E 1.4426950408889634f

#ifdef ELEM_F16
DEVICE float lo(u32 v) { float f; asm("{.reg .b16 a,b; mov.b32 {a,b},%1; cvt.f32.f16 %0,a;}" : "=f"(f) : "r"(v)); return f; }
DEVICE float hi(u32 v) { float f; asm("{.reg .b16 a,b; mov.b32 {a,b},%1; cvt.f32.f16 %0,b;}" : "=f"(f) : "r"(v)); return f; }
DEVICE u32 pack(float a, float b) { u32 v; asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(v) : "f"(b), "f"(a)); return v; }
#define MMA_TYPE "f16.f16"
#else
DEVICE float lo(u32 v) { return __int_as_float(v << 16); }
DEVICE float hi(u32 v) { return __int_as_float(v & 0xffff0000u); }
DEVICE u32 pack(float a, float b) { u32 v; asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(v) : "f"(b), "f"(a)); return v; }
#define MMA_TYPE "bf16.bf16"
#endif

DEVICE float to_float(elem v) { return lo((u32)v); }
DEVICE elem to_elem(float v) { return (elem)(pack(v, 0.f) & 0xffff); }

DEVICE uint4 zero4() { return make_uint4(0, 0, 0, 0); }
// Weights and other data read once.
DEVICE uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
DEVICE uint4 load4(const void* p) { return *(const uint4*)p; }

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(FULL, v, o);
  return v;
}

// d += a (16x16, row) * b (16x8, column).
DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE u32 transpose8x8(u32 v) {
  u32 r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(r) : "r"(v));
  return r;
}
DEVICE float exp2_fast(float v) { float r; asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(r) : "f"(v)); return r; }
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void ldmatrix4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
DEVICE void ldmatrix4_trans(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
// Copies 16 bytes to shared memory in the background; zeros if not `valid`.
DEVICE void copy_async(u32 address, const void* p, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(address), "l"(p), "r"(valid ? 16 : 0));
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

// Hopper: wait for the launch before this one; let the next one begin. Elsewhere launches do not overlap. Every kernel says
// start_next before it waits, so that what follows can load weights meanwhile: its own wait is for this launch's end, and this one
// ends after the one before.
DEVICE void wait_previous() {
#ifdef HOPPER
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void start_next() {
#ifdef HOPPER
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
