//! What each policy does, step by step, on small traces.

use expect_test::{Expect, expect};
use stallfree_core::{KvGeometry, SeqId};
use stallfree_scheduler::{Ordering, Plan, Planner, SchedulerConfig};

use crate::driver::{Arrival, Driver, StepRecord};

/// Sequences arrive as (step, prompt tokens, output tokens, priority).
struct Trace<'a> {
    arrivals: &'a [(usize, usize, usize, i32)],
    num_blocks: usize,
    config: SchedulerConfig,
    settings: &'a [(&'a str, &'a str)],
}

impl Default for Trace<'_> {
    /// The illustration of the Sarathi-Serve paper: A and B decode when C and D arrive with long prompts.
    fn default() -> Self {
        Self {
            arrivals: &[(0, 2, 7, 0), (0, 2, 7, 0), (3, 9, 3, 0), (3, 7, 2, 0)],
            num_blocks: 64,
            config: SchedulerConfig {
                max_num_seqs: 4,
                max_num_batched_tokens: 6,
                max_model_len: 32,
                watermark: 0.0,
                enable_prefix_caching: false,
                ..SchedulerConfig::default()
            },
            settings: &[],
        }
    }
}

/// Draws a run: a row a step with its number of tokens, a column a sequence. `p4` is a prefill chunk of 4 tokens, `d` a decode, `-` a
/// step in which the sequence could have decoded and did not: a stall; `!` a preemption; `w` a step of waiting, `·` one between
/// chunks. Below, who stalled in how many steps, and how many tokens were computed between two tokens of one sequence at most: a
/// decode in a step of a thousand tokens is not left out, but it takes as long.
fn check(policy: &str, trace: Trace<'_>, expected: &Expect) {
    let geometry = KvGeometry { num_blocks: trace.num_blocks, block_size: 2 };
    let mut config = trace.config;
    let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    config.settings = trace.settings.iter().map(own).collect();
    let arrivals: Vec<Arrival> = trace
        .arrivals
        .iter()
        .map(|&(step, prompt_len, max_tokens, priority)| {
            let (due, leaves, num_common) = (None, None, 0);
            Arrival { step, prompt_len, max_tokens, priority, due, leaves, num_common }
        })
        .collect();
    let planner = Planner::new(config, geometry, policy).expect("a configuration that works");
    let steps = Driver::new(planner, geometry, &arrivals).drain(200);
    expected.assert_eq(&draw(&steps, &arrivals));
}

fn draw(steps: &[StepRecord], arrivals: &[Arrival]) -> String {
    let ids = (0..arrivals.len() as u64).map(SeqId);
    let names = ["A", "B", "C", "D", "E", "F"];
    let mut columns: Vec<Column> =
        ids.map(|id| Column::new(id, &arrivals[id.0 as usize])).collect();
    let mut drawn = String::from("step tokens");
    for name in names.iter().take(columns.len()) {
        drawn += &format!("{name:>5}");
    }
    drawn.push('\n');
    for (index, StepRecord { plan }) in steps.iter().enumerate() {
        let mut row = format!("{index:>4} {:>6}", plan.num_tokens());
        for column in &mut columns {
            row += &format!("{:>5}", column.cell(index, plan));
        }
        drawn += row.trim_end();
        drawn.push('\n');
    }
    let stalls = names.iter().zip(&columns).filter(|(_, column)| column.num_stalls > 0);
    let stalls: Vec<String> =
        stalls.map(|(name, column)| format!("{name} {}", column.num_stalls)).collect();
    let stalls = if stalls.is_empty() { "nobody".to_owned() } else { stalls.join(", ") };
    let pause = columns.iter().map(|column| column.longest_pause).max().unwrap_or(0);
    drawn + &format!("stalled: {stalls}; longest pause: {pause} tokens\n")
}

/// A sequence as its column is drawn from the top down.
struct Column {
    id: SeqId,
    arrives: usize,
    prompt_len: usize,
    num_left: usize,
    runs: bool,
    has_output: bool,
    num_stalls: usize,
    /// Tokens computed since its last one.
    pause: usize,
    longest_pause: usize,
}

