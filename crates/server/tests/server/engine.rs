//! An engine without a scheduler: every sequence gets the tokens of a script, at once or step by step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stallfree_core::{
    FinishReason, InstanceId, KvGeometry, Request, SeqId, Time, TokenId, TokenLogprob,
};
use stallfree_engine::{
    Admitted, EngineHandle, EngineInfo, EngineStats, Finished, Health, InstanceChange,
    InstanceStatus, OutputSender, OutputStream, OutputToken, SeqTimes, SubmitError, output_stream,
};

/// The longest sequence.
pub(crate) const MAX_MODEL_LEN: usize = 512;

/// Plays a script to every sequence, as far as the sequence's stop rules let it.
#[derive(Debug)]
pub(crate) struct ScriptedEngine {
    info: EngineInfo,
    /// What each step produces; several tokens come as one output. After the last step it begins anew.
    script: Vec<Vec<TokenId>>,
    /// Whether a sequence runs to its end as soon as it is submitted.
    at_once: bool,
    pub(crate) running: Mutex<Vec<Running>>,
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) cancelled: Arc<AtomicUsize>,
    pub(crate) refusal: Mutex<Option<SubmitError>>,
    pub(crate) health: Mutex<Health>,
    pub(crate) instances: Mutex<Vec<InstanceStatus>>,
    draining: AtomicBool,
    clock: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Running {
    request: Request,
    sender: OutputSender,
    next_step: usize,
    num_tokens: usize,
    ended: Arc<AtomicBool>,
}

impl ScriptedEngine {
    pub(crate) fn new(script: Vec<Vec<TokenId>>, at_once: bool) -> Self {
        Self {
            info: EngineInfo {
                scheduler: "script".to_owned(),
                max_model_len: MAX_MODEL_LEN,
                kv: KvGeometry { num_blocks: 64, block_size: 16 },
                enable_prefix_caching: true,
            },
            script,
            at_once,
            running: Mutex::default(),
            requests: Mutex::default(),
            cancelled: Arc::default(),
            refusal: Mutex::default(),
            health: Mutex::new(Health::Healthy),
            instances: Mutex::default(),
            draining: AtomicBool::new(false),
            clock: AtomicUsize::new(0),
        }
    }

    /// Gives every running sequence its script's next step; returns whether any still runs.
    pub(crate) fn step(&self) -> bool {
        let now = self.tick();
        let mut running = self.running.lock().unwrap();
        running.retain_mut(|sequence| {
            !sequence.ended.load(Ordering::Relaxed) && sequence.step(&self.script, now)
        });
        !running.is_empty()
    }

    /// Fails every running sequence.
    pub(crate) fn fail(&self, reason: &str) {
        for sequence in self.running.lock().unwrap().drain(..) {
            sequence.sender.fail(reason);
        }
    }

    pub(crate) fn num_running(&self) -> usize {
        let running = self.running.lock().unwrap();
        running.iter().filter(|sequence| !sequence.ended.load(Ordering::Relaxed)).count()
    }

    fn tick(&self) -> Time {
        let ticks = self.clock.fetch_add(1, Ordering::Relaxed);
        Time::from_start(Duration::from_millis(ticks as u64))
    }
}

impl Running {
    fn step(&mut self, script: &[Vec<TokenId>], at: Time) -> bool {
        let is_first = self.next_step == 0;
        let tokens = &script[self.next_step % script.len()];
        self.next_step += 1;
        let (request, num_tokens) = (&self.request, &mut self.num_tokens);
        let rules = &request.stop;
        let mut finished = None;
        self.sender.update(|output| {
            if is_first {
                output.admission = Some(Admitted { at, num_cached_tokens: 2 });
                if let Some(num_top) = request.sampling.prompt_logprobs {
                    let rest = request.prompt.iter().skip(1);
                    output.prompt_logprobs = rest.map(|&t| logprobs(t, num_top)).collect();
                }
            }
            for &token in tokens {
                let stops = rules.stop_token_ids.contains(&token);
                if stops && *num_tokens < rules.min_tokens {
                    continue;
                }
                *num_tokens += 1;
                let logprobs =
                    request.sampling.logprobs.map_or(Vec::new(), |num| logprobs(token, num));
                output.tokens.push(OutputToken { token, logprobs, at });
                let full = *num_tokens >= rules.max_tokens
                    || request.prompt.len() + *num_tokens >= MAX_MODEL_LEN;
                if stops || full {
                    finished = Some(Finished {
                        reason: if stops { FinishReason::Stop } else { FinishReason::Length },
                        stop_token: stops.then_some(token),
                        times: SeqTimes::default(),
                        num_cached_tokens: 2,
                        num_preemptions: 0,
                    });
                    break;
                }
            }
            output.finished.clone_from(&finished);
        });
        finished.is_none()
    }
}

/// Returns the token's own logprob and those of the tokens before it in the vocabulary.
fn logprobs(token: TokenId, num_top: u32) -> Vec<TokenLogprob> {
    let own = TokenLogprob { token, logprob: -0.5, rank: 1 };
    let top = (0..num_top).map(|i| TokenLogprob {
        token: token.saturating_sub(i),
        logprob: if i == 3 { f32::NEG_INFINITY } else { -0.5 - i as f32 },
        rank: i + 1,
    });
    std::iter::once(own).chain(top).collect()
}

impl EngineHandle for ScriptedEngine {
    fn submit(&self, request: Request) -> Result<OutputStream, SubmitError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        assert!(!request.prompt.is_empty() && request.stop.max_tokens > 0, "the front checks");
        let (ended, cancelled) = (Arc::new(AtomicBool::new(false)), Arc::clone(&self.cancelled));
        let cancel = {
            let ended = Arc::clone(&ended);
            move || {
                ended.store(true, Ordering::Relaxed);
                cancelled.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (sender, stream) = output_stream(SeqId(0), cancel);
        self.requests.lock().unwrap().push(request.clone());
        let mut sequence = Running { request, sender, next_step: 0, num_tokens: 0, ended };
        if self.at_once {
            while sequence.step(&self.script, self.tick()) {}
        } else {
            self.running.lock().unwrap().push(sequence);
        }
        Ok(stream)
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            num_running: self.num_running(),
            num_blocks: self.info.kv.num_blocks,
            ..EngineStats::default()
        }
    }

    fn health(&self) -> Health {
        self.health.lock().unwrap().clone()
    }

    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn now(&self) -> Time {
        Time::from_start(Duration::from_millis(self.clock.load(Ordering::Relaxed) as u64))
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn instances(&self) -> Vec<InstanceStatus> {
        self.instances.lock().unwrap().clone()
    }

    fn change_instance(&self, id: InstanceId, change: InstanceChange) -> Option<InstanceStatus> {
        let mut instances = self.instances.lock().unwrap();
        let status = instances.iter_mut().find(|status| status.instance == id)?;
        status.role = change.role.unwrap_or(status.role);
        status.is_draining = change.draining.unwrap_or(status.is_draining);
        Some(status.clone())
    }
}
