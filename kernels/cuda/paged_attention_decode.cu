// Attention of single tokens over their sequences' paged caches: the time is that of reading keys and values once.
//
// Ladder: 1. A block takes one KV head of one sequence and a share of its keys (split KV), so few long sequences fill the GPU too;
//            the last share to finish merges them. All query heads of the group go together (GQA packing), as the 8 columns of the
//            matrix instruction, keys as its 16 rows: scores are K.Q^T, the result V^T.P^T. Keys and values go from global memory
//            straight to registers, 16 bytes a load: for K both operands take their k in one shuffled order; for V a thread takes 8
//            dims of 4 keys and a byte permute pairs the keys. Probabilities are turned by movmatrix. No shared memory until the
//            warps' results are merged. 0.79 of the floor at 8 x 16k.
//         2. The next keys are asked for as soon as the scores are out of the old ones, the next values as soon as the result has
//            them: the same registers, and loads always under way: 0.89 to 0.92.
//         3. Shares are merged in one pass after their weights are known, 16 bytes a load: few short sequences wait for little else.
//
// -DHEAD_DIM (a multiple of 32), -DGROUP (query heads a KV head, at most 16), -DNUM_KV_HEADS, -DBLOCK_SIZE (a multiple of 16).
#define WARPS 4
#define TILES ((GROUP + 7) / 8)
#define CHUNKS (HEAD_DIM / 32)
#define PASSES ((HEAD_DIM + 63) / 64)
#define SIDE ((u64)NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)
#define HEAD_QUADS (HEAD_DIM / 4)
#define QUADS (GROUP * HEAD_QUADS)

struct Shared {
  float max[WARPS][GROUP], sum[WARPS][GROUP];
  float out[WARPS][GROUP][HEAD_DIM];
};

DEVICE float column_max(float v) {
#pragma unroll
  for (int o = 4; o < 32; o <<= 1) v = fmaxf(v, __shfl_xor_sync(FULL, v, o));
  return v;
}
DEVICE float column_sum(float v) {
#pragma unroll
  for (int o = 4; o < 32; o <<= 1) v += __shfl_xor_sync(FULL, v, o);
  return v;
}
// The weight of a part whose largest score is `part` in a whole whose largest is `whole`.
DEVICE float weight_of(float part, float whole) { return part == NEG_INF ? 0.f : exp2_fast(part - whole); }

DEVICE void add(float4& sum, float weight, float4 v) {
  sum.x += weight * v.x, sum.y += weight * v.y, sum.z += weight * v.z, sum.w += weight * v.w;
}

// query, out: [num_tokens, NUM_KV_HEADS GROUP HEAD_DIM]; rows: each sequence's row of them; kv: this layer's part of block 0.
// partial: floats [num_seqs, NUM_KV_HEADS, splits, GROUP, HEAD_DIM], then pairs (max, sum) for each of those heads; counters: [num_seqs, NUM_KV_HEADS], zero between launches.
KERNEL void __launch_bounds__(WARPS * 32)
    paged_attention_decode(const elem* query, const elem* kv, elem* out, float* partial, u32* counters, const u32* rows,
                           const u32* context_lens, const u32* block_starts, const u32* block_ids, long long block_stride,
                           float scale, int window) {
  extern __shared__ float4 shared_bytes[];
  Shared& shared = *(Shared*)shared_bytes;
  __shared__ int is_last;
  start_next();
  wait_previous();
  const int split = blockIdx.x, splits = gridDim.x, kv_head = blockIdx.y, seq = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int context = context_lens[seq], first = window > 0 ? max(context - window, 0) : 0;
  const int first_tile = first / 16, last_tile = (context + 15) / 16, tiles = last_tile - first_tile;
  const int share = ((tiles + splits - 1) / splits + WARPS - 1) / WARPS * WARPS;
  const int used = (tiles + share - 1) / share;
  if (split >= used) return;
  const int begin = first_tile + split * share, end = min(begin + share, last_tile);
  const u32* blocks = block_ids + block_starts[seq];
  const u64 head0 = ((u64)rows[seq] * NUM_KV_HEADS + kv_head) * GROUP;

  uint4 q[TILES][CHUNKS];
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
      q[n][c] = n * 8 + g < GROUP ? load4(query + (head0 + n * 8 + g) * HEAD_DIM + c * 32 + t * 8) : zero4();
  float o[TILES][PASSES][4][4] = {}, top[TILES][2], sum[TILES][2] = {};
#pragma unroll
  for (int n = 0; n < TILES; n++) top[n][0] = top[n][1] = NEG_INF;
  const float scale2 = scale * LOG2E;

  uint4 k[CHUNKS][2], v[PASSES][4];
  auto place = [&](int tile) {
    return kv + (u64)blocks[tile * 16 / BLOCK_SIZE] * block_stride + ((u64)kv_head * BLOCK_SIZE + tile * 16 % BLOCK_SIZE) * HEAD_DIM;
  };
  auto load_keys = [&](const elem* keys) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int h = 0; h < 2; h++) k[c][h] = load_stream(keys + (g + 8 * h) * HEAD_DIM + c * 32 + t * 8);
  };
  auto load_values = [&](const elem* values, int tile) {
#pragma unroll
    for (int p = 0; p < PASSES; p++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        // Past the context the cache may hold anything, NaNs too, which a probability of zero does not silence.
        const int key = t * 2 + j % 2 + j / 2 * 8, dim = p * 64 + g * 8;
        v[p][j] = dim < HEAD_DIM && tile * 16 + key < context ? load_stream(values + key * HEAD_DIM + dim) : zero4();
      }
  };
  int tile = begin + warp;
  if (tile < end) {
    const elem* at = place(tile);
    load_keys(at);
    load_values(at + SIDE, tile);
  }
  for (; tile < end; tile += WARPS) {
    const bool more = tile + WARPS < end;
    const elem* next = more ? place(tile + WARPS) : kv;
    float p[TILES][4], factor[TILES][2];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
      float(&s)[4] = p[n];
      s[0] = s[1] = s[2] = s[3] = 0.f;
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        const uint4 a = k[c][0], b = k[c][1];
        const u32 a0[4] = {a.x, b.x, a.y, b.y}, a1[4] = {a.z, b.z, a.w, b.w};
        mma(s, a0, q[n][c].x, q[n][c].y);
        mma(s, a1, q[n][c].z, q[n][c].w);
      }
    }
    if (more) load_keys(next);
