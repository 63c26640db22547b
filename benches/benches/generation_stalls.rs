//! Stall seconds by scheduler: of the time in which some request decodes, what passes without a token for anybody, when 128
//! summarisations of long papers come at once (Sarathi-Serve, OSDI '24, figure 1a). Virtual seconds, not this machine's.

mod simulated;

use criterion::{Criterion, criterion_group, criterion_main};
use simulated::{Load, VirtualTime};
use stallfree_bench::workload::{ARXIV, Arrivals};

fn generation_stalls(criterion: &mut Criterion<VirtualTime>) {
    let load = Load { lengths: ARXIV, arrivals: Arrivals::Static, max_model_len: 16_384 };
    simulated::report(criterion, "generation_stalls", &load, |summary| summary.stalls.stalled_time);
}

criterion_group! {
    name = benches;
    config = simulated::criterion();
    targets = generation_stalls
}
criterion_main!(benches);
