// Attention of chunks of tokens over their sequences' paged caches, causal, ragged, on Hopper's matrix instructions (wgmma) and copy
// engine (TMA). After FlashAttention-3 (Shah et al. 2024), sections 3.1 and 3.2.
//
// Ladder: 1. One block a multiprocessor takes items, a tile of rows of one KV head each, until none is left. One warp chooses them
//            and keeps keys and values on their way, two tiles of each; two groups of four warps have 64 rows each. Scores of the
//            next tile and the result of this one are in the matrix units together, and what softmax takes beside them is hidden
//            by the other group. A row is a token and one of its group's heads, as in paged_attention_prefill.cu, so that blocks
//            of the cache are read once for the group. 660 TFLOP/s at 1 x 8192, 545 at 8 x 2048, 480 at 1 x 2048.
//         2. The groups take no turns at the matrix units: the barriers cost more than the order gains. 1 % more.
//         3. Results are only shrunk when a score outgrows the base by 2^8: 3 % more.
//         4. Masks cost one comparison a score. 725, 594 and 523; on uniform data, which take less power, 752, 629 and 542.
//
// -DHEAD_DIM (64 or 128), -DGROUP, -DNUM_KV_HEADS, -DBLOCK_SIZE (a multiple of 16).
#define KEYS 128
#define STAGES 2
#define ROWS 128
#define TOKENS (ROWS / GROUP)
#define HALVES (HEAD_DIM / 64)
#define PIECES (KEYS / 16)
// Bytes of shared memory: the queries, a tile of keys or of values, eight of its rows.
#define QUERY_BYTES (ROWS * HEAD_DIM * 2)
#define TILE_BYTES (KEYS * HEAD_DIM * 2)
#define OCTET_BYTES (HEAD_DIM * 16)
// How far scores may outgrow their base, as a power of two: weights up to 256 lose nothing in 16-bit floats.
#define SLACK 8.f

// A tile of rows of one KV head: its first token's row of the query, the positions of its first and last token, its tiles of keys.
struct __align__(16) Item { int kv_head, token, first, last, begin, end, context, unused; };

// Each pair: somebody filled it, everybody is done with it.
struct Shared {
  Barrier query_full, query_empty, item_full[2], item_empty[2];
  Barrier keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
  Item items[2];
};

// The number of items that blocks have asked for beyond their first. Zero between launches, which follow one another.
__device__ u32 asked;

#define COPY(dims) "cp.async.bulk.tensor." dims ".shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1,"
DEVICE void copy_query(u32 to, const TensorMap& map, Barrier& full, int column, int kv_head, int token) {
  asm volatile(COPY("4d") "{%3,0,%4,%5}],[%2];" ::"r"(to), "l"(&map), "r"(full.address()), "r"(column), "r"(kv_head),
               "r"(token) : "memory");
}
DEVICE void copy_piece(u32 to, const TensorMap& map, Barrier& full, int octet, int block) {
  asm volatile(COPY("5d") "{0,0,0,%3,%4}],[%2];" ::"r"(to), "l"(&map), "r"(full.address()), "r"(octet), "r"(block) : "memory");
}

