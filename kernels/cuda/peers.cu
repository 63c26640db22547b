// What the ranks of one host do through each other's memory: sums of a matrix with what follows every row-parallel product (the
// residual and its norm), columns side by side, and rows from stage to stage. Ranks add in the order of ranks, so they hold the same
// bits. Every kernel is launched by all ranks concerned, in the same order; a launch counts itself, so that it can be recorded.
//
// Ladder: 1. `all_reduce_push`, for few rows: a rank writes its row into every peer's mailbox, each 4 bytes with the launch's number
//            beside them, two of each a store, so that data and their arrival are one message, one way. Mailboxes take turns: a peer
//            that is two launches ahead has proof that this rank has read.
//         2. `all_reduce_pull`, for many rows: a barrier a block, then every rank reads its peers' rows where they lie.
//
// -DCOLS: a row's length, a multiple of 8. -DTHREADS: a block's threads. -DRANKS: 1 to 8. -DMAX_BLOCKS, -DMAX_ROWS: of mailboxes.
#define VECTORS (COLS / 8)
#define PER_THREAD ((VECTORS + THREADS - 1) / THREADS)
// Clock cycles after which a peer counts as lost, ten seconds or so: the trap ends the rank, and with it the step.
#define PATIENCE 20000000000ll

struct Peers {
  void* at[8];
};

DEVICE float block_sum(float v) {
  __shared__ float partial[THREADS / 32];
  __syncthreads();
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) sum += partial[i];
  return sum;
}
DEVICE void store_system(void* p, uint4 v) {
  asm volatile("st.volatile.global.v4.u32 [%0],{%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEVICE uint4 load_system(const void* p) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
DEVICE void raise(void* flag, u32 value) { asm volatile("st.release.sys.global.u32 [%0],%1;" ::"l"(flag), "r"(value) : "memory"); }
// Waits until a flag has reached `value`; a peer may be ahead.
DEVICE void await(const void* flag, u32 value) {
  const long long begin = clock64();
  u32 seen;
  do {
    asm volatile("ld.acquire.sys.global.u32 %0,[%1];" : "=r"(seen) : "l"(flag) : "memory");
    if (clock64() - begin > PATIENCE) __trap();
  } while ((int)(seen - value) < 0);
}
// Waits for the block of this number on every peer: what their streams did before it may be read.
DEVICE void meet(const Peers& flags, u32 epoch, int rank) {
  if (threadIdx.x < RANKS && threadIdx.x != rank) {
    raise((u32*)flags.at[threadIdx.x] + rank * MAX_BLOCKS + blockIdx.x, epoch);
    await((const u32*)flags.at[rank] + threadIdx.x * MAX_BLOCKS + blockIdx.x, epoch);
  }
  __syncthreads();
}
DEVICE void add(float (&sum)[8], uint4 v) {
  const u32* w = (const u32*)&v;
#pragma unroll
  for (int j = 0; j < 4; j++) sum[2 * j] += lo(w[j]), sum[2 * j + 1] += hi(w[j]);
}

// The end of both all-reduces. Without a residual `out` is the sum; without a weight the residual becomes it; with both `out` is its norm.
DEVICE void finish(float (&sums)[PER_THREAD][8], elem* residual, const elem* weight, elem* out, float eps) {
  uint4 values[PER_THREAD];
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int at = threadIdx.x + i * THREADS;
    if (at >= VECTORS) continue;
    u32* v = (u32*)&values[i];
    // Rounded as the product's own output would be without ranks, then as the residual is.
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = pack(sums[i][2 * j], sums[i][2 * j + 1]);
    if (!residual) {
      *(uint4*)(out + at * 8) = values[i];
      continue;
    }
    const uint4 old = load4(residual + at * 8);
    const u32* r = (const u32*)&old;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      v[j] = pack(lo(v[j]) + lo(r[j]), hi(v[j]) + hi(r[j]));
      squares += lo(v[j]) * lo(v[j]) + hi(v[j]) * hi(v[j]);
    }
    *(uint4*)(residual + at * 8) = values[i];
  }
  if (!weight) return;
  const float scale = rsqrtf(block_sum(squares) / COLS + eps);
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int at = threadIdx.x + i * THREADS;
    if (at >= VECTORS) continue;
    const uint4 weights = load4(weight + at * 8);
    const u32* w = (const u32*)&weights;
    u32* v = (u32*)&values[i];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = pack(lo(v[j]) * scale * lo(w[j]), hi(v[j]) * scale * hi(w[j]));
    *(uint4*)(out + at * 8) = values[i];
  }
}

