//! Matrix products through cuBLASLt, the algorithm chosen by whoever timed them.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::sys as lt;

use crate::libraries::{self, Library};
use crate::{Device, DeviceError, DeviceSlice, Dtype, Stream};

/// How many of the library's candidates are asked for.
const CANDIDATES: usize = 12;

/// A product's shape: `y[rows, out] = x[rows, inner] · w[out, inner]ᵀ`, all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmSpec {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Rows of `w`, columns of `y`.
    pub out: usize,
    /// Columns of `x` and `w`.
    pub inner: usize,
    /// The type of `x` and `w`.
    pub input: Dtype,
    /// The type of `y`.
    pub output: Dtype,
}

/// A product's operands.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// `[rows, inner]`.
    pub x: DeviceSlice,
    /// `[out, inner]`.
    pub w: DeviceSlice,
    /// `[rows, out]`.
    pub y: DeviceSlice,
}

/// A cuBLASLt handle and its workspace.
#[derive(Debug)]
pub struct Lt {
    handle: lt::cublasLtHandle_t,
    workspace: DeviceSlice,
    _device: Arc<Device>,
}

// SAFETY: a handle may be used from any thread, one at a time.
unsafe impl Send for Lt {}

/// A shape with its algorithm.
#[derive(Debug)]
pub struct GemmPlan {
    spec: GemmSpec,
    desc: lt::cublasLtMatmulDesc_t,
    layouts: [lt::cublasLtMatrixLayout_t; 3],
    algorithms: Vec<lt::cublasLtMatmulAlgo_t>,
    chosen: usize,
}

// SAFETY: descriptors are plain data of the library.
unsafe impl Send for GemmPlan {}

impl Lt {
    /// Opens the library; `workspace` is its scratch memory (32 MiB lets it split long sums).
    ///
    /// # Errors
    /// cuBLASLt cannot be loaded or refuses.
    pub fn new(device: &Arc<Device>, workspace: DeviceSlice) -> Result<Self, DeviceError> {
        device.bind()?;
        libraries::open(Library::CublasLt)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is bound and the pointer is to a live handle.
        check("cublasLtCreate", unsafe { lt::cublasLtCreate(&raw mut handle) })?;
        Ok(Self { handle, workspace, _device: Arc::clone(device) })
    }

    /// Plans a shape: asks the library for its candidates, best guess first.
    ///
    /// # Errors
    /// The library knows no algorithm for the shape.
    pub fn plan(&self, spec: GemmSpec) -> Result<GemmPlan, DeviceError> {
        let mut plan = describe(spec)?;
        plan.algorithms = self.candidates(&plan)?;
        Ok(plan)
    }

    /// Plans a shape with the algorithm chosen for another, if it takes this one; else as [`plan`](Self::plan) does.
    ///
    /// # Errors
    /// The library knows no algorithm for the shape.
    pub fn plan_like(&self, spec: GemmSpec, other: &GemmPlan) -> Result<GemmPlan, DeviceError> {
        let mut plan = describe(spec)?;
        let algorithm = other.algorithms[other.chosen];
        let [w, x, y] = plan.layouts;
        let mut found = std::mem::MaybeUninit::uninit();
        // SAFETY: handles and descriptors live, and the pointers are to live values.
        let code = unsafe {
            lt::cublasLtMatmulAlgoCheck(
                self.handle,
                plan.desc,
                w,
                x,
                y,
                y,
                &raw const algorithm,
                found.as_mut_ptr(),
            )
        };
        if code != lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return self.plan(spec);
        }
        // SAFETY: the library fills the result in when it succeeds.
        let found: lt::cublasLtMatmulHeuristicResult_t = unsafe { found.assume_init() };
        if found.workspaceSize > self.workspace.len() {
            return self.plan(spec);
        }
        plan.algorithms = vec![algorithm];
        Ok(plan)
    }

    /// Returns the library's version.
    #[must_use]
    pub fn version(&self) -> usize {
        // SAFETY: the library is loaded.
        unsafe { lt::cublasLtGetVersion() }
    }

    fn candidates(&self, plan: &GemmPlan) -> Result<Vec<lt::cublasLtMatmulAlgo_t>, DeviceError> {
        let mut preference = std::ptr::null_mut();
        let mut found: Vec<lt::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(CANDIDATES);
        let (bytes, mut count) = (self.workspace.len(), 0);
        let [w, x, y] = plan.layouts;
        // SAFETY: the descriptors live; `found` has room for as many results as are asked for.
        unsafe {
            let code = lt::cublasLtMatmulPreferenceCreate(&raw mut preference);
            check("cublasLtMatmulPreferenceCreate", code)?;
            let limited = lt::cublasLtMatmulPreferenceSetAttribute(
                preference,
                lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of_val(&bytes),
            );
            let code = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.desc,
                w,
                x,
                y,
                y,
                preference,
                12,
                found.as_mut_ptr(),
                &raw mut count,
            );
            let _ = lt::cublasLtMatmulPreferenceDestroy(preference);
            check("cublasLtMatmulPreferenceSetAttribute", limited)?;
            check("cublasLtMatmulAlgoGetHeuristic", code)?;
            found.set_len(usize::try_from(count).unwrap_or(0).min(CANDIDATES));
        }
        let usable = |result: &&lt::cublasLtMatmulHeuristicResult_t| {
            result.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        let algorithms: Vec<_> = found.iter().filter(usable).map(|result| result.algo).collect();
        if algorithms.is_empty() {
            return Err(DeviceError::Blas {
                call: "cublasLtMatmulAlgoGetHeuristic",
                code: format!("no algorithm for {:?}", plan.spec),
            });
        }
        Ok(algorithms)
    }

    /// Submits the product with the plan's algorithm.
    ///
    /// # Errors
    /// An operand has the wrong size, or the library refuses.
    pub fn run(&self, stream: &Stream, plan: &GemmPlan, gemm: Gemm) -> Result<(), DeviceError> {
        let GemmSpec { rows, out, inner, input, output } = plan.spec;
        for (slice, need) in [
            (gemm.x, rows * inner * input.bytes()),
            (gemm.w, out * inner * input.bytes()),
            (gemm.y, rows * out * output.bytes()),
        ] {
            if slice.len() < need {
                return Err(DeviceError::CopySize { host: need, device: slice.len() });
            }
        }
        let (alpha, beta) = (1.0f32, 0.0f32);
        let [w, x, y] = plan.layouts;
        // SAFETY: the sizes are checked above; handles and scalars live through the call.
        let code = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                pointer(gemm.w),
                w,
                pointer(gemm.x),
                x,
                (&raw const beta).cast(),
                pointer(gemm.y),
                y,
                pointer(gemm.y).cast_mut(),
                y,
                &raw const plan.algorithms[plan.chosen],
                pointer(self.workspace).cast_mut(),
                self.workspace.len(),
                stream.raw.cast(),
            )
        };
        check("cublasLtMatmul", code)
    }
}

