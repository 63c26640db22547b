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
    /// Accepted with the value 1, else refused with the reason.
    OnlyOne(&'static str),
}

use Answer::{NoEffect, Refused};
use Values::{Many, None as Flag, One};

const BY_POLICY: &str = "the scheduling policy decides; see --scheduler";
const NO_GRAPHS: &str = "there is no compilation step and no graph to capture on this device";
const NO_TOOLS: &str = "tool calls are not supported yet; requests with tools are refused";
const LORA: Answer = Refused("LoRA adapters are not supported");
const MULTI_DEVICE: Answer = Answer::OnlyOne("more than one device is not supported yet");
const MULTI_MODAL: Answer = NoEffect("models are text-only");
const SPECULATION: &str = "speculative decoding is not supported; answers are the same without it";
const TLS: Answer = Refused("TLS is not supported; put a proxy that speaks it in front");
const OFFLOAD: Answer = NoEffect("weights and KV cache are in host memory already");

/// vLLM's flags beside those in [`super::serve`].
const FLAGS: &[(&str, Values, Answer)] = &[
    ("trust-remote-code", Flag, NoEffect("no code is ever loaded from a model")),
    ("tokenizer-mode", One, NoEffect("there is one tokenizer implementation")),
    ("skip-tokenizer-init", Flag, Refused("the server needs the tokenizer")),
    ("hf-config-path", One, Refused("pass the folder that holds config.json as MODEL")),
    ("config-format", One, NoEffect("found out from the files")),
    ("hf-overrides", One, Refused("edit the model's config.json instead")),
    ("rope-scaling", One, Refused("edit the model's config.json instead")),
    ("code-revision", One, NoEffect("no code is ever loaded from a model")),
    ("tokenizer-revision", One, Refused("pass a local --tokenizer instead")),
    ("quantization", One, NoEffect("found out from the weights")),
    ("enforce-eager", Flag, NoEffect(NO_GRAPHS)),
    ("compilation-config", One, NoEffect(NO_GRAPHS)),
    ("cudagraph-capture-sizes", Many, NoEffect(NO_GRAPHS)),
    ("cuda-graph-sizes", Many, NoEffect(NO_GRAPHS)),
    ("max-cudagraph-capture-size", One, NoEffect(NO_GRAPHS)),
    ("disable-cascade-attn", Flag, NoEffect("there is no cascade attention")),
    ("attention-backend", One, NoEffect("there is one attention per device")),
    ("kv-cache-dtype", One, Refused("the KV cache has the type of the activations; see --dtype")),
    ("calculate-kv-scales", Flag, Refused("the KV cache is not quantized")),
    ("swap-space", One, NoEffect("preempted requests are recomputed, not swapped")),
    ("cpu-offload-gb", One, OFFLOAD),
    ("kv-offloading-size", One, OFFLOAD),
    ("kv-offloading-backend", One, OFFLOAD),
    ("prefix-caching-hash-algo", One, NoEffect("there is one hash")),
    ("sliding-window", One, Refused("the model's configuration says it")),
    ("enable-chunked-prefill", Flag, NoEffect(BY_POLICY)),
    ("max-num-partial-prefills", One, NoEffect(BY_POLICY)),
    ("max-long-partial-prefills", One, NoEffect(BY_POLICY)),
    (
        "async-scheduling",
        Flag,
        NoEffect("planning overlaps computing wherever the device allows it"),
    ),
    ("scheduler-cls", One, Refused("policies are compiled in; see `stallfree schedulers`")),
    ("scheduler-reserve-full-isl", Flag, NoEffect(BY_POLICY)),
    ("seed", One, NoEffect("requests that bring a seed repeat; others draw their own")),
    ("stream-interval", One, NoEffect("every token is sent when it is there")),
    ("data-parallel-size", One, MULTI_DEVICE),
    ("decode-context-parallel-size", One, MULTI_DEVICE),
    ("prefill-context-parallel-size", One, MULTI_DEVICE),
    ("nnodes", One, MULTI_DEVICE),
    ("node-rank", One, NoEffect("there is one node")),
    ("enable-expert-parallel", Flag, NoEffect("there is one device")),
    ("distributed-executor-backend", One, NoEffect("there is one process")),
    ("disable-custom-all-reduce", Flag, NoEffect("there is one device")),
    ("max-parallel-loading-workers", One, NoEffect("weights are mapped, not copied")),
    ("api-server-count", One, NoEffect("one process serves all connections")),
    ("headless", Flag, Refused("there is one process, which serves HTTP")),
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
    ("speculative-config", One, NoEffect(SPECULATION)),
    ("structured-outputs-config", One, NoEffect("constrained output is not supported yet")),
    ("limit-mm-per-prompt", One, MULTI_MODAL),
    ("mm-processor-kwargs", One, MULTI_MODAL),
    ("mm-processor-cache-gb", One, MULTI_MODAL),
    ("allowed-local-media-path", One, MULTI_MODAL),
    ("skip-mm-profiling", Flag, MULTI_MODAL),
    ("enable-auto-tool-choice", Flag, NoEffect(NO_TOOLS)),
    ("tool-call-parser", One, NoEffect(NO_TOOLS)),
    ("tool-parser-plugin", One, NoEffect(NO_TOOLS)),
    ("tool-server", One, NoEffect(NO_TOOLS)),
    ("exclude-tools-when-tool-choice-none", Flag, NoEffect(NO_TOOLS)),
    ("reasoning-parser", One, NoEffect("reasoning stays in the content")),
    ("response-role", One, Refused("answers have the role assistant")),
    ("chat-template-content-format", One, NoEffect("found out from the template")),
    ("kv-transfer-config", One, Refused("disaggregated serving is not supported yet")),
    ("kv-events-config", One, NoEffect("KV events are not published")),
    ("enable-sleep-mode", Flag, Refused("the server can't give its memory back while it runs")),
    ("runner", One, Refused("only generation is supported")),
    ("task", One, Refused("only generation is supported")),
    ("convert", One, Refused("only generation is supported")),
    ("logits-processors", Many, Refused("no Python code can be loaded")),
    ("logits-processor-pattern", One, Refused("no Python code can be loaded")),
    ("middleware", One, Refused("no Python code can be loaded")),
    ("worker-cls", One, Refused("no Python code can be loaded")),
    ("logprobs-mode", One, Refused("logprobs are those of the raw logits")),
    ("override-generation-config", One, Refused("point --generation-config at a folder instead")),
    ("uds", One, Refused("a Unix socket is not supported; see --host and --port")),
    ("root-path", One, Refused("strip the path in the proxy")),
    ("ssl-keyfile", One, TLS),
    ("ssl-certfile", One, TLS),
    ("ssl-ca-certs", One, TLS),
    ("ssl-cert-reqs", One, TLS),
    ("enable-ssl-refresh", Flag, TLS),
    ("uvicorn-log-level", One, NoEffect("set STALLFREE_LOG instead")),
    ("disable-uvicorn-access-log", Flag, NoEffect("requests are not logged unless asked for")),
    ("disable-frontend-multiprocessing", Flag, NoEffect("there is one process")),
    ("disable-fastapi-docs", Flag, NoEffect("no pages are served but /openapi.json")),
    ("enable-log-outputs", Flag, NoEffect("answers are never logged")),
    ("max-log-len", One, NoEffect("prompts are never logged")),
    ("log-config-file", One, NoEffect("set STALLFREE_LOG instead")),
    ("otlp-traces-endpoint", One, NoEffect("traces are not exported")),
    ("collect-detailed-traces", One, NoEffect("traces are not exported")),
    ("show-hidden-metrics-for-version", One, NoEffect("no metric is hidden")),
    ("enable-tokenizer-info-endpoint", Flag, NoEffect("there is no such endpoint")),
    ("enable-server-load-tracking", Flag, NoEffect("requests in flight are in /metrics")),
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

/// Takes vLLM's other flags out of a `serve` command line.
///
/// # Errors
/// A flag that is refused, as clap's error.
pub(super) fn answer(argv: impl Iterator<Item = OsString>) -> Result<Known, clap::Error> {
    let mut known = Known { argv: Vec::new(), notices: Vec::new() };
    let mut rest = argv.peekable();
    known.argv.extend(rest.next_if(|_| true));
    let is_serve = rest.peek().is_some_and(|command| command == "serve");
    while let Some(arg) = rest.next() {
        let Some((name, inline)) = arg.to_str().filter(|_| is_serve).and_then(long_name) else {
            known.argv.push(arg);
            continue;
        };
        let Some(&(_, values, answer)) = find(&name) else {
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
            Answer::OnlyOne(_) if value.as_deref() == Some("1") => {}
            Refused(why) | Answer::OnlyOne(why) => return Err(refusal(&name, why)),
        }
    }
    Ok(known)
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