// mailboxes: every rank's, [2, RANKS, MAX_ROWS, VECTORS, 2] of 16 bytes, zero at first; epochs: this rank's, [MAX_ROWS], zero at first.
// x, residual, out: [rows, COLS]. A block takes a row.
KERNEL void __launch_bounds__(THREADS) all_reduce_push(const elem* x, elem* residual, const elem* weight, elem* out,
                                                       const __grid_constant__ Peers mailboxes, u32* epochs, int rank, float eps) {
  start_next();
  wait_previous();
  const int row = blockIdx.x;
  const u32 epoch = epochs[row] + 1;
  const u64 box = ((u64)(epoch & 1) * RANKS * MAX_ROWS + row) * VECTORS * 2, from_rank = (u64)MAX_ROWS * VECTORS * 2;
  uint4 own[PER_THREAD];
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int at = threadIdx.x + i * THREADS;
    if (at >= VECTORS) continue;
    own[i] = load4(x + (u64)row * COLS + at * 8);
#pragma unroll
    for (int p = 0; p < RANKS; p++) {
      if (p == rank) continue;
      uint4* to = (uint4*)mailboxes.at[p] + box + rank * from_rank + at * 2;
      store_system(to, make_uint4(own[i].x, epoch, own[i].y, epoch));
      store_system(to + 1, make_uint4(own[i].z, epoch, own[i].w, epoch));
    }
  }
  float sums[PER_THREAD][8] = {};
  const long long begin = clock64();
#pragma unroll
  for (int p = 0; p < RANKS; p++)
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
      const int at = threadIdx.x + i * THREADS;
      if (at >= VECTORS) continue;
      if (p == rank) {
        add(sums[i], own[i]);
        continue;
      }
      const uint4* from = (const uint4*)mailboxes.at[rank] + box + p * from_rank + at * 2;
      uint4 a, b;
      while (true) {
        a = load_system(from), b = load_system(from + 1);
        if (a.y == epoch && a.w == epoch && b.y == epoch && b.w == epoch) break;
        if (clock64() - begin > PATIENCE) __trap();
      }
      add(sums[i], make_uint4(a.x, a.z, b.x, b.z));
    }
  finish(sums, residual ? residual + (u64)row * COLS : residual, weight, out + (u64)row * COLS, eps);
  __syncthreads();  // every thread has read the epoch
  if (threadIdx.x == 0) epochs[row] = epoch;
}

// flags: every rank's, [RANKS, MAX_BLOCKS], zero at first; epochs: this rank's, [MAX_BLOCKS]; xs: every rank's x, which keeps its values
// until the next launch of any kernel of this file. Blocks take rows in turn.
KERNEL void __launch_bounds__(THREADS) all_reduce_pull(const __grid_constant__ Peers xs, elem* residual, const elem* weight, elem* out,
                                                       const __grid_constant__ Peers flags, u32* epochs, int rank, int rows, float eps) {
  start_next();
  wait_previous();
  const u32 epoch = epochs[blockIdx.x] + 1;
  meet(flags, epoch, rank);
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    float sums[PER_THREAD][8] = {};
    uint4 got[RANKS][PER_THREAD];
#pragma unroll
    for (int p = 0; p < RANKS; p++)
#pragma unroll
      for (int i = 0; i < PER_THREAD; i++) {
        const int at = threadIdx.x + i * THREADS;
        if (at < VECTORS) got[p][i] = load_system((const elem*)xs.at[p] + (u64)row * COLS + at * 8);
      }
#pragma unroll
    for (int p = 0; p < RANKS; p++)
#pragma unroll
      for (int i = 0; i < PER_THREAD; i++)
        if (threadIdx.x + i * THREADS < VECTORS) add(sums[i], got[p][i]);
    finish(sums, residual ? residual + (u64)row * COLS : residual, weight, out + (u64)row * COLS, eps);
  }
  if (threadIdx.x == 0) epochs[blockIdx.x] = epoch;
}

