// y[rows, out] = x[rows, inner] . w[out, inner]^T + bias for the rows of a decode step, on Hopper: the time is that of reading w.
//
// Ladder: 1. Weights are the 64-row operand of wgmma, tokens its columns. A warp has the copy engine (TMA) fill a ring of stages in
//            shared memory, about 200 KB under way a multiprocessor; a warpgroup multiplies straight from there. The ring's first
//            round of weights does not depend on the launch before and is asked for before the wait. 0.4 to 0.8 of the floor.
//         2. A stage is freed by an arrival in the block only: with a cluster's release came a fence that took the latency of
//            memory each time. 0.88 to 0.96 at 8 to 32 rows.
//         3. Stream-K (Osama et al. 2023): tiles that do not go evenly into the blocks are split along k, and the blocks that end in
//            a tile share the sum of its parts, in order, so that the result does not depend on timing. 4096 x 14336 at 64 rows:
//            0.87 to 0.89; where whole tiles fill the memory's queues already, they are as fast without.
//         4. No division a step, in the thread that asks: it held up the loads. 4096 x 4096 at 32 rows: 0.74 to 0.87.
//         5. 32 KB a block beyond the ring are asked into the L2 before the wait (up to 64 rows): 0.93 to 0.97 at 6144 x 4096.
//            More than that, or as the ring goes round, made it slower; so did sharing x among a cluster by multicast, and two tiles
//            a warpgroup.
//         6. silu_mul as an epilogue: 3 to 5 us less a layer up to 128 rows.
//
// -DTOKENS: columns of the instruction, the most rows of x: 8, 16, 32, 64, 128, 256. -DWARPGROUPS: that multiply, 64 rows of w each.
// -DK_BLOCKS: 64 columns each a stage. -DSTAGES. -DEPILOGUE: 0 none, 1 silu_mul. -DOUT_F32: y is float.
#define TILE (64 * WARPGROUPS)
#define CONSUMERS (128 * WARPGROUPS)
// The loading warp; many results a thread need more registers than all can have, so then a warpgroup gives up most of its own.
#define REGISTERS_MOVE (TOKENS > 128 && WARPGROUPS > 1)
#define THREADS (CONSUMERS + (REGISTERS_MOVE ? 128 : 32))
#define W_BLOCK (TILE * 128)
#define X_BLOCK (TOKENS * 128)
#define X_AT (K_BLOCKS * W_BLOCK)
#define STAGE_BYTES (K_BLOCKS * (W_BLOCK + X_BLOCK))
#define ACC (TOKENS / 2)
// Stages of weights that are asked into the L2 behind the ring's first round.
#define AHEAD (TOKENS <= 64 ? 4 / K_BLOCKS : 0)
// With the epilogue every 16 rows of a tile are 8 gates and their ups.
#define OUT_TILE (EPILOGUE ? TILE / 2 : TILE)
// A thread's results are written in units: of 16 tokens where there are so many.
#define UNIT (TOKENS == 8 ? 4 : 8)
#define UNITS (ACC / UNIT)
#define PARTIAL (ACC * CONSUMERS)

#ifdef OUT_F32
typedef float result;
DEVICE result finish(float v) { return v; }
#else
typedef elem result;
DEVICE result finish(float v) { return to_elem(v); }
#endif

DEVICE u64 policy_once() { u64 p; asm volatile("createpolicy.fractional.L2::evict_first.b64 %0,1.0;" : "=l"(p)); return p; }
DEVICE u64 policy_keep() { u64 p; asm volatile("createpolicy.fractional.L2::evict_last.b64 %0,1.0;" : "=l"(p)); return p; }
DEVICE void load_box(u32 to, const TensorMap* map, int k, int row, Barrier& full, u64 policy) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0],[%1,{%2,%3}],[%4],%5;" ::"r"(to),
               "l"(map), "r"(k), "r"(row), "r"(full.address()), "l"(policy)
               : "memory");
}
DEVICE void load_weights(u32 to, const TensorMap* map, int k, int tile, Barrier& full, u64 policy) {
#if EPILOGUE
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0],[%1,{%2,%3,%3,%4}],[%5],%6;" ::"r"(to),
               "l"(map), "r"(k), "r"(0), "r"(tile * (TILE / 16)), "r"(full.address()), "l"(policy)
               : "memory");
