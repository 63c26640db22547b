//! Launches `cuda/rope_kv_write.cu`.

use stallfree_device::{Arg, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, HeadShape, KvLayer, Toolchain, check_len};

/// Per-head norms of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct QkNorms {
    /// `[head_dim]`, for the queries.
    pub query: DeviceSlice,
    /// `[head_dim]`, for the keys.
    pub key: DeviceSlice,
    /// Added to the mean square.
    pub eps: f32,
}

/// Rotates queries and keys and writes keys and values into the cache.
#[derive(Debug)]
pub struct RopeKvWrite {
    write: Function,
    table: Function,
    heads: HeadShape,
}

impl RopeKvWrite {
    pub(super) fn build(dtype: Dtype, heads: HeadShape) -> Result<Build, CudaError> {
        heads.check()?;
        let mut defines = heads.defines();
        defines.push(("NUM_HEADS", heads.num_heads.to_string()));
        let file = ("rope_kv_write.cu", include_str!("../../cuda/rope_kv_write.cu"));
        Ok(Build::new(dtype, file, &["rope_kv_write", "rope_table"], defines))
    }

    /// Compiles and loads.
    ///
    /// # Errors
    /// The heads are not supported, or the compiler or the driver fails.
    pub fn load(tools: &Toolchain, heads: HeadShape) -> Result<Self, CudaError> {
        let [write, table] = tools.load(&Self::build(tools.dtype, heads)?)?;
        Ok(Self { write, table, heads })
    }

    /// Computes the step's cosines and sines, once for all layers.
    ///
    /// # Shapes
    /// - `positions`: `[num_tokens]`, u32; `inv_freq`: `[head_dim / 2]`, f32
    /// - `table`: `[num_tokens, head_dim / 2, 2]`, f32
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn fill_table(
        &self,
        stream: &Stream,
        [positions, inv_freq, table]: [DeviceSlice; 3],
        num_tokens: usize,
    ) -> Result<(), CudaError> {
        let half = self.heads.head_dim / 2;
        check_len("positions", positions, num_tokens, 4)?;
        check_len("inv_freq", inv_freq, half, 4)?;
        check_len("table", table, num_tokens * half, 8)?;
        let grid = ((num_tokens * half).div_ceil(128), 1, 1);
        let launch = Launch { grid, threads: 128, shared_bytes: 0, overlap: true };
        let args = [positions.into(), inv_freq.into(), table.into(), Arg::from(num_tokens)];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.table.launch(stream, launch, &args) }?)
    }

    /// Submits.
    ///
    /// # Shapes
    /// - `qkv`: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`
    /// - `table`: of [`fill_table`](Self::fill_table); `slot_mapping`: `[num_tokens]`, u32, below the cache's slots: the caller's
    ///   promise, the host does not see it
    /// - `query`: `[num_tokens, num_heads * head_dim]`
    ///
    /// # Errors
    /// An operand is too short, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        [qkv, table, slot_mapping, query]: [DeviceSlice; 4],
        kv: KvLayer,
        norms: Option<QkNorms>,
        num_tokens: usize,
    ) -> Result<(), CudaError> {
        let HeadShape { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        let all_heads = num_heads + 2 * num_kv_heads;
        check_len("qkv", qkv, num_tokens * all_heads * head_dim, 2)?;
        check_len("table", table, num_tokens * head_dim / 2, 8)?;
        check_len("slot_mapping", slot_mapping, num_tokens, 4)?;
        check_len("query", query, num_tokens * num_heads * head_dim, 2)?;
        let (mut norm_args, mut eps) = ([Arg::Ptr(0); 2], 0.0);
        if let Some(norms) = norms {
            check_len("q_norm", norms.query, head_dim, 2)?;
            check_len("k_norm", norms.key, head_dim, 2)?;
            (norm_args, eps) = ([norms.query.into(), norms.key.into()], norms.eps);
        }
        let grid = (num_tokens, all_heads.div_ceil(4), 1);
        let launch = Launch { grid, threads: 128, shared_bytes: 0, overlap: true };
        let args = [
            qkv.into(),
            table.into(),
            slot_mapping.into(),
            norm_args[0],
            norm_args[1],
            query.into(),
            kv.data.into(),
            Arg::I64(i64::try_from(kv.block_stride).unwrap_or(i64::MAX)),
            eps.into(),
        ];
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.write.launch(stream, launch, &args) }?)
    }
}