impl Column {
    fn new(id: SeqId, arrival: &Arrival) -> Self {
        let Arrival { step, prompt_len, max_tokens, .. } = *arrival;
        let (runs, has_output) = (false, false);
        let (num_left, num_stalls, pause, longest_pause) = (max_tokens, 0, 0, 0);
        Self {
            id,
            arrives: step,
            prompt_len,
            num_left,
            runs,
            has_output,
            num_stalls,
            pause,
            longest_pause,
        }
    }

    fn cell(&mut self, step: usize, plan: &Plan) -> String {
        let preempted = if plan.preempted.contains(&self.id) { "!" } else { "" };
        self.runs &= preempted.is_empty();
        self.has_output &= preempted.is_empty();
        let chunk = plan.chunks.iter().find(|chunk| chunk.seq == self.id);
        let cell = match chunk {
            _ if step < self.arrives || self.num_left == 0 => String::new(),
            Some(chunk) if chunk.num_tokens == 1 && chunk.start >= self.prompt_len => {
                "d".to_owned()
            }
            Some(chunk) => format!("p{}", chunk.num_tokens),
            None if self.has_output => {
                self.num_stalls += 1;
                "-".to_owned()
            }
            None if self.runs => "·".to_owned(),
            None => "w".to_owned(),
        };
        if self.has_output && self.num_left > 0 {
            self.pause += plan.num_tokens();
        }
        if let Some(chunk) = chunk {
            if chunk.samples {
                self.longest_pause = self.longest_pause.max(std::mem::take(&mut self.pause));
            }
            self.runs = true;
            self.has_output |= chunk.samples;
            self.num_left -= usize::from(chunk.samples);
        }
        preempted.to_owned() + &cell
    }
}

