//! Products and look-ups of every weight type, against candle's dequantization and sums in double precision.

use stallfree_kernels::cpu::{CpuBackend, CpuConfig};
use stallfree_kernels::{Backend, StepInputs, WeightTensor, WeightType};

use crate::support::{Weight, bits, configs, floats, normal, upload};

const ALL: [WeightType; 14] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::BF16,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q5_0,
    WeightType::Q5_1,
    WeightType::Q8_0,
    WeightType::Q2K,
    WeightType::Q3K,
    WeightType::Q4K,
    WeightType::Q5K,
    WeightType::Q6K,
    WeightType::Q8K,
];

fn is_plain(dtype: WeightType) -> bool {
    matches!(dtype, WeightType::F32 | WeightType::F16 | WeightType::BF16)
}

/// What a kernel multiplies: bytes with a scale each 32 elements for quantized weights.
fn as_multiplied(x: &[f32], plain: bool) -> Vec<f64> {
    if plain {
        return x.iter().map(|x| f64::from(*x)).collect();
    }
    let quantized = x.chunks(32).flat_map(|block| {
        let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        block
            .iter()
            .map(move |x| f64::from((x * inverse).round_ties_even()) * f64::from(largest / 127.0))
    });
    quantized.collect()
}

/// One product of some tokens with parts of some types, with a bias.
fn check(parts: &[(WeightType, usize)], cols: usize, num_tokens: usize) {
    let weights: Vec<Weight> = parts
        .iter()
        .enumerate()
        .map(|(i, (dtype, rows))| Weight::new(*dtype, *rows, cols, i as u64 + 7))
        .collect();
    let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
    let x = normal(num_tokens * cols, 1, 1.0);
    let bias = normal(rows, 2, 1.0);
    let run = |config: CpuConfig| {
        let mut backend = CpuBackend::new(config).unwrap();
        let tensors: Vec<WeightTensor<'_>> = weights.iter().map(Weight::tensor).collect();
        let matrix = backend.load_matrix(&tensors).unwrap();
        let bias = backend.load_vector(&[floats(&bias, &[rows])]).unwrap();
        let x = upload(&mut backend, &x, cols);
        let out = backend.linear(x, &matrix, Some(&bias));
        backend.read(out).to_vec()
    };
    let got = run(CpuConfig::default());
    let plain = parts.iter().all(|(dtype, _)| is_plain(*dtype));
    let exact: Vec<f64> = as_multiplied(&x, true);
    let quantized = as_multiplied(&x, plain);
    for token in 0..num_tokens {
        let mut row = 0;
        for weight in &weights {
            let x = if is_plain(weight.dtype) { &exact } else { &quantized };
            for values in weight.values.chunks(cols) {
                let products =
                    values.iter().zip(&x[token * cols..]).map(|(w, x)| f64::from(*w) * x);
                let wanted = products.clone().sum::<f64>() + f64::from(bias[row]);
                let scale = products.map(f64::abs).sum::<f64>() + 1.0;
                let difference = (f64::from(got[token * rows + row]) - wanted).abs();
                assert!(
                    difference <= 2e-6 * scale,
                    "{parts:?} {cols} columns, token {token}, row {row}: {difference} of {scale}"
                );
                row += 1;
            }
        }
    }
    for config in configs() {
        assert_eq!(bits(&run(config.clone())), bits(&got), "{parts:?} on {config}");
    }
}

#[test]
fn products_agree_with_dequantized_weights() {
    for dtype in ALL {
        let wide = if dtype.block_len() == 256 { 512 } else { 96 };
        check(&[(dtype, 16)], dtype.block_len().max(32), 1);
        check(&[(dtype, 33)], wide, 3);
        check(&[(dtype, 65)], wide, 17);
        check(&[(dtype, 1)], wide, 33);
    }
    // Parts of several types, and columns of plain weights that fill no block.
    check(&[(WeightType::Q4K, 48), (WeightType::Q4K, 7), (WeightType::Q6K, 16)], 256, 9);
    check(&[(WeightType::Q8_0, 20), (WeightType::F32, 3), (WeightType::Q4_1, 16)], 64, 5);
    check(&[(WeightType::F32, 30), (WeightType::BF16, 5)], 37, 6);
}

