//! A frozen projection with low-rank updates (Hu et al. 2021).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::super::kernels::gemm::{MatrixView, gemm};
use super::super::layers::Weight;
use super::{Dropout, values, with_values};

/// One updated part of a (fused) projection: output columns `rows` get `scale * (x · A[rank]ᵀ) · B[b_rows]ᵀ`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraPart {
    /// Output columns of the projection, which are rows of its matrix.
    pub rows: Range<usize>,
    /// Rows of the stacked `A`.
    pub rank: Range<usize>,
    /// Rows of the stacked `B`.
    pub b_rows: Range<usize>,
}

/// `x · Wᵀ`, differentiable in `x`, and in `W` where it is a variable. `x [tokens, in]` to `[tokens, out]`.
///
/// # Errors
/// When the shapes do not fit, or the weight has no backward pass and one is asked for.
pub fn linear(x: &Tensor, weight: &Arc<Weight>) -> Result<Tensor> {
    match &**weight {
        Weight::Dense(matrix) if matrix.track_op() || !x.device().is_cpu() => x.matmul(&matrix.t()?),
        _ => x.apply_op1(FrozenLinear { weight: weight.clone() }),
    }
}

/// `x · Wᵀ` plus the low-rank updates of `parts`, each with a dropout of its own. Shapes: `x [tokens, in]`, `a [Σ rank, in]`,
/// `b [Σ rows, rank]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn lora_linear(
    x: &Tensor,
    weight: &Arc<Weight>,
    a: &Tensor,
    b: &Tensor,
    parts: &Arc<[LoraPart]>,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    if x.device().is_cpu() {
        let hidden = OnceLock::new();
        x.apply_op3(
            a,
            b,
            LoraLinear {
                weight: weight.clone(),
                parts: parts.clone(),
                scale,
                dropout,
                hidden,
            },
        )
    } else {
        reference(x, weight, a, b, parts, scale, dropout)
    }
}

pub(super) fn reference(
    x: &Tensor,
    weight: &Arc<Weight>,
    a: &Tensor,
    b: &Tensor,
    parts: &[LoraPart],
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let (tokens, in_size) = x.dims2()?;
    let base = linear(x, weight)?;
    let (out, _) = weight.shape();
    let mut columns = Vec::new();
    let mut next = 0;
    for (index, part) in parts.iter().enumerate() {
        if next < part.rows.start {
            columns.push(base.narrow(1, next, part.rows.start - next)?);
        }
        let input = match dropout {
            None => x.clone(),
            Some(dropout) => (x * dropout.for_use(index as u64).mask(tokens, in_size, x.device())?)?,
        };
        let hidden = input.matmul(&a.narrow(0, part.rank.start, part.rank.len())?.t()?)?;
        let update = hidden.matmul(&b.narrow(0, part.b_rows.start, part.b_rows.len())?.t()?)?;
        columns.push((base.narrow(1, part.rows.start, part.rows.len())? + (update * f64::from(scale))?)?);
        next = part.rows.end;
    }
    if next < out {
        columns.push(base.narrow(1, next, out - next)?);
    }
    Tensor::cat(&columns, 1)
}

/// `out += scale * (x · Aᵀ) · Bᵀ` by parts; leaves `x · Aᵀ [tokens, Σ rank]` in `hidden`.
#[expect(
    clippy::too_many_arguments,
    reason = "plain matrices; a struct for one private function would only rename them"
)]
fn add_low_rank(
    out: &mut [f32],
    hidden: &mut [f32],
    x: &[f32],
    a: &[f32],
    b: &[f32],
    tokens: usize,
    parts: &[LoraPart],
    scale: f32,
    dropout: Option<Dropout>,
) {
    let (in_size, out_size, ranks) = (x.len() / tokens, out.len() / tokens, hidden.len() / tokens);
    match dropout {
        None => {
            let a = MatrixView::new(a, ranks, in_size);
            gemm(hidden, ranks, false, 1.0, MatrixView::new(x, tokens, in_size), a.t());
        }
        Some(dropout) => {
            for (index, part) in parts.iter().enumerate() {
                let x = masked(x, dropout.for_use(index as u64));
                let a = rows_of(a, part, in_size);
                let hidden = &mut hidden[part.rank.start..];
                gemm(hidden, ranks, false, 1.0, MatrixView::new(&x, tokens, in_size), a.t());
            }
        }
    }
    for part in parts {
        let rank = part.rank.len();
        let hidden = MatrixView::strided(&hidden[part.rank.start..], tokens, rank, ranks);
        let b = MatrixView::new(&b[part.b_rows.start * rank..], part.b_rows.len(), rank);
        gemm(&mut out[part.rows.start..], out_size, true, scale, hidden, b.t());
    }
}

