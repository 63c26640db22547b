//! Weights quantized by candle, random numbers, and ways to bring them to a backend.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stallfree_kernels::cpu::{self, CpuBackend, CpuConfig, Isa};
use stallfree_kernels::{Backend, StepInputs, WeightTensor, WeightType};

/// Every way of running that must give the same bits.
pub(crate) fn configs() -> impl Iterator<Item = CpuConfig> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| {
        [1, 3].map(|num_threads| CpuConfig { num_threads, isa, ..CpuConfig::default() })
    })
}

/// Returns numbers of about the normal distribution's shape.
pub(crate) fn normal(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut draw = || (0..4).map(|_| rng.random_range(-1.0..1.0f32)).sum::<f32>() * scale;
    (0..len).map(|_| draw()).collect()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub(crate) fn floats<'a>(values: &'a [f32], shape: &'a [usize]) -> WeightTensor<'a> {
    let bytes = bytemuck::cast_slice(values);
    WeightTensor { name: "floats", dtype: WeightType::F32, shape, bytes }
}

/// Starts a step whose tokens are rows of `x`, and returns them.
pub(crate) fn upload(backend: &mut CpuBackend, x: &[f32], cols: usize) -> cpu::Tensor {
    let rows = x.len() / cols;
    let table = backend.load_matrix(&[floats(x, &[rows, cols])]).unwrap();
    backend
        .begin_step(&StepInputs { token_ids: (0..rows as u32).collect(), ..StepInputs::default() });
    backend.embed(&table, 0)
}

/// A stored weight and what its bytes stand for.
pub(crate) struct Weight {
    pub(crate) dtype: WeightType,
    pub(crate) shape: [usize; 2],
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f32>,
}

impl Weight {
    pub(crate) fn new(dtype: WeightType, rows: usize, cols: usize, seed: u64) -> Self {
        let values = normal(rows * cols, seed, 0.5);
        let shape = [rows, cols];
        let (bytes, values) = match dtype {
            WeightType::F32 => (bytemuck::cast_slice(&values).to_vec(), values),
            WeightType::F16 => {
                let halves: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
                let values = halves.iter().map(|half| half.to_f32()).collect();
                (bytemuck::cast_slice(&halves).to_vec(), values)
            }
            WeightType::BF16 => {
                let halves: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                let values = halves.iter().map(|half| half.to_f32()).collect();
                (bytemuck::cast_slice(&halves).to_vec(), values)
            }
            _ => quantized(values, shape, dtype),
        };
        Self { dtype, shape, bytes, values }
    }

    pub(crate) fn tensor(&self) -> WeightTensor<'_> {
        let Self { dtype, shape, bytes, .. } = self;
        WeightTensor { name: "weight", dtype: *dtype, shape, bytes }
    }
}

/// Quantizes with candle; the values are candle's dequantization.
fn quantized(values: Vec<f32>, shape: [usize; 2], dtype: WeightType) -> (Vec<u8>, Vec<f32>) {
    let ggml = match dtype {
        WeightType::Q4_0 => GgmlDType::Q4_0,
        WeightType::Q4_1 => GgmlDType::Q4_1,
        WeightType::Q5_0 => GgmlDType::Q5_0,
        WeightType::Q5_1 => GgmlDType::Q5_1,
        WeightType::Q8_0 => GgmlDType::Q8_0,
        WeightType::Q2K => GgmlDType::Q2K,
        WeightType::Q3K => GgmlDType::Q3K,
        WeightType::Q4K => GgmlDType::Q4K,
        WeightType::Q5K => GgmlDType::Q5K,
        WeightType::Q6K => GgmlDType::Q6K,
        WeightType::Q8K => GgmlDType::Q8K,
        plain => panic!("{plain:?} is not quantized"),
    };
    let tensor = Tensor::from_vec(values, &shape, &Device::Cpu).unwrap();
    let quantized = QTensor::quantize(&tensor, ggml).unwrap();
    let values = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
    (quantized.data().unwrap().into_owned(), values.to_vec1().unwrap())
}