impl GemmPlan {
    /// Returns how many algorithms the library offers, its best guess first.
    #[must_use]
    pub const fn candidates(&self) -> usize {
        self.algorithms.len()
    }

    /// Takes a candidate; the last if there are not so many.
    pub fn choose(&mut self, candidate: usize) {
        self.chosen = candidate.min(self.algorithms.len().saturating_sub(1));
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { lt::cublasLtDestroy(self.handle) };
    }
}

impl Drop for GemmPlan {
    fn drop(&mut self) {
        // SAFETY: created by `Lt::plan`, destroyed once; the library takes null for what was not created.
        unsafe {
            for layout in self.layouts {
                let _ = lt::cublasLtMatrixLayoutDestroy(layout);
            }
            let _ = lt::cublasLtMatmulDescDestroy(self.desc);
        }
    }
}

/// Describes a shape to the library; no algorithm is chosen yet.
fn describe(spec: GemmSpec) -> Result<GemmPlan, DeviceError> {
    let mut plan = GemmPlan {
        spec,
        desc: std::ptr::null_mut(),
        layouts: [std::ptr::null_mut(); 3],
        algorithms: Vec::new(),
        chosen: 0,
    };
    // The library counts columns first: wᵀ is its [inner, out] matrix transposed, x its [inner, rows], y its [out, rows].
    let shapes = [
        (spec.input, spec.inner, spec.out),
        (spec.input, spec.inner, spec.rows),
        (spec.output, spec.out, spec.rows),
    ];
    // SAFETY: every pointer is to a live value of the size given; `plan` destroys what was created, also on error.
    unsafe {
        check(
            "cublasLtMatmulDescCreate",
            lt::cublasLtMatmulDescCreate(
                &raw mut plan.desc,
                lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                lt::cudaDataType_t::CUDA_R_32F,
            ),
        )?;
        let transposed = 1i32; // CUBLAS_OP_T
        check(
            "cublasLtMatmulDescSetAttribute",
            lt::cublasLtMatmulDescSetAttribute(
                plan.desc,
                lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            ),
        )?;
        for (layout, (dtype, rows, cols)) in plan.layouts.iter_mut().zip(shapes) {
            let ld = i64::try_from(rows).unwrap_or(i64::MAX);
            let code = lt::cublasLtMatrixLayoutCreate(
                layout,
                data_type(dtype),
                rows as u64,
                cols as u64,
                ld,
            );
            check("cublasLtMatrixLayoutCreate", code)?;
        }
    }
    Ok(plan)
}

fn pointer(slice: DeviceSlice) -> *const c_void {
    std::ptr::without_provenance(usize::try_from(slice.address()).unwrap_or(0))
}

const fn data_type(dtype: Dtype) -> lt::cudaDataType_t {
    match dtype {
        Dtype::Bf16 => lt::cudaDataType_t::CUDA_R_16BF,
        Dtype::F16 => lt::cudaDataType_t::CUDA_R_16F,
        Dtype::F32 => lt::cudaDataType_t::CUDA_R_32F,
    }
}

fn check(call: &'static str, code: lt::cublasStatus_t) -> Result<(), DeviceError> {
    if code == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(DeviceError::Blas { call, code: format!("{code:?}") })
    }
}
