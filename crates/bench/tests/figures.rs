//! Figures against timelines small enough to work out by hand.

#![expect(clippy::float_cmp, reason = "the timelines are of numbers that floats have exactly")]

use stallfree_bench::metrics::{
    Attained, Crossing, Distribution, Goodput, REQUEST_METRICS, Slo, SloMetric, Stalls,
    SummaryConfig, attained, completions, crossing, token_gaps,
};
use stallfree_bench::{Outcome, RequestRecord, Summary, TableHead, table};

/// A request that was sent at `sent` and got its tokens at `tokens`.
fn request(sent: f64, tokens: &[f64]) -> RequestRecord {
    RequestRecord {
        id: 0,
        planned: sent,
        due: sent,
        sent,
        scheduled: Some(sent + 0.5),
        token_times: tokens.to_vec(),
        finished: tokens.last().copied().unwrap_or(sent),
        prompt_len: 10,
        output_len: tokens.len(),
        num_cached_tokens: Some(0),
        stages: None,
        execution_time: Some(1.0),
        num_restarts: 0,
        slo: stallfree_core::Slo::default(),
        outcome: Outcome::Completed,
        text: String::new(),
    }
}

fn failed(sent: f64) -> RequestRecord {
    RequestRecord { outcome: Outcome::Failed("no".to_owned()), ..request(sent, &[]) }
}

#[test]
fn quantiles_are_linear_between_neighbours() {
    let sample = Distribution::new([4.0, 1.0, 3.0, 2.0]);
    for (share, expected) in [(0.0, 1.0), (0.5, 2.5), (0.9, 3.7), (1.0, 4.0)] {
        assert!((sample.quantile(share) - expected).abs() < 1e-12, "{share}");
    }
    assert!((sample.std() - 1.25_f64.sqrt()).abs() < 1e-12);
    assert_eq!(Distribution::default().quantile(0.5), 0.0);
}

#[test]
fn a_summary_counts_what_vllm_counts() {
    let requests = [request(0.0, &[1.0, 1.5, 2.0, 2.5]), request(1.0, &[2.5]), failed(3.0)];
    let goodput = Some(Goodput { ttft: Some(1.2), ..Goodput::default() });
    let slo = Some(Slo { ttft: 1.2, tpot: 0.4 });
    let config = SummaryConfig { goodput, slo, ..SummaryConfig::default() };
    let summary = Summary::new(&requests, config);
    assert_eq!((summary.completed, summary.failed), (2, 1));
    assert_eq!((summary.total_input_tokens, summary.total_output_tokens), (20, 5));
    assert_eq!(summary.duration, 3.0);
    assert_eq!(summary.ttft.sorted(), [1.0, 1.5]);
    assert_eq!(summary.tpot.sorted(), [0.5], "one token has no TPOT");
    assert_eq!(summary.itl.sorted(), [0.5; 3]);
    assert_eq!(summary.e2el.sorted(), [1.5, 2.5]);
    assert_eq!(summary.request_goodput, Some(1.0 / 3.0));
    // Seconds 0 to 1, 1 to 2, 2 to 3: two tokens in the second, three in the third.
    assert_eq!(summary.max_output_tokens_per_s, 3.0);
    assert_eq!(summary.max_concurrent_requests, 2);
    let third = 1.0 / 3.0;
    assert_eq!(summary.attained, Some(Attained { both: 0.0, ttft: third, tpot: third }));
}

#[test]
fn stalls_are_gaps_that_others_do_not_fill() {
    // Ten gaps of 1, then one of 9 for the first; the second decodes meanwhile, until 14.
    let mut first: Vec<f64> = (0..=10).map(f64::from).collect();
    first.push(19.0);
    let second: Vec<f64> = (11..=14).map(f64::from).collect();
    let check = |requests: &[RequestRecord], gaps: usize, stalled_time: f64, decoding_time: f64| {
        let all = Distribution::new(token_gaps(requests));
        let stalls = Stalls::find(requests, &all, 4.0);
        assert_eq!((stalls.median_gap, stalls.longest_gap), (1.0, 9.0));
        assert_eq!((stalls.num_long_gaps, stalls.num_stalled_requests), (gaps, gaps));
        assert_eq!((stalls.stalled_time, stalls.decoding_time), (stalled_time, decoding_time));
    };
    check(&[request(0.0, &first)], 1, 9.0, 19.0);
    // From 14 to 19 nobody gets a token, and the first could.
    check(&[request(0.0, &first), request(9.0, &second)], 1, 5.0, 19.0);
    // Time in which nobody decodes is no stall, however long.
    check(&[request(0.0, &first), request(90.0, &[100.0, 101.0])], 1, 9.0, 20.0);
}