fn masked(x: &[f32], dropout: Dropout) -> Vec<f32> {
    let mut x = x.to_vec();
    dropout.apply(&mut x, 0);
    x
}

/// A part's rows of the stacked `A`.
fn rows_of<'a>(a: &'a [f32], part: &LoraPart, in_size: usize) -> MatrixView<'a> {
    MatrixView::new(&a[part.rank.start * in_size..], part.rank.len(), in_size)
}

/// `dx += mask(dhidden · A)`, where the mask's first row is number `first`.
pub(super) fn add_masked(
    dx: &mut [f32],
    dhidden: MatrixView<'_>,
    a: MatrixView<'_>,
    dropout: Option<Dropout>,
    first: usize,
) {
    let width = a.columns();
    let Some(dropout) = dropout else {
        gemm(dx, width, true, 1.0, dhidden, a);
        return;
    };
    let mut update = vec![0f32; dx.len()];
    gemm(&mut update, width, false, 1.0, dhidden, a);
    dropout.apply(&mut update, first * width);
    dx.iter_mut().zip(&update).for_each(|(dx, update)| *dx += update);
}

struct FrozenLinear {
    weight: Arc<Weight>,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let (tokens, width) = layout.shape().dims2()?;
        let (out_size, in_size) = self.weight.shape();
        if width != in_size {
            bail!("a projection of {in_size} values got {width}")
        }
        let mut out = vec![0f32; tokens * out_size];
        self.weight.project(x, tokens, &mut out)?;
        Ok((CpuStorage::F32(out), Shape::from((tokens, out_size))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (tokens, _) = x.dims2()?;
        let mut dx = vec![0f32; x.elem_count()];
        with_values(&grad.contiguous()?, |grad| {
            self.weight.project_back(grad, tokens, &mut dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct LoraLinear {
    weight: Arc<Weight>,
    parts: Arc<[LoraPart]>,
    scale: f32,
    dropout: Option<Dropout>,
    /// `x · Aᵀ` of the forward pass, `[tokens, Σ rank]`, kept for the backward pass.
    hidden: OnceLock<Vec<f32>>,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
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
        let (x, a, b) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        let (tokens, in_size) = l1.shape().dims2()?;
        let (ranks, a_in) = l2.shape().dims2()?;

        let (out_size, weight_in) = self.weight.shape();
        if in_size != weight_in || in_size != a_in {
            bail!("a projection of {weight_in} values with an adapter of {a_in} got {in_size}")
        }
        let mut out = vec![0f32; tokens * out_size];
        self.weight.project(x, tokens, &mut out)?;
        let mut hidden = vec![0f32; tokens * ranks];
        add_low_rank(
            &mut out,
            &mut hidden,
            x,
            a,
            b,
            tokens,
            &self.parts,
            self.scale,
            self.dropout,
        );
        // A second forward pass of the same node does not happen; were it to, the first value would still be right.
        let _ = self.hidden.set(hidden);
        Ok((CpuStorage::F32(out), Shape::from((tokens, out_size))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (tokens, in_size) = x.dims2()?;
        let (ranks, _) = a.dims2()?;
        let (_, rank) = b.dims2()?;
        let (out_size, _) = self.weight.shape();
        let Some(hidden) = self.hidden.get() else {
            bail!("backward pass of a LoRA projection before its forward pass")
        };
        let mut dx = if x.track_op() {
            vec![0f32; x.elem_count()]
        } else {
            Vec::new()
        };
        let mut da = vec![0f32; a.elem_count()];
        let mut db = vec![0f32; b.elem_count()];
        let mut dhidden = vec![0f32; tokens * ranks];
        let grad = grad.contiguous()?;
        with_values(&grad, |grad| {
            with_values(b, |b| {
                for part in &*self.parts {
                    let grad = MatrixView::strided(&grad[part.rows.start..], tokens, part.rows.len(), out_size);
                    let b = MatrixView::new(&b[part.b_rows.start * rank..], part.b_rows.len(), rank);
                    gemm(&mut dhidden[part.rank.start..], ranks, false, self.scale, grad, b);
                    let hidden = MatrixView::strided(&hidden[part.rank.start..], tokens, rank, ranks);
                    gemm(
                        &mut db[part.b_rows.start * rank..],
                        rank,
                        false,
                        self.scale,
                        grad.t(),
                        hidden,
                    );
                }
                Ok(())
            })?;
            let columns =
                |part: &LoraPart| MatrixView::strided(&dhidden[part.rank.start..], tokens, part.rank.len(), ranks);
            let whole = MatrixView::new(&dhidden, tokens, ranks);
            with_values(x, |x| {
                let Some(dropout) = self.dropout else {
                    gemm(
                        &mut da,
                        in_size,
                        false,
                        1.0,
                        whole.t(),
                        MatrixView::new(x, tokens, in_size),
                    );
                    return Ok(());
                };
                for (index, part) in self.parts.iter().enumerate() {
                    let x = masked(x, dropout.for_use(index as u64));
                    let da = &mut da[part.rank.start * in_size..part.rank.end * in_size];
                    let x = MatrixView::new(&x, tokens, in_size);
                    gemm(da, in_size, false, 1.0, columns(part).t(), x);
                }
                Ok(())
            })?;
            if !dx.is_empty() {
                self.weight.project_back(grad, tokens, &mut dx)?;
                with_values(a, |a| {
                    if self.dropout.is_none() {
                        add_masked(&mut dx, whole, MatrixView::new(a, ranks, in_size), None, 0);
                        return Ok(());
                    }
                    for (index, part) in self.parts.iter().enumerate() {
                        let dropout = self.dropout.map(|dropout| dropout.for_use(index as u64));
                        add_masked(&mut dx, columns(part), rows_of(a, part, in_size), dropout, 0);
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        let dx = if dx.is_empty() {
            None
        } else {
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        };
        let da = Tensor::from_vec(da, a.shape(), a.device())?;
        let db = Tensor::from_vec(db, b.shape(), b.device())?;
        Ok((dx, Some(da), Some(db)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition_when_only_some_parts_are_adapted() {
        let (x, a, b) = (variable(&[7, 12], 1), variable(&[4, 12], 2), variable(&[9, 2], 3));
        let weight = Arc::new(Weight::Dense(noise(&[20, 12], 4)));
        let parts: Arc<[LoraPart]> = Arc::new([
            LoraPart {
                rows: 0..5,
                rank: 0..2,
                b_rows: 0..5,
            },
            LoraPart {
                rows: 11..15,
                rank: 2..4,
                b_rows: 5..9,
            },
        ]);
        let dropout = Dropout {
            probability: 0.25,
            seed: 3,
        };
        for dropout in [None, Some(dropout)] {
            same_value_and_gradient(
                &[&x, &a, &b],
                || lora_linear(&x, &weight, &a, &b, &parts, 0.5, dropout),
                || reference(&x, &weight, &a, &b, &parts, 0.5, dropout),
                1e-5,
            );
        }
    }

    #[test]
    fn a_frozen_projection_passes_the_gradient_on() {
        let x = variable(&[7, 12], 1);
        let matrix = noise(&[20, 12], 4);
        let weight = Arc::new(Weight::Dense(matrix.clone()));
        same_value_and_gradient(&[&x], || linear(&x, &weight), || x.matmul(&matrix.t()?), 1e-5);
    }
}
