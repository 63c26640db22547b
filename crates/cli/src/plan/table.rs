//! What a search found, as a table that fits a terminal.

use std::fmt::Write as _;

use super::SearchArgs;
use super::rate::Highest;
use super::search::Found;
use super::trial::Bench;

/// Columns of the table.
const HEAD: &str = "req/s   a GPU   estimate   TTFT %   TPOT %   longest gap   placement (GPUs)";

/// Returns the table.
pub(super) fn of(bench: &Bench<'_>, found: &Found, args: &SearchArgs) -> String {
    let SearchArgs { num_gpus, ttft_slo, tpot_slo, atta_target, .. } = *args;
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{} on {num_gpus} x {}, {}: {atta_target} % of requests with TTFT <= {ttft_slo} ms and TPOT <= {tpot_slo} ms",
        bench.model, bench.gpu, bench.workload,
    );
    let _ = writeln!(
        text,
        "{} combinations, of which {} were simulated whole\n\n{HEAD}",
        found.num_combined,
        found.placements.len()
    );
    for ranked in &found.placements {
        let Highest { rate, .. } = ranked.found;
        let each = rate / num_gpus as f64;
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
    if found.placements.iter().any(|ranked| !ranked.found.is_limited) {
        let unlimited = found.placements.iter().filter(|ranked| !ranked.found.is_limited);
        let names: Vec<String> = unlimited.map(|ranked| ranked.placement.to_string()).collect();
        let _ = writeln!(
            text,
            "no limit was reached, and the rate is the least that it can be, for {}: all requests came at once",
            names.join("; ")
        );
    }
    for reason in &found.left_out {
        let _ = writeln!(text, "left out {reason}");
    }
    text
}
