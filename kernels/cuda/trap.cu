// Fails at once, and with it everything that this process does on the GPU: to see what becomes of a lost one.
KERNEL void trap() { asm volatile("trap;"); }