#[test]
fn sarathi_metrics_follow_their_definitions() {
    let request = request(1.0, &[2.0, 2.5, 4.0]);
    let value = |name: &str| {
        let metric = REQUEST_METRICS.iter().find(|metric| metric.name == name).expect(name);
        (metric.of)(&request)
    };
    for (name, expected) in [
        ("request_e2e_time", 3.0),
        ("request_e2e_time_normalized", 1.0),
        ("request_e2e_time_piecewise_normalized", 0.5 + 2.5 / 3.0),
        ("request_execution_time", 1.0),
        ("request_preemption_time", 1.5),
        ("request_scheduling_delay", 0.5),
        ("request_execution_plus_preemption_time", 2.5),
        ("prefill_e2e_time", 1.0),
        ("prefill_e2e_time_normalized", 0.1),
        ("prefill_e2e_time_piecewise_normalized", 0.5 + 0.05),
        ("prefill_time_execution_plus_preemption", 0.5),
        ("decode_time_execution_plus_preemption_normalized", 2.0 / 3.0),
        ("request_num_tokens", 13.0),
    ] {
        let found = value(name).expect(name);
        assert!((found - expected).abs() < 1e-12, "{name}: {found}, not {expected}");
    }
    let unscheduled = RequestRecord { scheduled: None, ..request };
    let metric = REQUEST_METRICS.iter().find(|metric| metric.name == "request_scheduling_delay");
    assert_eq!((metric.unwrap().of)(&unscheduled), None, "a server does not say");
}

#[test]
fn completions_add_up_from_the_first_arrival() {
    let requests = [request(1.0, &[2.0, 3.0]), request(1.5, &[2.0])];
    assert_eq!(completions(&requests), [(1.0, 2), (2.0, 3)]);
}

#[test]
fn attainment_counts_failures_and_crossings_are_between_points() {
    let requests =
        [(Some(0.1), Some(0.05)), (Some(0.3), Some(0.05)), (Some(0.1), None), (None, None)];
    let requests = requests.map(|(ttft, tpot)| SloMetric { ttft, tpot });
    let slo = Slo { ttft: 0.2, tpot: 0.02 };
    assert_eq!(attained(&requests, slo), Attained { both: 0.25, ttft: 0.5, tpot: 0.25 });
    let relaxed = attained(&requests, slo.scaled(3.0));
    assert_eq!(relaxed, Attained { both: 0.75, ttft: 0.75, tpot: 0.75 });
    let check = |points: &[(f64, f64)], expected: Crossing| {
        let found = crossing(points, 0.9);
        let off = |(found, expected): (f64, f64)| (found - expected).abs() < 1e-9;
        let is_same = std::mem::discriminant(&found) == std::mem::discriminant(&expected);
        let is_near = found.last_met().zip(expected.last_met()).is_none_or(off);
        assert!(is_same && is_near, "{points:?}: {found:?}, not {expected:?}");
    };
    check(&[(1.0, 1.0), (2.0, 0.95), (4.0, 0.85)], Crossing::At(3.0));
    check(&[(1.0, 1.0), (2.0, 0.95)], Crossing::Beyond(2.0));
    check(&[(1.0, 0.5), (2.0, 0.95)], Crossing::Never);
    check(&[], Crossing::Never);
}

#[test]
fn the_table_has_vllms_lines() {
    let requests = [request(0.0, &[1.0, 1.5]), request(0.0, &[1.0, 1.5])];
    let head = TableHead {
        max_concurrency: Some(2),
        request_rate: Some(4.0),
        client_cpu_time: Some(0.5),
        metrics: ["ttft", "tpot", "itl"].map(str::to_owned).to_vec(),
    };
    let table = table(&Summary::new(&requests, SummaryConfig::default()), &head);
    for line in [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     2         ",
        "Request rate configured (RPS):           4.00      ",
        "---------------Time to First Token----------------",
        "-----Time per Output Token (excl. 1st token)------",
        "---------------Inter-token Latency----------------",
        "P99 TTFT (ms):                           1000.00   ",
        "Median ITL (ms):                         500.00    ",
        "==================================================",
    ] {
        assert!(table.lines().any(|found| found == line), "{line:?} is not in\n{table}");
    }
}
