// RMSNorm of each row, with the residual added first if there is one.
//
// Ladder: 1. one block a row, the row kept in registers between the sum and the scaling: each element is read once and written
// once (twice with the residual).
//
// -DCOLS: a row's length, a multiple of 8. -DTHREADS: a block's threads.
#define VECTORS (COLS / 8)
#define PER_THREAD ((VECTORS + THREADS - 1) / THREADS)

DEVICE float block_sum(float v) {
  __shared__ float partial[THREADS / 32];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) sum += partial[i];
  return sum;
}

// residual: null, or [rows, COLS], becomes the sum; out: [rows, COLS].
KERNEL void __launch_bounds__(THREADS) rms_norm(const elem* x, elem* residual, const elem* weight, elem* out, float eps) {
  start_next();
  wait_previous();
  const u64 row = (u64)blockIdx.x * COLS;
  uint4 values[PER_THREAD];
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int at = threadIdx.x + i * THREADS;
    values[i] = zero4();
    if (at >= VECTORS) continue;
    values[i] = load4(x + row + at * 8);
    u32* v = (u32*)&values[i];
    if (residual) {
      const uint4 old = load4(residual + row + at * 8);
      const u32* r = (const u32*)&old;
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = pack(lo(v[j]) + lo(r[j]), hi(v[j]) + hi(r[j]));
      *(uint4*)(residual + row + at * 8) = values[i];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) squares += lo(v[j]) * lo(v[j]) + hi(v[j]) * hi(v[j]);
  }
  const float scale = rsqrtf(block_sum(squares) / COLS + eps);
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int at = threadIdx.x + i * THREADS;
    if (at >= VECTORS) continue;
    const uint4 weights = load4(weight + at * 8);
    const u32* w = (const u32*)&weights;
    u32* v = (u32*)&values[i];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = pack(lo(v[j]) * scale * lo(w[j]), hi(v[j]) * scale * hi(w[j]));
    *(uint4*)(out + row + at * 8) = values[i];
  }
}
