//! Products with weights: our kernel for few rows, cuBLASLt for many.

use std::collections::HashMap;

use stallfree_device::{DeviceSlice, Dtype, Gemm, GemmPlan, GemmSpec, Lt, Stream};

use super::activations::CudaTensor;
use super::{AddBias, CudaError, Epilogue, SkinnyGemm, SkinnySpec, Toolchain};

/// From this many rows on the library is as fast as our kernel or faster, see `docs/performance.md`.
const LIBRARY_ROWS: usize = 9;

/// Kernels and plans, made when their shape first comes.
#[derive(Debug)]
pub(super) struct Products {
    lt: Lt,
    add_bias: AddBias,
    skinny: HashMap<SkinnySpec, SkinnyGemm>,
    plans: HashMap<GemmShape, GemmPlan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GemmShape {
    rows: usize,
    out: usize,
    inner: usize,
    output: Dtype,
}

/// A weight with its bias, `[out, inner]` and `[out]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    pub(super) data: DeviceSlice,
    pub(super) bias: Option<DeviceSlice>,
    pub(super) inner: usize,
}

impl Products {
    pub(super) fn new(tools: &Toolchain, workspace: DeviceSlice) -> Result<Self, CudaError> {
        let lt = Lt::new(&tools.device, workspace)?;
        let add_bias = AddBias::load(tools)?;
        Ok(Self { lt, add_bias, skinny: HashMap::new(), plans: HashMap::new() })
    }

    /// Submits `y = x · weightᵀ + bias`.
    pub(super) fn run(
        &mut self,
        tools: &Toolchain,
        stream: &Stream,
        x: CudaTensor,
        weight: Weight,
        y: CudaTensor,
    ) -> Result<(), CudaError> {
        let (rows, out, inner) = (x.rows, y.cols, weight.inner);
        let f32_out = y.dtype == Dtype::F32;
        let spec = SkinnySpec::for_rows(rows, Epilogue::None, f32_out)
            .filter(|_| rows < LIBRARY_ROWS && inner.is_multiple_of(32));
        if let Some(spec) = spec {
            let kernel = match self.skinny.entry(spec) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(SkinnyGemm::load(tools, spec)?)
                }
            };
            return kernel.run(
                stream,
                [weight.data, x.data, y.data],
                weight.bias,
                [rows, out, inner],
            );
        }
        let shape = GemmShape { rows, out, inner, output: y.dtype };
        if !self.plans.contains_key(&shape) {
            let spec = GemmSpec { rows, out, inner, input: tools.dtype, output: y.dtype };
            self.plans.insert(shape, self.lt.plan(spec)?);
        }
        let gemm = Gemm { x: x.data, w: weight.data, y: y.data };
        self.lt.run(stream, &self.plans[&shape], gemm)?;
        match weight.bias {
            Some(bias) => self.add_bias.run(stream, [y.data, bias], rows, out),
            None => Ok(()),
        }
    }
}