#pragma unroll
    for (int n = 0; n < TILES; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int position = tile * 16 + g + i / 2 * 8;
        p[n][i] = position >= first && position < context ? p[n][i] * scale2 : NEG_INF;
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float old = top[n][i];
        top[n][i] = fmaxf(old, column_max(fmaxf(p[n][i], p[n][i + 2])));
        factor[n][i] = weight_of(old, top[n][i]);
        p[n][i] = weight_of(p[n][i], top[n][i]);
        p[n][i + 2] = weight_of(p[n][i + 2], top[n][i]);
        sum[n][i] = sum[n][i] * factor[n][i] + p[n][i] + p[n][i + 2];
      }
      const u32 b0 = transpose8x8(pack(p[n][0], p[n][1])), b1 = transpose8x8(pack(p[n][2], p[n][3]));
#pragma unroll
      for (int pass = 0; pass < PASSES; pass++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float(&acc)[4] = o[n][pass][i];
          acc[0] *= factor[n][0], acc[1] *= factor[n][1], acc[2] *= factor[n][0], acc[3] *= factor[n][1];
          const u32 w0 = ((const u32*)&v[pass][0])[i], w1 = ((const u32*)&v[pass][1])[i];
          const u32 w2 = ((const u32*)&v[pass][2])[i], w3 = ((const u32*)&v[pass][3])[i];
          const u32 a[4] = {__byte_perm(w0, w1, 0x5410), __byte_perm(w0, w1, 0x7632), __byte_perm(w2, w3, 0x5410),
                            __byte_perm(w2, w3, 0x7632)};
          mma(acc, a, b0, b1);
        }
    }
    if (more) load_values(next + SIDE, tile + WARPS);
  }

#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int head = n * 8 + t * 2 + i;
      const float total = column_sum(sum[n][i]);
      if (head >= GROUP) continue;
      if (g == 0) shared.max[warp][head] = top[n][i], shared.sum[warp][head] = total;
#pragma unroll
      for (int pass = 0; pass < PASSES; pass++)
#pragma unroll
        for (int d = 0; d < 8; d++)
          if (pass * 64 + g * 8 < HEAD_DIM) shared.out[warp][head][pass * 64 + g * 8 + d] = o[n][pass][d / 2][d % 2 * 2 + i];
    }
  __syncthreads();
  const u64 unit = (u64)seq * NUM_KV_HEADS + kv_head, units = (u64)gridDim.y * gridDim.z;
  float4* parts = (float4*)partial + unit * splits * QUADS;
  float2* stats = (float2*)(partial + units * splits * GROUP * HEAD_DIM) + unit * splits * GROUP;
  uint2* results = (uint2*)(out + head0 * HEAD_DIM);
  for (int at = threadIdx.x; at < QUADS; at += WARPS * 32) {
    const int head = at / HEAD_QUADS;
    float whole = NEG_INF, total = 0.f;
    float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int w = 0; w < WARPS; w++) whole = fmaxf(whole, shared.max[w][head]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float weight = weight_of(shared.max[w][head], whole);
      total += weight * shared.sum[w][head];
      add(value, weight, ((const float4*)shared.out[w][head])[at % HEAD_QUADS]);
    }
    if (used == 1) {
      const float scale = 1.f / total;
      results[at] = make_uint2(pack(value.x * scale, value.y * scale), pack(value.z * scale, value.w * scale));
    } else {
      parts[split * QUADS + at] = value;
      if (at % HEAD_QUADS == 0) stats[split * GROUP + head] = make_float2(whole, total);
    }
  }
  if (used == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(&counters[unit], 1u) == (u32)used - 1;
    if (is_last) counters[unit] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  // The shares' weights first, a warp a head, then one pass over their results.
  float* weights = shared.out[0][0];
  for (int head = warp; head < GROUP; head += WARPS) {
    float whole = NEG_INF, total = 0.f;
    for (int i = lane; i < used; i += 32) whole = fmaxf(whole, __ldcg(&stats[i * GROUP + head]).x);
#pragma unroll
    for (int step = 16; step; step >>= 1) whole = fmaxf(whole, __shfl_xor_sync(FULL, whole, step));
    for (int i = lane; i < used; i += 32) {
      const float2 stat = __ldcg(&stats[i * GROUP + head]);
      total += weight_of(stat.x, whole) * stat.y;
    }
    total = warp_sum(total);
    for (int i = lane; i < used; i += 32) weights[head * used + i] = weight_of(__ldcg(&stats[i * GROUP + head]).x, whole) / total;
  }
  __syncthreads();
  for (int at = threadIdx.x; at < QUADS; at += WARPS * 32) {
    float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int i = 0; i < used; i++) add(value, weights[at / HEAD_QUADS * used + i], __ldcg(&parts[i * QUADS + at]));
    results[at] = make_uint2(pack(value.x, value.y), pack(value.z, value.w));
  }
}
