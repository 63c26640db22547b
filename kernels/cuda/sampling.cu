// A token from each row of logits, and how likely tokens were: the same as cpu/sampling.rs, bit for bit. Weights are integers made
// by operations that round alike everywhere, and sums of integers do not depend on their order.
//
// Ladder: 1. The greedy choice alone: one block a row, one pass, 4 bytes a load. 48 us for 256 rows of 128,256 on an H100, 13 for one.
//         2. One kernel for all kinds of rows, a block a row, a warp a stretch of it, 16 bytes a load and four under way. Greedy is
//            one pass. The others know the largest logit after it, and a bound: the k-th largest of what the threads saw first is no
//            larger than the k-th largest of all. So the second pass keeps a few more than k candidates in shared memory, where
//            each counts who is before it: cut and draw without a sort. Without cuts the second pass sums each warp's stretch, and
//            only the one with the draw is read again. A nucleus or top-k too large for the candidates is found by a radix search
//            over depths: two more passes with 13 bits each, then one to draw. 256 rows: greedy 50 us (one row: 9), top-k 50 and
//            top-p 0.9 101, temperature alone 112, a nucleus of thousands 309.
struct Row {
  u64 uniform, nucleus;
  float scale;
  u32 max_depth, top_k, target, num_top, first_edit, num_edits, num_pending;
  float repetition_penalty, presence_penalty, frequency_penalty;
  u32 only_edits, scratch, padding;
};
struct Edit { u32 token; float bias; u32 seen; float saved; };
struct Result { u64 total; u32 token, rank; float logit, top; };
struct Likely { u32 token; float logit; };

#define NONE 0xffffffffu
#define OCTAVE (1u << 20)
#define MAX_DEPTH (44u << 20)
#define NATURAL_SCALE (LOG2E * 1048576.f)
// The most that are cut and drawn from in shared memory, one a thread.
#define CANDIDATES 512
// Bins of a round of the radix search, and the bits of a depth that it leaves to the next.
#define BINS 8192
#define BIN_BITS 13

// A row as the 16-byte words that it touches; `skew` of the first word's elements are another row's.
struct Words {
  const float4* first;
  int skew, cols, count, share;
  DEVICE void set(const float* row, int num_cols) {
    skew = (int)((u64)row / 4 % 4), cols = num_cols;
    first = (const float4*)(row - skew);
    count = (skew + cols + 3) / 4;
    const int warps = blockDim.x / 32;
    share = (count + warps - 1) / warps;
  }
  // A word with minus infinity for what is outside the row.
  DEVICE float4 masked(float4 v, int at) const {
    const int id = at * 4 - skew;
    if (id < 0 || id + 4 > cols) {
      if ((u32)id >= (u32)cols) v.x = NEG_INF;
      if ((u32)(id + 1) >= (u32)cols) v.y = NEG_INF;
      if ((u32)(id + 2) >= (u32)cols) v.z = NEG_INF;
      if ((u32)(id + 3) >= (u32)cols) v.w = NEG_INF;
    }
    return v;
  }
  DEVICE float4 load(int at) const { return masked(first[at], at); }
  DEVICE float logit(u32 token) const { return ((const float*)first)[skew + token]; }
  // Calls f(word, id of its first element) for this thread's words of the whole row: a warp has a stretch of it, and a thread LOADS
  // loads under way.
  template <int LOADS, class F> DEVICE void each(F f) const {
    const Words words = *this;
    const int begin = threadIdx.x / 32 * words.share, end = min(begin + words.share, words.count);
    float4 v[LOADS];
    int at = begin + threadIdx.x % 32;
#pragma unroll 1
    for (; at + 32 * (LOADS - 1) < end; at += 32 * LOADS) {
#pragma unroll
      for (int i = 0; i < LOADS; i++) v[i] = words.first[at + 32 * i];
#pragma unroll
      for (int i = 0; i < LOADS; i++) f(words.masked(v[i], at + 32 * i), (at + 32 * i) * 4 - words.skew);
    }
#pragma unroll
    for (int i = 0; i < LOADS - 1; i++)
      if (at + 32 * i < end) v[i] = words.first[at + 32 * i];
#pragma unroll
    for (int i = 0; i < LOADS - 1; i++)
      if (at + 32 * i < end) f(words.masked(v[i], at + 32 * i), (at + 32 * i) * 4 - words.skew);
  }
  // Calls f(logit, id) for each element.
  template <int LOADS, class F> DEVICE void each_logit(F f) const {
    each<LOADS>([&](float4 v, int id) { f(v.x, id), f(v.y, id + 1), f(v.z, id + 2), f(v.w, id + 3); });
  }
};

