//! Root-mean-square normalisation (Zhang & Sennrich 2019).

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::super::kernels::vector::{add_scaled, dot};
use super::{values, with_values};

/// `x / sqrt(mean(x²) + eps) * weight` over the last axis. Shapes: `x [tokens, hidden]`, `weight [hidden]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2(weight, RmsNorm { eps: eps as f32 })
    } else {
        reference(x, weight, eps)
    }
}

fn reference(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

const ROWS: usize = 16;

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(s1, l1)?, values(s2, l2)?);
        let hidden = weight.len();
        let mut out = vec![0f32; x.len()];
        let block = hidden * ROWS;
        if x.len() <= block {
            normalise(&mut out, x, weight, self.eps);
        } else {
            out.par_chunks_mut(block)
                .zip(x.par_chunks(block))
                .for_each(|(out, x)| normalise(out, x, weight, self.eps));
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let hidden = weight.elem_count();
        let grad = grad.contiguous()?;
        let mut dx = vec![0f32; x.elem_count()];
        let mut dweight = vec![0f32; hidden];
        with_values(x, |x| {
            with_values(weight, |weight| {
                with_values(&grad, |grad| {
                    let block = hidden * ROWS;
                    let partial = dx
                        .par_chunks_mut(block)
                        .zip(x.par_chunks(block).zip(grad.par_chunks(block)))
                        .fold(
                            || vec![0f32; hidden],
                            |mut dweight, (dx, (x, grad))| {
                                normalise_backward(dx, &mut dweight, x, weight, grad, self.eps);
                                dweight
                            },
                        )
                        .collect::<Vec<_>>();
                    for part in partial {
                        add_scaled(&mut dweight, 1.0, &part);
                    }
                    Ok(())
                })
            })
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let dweight = Tensor::from_vec(dweight, weight.shape(), weight.device())?;
        Ok((Some(dx), weight.track_op().then_some(dweight)))
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let hidden = weight.len();
    for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)) {
        let scale = (dot(x, x) / hidden as f32 + eps).sqrt().recip();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// With r = 1 / sqrt(mean(x²) + eps): dx = r (g∘w) - x r³ / hidden * <g∘w, x>, dw += g x r.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise_backward(dx: &mut [f32], dweight: &mut [f32], x: &[f32], weight: &[f32], grad: &[f32], eps: f32) {
    let hidden = weight.len();
    let rows = dx
        .chunks_exact_mut(hidden)
        .zip(x.chunks_exact(hidden).zip(grad.chunks_exact(hidden)));
    for (dx, (x, grad)) in rows {
        let scale = (dot(x, x) / hidden as f32 + eps).sqrt().recip();
        for ((dx, grad), weight) in dx.iter_mut().zip(grad).zip(weight) {
            *dx = grad * weight;
        }
        let projection = dot(dx, x) * scale * scale * scale / hidden as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = *dx * scale - x * projection;
        }
        for ((dweight, grad), x) in dweight.iter_mut().zip(grad).zip(x) {
            *dweight += grad * x * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition() {
        let (x, weight) = (variable(&[35, 48], 1), variable(&[48], 2));
        same_value_and_gradient(
            &[&x, &weight],
            || rms_norm(&x, &weight, 1e-5),
            || reference(&x, &weight, 1e-5),
            1e-5,
        );
    }
}
