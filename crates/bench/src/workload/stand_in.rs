//! Fits to data sets that are not shipped: lengths alone, and always labelled synthetic.

use rand::Rng;

use super::{Lengths, TraceRow};

/// A fit to a data set's lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct StandIn {
    /// What to call it.
    pub name: &'static str,
    prompt: Lengths,
    output: Lengths,
    max_total_len: usize,
}

/// Stands for ShareGPT cut at 8,192 tokens, as Sarathi-Serve uses it (OSDI '24, table 2): quantiles of 30,731 conversations, prompt
/// median 1,730 and P90 5,696, output median 415 and P90 834. Prompt and output are drawn apart (their rank correlation is 0.05).
pub const SHAREGPT: StandIn = StandIn {
    name: "synthetic-sharegpt",
    prompt: Lengths::Quantiles(&SHAREGPT_PROMPTS),
    output: Lengths::Quantiles(&SHAREGPT_OUTPUTS),
    max_total_len: 8192,
};

/// Stands for arXiv summarisation cut at 16,384 tokens, as Sarathi-Serve uses it: log-normal fits to the published prompt median
/// 7,059, P90 12,985 and output median 208, P90 371.
pub const ARXIV: StandIn = StandIn {
    name: "synthetic-arxiv",
    prompt: Lengths::LogNormal { median: 7900.0, sigma: 0.64, max: 16_150 },
    output: Lengths::LogNormal { median: 208.0, sigma: 0.45, max: 2048 },
    max_total_len: 16_384,
};

/// Stands for Mooncake's conversations (FAST '25 release): log-normal fits to a prompt median of 6,909, P90 of 27,367 and mean of 12,035
/// tokens, at most 126,195, and a mean output of 343.
pub const MOONCAKE: StandIn = StandIn {
    name: "synthetic-mooncake",
    prompt: Lengths::LogNormal { median: 6909.0, sigma: 1.074, max: 126_195 },
    output: Lengths::LogNormal { median: 290.0, sigma: 0.58, max: 2000 },
    max_total_len: 128_195,
};

/// Stands for LongBench (Bai et al. 2023) with a long context: prompts of 10,000 tokens in the mean, half of them over 8,500; answers as short
/// as DistServe says (OSDI '24, figure 7: 91 tokens in the mean).
pub const LONGBENCH: StandIn = StandIn {
    name: "synthetic-longbench",
    prompt: Lengths::LogNormal { median: 8500.0, sigma: 0.6, max: 32_000 },
    output: Lengths::LogNormal { median: 76.0, sigma: 0.6, max: 512 },
    max_total_len: 32_512,
};

/// Stands for ShareGPT cut at the 2,048 tokens of OPT, as DistServe uses it (OSDI '24, figure 7: mean prompt 755.5, mean output 200.3).
/// The paper publishes means alone; the shapes are those of conversations of up to 2,048 tokens, stretched to these means.
pub const SHAREGPT_2K: StandIn = StandIn {
    name: "synthetic-sharegpt-2k",
    prompt: Lengths::Quantiles(&CHAT_PROMPTS),
    output: Lengths::Quantiles(&CHAT_OUTPUTS),
    max_total_len: 2047,
};

/// Stands for LongBench's summarisation cut at the 2,048 tokens of OPT, as DistServe uses it (OSDI '24, figure 7: mean prompt 1,738.3,
/// mean output 90.7). The paper publishes means alone; most prompts are as long as the cut leaves them.
pub const LONGBENCH_2K: StandIn = StandIn {
    name: "synthetic-longbench-2k",
    prompt: Lengths::Quantiles(&SUMMARY_PROMPTS),
    output: Lengths::Quantiles(&SUMMARY_OUTPUTS),
    max_total_len: 2048,
};

impl StandIn {
    /// Draws a request.
    pub(super) fn sample(&self, rng: &mut impl Rng) -> TraceRow {
        loop {
            let row = TraceRow::of(self.prompt.sample(rng), self.output.sample(rng));
            if row.prompt_len + row.output_len <= self.max_total_len {
                return row;
            }
        }
    }
}

