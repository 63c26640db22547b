//! P99 seconds between tokens by scheduler: conversations at three rates (Sarathi-Serve, OSDI '24, figure 1b). Virtual seconds, not
//! this machine's.

mod simulated;

use criterion::{Criterion, criterion_group, criterion_main};
use simulated::{Load, VirtualTime};
use stallfree_bench::workload::{Arrivals, SHAREGPT};

fn tail_latency(criterion: &mut Criterion<VirtualTime>) {
    for rate in [0.55, 0.7, 1.0] {
        let load = Load {
            lengths: SHAREGPT,
            arrivals: Arrivals::PoissonClipped { rate },
            max_model_len: 8192,
        };
        simulated::report(criterion, &format!("tail_latency_at_{rate}"), &load, |summary| {
            summary.itl.quantile(0.99)
        });
    }
}

criterion_group! {
    name = benches;
    config = simulated::criterion();
    targets = tail_latency
}
criterion_main!(benches);
