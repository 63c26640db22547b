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
//         4. All heads' keys of all sequences are one line, cut into equal shares for as many blocks as run at once (as stream-K cuts
//            products: Osama et al. 2023): before, each head of each sequence was cut into as many, and the longest context ended last.
//            A small kernel before the first layer's finds where each block begins, so a recorded step serves contexts of any lengths.
//            0.77 to 0.91 of the memory's speed for lengths spread evenly, 0.89 to 0.92 for many equal ones (H200).
//
// -DHEAD_DIM (a multiple of 32), -DGROUP (query heads a KV head, at most 16), -DNUM_KV_HEADS, -DBLOCK_SIZE (a multiple of 16), -DWARPS of
// a block, -DPLANNERS (threads that share the work out), -DPLACE_BYTES.
#define TILES ((GROUP + 7) / 8)
#define CHUNKS (HEAD_DIM / 32)
#define PASSES ((HEAD_DIM + 63) / 64)
#define SIDE ((u64)NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)
#define HEAD_QUADS (HEAD_DIM / 4)
#define QUADS (GROUP * HEAD_QUADS)

// Sequences' keys are counted in quads of 16-key tiles, one for each warp.
DEVICE int quads_of(int context, int window) {
  const int first = window > 0 ? max(context - window, 0) : 0;
  return ((context + 15) / 16 - first / 16 + WARPS - 1) / WARPS;
}

// Where a block is on the line.
struct __align__(16) Place {
  // num_seqs if there is nothing left.
  int seq, kv_head, quad;
  // The quads of a share; negative if it ends with the head.
  int share;
  // The sequence's: with the rest, for a block that begins to wait for one load less.
  u32 row, context_len, block_start, padding;
};
static_assert(sizeof(Place) == PLACE_BYTES, "as the launcher has it");

// The sum of `own` over all threads before this one, and over all.
DEVICE u32 sum_before(u32 own, u32* sums, u32& all) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  auto scan = [&](u32 sum) {
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const u32 before = __shfl_up_sync(FULL, sum, o);
      if (lane >= o) sum += before;
    }
    return sum;
  };
  const u32 here = scan(own);
  __syncthreads();
  if (lane == 31) sums[warp] = here;
  __syncthreads();
  if (warp == 0) {
    const u32 sum = scan(lane < PLANNERS / 32 ? sums[lane] : 0);
    if (lane < PLANNERS / 32) sums[lane] = sum;
  }
  __syncthreads();
  all = sums[PLANNERS / 32 - 1];
  return (warp ? sums[warp - 1] : 0) + here - own;
}

// Cuts the line of all quads, a sequence's heads one after the other, into equal shares for `num_blocks` blocks. Where shares grow by one
// quad at most by it, each is of one head instead: two parts of two heads take longer to begin and to end than one of their length. No
// head has more parts than `merge` has room for.
//
// plan: where each block begins; starts: [num_seqs + 1], quads, or shares, of one head of all sequences before; the others are as below.
KERNEL void __launch_bounds__(PLANNERS)
    paged_attention_plan(Place* plan, u32* starts, const u32* rows, const u32* context_lens, const u32* block_starts, int num_seqs,
                         int num_blocks, int window) {
  __shared__ u32 sums[PLANNERS / 32];
  __shared__ int longest;
  start_next();
  wait_previous();
  if (threadIdx.x == 0) longest = 0;
  __syncthreads();
  const int each = (num_seqs + PLANNERS - 1) / PLANNERS;
  const int from = min((int)threadIdx.x * each, num_seqs), to = min(from + each, num_seqs);
  for (int seq = from; seq < to; seq++) atomicMax(&longest, quads_of(context_lens[seq], window));
  // In units of `unit` quads, the last of a head perhaps smaller.
  auto count = [&](u32 unit) {
    u32 own = 0;
    for (int seq = from; seq < to; seq++) own += (quads_of(context_lens[seq], window) + unit - 1) / unit;
    return own;
  };
  u32 unit = 1, all;
  u32 at = sum_before(count(1), sums, all);
  const u32 mergeable = (longest + WARPS * HEAD_DIM - 3) / (WARPS * HEAD_DIM - 2);
  u32 share = max((all * NUM_KV_HEADS + num_blocks - 1) / num_blocks, mergeable);
  for (u32 whole = share; num_seqs * NUM_KV_HEADS <= num_blocks && whole <= share + 1; whole++) {
    u32 parts;
    const u32 before = sum_before(count(whole), sums, parts);
    if (parts * NUM_KV_HEADS > num_blocks) continue;
    at = before, all = parts, unit = share = whole;
    break;
  }
  const bool is_whole = unit == share;
  for (int seq = from; seq < to; seq++) {
    starts[seq] = at;
    at += (quads_of(context_lens[seq], window) + unit - 1) / unit;
  }
  if (threadIdx.x == 0) starts[num_seqs] = all;
  __syncthreads();
  for (u32 block = threadIdx.x; block < num_blocks; block += PLANNERS) {
    const u32 place = block * (share / unit);
    int seq = 0, end = num_seqs;
    while (end - seq > 1) {
      const int middle = (seq + end) / 2;
      if (starts[middle] * NUM_KV_HEADS <= place) seq = middle;
      else end = middle;
    }
    const u32 units = starts[seq + 1] - starts[seq], rest = place - starts[seq] * NUM_KV_HEADS;
    plan[block] = {place < all * NUM_KV_HEADS ? seq : num_seqs, (int)(rest / units), (int)(rest % units * unit),
                   is_whole ? -(int)share : (int)share, rows[seq], context_lens[seq], block_starts[seq], 0};
  }
}

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

