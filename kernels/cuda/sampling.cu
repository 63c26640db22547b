// The greedy choice of each row of logits.
//
// Ladder: 1. one block a row; a thread keeps its best of every fourth-of-a-line it reads; ties go to the lower id, as on the
// CPU. A row with a NaN answers 0xffffffff, so that a broken model is seen at once.
struct Best { float value; u32 id; };
DEVICE Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a; }

KERNEL void __launch_bounds__(1024) argmax(const float* logits, u32* token, int cols) {
  start_next();
  wait_previous();
  __shared__ Best partial[32];
  __shared__ int broken;
  if (threadIdx.x == 0) broken = 0;
  __syncthreads();
  const float* row = logits + (u64)blockIdx.x * cols;
  Best best = {NEG_INF, 0xffffffffu};
  bool nan = false;
  for (int at = threadIdx.x; at < cols; at += 1024) {
    const float v = row[at];
    nan |= v != v;
    best = better(best, Best{v, (u32)at});
  }
  if (nan) broken = 1;
#pragma unroll
  for (int o = 16; o; o >>= 1)
    best = better(best, Best{__shfl_xor_sync(FULL, best.value, o), __shfl_xor_sync(FULL, best.id, o)});
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = partial[threadIdx.x];
#pragma unroll
  for (int o = 16; o; o >>= 1)
    best = better(best, Best{__shfl_xor_sync(FULL, best.value, o), __shfl_xor_sync(FULL, best.id, o)});
  if (threadIdx.x == 0) token[blockIdx.x] = broken ? 0xffffffffu : best.id;
}
