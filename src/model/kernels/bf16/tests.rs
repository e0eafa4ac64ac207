use super::*;

fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// `x [m, k] · Wᵀ` in f64, with `W [n, k]` given by index.
fn reference(x: &[f32], m: usize, n: usize, k: usize, w: impl Fn(usize, usize) -> f32) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..k).map(|d| f64::from(x[i * k + d]) * f64::from(w(j, d))).sum();
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// Norm of the difference relative to the norm of the reference.
fn error(got: &[f32], wanted: &[f64]) -> f64 {
    let square = |v: f64| v * v;
    let difference: f64 = got.iter().zip(wanted).map(|(&g, &w)| square(f64::from(g) - w)).sum();
    (difference / wanted.iter().map(|&w| square(w)).sum::<f64>()).sqrt()
}

const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (5, 16, 33),
    (12, 32, 64),
    (13, 33, 385),
    (37, 48, 576),
    (300, 100, 777),
    (250, 192, 576),
    (9, 65, 1536),
    (64, 7, 1000),
];

#[test]
fn agrees_with_the_exact_product() {
    for &(m, n, k) in SHAPES {
        let (x, w) = (values(m * k, 1), values(n * k, 2));
        let (rx, rw) = (rounded(&x), rounded(&w));
        let packed = PackedBf16::pack(&w, n, k);
        let mut out = vec![f32::NAN; m * n];
        packed.matmul(&x, m, &mut out, false);
        let exact = error(&out, &reference(&x, m, n, k, |j, d| w[j * k + d]));
        assert!(exact < 1e-2, "{m} {n} {k}: {exact}");
        let close = error(&out, &reference(&rx, m, n, k, |j, d| rw[j * k + d]));
        assert!(close < 1e-5, "{m} {n} {k}: {close}");

        let mut portable = vec![f32::NAN; m * n];
        packed.matmul_portable(&x, &mut portable, false);
        let close = error(&portable, &reference(&rx, m, n, k, |j, d| rw[j * k + d]));
        assert!(close < 1e-5, "{m} {n} {k}: {close}");
    }
}

#[test]
fn transposed_and_accumulated() {
    for &(m, n, k) in SHAPES {
        let (dy, w) = (values(m * n, 3), values(n * k, 4));
        let packed = PackedBf16::pack_transposed(&w, n, k);
        assert_eq!((packed.out_width(), packed.in_width()), (k, n));
        let mut out = vec![1.0; m * k];
        packed.matmul(&dy, m, &mut out, true);
        let rw = rounded(&w);
        let mut wanted = reference(&rounded(&dy), m, k, n, |j, d| rw[d * k + j]);
        wanted.iter_mut().for_each(|v| *v += 1.0);
        let close = error(&out, &wanted);
        assert!(close < 1e-5, "{m} {n} {k}: {close}");
    }
}

#[test]
fn empty_sizes() {
    PackedBf16::pack(&[], 0, 4).matmul(&[0.0; 8], 2, &mut [], false);
    PackedBf16::pack(&[0.0; 8], 2, 4).matmul(&[], 0, &mut [], false);
    let mut out = [3.0; 2];
    PackedBf16::pack(&[], 1, 0).matmul(&[], 2, &mut out, false);
    assert_eq!(out, [0.0; 2]);
}
