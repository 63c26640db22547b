//! What a GPU can do at best, measured: launches `cuda/read_memory.cu`, and a large product through cuBLASLt.

use std::path::Path;

use stallfree_device::{
    Arg, CubinCache, Device, DeviceArena, DeviceError, Dtype, Gemm, GemmSpec, Launch, Lt, Stream,
};

use super::{Build, CudaError, Toolchain};

/// What a GPU reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read from memory, a second.
    pub read_bytes_per_s: f64,
    /// Floating-point operations of a bf16 product, a second.
    pub gemm_flops: f64,
}

/// Bytes read at once, many times the cache.
const READ_BYTES: usize = 2 << 30;
/// Rows, columns and inner dimension of the product.
const SIDE: usize = 8192;
const REPEATS: usize = 7;

pub(super) fn build(dtype: Dtype) -> Build {
    let text = include_str!("../../cuda/read_memory.cu");
    Build::new(dtype, ("read_memory.cu", text), &["read_memory"], Vec::new())
}

impl Ceilings {
    /// Measures GPU `ordinal`, which must have 3 GB free.
    ///
    /// # Errors
    /// No driver, library or GPU, or too little memory.
    pub fn measure(ordinal: usize, kernel_cache: &Path) -> Result<Self, CudaError> {
        let device = Device::open(ordinal)?;
        let cache = CubinCache::new(kernel_cache);
        let tools = Toolchain { device, cache, ampere_path: false, dtype: Dtype::Bf16 };
        let stream = Stream::new(&tools.device)?;
        let mut arena = DeviceArena::new(&tools.device, READ_BYTES + (33 << 20))?;
        let all = arena.take("what is read", READ_BYTES)?;
        let [function] = tools.load(&build(Dtype::Bf16))?;
        stream.fill(all, 0)?;
        let out = arena.take("a word", 4)?;
        let read = || {
            let blocks = tools.device.props().num_sms * 4;
            let launch =
                Launch { grid: (blocks, 1, 1), threads: 512, shared_bytes: 0, overlap: false };
            let args = [all.into(), out.into(), Arg::I64((READ_BYTES / 16) as i64)];
            // SAFETY: the arguments are the kernel's, and it reads no more than `count` times 16 bytes.
            unsafe { function.launch(&stream, launch, &args) }
        };
        let seconds = median_seconds(&stream, read)?;
        let read_bytes_per_s = READ_BYTES as f64 / seconds;

        // Zeros would draw less power than real operands do, and so run faster.
        let bytes = SIDE * SIDE * 2;
        let noise: Vec<u16> = (0..SIDE * SIDE).map(|i| 0x3c00 | scrambled(i)).collect();
        let [x, w, y] = [0, 1, 2].map(|i| all.slice(i * bytes, bytes));
        stream.upload(x, &noise)?;
        stream.copy(w, x)?;
        let lt = Lt::new(&tools.device, arena.take("cuBLASLt", 32 << 20)?)?;
        let (rows, out, inner) = (SIDE, SIDE, SIDE);
        let spec = GemmSpec { rows, out, inner, input: Dtype::Bf16, output: Dtype::Bf16 };
        let mut plan = lt.plan(spec)?;
        let gemm = Gemm { x, w, y };
        let mut seconds = median_seconds(&stream, || lt.run(&stream, &plan, gemm))?;
        for candidate in 1..plan.candidates() {
            plan.choose(candidate);
            // A candidate may still refuse to run; it is then no candidate.
            if let Ok(took) = median_seconds(&stream, || lt.run(&stream, &plan, gemm)) {
                seconds = seconds.min(took);
            }
        }
        Ok(Self { read_bytes_per_s, gemm_flops: 2.0 * (SIDE as f64).powi(3) / seconds })
    }
}

/// Returns a sign, the low bits of an exponent and a mantissa that look random.
const fn scrambled(i: usize) -> u16 {
    let bits = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (bits & 0x83ff) as u16
}

fn median_seconds(
    stream: &Stream,
    mut work: impl FnMut() -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let start = stream.record()?;
        for _ in 0..4 {
            work()?;
        }
        times.push(stream.record()?.ms_since(&start)?);
    }
    times.sort_by(f32::total_cmp);
    Ok(f64::from(times[REPEATS / 2]) / 4e3)
}
