//! The parameters that both endpoints share: how tokens are drawn, when to stop, what to report.

use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{SamplingParams, Slo, TokenId};
use stallfree_tokenizer::Tokenizer;

use super::fields::{Fields, token_id, wrong_type};
use super::refused;
use crate::{ApiError, ServerConfig};

/// The most choices of one prompt.
const MAX_N: i64 = 128;
/// The most stop strings of a request, and the most bytes that they have together: each is looked for in every piece of text.
const MAX_STOP_STRINGS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;
/// The most bad words of a request, and the most bytes that they have together: each is looked for before every token.
const MAX_BAD_WORDS: usize = 128;
const MAX_BAD_WORD_BYTES: usize = 4096;
/// Below this a temperature only loses precision; vLLM takes it for 0, too.
const MIN_TEMPERATURE: f32 = 1e-5;

/// The longest objective, in milliseconds.
const MAX_SLO_MS: f32 = 1e9;

/// Everything that the two endpoints read alike, validated.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    /// How many choices each prompt gets.
    pub n: usize,
    /// The seed of each prompt's first choice, if the draws are to be repeatable.
    pub seed: Option<u64>,
    /// How tokens are drawn; logprobs are the endpoints' business.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopSettings,
    /// Lower runs earlier.
    pub priority: i32,
    /// What it is promised.
    pub slo: Slo,
    /// How many of the most likely tokens to report for each prompt token.
    pub prompt_logprobs: Option<u32>,
    /// What to report, and how.
    pub report: Report,
    /// Set if the answer is to be streamed.
    pub stream: Option<StreamOptions>,
}

/// When a choice ends, besides its length.
#[derive(Clone, Debug)]
pub(crate) struct StopSettings {
    /// Texts that end it.
    pub strings: Vec<String>,
    /// Whether the text that ended it belongs to the output.
    pub include_stop_str_in_output: bool,
    /// Tokens that end it, those of the model included unless they are to be ignored.
    pub token_ids: Arc<[TokenId]>,
    /// Nothing ends it before this many tokens.
    pub min_tokens: usize,
}

/// What to report, and how.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the API")]
pub(crate) struct Report {
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
    /// As in [`stallfree_tokenizer::DetokenizerOptions`].
    pub spaces_between_special_tokens: bool,
    /// Reports the token ids of prompt and output.
    pub return_token_ids: bool,
    /// Names tokens in logprobs `token_id:N`.
    pub return_tokens_as_token_ids: bool,
}

/// What a stream carries besides its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage_stats: bool,
}

/// Reads what both endpoints share; unsupported parameters are refused here.
pub(crate) fn read(
    fields: &Fields,
    config: &ServerConfig,
    tokenizer: &Tokenizer,
) -> Result<Common, ApiError> {
    refused::check(fields)?;
    let vocab_size = tokenizer.vocab_size();
    fields.string("user")?; // changes nothing, but is no reason to take anything
    let n = read_n(fields)?;
    let stream = read_stream(fields, config)?;
    let prompt_logprobs = read_logprobs(fields, "prompt_logprobs", config)?;
    if prompt_logprobs.is_some() && stream.is_some() {
        let message = "`prompt_logprobs` is not available when `stream` is true.";
        return Err(ApiError::param("prompt_logprobs", message));
    }
    Ok(Common {
        n,
        seed: fields.int("seed", "an integer", |_| true)?.map(i64::cast_unsigned),
        sampling: read_sampling(fields, config, tokenizer)?,
        stop: read_stop(fields, config, vocab_size)?,
        priority: read_priority(fields)?,
        slo: read_slo(fields, config)?,
        prompt_logprobs,
        report: read_report(fields, config)?,
        stream,
    })
}

/// Reads how many of the most likely tokens to report.
pub(crate) fn read_logprobs(
    fields: &Fields,
    name: &str,
    config: &ServerConfig,
) -> Result<Option<u32>, ApiError> {
    let max = config.limits.max_logprobs;
    let in_range = |v: i64| u32::try_from(v).is_ok_and(|v| v <= max);
    let value = fields.int(name, &format!("from 0 to {max}"), in_range)?;
    Ok(value.and_then(|v| u32::try_from(v).ok()))
}

