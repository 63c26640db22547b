// y[rows, out] = x[rows, inner] . w[out, inner]^T + bias for few rows: the time is that of reading w once.
//
// Ladder: 1. gemv: one row of x; one warp takes two rows of w with 16-byte streaming loads, x staged in shared memory, the first
//            weights loaded before the wait for the launch before: 0.98 of the floor at 28672 x 4096, 0.85 at 4096 x 14336.
//         2. silu_mul as an epilogue (a warp's two rows are a gate and its up): one launch and one round trip less a layer.
//         3. x through L1 instead: no barrier, no staging that holds up long rows: 0.88 at 4096 x 14336.
//         4. skinny: 2 to 32 rows; multiplying in floats would take longer than the loads, so weights are the 16-row operand of
//            the matrix instruction and tokens its 8 columns. Both operands take their k in the same shuffled order, so a thread's
//            16-byte load is two instructions' worth, straight from global memory. A block's warps split k. 0.82 to 0.92 at 8 rows;
//            from 16 rows on cuBLASLt's best candidate is as fast or faster, since x is read once for every 16 rows of w.
//
// -DMAX_ROWS: 1, or 8, 16, 32. -DEPILOGUE: 0 none, 1 silu_mul. -DOUT_F32: y is float.
#ifdef OUT_F32
typedef float result;
DEVICE result finish(float v) { return v; }
#else
typedef elem result;
DEVICE result finish(float v) { return to_elem(v); }
#endif
DEVICE float silu(float v) { return v / (1.f + __expf(-v)); }
DEVICE float rounded(float v) { return to_float(to_elem(v)); }

#if MAX_ROWS == 1
#define UNROLL 4
DEVICE float dot8(const uint4& a, const uint4& b, float sum) {
  const u32 *p = (const u32*)&a, *q = (const u32*)&b;
#pragma unroll
  for (int j = 0; j < 4; j++) sum = fmaf(hi(p[j]), hi(q[j]), fmaf(lo(p[j]), lo(q[j]), sum));
  return sum;
}

// A warp's two rows of w: neighbors, or with the epilogue a gate and its up, `out` rows apart.
KERNEL void __launch_bounds__(256, 3) skinny_gemm(const elem* w, const elem* x, const elem* bias, result* y, int rows, int out, int inner) {
  const int warp = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, vectors = inner / 8;
  const int first = EPILOGUE ? warp : warp * 2, second = EPILOGUE ? first + out : first + 1;
  const bool have[2] = {first < out, EPILOGUE ? first < out : second < out};
  const elem* from[2] = {w + (u64)first * inner, w + (u64)second * inner};
  uint4 v[2][UNROLL];
  auto load = [&](int base) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int at = base + lane + 32 * u;
        v[r][u] = have[r] && at < vectors ? load_stream(from[r] + at * 8) : zero4();
      }
  };
  load(0);
  start_next();
  wait_previous();
  float sum[2] = {0.f, 0.f};
  for (int base = 0; base < vectors; base += 32 * UNROLL) {
    if (base) load(base);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int at = base + lane + 32 * u;
      const uint4 xs = at < vectors ? load4(x + at * 8) : zero4();
      sum[0] = dot8(v[0][u], xs, sum[0]);
      sum[1] = dot8(v[1][u], xs, sum[1]);
    }
  }
  sum[0] = warp_sum(sum[0]);
  sum[1] = warp_sum(sum[1]);
  if (lane != 0 || !have[0]) return;
  if (EPILOGUE) {
    y[first] = finish(silu(rounded(sum[0])) * rounded(sum[1]));
    return;
  }
  y[first] = finish(sum[0] + (bias ? to_float(bias[first]) : 0.f));
  if (have[1]) y[second] = finish(sum[1] + (bias ? to_float(bias[second]) : 0.f));
}
#else
#define TILES (MAX_ROWS / 8)
#define WARPS 8
// With more tokens a block takes more rows of w, so that it reads x less often.
#define GROUPS (EPILOGUE ? 2 : (MAX_ROWS > 16 ? 2 : 1))
#define STEP (MAX_ROWS > 16 ? 1 : 2)

KERNEL void __launch_bounds__(WARPS * 32) skinny_gemm(const elem* w, const elem* x, const elem* bias, result* y, int rows, int out, int inner) {
  __shared__ float partial[WARPS][GROUPS * 16][MAX_ROWS + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int base = blockIdx.x * 16 * (EPILOGUE ? 1 : GROUPS);
  const elem* from[GROUPS][2];
  bool have[GROUPS][2];
#pragma unroll
  for (int i = 0; i < GROUPS; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = base + (EPILOGUE ? 0 : i * 16) + h * 8 + g;
      have[i][h] = row < out;
      from[i][h] = w + (u64)(row + (EPILOGUE ? i * out : 0)) * inner + t * 8;
    }
  float sum[GROUPS][TILES][4] = {};
  uint4 v[STEP][GROUPS][2];
  const int chunks = inner / 32;
  auto load = [&](int chunk) {
#pragma unroll
    for (int s = 0; s < STEP; s++)
#pragma unroll
      for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          v[s][i][h] = have[i][h] && chunk + s < chunks ? load_stream(from[i][h] + (chunk + s) * 32) : zero4();
  };
  load(warp * STEP);
  start_next();
  wait_previous();
  for (int chunk = warp * STEP; chunk < chunks; chunk += WARPS * STEP) {
    uint4 now[STEP][GROUPS][2];
#pragma unroll
    for (int s = 0; s < STEP; s++)
#pragma unroll
      for (int i = 0; i < GROUPS; i++) now[s][i][0] = v[s][i][0], now[s][i][1] = v[s][i][1];
    load(chunk + WARPS * STEP);
#pragma unroll
    for (int s = 0; s < STEP; s++)
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const int token = n * 8 + g;
        const uint4 b = token < rows && chunk + s < chunks ? load4(x + (u64)token * inner + (chunk + s) * 32 + t * 8) : zero4();
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
          const uint4 p = now[s][i][0], q = now[s][i][1];
          const u32 a0[4] = {p.x, q.x, p.y, q.y}, a1[4] = {p.z, q.z, p.w, q.w};
          mma(sum[i][n], a0, b.x, b.y);
          mma(sum[i][n], a1, b.z, b.w);
        }
      }
  }
#pragma unroll
  for (int i = 0; i < GROUPS; i++)
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) partial[warp][i * 16 + g + c / 2 * 8][n * 8 + t * 2 + c % 2] = sum[i][n][c];
  __syncthreads();
  for (int at = threadIdx.x; at < 16 * (EPILOGUE ? 1 : GROUPS) * MAX_ROWS; at += WARPS * 32) {
    const int r = at % (16 * (EPILOGUE ? 1 : GROUPS)), token = at / (16 * (EPILOGUE ? 1 : GROUPS)), row = base + r;
    if (token >= rows || row >= out) continue;
    float total = 0.f, up = 0.f;
#pragma unroll
    for (int k = 0; k < WARPS; k++) {
      total += partial[k][r][token];
      if (EPILOGUE) up += partial[k][r + 16][token];
    }
    if (EPILOGUE) total = silu(rounded(total)) * rounded(up);
    else if (bias) total += to_float(bias[row]);
    y[(u64)token * out + row] = finish(total);
  }
}
#endif