#else
  load_box(to, map, k, tile * TILE, full, policy);
#endif
}
DEVICE void prefetch_weights(const TensorMap* map, int k, int tile) {
#if EPILOGUE
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0,{%1,%2,%2,%3}];" ::"l"(map), "r"(k), "r"(0), "r"(tile * (TILE / 16)) : "memory");
#else
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0,{%1,%2}];" ::"l"(map), "r"(k), "r"(tile * TILE) : "memory");
#endif
}
DEVICE uint4 load_shared(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}

#define R4 "%0,%1,%2,%3"
#define R8 R4 ",%4,%5,%6,%7"
#define R16 R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define R128 R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define MULTIPLY(COLUMNS, REGISTERS, A, B, P, ...) \
  asm volatile("{.reg .pred p;\nsetp.ne.b32 p," P ",0;\n" WGMMA(COLUMNS) " {" REGISTERS "}," A "," B ",p,1,1,0,0;\n}" : __VA_ARGS__ : "l"(a), "l"(b), "r"(add))
// d = a (64 x 16) . b (16 x TOKENS) + (add ? d : 0)
DEVICE void multiply(float (&d)[ACC], u64 a, u64 b, int add) {
#if TOKENS == 8
  MULTIPLY("8", R4, "%4", "%5", "%6", "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]));
#elif TOKENS == 16
  MULTIPLY("16", R8, "%8", "%9", "%10", F8(d, 0));
#elif TOKENS == 32
  MULTIPLY("32", R16, "%16", "%17", "%18", F8(d, 0), F8(d, 8));
#elif TOKENS == 64
  MULTIPLY("64", R32, "%32", "%33", "%34", F32(d, 0));
#elif TOKENS == 128
  MULTIPLY("128", R64, "%64", "%65", "%66", F64(d));
#else
  MULTIPLY("256", R128, "%128", "%129", "%130", F32(d, 0), F32(d, 32), F32(d, 64), F32(d, 96));
#endif
}
// A K-major operand: groups of 8 rows follow one another.
DEVICE u64 operand(u32 address) { return descriptor(address, 16, 1024); }

// A block's part of all steps along k of all tiles: first a share of the tiles that do not go evenly into the blocks, split where the
// share ends, then whole tiles.
struct Work {
  const elem* bias;  // null, or [out]
  result* y;
  float* partial;  // [blocks, 2, PARTIAL]: what a block leaves of the first and of the last split tile it has a part of
  u32* counters;   // [tiles], zero between launches
  int rows, out, steps;
  // The first `uneven` tiles are split among `sharers` blocks: this one takes steps `begin` to `end` of them, of `total` in all.
  int uneven, sharers, begin, end, total;
  u32 ring, scratch;
  Barrier *full, *empty;  // [STAGES]

  DEVICE int first_step(int block) const { return (int)((long long)uneven * steps * block / sharers); }
  DEVICE int block_at(int step) const {
    int block = (int)((long long)step * sharers / (uneven * steps));
    while (first_step(block + 1) <= step) block++;
    return block;
  }
};

// A block's steps in order; counted, since a division a step would take longer than the multiplication.
struct Cursor {
  int i, tile, at;
  DEVICE void start(const Work& p) {
    i = 0, tile = p.uneven + blockIdx.x, at = 0;
    if (p.begin < p.end) tile = p.begin / p.steps, at = p.begin % p.steps;
  }
  DEVICE void next(const Work& p) {
    const bool splits = i < p.end - p.begin;
    i++, at++;
    if (splits && i == p.end - p.begin) tile = p.uneven + blockIdx.x, at = 0;
    else if (at == p.steps) tile += splits ? 1 : (int)gridDim.x, at = 0;
  }
};

// Fills the ring: one warp, of which lane 0 asks.
struct Producer {
  const Work& work;
  const TensorMap *w_map, *x_map;
  u64 once, keep;
  bool asks;

  DEVICE void load_w(int slot, const Cursor& c) const {
    const u32 to = work.ring + slot * STAGE_BYTES;
    if (asks) {
      work.full[slot].expect(STAGE_BYTES);
#pragma unroll
      for (int b = 0; b < K_BLOCKS; b++) load_weights(to + b * W_BLOCK, w_map, (c.at * K_BLOCKS + b) * 64, c.tile, work.full[slot], once);
    }
  }
  DEVICE void load_x(int slot, const Cursor& c) const {
    const u32 to = work.ring + slot * STAGE_BYTES + X_AT;
    if (asks) {
#pragma unroll
      for (int b = 0; b < K_BLOCKS; b++) load_box(to + b * X_BLOCK, x_map, (c.at * K_BLOCKS + b) * 64, 0, work.full[slot], keep);
    }
  }
  // The ring's first round of weights, and a little more into the L2.
  DEVICE void start(Cursor& next) const {
    next.start(work);
#pragma unroll 1
    for (; next.i < min(work.total, STAGES); next.next(work)) load_w(next.i, next);
    Cursor far = next;
#pragma unroll 1
    for (; far.i < min(work.total, STAGES + AHEAD); far.next(work))
      if (asks) {
#pragma unroll
        for (int b = 0; b < K_BLOCKS; b++) prefetch_weights(w_map, (far.at * K_BLOCKS + b) * 64, far.tile);
      }
  }
  DEVICE void run(Cursor& next) const {
    wait_previous();
    Cursor first;
    first.start(work);
#pragma unroll 1
    for (; first.i < next.i; first.next(work)) load_x(first.i, first);
    Ring<STAGES> slot = {};
#pragma unroll 1
    for (; next.i < work.total; next.next(work), slot.next()) {
      work.empty[slot.stage].wait(slot.parity);
      load_w(slot.stage, next);
      load_x(slot.stage, next);
    }
  }
};

DEVICE float silu(float v) { return v / (1.f + __expf(-v)); }
DEVICE float rounded(float v) { return to_float(to_elem(v)); }

DEVICE void write(const Work& p, int token, int row, float v) {
  if (token < p.rows && row < p.out) p.y[(u64)token * p.out + row] = finish(v);
}
DEVICE void write8(const Work& p, int token, int row, const uint4& v) {
  if (token >= p.rows) return;
  elem* to = (elem*)p.y + (u64)token * p.out + row;
  if (row + 8 <= p.out && p.out % 8 == 0) {
    *(uint4*)to = v;
    return;
  }
  const elem* e = (const elem*)&v;
#pragma unroll
  for (int j = 0; j < 8; j++)
    if (row + j < p.out) to[j] = e[j];
}

// Unit `u` of a warp's results in `tile`: 16 rows (8 outputs with the epilogue), of each 8 tokens a thread has rows g and g + 8 and tokens
// 2t and 2t + 1.
DEVICE void write_unit(const Work& p, int tile, int u, float (&c)[UNIT]) {
  const int lane = threadIdx.x % 32, token0 = u * UNIT * 2, row = tile * TILE + threadIdx.x / 32 * 16;
#if EPILOGUE
#pragma unroll
  for (int i = 0; i < UNIT; i += 4)
#pragma unroll
    for (int j = 0; j < 2; j++) c[i + j] = silu(rounded(c[i + j])) * rounded(c[i + j + 2]);
#if TOKENS == 8
  write(p, token0 + lane % 4 * 2, row / 2 + lane / 4, c[0]);
  write(p, token0 + lane % 4 * 2 + 1, row / 2 + lane / 4, c[1]);
#else
  const u32 m0 = pack(c[0], c[1]), m1 = pack(c[4], c[5]);
  __syncwarp();
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0],{%1,%2};" ::"r"(p.scratch + lane % 16 * 16), "r"(m0), "r"(m1) : "memory");
  __syncwarp();
  if (lane < 16) write8(p, token0 + lane, row / 2, load_shared(p.scratch + lane * 16));
#endif
#else
  const int g = lane / 4;
  const float bias[2] = {p.bias && row + g < p.out ? to_float(p.bias[row + g]) : 0.f, p.bias && row + g + 8 < p.out ? to_float(p.bias[row + g + 8]) : 0.f};
#pragma unroll
  for (int i = 0; i < UNIT; i++) c[i] += bias[i / 2 % 2];
#if defined(OUT_F32) || TOKENS == 8
#pragma unroll
  for (int i = 0; i < UNIT; i++) write(p, token0 + i / 4 * 8 + lane % 4 * 2 + i % 2, row + g + i / 2 % 2 * 8, c[i]);
#else
  // Turned in shared memory: then two lanes have a token's 16 rows, a whole sector.
  const u32 m0 = pack(c[0], c[1]), m1 = pack(c[2], c[3]), m2 = pack(c[4], c[5]), m3 = pack(c[6], c[7]);
  const int turned = (lane / 16 * 8 + lane % 8) * 32 + lane / 8 % 2 * 16;
  __syncwarp();
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(p.scratch + turned), "r"(m0), "r"(m1), "r"(m2), "r"(m3) : "memory");
  __syncwarp();
  write8(p, token0 + lane / 2, row + lane % 2 * 8, load_shared(p.scratch + lane * 16));