fn read_n(fields: &Fields) -> Result<usize, ApiError> {
    let rule = format!("from 1 to {MAX_N}");
    let n = fields.int("n", &rule, |v| (1..=MAX_N).contains(&v))?.unwrap_or(1);
    if fields.int("best_of", &rule, |v| v >= 1)?.is_some_and(|best_of| best_of != n) {
        let message = "`best_of` other than `n` is not supported: every choice is returned.";
        return Err(ApiError::param("best_of", message));
    }
    Ok(usize::try_from(n).unwrap_or(1))
}

fn read_sampling(
    fields: &Fields,
    config: &ServerConfig,
    tokenizer: &Tokenizer,
) -> Result<SamplingParams, ApiError> {
    let vocab_size = tokenizer.vocab_size();
    let default = config.default_sampling;
    let temperature = fields.number("temperature", "at least 0", |v| v >= 0.0)?;
    let temperature = temperature.unwrap_or(default.temperature);
    let top_k = fields
        .int("top_k", "-1 or 0 (off), or at least 1", |v| v >= -1 && v <= i64::from(u32::MAX))?;
    let unit = |v: f32| (0.0..=1.0).contains(&v);
    let top_p = fields.number("top_p", "over 0 and at most 1", |v| unit(v) && v > 0.0)?;
    let penalty = |v: f32| (-2.0..=2.0).contains(&v);
    let repetition = fields.number("repetition_penalty", "over 0", |v| v.is_normal() && v > 0.0)?;
    Ok(SamplingParams {
        temperature: if temperature < MIN_TEMPERATURE { 0.0 } else { temperature },
        top_k: top_k.map_or(default.top_k, |v| u32::try_from(v).unwrap_or(0)),
        top_p: top_p.unwrap_or(default.top_p),
        min_p: fields.number("min_p", "from 0 to 1", unit)?.unwrap_or(default.min_p),
        repetition_penalty: repetition.unwrap_or(default.repetition_penalty),
        presence_penalty: fields
            .number("presence_penalty", "from -2 to 2", penalty)?
            .unwrap_or_default(),
        frequency_penalty: fields
            .number("frequency_penalty", "from -2 to 2", penalty)?
            .unwrap_or_default(),
        logit_bias: read_logit_bias(fields, vocab_size)?.into(),
        allowed_token_ids: read_allowed_tokens(fields, vocab_size)?.into(),
        bad_words: read_bad_words(fields, tokenizer)?.into(),
        seed: 0,
        logprobs: None,
        prompt_logprobs: None,
    })
}

fn read_logit_bias(fields: &Fields, vocab_size: usize) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    map.iter()
        .map(|(key, bias)| {
            // A token has one name, or there could be more biases than tokens.
            let id = key.parse::<TokenId>().ok().filter(|id| id.to_string() == *key);
            let id = id.filter(|id| (*id as usize) < vocab_size);
            let id = id.ok_or_else(|| {
                let last = vocab_size.saturating_sub(1);
                let message = format!(
                    "`logit_bias` has the key {key:?}, which is not a token id from 0 to {last}, without sign or leading zeros."
                );
                ApiError::param("logit_bias", message)
            })?;
            let bias = bias
                .as_f64()
                .ok_or_else(|| wrong_type("logit_bias", "a map from token ids to numbers", bias))?;
            Ok((id, bias.clamp(-100.0, 100.0) as f32))
        })
        .collect()
}

fn read_allowed_tokens(fields: &Fields, vocab_size: usize) -> Result<Vec<TokenId>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    match fields.token_ids(NAME, vocab_size)? {
        Some(tokens) if tokens.is_empty() => {
            Err(ApiError::param(NAME, format!("`{NAME}` must not be an empty list.")))
        }
        tokens => Ok(distinct(tokens.unwrap_or_default())),
    }
}

