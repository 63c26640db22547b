//! Products with weights: which of our kernels, or which of cuBLASLt's, is fastest is found out by the clock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use stallfree_device::{DeviceSlice, Dtype, Gemm, GemmPlan, GemmSpec, Graph, Lt, Stream, capture};

pub use super::methods::ProductShape;
use super::methods::{Method, Methods};
use super::{
    AddBias, CudaError, DecodeGemm, DecodeGemmSpec, Epilogue, SiluMul, SkinnyGemm, SkinnySpec,
    Toolchain,
};

/// What is fastest counts for all numbers of rows up to one of these and above the one before, where it has to be timed: what is
/// fastest for some rows can take twice as long for a third fewer, or for twice as many. So steps that are recorded have just so many rows.
/// Beyond the last the library's first guess is as good as its best, see `docs/performance.md`.
pub const TIMED_ROWS: [usize; 19] =
    [1, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512];
/// Of the workspace: the counters by which blocks that share a tile find each other.
const COUNTER_BYTES: usize = 64 << 10;
/// Bytes of weights that a timed run reads, so that none comes from the cache.
const TIMED_BYTES: usize = 256 << 20;
/// So many ways, the fastest at first sight, are timed again, in turn.
const FINALISTS: usize = 4;
/// Times that each of them runs then; the median counts.
const ROUNDS: usize = 5;
/// The most columns of the small launch before each timed product.
const PRELUDE_COLS: usize = 4096;

/// Kernels, plans and what is fastest, made when their shape first comes.
#[derive(Debug)]
pub struct Products {
    dtype: Dtype,
    lt: Lt,
    add_bias: AddBias,
    silu_mul: SiluMul,
    skinny: HashMap<SkinnySpec, SkinnyGemm>,
    decode: HashMap<DecodeGemmSpec, DecodeGemm>,
    plans: HashMap<GemmSpec, GemmPlan>,
    partial: DeviceSlice,
    counters: DeviceSlice,
    methods: Methods,
}

/// A product's operands.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// `[rows, inner]`.
    pub x: DeviceSlice,
    /// `[out, inner]`, or `[2 * out, inner]` for [`Epilogue::SiluMul`].
    pub w: DeviceSlice,
    /// `[out]`; not with an epilogue.
    pub bias: Option<DeviceSlice>,
    /// `[rows, out]`.
    pub y: DeviceSlice,
    /// `[rows, 2 * out]`, for an epilogue that is applied apart.
    pub wide: Option<DeviceSlice>,
}

impl ProductShape {
    /// Returns the shape that stands for it among those timed.
    fn representative(self) -> Option<Self> {
        let rows = TIMED_ROWS.into_iter().find(|&rows| self.rows <= rows)?;
        Some(Self { rows, ..self })
    }

    /// Returns the shape of the product without its epilogue.
    const fn plain(self) -> Self {
        Self { out: self.out * 2, epilogue: Epilogue::None, ..self }
    }

    const fn f32_out(self) -> bool {
        matches!(self.output, Dtype::F32)
    }

    fn weight_bytes(self) -> usize {
        let halves = if self.epilogue == Epilogue::SiluMul { 2 } else { 1 };
        halves * self.out * self.inner * 2
    }

    fn skinny(self) -> Option<SkinnySpec> {
        let spec = SkinnySpec::for_rows(self.rows, self.epilogue, self.f32_out());
        spec.filter(|_| self.inner.is_multiple_of(32))
    }
}

