//! Sends requests at their times, each a task of its own, and notes when tokens come.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};
use stallfree_bench::{Item, Outcome, RequestRecord, Workload};
use stallfree_core::{Clock as _, WallClock};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::client::{Client, refusal};
use super::events::{Event, Events};
use super::prompts::Prompts;
use super::{Backend, ServeBenchArgs};
use crate::bench::progress::RunProgress;

/// How often progress is shown while nothing ends.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// What each request's body has in common.
#[derive(Clone, Debug)]
pub(super) struct Template {
    backend: Backend,
    fields: Map<String, Value>,
}

impl Template {
    /// Makes it out of the flags.
    ///
    /// # Errors
    /// `--extra-body` is not a JSON object.
    pub(super) fn new(args: &ServeBenchArgs, model: &str) -> Result<Self> {
        let sampling = &args.sampling;
        let mut fields = Map::new();
        let optional = [
            ("temperature", sampling.temperature.map(|value| json!(value))),
            ("top_p", sampling.top_p.map(|value| json!(value))),
            ("top_k", sampling.top_k.map(|value| json!(value))),
            ("min_p", sampling.min_p.map(|value| json!(value))),
        ];
        fields.insert("model".to_owned(), json!(model));
        let given =
            optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        fields.extend(given);
        if let Some(count) = sampling.logprobs {
            match args.server.backend {
                Backend::Openai => fields.insert("logprobs".to_owned(), json!(count)),
                Backend::OpenaiChat => {
                    fields.insert("logprobs".to_owned(), json!(true));
                    fields.insert("top_logprobs".to_owned(), json!(count))
                }
            };
        }
        fields.insert("stream".to_owned(), json!(true));
        fields.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        if sampling.ignores_eos(args.workload.dataset()) {
            fields.insert("ignore_eos".to_owned(), json!(true));
        }
        if let Some(text) = &sampling.extra_body {
            let extra: Map<String, Value> =
                serde_json::from_str(text).context("--extra-body is not a JSON object")?;
            fields.extend(extra);
        }
        Ok(Self { backend: args.server.backend, fields })
    }

    fn body(&self, prompts: &Prompts, item: &Item) -> Bytes {
        let mut body = self.fields.clone();
        match self.backend {
            Backend::Openai => {
                body.insert("prompt".to_owned(), prompts.completion(&item.prompt));
                body.insert("repetition_penalty".to_owned(), json!(1.0));
                body.insert("max_tokens".to_owned(), json!(item.output_len));
            }
            Backend::OpenaiChat => {
                let text = prompts.message(&item.prompt);
                let content = json!([{ "type": "text", "text": text }]);
                let messages = json!([{ "role": "user", "content": content }]);
                body.insert("messages".to_owned(), messages);
                body.insert("max_completion_tokens".to_owned(), json!(item.output_len));
            }
        }
        Value::Object(body).to_string().into()
    }
}

/// Sends a workload to a server.
#[derive(Debug)]
pub(super) struct Sender<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) client: Client,
    pub(super) template: Template,
    pub(super) prompts: Prompts,
}

