// What kernels for Hopper share: barriers of shared memory, the copy engine's views (TMA), warpgroup matrix instructions (wgmma).
// Put after common.cuh; these sources are compiled for sm_90a and for nothing else.

// A view of device memory, made by the host.
struct __align__(64) TensorMap { u64 words[16]; };

// An mbarrier: a phase ends when all have arrived and all announced bytes are there.
struct Barrier {
  u64 state;
  DEVICE void init(int arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(address()), "r"(arrivals)); }
  DEVICE void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(address()) : "memory"); }
  // Arrives and announces bytes that the copy engine will write.
  DEVICE void expect(u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(address()), "r"(bytes) : "memory");
  }
  // Waits for the end of the phase of this parity; the one before the first counts as odd and ended.
  DEVICE void wait(u32 parity) {
    u32 done;
    do asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p,[%1],%2; selp.u32 %0,1,0,p;}"
                    : "=r"(done) : "r"(address()), "r"(parity) : "memory");
    while (!done);
  }
  DEVICE u32 address() { return shared_address(&state); }
};
// Makes initialized barriers known to the copy engine.
DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Which of N stages comes next, and the parity of the phase that its barrier is to end.
template <int N> struct Ring {
  u32 stage, parity;
  DEVICE void next() {
    if (++stage == N) stage = 0, parity ^= 1;
  }
};

// A matrix in shared memory, rows of 128 swizzled bytes in groups of eight; bytes from group to group along rows and along columns.
DEVICE u64 descriptor(u32 address, u32 along_rows, u32 along_columns) {
  return (u64)(address >> 4) | (u64)(along_rows >> 4) << 16 | (u64)(along_columns >> 4) << 32 | 1ull << 62;
}
DEVICE u64 advance(u64 matrix, u32 bytes) { return matrix + (bytes >> 4); }

#define WGMMA(columns) "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." MMA_TYPE
// Operands of an asm statement: registers 0 to 31, 0 to 63, and what they are.
#define R32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R64 R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define F8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define F32(d, i) F8(d, i), F8(d, i + 8), F8(d, i + 16), F8(d, i + 24)
#define F64(d) F32(d, 0), F32(d, 32)

// Between writing registers and the products that use them.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a series of products.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `PENDING` series are under way.
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// The same, the one that writes d not among them.
template <int PENDING, int N> DEVICE void wgmma_wait(float (&d)[N]) {
  wgmma_wait<PENDING>();
  // The compiler does not know that d changes until here.
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
