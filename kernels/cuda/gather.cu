// Copies rows of a table in the order of `index`: token embedding, and the rows that need logits.
//
// Ladder: 1. one block a row, 16 bytes a thread and turn.
//         2. An index with its highest bit set is a place in `chosen`: the token that the step before chose, which the host has not seen.
//
// The table holds `num_held` rows from `first` on; a row that it does not hold is zeros.
KERNEL void __launch_bounds__(128) gather_rows(const elem* table, const u32* index, const u32* chosen, elem* out, int first, int num_held,
                                               int num_chosen, int cols) {
  start_next();
  wait_previous();
  u32 row = index[blockIdx.x];
  if (row >> 31) row = (row & 0x7fffffffu) < (u32)num_chosen ? chosen[row & 0x7fffffffu] : 0;
  row -= (u32)first;
  const bool held = row < (u32)num_held;
  const elem* from = table + (u64)(held ? row : 0) * cols;
  elem* to = out + (u64)blockIdx.x * cols;
  for (int at = threadIdx.x * 8; at < cols; at += 128 * 8) *(uint4*)(to + at) = held ? load4(from + at) : zero4();
}