// What the block's threads share; its registers are full.
struct Shared {
  union {
    struct { u64 key[CANDIDATES], weight[CANDIDATES]; };
    struct { u32 high[BINS], low[BINS]; };
  };
  u64 part[32], before;
  Row row;
  Words words;
  u32 ties[32], top, token, count, bin;
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "more shared memory than the launcher asks for");

DEVICE float max_nan(float a, float b) { float r; asm("max.NaN.f32 %0,%1,%2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
// Bits that are ordered as floats are, the largest first.
DEVICE u32 descending(float v) { const u32 b = __float_as_uint(v); return b ^ ((int)b >> 31 & 0x7fffffff) ^ 0x7fffffff; }

DEVICE u32 depth_of(float top, float v, float scale) {
  return __float2uint_rz(fminf(__fadd_rn(__fmul_rn(__fsub_rn(top, v), scale), .5f), (float)MAX_DEPTH));
}
// 2^-x of the depth's fraction x of an octave, times 2^23.
DEVICE u32 mantissa(u32 depth) {
  const float x = __uint_as_float(0x3f800000u | (depth % OCTAVE) << 3) - 1.f;
  float sum = -9.449037e-4f;
  sum = __fadd_rn(__fmul_rn(sum, x), 9.205799e-3f);
  sum = __fadd_rn(__fmul_rn(sum, x), -5.529736e-2f);
  sum = __fadd_rn(__fmul_rn(sum, x), .24018015f);
  sum = __fadd_rn(__fmul_rn(sum, x), -.6931437f);
  sum = __fadd_rn(__fmul_rn(sum, x), 2.f);
  return __float_as_uint(sum) - 0x3f800000u;
}
DEVICE u64 weight_of(u32 depth) { return (u64)mantissa(depth) << 20 >> depth / OCTAVE; }
// The share of a total that a nucleus has at least.
DEVICE u64 nucleus_weight(u64 nucleus, u64 total) {
  const u64 rounded_up = __umul64hi(nucleus, total) + (nucleus * total != 0);
  return rounded_up ? rounded_up : 1;
}

DEVICE u64 warp_sum64(u64 v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(FULL, v, o);
  return v;
}
// The block's sum, in every thread.
DEVICE u64 block_sum(Shared& shared, u64 v) {
  const int lane = threadIdx.x % 32;
  v = warp_sum64(v);
  if (lane == 0) shared.part[threadIdx.x / 32] = v;
  __syncthreads();
  v = warp_sum64(lane < blockDim.x / 32 ? shared.part[lane] : 0);
  __syncthreads();
  return v;
}
// The sum of the threads before this one; `total` is the block's.
DEVICE u64 sum_before(Shared& shared, u64 v, u64& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto scan = [&](u64 v) {
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const u64 other = __shfl_up_sync(FULL, v, o);
      v += lane >= o ? other : 0;
    }
    return v;
  };
  const u64 own = scan(v);
  if (lane == 31) shared.part[warp] = own;
  __syncthreads();
  const u64 warps = scan(lane < blockDim.x / 32 ? shared.part[lane] : 0);
  total = __shfl_sync(FULL, warps, 31);
  const u64 base = __shfl_sync(FULL, warps, max(warp - 1, 0));
  __syncthreads();
  return own - v + (warp ? base : 0);
}

struct Best { float mine, top; u32 token; bool broken; };

// The largest logit with the lowest token, and the largest that this thread saw.
DEVICE Best find_best(Shared& shared) {
  float mine = NEG_INF, all = NEG_INF;
  int where = 0;
  shared.words.each<4>([&](float4 v, int id) {
    const float m = max_nan(max_nan(v.x, v.y), max_nan(v.z, v.w));
    all = max_nan(all, m);
    if (m > mine) mine = m, where = id;
  });
  if (threadIdx.x == 0) shared.top = NONE, shared.token = NONE;
  const bool broken = __syncthreads_or(!(all < -NEG_INF));
  if (broken) return {mine, mine, NONE, true};
  const u32 warp_top = __reduce_min_sync(FULL, descending(mine));
  if (threadIdx.x % 32 == 0) atomicMin(&shared.top, warp_top);
  __syncthreads();
  const u32 bits = shared.top ^ 0x7fffffff;
  const float top = __uint_as_float(bits ^ ((int)bits >> 31 & 0x7fffffff));
  if (mine == top) {
    const float4 v = shared.words.load((where + shared.words.skew) / 4);
    const int i = v.x == top ? 0 : v.y == top ? 1 : v.z == top ? 2 : 3;
    // In a row of minus infinities only, `where` is still the first.
    atomicMin(&shared.token, top == NEG_INF ? 0 : where + i);
  }
  __syncthreads();
  const u32 token = shared.token;
  __syncthreads();
  return {mine, top, token, false};
}

// A bound that at least `count` threads' values do not exceed, and not many more; `most` if there are not that many.
DEVICE u32 bound(u32 value, u32 count, u32 most) {
  u32 low = 0, high = most;
  while (low < high) {
    const u32 middle = low + (high - low) / 2, found = __syncthreads_count(value <= middle);
    if (found >= count) high = middle; else low = middle + 1;
    if (found >= count && found <= count + count / 8) break;
  }
  return high;
}

// What is kept of a row: tokens above a depth, and so many of the lowest at it.
struct Cut { u32 depth, ties; };

// Narrows a cut to the most likely tokens that together have `top_k` in number, or a share of the weight.
DEVICE Cut narrowed(Shared& shared, float top, Cut cut, bool by_weight) {
  const float scale = shared.row.scale;
  u64 wanted = 0;
  u32 prefix = 0;
#pragma unroll 1
  for (int round = 0; round < 2; round++) {
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) shared.high[i] = shared.low[i] = 0;
    __syncthreads();
    auto add = [&](u32 depth, u32 times) {
      const u32 bin = round ? depth % BINS : depth >> BIN_BITS;
      if (!by_weight) {
        atomicAdd(&shared.low[bin], times);
      } else {
        // All of a bin have one octave, so that the shift by it can wait.
        const u32 octave = depth / OCTAVE, part = octave < 20 ? mantissa(depth) : mantissa(depth) >> (octave - 20);
        atomicAdd(&shared.high[bin], (part >> 12) * times);
        atomicAdd(&shared.low[bin], (part & 4095) * times);
      }
    };
    shared.words.each_logit<2>([&](float v, int) {
      const u32 depth = depth_of(top, v, scale);
      if (depth < cut.depth && (!round || depth >> BIN_BITS == prefix)) add(depth, 1);
    });
    if (threadIdx.x == 0 && cut.ties && (!round || cut.depth >> BIN_BITS == prefix)) add(cut.depth, cut.ties);
    __syncthreads();
    auto value = [&](int bin) {
      const u32 octave = (round ? prefix : bin) >> (20 - BIN_BITS);
      const u64 sum = ((u64)shared.high[bin] << 12) + shared.low[bin];
      return by_weight && octave < 20 ? sum << (20 - octave) : sum;
    };
    const int each = BINS / blockDim.x, first = threadIdx.x * each;
    u64 own = 0, total;
    for (int i = 0; i < each; i++) own += value(first + i);
    u64 before = sum_before(shared, own, total);
    if (round == 0) {
      wanted = by_weight ? nucleus_weight(shared.row.nucleus, total) : shared.row.top_k;
      if (wanted >= total) return cut;
    }
    if (before < wanted && wanted <= before + own) {
      int bin = first;
      for (; before + value(bin) < wanted; bin++) before += value(bin);
      shared.bin = bin, shared.before = before;
    }
    __syncthreads();
    prefix = prefix << BIN_BITS | shared.bin;
    wanted -= shared.before;
    __syncthreads();
  }
  const u64 each = by_weight ? weight_of(prefix) : 1;
  return {prefix, (u32)((wanted + each - 1) / each)};
}