impl Products {
    /// Opens the library and compiles our kernels; `workspace` is scratch memory (36 MiB let every kernel split every shape).
    ///
    /// # Errors
    /// A library is missing, or the driver fails.
    pub fn new(
        tools: &Toolchain,
        stream: &Stream,
        workspace: DeviceSlice,
    ) -> Result<Self, CudaError> {
        let counters = workspace.slice(0, COUNTER_BYTES);
        let partial = workspace.slice(COUNTER_BYTES, workspace.len());
        stream.fill(counters, 0)?;
        let lt = Lt::new(&tools.device, partial)?;
        let mut builds: Vec<_> =
            SkinnySpec::all().map(|spec| SkinnyGemm::build(tools.dtype, spec)).collect();
        if DecodeGemm::takes(tools, Epilogue::None, [8, 8]) {
            builds.extend(DecodeGemmSpec::all().map(|spec| DecodeGemm::build(tools.dtype, spec)));
        }
        tools.compile_all(&builds);
        let methods = read_methods(tools, &lt)?;
        Ok(Self {
            dtype: tools.dtype,
            lt,
            add_bias: AddBias::load(tools)?,
            silu_mul: SiluMul::load(tools)?,
            skinny: HashMap::new(),
            decode: HashMap::new(),
            plans: HashMap::new(),
            partial,
            counters,
            methods,
        })
    }

    /// Submits a product. The first of its shape, unless it is being recorded, times all ways to compute it first, on `weights`:
    /// any memory that nobody writes, the more the better, so that what is timed is not in the cache.
    ///
    /// # Errors
    /// An operand is too short, or the driver or a library fails.
    pub fn run(
        &mut self,
        tools: &Toolchain,
        stream: &Stream,
        shape: ProductShape,
        operands: Operands,
        weights: DeviceSlice,
    ) -> Result<(), CudaError> {
        let guess = match shape.epilogue {
            Epilogue::None => Method::Library { rows: shape.rows, candidate: 0 },
            Epilogue::SiluMul => Method::Apart,
        };
        let method = match shape.representative() {
            None => guess,
            Some(key) => match self.methods.get(key) {
                // Loading is not recorded either.
                Some(method) if self.is_loaded(shape, method) => method,
                _ if stream.is_recording()? => guess,
                Some(method) => method,
                None => {
                    let method = self.fastest(tools, stream, shape, operands, weights)?;
                    // Timed with fewer rows it will do for now.
                    self.methods.insert(key, method, key.rows == shape.rows);
                    method
                }
            },
        };
        self.load(tools, shape, method)?;
        if method == Method::Apart {
            let wide = operands.wide.ok_or_else(|| refused(shape))?;
            let plain = Operands { y: wide, bias: None, wide: None, ..operands };
            self.run(tools, stream, shape.plain(), plain, weights)?;
        }
        self.submit(stream, shape, operands, method)
    }

    fn is_loaded(&self, shape: ProductShape, method: Method) -> bool {
        match method {
            Method::Skinny => shape.skinny().is_some_and(|spec| self.skinny.contains_key(&spec)),
            Method::Decode(spec, _) => self.decode.contains_key(&spec),
            Method::Library { .. } | Method::Apart => true,
        }
    }

    fn load(
        &mut self,
        tools: &Toolchain,
        shape: ProductShape,
        method: Method,
    ) -> Result<(), CudaError> {
        match method {
            Method::Skinny => {
                let spec = shape.skinny().ok_or_else(|| refused(shape))?;
                if let Entry::Vacant(entry) = self.skinny.entry(spec) {
                    entry.insert(SkinnyGemm::load(tools, spec)?);
                }
            }
            Method::Decode(spec, _) => {
                if let Entry::Vacant(entry) = self.decode.entry(spec) {
                    entry.insert(DecodeGemm::load(tools, spec)?);
                }
            }
            Method::Library { rows, candidate } => {
                let (timed, wanted) = (self.gemm(shape, rows), self.gemm(shape, shape.rows));
                if !self.plans.contains_key(&timed) {
                    self.plans.insert(timed, self.lt.plan(timed)?);
                }
                if let Some(plan) = self.plans.get_mut(&timed) {
                    plan.choose(candidate);
                }
                if !self.plans.contains_key(&wanted) {
                    let plan = self.lt.plan_like(wanted, &self.plans[&timed])?;
                    self.plans.insert(wanted, plan);
                }
            }
            Method::Apart => {}
        }
        Ok(())
    }

