//! A GPU with its memory, random data, guarded outputs, and a clock.

use std::path::PathBuf;

use half::{bf16, f16};
use stallfree_device::{CubinCache, Device, DeviceArena, DeviceSlice, Dtype, Stream, capture};
use stallfree_kernels::cuda::Toolchain;

/// What a check or a benchmark comes to.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Bytes before and after an output that no kernel may touch.
const GUARD: usize = 512;

/// Where compiled kernels are kept.
pub(crate) fn kernel_cache() -> PathBuf {
    std::env::temp_dir().join("stallfree-gpu-check")
}

pub(crate) struct Rig {
    pub(crate) tools: Toolchain,
    pub(crate) stream: Stream,
    pub(crate) arena: DeviceArena,
    /// Whether to leave out what takes a race checker hours.
    pub(crate) is_small: bool,
    seed: u64,
}

/// An output between guard bands, poisoned.
pub(crate) struct Guarded {
    whole: DeviceSlice,
    pub(crate) data: DeviceSlice,
}

impl Rig {
    pub(crate) fn new(dtype: Dtype, ampere_path: bool, bytes: usize) -> Outcome<Self> {
        let device = Device::open(0)?;
        let cache = CubinCache::new(&kernel_cache());
        let tools = Toolchain { device: device.clone(), cache, ampere_path, dtype };
        let stream = Stream::new(&device)?;
        let arena = DeviceArena::new(&device, bytes)?;
        Ok(Self { tools, stream, arena, is_small: false, seed: 0x9e37_79b9 })
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.tools.dtype
    }

    /// Draws values, uniform with standard deviation `std`, rounded to the element type.
    pub(crate) fn random(&mut self, len: usize, std: f32) -> Vec<f32> {
        let dtype = self.dtype();
        (0..len)
            .map(|_| {
                self.seed ^= self.seed << 13;
                self.seed ^= self.seed >> 7;
                self.seed ^= self.seed << 17;
                let unit = (self.seed >> 40) as f32 / (1u64 << 24) as f32;
                to_f32(from_f32((unit - 0.5) * 3.46 * std, dtype), dtype)
            })
            .collect()
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.random(1, 1.0);
        (self.seed >> 20) as usize % limit
    }

    pub(crate) fn upload(&mut self, values: &[f32]) -> Outcome<DeviceSlice> {
        let dtype = self.dtype();
        let bits: Vec<u16> = values.iter().map(|&v| from_f32(v, dtype)).collect();
        self.upload_raw(&bits)
    }

    pub(crate) fn upload_raw<T: bytemuck::NoUninit>(
        &mut self,
        values: &[T],
    ) -> Outcome<DeviceSlice> {
        let slice = self.arena.take("operand", size_of_val(values))?;
        self.stream.upload(slice, values)?;
        self.stream.synchronize()?;
        Ok(slice)
    }

    pub(crate) fn download(&self, slice: DeviceSlice) -> Outcome<Vec<f32>> {
        let mut bits = vec![0u16; slice.len() / 2];
        self.stream.download(&mut bits, slice)?;
        Ok(bits.into_iter().map(|b| to_f32(b, self.dtype())).collect())
    }

    pub(crate) fn download_raw<T: bytemuck::Pod>(&self, slice: DeviceSlice) -> Outcome<Vec<T>> {
        let mut values = vec![T::zeroed(); slice.len() / size_of::<T>()];
        self.stream.download(&mut values, slice)?;
        Ok(values)
    }

    pub(crate) fn output(&mut self, bytes: usize) -> Outcome<Guarded> {
        let whole = self.arena.take("output", bytes + 2 * GUARD)?;
        self.stream.fill(whole, 0xff)?;
        Ok(Guarded { whole, data: whole.slice(GUARD, bytes) })
    }

    /// Fails if a guard band was written.
    pub(crate) fn check_guards(&self, what: &str, out: &Guarded) -> Outcome<()> {
        let bytes: Vec<u8> = self.download_raw(out.whole)?;
        let end = bytes.len() - GUARD;
        if bytes[..GUARD].iter().chain(&bytes[end..]).all(|&b| b == 0xff) {
            Ok(())
        } else {
            Err(format!("{what}: wrote outside its output").into())
        }
    }

    /// Compares with the reference by the norm of the difference; a NaN, which poison is, fails.
    pub(crate) fn compare(&self, what: &str, out: &Guarded, expected: &[f32]) -> Outcome<()> {
        self.check_guards(what, out)?;
        let got = self.download(out.data)?;
        let limit = if self.dtype() == Dtype::Bf16 { 8e-3 } else { 1.5e-3 };
        compare(what, &got, expected, limit)
    }

    /// Returns the median milliseconds of replaying `work` as a graph.
    pub(crate) fn time(&self, repeats: usize, work: impl Fn() -> Outcome<()>) -> Outcome<f64> {
        let mut failed = None;
        let graph = capture::<Box<dyn std::error::Error>>(&self.stream, || {
            work().inspect_err(|error| failed = Some(error.to_string()))
        })?;
        for _ in 0..3 {
            graph.launch(&self.stream)?;
        }
        let mut times = Vec::new();
        for _ in 0..repeats {
            let start = self.stream.record()?;
            graph.launch(&self.stream)?;
            times.push(self.stream.record()?.ms_since(&start)?);
        }
        times.sort_by(f32::total_cmp);
        Ok(f64::from(times[repeats / 2]))
    }

    /// Takes `bytes` and fills them with random values of the element type.
    pub(crate) fn noise(&mut self, bytes: usize, std: f32) -> Outcome<DeviceSlice> {
        let slice = self.arena.take("noise", bytes)?;
        let seed = (32usize << 20).min(bytes);
        let values = self.random(seed / 2, std);
        let dtype = self.dtype();
        let bits: Vec<u16> = values.iter().map(|&v| from_f32(v, dtype)).collect();
        self.stream.upload(slice.slice(0, seed / 2 * 2), &bits)?;
        let mut done = seed;
        while done < bytes {
            let next = done.min(bytes - done);
            self.stream.copy(slice.slice(done, next), slice.slice(0, next))?;
            done += next;
        }
        self.stream.synchronize()?;
        Ok(slice)
    }
}

pub(crate) fn compare(what: &str, got: &[f32], expected: &[f32], limit: f64) -> Outcome<()> {
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (&g, &e) in got.iter().zip(expected) {
        difference += f64::from(g - e).powi(2);
        norm += f64::from(e).powi(2);
    }
    let error = (difference / norm).sqrt();
    println!("  {what:60} error {error:.2e}");
    if got.len() == expected.len() && error < limit {
        Ok(())
    } else {
        Err(format!(
            "{what}: error {error:e} over {limit:e}, or {} of {} values",
            got.len(),
            expected.len()
        )
        .into())
    }
}

pub(crate) fn from_f32(value: f32, dtype: Dtype) -> u16 {
    if dtype == Dtype::F16 {
        f16::from_f32(value).to_bits()
    } else {
        bf16::from_f32(value).to_bits()
    }
}

pub(crate) fn to_f32(bits: u16, dtype: Dtype) -> f32 {
    if dtype == Dtype::F16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
}
