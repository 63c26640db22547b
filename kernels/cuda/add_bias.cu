// y += bias for rows of y, after a product of the library's; skinny_gemm.cu adds its own.
//
// Ladder: 1. a thread takes 16 bytes; memory speed.
KERNEL void __launch_bounds__(256) add_bias(elem* y, const elem* bias, int rows, int cols) {
  start_next();
  wait_previous();
  const int vectors = cols / 8;
  const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
  if (at >= (u64)rows * vectors) return;
  const u64 row = at / vectors, col = at % vectors * 8;
  uint4 values = load4(y + row * cols + col);
  const uint4 biases = load4(bias + col);
  u32* v = (u32*)&values;
  const u32* b = (const u32*)&biases;
#pragma unroll
  for (int j = 0; j < 4; j++) v[j] = pack(lo(v[j]) + lo(b[j]), hi(v[j]) + hi(b[j]));
  *(uint4*)(y + row * cols + col) = values;
}
