//! From sources to loaded kernels.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stallfree_device::{Arch, CubinCache, Device, Dtype, Function, Module, Source};

use super::{
    AddBias, CudaError, DecodeGemm, DecodeGemmSpec, Gather, HeadShape, PagedAttentionDecode,
    PagedAttentionPrefill, RmsNorm, RopeKvWrite, Sample, SiluMul, SkinnyGemm, SkinnySpec, ceilings,
    paged_attention_prefill_sm90, peers::PeerOps, trap,
};

/// A source with its macros, its kernels and the dynamic shared memory they ask for.
#[derive(Clone, Debug)]
pub struct Build {
    /// What is compiled.
    pub source: Source,
    /// Its kernels.
    pub kernels: &'static [&'static str],
    /// Bytes of dynamic shared memory that a block may ask for.
    pub shared_bytes: usize,
    /// The only architecture it is written for, if it is not for all.
    pub arch: Option<Arch>,
}

impl Build {
    pub(super) fn new(
        dtype: Dtype,
        (name, text): (&'static str, &'static str),
        kernels: &'static [&'static str],
        mut defines: Vec<(&'static str, String)>,
    ) -> Self {
        if dtype == Dtype::F16 {
            defines.push(("ELEM_F16", "1".to_owned()));
        }
        let prelude = include_str!("../../cuda/common.cuh");
        let source = Source { name, prelude, text, defines };
        Self { source, kernels, shared_bytes: 0, arch: None }
    }

    /// Says that it uses Hopper's own instructions.
    pub(super) const fn for_hopper(mut self) -> Self {
        self.arch = Some(Arch::Sm90a);
        self.source.prelude =
            concat!(include_str!("../../cuda/common.cuh"), include_str!("../../cuda/hopper.cuh"));
        self
    }

    pub(super) const fn with_shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// Compiles for one GPU and one element type.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The GPU.
    pub device: Arc<Device>,
    /// Where compiled kernels are kept.
    pub cache: CubinCache,
    /// Keeps to Ampere's instructions, whatever the GPU (`--kernels sm80`).
    pub ampere_path: bool,
    /// The element type of activations and weights: bf16 or f16.
    pub dtype: Dtype,
}

impl Toolchain {
    /// Says whether Hopper's own instructions are there and may be used.
    pub(super) fn is_hopper(&self) -> bool {
        !self.ampere_path && self.device.arch() == Arch::Sm90a
    }

    /// Compiles or finds a build and loads its kernels, in order.
    pub(super) fn load<const N: usize>(&self, build: &Build) -> Result<[Function; N], CudaError> {
        let source = self.source(build);
        let module = Module::load(&self.device, &self.cache.get(&source, self.device.arch())?)?;
        let load = |name: &&str| {
            let function = module.function(name, build.shared_bytes)?;
            // Kernels of the Ampere path do not wait for the launch before them.
            Ok(if self.ampere_path { function.in_order() } else { function })
        };
        let functions: Result<Vec<_>, CudaError> = build.kernels.iter().map(load).collect();
        functions?.try_into().map_err(|_| CudaError::Unsupported {
            what: format!("{}: {N} kernels expected", build.source.name),
        })
    }

    fn source(&self, build: &Build) -> Source {
        let mut source = build.source.clone();
        if self.ampere_path {
            source.defines.push(("AMPERE_PATH", "1".to_owned()));
        }
        source
    }

    /// Compiles what is not cached, on all processors at once, so that loading it later takes no time. Errors come then.
    pub(super) fn compile_all(&self, builds: &[Build]) {
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(builds.len()) {
                scope.spawn(|| {
                    while let Some(build) = builds.get(next.fetch_add(1, Ordering::Relaxed)) {
                        drop(self.cache.get(&self.source(build), self.device.arch()));
                    }
                });
            }
        });
    }

    /// Names a build by all that goes into its code.
    pub(super) fn name(&self, build: &Build) -> Result<String, CudaError> {
        Ok(CubinCache::name(&self.source(build), self.device.arch())?)
    }
}

/// Returns builds that cover every kernel and the shapes of common models, for checks of what they compile to. A kernel joins with
/// its launcher's `build`.
///
/// # Errors
/// A shape of the list is one that a launcher refuses.
pub fn builds(dtype: Dtype) -> Result<Vec<Build>, CudaError> {
    let mut builds = vec![
        AddBias::build(dtype),
        Gather::build(dtype),
        SiluMul::build(dtype),
        Sample::build(dtype),
        ceilings::build(dtype),
        trap::build(dtype),
    ];
    for cols in [576, 4096, 8192] {
        builds.push(RmsNorm::build(dtype, cols)?);
        builds.push(PeerOps::build(dtype, cols, 2)?);
    }
    for spec in SkinnySpec::all() {
        builds.push(SkinnyGemm::build(dtype, spec));
    }
    for spec in DecodeGemmSpec::all() {
        builds.push(DecodeGemm::build(dtype, spec));
    }
    for (num_heads, num_kv_heads, head_dim) in [
        (9, 3, 64),
        (12, 12, 64),
        (14, 2, 64),
        (32, 8, 64),
        (32, 32, 96),
        (16, 8, 128),
        (24, 8, 128),
        (32, 8, 128),
        (40, 8, 128),
        (48, 8, 128),
        (56, 8, 128),
        (16, 1, 128),
        (32, 32, 128),
        (4, 1, 256),
        (16, 8, 256),
        (8, 1, 256),
    ] {
        let heads = HeadShape { num_heads, num_kv_heads, head_dim, block_size: 16 };
        builds.push(RopeKvWrite::build(dtype, heads)?);
        builds.push(PagedAttentionDecode::build(dtype, heads)?);
        builds.push(PagedAttentionPrefill::build(dtype, heads)?);
        if paged_attention_prefill_sm90::supports(heads) {
            builds.push(paged_attention_prefill_sm90::build(dtype, heads));
        }
    }
    Ok(builds)
}
