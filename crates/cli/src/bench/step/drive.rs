//! Sends requests to an engine and reads them as a server would.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use stallfree_core::{
    Clock as _, Request, SamplingParams, Slo, StopRules, Time, TokenId, TokenLogprob, WallClock,
    lock,
};
use stallfree_engine::{EngineHandle, OutputStream, StepObserver, StepRecord, ThreadedEngine};
use stallfree_server::ringer_on;
use stallfree_tokenizer::{Detokenizer, DetokenizerOptions, Tokenizer};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::threads::{CpuTimes, Meter};
use crate::serve;

/// When steps were completed.
#[derive(Clone, Debug, Default)]
pub(super) struct StepLog(Arc<Mutex<Vec<Time>>>);

impl StepLog {
    pub(super) fn observer(&self) -> Box<dyn StepObserver> {
        Box::new(self.clone())
    }

    /// Takes the moments out.
    fn take(&self) -> Vec<Time> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl StepObserver for StepLog {
    fn on_step(&mut self, step: &StepRecord) {
        lock(&self.0).push(step.finished);
    }
}

/// Drives one engine.
pub(super) struct Driver<'a> {
    engine: &'a ThreadedEngine,
    tokenizer: Arc<Tokenizer>,
    log: StepLog,
    runtime: Runtime,
    vocab_size: usize,
    random: u64,
}

/// What became of a set of requests that were sent at once.
pub(super) struct Outcome {
    pub(super) sent: Time,
    /// When each step was completed.
    pub(super) steps: Vec<Time>,
    /// The CPU time that threads took while all were decoding.
    pub(super) cpu_time: CpuTimes,
    pub(super) answers: Vec<Answer>,
}

/// What became of one request.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) prompt: Vec<TokenId>,
    pub(super) tokens: Vec<TokenId>,
    /// When the engine had the first of them, and the last.
    pub(super) first: Time,
    pub(super) last: Time,
    pub(super) prompt_logprobs: Vec<Vec<TokenLogprob>>,
    /// How long it took to make text of the tokens.
    pub(super) text_time: Duration,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        engine: &'a ThreadedEngine,
        tokenizer: Arc<Tokenizer>,
        log: StepLog,
        vocab_size: usize,
    ) -> Result<Self> {
        let runtime = serve::runtime().context("the readers' threads can't be started")?;
        engine.set_ringer(ringer_on(runtime.handle()));
        Ok(Self { engine, tokenizer, log, runtime, vocab_size, random: 1 })
    }

    /// Lets everything be loaded that a first request would wait for.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        let prompts = vec![self.prompt(64); 2];
        self.run(prompts, 4, None).map(|_| ())
    }

    /// Returns a prompt of `len` random tokens, different each time, so that no prefix is found.
    pub(super) fn prompt(&mut self, len: usize) -> Vec<TokenId> {
        (0..len).map(|_| (self.number() % self.vocab_size as u64) as TokenId).collect()
    }

    /// Returns a random number (xorshift, Marsaglia 2003).
    pub(super) const fn number(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Sends all prompts at once and reads `max_tokens` greedy tokens of each to the end.
    pub(super) fn run(
        &self,
        prompts: Vec<Vec<TokenId>>,
        max_tokens: usize,
        prompt_logprobs: Option<u32>,
    ) -> Result<Outcome> {
        self.log.take();
        let sampling = Arc::new(SamplingParams { prompt_logprobs, ..SamplingParams::greedy() });
        let stop = StopRules { max_tokens, min_tokens: max_tokens, stop_token_ids: Arc::default() };
        let meter = Arc::new(Meter::new(prompts.len()));
        let sent = self.engine.now();
        let mut readers = JoinSet::new();
        for (index, prompt) in prompts.into_iter().enumerate() {
            let (sampling, stop) = (Arc::clone(&sampling), stop.clone());
            let (priority, slo) = (0, Slo::default());
            let request = Request { prompt: prompt.clone(), sampling, stop, priority, slo };
            let stream = self.engine.submit(request)?;
            let text = Detokenizer::after_prompt(
                Arc::clone(&self.tokenizer),
                DetokenizerOptions::default(),
                &prompt,
            );
            let tokens = Vec::with_capacity(max_tokens);
            let answer = Answer { prompt, tokens, ..Answer::default() };
            let reader = read(stream, answer, text, Arc::clone(&meter));
            readers.spawn_on(async move { (index, reader.await) }, self.runtime.handle());
        }
        let (cpu_time, mut answers) = self.runtime.block_on(async {
            let mut answers = pin!(readers.join_all());
            tokio::select! {
                biased;
                cpu_time = meter.measure() => (cpu_time, answers.await),
                answers = &mut answers => (CpuTimes::default(), answers),
            }
        });
        answers.sort_by_key(|&(index, _)| index);
        let answers: Result<Vec<_>> = answers.into_iter().map(|(_, answer)| answer).collect();
        Ok(Outcome { sent, steps: self.log.take(), cpu_time, answers: answers? })
    }
}

async fn read(
    mut stream: OutputStream,
    mut answer: Answer,
    mut text: Detokenizer,
    meter: Arc<Meter>,
) -> Result<Answer> {
    let clock = WallClock::start();
    while let Some(output) = stream.next().await {
        if let Some(error) = output.error {
            return Err(anyhow!("the engine failed: {error}"));
        }
        if let (true, Some(first)) = (answer.tokens.is_empty(), output.tokens.first()) {
            answer.first = first.at;
            meter.begin();
        }
        let begun = clock.now();
        for token in &output.tokens {
            text.push(token.token);
        }
        answer.text_time += clock.now() - begun;
        answer.tokens.extend(output.tokens.iter().map(|token| token.token));
        answer.last = output.tokens.last().map_or(answer.last, |token| token.at);
        answer.prompt_logprobs.extend(output.prompt_logprobs);
    }
    meter.end();
    Ok(answer)
}
