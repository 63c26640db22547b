//! The ops on a CUDA GPU: one launcher per source of `kernels/cuda`, same stem.
//!
//! Launchers check shapes and submit; they own no activations and never wait. Sources are compiled for the GPU that is there,
//! specialized to the model's shapes. Layouts are in `docs/layouts.md`. Next: `cuda/toolchain.rs`.

mod activations;
mod add_bias;
mod backend;
mod ceilings;
mod choice;
mod decode_gemm_sm90;
mod error;
mod exchange;
mod gather;
mod kv;
mod kv_block;
mod kv_host;
mod methods;
mod paged_attention_decode;
mod paged_attention_prefill;
mod paged_attention_prefill_sm90;
mod peers;
mod products;
mod recordings;
mod rms_norm;
mod rope_kv_write;
mod sampling;
mod silu_mul;
mod skinny_gemm;
mod step;
mod toolchain;
mod trap;
mod upload;

pub use activations::{ActivationBytes, CudaTensor};
pub use add_bias::AddBias;
pub use backend::{CudaBackend, CudaConfig, CudaMatrix, CudaRope, CudaVector};
pub use ceilings::Ceilings;
pub use choice::CudaChoice;
pub use decode_gemm_sm90::{DecodeGemm, DecodeGemmSpec, Division};
pub use error::CudaError;
pub use gather::Gather;
pub use kv::CudaKv;
pub use kv_host::CudaKvHost;
pub use paged_attention_decode::{DECODE_SCRATCH_BYTES, DecodeBatch, PagedAttentionDecode};
pub use paged_attention_prefill::{PagedAttentionPrefill, PrefillBatch};
pub use peers::MAX_RANKS;
pub use products::{Operands, ProductShape, Products, TIMED_ROWS};
pub use recordings::STEP_MULTIPLE;
pub use rms_norm::RmsNorm;
pub use rope_kv_write::{QkNorms, RopeKvWrite};
pub use sampling::{Sample, SampleOperands, SamplePart, SampleReader, Uploader};
pub use silu_mul::SiluMul;
pub use skinny_gemm::{Epilogue, SkinnyGemm, SkinnySpec};
pub use toolchain::{Build, Toolchain, builds};
pub use trap::Trap;

use stallfree_device::DeviceSlice;

/// The heads of a layer's attention and the cache's block size: what attention kernels are specialized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`, at most 16 query heads each (8 if `head_dim` is 256: registers).
    pub num_kv_heads: usize,
    /// Elements of a head: 64, 96, 128 or 256.
    pub head_dim: usize,
    /// Tokens a cache block; a multiple of 16.
    pub block_size: usize,
}

impl HeadShape {
    const fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    const fn query_cols(self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Returns how many elements one layer of one block takes, keys and values.
    #[must_use]
    pub const fn layer_block_len(self) -> usize {
        2 * self.num_kv_heads * self.block_size * self.head_dim
    }

    fn check(self) -> Result<(), CudaError> {
        let ok = [64, 96, 128, 256].contains(&self.head_dim)
            && self.num_kv_heads > 0
            && self.num_heads.is_multiple_of(self.num_kv_heads)
            && (1..=if self.head_dim == 256 { 8 } else { 16 }).contains(&self.group())
            && self.block_size > 0
            && self.block_size.is_multiple_of(16);
        if ok { Ok(()) } else { Err(CudaError::Unsupported { what: format!("{self:?}") }) }
    }

    fn defines(self) -> Vec<(&'static str, String)> {
        vec![
            ("HEAD_DIM", self.head_dim.to_string()),
            ("GROUP", self.group().to_string()),
            ("NUM_KV_HEADS", self.num_kv_heads.to_string()),
            ("BLOCK_SIZE", self.block_size.to_string()),
        ]
    }
}

/// One layer's part of the paged cache.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer {
    /// From the layer's part of block 0 to the end of its part of the last block.
    pub data: DeviceSlice,
    /// Elements from one block to the next.
    pub block_stride: usize,
}

/// Checks that a range holds `elements` of `bytes` each.
fn check_len(
    operand: &'static str,
    slice: DeviceSlice,
    elements: usize,
    bytes: usize,
) -> Result<(), CudaError> {
    let expected = elements * bytes;
    if slice.len() >= expected {
        Ok(())
    } else {
        Err(CudaError::Bytes { operand, expected, got: slice.len() })
    }
}

/// Ends the rank: after a CUDA error nothing on its device can be trusted.
#[expect(clippy::panic, reason = "the executor's thread turns it into the loss of the engine")]
fn must<T>(result: Result<T, impl std::fmt::Display>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