// Attends the tiles from tiles.x to tiles.y, of one KV head, to its query heads; each warp leaves what it has in `shared`.
// keys: (first, past the last) that a query sees.
DEVICE void attend(Shared& shared, const elem* query, const elem* kv, const u32* blocks, int kv_head, int2 tiles, int2 keys,
                   long long block_stride, float scale) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first = keys.x, context = keys.y;
  uint4 q[TILES][CHUNKS];
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
      q[n][c] = n * 8 + g < GROUP ? load4(query + (n * 8 + g) * HEAD_DIM + c * 32 + t * 8) : zero4();
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
  int tile = tiles.x + warp;
  if (tile < tiles.y) {
    const elem* at = place(tile);
    load_keys(at);
    load_values(at + SIDE, tile);
  }
  for (; tile < tiles.y; tile += WARPS) {
    const bool more = tile + WARPS < tiles.y;
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
}

// Puts the warps' results together, and gives each quad of dims to `take(index, value, max, sum)`.
template <typename Take>
DEVICE void put_together(const Shared& shared, Take take) {
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
    take(at, value, whole, total);
  }
}

// Merges `used` parts, of which part i is at place(i): their weights first, a warp a head, then one pass over their results.
template <typename PlaceOf>
DEVICE void merge(float* weights, const float4* parts, const float2* stats, int used, PlaceOf place, uint2* results) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int head = warp; head < GROUP; head += WARPS) {
    float whole = NEG_INF, total = 0.f;
    for (int i = lane; i < used; i += 32) whole = fmaxf(whole, __ldcg(&stats[place(i) * GROUP + head]).x);
#pragma unroll
    for (int step = 16; step; step >>= 1) whole = fmaxf(whole, __shfl_xor_sync(FULL, whole, step));
    for (int i = lane; i < used; i += 32) {
      const float2 stat = __ldcg(&stats[place(i) * GROUP + head]);
      total += weight_of(stat.x, whole) * stat.y;
    }
    total = warp_sum(total);
    for (int i = lane; i < used; i += 32)
      weights[head * used + i] = weight_of(__ldcg(&stats[place(i) * GROUP + head]).x, whole) / total;
  }
  __syncthreads();
  for (int at = threadIdx.x; at < QUADS; at += WARPS * 32) {
    float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int i = 0; i < used; i++) add(value, weights[at / HEAD_QUADS * used + i], __ldcg(&parts[place(i) * QUADS + at]));
    results[at] = make_uint2(pack(value.x, value.y), pack(value.z, value.w));
  }
}