#[test]
fn a_token_does_not_see_its_batch_mates() {
    for dtype in ALL {
        let cols = 256;
        let weight = Weight::new(dtype, 50, cols, 3);
        let x = normal(21 * cols, 4, 1.0);
        let product = |x: &[f32]| {
            let mut backend = CpuBackend::new(CpuConfig::default()).unwrap();
            let matrix = backend.load_matrix(&[weight.tensor()]).unwrap();
            let x = upload(&mut backend, x, cols);
            let out = backend.linear(x, &matrix, None);
            bits(backend.read(out))
        };
        let together = product(&x);
        for num_tokens in [1, 2, 5] {
            for (i, x) in x.chunks(num_tokens * cols).enumerate() {
                let at = i * num_tokens * 50;
                assert_eq!(product(x), together[at..at + x.len() / cols * 50], "{dtype:?}");
            }
        }
    }
}

#[test]
fn a_look_up_gives_the_dequantized_row() {
    for dtype in ALL {
        let weight = Weight::new(dtype, 40, 256, 5);
        let mut backend = CpuBackend::new(CpuConfig::default()).unwrap();
        let table = backend.load_matrix(&[weight.tensor(), weight.tensor()]).unwrap();
        let token_ids = vec![0, 79, 39, 40, 17];
        backend.begin_step(&StepInputs { token_ids: token_ids.clone(), ..StepInputs::default() });
        let out = backend.embed(&table, 0);
        let got = backend.read(out);
        for (token, got) in token_ids.iter().zip(got.chunks(256)) {
            let wanted = &weight.values[*token as usize % 40 * 256..][..256];
            for (got, wanted) in got.iter().zip(wanted) {
                let difference = (got - wanted).abs();
                assert!(difference <= 1e-6 * (wanted.abs() + 0.1), "{dtype:?}: {got}, {wanted}");
            }
        }
    }
}

#[test]
fn damaged_weights_are_named() {
    let weight = Weight::new(WeightType::Q4_1, 4, 64, 6);
    let mut backend = CpuBackend::new(CpuConfig::default()).unwrap();
    let mut load = |shape: &[usize], len: usize| {
        let tensor = WeightTensor { shape, bytes: &weight.bytes[..len], ..weight.tensor() };
        backend.load_matrix(&[tensor]).unwrap_err().to_string()
    };
    let len = weight.bytes.len();
    assert!(load(&[4, 64], len - 1).contains("weight: 160 bytes expected"));
    assert!(load(&[4, 60], len).contains("weight: expected shape [4, 64]"));
    assert!(load(&[256], len).contains("weight: expected shape [256, 1]"));
}

#[test]
fn infinite_and_tiny_elements_end_in_no_panic() {
    for dtype in ALL {
        let cols = 256;
        let weight = Weight::new(dtype, 16, cols, 3);
        let check = |x: &[f32], is_finite: bool| {
            for config in configs() {
                let mut backend = CpuBackend::new(config.clone()).unwrap();
                let matrix = backend.load_matrix(&[weight.tensor()]).unwrap();
                let x = upload(&mut backend, x, cols);
                let out = backend.linear(x, &matrix, None);
                let as_expected = |y: &f32| y.is_finite() == is_finite;
                assert!(backend.read(out).iter().all(as_expected), "{dtype:?} on {config}");
            }
        };
        let x = normal(cols, 4, 1.0);
        check(&x.iter().map(|x| x * 1e-41).collect::<Vec<_>>(), true);
        for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
            for places in [70..71, 64..96] {
                let mut x = x.clone();
                x[places].fill(infinite);
                check(&x, false);
            }
        }
    }
}