    /// Submits with what is loaded; of [`Method::Apart`] only the epilogue.
    fn submit(
        &self,
        stream: &Stream,
        shape: ProductShape,
        operands: Operands,
        method: Method,
    ) -> Result<(), CudaError> {
        let ProductShape { rows, out, inner, .. } = shape;
        let Operands { x, w, bias, y, wide } = operands;
        match method {
            Method::Skinny => {
                let kernel = shape.skinny().and_then(|spec| self.skinny.get(&spec));
                let kernel = kernel.ok_or_else(|| refused(shape))?;
                kernel.run(stream, [w, x, y], bias, [rows, out, inner])
            }
            Method::Decode(spec, division) => {
                let kernel = self.decode.get(&spec).ok_or_else(|| refused(shape))?;
                let operands = [w, x, y, self.partial, self.counters];
                kernel.run(stream, operands, bias, [rows, out, inner], division)
            }
            Method::Library { .. } => {
                let plan = self.plans.get(&self.gemm(shape, rows)).ok_or_else(|| refused(shape))?;
                self.lt.run(stream, plan, Gemm { x, w, y })?;
                bias.map_or(Ok(()), |bias| self.add_bias.run(stream, [y, bias], rows, out))
            }
            Method::Apart => {
                let wide = wide.ok_or_else(|| refused(shape))?;
                self.silu_mul.run(stream, [wide, y], rows, out)
            }
        }
    }

    const fn gemm(&self, shape: ProductShape, rows: usize) -> GemmSpec {
        let ProductShape { out, inner, output, .. } = shape;
        GemmSpec { rows, out, inner, input: self.dtype, output }
    }

