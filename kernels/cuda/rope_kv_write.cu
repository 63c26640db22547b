// Normalizes (if asked) and rotates queries and keys, and writes keys and values into the step's slots of the paged cache.
//
// Ladder: 1. one warp a head, a pair of elements (i, i + HEAD_DIM / 2) a lane and turn; cosines and sines come from rope_table,
// computed once a step and not once a layer, with the angle reduced in double precision so that far positions stay exact.
//
// -DHEAD_DIM, -DNUM_HEADS, -DNUM_KV_HEADS, -DBLOCK_SIZE. The cache's layout is in docs/layouts.md.
#define HALF (HEAD_DIM / 2)
#define TURNS ((HALF + 31) / 32)

// table: [num_tokens, HALF] pairs of cosine and sine.
KERNEL void __launch_bounds__(128) rope_table(const u32* positions, const float* inv_freq, float2* table, int num_tokens) {
  start_next();
  wait_previous();
  const int at = blockIdx.x * 128 + threadIdx.x;
  if (at >= num_tokens * HALF) return;
  const double angle = (double)((float)positions[at / HALF] * inv_freq[at % HALF]);
  const double two_pi = 6.283185307179586476925;
  const float reduced = (float)(angle - two_pi * rint(angle / two_pi));
  table[at] = make_float2(__cosf(reduced), __sinf(reduced));
}

// qkv: [num_tokens, (NUM_HEADS + 2 NUM_KV_HEADS) HEAD_DIM]; kv: this layer's part of block 0; block_stride: elements.
KERNEL void __launch_bounds__(128) rope_kv_write(const elem* qkv, const float2* table, const u32* slot_mapping, const elem* q_norm,
                                                  const elem* k_norm, elem* query, elem* kv, long long block_stride, float eps) {
  start_next();
  wait_previous();
  const int token = blockIdx.x, head = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (head >= NUM_HEADS + 2 * NUM_KV_HEADS) return;
  const elem* from = qkv + ((u64)token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * HEAD_DIM;
  const bool is_query = head < NUM_HEADS, is_value = head >= NUM_HEADS + NUM_KV_HEADS;
  float a[TURNS], b[TURNS], squares = 0.f;
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const int at = lane + 32 * i;
    a[i] = at < HALF ? to_float(from[at]) : 0.f;
    b[i] = at < HALF ? to_float(from[at + HALF]) : 0.f;
    squares += a[i] * a[i] + b[i] * b[i];
  }
  const elem* norm = is_query ? q_norm : k_norm;
  if (norm && !is_value) {
    const float scale = rsqrtf(warp_sum(squares) / HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int at = min(lane + 32 * i, HALF - 1);
      a[i] = to_float(to_elem(a[i] * scale * to_float(norm[at])));
      b[i] = to_float(to_elem(b[i] * scale * to_float(norm[at + HALF])));
    }
  }
  elem* to = query + ((u64)token * NUM_HEADS + head) * HEAD_DIM;
  if (!is_query) {
    const u32 slot = slot_mapping[token];
    const int side = is_value, kv_head = head - NUM_HEADS - side * NUM_KV_HEADS;
    to = kv + (u64)(slot / BLOCK_SIZE) * block_stride +
         ((u64)(side * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM;
  }
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const int at = lane + 32 * i;
    if (at >= HALF) continue;
    const float2 turn = is_value ? make_float2(1.f, 0.f) : table[(u64)token * HALF + at];
    to[at] = to_elem(a[i] * turn.x - b[i] * turn.y);
    to[at + HALF] = to_elem(b[i] * turn.x + a[i] * turn.y);
  }
}