/// Returns each token once, in ascending order.
fn distinct(mut tokens: Vec<TokenId>) -> Vec<TokenId> {
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Reads the words that must not be in the output: each as it stands at the beginning of a text and after a space.
fn read_bad_words(fields: &Fields, tokenizer: &Tokenizer) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let words = fields.strings("bad_words")?;
    let bytes: usize = words.iter().map(String::len).sum();
    if words.len() > MAX_BAD_WORDS || bytes > MAX_BAD_WORD_BYTES {
        let message = format!(
            "`bad_words` holds more than {MAX_BAD_WORDS} strings, or more than {MAX_BAD_WORD_BYTES} bytes."
        );
        return Err(ApiError::param("bad_words", message));
    }
    if words.iter().any(|word| word.trim().is_empty()) {
        return Err(ApiError::param("bad_words", "`bad_words` must not hold an empty string."));
    }
    let mut tokens = Vec::with_capacity(2 * words.len());
    for word in words.iter().map(|word| word.trim_start()) {
        for text in [word, &format!(" {word}")] {
            let encoded = tokenizer.encode(text, false);
            tokens.push(encoded.map_err(|e| ApiError::param("bad_words", e.to_string()))?);
        }
    }
    tokens.retain(|word| !word.is_empty());
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

fn read_stop(
    fields: &Fields,
    config: &ServerConfig,
    vocab_size: usize,
) -> Result<StopSettings, ApiError> {
    let strings = fields.strings("stop")?;
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::param("stop", "`stop` must not hold an empty string."));
    }
    let bytes: usize = strings.iter().map(String::len).sum();
    if strings.len() > MAX_STOP_STRINGS || bytes > MAX_STOP_BYTES {
        let message = format!(
            "`stop` holds more than {MAX_STOP_STRINGS} strings, or more than {MAX_STOP_BYTES} bytes."
        );
        return Err(ApiError::param("stop", message));
    }
    let mut token_ids = fields.token_ids("stop_token_ids", vocab_size)?.unwrap_or_default();
    if !fields.bool("ignore_eos", false)? {
        token_ids.extend_from_slice(&config.eos_token_ids);
    }
    Ok(StopSettings {
        strings,
        include_stop_str_in_output: fields.bool("include_stop_str_in_output", false)?,
        token_ids: distinct(token_ids).into(),
        min_tokens: fields.count("min_tokens", 0)?.unwrap_or(0),
    })
}

fn read_priority(fields: &Fields) -> Result<i32, ApiError> {
    let value = fields.int("priority", "a 32-bit integer", |v| i32::try_from(v).is_ok())?;
    Ok(value.and_then(|v| i32::try_from(v).ok()).unwrap_or(0))
}

/// Reads objectives, which are in milliseconds as in Tropical (2026).
fn read_slo(fields: &Fields, config: &ServerConfig) -> Result<Slo, ApiError> {
    let read = |name, default: Option<Duration>| {
        let ms =
            fields.number(name, "over 0 and at most 1e9", |ms| ms > 0.0 && ms <= MAX_SLO_MS)?;
        Ok::<_, ApiError>(ms.map(|ms| Duration::from_secs_f64(f64::from(ms) / 1e3)).or(default))
    };
    let default = config.default_slo;
    Ok(Slo { ttft: read("ttft_slo", default.ttft)?, tpot: read("tpot_slo", default.tpot)? })
}

fn read_report(fields: &Fields, config: &ServerConfig) -> Result<Report, ApiError> {
    let as_ids = config.report.return_tokens_as_token_ids;
    Ok(Report {
        skip_special_tokens: fields.bool("skip_special_tokens", true)?,
        spaces_between_special_tokens: fields.bool("spaces_between_special_tokens", true)?,
        return_token_ids: fields.bool("return_token_ids", false)?,
        return_tokens_as_token_ids: fields.bool("return_tokens_as_token_ids", as_ids)?,
    })
}

fn read_stream(fields: &Fields, config: &ServerConfig) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.bool("stream", false)?;
    let options = fields.nested("stream_options")?;
    if options.is_some() && !stream {
        let message = "`stream_options` is only allowed when `stream` is true.";
        return Err(ApiError::param("stream_options", message));
    }
    let read = |name: &str| -> Result<bool, ApiError> {
        options.as_ref().map_or(Ok(false), |options| options.bool(name, false))
    };
    let force = config.report.enable_force_include_usage;
    let include_usage = read("include_usage")? || force;
    let continuous_usage_stats = read("continuous_usage_stats")? && include_usage;
    Ok(stream.then_some(StreamOptions { include_usage, continuous_usage_stats }))
}

/// Reads the elements of a list of token ids; `name` is the parameter to blame.
pub(crate) fn token_list(
    name: &str,
    items: &[serde_json::Value],
    vocab_size: usize,
) -> Result<Vec<TokenId>, ApiError> {
    items.iter().map(|item| token_id(name, item, vocab_size)).collect()
}