impl Sender<'_> {
    /// Sends the first requests of the workload, all at once, and forgets them.
    ///
    /// # Errors
    /// One of them fails.
    pub(super) fn warm_up(&self, workload: &Workload, count: usize) -> Result<()> {
        let mut items = workload.items.iter().cycle().take(count).cloned().collect::<Vec<_>>();
        items.iter_mut().for_each(|item| item.at = 0.0);
        let warm_up = Workload { items, ..workload.clone() };
        let records = self.send(&warm_up, None, "Warming up", true)?;
        match records.iter().find_map(RequestRecord::error) {
            Some(error) => bail!("a request to warm up failed: {error}"),
            None => Ok(()),
        }
    }

    /// Sends all requests at their times and returns what became of them, in the workload's order.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn send(
        &self,
        workload: &Workload,
        max_concurrency: Option<usize>,
        what: &str,
        quiet: bool,
    ) -> Result<Vec<RequestRecord>> {
        let total = workload.items.len();
        let (ended, records) = mpsc::channel();
        let mut all = Vec::with_capacity(total);
        thread::scope(|scope| -> Result<()> {
            // Times are kept by a thread that does nothing else: the runtime's timers are a millisecond coarse, and its threads busy.
            thread::Builder::new()
                .name("stallfree-sender".to_owned())
                .spawn_scoped(scope, move || self.start_all(workload, max_concurrency, &ended))?;
            let mut bar = RunProgress::start(what, total, quiet);
            let mut tokens = 0;
            loop {
                match records.recv_timeout(SHOW_EVERY) {
                    Ok(record) => {
                        let record: RequestRecord = record;
                        tokens += record.output_len;
                        all.push(record);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                bar.show(all.len(), total, || format!("{tokens} tokens"));
            }
        })?;
        all.sort_by_key(|record| record.id);
        Ok(all)
    }

    fn start_all(
        &self,
        workload: &Workload,
        max_concurrency: Option<usize>,
        ended: &mpsc::Sender<RequestRecord>,
    ) {
        let limit =
            max_concurrency.unwrap_or(Semaphore::MAX_PERMITS).clamp(1, Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(limit));
        // Prompts are ready before the clock starts: making one takes longer than the gap to the next.
        let bodies: Vec<Bytes> =
            workload.items.iter().map(|item| self.template.body(&self.prompts, item)).collect();
        let clock = WallClock::start();
        let now = move || clock.now().as_secs_f64();
        let mut due: f64 = 0.0;
        for (id, (item, body)) in workload.items.iter().zip(bodies).enumerate() {
            let wait = item.at - now();
            if wait > 0.0 {
                thread::sleep(Duration::from_secs_f64(wait));
            }
            let is_full = places.available_permits() == 0;
            let place = self.runtime.block_on(Arc::clone(&places).acquire_owned());
            // Places are given away in order: none is due before the one before it.
            due = due.max(if is_full { now() } else { item.at });
            let record = start(id, item, due);
            let (client, ended) = (self.client.clone(), ended.clone());
            self.runtime.spawn(async move {
                let mut record = record;
                record.sent = now();
                let outcome = stream(&client, body, &now, &mut record).await;
                record.finished = record.token_times.last().copied().unwrap_or_else(&now);
                record.outcome = match outcome {
                    Ok(()) => Outcome::Completed,
                    Err(error) => Outcome::Failed(format!("{error:#}")),
                };
                drop(place);
                // Nobody listens any more only if the whole run was given up.
                let _sent = ended.send(record);
            });
        }
    }
}

fn start(id: usize, item: &Item, due: f64) -> RequestRecord {
    RequestRecord {
        id,
        planned: item.at,
        due,
        sent: due,
        scheduled: None,
        token_times: Vec::with_capacity(item.output_len.min(1 << 16)),
        finished: due,
        prompt_len: item.prompt.len,
        output_len: 0,
        num_cached_tokens: None,
        stages: None,
        execution_time: None,
        num_restarts: 0,
        slo: item.slo,
        outcome: Outcome::Completed,
        text: String::new(),
    }
}

/// Sends one request and reads its answer. The first message with a choice is the first token, as vLLM counts.
async fn stream(
    client: &Client,
    body: Bytes,
    now: &impl Fn() -> f64,
    record: &mut RequestRecord,
) -> Result<()> {
    let response = client.ask(body).await?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let body = body.collect().await.context("the refusal broke off")?.to_bytes();
        bail!("{}", refusal(status.as_str(), &body));
    }
    let (mut events, mut usage, mut problem, mut done) = (Events::default(), None, None, false);
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the answer broke off")?;
        let Some(piece) = frame.data_ref() else { continue };
        let at = now();
        events.feed(piece, |data| match serde_json::from_slice::<Event<'_>>(data) {
            Ok(event) => {
                if let Some(choice) = event.choices.first() {
                    record.token_times.push(at);
                    record.text.push_str(choice.text());
                }
                usage = event.usage.or(usage);
                problem = event.error.map(|error| error.to_string()).or_else(|| problem.take());
            }
            Err(_) if data == b"[DONE]" => done = true,
            Err(error) => problem = Some(format!("an event can't be read: {error}")),
        });
    }
    record.output_len = usage.map_or(record.token_times.len(), |usage| usage.completion_tokens);
    if let Some(usage) = usage.filter(|usage| usage.prompt_tokens > 0) {
        record.prompt_len = usage.prompt_tokens;
    }
    match problem {
        Some(problem) => bail!("{problem}"),
        None if record.token_times.is_empty() => bail!("the answer had no token"),
        None if !done => bail!("the answer broke off"),
        None => Ok(()),
    }
}
