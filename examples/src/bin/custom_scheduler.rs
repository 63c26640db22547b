//! Runs a scheduling policy of one's own: shortest prompt first, in chunks.
//!
//! Everything that a policy needs is in `stallfree-scheduler`; this one could live in any crate. It is registered by name
//! beside the built-in ones and then planned with, here without a model: each sampled token is made up. Try
//! `cargo run -p stallfree-examples --bin custom_scheduler` and compare with `-- sarathi` or `-- vllm`.

use anyhow::{Context, Result};
use stallfree_core::{KvGeometry, SeqId, Time};
use stallfree_scheduler::{
    Admission, Declaration, Error, Planner, Policy, Registry, Scheduler, SchedulerConfig, Sequence,
    Setting, Step,
};

const SHORTEST_PROMPT_FIRST: Policy = Policy {
    name: "shortest-prompt-first",
    paper: "shortest job first, which has the least mean waiting time",
    doc: "All decodes and chunks of ongoing prefills, then new prompts, the shortest first. Long prompts may wait forever if \
          short ones never stop coming.",
    settings: &[Setting {
        name: "chunk_size",
        default: "max_num_batched_tokens",
        doc: "tokens a step",
    }],
    build,
};

#[derive(Debug)]
struct ShortestPromptFirst {
    chunk_size: usize,
}

fn build(config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
    let chunk_size = config.count_setting("chunk_size", config.max_num_batched_tokens)?;
    Ok(Box::new(ShortestPromptFirst { chunk_size }))
}

impl Scheduler for ShortestPromptFirst {
    fn declares(&self) -> Declaration {
        Declaration {
            token_bound: Some(self.chunk_size),
            admission: Admission::WholePrompt,
            in_order: false,
        }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        let mut index = 0;
        while index < step.num_running() {
            step.run(index, self.chunk_size - step.num_tokens());
            index += 1;
        }
        while let Some(shortest) = shortest_prompt(step) {
            if step.admit(shortest, self.chunk_size - step.num_tokens()).is_none() {
                break;
            }
        }
    }
}

fn shortest_prompt(step: &Step<'_>) -> Option<usize> {
    let len = |&index: &usize| step.waiting(index).map(|seq| seq.prompt_len);
    (0..step.num_waiting()).min_by_key(len)
}

fn main() -> Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| SHORTEST_PROMPT_FIRST.name.to_owned());
    let mut registry = Registry::default();
    registry.register(SHORTEST_PROMPT_FIRST);
    let config = SchedulerConfig {
        max_num_seqs: 3,
        max_num_batched_tokens: 64,
        max_model_len: 512,
        ..SchedulerConfig::default()
    };
    let scheduler = registry.build(&name, &config)?;
    let geometry = KvGeometry { num_blocks: 64, block_size: 16 };
    let mut planner = Planner::with_scheduler(config, geometry, scheduler)?;

    for (id, prompt_len) in (0_u32..).zip([200, 20, 90, 10, 40]) {
        let prompt = vec![id; prompt_len];
        let max_total_len = prompt_len + 3;
        planner.add(Sequence::new(SeqId(id.into()), prompt, max_total_len, 0, Time::ZERO))?;
    }
    run(&mut planner).with_context(|| format!("scheduling by {name}"))
}

/// Plans steps until every sequence has all its tokens, and prints them.
#[expect(clippy::print_stdout, reason = "the example's result")]
fn run(planner: &mut Planner) -> Result<()> {
    for number in 0.. {
        let plan = planner.schedule(Time::ZERO);
        if plan.is_empty() {
            break;
        }
        let chunks: Vec<String> = plan
            .chunks
            .iter()
            .map(|chunk| {
                let end = chunk.start + chunk.num_tokens;
                format!("{}[{}..{end}]", chunk.seq, chunk.start)
            })
            .collect();
        println!("step {number:>2}: {:>2} tokens: {}", plan.num_tokens(), chunks.join(" "));
        planner.complete(&plan.chunks);
        for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
            let ended = planner
                .append_token(chunk.seq, 7)
                .is_some_and(|seq| seq.tokens.len() == seq.max_total_len);
            if ended {
                planner.finish(chunk.seq).context("a sequence ended twice")?;
            }
        }
    }
    anyhow::ensure!(planner.is_idle(), "sequences are left that were not scheduled");
    Ok(())
}
