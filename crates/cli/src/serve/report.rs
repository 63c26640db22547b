//! What a user reads while a server starts: where time and memory went, and how to ask it something.

use std::net::SocketAddr;
use std::time::Duration;

use crate::console::{bytes, thousands};
use crate::instance::StartReport;

/// Logs times, memory, and what the KV cache holds, for each instance.
pub(crate) fn print(reports: &[StartReport], found: Duration, total: Duration) {
    for (index, report) in reports.iter().enumerate() {
        if reports.len() > 1 {
            tracing::info!("Instance {index} ({})", report.role);
        }
        let found = Some(("find model", found)).filter(|_| index == 0);
        print_one(report, found.as_slice());
    }
    tracing::info!("Ready after {:.3} s", total.as_secs_f64());
}

pub(crate) fn print_one(report: &StartReport, before: &[(&str, Duration)]) {
    warn(report);
    let worker = &report.worker;
    tracing::info!("Device: {}", worker.device);
    tracing::info!("Start-up time");
    for (name, time) in before.iter().chain(&report.phases) {
        tracing::info!("  {name:<34}{:>8.3} s", time.as_secs_f64());
    }
    tracing::info!("Memory");
    let memory = [
        ("weights", worker.weight_bytes),
        ("activations", worker.activation_bytes),
        ("KV cache", worker.kv_bytes),
    ];
    for (name, size) in memory {
        tracing::info!("  {name:<34}{:>10}", bytes(size));
    }
    let (tokens, scheduler) = (worker.kv.num_tokens(), &report.scheduler);
    tracing::info!("KV cache size: {} tokens", thousands(tokens));
    tracing::info!(
        "Maximum concurrency for {} tokens per request: {:.2}x",
        thousands(scheduler.max_model_len),
        tokens as f64 / scheduler.max_model_len as f64
    );
    let measured = match worker.step_tokens {
        Some(_) => ", what this machine computes in about 0.5 s at its longest context",
        None => "",
    };
    tracing::info!(
        "Scheduler {}: at most {} sequences, {} tokens a step{measured}",
        report.policy,
        thousands(scheduler.max_num_seqs),
        thousands(scheduler.max_num_batched_tokens)
    );
}

/// Warns where the machine is smaller than the model.
pub(super) fn warn(report: &StartReport) {
    let (fits, wanted) = (report.scheduler.max_model_len, report.model_len);
    if fits < wanted && fits == report.worker.kv.num_tokens() {
        tracing::warn!(
            "The KV cache holds {} tokens, so requests can't have the model's {}: max_model_len is {}. Give it more with \
             --kv-cache-memory-bytes",
            thousands(fits),
            thousands(wanted),
            thousands(fits)
        );
    }
}

/// Logs where the server listens, with a line to copy.
pub(super) fn invite(address: SocketAddr, model: &str, needs_key: bool) {
    let url = url(address);
    tracing::info!("Listening on {url}. Try:");
    let key = if needs_key { " -H \"Authorization: Bearer $STALLFREE_API_KEY\"" } else { "" };
    tracing::info!(
        "  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \
         -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'"
    );
}

/// Returns the address as this machine's users can type it.
fn url(address: SocketAddr) -> String {
    let port = address.port();
    match address {
        _ if address.ip().is_unspecified() => format!("http://localhost:{port}"),
        SocketAddr::V4(v4) => format!("http://{}:{port}", v4.ip()),
        SocketAddr::V6(v6) => format!("http://[{}]:{port}", v6.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::url;

    #[test]
    fn urls_can_be_typed() {
        for (address, expected) in [
            ("0.0.0.0:8000", "http://localhost:8000"),
            ("[::]:80", "http://localhost:80"),
            ("127.0.0.1:9", "http://127.0.0.1:9"),
            ("[::1]:9", "http://[::1]:9"),
        ] {
            assert_eq!(url(address.parse().unwrap()), expected);
        }
    }
}