// d (64 x 128) = a (64 x 16) . b (128 x 16)^T, and what was in d if `more`; a and b in shared memory.
DEVICE void product(float (&d)[64], u64 a, u64 b, int more) {
  asm volatile("{.reg .pred p; setp.ne.b32 p,%66,0;" WGMMA("128") " {" R64 "},%64,%65,p,1,1,0,0;}"
               : F64(d) : "l"(a), "l"(b), "r"(more));
}
// d (64 x 128, 64 x 64) += a (64 x 16, registers) . b (16 x 128, 16 x 64; shared memory).
DEVICE void product(float (&d)[64], const u32* a, u64 b) {
  asm volatile(WGMMA("128") " {" R64 "},{%64,%65,%66,%67},%68,1,1,1,1;"
               : F64(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
DEVICE void product(float (&d)[32], const u32* a, u64 b) {
  asm volatile(WGMMA("64") " {" R32 "},{%32,%33,%34,%35},%36,1,1,1,1;"
               : F32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Loads what items need: one warp, a lane for each 16 keys of a tile.
struct Producer {
  const TensorMap &query, &kv;
  Shared& shared;
  u32 query_at, keys_at, values_at;
  Ring<1> queries;
  Ring<2> items;
  Ring<STAGES> keys, values;

  DEVICE void load(Barrier* full, Barrier* empty, u32 at, Ring<STAGES>& ring, int octet, int block) {
    const int lane = threadIdx.x % 32;
    empty[ring.stage].wait(ring.parity);
    if (lane == 0) full[ring.stage].expect(TILE_BYTES);
    __syncwarp();
    if (lane < PIECES) copy_piece(at + ring.stage * TILE_BYTES + lane * 2 * OCTET_BYTES, kv, full[ring.stage], octet, block);
    ring.next();
  }
  DEVICE void load_keys(int octet, int block) { load(shared.keys_full, shared.keys_empty, keys_at, keys, octet, block); }
  DEVICE void load_values(int octet, int block) {
    load(shared.values_full, shared.values_empty, values_at, values, octet + NUM_KV_HEADS * BLOCK_SIZE / 8, block);
  }
  DEVICE void load_query(const Item& item) {
    shared.query_empty.wait(queries.parity);
    queries.next();
    if (threadIdx.x % 32 == 0) {
      shared.query_full.expect(TOKENS * GROUP * HEAD_DIM * 2);
      for (int h = 0; h < HALVES; h++)
        copy_query(query_at + h * ROWS * 128, query, shared.query_full, h * 64, item.kv_head, item.token);
    }
    __syncwarp();
  }
  // No keys: there is no item left.
  DEVICE void announce(const Item& item) {
    shared.item_empty[items.stage].wait(items.parity);
    if (threadIdx.x % 32 == 0) {
      shared.items[items.stage] = item;
      shared.item_full[items.stage].arrive();
    }
    items.next();
  }
  // The last tile first: it is the one that needs a mask. Values follow a tile behind, when they are needed.
  DEVICE void load_tiles(const Item& item, const u32* blocks, int num_blocks) {
    int octet = 0, block = 0;
    for (int tile = item.end - 1; tile >= item.begin; tile--) {
      const int old_octet = octet, old_block = block, position = tile * KEYS + threadIdx.x % 32 * 16;
      octet = (item.kv_head * BLOCK_SIZE + position % BLOCK_SIZE) / 8;
      // Zeros come from outside the map.
      block = position < min(item.context, (tile + 1) * KEYS) ? blocks[position / BLOCK_SIZE] : num_blocks;
      load_keys(octet, block);
      if (tile == item.end - 1) load_query(item);
      else load_values(old_octet, old_block);
    }
    load_values(octet, block);
  }
};

// Two rows of a thread, g and g + 8 of its warp's 16.
struct Softmax {
  float scale2;  // of scores, to powers of two
  u32 reach;     // how many keys a row sees at most
  int last[2];   // the position of each row
  float base[2] = {NEG_INF, NEG_INF}, sum[2] = {}, factor[2];
  bool grown;

  // Turns scores to weights relative to the base; earlier ones shrink by `factor` if that has grown.
  DEVICE void weights(float (&s)[KEYS / 2], int tile, bool cut) {
    const int first = tile * KEYS + threadIdx.x % 4 * 2;
    float top[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          // Later keys are at a negative distance, as unsigned a large one.
          const u32 distance = last[h] - first - (n * 8 + i);
          if (cut && distance >= reach) s[n * 4 + h * 2 + i] = NEG_INF;
        }
      float best[2] = {s[h * 2], s[h * 2 + 1]};
#pragma unroll
      for (int n = 1; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) best[i] = fmaxf(best[i], s[n * 4 + h * 2 + i]);
      top[h] = fmaxf(best[0], best[1]);
    }
#pragma unroll
    for (int m = 1; m < 4; m <<= 1)
#pragma unroll
      for (int h = 0; h < 2; h++) top[h] = fmaxf(top[h], __shfl_xor_sync(FULL, top[h], m));
    top[0] *= scale2, top[1] *= scale2;
    grown = __any_sync(FULL, top[0] > base[0] + SLACK || top[1] > base[1] + SLACK);
    // A row that has seen no key yet keeps zeros: -inf minus -inf would be a NaN.
    auto finite = [&](float v) { return cut && v == NEG_INF ? 0.f : v; };
    if (grown) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(base[h], top[h]);
        factor[h] = exp2_fast(base[h] - finite(top[h]));
        base[h] = top[h];
        sum[h] *= factor[h];
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float total[2] = {};
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float& v = s[n * 4 + h * 2 + i];
          v = exp2_fast(fmaf(v, scale2, -finite(base[h])));
          total[i] += v;
        }
      sum[h] += total[0] + total[1];
    }
  }
};

// Nobody has written the last block's rows past the context: a weight of zero times a NaN would be a NaN.
DEVICE void clear_rows(u32 values, int from) {
  for (int i = threadIdx.x - 128; i < (16 - from % 16) * HEAD_DIM / 8; i += 256) {
    const int r = from + i / (HEAD_DIM / 8), c = i % (HEAD_DIM / 8);
    const u32 at = values + r / 8 * OCTET_BYTES + c / 8 * 1024 + r % 8 * 128 + c % 8 * 16;
    asm volatile("st.shared.v4.u32 [%0],{%1,%1,%1,%1};" ::"r"(at), "r"(0) : "memory");
  }
  asm volatile("fence.proxy.async.shared::cta; bar.sync 1,256;" ::: "memory");
}

// Writes row h of a thread, o times `scale`. Four threads hold 32 columns by pairs; they turn this 4x4 matrix, and each has eight.
DEVICE void store_row(elem* to, const float (&o)[HEAD_DIM / 2], int h, float scale, bool valid) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int d = 0; d < HEAD_DIM / 32; d++) {
    u32 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = pack(o[(d * 4 + j) * 4 + h * 2] * scale, o[(d * 4 + j) * 4 + h * 2 + 1] * scale);
#pragma unroll
    for (int m = 1; m < 4; m <<= 1)
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (!(j & m)) {
          const u32 got = __shfl_xor_sync(FULL, t & m ? v[j] : v[j | m], m);
          (t & m ? v[j] : v[j | m]) = got;
        }
    if (valid) *(uint4*)(to + d * 32 + t * 8) = make_uint4(v[0], v[1], v[2], v[3]);
  }
}

