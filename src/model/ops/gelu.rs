//! The Gaussian error linear unit (Hendrycks & Gimpel 2016), by the error function itself.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::super::kernels::vector::exp;
use super::{values, with_values};

/// `x Φ(x)`, where Φ is the normal distribution.
///
/// # Errors
/// When the input is not contiguous.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op1(Gelu)
    } else {
        reference(x)
    }
}

fn reference(x: &Tensor) -> Result<Tensor> {
    x * (((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)? * 0.5)?
}

struct Gelu;

const PART: usize = 4096;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let mut out = vec![0f32; x.len()];
        if x.len() <= 4 * PART {
            forward(&mut out, x);
        } else {
            out.par_chunks_mut(PART)
                .zip(x.par_chunks(PART))
                .for_each(|(out, x)| forward(out, x));
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let mut out = vec![0f32; x.elem_count()];
        with_values(x, |x| {
            with_values(&grad, |grad| {
                out.par_chunks_mut(PART)
                    .zip(x.par_chunks(PART).zip(grad.par_chunks(PART)))
                    .for_each(|(out, (x, grad))| backward(out, x, grad));
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(out, x.shape(), x.device())?))
    }
}

/// Φ(x) to 1e-7 (Abramowitz & Stegun 1964, 7.1.26), and exp(-x² / 2).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (0.327_591_1f32 * std::f32::consts::FRAC_1_SQRT_2).mul_add(x.abs(), 1.0);
    let mut p = 1.061_405_4f32;
    p = p.mul_add(t, -1.453_152_1);
    p = p.mul_add(t, 1.421_413_8);
    p = p.mul_add(t, -0.284_496_74);
    p = p.mul_add(t, 0.254_829_6);
    let tail = 0.5 * p * t * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn forward(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x * normal(*x).0;
    }
}

/// The derivative is Φ(x) + x exp(-x² / 2) / √(2π).
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn backward(out: &mut [f32], x: &[f32], grad: &[f32]) {
    const DENSITY: f32 = 0.398_942_3;
    for index in 0..out.len() {
        let (distribution, bell) = normal(x[index]);
        out[index] = grad[index] * (distribution + x[index] * bell * DENSITY);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition() {
        let x = variable(&[9, 66], 3);
        same_value_and_gradient(&[&x], || gelu(&x), || reference(&x), 1e-6);
        let wide = (x.as_tensor() * 8.0).unwrap();
        let wide = candle_core::Var::from_tensor(&wide).unwrap();
        same_value_and_gradient(&[&wide], || gelu(&wide), || reference(&wide), 2e-6);
    }
}
