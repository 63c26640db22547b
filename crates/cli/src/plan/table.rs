//! What a search found, as a table that fits a terminal.

use std::fmt::Write as _;

use super::search::Found;
use super::trial::Bench;

/// Columns of the table.
const HEAD: &str = "req/s   a GPU   estimate   TTFT %   TPOT %   longest gap   placement (GPUs)";

/// Returns the table.
pub(super) fn of(bench: &Bench<'_>, found: &Found, num_gpus: usize) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{} on {num_gpus} x {}, {}: {:.0} % of requests with TTFT <= {:.0} ms and TPOT <= {:.0} ms",
        bench.model,
        bench.gpu,
        bench.workload,
        bench.target * 100.0,
        bench.slo.ttft * 1e3,
        bench.slo.tpot * 1e3,
    );
    let _ = writeln!(
        text,
        "{} combinations, of which {} were simulated whole\n\n{HEAD}",
        found.num_combined,
        found.placements.len()
    );
    for ranked in &found.placements {
        let (rate, each) = (ranked.rate, ranked.rate / num_gpus as f64);
        let _ = write!(text, "{rate:5.2} {each:7.3} {:10.2}", ranked.estimate);
        let _ = match &ranked.tried {
            Some(tried) => {
                let share = |share: f64| share * 100.0;
                let (ttft, tpot) = (share(tried.attained.ttft), share(tried.attained.tpot));
                let gap = tried.stalls.longest_gap;
                write!(text, " {ttft:8.1} {tpot:8.1} {gap:11.2} s")
            }
            None => write!(text, " {:>8} {:>8} {:>13}", "-", "-", "-"),
        };
        let _ = writeln!(text, "   {} ({})", ranked.placement, ranked.placement.num_gpus());
    }
    for reason in &found.left_out {
        let _ = writeln!(text, "left out {reason}");
    }
    text
}