// xs: every rank's, [rows, its columns], rank p's columns being those from p * share on; out: [rows, cols]. All f32; share is a
// multiple of 8. Ends when every rank has read, so that xs may be written at once.
KERNEL void __launch_bounds__(THREADS) gather_columns(const __grid_constant__ Peers xs, float* out, const __grid_constant__ Peers flags,
                                                      u32* epochs, int rank, int rows, int cols, int share) {
  start_next();
  wait_previous();
  const u32 epoch = epochs[blockIdx.x] + 2;
  meet(flags, epoch - 1, rank);
  const int first = blockIdx.x * THREADS + threadIdx.x, step = gridDim.x * THREADS;
  for (int row = 0; row < rows; row++)
#pragma unroll
    for (int p = 0; p < RANKS; p++) {
      const int begin = p * share, width = min(share, cols - begin);
      const float* from = (const float*)xs.at[p] + (u64)row * width;
      float* to = out + (u64)row * cols + begin;
      if (cols % 4 == 0) {
        for (int at = first * 4; at < width; at += step * 4) *(uint4*)(to + at) = load_system(from + at);
      } else {
        for (int at = first; at < width; at += step) to[at] = *(const volatile float*)(from + at);
      }
    }
  __syncthreads();
  meet(flags, epoch, rank);
  if (threadIdx.x == 0) epochs[blockIdx.x] = epoch;
}

// inbox: the next stage's, [2, slot_vectors] of 16 bytes; arrived: the next stage's, taken and epochs: this rank's, [MAX_BLOCKS], zero at
// first. x: `vectors` of 16 bytes. Waits until the slot's last contents were taken.
KERNEL void __launch_bounds__(THREADS) send_rows(const uint4* x, uint4* inbox, u32* arrived, const u32* taken, u32* epochs, int vectors,
                                                 int slot_vectors) {
  start_next();
  wait_previous();
  const u32 epoch = epochs[blockIdx.x] + 1;
  if (threadIdx.x == 0) await(taken + blockIdx.x, epoch - 2);
  __syncthreads();
  uint4* to = inbox + (u64)(epoch & 1) * slot_vectors;
  for (int at = blockIdx.x * THREADS + threadIdx.x; at < vectors; at += gridDim.x * THREADS) store_system(to + at, load4(x + at));
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) raise(arrived + blockIdx.x, epoch), epochs[blockIdx.x] = epoch;
}
// inbox, arrived, epochs: this rank's; taken: the stage's before. As many blocks as sent.
KERNEL void __launch_bounds__(THREADS) receive_rows(uint4* out, const uint4* inbox, const u32* arrived, u32* taken, u32* epochs, int vectors,
                                                    int slot_vectors) {
  start_next();
  wait_previous();
  const u32 epoch = epochs[blockIdx.x] + 1;
  if (threadIdx.x == 0) await(arrived + blockIdx.x, epoch);
  __syncthreads();
  const uint4* from = inbox + (u64)(epoch & 1) * slot_vectors;
  for (int at = blockIdx.x * THREADS + threadIdx.x; at < vectors; at += gridDim.x * THREADS) out[at] = load_system(from + at);
  __syncthreads();
  if (threadIdx.x == 0) raise(taken + blockIdx.x, epoch), epochs[blockIdx.x] = epoch;
}
