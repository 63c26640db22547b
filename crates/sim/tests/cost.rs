//! What the cost model must get right, whatever its factors.

use proptest::prelude::*;
use stallfree_core::Parallel;
use stallfree_sim::{Calibration, CostModel, ModelShape, StepLoad};

fn model(name: &str, gpu: &str, tensor: usize, pipeline: usize) -> CostModel {
    let shape = ModelShape::built_in(name).expect(name);
    let (gpu, factors) = Calibration::find(gpu).expect(gpu);
    CostModel::new(&shape, Parallel { tensor, pipeline }, &gpu, factors).expect("a split")
}

fn load(chunks: &[(usize, usize)]) -> StepLoad {
    let mut load = StepLoad::default();
    for &(num_computed, num_tokens) in chunks {
        load.add(num_computed, num_tokens, None);
        load.num_samples += 1;
    }
    load
}

fn decodes(count: usize, context: usize) -> StepLoad {
    load(&vec![(context - 1, 1); count])
}

proptest! {
    /// More tokens, more context or more sequences never make a step shorter.
    #[test]
    fn more_work_never_takes_less_time(
        chunks in proptest::collection::vec((0_usize..20_000, 2_usize..5000), 1..20),
        extra in (0_usize..2000, 0_usize..2000),
        at in any::<proptest::sample::Index>(),
        gpu in prop::sample::select(vec!["a100-80g-pcie", "h100-sxm", "a10-24g"]),
    ) {
        let cost = model("yi-34b", gpu, 2, 1);
        let mut more = chunks.clone();
        let chunk = at.index(chunks.len());
        more[chunk].0 += extra.0;
        more[chunk].1 += extra.1;
        prop_assert!(cost.step_s(&load(&more)) >= cost.step_s(&load(&chunks)));
        more.push((extra.0, 1));
        prop_assert!(cost.step_s(&load(&more)) >= cost.step_s(&load(&chunks)));
    }

    /// The stages of a pipeline together take what one GPU group takes, and what sending between them and each's own overhead add.
    #[test]
    fn stages_add_up(tokens in 1_usize..5000, context in 1_usize..5000, stages in 1_usize..8) {
        let whole = model("llama-3-8b", "h100-sxm", 1, 1);
        let split = model("llama-3-8b", "h100-sxm", 1, stages);
        let load = load(&[(context, tokens)]);
        let sum: f64 = (0..stages).map(|stage| split.stage(&load, stage)).sum();
        prop_assert!((sum / split.step_s(&load) - 1.0).abs() < 1e-9);
        let each = (sum - whole.step_s(&load)) / stages as f64;
        prop_assert!((-1e-9..0.01).contains(&each), "{each} s a stage on top");
    }
}

#[test]
fn decoding_is_bound_by_memory_and_prefill_by_arithmetic() {
    let (gpu, factors) = Calibration::find("h100-sxm").unwrap();
    let shape = ModelShape::built_in("llama-3-8b").unwrap();
    let time = |scale_flops: f64, scale_bytes: f64, load: &StepLoad| {
        let mut gpu = gpu.clone();
        gpu.flops *= scale_flops;
        gpu.bytes_per_s *= scale_bytes;
        CostModel::new(&shape, Parallel::NONE, &gpu, factors).unwrap().step_s(load)
    };
    // Twice the memory bandwidth nearly halves a decode step, twice the arithmetic does nothing; for prompts it is the reverse.
    for (load, by_flops, by_bytes) in
        [(decodes(8, 4000), 0.99..=1.0, 0.5..=0.6), (load(&[(0, 8192)]), 0.5..=0.6, 0.93..=1.0)]
    {
        let before = time(1.0, 1.0, &load);
        let (flops, bytes) = (time(2.0, 1.0, &load) / before, time(1.0, 2.0, &load) / before);
        assert!(by_flops.contains(&flops), "{load:?}: {flops}");
        assert!(by_bytes.contains(&bytes), "{load:?}: {bytes}");
    }
}

#[test]
fn tiles_make_the_257th_token_dear() {
    let cost = model("llama-2-70b", "a100-80g-sxm", 4, 1);
    let prefill = |tokens| cost.step_s(&load(&[(0, tokens)]));
    let dearer = prefill(257) / prefill(256);
    // The Sarathi-Serve paper, section 4.3, saw 1.32.
    assert!((1.1..1.6).contains(&dearer), "{dearer}");
    assert!(prefill(256) / prefill(255) < 1.01);
}

#[test]
fn a_decode_that_rides_along_a_prefill_is_nearly_free() {
    let cost = model("mistral-7b", "h100-sxm", 1, 1);
    let alone = cost.step_s(&decodes(32, 2000));
    let prefill = cost.step_s(&load(&[(0, 992)]));
    let mut both = vec![(1999, 1); 32];
    both.push((0, 992));
    let added = cost.step_s(&load(&both)) - prefill;
    assert!(added < 0.5 * alone, "{added} of {alone}");
}

#[test]
fn ranks_divide_the_work_and_pay_for_it() {
    let alone = model("llama-3-8b", "h100-sxm", 1, 1);
    let eight = model("llama-3-8b", "h100-sxm", 8, 1);
    let (load, small) = (load(&[(0, 8192)]), decodes(1, 100));
    let speedup = alone.step_s(&load) / eight.step_s(&load);
    assert!((3.0..8.0).contains(&speedup), "{speedup}");
    assert!(eight.layer(&small).collective > 0.0 && alone.layer(&small).collective == 0.0);
    // Over a slow network, what they send each other takes longer than what they save.
    let near = model("falcon-180b", "a100-80g-pcie", 4, 1);
    let far = model("falcon-180b", "a100-80g-pcie", 8, 1);
    assert!(far.layer(&load).collective > 1.3 * near.layer(&load).collective);
}
