//! Layer normalisation (Ba et al. 2016).

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::super::kernels::vector::{add_scaled, dot, squares_about, sum};
use super::{values, with_values};

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last axis. Shapes: `x [tokens, hidden]`, `weight` and `bias [hidden]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3(weight, bias, LayerNorm { eps: eps as f32 })
    } else {
        reference(x, weight, bias, eps)
    }
}

fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

struct LayerNorm {
    eps: f32,
}

const ROWS: usize = 16;

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        let hidden = weight.len();
        if bias.len() != hidden || l1.dims().last() != Some(&hidden) {
            candle_core::bail!("a norm of {hidden} values got {:?}", l1.dims())
        }
        let mut out = vec![0f32; x.len()];
        let block = hidden * ROWS;
        if x.len() <= block {
            normalise(&mut out, x, weight, bias, self.eps);
        } else {
            out.par_chunks_mut(block)
                .zip(x.par_chunks(block))
                .for_each(|(out, x)| normalise(out, x, weight, bias, self.eps));
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let hidden = weight.elem_count();
        let grad = grad.contiguous()?;
        let mut dx = vec![0f32; x.elem_count()];
        // The weight's gradient, then the bias's.
        let mut dparameters = vec![0f32; 2 * hidden];
        with_values(x, |x| {
            with_values(weight, |weight| {
                with_values(&grad, |grad| {
                    let block = hidden * ROWS;
                    let partial: Vec<Vec<f32>> = dx
                        .par_chunks_mut(block)
                        .zip(x.par_chunks(block).zip(grad.par_chunks(block)))
                        .map(|(dx, (x, grad))| {
                            let mut dparameters = vec![0f32; 2 * hidden];
                            normalise_backward(dx, &mut dparameters, x, weight, grad, self.eps);
                            dparameters
                        })
                        .collect();
                    for part in partial {
                        add_scaled(&mut dparameters, 1.0, &part);
                    }
                    Ok(())
                })
            })
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let dbias = Tensor::from_slice(&dparameters[hidden..], bias.shape(), bias.device())?;
        let dweight = Tensor::from_slice(&dparameters[..hidden], weight.shape(), weight.device())?;
        Ok((
            Some(dx),
            weight.track_op().then_some(dweight),
            bias.track_op().then_some(dbias),
        ))
    }
}

/// Mean, and one over the deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x) / count;
    (mean, (squares_about(x, mean) / count + eps).sqrt().recip())
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let hidden = weight.len();
    for (out, x) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)) {
        let (mean, scale) = moments(x, eps);
        for index in 0..hidden {
            out[index] = (x[index] - mean) * scale * weight[index] + bias[index];
        }
    }
}

/// With n = (x - mean) / deviation and h = g∘w: dx = (h - mean(h) - n mean(h∘n)) / deviation, dw += g∘n, db += g.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise_backward(dx: &mut [f32], dparameters: &mut [f32], x: &[f32], weight: &[f32], grad: &[f32], eps: f32) {
    let hidden = weight.len();
    let (dweight, dbias) = dparameters.split_at_mut(hidden);
    let mut normed = vec![0f32; hidden];
    let rows = dx
        .chunks_exact_mut(hidden)
        .zip(x.chunks_exact(hidden).zip(grad.chunks_exact(hidden)));
    for (dx, (x, grad)) in rows {
        let (mean, scale) = moments(x, eps);
        for index in 0..hidden {
            normed[index] = (x[index] - mean) * scale;
            dx[index] = grad[index] * weight[index];
            dweight[index] += grad[index] * normed[index];
            dbias[index] += grad[index];
        }
        let (plain, projected) = (sum(dx) / hidden as f32, dot(dx, &normed) / hidden as f32);
        for index in 0..hidden {
            dx[index] = (dx[index] - plain - normed[index] * projected) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition() {
        let (x, weight, bias) = (variable(&[35, 48], 1), variable(&[48], 2), variable(&[48], 3));
        same_value_and_gradient(
            &[&x, &weight, &bias],
            || layer_norm(&x, &weight, &bias, 1e-5),
            || reference(&x, &weight, &bias, 1e-5),
            1e-5,
        );
    }
}