#endif
#endif
}

// What a block leaves for others: each thread's results, 16 bytes side by side.
DEVICE float4* partial_of(const Work& p, int block, int last) {
  return (float4*)(p.partial + ((u64)block * 2 + last) * PARTIAL) + threadIdx.x;
}
DEVICE void consumers_sync() { asm volatile("bar.sync 1,%0;" ::"n"(CONSUMERS) : "memory"); }
DEVICE void leave_partial(const Work& p, float (&acc)[ACC], u32* counter, int last) {
  float4* to = partial_of(p, blockIdx.x, last);
#pragma unroll
  for (int i = 0; i < ACC / 4; i++) {
    const float* c = acc + i * 4;
    to[i * CONSUMERS] = make_float4(c[0], c[1], c[2], c[3]);
  }
  consumers_sync();
  if (threadIdx.x == 0) asm volatile("fence.acq_rel.gpu;\nred.relaxed.gpu.global.add.u32 [%0],1;" ::"l"(counter) : "memory");
}
// The blocks whose share ends in a tile divide the sum of its parts, each part added in the order of k.
DEVICE void sum_partials(const Work& p, int tile, u32* counter) {
  const int first = p.block_at(tile * p.steps), last = p.block_at((tile + 1) * p.steps - 1);
  const bool all_end = p.first_step(last + 1) == (tile + 1) * p.steps;
  const int enders = last - first + all_end, mine = blockIdx.x - first;
  if (threadIdx.x == 0) {
    u32 arrived;
    do asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(arrived) : "l"(counter) : "memory");
    while ((arrived & 0xffff) != last - first + 1);
  }
  consumers_sync();
  if (threadIdx.x == 0 && atomicAdd(counter, 1 << 16) >> 16 == enders - 1) *counter = 0;
  for (int u = UNITS * mine / enders; u < UNITS * (mine + 1) / enders; u++) {
    float c[UNIT] = {};
    for (int from = first; from <= last; from++) {
      const float4* part = partial_of(p, from, from < last || all_end);
#pragma unroll
      for (int i = 0; i < UNIT; i += 4) {
        const float4 v = __ldcg(part + (u * UNIT + i) / 4 * CONSUMERS);
        c[i] += v.x, c[i + 1] += v.y, c[i + 2] += v.z, c[i + 3] += v.w;
      }
    }
    write_unit(p, tile, u, c);
  }
}
DEVICE void write_tile(const Work& p, float (&acc)[ACC], int tile) {
#pragma unroll
  for (int u = 0; u < UNITS; u++) {
    float c[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; i++) c[i] = acc[u * UNIT + i];
    write_unit(p, tile, u, c);
  }
}

