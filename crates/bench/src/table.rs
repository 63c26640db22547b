//! A run's figures as a table to read: vLLM's block, line by line, and stalls below it.

use std::fmt::{Display, Write as _};

use crate::Summary;
use crate::metrics::Distribution;

const WIDTH: usize = 50;

/// What heads the table and is not among the figures.
#[derive(Clone, Debug, Default)]
pub struct TableHead {
    /// The limit on concurrency, if there was one.
    pub max_concurrency: Option<usize>,
    /// Requests a second that were asked for; infinite ones are left out.
    pub request_rate: Option<f64>,
    /// CPU time of the client, in seconds.
    pub client_cpu_time: Option<f64>,
    /// The latencies to show: `ttft`, `tpot`, `itl`, `e2el`.
    pub metrics: Vec<String>,
}

/// Returns the table.
#[must_use]
pub fn table(summary: &Summary, head: &TableHead) -> String {
    let mut table = Table(String::new());
    table.title(" Serving Benchmark Result ", '=');
    table.counts(summary, head);
    for (name, title, distribution) in [
        ("ttft", "Time to First Token", &summary.ttft),
        ("tpot", "Time per Output Token (excl. 1st token)", &summary.tpot),
        ("itl", "Inter-token Latency", &summary.itl),
        ("e2el", "End-to-end Latency", &summary.e2el),
    ] {
        if head.metrics.iter().any(|metric| metric == name) {
            table.latency(title, &name.to_uppercase(), distribution, summary);
        }
    }
    if head.max_concurrency.is_some() && summary.client_queue.max() > 0.0 {
        table.latency("Client-side Queueing", "queueing", &summary.client_queue, summary);
    }
    table.stalls(summary);
    if let Some((attained, slo)) = summary.attained.zip(summary.config().slo) {
        table.title("SLO Attainment", '-');
        table.row("Both (%):", Two(attained.both * 100.0));
        table.row(&format!("TTFT <= {} ms (%):", slo.ttft * 1000.0), Two(attained.ttft * 100.0));
        table.row(&format!("TPOT <= {} ms (%):", slo.tpot * 1000.0), Two(attained.tpot * 100.0));
    }
    table.title("Sender", '-');
    table.row("P99 send lag (ms):", Two(summary.send_lag.quantile(0.99) * 1000.0));
    if let Some(seconds) = head.client_cpu_time {
        table.row("Client CPU time (s):", Two(seconds));
    }
    table.title("", '=');
    table.0
}

struct Table(String);

/// Two decimals.
struct Two(f64);

impl Display for Two {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2}", self.0)
    }
}

impl Table {
    // Writing to a string can't fail.
    fn title(&mut self, text: &str, fill: char) {
        let left = (WIDTH - text.len().min(WIDTH)) / 2;
        let right = WIDTH - text.len().min(WIDTH) - left;
        let line = |count: usize| String::from(fill).repeat(count);
        let _ = writeln!(self.0, "{}{text}{}", line(left), line(right));
    }

    fn row(&mut self, label: &str, value: impl Display) {
        let _ = writeln!(self.0, "{label:<40} {:<10}", value.to_string());
    }

    fn counts(&mut self, summary: &Summary, head: &TableHead) {
        self.row("Successful requests:", summary.completed);
        self.row("Failed requests:", summary.failed);
        if let Some(limit) = head.max_concurrency {
            self.row("Maximum request concurrency:", limit);
        }
        if let Some(rate) = head.request_rate.filter(|rate| rate.is_finite()) {
            self.row("Request rate configured (RPS):", Two(rate));
        }
        self.row("Benchmark duration (s):", Two(summary.duration));
        self.row("Total input tokens:", summary.total_input_tokens);
        self.row("Total generated tokens:", summary.total_output_tokens);
        self.row("Request throughput (req/s):", Two(summary.request_throughput()));
        if let Some(goodput) = summary.request_goodput {
            self.row("Request goodput (req/s):", Two(goodput));
        }
        self.row("Output token throughput (tok/s):", Two(summary.output_throughput()));
        self.row("Peak output token throughput (tok/s):", Two(summary.max_output_tokens_per_s));
        self.row("Peak concurrent requests:", Two(summary.max_concurrent_requests as f64));
        self.row("Total token throughput (tok/s):", Two(summary.total_token_throughput()));
    }

    fn latency(&mut self, title: &str, name: &str, values: &Distribution, summary: &Summary) {
        let ms = |seconds: f64| Two(seconds * 1000.0);
        self.title(title, '-');
        self.row(&format!("Mean {name} (ms):"), ms(values.mean()));
        self.row(&format!("Median {name} (ms):"), ms(values.quantile(0.5)));
        for &percentile in &summary.config().percentiles {
            let value = ms(values.quantile(percentile / 100.0));
            self.row(&format!("P{percentile} {name} (ms):"), value);
        }
    }

    fn stalls(&mut self, summary: &Summary) {
        let stalls = &summary.stalls;
        let factor = stalls.factor;
        self.title("Stalls", '-');
        self.row("Longest gap between tokens (ms):", Two(stalls.longest_gap * 1000.0));
        self.row(&format!("Gaps over {factor}x the median:"), stalls.num_long_gaps);
        self.row("Requests with such a gap:", stalls.num_stalled_requests);
        self.row("Decoding time without a token (%):", Two(stalls.stalled_share * 100.0));
    }
}
