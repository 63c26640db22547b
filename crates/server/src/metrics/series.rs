//! The table of histograms.

/// A histogram; its number is its place in [`SERIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    TimeToFirstToken,
    InterTokenLatency,
    E2eLatency,
    QueueTime,
    InferenceTime,
    PrefillTime,
    DecodeTime,
    PromptTokens,
    GenerationTokens,
    MaxGenerationTokens,
    ParamsN,
    ParamsMaxTokens,
    IterationTokens,
    TimePerOutputToken,
    PrefillComputedTokens,
    KvTransferTime,
    DecodeQueueTime,
}

/// A histogram's name and buckets.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) series: Series,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// Whose name it is.
    pub(super) prefix: &'static str,
    buckets: Buckets,
}

#[derive(Debug)]
enum Buckets {
    Fixed(&'static [f64]),
    /// 1, 2, 5, 10, … up to the model's maximum length.
    UpToModelLen,
}

impl Entry {
    /// Marks a series that vLLM does not have.
    const fn ours(mut self) -> Self {
        self.prefix = "stallfree";
        self
    }

    pub(super) fn bounds(&self, max_model_len: usize) -> Vec<f64> {
        match self.buckets {
            Buckets::Fixed(bounds) => bounds.to_vec(),
            Buckets::UpToModelLen => one_two_five(max_model_len),
        }
    }
}

fn one_two_five(max: usize) -> Vec<f64> {
    let decades = std::iter::successors(Some(1_usize), |decade| decade.checked_mul(10));
    let steps = decades.flat_map(|decade| [1, 2, 5].map(|step: usize| step.saturating_mul(decade)));
    steps.take_while(|&bound| bound <= max).map(|bound| bound as f64).collect()
}

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TRANSFER: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const ITERATION: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const PARAMS_N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

const fn entry(series: Series, name: &'static str, help: &'static str, buckets: Buckets) -> Entry {
    Entry { series, name, help, prefix: "vllm", buckets }
}

/// Every histogram, in the order of [`Series`].
#[rustfmt::skip] // a table
pub(super) const SERIES: [Entry; 17] = [
    entry(Series::TimeToFirstToken, "time_to_first_token_seconds", "From a request's arrival to its first token.", Buckets::Fixed(TTFT)),
    entry(Series::InterTokenLatency, "inter_token_latency_seconds", "Between two tokens of a sequence.", Buckets::Fixed(PER_TOKEN)),
    entry(Series::E2eLatency, "e2e_request_latency_seconds", "From a request's arrival to its end.", Buckets::Fixed(LATENCY)),
    entry(Series::QueueTime, "request_queue_time_seconds", "From a request's arrival to its first chunk.", Buckets::Fixed(LATENCY)),
    entry(Series::InferenceTime, "request_inference_time_seconds", "From the first chunk to the last token.", Buckets::Fixed(LATENCY)),
    entry(Series::PrefillTime, "request_prefill_time_seconds", "From the first chunk to the first token.", Buckets::Fixed(LATENCY)),
    entry(Series::DecodeTime, "request_decode_time_seconds", "From the first token to the last.", Buckets::Fixed(LATENCY)),
    entry(Series::PromptTokens, "request_prompt_tokens", "Prompt tokens of a sequence.", Buckets::UpToModelLen),
    entry(Series::GenerationTokens, "request_generation_tokens", "Tokens that a sequence produced.", Buckets::UpToModelLen),
    entry(Series::MaxGenerationTokens, "request_max_num_generation_tokens", "Tokens of a request's longest choice.", Buckets::UpToModelLen),
    entry(Series::ParamsN, "request_params_n", "The n that a request asks for.", Buckets::Fixed(PARAMS_N)),
    entry(Series::ParamsMaxTokens, "request_params_max_tokens", "The most tokens that a sequence may produce.", Buckets::UpToModelLen),
    entry(Series::IterationTokens, "iteration_tokens_total", "Prompt tokens computed and tokens produced in a step.", Buckets::Fixed(ITERATION)),
    entry(Series::TimePerOutputToken, "request_time_per_output_token_seconds", "A sequence's mean time between two tokens.", Buckets::Fixed(PER_TOKEN)),
    entry(Series::PrefillComputedTokens, "request_prefill_kv_computed_tokens", "Prompt tokens that were not found in the prefix cache.", Buckets::UpToModelLen),
    entry(Series::KvTransferTime, "request_kv_transfer_time_seconds", "A sequence's KV on its way to the instance that decodes.", Buckets::Fixed(TRANSFER)).ours(),
    entry(Series::DecodeQueueTime, "request_decode_queue_time_seconds", "From the first token to the first step of the decode, the transfer left out.", Buckets::Fixed(TRANSFER)).ours(),
];

// A series is looked up by its number.
const _: () = {
    let mut i = 0;
    while i < SERIES.len() {
        assert!(SERIES[i].series as usize == i);
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::one_two_five;

    #[test]
    fn token_buckets_end_at_the_models_length() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert!(one_two_five(0).is_empty());
        assert_eq!(one_two_five(8192).last(), Some(&5000.0));
    }
}