// Multiplies the steps as they come.
DEVICE void consume(const Work& p) {
  const int row0 = threadIdx.x / 128 * 64, split = p.end - p.begin;
  const bool frees = threadIdx.x % 32 == 0;
  float acc[ACC] = {};
  Ring<STAGES> slot = {};
  Cursor c;
  c.start(p);
  for (int i = 0; i < p.total;) {
    const int from = i, to = i < split ? min(split, i + p.steps - c.at) : i + p.steps;
    int before = 0;
#pragma unroll 1
    for (; i < to; i++, slot.next()) {
      p.full[slot.stage].wait(slot.parity);
      const u32 stage = p.ring + slot.stage * STAGE_BYTES, w = stage + row0 * 128, x = stage + X_AT;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < K_BLOCKS; k++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          multiply(acc, operand(w + k * W_BLOCK + j * 32), operand(x + k * X_BLOCK + j * 32), i > from || k + j);
      wgmma_commit();
      // The stage before this one is read.
      wgmma_wait<1>();
      if (i > from && frees) p.empty[before].arrive();
      before = slot.stage;
    }
    wgmma_wait<0>(acc);
    if (frees) p.empty[before].arrive();
    if (to - from == p.steps) {
      write_tile(p, acc, c.tile);
    } else {
      leave_partial(p, acc, p.counters + c.tile, to == split);
      if (to == split) sum_partials(p, c.tile, p.counters + c.tile);
    }
    c.tile = to == split ? p.uneven + blockIdx.x : c.tile + (to < split ? 1 : (int)gridDim.x), c.at = 0;
  }
}

