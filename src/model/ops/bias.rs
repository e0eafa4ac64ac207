//! The bias of a projection.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{values, with_values};

/// `x + bias` for every row of `x [tokens, width]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2(bias, AddBias)
    } else {
        x.broadcast_add(bias)
    }
}

struct AddBias;

const ROWS: usize = 16;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (values(s1, l1)?, values(s2, l2)?);
        let width = bias.len();
        if l1.dims().last() != Some(&width) {
            bail!("a bias of {width} values for {:?}", l1.dims())
        }
        let mut out = x.to_vec();
        out.par_chunks_mut(width * ROWS).for_each(|rows| add_rows(rows, bias));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, bias: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if !bias.track_op() {
            return Ok((Some(grad.clone()), None));
        }
        let mut sum = vec![0f32; bias.elem_count()];
        with_values(&grad.contiguous()?, |grad| {
            for row in grad.chunks_exact(sum.len()) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            Ok(())
        })?;
        let dbias = Tensor::from_vec(sum, bias.shape(), bias.device())?;
        Ok((Some(grad.clone()), Some(dbias)))
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn add_rows(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value += bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition() {
        let (x, bias) = (variable(&[35, 12], 1), variable(&[12], 2));
        same_value_and_gradient(&[&x, &bias], || add_bias(&x, &bias), || x.broadcast_add(&bias), 1e-5);
    }
}