// Draws among what a cut keeps.
DEVICE u32 draw_within(Shared& shared, float top, Cut cut) {
  const float scale = shared.row.scale;
  const u64 tie_weight = weight_of(cut.depth);
  auto kept = [&](u64 sum, u32 ties) { return sum + min(ties, cut.ties) * tie_weight; };
  auto add = [&](float v, u64& sum, u32& ties) {
    const u32 depth = depth_of(top, v, scale);
    if (depth < cut.depth) sum += weight_of(depth);
    ties += depth == cut.depth;
  };
  u64 sum = 0;
  u32 ties = 0;
  shared.words.each_logit<4>([&](float v, int) { add(v, sum, ties); });
  sum = warp_sum64(sum), ties = __reduce_add_sync(FULL, ties);
  if (threadIdx.x % 32 == 0) shared.part[threadIdx.x / 32] = sum, shared.ties[threadIdx.x / 32] = ties;
  if (threadIdx.x == 0) shared.token = 0;
  __syncthreads();
  sum = 0, ties = 0;
  const int warps = blockDim.x / 32;
  for (int w = 0; w < warps; w++) sum += shared.part[w], ties += shared.ties[w];
  const u64 target = __umul64hi(shared.row.uniform, kept(sum, ties));
  sum = 0, ties = 0;
  int stretch = 0;
  for (; stretch < warps - 1 && kept(sum + shared.part[stretch], ties + shared.ties[stretch]) <= target; stretch++)
    sum += shared.part[stretch], ties += shared.ties[stretch];
  __syncthreads();
  // The stretch with the draw, a few words a thread.
  const int begin = stretch * shared.words.share, end = min(begin + shared.words.share, shared.words.count);
  const int each = (end - begin + (int)blockDim.x - 1) / (int)blockDim.x;
  const int from = min(begin + (int)threadIdx.x * each, end), to = min(from + each, end);
  u64 own = 0, ignored;
  u32 own_ties = 0;
  for (int at = from; at < to; at++) {
    const float4 v = shared.words.load(at);
    add(v.x, own, own_ties), add(v.y, own, own_ties), add(v.z, own, own_ties), add(v.w, own, own_ties);
  }
  sum += sum_before(shared, own, ignored);
  ties += (u32)sum_before(shared, own_ties, ignored);
  if (kept(sum, ties) <= target && target < kept(sum + own, ties + own_ties)) {
    u32 token = NONE;
    for (int at = from; at < to && token == NONE; at++) {
      const float4 word = shared.words.load(at);
      const float v[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (token == NONE) {
          add(v[i], sum, ties);
          if (target < kept(sum, ties)) token = at * 4 + i - shared.words.skew;
        }
    }
    shared.token = token;
  }
  __syncthreads();
  return shared.token;
}

// Cuts and draws among candidates in shared memory, which are all that may be kept; NONE if a nucleus needs more.
DEVICE u32 draw_among(Shared& shared, int count, u64 total) {
  const int i = threadIdx.x;
  const bool here = i < count;
  const u64 key = here ? shared.key[i] : 0, weight = here ? weight_of((u32)(key >> 32)) : 0;
  if (here) shared.weight[i] = weight;
  if (i == 0) shared.token = NONE;
  __syncthreads();
  u64 before = 0;
  u32 rank = 0;
  if (here)
    for (int j = 0; j < count; j++)
      if (shared.key[j] < key) before += shared.weight[j], rank++;
  bool kept = here && (!shared.row.top_k || rank < shared.row.top_k);
  const u64 sum = block_sum(shared, kept ? weight : 0);
  if (shared.row.nucleus) {
    const u64 wanted = nucleus_weight(shared.row.nucleus, shared.row.top_k ? sum : total);
    if (sum < wanted) return NONE;
    kept &= before < wanted;
  }
  const u64 target = __umul64hi(shared.row.uniform, block_sum(shared, kept ? weight : 0));
  if (here && !kept) shared.weight[i] = 0;
  __syncthreads();
  if (kept) {
    u64 lower = 0;
    for (int j = 0; j < count; j++)
      if ((u32)shared.key[j] < (u32)key) lower += shared.weight[j];
    if (lower <= target && target < lower + weight) shared.token = (u32)key;
  }
  __syncthreads();
  return shared.token;
}

DEVICE u32 draw(Shared& shared, const Best& best) {
  const float scale = shared.row.scale;
  const u32 max_depth = shared.row.max_depth, enough = shared.row.top_k ? shared.row.top_k : CANDIDATES / 4;
  const bool sums = !shared.row.top_k;
  if ((shared.row.top_k || shared.row.nucleus) && enough <= CANDIDATES / 2) {
    const u32 deepest = bound(depth_of(best.top, best.mine, scale), enough, max_depth);
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    u64 total = 0;
    shared.words.each_logit<4>([&](float v, int id) {
      const u32 depth = depth_of(best.top, v, scale);
      if (sums && depth <= max_depth) total += weight_of(depth);
      if (depth <= deepest) {
        const u32 at = atomicAdd(&shared.count, 1);
        if (at < CANDIDATES) shared.key[at] = (u64)depth << 32 | (u32)id;
      }
    });
    total = block_sum(shared, total);
    const u32 count = shared.count;
    if (count <= CANDIDATES) {
      const u32 token = draw_among(shared, count, total);
      if (token != NONE) return token;
    }
    __syncthreads();
  }
  Cut cut = {max_depth + 1, 0};
#pragma unroll 1
  for (int by_weight = 0; by_weight < 2; by_weight++)
    if (by_weight ? shared.row.nucleus : shared.row.top_k) cut = narrowed(shared, best.top, cut, by_weight);
  return draw_within(shared, best.top, cut);
}

// What the softmax of a row needs, the rank of a token, and the most likely tokens.
DEVICE void look_up(Shared& shared, const Best& best, u32 num_top, float own, Result& result, Likely* likely) {
  const u32 deepest = num_top && num_top <= CANDIDATES / 2 ? bound(descending(best.mine), num_top, NONE - 1) : 0;
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  u64 total = 0;
  u32 rank = 0;
  shared.words.each_logit<4>([&](float v, int id) {
    total += weight_of(depth_of(best.top, v, NATURAL_SCALE));
    rank += v >= own;
    // Minus infinities are as many as they like; they are looked for below.
    if (descending(v) <= deepest && v > NEG_INF) {
      const u32 at = atomicAdd(&shared.count, 1);
      if (at < CANDIDATES) shared.key[at] = (u64)descending(v) << 32 | (u32)id;
    }
  });
  total = block_sum(shared, total);
  rank = (u32)block_sum(shared, rank);
  const u32 count = shared.count;
  result.total = total, result.rank = own == NEG_INF ? shared.words.cols : rank, result.logit = own, result.top = best.top;
  if (count >= num_top && count <= CANDIDATES) {
    const u64 key = threadIdx.x < count ? shared.key[threadIdx.x] : ~0ull;
    u32 before = threadIdx.x < count ? 0 : num_top;
    for (u32 j = 0; j < count && before < num_top; j++) before += shared.key[j] < key;
    if (before < num_top) likely[before] = {(u32)key, shared.words.logit((u32)key)};
    return;
  }
  // Too many are alike, or wanted: one pass for each.
  u64 last = 0;
  for (u32 n = 0; n < min(num_top, (u32)shared.words.cols); n++) {
    u64 next = ~0ull;
    shared.words.each_logit<1>([&](float v, int id) {
      const u64 key = (u64)descending(v) << 32 | (u32)id;
      if ((u32)id < (u32)shared.words.cols && (n == 0 || key > last)) next = min(next, key);
    });
#pragma unroll
    for (int o = 16; o; o >>= 1) next = min(next, __shfl_xor_sync(FULL, next, o));
    if (threadIdx.x % 32 == 0) shared.part[threadIdx.x / 32] = next;
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; w++) next = min(next, shared.part[w]);
    __syncthreads();
    if (threadIdx.x == 0) likely[n] = {(u32)next, shared.words.logit((u32)next)};
    last = next;
  }
}