// A block goes through its share of the line of quads, from one head or sequence to the next. Where it has only a part of a head's, the
// last block to come merges all parts.
//
// query, out: [num_tokens, NUM_KV_HEADS GROUP HEAD_DIM]; rows: each sequence's row of them; kv: this layer's part of block 0; plan: as
// above; context_lens: at least 1. partial: floats [blocks, 2, GROUP, HEAD_DIM], for the part that a block begins with and for one that
// begins later, then pairs (max, sum) for each of their heads; counters: [num_seqs, NUM_KV_HEADS], zero between launches.
KERNEL void __launch_bounds__(WARPS * 32)
    paged_attention_decode(const elem* query, const elem* kv, elem* out, float* partial, u32* counters, const Place* plan,
                           const u32* rows, const u32* context_lens, const u32* block_starts, const u32* block_ids,
                           long long block_stride, float scale, int window, int num_seqs) {
  extern __shared__ float4 shared_bytes[];
  Shared& shared = *(Shared*)shared_bytes;
  // In shared memory, because attending needs the registers.
  __shared__ Place at;
  __shared__ int done, is_last;
  start_next();
  wait_previous();
  if (threadIdx.x < 2) ((uint4*)&at)[threadIdx.x] = ((const uint4*)&plan[blockIdx.x])[threadIdx.x];
  if (threadIdx.x == 0) done = 0;
  __syncthreads();
  auto share = [&] { return abs(at.share); };
  while (done < share() && at.seq < num_seqs) {
    auto first_head = [&] { return ((u64)at.row * NUM_KV_HEADS + at.kv_head) * GROUP * HEAD_DIM; };
    {
      const int context = at.context_len, first = window > 0 ? max(context - window, 0) : 0;
      const int first_tile = first / 16 + at.quad * WARPS;
      // Past the last tile where the share goes on with other keys.
      const int2 tiles = make_int2(first_tile, min(first_tile + (share() - done) * WARPS, (context + 15) / 16));
      attend(shared, query + first_head(), kv, block_ids + at.block_start, at.kv_head, tiles, make_int2(first, context), block_stride,
             scale);
    }
    __syncthreads();
    const int quads = quads_of(at.context_len, window), count = min(share() - done, quads - at.quad);
    uint2* results = (uint2*)(out + first_head());
    if (count == quads) {
      put_together(shared, [&](int i, float4 value, float, float total) {
        const float scale = 1.f / total;
        results[i] = make_uint2(pack(value.x * scale, value.y * scale), pack(value.z * scale, value.w * scale));
      });
    } else {
      float4* parts = (float4*)partial;
      float2* stats = (float2*)(partial + (u64)gridDim.x * 2 * GROUP * HEAD_DIM);
      const u64 own = blockIdx.x * 2 + (done > 0);
      put_together(shared, [&](int i, float4 value, float whole, float total) {
        parts[own * QUADS + i] = value;
        if (i % HEAD_QUADS == 0) stats[own * GROUP + i / HEAD_QUADS] = make_float2(whole, total);
      });
      // Where the head's quads begin on the line, and which blocks have some of them: all before have whole shares.
      const u32 begin = blockIdx.x * share() + done - at.quad, first_block = begin / share();
      const int used = (begin + quads - 1) / share() - first_block + 1;
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        u32* counter = &counters[at.seq * NUM_KV_HEADS + at.kv_head];
        is_last = atomicAdd(counter, 1u) == (u32)used - 1;
        if (is_last) *counter = 0;
      }
      __syncthreads();
      if (is_last) {
        __threadfence();
        const u64 later = first_block * share() < begin;
        auto place = [&](int i) { return ((u64)first_block + i) * 2 + (i == 0 ? later : 0); };
        merge(shared.out[0][0], parts, stats, used, place, results);
      }
    }
    // What is in shared memory has been read.
    __syncthreads();
    if (threadIdx.x == 0) {
      done += at.share < 0 ? share() : count, at.quad = 0;
      if (++at.kv_head == NUM_KV_HEADS) at.kv_head = 0, at.seq++;
      if (at.kv_head == 0 && at.seq < num_seqs && done < share()) {
        at.row = rows[at.seq], at.context_len = context_lens[at.seq], at.block_start = block_starts[at.seq];
      }
    }
    __syncthreads();
  }
}
