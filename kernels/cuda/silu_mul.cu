// silu(gate) * up for rows [gate | up].
//
// Ladder: 1. a thread takes 16 bytes of each half; three streams at memory speed. For few rows the product is an epilogue of
// skinny_gemm.cu instead, and this launch disappears.
KERNEL void __launch_bounds__(256) silu_mul(const elem* gate_up, elem* out, int rows, int cols) {
  start_next();
  wait_previous();
  const int vectors = cols / 8;
  const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
  if (at >= (u64)rows * vectors) return;
  const u64 row = at / vectors, col = at % vectors * 8;
  const uint4 gates = load4(gate_up + row * 2 * cols + col), ups = load4(gate_up + row * 2 * cols + cols + col);
  const u32 *g = (const u32*)&gates, *u = (const u32*)&ups;
  uint4 result;
  u32* r = (u32*)&result;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float a = lo(g[j]), b = hi(g[j]);
    r[j] = pack(a / (1.f + __expf(-a)) * lo(u[j]), b / (1.f + __expf(-b)) * hi(u[j]));
  }
  *(uint4*)(out + row * cols + col) = result;
}