// A logit below infinity, and a number.
DEVICE float sound(float v) { return v != v ? NEG_INF : fminf(v, 3.402823466e38f); }
DEVICE float edited(const Row& row, float v, const Edit& edit) {
  v = sound(__fadd_rn(v, edit.bias));
  if (!edit.seen) return v;
  const float count = (float)(edit.seen - 1);
  v = v > 0.f ? __fdiv_rn(v, row.repetition_penalty) : __fmul_rn(v, row.repetition_penalty);
  v = __fsub_rn(v, __fmul_rn(row.frequency_penalty, count));
  return sound(__fsub_rn(v, count > 0.f ? row.presence_penalty : 0.f));
}

// Puts tokens that the step before chose into the row's last edits. One that has an edit already makes it count one more.
DEVICE void resolve(const Row& row, Edit* edits, const u32* chosen, int num_chosen) {
#pragma unroll 1
  for (u32 at = row.num_edits - row.num_pending; at < row.num_edits; at++) {
    const u32 place = edits[at].token & 0x7fffffff, token = place < num_chosen ? chosen[place] : NONE;
    bool is_known = row.only_edits;
    for (u32 i = threadIdx.x; i < at; i += blockDim.x)
      if (edits[i].token == token) edits[i].seen = max(edits[i].seen, 1) + 1, is_known = true;
    is_known = __syncthreads_or(is_known);
    if (threadIdx.x == 0) edits[at].token = is_known ? NONE : token;
    __syncthreads();
  }
}