#[test]
fn sarathi_stalls_nobody() {
    check(
        "sarathi",
        Trace::default(),
        &expect![[r#"
        step tokens    A    B    C    D
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      6    d    d   p4    w
           4      6    d    d   p4    w
           5      6    d    d   p1   p3
           6      6    d    d    d   p3
           7      2              d   p1
           8      1                   d
        stalled: nobody; longest pause: 6 tokens
    "#]],
    );
}

#[test]
fn vllm_stalls_decodes_for_whole_prompts() {
    check(
        "vllm",
        Trace::default(),
        &expect![[r#"
        step tokens    A    B    C    D
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      9    -    -   p9    w
           4      7    -    -    -   p7
           5      4    d    d    d    d
           6      3    d    d    d
           7      2    d    d
           8      2    d    d
        stalled: A 2, B 2, C 1; longest pause: 20 tokens
    "#]],
    );
}

#[test]
fn vllm_v1_spends_one_budget() {
    check(
        "vllm-v1",
        Trace::default(),
        &expect![[r#"
        step tokens    A    B    C    D
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      6    d    d   p4    w
           4      6    d    d   p4    w
           5      6    d    d   p1   p3
           6      6    d    d    d   p3
           7      2              d   p1
           8      1                   d
        stalled: nobody; longest pause: 6 tokens
    "#]],
    );
}

/// C comes later and goes first: its prompt takes the budget before others' decodes, which under `sarathi` come first.
#[test]
fn vllm_v1_prefills_before_later_decodes() {
    let trace = || Trace {
        arrivals: &[(0, 2, 7, 0), (0, 2, 7, 0), (3, 14, 2, -1)],
        config: SchedulerConfig { ordering: Ordering::Priority, ..Trace::default().config },
        ..Trace::default()
    };
    check(
        "vllm-v1",
        trace(),
        &expect![[r#"
        step tokens    A    B    C
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      6    d    d   p4
           4      6    -    -   p6
           5      6    d    d   p4
           6      3    d    d    d
           7      2    d    d
        stalled: A 1, B 1; longest pause: 12 tokens
    "#]],
    );
    check(
        "sarathi",
        trace(),
        &expect![[r#"
        step tokens    A    B    C
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      6    d    d   p4
           4      6    d    d   p4
           5      6    d    d   p4
           6      4    d    d   p2
           7      1              d
        stalled: nobody; longest pause: 6 tokens
    "#]],
    );
}

#[test]
fn orca_mixes_whole_prompts_and_decodes() {
    check(
        "orca",
        Trace::default(),
        &expect![[r#"
        step tokens    A    B    C    D
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3     18    d    d   p9   p7
           4      4    d    d    d    d
           5      3    d    d    d
           6      2    d    d
        stalled: nobody; longest pause: 18 tokens
    "#]],
    );
}

#[test]
fn fastertransformer_lets_arrivals_wait_for_the_batch() {
    check(
        "fastertransformer",
        Trace::default(),
        &expect![[r#"
        step tokens    A    B    C    D
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      2    d    d    w    w
           4      2    d    d    w    w
           5      2    d    d    w    w
           6      2    d    d    w    w
           7     16             p9   p7
           8      2              d    d
           9      1              d
        stalled: nobody; longest pause: 2 tokens
    "#]],
    );
}

#[test]
fn chunked_takes_turns() {
    check(
        "chunked",
        Trace::default(),
        &expect![[r#"
        step tokens    A    B    C    D
           0      4   p2   p2
           1      2    d    d
           2      2    d    d
           3      6    -    -   p6    w
           4      2    d    d    ·    w
           5      3    -    -   p3    w
           6      3    d    d    d    w
           7      6    -    -    -   p6
           8      4    d    d    d   p1
           9      3    d    d         d
        stalled: A 3, B 3, C 1; longest pause: 10 tokens
    "#]],
    );
}

#[test]
fn sarathi_shrinks_dynamic_chunks_as_context_grows() {
    let trace = Trace {
        arrivals: &[(0, 28, 2, 0)],
        settings: &[
            ("enable_dynamic_chunking_schedule", "true"),
            ("low_chunk_size", "2"),
            ("high_chunk_size", "10"),
            ("chunk_schedule_max_tokens", "24"),
            ("chunk_schedule_stages", "3"),
        ],
        ..Trace::default()
    };
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A
           0     10  p10
           1      6   p6
           2      2   p2
           3      2   p2
           4      2   p2
           5      2   p2
           6      2   p2
           7      2   p2
           8      1    d
        stalled: nobody; longest pause: 1 tokens
    "#]],
    );
}

/// Sizes that are no multiple of the tile, here of 4, go to the nearest one: 13, 8 and 4 become 12, 8 and 4.
#[test]
fn dynamic_chunks_are_whole_tiles() {
    let trace = Trace {
        arrivals: &[(0, 28, 2, 0)],
        settings: &[
            ("enable_dynamic_chunking_schedule", "true"),
            ("low_chunk_size", "4"),
            ("high_chunk_size", "13"),
            ("chunk_schedule_max_tokens", "24"),
            ("chunk_schedule_stages", "3"),
        ],
        ..Trace::default()
    };
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A
           0     12  p12
           1      8   p8
           2      4   p4
           3      4   p4
           4      1    d
        stalled: nobody; longest pause: 1 tokens
    "#]],
    );
}

#[test]
fn more_decodes_than_the_chunk_size_leave_prompts_nothing() {
    let trace = Trace {
        arrivals: &[(0, 1, 4, 0), (0, 1, 4, 0), (0, 1, 4, 0), (2, 3, 1, 0)],
        settings: &[("chunk_size", "2")],
        ..Trace::default()
    };
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A    B    C    D
           0      2   p1   p1    w
           1      2    d    d    w
           2      2    d    d    w    w
           3      2    d    d    w    w
           4      2             p1   p1
           5      2              d   p1
           6      2              d   p1
           7      1              d
        stalled: nobody; longest pause: 2 tokens
    "#]],
    );
}

#[test]
fn a_threshold_lets_a_short_prompt_pass_a_long_one() {
    let mut trace = Trace { arrivals: &[(0, 16, 2, 0), (1, 3, 2, 0)], ..Trace::default() };
    trace.config.long_prefill_token_threshold = 4;
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A    B
           0      4   p4
           1      6   p4   p2
           2      5   p4   p1
           3      5   p4    d
           4      1    d
        stalled: nobody; longest pause: 5 tokens
    "#]],
    );
}

/// The one who came last makes room, keeps what it produced and its place, and is recomputed in one go.
#[test]
fn the_last_to_have_come_is_preempted() {
    let mut trace = Trace {
        arrivals: &[(0, 4, 6, 0), (1, 4, 6, 0), (2, 2, 2, 0)],
        num_blocks: 6,
        ..Trace::default()
    };
    trace.config.max_model_len = 12;
    trace.config.max_num_seqs = 2;
    check(
        "vllm-v1",
        trace,
        &expect![[r#"
        step tokens    A    B    C
           0      4   p4
           1      5    d   p4
           2      2    d    d    w
           3      1    d   !w    w
           4      1    d    w    w
           5      1    d    w    w
           6      6        p6    w
           7      3         d   p2
           8      2         d    d
           9      1         d
        stalled: nobody; longest pause: 5 tokens
    "#]],
    );
}

#[test]
fn a_more_urgent_arrival_takes_a_seat() {
    let mut trace = Trace { arrivals: &[(0, 4, 5, 1), (2, 3, 2, 0)], ..Trace::default() };
    trace.config.max_num_seqs = 1;
    trace.config.ordering = Ordering::Priority;
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A    B
           0      4   p4
           1      1    d
           2      3   !w   p3
           3      1    w    d
           4      6   p6
           5      1    d
           6      1    d
        stalled: nobody; longest pause: 1 tokens
    "#]],
    );
}

/// The next chunk of a prompt and the next decode are planned while the ones before are in flight.
#[test]
fn steps_are_planned_ahead() {
    let mut trace = Trace { arrivals: &[(0, 2, 3, 0), (1, 14, 2, 0)], ..Trace::default() };
    trace.config.max_in_flight = 2;
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A    B
           0      2   p2
           1      6    d   p5
           2      6    d   p5
           3      4        p4
           4      1         d
           5      0
        stalled: nobody; longest pause: 6 tokens
    "#]],
    );
}

/// In a pipeline a decode waits for its token, while prompts go on chunk by chunk.
#[test]
fn a_pipeline_does_not_decode_ahead() {
    let mut trace = Trace { arrivals: &[(0, 2, 3, 0), (1, 14, 2, 0)], ..Trace::default() };
    trace.config.max_in_flight = 2;
    trace.config.decode_pending = false;
    check(
        "sarathi",
        trace,
        &expect![[r#"
        step tokens    A    B
           0      2   p2
           1      6    -   p6
           2      6    d   p5
           3      3    -   p3
           4      1    d    -
           5      1         d
           6      0
        stalled: A 2, B 1; longest pause: 12 tokens
    "#]],
    );
}

/// A runs with the highest priority and most blocks, B with the lowest; C would not fit even without B.
#[test]
fn nobody_is_preempted_in_vain() {
    check(
        "sarathi",
        Trace {
            arrivals: &[(0, 12, 6, -1), (0, 2, 9, 5), (2, 12, 2, 0)],
            num_blocks: 11,
            config: SchedulerConfig {
                ordering: Ordering::Priority,
                max_num_batched_tokens: 32,
                max_model_len: 22,
                ..Trace::default().config
            },
            ..Trace::default()
        },
        &expect![[r#"
            step tokens    A    B    C
               0     14  p12   p2
               1      2    d    d
               2      2    d    d    w
               3      2    d    d    w
               4      2    d    d    w
               5      1    d   !w    w
               6     19        p7  p12
               7      2         d    d
               8      1         d
               9      1         d
            stalled: nobody; longest pause: 2 tokens
        "#]],
    );
}
