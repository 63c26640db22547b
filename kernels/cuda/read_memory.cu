// Reads memory once and does nothing with it: the floor under everything that streams weights or keys.
//
// Ladder: 1. 16 bytes a thread and turn, eight loads under way, a grid that strides.
KERNEL void __launch_bounds__(512) read_memory(const uint4* from, u32* out, u64 count) {
  const u64 threads = (u64)gridDim.x * 512;
  u32 seen = 0;
  for (u64 at = (u64)blockIdx.x * 512 + threadIdx.x; at + 7 * threads < count; at += 8 * threads) {
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = load_stream(from + at + i * threads);
#pragma unroll
    for (int i = 0; i < 8; i++) seen |= v[i].x | v[i].y | v[i].z | v[i].w;
  }
  // Never true of the zeros that are read; the compiler does not know.
  if (seen) *out = seen;
}