const SHAREGPT_PROMPTS: [(f64, f64); 25] = [
    (0.0, 1.0),
    (0.01, 12.0),
    (0.02, 16.0),
    (0.05, 29.0),
    (0.1, 74.0),
    (0.15, 180.0),
    (0.2, 382.0),
    (0.25, 580.0),
    (0.3, 777.0),
    (0.35, 973.0),
    (0.4, 1203.0),
    (0.45, 1457.0),
    (0.5, 1730.0),
    (0.55, 2060.0),
    (0.6, 2401.0),
    (0.65, 2799.0),
    (0.7, 3235.0),
    (0.75, 3734.0),
    (0.8, 4278.0),
    (0.85, 4918.0),
    (0.9, 5696.0),
    (0.95, 6563.0),
    (0.975, 7056.0),
    (0.99, 7434.0),
    (1.0, 8141.0),
];

const SHAREGPT_OUTPUTS: [(f64, f64); 25] = [
    (0.0, 2.0),
    (0.01, 6.0),
    (0.02, 19.0),
    (0.05, 44.0),
    (0.1, 84.0),
    (0.15, 130.0),
    (0.2, 181.0),
    (0.25, 228.0),
    (0.3, 271.0),
    (0.35, 312.0),
    (0.4, 346.0),
    (0.45, 381.0),
    (0.5, 415.0),
    (0.55, 453.0),
    (0.6, 493.0),
    (0.65, 534.0),
    (0.7, 581.0),
    (0.75, 628.0),
    (0.8, 683.0),
    (0.85, 754.0),
    (0.9, 834.0),
    (0.95, 920.0),
    (0.975, 965.0),
    (0.99, 998.0),
    (1.0, 1024.0),
];

const CHAT_PROMPTS: [(f64, f64); 25] = [
    (0.0, 1.0),
    (0.01, 17.0),
    (0.02, 22.0),
    (0.05, 36.0),
    (0.1, 75.0),
    (0.15, 131.0),
    (0.2, 218.0),
    (0.25, 325.0),
    (0.3, 430.0),
    (0.35, 516.0),
    (0.4, 605.0),
    (0.45, 687.0),
    (0.5, 763.0),
    (0.55, 844.0),
    (0.6, 914.0),
    (0.65, 991.0),
    (0.7, 1072.0),
    (0.75, 1161.0),
    (0.8, 1250.0),
    (0.85, 1351.0),
    (0.9, 1467.0),
    (0.95, 1615.0),
    (0.975, 1720.0),
    (0.99, 1829.0),
    (1.0, 2043.0),
];

const CHAT_OUTPUTS: [(f64, f64); 25] = [
    (0.0, 1.0),
    (0.01, 2.0),
    (0.02, 7.0),
    (0.05, 17.0),
    (0.1, 32.0),
    (0.15, 47.0),
    (0.2, 66.0),
    (0.25, 89.0),
    (0.3, 111.0),
    (0.35, 135.0),
    (0.4, 156.0),
    (0.45, 174.0),
    (0.5, 191.0),
    (0.55, 210.0),
    (0.6, 227.0),
    (0.65, 249.0),
    (0.7, 271.0),
    (0.75, 295.0),
    (0.8, 319.0),
    (0.85, 351.0),
    (0.9, 397.0),
    (0.95, 449.0),
    (0.975, 482.0),
    (0.99, 503.0),
    (1.0, 523.0),
];

const SUMMARY_PROMPTS: [(f64, f64); 11] = [
    (0.0, 200.0),
    (0.001, 334.0),
    (0.01, 570.0),
    (0.025, 737.0),
    (0.05, 919.0),
    (0.1, 1185.0),
    (0.15, 1407.0),
    (0.2, 1612.0),
    (0.25, 1812.0),
    (0.275, 1900.0),
    (1.0, 1900.0),
];

const SUMMARY_OUTPUTS: [(f64, f64); 8] = [
    (0.0, 6.0),
    (0.05, 28.0),
    (0.1, 41.0),
    (0.25, 66.0),
    (0.5, 93.0),
    (0.75, 119.0),
    (0.9, 138.0),
    (1.0, 148.0),
];