// logits: [rows, cols], in the end as they were; edits: those of the rows; scratch: a row for each that draws among edits only;
// chosen: [num_chosen], tokens of the step before; tokens, results: [rows]; likely: [rows, num_top].
KERNEL void __launch_bounds__(1024)
    sample(float* logits, const Row* rows, Edit* all_edits, float* scratch, const u32* chosen, u32* tokens, Result* results,
           Likely* likely, int num_chosen, int cols, int num_top) {
  extern __shared__ float4 shared_bytes[];
  Shared& shared = *(Shared*)shared_bytes;
  start_next();
  wait_previous();
  if (threadIdx.x < sizeof(Row) / 4) ((u32*)&shared.row)[threadIdx.x] = ((const u32*)&rows[blockIdx.x])[threadIdx.x];
  if (threadIdx.x == 0) shared.words.set(logits + (u64)blockIdx.x * cols, cols);
  __syncthreads();
  const Row& row = shared.row;
  float* raw = logits + (u64)blockIdx.x * cols;
  float* values = row.only_edits ? scratch + (u64)row.scratch * cols : raw;
  Edit* edits = all_edits + row.first_edit;
  u32 token = row.target;
  bool is_edited = row.num_edits || row.only_edits, broken = false;
  Best best;
  resolve(row, edits, chosen, num_chosen);
  if (row.only_edits) {
    // A damaged row is one wherever the damage is.
    broken = find_best(shared).broken;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) values[i] = NEG_INF;
    __syncthreads();
    if (threadIdx.x == 0) shared.words.set(values, cols);
  }
  for (u32 i = threadIdx.x; i < row.num_edits; i += blockDim.x) {
    const Edit edit = edits[i];
    if (edit.token >= cols) continue;
    const float v = raw[edit.token];
    broken |= !(v < -NEG_INF);
    edits[i].saved = v;
    values[edit.token] = edited(row, v, edit);
  }
  broken = __syncthreads_or(broken);
#pragma unroll 1
  while (true) {
    best = find_best(shared);
    broken |= best.broken;
    // If everything is banned, the draw is from the row as it was.
    if (!broken && token == NONE && !(is_edited && best.top == NEG_INF))
      token = row.scale == 0.f || best.top == NEG_INF ? best.token : draw(shared, best);
    if (!is_edited) break;
    __syncthreads();
    if (values == raw)
      for (u32 i = threadIdx.x; i < row.num_edits; i += blockDim.x)
        if (edits[i].token < cols) raw[edits[i].token] = edits[i].saved;
    if (threadIdx.x == 0) shared.words.set(raw, cols);
    __syncthreads();
    is_edited = false;
    if (broken || (token != NONE && row.num_top == NONE)) break;
  }
  broken |= token >= cols;
  Result result = {0, NONE, 0, 0.f, 0.f};
  if (!broken && row.num_top != NONE)
    look_up(shared, best, row.num_top, raw[token], result, likely + (u64)blockIdx.x * num_top);
  result.token = broken ? NONE : token;
  if (threadIdx.x == 0) tokens[blockIdx.x] = result.token, results[blockIdx.x] = result;
}
