// Attention of chunks of tokens over their sequences' paged caches, causal, ragged: the time is that of the products.
//
// Ladder: 1. Flash tiles for Ampere: a block takes ROWS rows of one KV head, a row being a token and one of its group's heads (so
//            short chunks fill a tile too, and a tile's keys end early); a warp takes 16 MTILES of them. Keys and values come in
//            tiles of KEYS through cp.async, two tiles deep; mma.sync with operands through ldmatrix from rows padded by 16 bytes.
//            Only tiles that the diagonal, the window or the end cuts are masked. 281 TFLOP/s at 1 x 8192, 168 at 1 x 2048.
//         2. 64 keys a tile instead of 32, and all heads' long tiles before any short one: 330 and 267.
//
// -DHEAD_DIM (a multiple of 32), -DGROUP, -DNUM_KV_HEADS, -DBLOCK_SIZE, -DMTILES, -DKEYS (a multiple of 16).
#define WARPS 4
#define ROWS (WARPS * 16 * MTILES)
#define STRIDE (HEAD_DIM + 8)
#define CHUNKS (HEAD_DIM / 8)
#define SIDE ((u64)NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)

// query, out: [num_tokens, NUM_KV_HEADS GROUP HEAD_DIM]. tiles: pairs of a sequence and its tile's first row.
// seq_rows: each sequence's first token of the step; seq_lens: its tokens of the step; context_lens: its tokens in the cache.
KERNEL void __launch_bounds__(WARPS * 32)
    paged_attention_prefill(const elem* query, const elem* kv, elem* out, const uint2* tiles, const u32* seq_rows,
                            const u32* seq_lens, const u32* context_lens, const u32* block_starts, const u32* block_ids,
                            long long block_stride, float scale, int window) {
  extern __shared__ uint4 shared_bytes[];
  elem* const shared_q = (elem*)shared_bytes;
  elem* const shared_kv = shared_q + ROWS * STRIDE;  // [2 stages][K, V][KEYS][STRIDE]
  start_next();
  wait_previous();
  const int kv_head = blockIdx.x, seq = tiles[blockIdx.y].x, row0 = tiles[blockIdx.y].y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int len = seq_lens[seq], context = context_lens[seq], num_rows = len * GROUP, token0 = seq_rows[seq];
  const int past = context - len;
  const u32* blocks = block_ids + block_starts[seq];
  const int first_position = past + row0 / GROUP, last_position = past + min(row0 + ROWS - 1, num_rows - 1) / GROUP;
  const int begin = window > 0 ? max(first_position - window + 1, 0) / KEYS : 0, end = last_position / KEYS + 1;

  auto load_q = [&] {
    for (int at = threadIdx.x; at < ROWS * CHUNKS; at += WARPS * 32) {
      const int r = at / CHUNKS, c = at % CHUNKS, row = row0 + r;
      const int safe = min(row, num_rows - 1);
      const elem* from = query + (((u64)(token0 + safe / GROUP) * NUM_KV_HEADS + kv_head) * GROUP + safe % GROUP) * HEAD_DIM;
      copy_async(shared_address(shared_q + r * STRIDE + c * 8), from + c * 8, row < num_rows);
    }
  };
  auto load_kv = [&](int tile) {
    elem* to = shared_kv + (tile & 1) * 2 * KEYS * STRIDE;
#pragma unroll 4
    for (int at = threadIdx.x; at < KEYS * CHUNKS; at += WARPS * 32) {
      const int r = at / CHUNKS, c = at % CHUNKS, position = tile * KEYS + r;
      const int safe = min(position, context - 1);
      const elem* from = kv + (u64)blocks[safe / BLOCK_SIZE] * block_stride +
                         ((u64)kv_head * BLOCK_SIZE + safe % BLOCK_SIZE) * HEAD_DIM + c * 8;
      copy_async(shared_address(to + r * STRIDE + c * 8), from, position < context);
      copy_async(shared_address(to + (KEYS + r) * STRIDE + c * 8), from + SIDE, position < context);
    }
  };
  load_q();
  load_kv(begin);
  copy_commit();

  float o[MTILES][HEAD_DIM / 8][4] = {}, top[MTILES][2], sum[MTILES][2] = {};
#pragma unroll
  for (int m = 0; m < MTILES; m++) top[m][0] = top[m][1] = NEG_INF;
  const float scale2 = scale * LOG2E;
  // ldmatrix: a lane names the row of one of four 8x8 matrices.
  const u32 q_at = shared_address(shared_q + (warp * MTILES * 16 + lane % 16) * STRIDE + lane / 16 * 8);
  const u32 k_lane = ((lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8) * 2;
  const u32 v_lane = ((lane / 8 % 2 * 8 + lane % 8) * STRIDE + lane / 16 * 8) * 2;

  for (int tile = begin; tile < end; tile++) {
    if (tile + 1 < end) load_kv(tile + 1);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    const u32 keys = shared_address(shared_kv + (tile & 1) * 2 * KEYS * STRIDE) + k_lane;
    const u32 values = shared_address(shared_kv + ((tile & 1) * 2 + 1) * KEYS * STRIDE) + v_lane;
    float s[MTILES][KEYS / 8][4] = {};
#pragma unroll
    for (int c = 0; c < HEAD_DIM / 16; c++) {
      u32 a[MTILES][4];
#pragma unroll
      for (int m = 0; m < MTILES; m++) ldmatrix4(a[m], q_at + (m * 16 * STRIDE + c * 16) * 2);
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        u32 b[4];
        ldmatrix4(b, keys + (n * 16 * STRIDE + c * 16) * 2);
#pragma unroll
        for (int m = 0; m < MTILES; m++) {
          mma(s[m][n * 2], a[m], b[0], b[1]);
          mma(s[m][n * 2 + 1], a[m], b[2], b[3]);
        }
      }
    }
    const bool cut = tile * KEYS + KEYS - 1 > first_position || (window > 0 && tile * KEYS <= last_position - window);
    u32 p[MTILES][KEYS / 16][4];
#pragma unroll
    for (int m = 0; m < MTILES; m++) {
      float factor[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float best = top[m][h];
        if (cut) {
          const int last = past + (row0 + (warp * MTILES + m) * 16 + g + h * 8) / GROUP;
          const int before = window > 0 ? last - window : -1;
#pragma unroll
          for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
              const int position = tile * KEYS + n * 8 + t * 2 + i;
              if (position > last || position <= before) s[m][n][h * 2 + i] = NEG_INF;
            }
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) best = fmaxf(best, fmaxf(s[m][n][h * 2], s[m][n][h * 2 + 1]));
        best = fmaxf(best, __shfl_xor_sync(FULL, best, 1));
        best = fmaxf(best, __shfl_xor_sync(FULL, best, 2));
        // A row that has seen no key yet keeps zeros: -inf minus -inf would be a NaN.
        const float base = best == NEG_INF ? 0.f : best * scale2;
        factor[h] = exp2_fast(top[m][h] * scale2 - base);
        top[m][h] = best;
        float total = 0.f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float& v = s[m][n][h * 2 + i];
            v = exp2_fast(fmaf(v, scale2, -base));
            total += v;
          }
        sum[m][h] = sum[m][h] * factor[h] + total;
      }
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[m][n][i] = pack(s[m][n * 2 + i / 2][i % 2 * 2], s[m][n * 2 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 8; d++)
        o[m][d][0] *= factor[0], o[m][d][1] *= factor[0], o[m][d][2] *= factor[1], o[m][d][3] *= factor[1];
    }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 16; d++) {
        u32 b[4];
        ldmatrix4_trans(b, values + (n * 16 * STRIDE + d * 16) * 2);
#pragma unroll
        for (int m = 0; m < MTILES; m++) {
          mma(o[m][d * 2], p[m][n], b[0], b[1]);
          mma(o[m][d * 2 + 1], p[m][n], b[2], b[3]);
        }
      }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < MTILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float total = sum[m][h];
      total += __shfl_xor_sync(FULL, total, 1);
      total += __shfl_xor_sync(FULL, total, 2);
      const int row = row0 + (warp * MTILES + m) * 16 + g + h * 8;
      if (row >= num_rows) continue;
      elem* to = out + (((u64)(token0 + row / GROUP) * NUM_KV_HEADS + kv_head) * GROUP + row % GROUP) * HEAD_DIM + t * 2;
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 8; d++)
        *(u32*)(to + d * 8) = pack(o[m][d][h * 2] / total, o[m][d][h * 2 + 1] / total);
    }
}
