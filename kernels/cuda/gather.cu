// Copies rows of a table in the order of `index`: token embedding, and the rows that need logits.
//
// Ladder: 1. one block a row, 16 bytes a thread and turn.
KERNEL void __launch_bounds__(128) gather_rows(const elem* table, const u32* index, elem* out, int cols) {
  start_next();
  wait_previous();
  const elem* from = table + (u64)index[blockIdx.x] * cols;
  elem* to = out + (u64)blockIdx.x * cols;
  for (int at = threadIdx.x * 8; at < cols; at += 128 * 8) *(uint4*)(to + at) = load4(from + at);
}
