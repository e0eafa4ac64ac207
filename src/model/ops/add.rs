//! The residual sum.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::values;

/// `a + b` for two tensors of one shape.
///
/// On the CPU this runs on the caller's thread pool: candle's own sum goes through a pool of its own, whose threads
/// spin, and two pools on the same processors slow each other down.
///
/// # Errors
/// When the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() && a.dims() == b.dims() {
        a.apply_op2(b, Add)
    } else {
        a + b
    }
}

struct Add;

const CHUNK: usize = 1 << 15;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "residual-add"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values(s1, l1)?, values(s2, l2)?);
        let mut out = vec![0f32; a.len()];
        if a.len() <= CHUNK {
            add_slices(&mut out, a, b);
        } else {
            out.par_chunks_mut(CHUNK)
                .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)))
                .for_each(|(out, (a, b))| add_slices(out, a, b));
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn add_slices(out: &mut [f32], a: &[f32], b: &[f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_sum() {
        let (a, b) = (variable(&[300, 130], 1), variable(&[300, 130], 2));
        same_value_and_gradient(&[&a, &b], || add(&a, &b), || a.as_tensor() + b.as_tensor(), 1e-6);
    }
}