    /// Returns every way to compute a product that there is memory for.
    fn ways(&mut self, tools: &Toolchain, shape: ProductShape) -> Result<Vec<Method>, CudaError> {
        let ProductShape { rows, out, inner, epilogue, .. } = shape;
        let mut ways = Vec::new();
        if shape.skinny().is_some() {
            ways.push(Method::Skinny);
        }
        // Alone it is as fast as the kernel that works in registers; in a whole step of one row 1 to 5 % slower.
        if rows > 1 && DecodeGemm::takes(tools, epilogue, [out, inner]) {
            for spec in DecodeGemmSpec::for_rows(rows, epilogue, shape.f32_out()) {
                // Never loaded twice: recorded steps go on using the one that they were recorded with.
                let kernel = match self.decode.entry(spec) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(DecodeGemm::load(tools, spec)?),
                };
                let fits = |division: &_| {
                    let (partial, counters) = kernel.scratch_bytes(out, *division);
                    partial <= self.partial.len() && counters <= self.counters.len()
                };
                let divisions = kernel.divisions(out, inner).into_iter().filter(fits);
                ways.extend(divisions.map(|division| Method::Decode(spec, division)));
            }
        }
        if epilogue == Epilogue::SiluMul {
            ways.push(Method::Apart);
        } else {
            self.load(tools, shape, Method::Library { rows, candidate: 0 })?;
            let candidates = self.plans[&self.gemm(shape, rows)].candidates();
            ways.extend((0..candidates).map(|candidate| Method::Library { rows, candidate }));
        }
        Ok(ways)
    }

    fn fastest(
        &mut self,
        tools: &Toolchain,
        stream: &Stream,
        shape: ProductShape,
        operands: Operands,
        weights: DeviceSlice,
    ) -> Result<Method, CudaError> {
        if let (Epilogue::SiluMul, Some(y)) = (shape.epilogue, operands.wide) {
            let plain = Operands { y, bias: None, wide: None, ..operands };
            self.run(tools, stream, shape.plain(), plain, weights)?;
        }
        let mut ways = Vec::new();
        for way in self.ways(tools, shape)? {
            self.load(tools, shape, way)?;
            // A way that refuses the shape is none.
            if let Ok(graph) = self.record(stream, shape, operands, weights, way) {
                graph.launch(stream)?;
                ways.push((time(stream, &graph)?, graph, way));
            }
        }
        ways.sort_by(|a, b| a.0.total_cmp(&b.0));
        ways.truncate(FINALISTS);
        let mut times = vec![[0.0; ROUNDS]; ways.len()];
        for round in 0..ROUNDS {
            for ((_, graph, _), times) in ways.iter().zip(&mut times) {
                times[round] = time(stream, graph)?;
            }
        }
        let median = |times: &mut [f32; ROUNDS]| {
            times.sort_by(f32::total_cmp);
            times[ROUNDS / 2]
        };
        let medians = times.iter_mut().map(median);
        let best = ways.iter().zip(medians).min_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|((_, _, way), _)| *way).ok_or_else(|| refused(shape))
    }

    /// Records products as they come in a layer: with weights that are not in the cache, each after a small launch whose end it has
    /// to wait for and may load weights meanwhile.
    fn record(
        &self,
        stream: &Stream,
        shape: ProductShape,
        operands: Operands,
        weights: DeviceSlice,
        way: Method,
    ) -> Result<Graph, CudaError> {
        let bytes = shape.weight_bytes();
        let count = (TIMED_BYTES / bytes.max(1)).clamp(3, 16);
        let room = weights.len().saturating_sub(bytes) / 256;
        let weight = |i: usize| match room {
            0 => operands.w,
            room => weights.slice((i * bytes.div_ceil(256)) % room * 256, bytes),
        };
        let plain = shape.plain().representative().and_then(|key| self.methods.get(key));
        let cols = PRELUDE_COLS.min(shape.inner.next_multiple_of(8));
        let prelude = [self.partial.slice(shape.rows * cols * 2, self.partial.len()), self.partial];
        capture(stream, || {
            for i in 0..count {
                self.silu_mul.run(stream, prelude, shape.rows, cols)?;
                let operands = Operands { w: weight(i), ..operands };
                if way == Method::Apart {
                    let plain = plain.ok_or_else(|| refused(shape))?;
                    let y = operands.wide.ok_or_else(|| refused(shape))?;
                    self.submit(stream, shape.plain(), Operands { y, ..operands }, plain)?;
                }
                self.submit(stream, shape, operands, way)?;
            }
            Ok(())
        })
    }
}

/// Returns the milliseconds that recorded work takes.
fn time(stream: &Stream, graph: &Graph) -> Result<f32, CudaError> {
    let start = stream.record()?;
    graph.launch(stream)?;
    Ok(stream.record()?.ms_since(&start)?)
}

fn refused(shape: ProductShape) -> CudaError {
    CudaError::Unsupported { what: format!("a product of shape {shape}") }
}

/// Reads what was found before with the same GPU, library, compiler and sources.
fn read_methods(tools: &Toolchain, lt: &Lt) -> Result<Methods, CudaError> {
    let props = tools.device.props();
    let mut sources = vec![SiluMul::build(tools.dtype)];
    sources.extend(SkinnySpec::all().take(1).map(|spec| SkinnyGemm::build(tools.dtype, spec)));
    sources.extend(DecodeGemmSpec::all().map(|spec| DecodeGemm::build(tools.dtype, spec)));
    let sources: Vec<String> =
        sources.iter().map(|build| tools.name(build)).collect::<Result<_, _>>()?;
    let identity = format!(
        "{}, {} multiprocessors; cuBLASLt {}; {}",
        props.name,
        props.num_sms,
        lt.version(),
        sources.join(", ")
    );
    let path = if tools.ampere_path { "-sm80" } else { "" };
    let gpu = props.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let name = format!("{gpu}-{:?}{path}", tools.dtype).to_lowercase();
    Ok(Methods::read(&tools.cache, &name, identity))
}
