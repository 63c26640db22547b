// Copies rows of a table in the order of `index`: token embedding, and the rows that need logits.
//
// Ladder: 1. one block a row, 16 bytes a thread and turn.
//         2. An index with its highest bit set is a place in `chosen`: the token that the step before chose, which the host has not seen.
KERNEL void __launch_bounds__(128) gather_rows(const elem* table, const u32* index, const u32* chosen, elem* out, int table_rows,
                                               int num_chosen, int cols) {
  start_next();
  wait_previous();
  u32 row = index[blockIdx.x];
  if (row >> 31) row = (row & 0x7fffffffu) < (u32)num_chosen ? chosen[row & 0x7fffffffu] : 0;
  if (row >= (u32)table_rows) row = 0;
  const elem* from = table + (u64)row * cols;
  elem* to = out + (u64)blockIdx.x * cols;
  for (int at = threadIdx.x * 8; at < cols; at += 128 * 8) *(uint4*)(to + at) = load4(from + at);
}
