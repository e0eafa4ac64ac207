//! The gated activation of the feed-forward part (Shazeer 2020).

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::super::kernels::vector::exp;
use super::{values, with_values};

/// `silu(gate) * up`, where the input holds both side by side: `[tokens, 2 * intermediate]` to `[tokens, intermediate]`.
///
/// # Errors
/// When the last axis is odd.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    if gate_up.device().is_cpu() {
        gate_up.apply_op1(SwiGlu)
    } else {
        reference(gate_up)
    }
}

fn reference(gate_up: &Tensor) -> Result<Tensor> {
    let halves = gate_up.chunk(2, D::Minus1)?;
    halves[0].silu()? * &halves[1]
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let input = values(storage, layout)?;
        let (tokens, width) = layout.shape().dims2()?;
        let half = width / 2;
        let mut out = vec![0f32; tokens * half];
        if tokens <= 4 {
            out.chunks_mut(half)
                .zip(input.chunks(width))
                .for_each(|(out, input)| forward_row(out, input));
        } else {
            out.par_chunks_mut(half)
                .zip(input.par_chunks(width))
                .for_each(|(out, input)| forward_row(out, input));
        }
        Ok((CpuStorage::F32(out), Shape::from((tokens, half))))
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = input.dims2()?;
        let grad = grad.contiguous()?;
        let mut out = vec![0f32; input.elem_count()];
        with_values(input, |input| {
            with_values(&grad, |grad| {
                out.par_chunks_mut(width)
                    .zip(input.par_chunks(width).zip(grad.par_chunks(width / 2)))
                    .for_each(|(out, (input, grad))| backward_row(out, input, grad));
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(out, input.shape(), input.device())?))
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn forward_row(out: &mut [f32], input: &[f32]) {
    let (gate, up) = input.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn backward_row(out: &mut [f32], input: &[f32], grad: &[f32]) {
    let (gate, up) = input.split_at(grad.len());
    let (dgate, dup) = out.split_at_mut(grad.len());
    for index in 0..grad.len() {
        let sigmoid = 1.0 / (1.0 + exp(-gate[index]));
        let silu = gate[index] * sigmoid;
        dgate[index] = grad[index] * up[index] * (sigmoid + silu * (1.0 - sigmoid));
        dup[index] = grad[index] * silu;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition() {
        let x = variable(&[9, 66], 3);
        same_value_and_gradient(&[&x], || swiglu(&x), || reference(&x), 1e-5);
    }
}