// query: a map of [num_tokens, NUM_KV_HEADS, GROUP, HEAD_DIM] with boxes of TOKENS tokens, one KV head, 64 columns.
// kv: a map of [num_blocks, 2 NUM_KV_HEADS BLOCK_SIZE / 8, HEAD_DIM / 64, 8, 64] with boxes of 16 tokens.
// out: [num_tokens, NUM_KV_HEADS GROUP HEAD_DIM]. tiles: pairs of a sequence and its tile's first token, those with most keys first.
// Items are the tiles of the first `heads_at_once` KV heads, then those of the next: keys and values that the cache can hold.
// seq_rows: each sequence's first token of the step; seq_lens: its tokens of the step; context_lens: its tokens in the cache.
KERNEL void __launch_bounds__(384, 1)
    paged_attention_prefill_sm90(const __grid_constant__ TensorMap query, const __grid_constant__ TensorMap kv, elem* out,
                                 const uint2* tiles, const u32* seq_rows, const u32* seq_lens, const u32* context_lens,
                                 const u32* block_starts, const u32* block_ids, int num_tiles, int heads_at_once, int num_blocks,
                                 float scale, int window) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  const u32 query_at = shared_address(shared_bytes), keys_at = query_at + QUERY_BYTES, values_at = keys_at + STAGES * TILE_BYTES;
  Shared& shared = *(Shared*)(shared_bytes + QUERY_BYTES + 2 * STAGES * TILE_BYTES);
  const int warp = __shfl_sync(FULL, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  start_next();
  if (threadIdx.x == 0) {
    shared.query_full.init(1), shared.query_empty.init(8);
    for (int i = 0; i < 2; i++) shared.item_full[i].init(1), shared.item_empty[i].init(256);
    for (int i = 0; i < STAGES; i++) {
      shared.keys_full[i].init(1), shared.keys_empty[i].init(8);
      shared.values_full[i].init(1), shared.values_empty[i].init(8);
    }
    barriers_ready();
  }
  __syncthreads();
  wait_previous();

  if (warp < 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp > 0) return;
    Producer producer = {query, kv, shared, query_at, keys_at, values_at, {0, 1}, {0, 1}, {0, 1}, {0, 1}};
    const u32 num_items = num_tiles * NUM_KV_HEADS, per_section = num_tiles * heads_at_once;
    for (u32 index = blockIdx.x; index < num_items;) {
      u32 ask = 0;
      if (lane == 0) {
        ask = atomicAdd(&asked, 1);
        // Once for each item; the last one to ask leaves a zero.
        if (ask == num_items - 1) asked = 0;
      }
      const u32 rest = index % per_section;
      const uint2 tile = tiles[rest / heads_at_once];
      Item item = {};
      item.kv_head = index / per_section * heads_at_once + rest % heads_at_once;
      item.context = context_lens[tile.x];
      item.token = seq_rows[tile.x] + tile.y;
      item.first = item.context - seq_lens[tile.x] + tile.y;
      item.last = min(item.first + TOKENS, item.context) - 1;
      item.begin = window > 0 ? max(item.first - window + 1, 0) / KEYS : 0;
      item.end = item.last / KEYS + 1;
      const u32* blocks = block_ids + block_starts[tile.x];
      producer.announce(item);
      producer.load_tiles(item, blocks, num_blocks);
      index = gridDim.x + __shfl_sync(FULL, ask, 0);
    }
    producer.announce({});
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int group = warp / 4 - 1, row = group * 64 + warp % 4 * 16 + lane / 4;
  const u64 query_rows = descriptor(query_at + group * 64 * 128, 16, 1024);
  Ring<1> queries = {};
  Ring<2> items = {};
  Ring<STAGES> keys = {}, values = {};
  for (;;) {
    shared.item_full[items.stage].wait(items.parity);
    const Item item = shared.items[items.stage];
    // The compiler then sees that what follows is the same for the whole warp: else descriptors take the long way to the matrix units.
    __syncwarp();
    shared.item_empty[items.stage].arrive();
    items.next();
    if (item.end == 0) break;

    float s[KEYS / 2], o[HEAD_DIM / 2] = {};
    u32 p[KEYS / 4];
    const int last[2] = {min(item.first + row / GROUP, item.last), min(item.first + (row + 8) / GROUP, item.last)};
    Softmax softmax = {scale * LOG2E, window > 0 ? (u32)window : 1u << 31, {last[0], last[1]}};
    auto score = [&] {
      const u64 columns = descriptor(keys_at + keys.stage * TILE_BYTES, 16, OCTET_BYTES);
      wgmma_fence();
#pragma unroll
      for (int c = 0; c < HEAD_DIM / 16; c++)
        product(s, advance(query_rows, c / 4 * ROWS * 128 + c % 4 * 32), advance(columns, c / 4 * 1024 + c % 4 * 32), c > 0);
      wgmma_commit();
    };
    auto weigh = [&] {
      const u64 rows = descriptor(values_at + values.stage * TILE_BYTES, 1024, OCTET_BYTES);
      wgmma_fence();
#pragma unroll
      for (int n = 0; n < PIECES; n++) product(o, p + n * 4, advance(rows, n * 2 * OCTET_BYTES));
      wgmma_commit();
    };
    auto keys_done = [&] {
      if (lane == 0) shared.keys_empty[keys.stage].arrive();
      keys.next();
    };
    auto values_done = [&] {
      if (lane == 0) shared.values_empty[values.stage].arrive();
      values.next();
    };
    auto pack_weights = [&] {
#pragma unroll
      for (int i = 0; i < KEYS / 4; i++) p[i] = pack(s[i * 2], s[i * 2 + 1]);
    };

    shared.query_full.wait(queries.parity);
    shared.keys_full[keys.stage].wait(keys.parity);
    score();
    wgmma_wait<0>(s);
    keys_done();
    softmax.weights(s, item.end - 1, true);
    pack_weights();
    const int stale = item.context - (item.end - 1) * KEYS;
    if (stale < KEYS && stale % 16) {
      shared.values_full[values.stage].wait(values.parity);
      clear_rows(values_at + values.stage * TILE_BYTES, stale);
    }
    auto step = [&](int tile, bool cut) {
      shared.keys_full[keys.stage].wait(keys.parity);
      score();
      shared.values_full[values.stage].wait(values.parity);
      weigh();
      wgmma_wait<1>(s);
      keys_done();
      softmax.weights(s, tile, cut);
      wgmma_wait<0>(o);
      values_done();
      pack_weights();
      if (softmax.grown) {
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; i++) o[i] *= softmax.factor[i / 2 % 2];
      }
    };
    for (int tile = item.end - 2; tile >= item.begin; tile--) {
      // Two copies, so that most tiles have no trace of a mask.
      if (tile * KEYS + KEYS - 1 > item.first || (window > 0 && tile * KEYS <= item.last - window)) step(tile, true);
      else step(tile, false);
    }
    if (lane == 0) shared.query_empty.arrive();
    queries.next();
    shared.values_full[values.stage].wait(values.parity);
    weigh();
    wgmma_wait<0>(o);
    values_done();

#pragma unroll
    for (int h = 0; h < 2; h++) {
      float total = softmax.sum[h];
      total += __shfl_xor_sync(FULL, total, 1);
      total += __shfl_xor_sync(FULL, total, 2);
      const int token = (row + h * 8) / GROUP, head = (row + h * 8) % GROUP;
      elem* to = out + (((u64)(item.token + token) * NUM_KV_HEADS + item.kv_head) * GROUP + head) * HEAD_DIM;
      store_row(to, o, h, __fdividef(1.f, total), token < TOKENS && item.first + token <= item.last);
    }
  }
}
