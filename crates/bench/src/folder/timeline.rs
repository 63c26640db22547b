//! The batches as a timeline in Chrome's trace format, which Perfetto reads too.

use serde_json::{Map, Value, json};

use crate::BatchRecord;

/// Returns one event a batch, and counters of what waits and runs; an instance is a process. Times are in microseconds.
pub(super) fn chrome_trace(batches: &[BatchRecord]) -> String {
    let mut text = String::from("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    for (index, batch) in batches.iter().enumerate() {
        if index > 0 {
            text.push_str(",\n");
        }
        let us = |seconds: f64| (seconds * 1e6).round();
        let event = json!({
            "name": name(batch),
            "ph": "X",
            "pid": batch.instance.0,
            "tid": 0,
            "ts": us(batch.started),
            "dur": us(batch.execution_time()),
            "args": arguments(batch),
        });
        let counters = json!({
            "name": "sequences",
            "ph": "C",
            "pid": batch.instance.0,
            "ts": us(batch.started),
            "args": { "running": batch.num_running, "waiting": batch.num_waiting },
        });
        text.push_str(&event.to_string());
        text.push_str(",\n");
        text.push_str(&counters.to_string());
    }
    text.push_str("\n]}\n");
    text
}

/// The name decides the colour: what a batch is made of.
const fn name(batch: &BatchRecord) -> &'static str {
    match (batch.num_prefill_tokens, batch.num_decode_tokens) {
        (_, 0) => "prefill",
        (0, _) => "decode",
        _ => "hybrid",
    }
}

/// Sarathi-Serve's arguments.
fn arguments(batch: &BatchRecord) -> Map<String, Value> {
    let mut arguments = Map::new();
    let mut put = |name: &str, value: Value| {
        arguments.insert(name.to_owned(), value);
    };
    put("batch_size", json!(batch.size));
    put("num_batched_tokens", json!(batch.num_tokens()));
    put("num_batched_prompt_tokens", json!(batch.num_prefill_tokens));
    put("num_batched_output_tokens", json!(batch.num_decode_tokens));
    if !batch.chunks.is_empty() {
        let ids: Vec<u64> = batch.chunks.iter().map(|chunk| chunk.seq.0).collect();
        let prompts = batch.chunks.iter().map(|chunk| chunk.num_prefill_tokens);
        put("request_ids", json!(ids));
        put("prompt_chunk_lens", json!(prompts.filter(|&len| len > 0).collect::<Vec<_>>()));
    }
    arguments
}
