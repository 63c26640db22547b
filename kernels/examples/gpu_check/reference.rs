//! The ops as plainly as they can be said, in double precision.

/// `x / rms(x) * weight`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    x.chunks(weight.len())
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
            let scale = (squares / row.len() as f64 + f64::from(eps)).sqrt().recip();
            row.iter().zip(weight).map(move |(&v, &w)| (f64::from(v) * scale * f64::from(w)) as f32)
        })
        .collect()
}

pub(crate) fn silu_mul(gate: f32, up: f32) -> f32 {
    let gate = f64::from(gate);
    (gate / (1.0 + (-gate).exp()) * f64::from(up)) as f32
}

/// `x · wᵀ`, rows of `inner`.
pub(crate) fn matmul(x: &[f32], w: &[f32], inner: usize) -> Vec<f32> {
    x.chunks(inner)
        .flat_map(|row| {
            w.chunks(inner).map(|column| {
                row.iter().zip(column).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
                    as f32
            })
        })
        .collect()
}

/// Rotates the pairs (i, i + len / 2) of a head by `position * inv_freq[i]`.
pub(crate) fn rotate(head: &[f32], position: u32, inv_freq: &[f32]) -> Vec<f32> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let (sin, cos) = f64::from(position as f32 * inv_freq[i]).sin_cos();
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        out[i] = (a * cos - b * sin) as f32;
        out[i + half] = (b * cos + a * sin) as f32;
    }
    out
}

/// Attends one head's query to `keys` and `values`, one row a visible position.
pub(crate) fn attend(query: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<f32> {
    let scores: Vec<f64> = keys
        .iter()
        .map(|key| {
            key.iter().zip(query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum::<f64>()
                * f64::from(scale)
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..query.len())
        .map(|dim| {
            let sum: f64 = weights.iter().zip(values).map(|(w, v)| w * f64::from(v[dim])).sum();
            (sum / total) as f32
        })
        .collect()
}
