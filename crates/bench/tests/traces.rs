//! Every kind of trace file, and what is wrong with those that are none.

use std::fs;
use std::time::Duration;

use stallfree_bench::workload::{Trace, TraceRow};
use stallfree_core::Slo;

fn read(name: &str, text: &str) -> Result<Trace, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::write(&path, text).expect("a file");
    Trace::read(&path, &|text| text.split(' ').count()).map_err(|error| error.to_string())
}

fn check(name: &str, text: &str, expected: &[TraceRow]) {
    let trace = read(name, text).expect(name);
    assert_eq!(trace.rows, expected, "{name}");
    assert_eq!(trace.name, name.split('.').next().expect(name));
}

fn at(at: f64, prompt_len: usize, output_len: usize) -> TraceRow {
    TraceRow { at: Some(at), ..TraceRow::of(prompt_len, output_len) }
}

#[test]
fn every_format_is_read() {
    check(
        "sharegpt_8k.csv",
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n290.0,905,1195,0.3\n",
        &[TraceRow::of(74, 918), TraceRow::of(290, 905)],
    );
    check(
        "splitwise.csv",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,4808,10\n0.052,3180,8\n",
        &[at(0.0, 4808, 10), at(0.052, 3180, 8)],
    );
    check(
        "mooncake.jsonl",
        "{\"timestamp\": 3000, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [1, 2]}\n\n",
        &[TraceRow { blocks: vec![1, 2], ..at(3.0, 600, 5) }],
    );
    let slo =
        Slo { ttft: Some(Duration::from_millis(500)), tpot: Some(Duration::from_micros(33_500)) };
    check(
        "promised.jsonl",
        "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 5, \"ttft_slo\": 500, \"tpot_slo\": 33.5}\n",
        &[TraceRow { slo, ..at(0.0, 9, 5) }],
    );
    check(
        "share.json",
        r#"[{"conversations": [{"from": "human", "value": "a b c"}, {"from": "gpt", "value": "d e"}]},
            {"conversations": [{"from": "human", "value": "alone"}]}]"#,
        &[TraceRow { text: Some("a b c".to_owned()), ..TraceRow::of(3, 2) }],
    );
    let azure = read(
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-12-31 23:59:59.5000000,10,2\n2024-01-01 00:00:00.25,11,3\n2024-03-01T00:00:00Z,1,1\n",
    );
    let rows = azure.unwrap().rows;
    let after = |index: usize| rows[index].at.unwrap() - rows[0].at.unwrap();
    assert!((after(1) - 0.75).abs() < 1e-3);
    assert!((after(2) - (60.0 * 86_400.0 + 0.5)).abs() < 1e-3, "January and a leap February");
}

#[test]
fn what_is_no_trace_says_where() {
    let check = |name: &str, text: &str, expected: &str| {
        let error = read(name, text).unwrap_err();
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
    };
    check("a.txt", "", "ends in .csv");
    check("a.csv", "x,y\n1,2\n", "num_prefill_tokens");
    check(
        "a.csv",
        "num_prefill_tokens,num_decode_tokens\n1,2\n3,many\n",
        "line 3: num_decode_tokens",
    );
    check(
        "a.csv",
        "arrived_at,num_prefill_tokens,num_decode_tokens\nlate,1,2\n",
        "arrived_at is `late`",
    );
    check("a.jsonl", "{\"timestamp\": 1}\n", "line 1");
    check("a.json", "{}", "");
}
