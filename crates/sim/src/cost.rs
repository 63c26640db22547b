//! How long a step takes: a roofline for each operator.
//!
//! An operator takes the longer of its arithmetic at the device's rate and its bytes at the memory's, and what that does not hide of
//! the shorter; operators follow each other.
//! The host prepares and launches while the device computes, and the last stage's has each sampled token to see to: a stage takes as
//! long as the slower of the two, and what neither hides. (Williams et al., Roofline, CACM 2009; the operators and
//! their split over ranks are those of Shoeybi et al., Megatron-LM, 2019.)

use std::time::Duration;

use stallfree_core::Parallel;

use crate::shape::BYTES;
use crate::{Error, Factors, Gpu, Link, ModelShape, StepLoad};

/// Predicts how long steps of a model take on a group of GPUs.
#[derive(Clone, Debug)]
pub struct CostModel {
    shape: ModelShape,
    parallel: Parallel,
    factors: Factors,
    /// A layer's matrix products, as this rank's outputs and inner sizes.
    products: [Product; 4],
    head: Product,
    /// Floating-point operations a second of products and of attention; bytes a second of weights and of keys and values.
    linear_flops: f64,
    attention_flops: f64,
    bytes_per_s: f64,
    kv_bytes_per_s: f64,
    /// Heads and key bytes of this rank.
    heads: f64,
    kv_bytes: f64,
    /// Bytes of activations that a token moves in a layer, beside those of products.
    activation_bytes: f64,
    reduce: Option<Link>,
    send: Option<Link>,
}

/// A matrix `[out × inner]` that rows are multiplied with.
#[derive(Clone, Copy, Debug)]
struct Product {
    out: f64,
    inner: f64,
}

/// Where a layer's time goes, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operators {
    /// Matrix products.
    pub linear: f64,
    /// Attention of prompts.
    pub prefill_attention: f64,
    /// Attention of single tokens.
    pub decode_attention: f64,
    /// Norms, rotations, activations, residuals.
    pub elementwise: f64,
    /// Sums over ranks.
    pub collective: f64,
}

impl Operators {
    /// Returns their sum.
    #[must_use]
    pub const fn total(&self) -> f64 {
        self.linear
            + self.prefill_attention
            + self.decode_attention
            + self.elementwise
            + self.collective
    }
}

impl CostModel {
    /// Makes the model of a group of GPUs.
    ///
    /// # Errors
    /// The model can't be split like that.
    pub fn new(
        shape: &ModelShape,
        parallel: Parallel,
        gpu: &Gpu,
        factors: Factors,
    ) -> Result<Self, Error> {
        shape.check_split(parallel)?;
        let Parallel { tensor, pipeline } = parallel;
        if parallel.world_size() > 1 && gpu.links.is_empty() {
            let reason = format!("nothing is known of how several of {} are connected", gpu.name);
            let what = "spread over GPUs:";
            return Err(Error::BadSplit { what, given: parallel.world_size(), reason });
        }
        let split = |size: usize| size.div_ceil(tensor) as f64;
        let hidden = shape.hidden_size as f64;
        // With more ranks than key heads, ranks keep copies.
        let kv_heads = split(shape.num_kv_heads.max(tensor));
        let (heads, head_dim) = (split(shape.num_heads), shape.head_dim as f64);
        let inner = split(shape.intermediate_size);
        let ups = shape.feed_forward.ups() as f64;
        let qkv = (heads + 2.0 * kv_heads) * head_dim;
        let products = [
            Product { out: qkv, inner: hidden },
            Product { out: hidden, inner: heads * head_dim },
            Product { out: ups * inner, inner: hidden },
            Product { out: hidden, inner },
        ];
        // Two norms and residuals read and write hidden states; rotation and activation read and write their inputs.
        let norms: f64 = if shape.parallel_attention { 5.0 } else { 8.0 };
        let elements = norms.mul_add(hidden, 2.0 * qkv) + (ups + 1.0) * inner;
        Ok(Self {
            shape: shape.clone(),
            parallel,
            factors,
            products,
            head: Product { out: split(shape.vocab_size), inner: hidden },
            linear_flops: gpu.flops * factors.linear,
            attention_flops: gpu.flops * factors.attention,
            bytes_per_s: gpu.bytes_per_s * factors.memory,
            kv_bytes_per_s: gpu.bytes_per_s * factors.kv_read,
            heads,
            kv_bytes: 2.0 * kv_heads * head_dim * BYTES as f64,
            activation_bytes: elements * BYTES as f64,
            reduce: gpu.link(tensor).filter(|_| tensor > 1),
            send: gpu.link(parallel.world_size()).filter(|_| pipeline > 1),
        })
    }

    /// Returns the model whose steps are predicted.
    #[must_use]
    pub const fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Returns over how many GPUs it is spread.
    #[must_use]
    pub const fn parallel(&self) -> Parallel {
        self.parallel
    }