// w_map: boxes of 64 columns and TILE rows of w, swizzled by 128 bytes; with the epilogue w is [gate | up] and a box's rows are 8 of
// each in turn. x_map: boxes of 64 columns and TOKENS rows of x. w is not written by the launch before. All blocks run at once.
KERNEL void __launch_bounds__(THREADS, 1)
    decode_gemm(const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap x_map, const elem* bias, result* y, float* partial,
                u32* counters, int rows, int out, int inner, int sharers) {
  extern __shared__ uint4 dynamic[];
  __shared__ Barrier full[STAGES], empty[STAGES];
  __shared__ uint4 scratch[CONSUMERS];
  const int tiles = (out + OUT_TILE - 1) / OUT_TILE, block = blockIdx.x;
  Work work = {bias, y, partial, counters, rows, out, (inner + 64 * K_BLOCKS - 1) / (64 * K_BLOCKS)};
  work.uneven = tiles % gridDim.x, work.sharers = sharers;
  work.begin = block < sharers ? work.first_step(block) : 0, work.end = block < sharers ? work.first_step(block + 1) : 0;
  work.total = work.end - work.begin + tiles / gridDim.x * work.steps;
  work.ring = (shared_address(dynamic) + 1023) & ~1023u;
  work.full = full, work.empty = empty;
  work.scratch = shared_address(scratch) + threadIdx.x / 32 * 512;

  start_next();
  const bool produces = threadIdx.x >= CONSUMERS && threadIdx.x < CONSUMERS + 32;
  const Producer producer = {work, &w_map, &x_map, policy_once(), policy_keep(), threadIdx.x == CONSUMERS};
  Cursor next;
  if (produces) {
    if (producer.asks) {
      for (int s = 0; s < STAGES; s++) full[s].init(1), empty[s].init(4 * WARPGROUPS);
      barriers_ready();
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
    producer.start(next);
  }
  __syncthreads();
  if (threadIdx.x < CONSUMERS) {
#if REGISTERS_MOVE
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
    consume(work);
  } else {
#if REGISTERS_MOVE
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
    if (produces) producer.run(next);
  }
}
