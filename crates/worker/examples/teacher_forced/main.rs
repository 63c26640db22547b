//! Logits after every token of given texts ("teacher-forced"): on a GPU against single precision on the CPU, or into a file, for others
//! to compare.
//!
//! - `teacher_forced compare MODEL [SEQUENCES] [TOKENS]`: text that the model makes up, computed as prompts, in chunks and as decodes,
//!   in f16 and bf16, with the GPU's own instructions and with Ampere's. Fails unless the GPU agrees, see `verdict.rs`, and unless
//!   recorded steps give the bits of the steps as they are.
//! - `teacher_forced write MODEL TOKENS OUT [bf16|f16]`: TOKENS has a sequence of token ids a line, all of one length; OUT becomes the
//!   logits on the GPU, f32, `[rows, vocab_size]`: a row for each token that another follows, sequence by sequence.
//!
//! It needs a GPU, so it is run by name, or by `benches/gpu/run.sh`.
#![expect(clippy::print_stdout, reason = "a check for people to run and read")]

mod forced;
mod verdict;

use std::io::{BufWriter, Write as _};
use std::path::Path;

use stallfree_core::TokenId;
use stallfree_device::Dtype;
use stallfree_models::Checkpoint;

use forced::{Cut, Forced, Logits, Outcome};
use verdict::Agreement;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["compare", model] => compare(model, 32, 256),
        ["compare", model, sequences, tokens] => {
            compare(model, sequences.parse()?, tokens.parse()?)
        }
        ["write", model, tokens, out] => write(model, tokens, out, Dtype::Bf16),
        ["write", model, tokens, out, "bf16"] => write(model, tokens, out, Dtype::Bf16),
        ["write", model, tokens, out, "f16"] => write(model, tokens, out, Dtype::F16),
        _ => Err("see the head of crates/worker/examples/teacher_forced/main.rs".into()),
    }
}

fn compare(model: &str, num_sequences: usize, len: usize) -> Outcome<()> {
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let (rooms, vocab_size) = ((num_sequences, len), checkpoint.config().vocab_size);
    println!("{}: {num_sequences} sequences of {len} tokens", checkpoint.describe());
    let mut gpu = Forced::on_gpu(&checkpoint, (Dtype::F16, false), rooms)?;
    let mut draws = Draws(1);
    let sequences = gpu.write_texts(rooms, |logits| draws.next_token(logits));
    drop(gpu);
    println!("  the CPU computes them in single precision");
    let expected = Forced::on_cpu(&checkpoint, rooms)?.logits(&sequences, Cut::Chunks(len));
    let mut fails = 0;
    for mode in [(Dtype::F16, false), (Dtype::F16, true), (Dtype::Bf16, false)] {
        let mut gpu = Forced::on_gpu(&checkpoint, mode, rooms)?;
        let mut decodes = Vec::new();
        for cut in [Cut::Chunks(len), Cut::Chunks(48), Cut::Decodes, Cut::Recorded] {
            let got = gpu.logits(&sequences, cut);
            let agreement = Agreement::between(&expected, &got, vocab_size);
            let is_enough = agreement.is_enough(mode.0);
            let verdict = if is_enough { "ok  " } else { "FAIL" };
            println!("  {verdict} {:?} sm80={} {cut:?}: {agreement}", mode.0, mode.1);
            fails += usize::from(!is_enough);
            match cut {
                Cut::Chunks(_) => {}
                Cut::Decodes => decodes = got,
                Cut::Recorded => fails += usize::from(!are_alike(&decodes, &got)),
            }
        }
    }
    if fails == 0 {
        println!("the GPU agrees");
        Ok(())
    } else {
        Err(format!("{fails} checks failed").into())
    }
}

/// Says whether recorded steps gave the bits of those that were not.
fn are_alike(decodes: &[Logits], recorded: &[Logits]) -> bool {
    let alike = decodes == recorded;
    println!("    {} bits when recorded", if alike { "ok   the same" } else { "FAIL other" });
    alike
}

/// A generator of random tokens (`xorshift64*`).
struct Draws(u64);

impl Draws {
    /// Draws from the softmax of some logits.
    fn next_token(&mut self, logits: &[f32]) -> TokenId {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let share = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64;
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |&logit: &f32| f64::from(logit - most).exp();
        let mut left = share * logits.iter().map(weight).sum::<f64>();
        let drawn = logits.iter().position(|logit| {
            left -= weight(logit);
            left < 0.0
        });
        drawn.unwrap_or(0) as TokenId
    }
}

fn write(model: &str, tokens: &str, out: &str, dtype: Dtype) -> Outcome<()> {
    let sequences: Vec<Vec<TokenId>> = std::fs::read_to_string(tokens)?
        .lines()
        .map(|line| line.split_whitespace().map(str::parse).collect::<Result<_, _>>())
        .collect::<Result<_, _>>()?;
    let len = sequences.first().map_or(0, Vec::len);
    if len < 2 || sequences.iter().any(|tokens| tokens.len() != len) {
        return Err(format!(
            "{tokens}: sequences of one length are expected, of two tokens or more"
        )
        .into());
    }
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let mut gpu = Forced::on_gpu(&checkpoint, (dtype, false), (sequences.len(), len))?;
    let mut file = BufWriter::new(std::fs::File::create(out)?);
    for rows in gpu.logits(&sequences, Cut::Chunks(len)) {
        file.write_all(bytemuck::cast_slice(&rows))?;
    }
    Ok(file.flush()?)
}
