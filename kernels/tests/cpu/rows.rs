//! Norms, activation and gathering.

use stallfree_kernels::Backend;
use stallfree_kernels::cpu::{CpuBackend, CpuConfig};

use crate::support::{bits, configs, floats, normal, upload};

const SHAPES: [(usize, usize); 6] = [(1, 32), (3, 37), (17, 576), (33, 6), (2, 1), (70, 768)];

fn check(name: &str, got: &[f32], wanted: impl Iterator<Item = f64>) {
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let difference = (f64::from(*got) - wanted).abs();
        assert!(difference <= 3e-6 * (1.0 + wanted.abs()), "{name} at {i}: {got}, {wanted}");
    }
}

fn normed(x: &[f64], weight: &[f32], cols: usize) -> Vec<f64> {
    let rows = x.chunks(cols).flat_map(|row| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / cols as f64;
        row.iter().zip(weight).map(move |(x, weight)| x / (mean + 1e-5).sqrt() * f64::from(*weight))
    });
    rows.collect()
}

#[test]
fn norms_agree_with_double_precision() {
    for (rows, cols) in SHAPES {
        let x = normal(rows * cols, 1, 2.0);
        let weight = normal(cols, 2, 1.0);
        let run = |config: CpuConfig| {
            let mut backend = CpuBackend::new(config).unwrap();
            let loaded = backend.load_vector(&[floats(&weight, &[cols])]).unwrap();
            let x = upload(&mut backend, &x, cols);
            let first = backend.rms_norm(x, &loaded, 1e-5);
            let second = backend.add_rms_norm(first, x, &loaded, 1e-5);
            [first, x, second].map(|tensor| backend.read(tensor).to_vec())
        };
        let [first, sum, second] = run(CpuConfig::default());
        let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        check("norm", &first, normed(&exact, &weight, cols).into_iter());
        let sums: Vec<f64> = exact.iter().zip(&first).map(|(x, y)| x + f64::from(*y)).collect();
        check("sum", &sum, sums.iter().copied());
        check("norm of the sum", &second, normed(&sums, &weight, cols).into_iter());
        for config in configs() {
            let wanted = [&first, &sum, &second].map(|x| bits(x));
            assert_eq!(run(config.clone()).map(|x| bits(&x)), wanted, "{rows} x {cols}, {config}");
        }
    }
}

#[test]
fn silu_mul_agrees_with_double_precision() {
    for (rows, cols) in SHAPES {
        let mut gate_up = normal(rows * 2 * cols, 3, 4.0);
        // The ends of the exponential's range.
        for (x, end) in gate_up.iter_mut().zip([0.0, -0.0, 87.5, -87.5, 200.0, -200.0, 1e-30]) {
            *x = end;
        }
        let run = |config: CpuConfig| {
            let mut backend = CpuBackend::new(config).unwrap();
            let x = upload(&mut backend, &gate_up, 2 * cols);
            let out = backend.silu_mul(x);
            backend.read(out).to_vec()
        };
        let got = run(CpuConfig::default());
        let wanted = gate_up.chunks(2 * cols).flat_map(|row| {
            let (gate, up) = row.split_at(cols);
            gate.iter().zip(up).map(|(gate, up)| {
                let gate = f64::from(*gate);
                gate / (1.0 + (-gate).exp()) * f64::from(*up)
            })
        });
        check("silu_mul", &got, wanted);
        for config in configs() {
            assert_eq!(bits(&run(config.clone())), bits(&got), "{rows} x {cols}, {config}");
        }
    }
}

#[test]
fn gathered_rows_are_copies_and_layers_reuse_memory() {
    let x = normal(9 * 40, 4, 1.0);
    let mut backend = CpuBackend::new(CpuConfig::default()).unwrap();
    let tensor = upload(&mut backend, &x, 40);
    let out = backend.gather_rows(tensor, &[8, 0, 0, 3]);
    let wanted: Vec<f32> =
        [8, 0, 0, 3].iter().flat_map(|row| &x[row * 40..][..40]).copied().collect();
    assert_eq!(bits(backend.read(out)), bits(&wanted));

    // A layer's result lives through the next layer, and what came before all layers through the step.
    let mut previous = tensor;
    let mut bytes = Vec::new();
    for _ in 0..6 {
        backend.begin_layer();
        let halves = backend.gather_rows(previous, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bits(backend.read(halves)), bits(&x));
        previous = halves;
        bytes.push(backend.activation_bytes());
    }
    assert_eq!(bits(backend.read(tensor)), bits(&x));
    assert_eq!(bytes[1], bytes[5], "memory of two layers is enough: {bytes:?}");
}