    /// Returns how many stages there are.
    #[must_use]
    pub const fn num_stages(&self) -> usize {
        self.parallel.pipeline
    }

    /// Returns where one layer's time goes on the device.
    #[must_use]
    pub fn layer(&self, load: &StepLoad) -> Operators {
        let rows = load.num_tokens as f64;
        let attend = |flops: f64, bytes: f64, bytes_per_s: f64| {
            (flops / self.attention_flops).max(bytes / bytes_per_s)
        };
        // A product of queries with keys and one of weights with values.
        let pair_flops = 4.0 * self.heads * self.shape.head_dim as f64;
        let reduces = if self.shape.parallel_attention { 1.0 } else { 2.0 };
        Operators {
            linear: self.products.iter().map(|product| self.product(*product, rows)).sum(),
            prefill_attention: attend(
                pair_flops * load.prefill_pairs,
                self.kv_bytes * load.prefill_context,
                self.bytes_per_s,
            ),
            decode_attention: self.kv_bytes * load.decode_context / self.kv_bytes_per_s,
            elementwise: rows * self.activation_bytes / self.bytes_per_s,
            collective: reduces * self.all_reduce(rows),
        }
    }

    /// Returns how long a stage is busy with a step, in seconds; stages count from 0.
    #[must_use]
    pub fn stage(&self, load: &StepLoad, stage: usize) -> f64 {
        self.stage_of_layer(load, stage, self.layer(load).total())
    }

    fn stage_of_layer(&self, load: &StepLoad, stage: usize, layer: f64) -> f64 {
        let num_stages = self.parallel.pipeline;
        let longer = usize::from(stage < self.shape.num_layers % num_stages);
        let num_layers = (self.shape.num_layers / num_stages + longer) as f64;
        let is_last = stage + 1 == num_stages;
        let head = if is_last { self.head(load) } else { 0.0 };
        let send = if is_last { 0.0 } else { self.send(load.num_tokens as f64) };
        let device = layer.mul_add(num_layers, head);
        let samples = if is_last { load.num_samples as f64 } else { 0.0 };
        let host = self.factors.layer_s.mul_add(num_layers, self.factors.seq_s * samples);
        device.max(host) + self.factors.step_s + send
    }

    /// Returns how long a step takes from its start in the first stage to its end in the last, in seconds, if no stage is busy.
    #[must_use]
    pub fn step_s(&self, load: &StepLoad) -> f64 {
        let layer = self.layer(load).total();
        (0..self.num_stages()).map(|stage| self.stage_of_layer(load, stage, layer)).sum()
    }

    /// Writes down how long each stage is busy with a step.
    pub(crate) fn stages(&self, load: &StepLoad, times: &mut Vec<Duration>) {
        times.clear();
        let layer = self.layer(load).total();
        let stages = 0..self.num_stages();
        times.extend(stages.map(|stage| {
            Duration::from_secs_f64(self.stage_of_layer(load, stage, layer).clamp(0.0, 1e6))
        }));
    }

    /// A product's rows cost as much as the next multiple of a tile, which is what makes 257 tokens so much dearer than 256.
    fn product(&self, Product { out, inner }: Product, rows: f64) -> f64 {
        let tile = self.factors.tile as f64;
        let flops = 2.0 * (rows / tile).ceil() * tile * out * inner;
        let bytes = (out * inner + rows * (out + inner)) * BYTES as f64;
        let (compute, read) = (flops / self.linear_flops, bytes / self.bytes_per_s);
        (1.0 - self.factors.overlap).mul_add(compute.min(read), compute.max(read))
    }

    fn head(&self, load: &StepLoad) -> f64 {
        if load.num_samples == 0 {
            return 0.0;
        }
        let rows = load.num_samples as f64;
        // Ranks send each other their parts of the logits: half of what a sum would take.
        let gather = self.reduce.map_or(0.0, |link| {
            let bytes = rows * self.shape.vocab_size as f64 * BYTES as f64;
            self.ring(link, bytes) / 2.0
        });
        self.product(self.head, rows) + gather
    }

    fn all_reduce(&self, rows: f64) -> f64 {
        let bytes = rows * self.shape.hidden_size as f64 * BYTES as f64;
        self.reduce.map_or(0.0, |link| self.ring(link, bytes))
    }

    /// Each rank sends its share of the data around the ring twice.
    fn ring(&self, link: Link, bytes: f64) -> f64 {
        let ranks = self.parallel.tensor as f64;
        let sent = 2.0 * (ranks - 1.0) / ranks * bytes;
        link.latency_s + sent / (link.bytes_per_s * self.factors.collective)
    }

    fn send(&self, rows: f64) -> f64 {
        let bytes = rows * self.shape.hidden_size as f64 * BYTES as f64;
        self.send.map_or(0.0, |link| {
            link.latency_s + bytes / (link.bytes_per_s * self.factors.collective)
        })
    }
}
