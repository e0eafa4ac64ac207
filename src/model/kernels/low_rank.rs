//! Low-rank updates of a few rows: what serving adds to a projection at each step.

use multiversion::multiversion;

use super::vector::{add_scaled, dot};

/// `out += scale * (x · Aᵀ) · Bᵀ` for one row. Shapes: `a [rank, x.len()]`; `b [out.len(), rank]` by its transpose
/// `b_t [rank, out.len()]`. The matrices are read once, in order, which is all that matters for one row.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_low_rank_row(out: &mut [f32], x: &[f32], a: &[f32], b_t: &[f32], scale: f32) {
    for (a, b) in a.chunks_exact(x.len()).zip(b_t.chunks_exact(out.len())) {
        add_scaled(out, scale * dot(a, x), b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_products_written_out() {
        let value = |index: usize| ((index * 37 % 19) as f32 - 9.0) / 9.0;
        let (width, size, rank) = (33, 21, 3);
        let x: Vec<f32> = (0..width).map(value).collect();
        let a: Vec<f32> = (0..rank * width).map(|i| value(i + 5)).collect();
        let b_t: Vec<f32> = (0..rank * size).map(|i| value(i + 11)).collect();
        let mut out = vec![1.0; size];
        add_low_rank_row(&mut out, &x, &a, &b_t, 0.5);
        for (column, got) in out.iter().enumerate() {
            let mut want = 1.0;
            for r in 0..rank {
                let hidden: f32 = (0..width).map(|i| a[r * width + i] * x[i]).sum();
                want += 0.5 * hidden * b_t[r * size + column];
            }
            assert!((got - want).abs() < 1e-4, "{got}, expected {want}");
        }
    }
}
