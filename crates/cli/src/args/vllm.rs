//! Flags that vLLM has and stallfree doesn't, answered by name, so that copied command lines work or say why not.

use std::ffi::OsString;

use clap::error::ErrorKind;

/// A command line without the flags answered here.
#[derive(Debug)]
pub(super) struct Known {
    /// What remains for clap.
    pub(super) argv: Vec<OsString>,
    /// A line for each flag that was dropped.
    pub(super) notices: Vec<String>,
}

/// How many values a flag takes.
#[derive(Clone, Copy, Debug)]
enum Values {
    None,
    One,
    Many,
}

/// What a flag leads to.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It can't change an answer: dropped, with the reason.
    NoEffect(&'static str),
    /// Ignoring it would change answers or hide a fault: refused, with the reason.
    Refused(&'static str),
    /// Accepted with one of these values, which ask for what there is anyway; else refused with the reason.
    Only(&'static [&'static str], &'static str),
}

use Answer::{NoEffect, Only, Refused};
use Values::{Many, None as Flag, One};

const BY_POLICY: &str = "the scheduling policy decides; see --scheduler";
const NO_GRAPHS: &str = "kernels are compiled for the model, and graphs recorded where the device has them; see --enforce-eager";
const NO_TOOLS: &str = "tool calls are not supported yet; requests with tools are refused";
const LORA: Answer = Refused("LoRA adapters are not supported");
const REPLICAS: Answer =
    Only(&["1"], "pass --replica-spec for several instances behind one server");
const NO_CONTEXT_PARALLEL: Answer =
    Only(&["1"], "contexts are not split over GPUs; see --tensor-parallel-size");
const NO_DATA_PARALLEL: Answer =
    NoEffect("instances are set with --replica-spec, or join a server by `stallfree instance`");
const NO_EXPERTS: Answer = NoEffect("there are no mixture-of-experts models");
const NO_MAMBA: Answer = NoEffect("there are no state-space layers");
const GENERATION: &str = "only generation is supported";
const NO_CODE: Answer = Refused("no Python code can be loaded");
const NO_TRACES: Answer = NoEffect("traces are not exported");
const MULTI_MODAL: Answer = NoEffect("models are text-only");
const SPECULATION: &str = "speculative decoding is not supported; answers are the same without it";
const TLS: Answer = Refused("TLS is not supported; put a proxy that speaks it in front");
const OFFLOAD: Answer = NoEffect("weights and KV cache stay in the device's memory");

/// vLLM's flags beside those in [`super::serve`].
const FLAGS: &[(&str, Values, Answer)] = &[
    ("trust-remote-code", Flag, NoEffect("no code is ever loaded from a model")),
    ("tokenizer-mode", One, NoEffect("there is one tokenizer implementation")),
    ("skip-tokenizer-init", Flag, Refused("the server needs the tokenizer")),
    ("hf-config-path", One, Refused("pass the folder that holds config.json as MODEL")),
    ("config-format", One, NoEffect("found out from the files")),
    ("hf-overrides", One, Refused("edit the model's config.json instead")),
    ("rope-scaling", One, Refused("edit the model's config.json instead")),
    ("rope-theta", One, Refused("edit the model's config.json instead")),
    ("hf-token", One, Refused("set HF_TOKEN instead")),
    ("model-impl", One, NoEffect("there is one implementation of each model")),
    ("pt-load-map-location", One, NoEffect("weights are mapped, not copied")),
    ("code-revision", One, NoEffect("no code is ever loaded from a model")),
    ("tokenizer-revision", One, Refused("pass a local --tokenizer instead")),
    ("quantization", One, NoEffect("found out from the weights")),
    ("compilation-config", One, NoEffect(NO_GRAPHS)),
    ("cudagraph-capture-sizes", Many, NoEffect(NO_GRAPHS)),
    ("cuda-graph-sizes", Many, NoEffect(NO_GRAPHS)),
    ("max-cudagraph-capture-size", One, NoEffect(NO_GRAPHS)),
    ("max-seq-len-to-capture", One, NoEffect(NO_GRAPHS)),
    ("optimization-level", One, NoEffect(NO_GRAPHS)),
    ("performance-mode", One, NoEffect(NO_GRAPHS)),
    ("disable-cascade-attn", Flag, NoEffect("there is no cascade attention")),
    ("attention-backend", One, NoEffect("there is one attention per device")),
    ("attention-config", One, NoEffect("there is one attention per device")),
    (
        "kv-cache-dtype",
        One,
        Only(&["auto"], "the KV cache has the type of the activations; see --dtype"),
    ),
    ("calculate-kv-scales", Flag, Refused("the KV cache is not quantized")),
    ("swap-space", One, NoEffect("preempted requests are recomputed, not swapped")),
    ("cpu-offload-gb", One, OFFLOAD),
    ("kv-offloading-size", One, OFFLOAD),
    ("kv-offloading-backend", One, OFFLOAD),
    ("prefix-caching-hash-algo", One, NoEffect("there is one hash")),
    ("sliding-window", One, Refused("the model's configuration says it")),
    ("disable-sliding-window", Flag, Refused("the model's configuration says it")),
    ("disable-hybrid-kv-cache-manager", Flag, NoEffect("all layers share one block table")),
    ("kv-sharing-fast-prefill", Flag, NoEffect("no model here shares its KV between layers")),
    ("mamba-cache-dtype", One, NO_MAMBA),
    ("mamba-ssm-cache-dtype", One, NO_MAMBA),
    ("mamba-block-size", One, NO_MAMBA),
    ("preemption-mode", One, NoEffect("preempted requests are recomputed, not swapped")),
    ("enable-chunked-prefill", Flag, NoEffect(BY_POLICY)),
    ("max-num-partial-prefills", One, NoEffect(BY_POLICY)),
    ("max-long-partial-prefills", One, NoEffect(BY_POLICY)),
    ("scheduler-delay-factor", One, NoEffect(BY_POLICY)),
    ("num-scheduler-steps", One, NoEffect(BY_POLICY)),
    ("num-lookahead-slots", One, NoEffect(SPECULATION)),
    (
        "async-scheduling",
        Flag,
        NoEffect("planning overlaps computing wherever the device allows it"),
    ),
    ("scheduler-cls", One, Refused("policies are compiled in; see `stallfree schedulers`")),
    ("scheduler-reserve-full-isl", Flag, NoEffect(BY_POLICY)),
    ("seed", One, NoEffect("requests that bring a seed repeat; others draw their own")),
    ("stream-interval", One, NoEffect("every token is sent when it is there")),
    ("data-parallel-size", One, REPLICAS),
    ("decode-context-parallel-size", One, NO_CONTEXT_PARALLEL),
    ("prefill-context-parallel-size", One, NO_CONTEXT_PARALLEL),
    ("data-parallel-size-local", One, REPLICAS),
    ("data-parallel-rank", One, NO_DATA_PARALLEL),
    ("data-parallel-start-rank", One, NO_DATA_PARALLEL),
    ("data-parallel-address", One, NO_DATA_PARALLEL),
    ("data-parallel-rpc-port", One, NO_DATA_PARALLEL),
    ("data-parallel-backend", One, NO_DATA_PARALLEL),
    ("data-parallel-hybrid-lb", Flag, NO_DATA_PARALLEL),
    ("data-parallel-external-lb", Flag, NO_DATA_PARALLEL),
    ("distributed-timeout-seconds", One, NoEffect("a lost node is noticed within seconds")),
    ("enable-expert-parallel", Flag, NO_EXPERTS),
    ("enable-eplb", Flag, NO_EXPERTS),
    ("eplb-config", One, NO_EXPERTS),
    ("expert-placement-strategy", One, NO_EXPERTS),
    ("all2all-backend", One, NO_EXPERTS),
    ("moe-backend", One, NO_EXPERTS),
    ("enable-return-routed-experts", Flag, Refused("there are no mixture-of-experts models")),
    ("enable-dbo", Flag, NO_EXPERTS),
    ("dbo-decode-token-threshold", One, NO_EXPERTS),
    ("dbo-prefill-token-threshold", One, NO_EXPERTS),
    (
        "distributed-executor-backend",
        One,
        NoEffect("ranks are threads of a process; see --nnodes for several"),
    ),
    ("max-parallel-loading-workers", One, NoEffect("weights are mapped, not copied")),
    ("api-server-count", One, NoEffect("one process serves all connections")),
    (
        "headless",
        Flag,
        Refused("start a process without HTTP with `stallfree instance` or --node-rank"),
    ),
    ("download-dir", One, Refused("set HF_HOME or STALLFREE_CACHE instead")),
    ("model-loader-extra-config", One, NoEffect("weights are mapped, not copied")),
    ("safetensors-load-strategy", One, NoEffect("weights are mapped, not copied")),
    ("use-tqdm-on-load", Flag, NoEffect("loading is timed phase by phase")),
    ("ignore-patterns", Many, NoEffect("only the files that are needed are downloaded")),
    ("enable-lora", Flag, LORA),
    ("lora-modules", Many, LORA),
    ("max-loras", One, LORA),
    ("max-lora-rank", One, LORA),
    ("max-cpu-loras", One, LORA),
    ("lora-dtype", One, LORA),
    ("fully-sharded-loras", Flag, LORA),
    ("enable-lora-bias", Flag, LORA),
    ("default-mm-loras", One, LORA),
    ("speculative-config", One, NoEffect(SPECULATION)),
    ("structured-outputs-config", One, NoEffect("constrained output is not supported yet")),
    ("guided-decoding-backend", One, NoEffect("constrained output is not supported yet")),
    ("enable-prompt-embeds", Flag, Refused("prompts are texts or tokens")),
    ("limit-mm-per-prompt", One, MULTI_MODAL),
    ("mm-processor-kwargs", One, MULTI_MODAL),
    ("mm-processor-cache-gb", One, MULTI_MODAL),
    ("allowed-local-media-path", One, MULTI_MODAL),
    ("skip-mm-profiling", Flag, MULTI_MODAL),
    ("mm-processor-cache-type", One, MULTI_MODAL),
    ("mm-encoder-tp-mode", One, MULTI_MODAL),
    ("mm-encoder-attn-backend", One, MULTI_MODAL),
    ("mm-shm-cache-max-object-size-mb", One, MULTI_MODAL),
    ("media-io-kwargs", One, MULTI_MODAL),
    ("allowed-media-domains", Many, MULTI_MODAL),
    ("interleave-mm-strings", Flag, MULTI_MODAL),
    ("disable-chunked-mm-input", Flag, MULTI_MODAL),
    ("disable-mm-preprocessor-cache", Flag, MULTI_MODAL),
    ("enable-mm-embeds", Flag, MULTI_MODAL),
    ("language-model-only", Flag, MULTI_MODAL),
    ("video-pruning-rate", One, MULTI_MODAL),
    ("enable-auto-tool-choice", Flag, NoEffect(NO_TOOLS)),
    ("tool-call-parser", One, NoEffect(NO_TOOLS)),
    ("tool-parser-plugin", One, NoEffect(NO_TOOLS)),
    ("tool-server", One, NoEffect(NO_TOOLS)),
    ("exclude-tools-when-tool-choice-none", Flag, NoEffect(NO_TOOLS)),
    ("reasoning-parser", One, NoEffect("reasoning stays in the content")),
    ("reasoning-parser-plugin", One, NoEffect("reasoning stays in the content")),
    ("response-role", One, Only(&["assistant"], "answers have the role assistant")),
    ("chat-template-content-format", One, NoEffect("found out from the template")),
    ("kv-transfer-config", One, Refused("pass --mode distserve and --kv-transport instead")),
    ("ec-transfer-config", One, Refused("models are text-only")),
    ("weight-transfer-config", One, Refused("weights can't be changed while the server runs")),
    ("kv-events-config", One, NoEffect("KV events are not published")),
    ("enable-sleep-mode", Flag, Refused("the server can't give its memory back while it runs")),
    ("runner", One, Only(&["auto", "generate"], GENERATION)),
    ("task", One, Only(&["auto", "generate"], GENERATION)),
    ("convert", One, Only(&["auto", "none"], GENERATION)),
    ("pooler-config", One, Refused(GENERATION)),
    ("tokens-only", Flag, Refused("the routes that take text can't be switched off")),
    ("grpc", Flag, Refused("only HTTP is spoken")),
    ("logits-processors", Many, NO_CODE),
    ("logits-processor-pattern", One, NO_CODE),
    ("io-processor-plugin", One, NO_CODE),
    ("middleware", One, NO_CODE),
    ("worker-cls", One, NO_CODE),
    ("worker-extension-cls", One, NO_CODE),
    ("additional-config", One, NoEffect("no plugin reads it")),
    ("logprobs-mode", One, Only(&["raw_logprobs"], "logprobs are those of the raw logits")),
    ("override-generation-config", One, Refused("point --generation-config at a folder instead")),
    ("uds", One, Refused("a Unix socket is not supported; see --host and --port")),
    ("root-path", One, Refused("strip the path in the proxy")),
    ("ssl-keyfile", One, TLS),
    ("ssl-certfile", One, TLS),
    ("ssl-ca-certs", One, TLS),
    ("ssl-cert-reqs", One, TLS),
    ("enable-ssl-refresh", Flag, TLS),
    ("ssl-ciphers", One, TLS),
    ("uvicorn-log-level", One, NoEffect("set STALLFREE_LOG instead")),
    ("disable-uvicorn-access-log", Flag, NoEffect("requests are not logged unless asked for")),
    ("disable-frontend-multiprocessing", Flag, NoEffect("there is one process")),
    ("disable-access-log-for-endpoints", One, NoEffect("requests are not logged")),
    ("disable-fastapi-docs", Flag, NoEffect("no pages are served but /openapi.json")),
    ("enable-offline-docs", Flag, NoEffect("no pages are served but /openapi.json")),
    ("h11-max-incomplete-event-size", One, NoEffect("the HTTP parser has its own limits")),
    ("h11-max-header-count", One, NoEffect("the HTTP parser has its own limits")),
    ("fingerprint-mode", One, NoEffect("answers have no system_fingerprint")),
    ("fingerprint-value", One, NoEffect("answers have no system_fingerprint")),
    ("enable-log-outputs", Flag, NoEffect("answers are never logged")),
    ("enable-log-deltas", Flag, NoEffect("answers are never logged")),
    ("log-error-stack", Flag, NoEffect("errors name their cause")),
    ("aggregate-engine-logging", Flag, NoEffect("there is one engine")),
    ("max-log-len", One, NoEffect("prompts are never logged")),
    ("log-config-file", One, NoEffect("set STALLFREE_LOG instead")),
    ("otlp-traces-endpoint", One, NO_TRACES),
    ("collect-detailed-traces", One, NO_TRACES),
    ("profiler-config", One, NO_TRACES),
    ("kv-cache-metrics", Flag, NoEffect("see /metrics for what there is")),
    ("enable-mfu-metrics", Flag, NoEffect("see /metrics for what there is")),
    ("show-hidden-metrics-for-version", One, NoEffect("no metric is hidden")),
    ("enable-tokenizer-info-endpoint", Flag, NoEffect("there is no such endpoint")),
    ("enable-server-load-tracking", Flag, NoEffect("/load always answers")),
    ("enable-prompt-tokens-details", Flag, NoEffect("cached prompt tokens are always reported")),
    ("enable-log-requests", Flag, NoEffect("set STALLFREE_LOG=debug instead")),
    ("disable-log-requests", Flag, NoEffect("requests are not logged unless asked for")),
    ("enable-per-request-metrics", Flag, NoEffect("times are in /metrics")),
    ("config", One, Refused("pass the flags on the command line")),
];

/// Short spellings.
const SHORT: &[(&str, &str)] = &[
    ("-tp", "tensor-parallel-size"),
    ("-pp", "pipeline-parallel-size"),
    ("-dp", "data-parallel-size"),
    ("-dcp", "decode-context-parallel-size"),
    ("-q", "quantization"),
    ("-O", "compilation-config"),
    ("-cc", "compilation-config"),
];

/// Takes vLLM's other flags out of a `serve` or `instance` command line, and spells its short ones out there and where else an engine is started.
///
/// # Errors
/// A flag that is refused, as clap's error.
pub(super) fn answer(argv: impl Iterator<Item = OsString>) -> Result<Known, clap::Error> {
    let mut known = Known { argv: Vec::new(), notices: Vec::new() };
    let mut rest = argv.peekable();
    known.argv.extend(rest.next_if(|_| true));
    let is_serve = rest.peek().is_some_and(|command| command == "serve" || command == "instance");
    let is_either =
        is_serve || rest.peek().is_some_and(|command| command == "bench" || command == "calibrate");
    while let Some(arg) = rest.next() {
        let Some((name, inline)) = arg.to_str().filter(|_| is_either).and_then(long_name) else {
            known.argv.push(arg);
            continue;
        };
        let Some(&(_, values, answer)) = find(&name).filter(|_| is_serve) else {
            known.argv.push(spelled_out(arg, &name, inline.as_deref()));
            continue;
        };
        let mut value = inline;
        let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-');
        match values {
            One if value.is_none() => {
                value = rest.next_if(is_value).map(|v| v.to_string_lossy().into());
            }
            Many => while rest.next_if(is_value).is_some() {},
            Flag | One => {}
        }
        match answer {
            NoEffect(why) => known.notices.push(format!("--{name} has no effect: {why}")),
            Only(accepted, _) if value.as_deref().is_some_and(|v| accepted.contains(&v)) => {}
            Refused(why) | Only(_, why) => return Err(refusal(&name, why)),
        }
    }
    Ok(known)
}

/// Returns the long names of vLLM's other flags.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|(name, ..)| *name)
}

