//! What a wrong configuration is answered.

use expect_test::{Expect, expect};
use stallfree_core::{KvGeometry, SeqId, Time};
use stallfree_scheduler::{POLICIES, Planner, Registry, SchedulerConfig, Sequence};

const GEOMETRY: KvGeometry = KvGeometry { num_blocks: 1024, block_size: 16 };

fn check(policy: &str, setting: Option<(&str, &str)>, expected: &Expect) {
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let settings = setting.map(own).into_iter().collect();
    let config = SchedulerConfig { settings, ..SchedulerConfig::default() };
    let answer = match Planner::new(config, GEOMETRY, policy) {
        Ok(planner) => format!("{:?}", planner.declaration()),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&answer);
}

#[test]
fn names_are_checked() {
    check(
        "sarati",
        None,
        &expect![
            "there is no scheduler `sarati` (did you mean `sarathi`?); there are: sarathi, vllm-v1, vllm, orca, fastertransformer, chunked"
        ],
    );
    check(
        "vllm_v1",
        None,
        &expect![
            "there is no scheduler `vllm_v1` (did you mean `vllm-v1`?); there are: sarathi, vllm-v1, vllm, orca, fastertransformer, chunked"
        ],
    );
    check(
        "round-robin",
        None,
        &expect![
            "there is no scheduler `round-robin`; there are: sarathi, vllm-v1, vllm, orca, fastertransformer, chunked"
        ],
    );
    check(
        "sarathi",
        Some(("chunksize", "5")),
        &expect![
            "scheduler `sarathi` has no setting `chunksize` (did you mean `chunk_size`?); it has: chunk_size, enable_dynamic_chunking_schedule, low_chunk_size, high_chunk_size, chunk_schedule_max_tokens, chunk_schedule_stages"
        ],
    );
    check(
        "vllm",
        Some(("chunk_size", "5")),
        &expect!["scheduler `vllm` has no setting `chunk_size`; it has: none"],
    );
}

#[test]
fn values_are_checked() {
    check(
        "sarathi",
        Some(("chunk_size", "0")),
        &expect!["scheduler setting `chunk_size` is `0`, but must be a whole number, at least 1"],
    );
    check(
        "chunked",
        Some(("chunk_size", "many")),
        &expect![
            "scheduler setting `chunk_size` is `many`, but must be a whole number, at least 1"
        ],
    );
    check(
        "sarathi",
        Some(("enable_dynamic_chunking_schedule", "yes")),
        &expect![
            "scheduler setting `enable_dynamic_chunking_schedule` is `yes`, but must be `true` or `false`"
        ],
    );
    check(
        "orca",
        Some(("reserve", "nothing")),
        &expect![
            "scheduler setting `reserve` is `nothing`, but must be `max_model_len` or `max_tokens`"
        ],
    );
}

#[test]
fn settings_count() {
    check(
        "sarathi",
        Some(("chunk_size", "512")),
        &expect!["Declaration { token_bound: Some(512), admission: WholePrompt, in_order: true }"],
    );
    check(
        "orca",
        Some(("reserve", "max_tokens")),
        &expect!["Declaration { token_bound: None, admission: MaxTokens, in_order: true }"],
    );
    check(
        "vllm",
        None,
        &expect!["Declaration { token_bound: Some(8192), admission: WholePrompt, in_order: true }"],
    );
}

#[test]
fn limits_are_checked() {
    let limits = |change: fn(&mut SchedulerConfig)| {
        let mut config = SchedulerConfig::default();
        change(&mut config);
        Planner::new(config, GEOMETRY, "sarathi").map(|_| ()).map_err(|error| error.to_string())
    };
    expect![[r#"
        Err(
            "`max_num_seqs` is 0, but must be at least 1",
        )
    "#]]
    .assert_debug_eq(&limits(|config| config.max_num_seqs = 0));
    expect![[r#"
        Err(
            "a sequence of max_model_len = 20000 tokens needs 1250 KV blocks, but there are 1024: lower max_model_len to 16384 or give the cache more memory",
        )
    "#]].assert_debug_eq(&limits(|config| config.max_model_len = 20_000));
}

#[test]
fn a_sequence_needs_a_prompt_and_room() {
    let mut planner = Planner::new(SchedulerConfig::default(), GEOMETRY, "sarathi").unwrap();
    for (len, taken) in [(0, false), (1, true), (8191, true), (8192, false)] {
        let seq = Sequence::new(SeqId(len), vec![0; len as usize], 9000, 0, Time::ZERO);
        assert_eq!(planner.add(seq).is_ok(), taken, "{len} tokens");
    }
    assert_eq!(planner.sequence(SeqId(1)).map(|seq| seq.max_total_len), Some(8192));
}

/// What `stallfree schedulers` prints comes from here.
#[test]
fn every_policy_is_described() {
    for policy in POLICIES {
        let registry = Registry::default();
        assert_eq!(registry.policies().iter().filter(|other| other.name == policy.name).count(), 1);
        assert!(!policy.paper.is_empty() && policy.doc.ends_with('.'), "{}", policy.name);
        for setting in policy.settings {
            assert!(!setting.doc.is_empty() && !setting.default.is_empty(), "{}", setting.name);
        }
    }
}
