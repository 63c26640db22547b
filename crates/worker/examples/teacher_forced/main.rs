//! Every next token's logprobs of a model, with the tokens given ("teacher-forced"): on a GPU against single precision on the CPU,
//! or into a file, for others to compare.
//!
//! - `teacher_forced compare MODEL [SEQUENCES] [TOKENS]`: text that the model makes up, computed as prompts and as decodes, in bf16
//!   and f16, with Ampere's kernels and with the GPU's own. Fails unless the GPU agrees, see `verdict.rs`.
//! - `teacher_forced write MODEL TOKENS OUT [bf16|f16]`: TOKENS has a sequence of token ids a line; OUT becomes the logprobs on the
//!   GPU, f32, `[rows, vocab_size]`: a row for each token that another follows, sequence by sequence.
//!
//! It needs a GPU, so it is run by name, or by `benches/gpu/run.sh`.
#![expect(clippy::print_stdout, reason = "a check for people to run and read")]

mod forced;
mod verdict;

use std::io::{BufWriter, Write as _};
use std::path::Path;

use stallfree_core::{SamplingParams, TokenId};
use stallfree_models::{Checkpoint, DtypeChoice};

use forced::{Cut, Forced, GpuMode, Outcome};
use verdict::Agreement;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["compare", model] => compare(model, 32, 256),
        ["compare", model, sequences, tokens] => {
            compare(model, sequences.parse()?, tokens.parse()?)
        }
        ["write", model, tokens, out] => write(model, tokens, out, DtypeChoice::BF16),
        ["write", model, tokens, out, "bf16"] => write(model, tokens, out, DtypeChoice::BF16),
        ["write", model, tokens, out, "f16"] => write(model, tokens, out, DtypeChoice::F16),
        _ => Err("see the head of crates/worker/examples/teacher_forced/main.rs".into()),
    }
}

fn compare(model: &str, num_sequences: usize, len: usize) -> Outcome<()> {
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let rooms = (num_sequences, len);
    println!("{}: {num_sequences} sequences of {len} tokens", checkpoint.describe());
    let mode = GpuMode { dtype: DtypeChoice::F16, ampere_path: false, is_recorded: false };
    let mut gpu = Forced::on_gpu(&checkpoint, mode, rooms)?;
    let seed = |index| SamplingParams { temperature: 1.0, seed: index, ..SamplingParams::greedy() };
    let sequences = gpu.make_up(num_sequences, len, seed)?;
    drop(gpu);
    println!("  the CPU computes them in single precision");
    let expected = Forced::on_cpu(&checkpoint, rooms)?.logprobs(&sequences, Cut::Prompts)?;
    let mut fails = 0;
    for dtype in [DtypeChoice::BF16, DtypeChoice::F16] {
        for ampere_path in [false, true] {
            let mode = GpuMode { dtype, ampere_path, is_recorded: true };
            let mut gpu = Forced::on_gpu(&checkpoint, mode, rooms)?;
            for cut in [Cut::Prompts, Cut::Chunks(48), Cut::Decodes] {
                let got = gpu.logprobs(&sequences, cut)?;
                let agreement = Agreement::between(&expected, &got, checkpoint.config().vocab_size);
                println!("  {dtype:?} sm80={ampere_path} {cut:?}: {agreement}");
                fails += usize::from(!agreement.is_enough());
            }
        }
        let mode = GpuMode { dtype, ampere_path: false, is_recorded: false };
        let mut gpu = Forced::on_gpu(&checkpoint, mode, rooms)?;
        gpu.logprobs(&sequences, Cut::Prompts)?;
        for count in [2, 3, 7, 17, 32].into_iter().filter(|count| *count <= num_sequences) {
            let alike = gpu.replays_alike(&sequences, count)?;
            let verdict = if alike { "ok   the same" } else { "FAIL other" };
            println!("  {dtype:?} a step of {count}, recorded and replayed: {verdict} bits");
            fails += usize::from(!alike);
        }
    }
    if fails == 0 {
        println!("the GPU agrees");
        Ok(())
    } else {
        Err(format!("{fails} checks failed").into())
    }
}

fn write(model: &str, tokens: &str, out: &str, dtype: DtypeChoice) -> Outcome<()> {
    let sequences: Vec<Vec<TokenId>> = std::fs::read_to_string(tokens)?
        .lines()
        .map(|line| line.split_whitespace().map(str::parse).collect::<Result<_, _>>())
        .collect::<Result<_, _>>()?;
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mode = GpuMode { dtype, ampere_path: false, is_recorded: false };
    let mut gpu = Forced::on_gpu(&checkpoint, mode, (sequences.len(), longest))?;
    let mut file = BufWriter::new(std::fs::File::create(out)?);
    for rows in gpu.logprobs(&sequences, Cut::Prompts)? {
        file.write_all(bytemuck::cast_slice(&rows))?;
    }
    Ok(file.flush()?)
}