/// Returns a flag of ours, by its long name where vLLM's short one was given.
fn spelled_out(arg: OsString, name: &str, value: Option<&str>) -> OsString {
    let is_short = !arg.to_string_lossy().starts_with("--");
    match (is_short, value) {
        (false, _) => arg,
        (true, None) => format!("--{name}").into(),
        (true, Some(value)) => format!("--{name}={value}").into(),
    }
}

/// Splits `--name=value` or a short spelling into the long name and the value, if there is one in it.
fn long_name(arg: &str) -> Option<(String, Option<String>)> {
    if let Some(long) = arg.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
        return Some((name.to_owned(), value.map(ToOwned::to_owned)));
    }
    // `-O3` has its value in it.
    if let Some(level) = arg.strip_prefix("-O").filter(|level| !level.is_empty()) {
        return Some(("compilation-config".to_owned(), Some(level.to_owned())));
    }
    let (short, value) = arg.split_once('=').map_or((arg, None), |(s, v)| (s, Some(v)));
    let (_, long) = SHORT.iter().find(|(name, _)| *name == short)?;
    Some(((*long).to_owned(), value.map(ToOwned::to_owned)))
}

/// Finds a flag by its name, with or without `no-` where it takes no value.
fn find(name: &str) -> Option<&'static (&'static str, Values, Answer)> {
    FLAGS.iter().find(|(flag, values, _)| {
        *flag == name || (matches!(values, Flag) && name.strip_prefix("no-") == Some(flag))
    })
}

fn refusal(name: &str, why: &str) -> clap::Error {
    let message = format!("vLLM's --{name} is known, but not supported here: {why}\n");
    clap::Error::raw(ErrorKind::InvalidValue, message)
}
