//! Negative log-likelihoods under an output head with a low-rank update.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

use super::super::kernels::gemm::{MatrixView, gemm};
use super::super::layers::Weight;
use super::cross_entropy::{self, BLOCK, Target, loss_and_gradient};
use super::lora_linear::{self, lora_linear};
use super::mixed_linear::{LowRankUpdate, mixed_linear};
use super::{Dropout, LoraPart, values, with_values};

/// As [`super::cross_entropy`], with `scale * (hidden · Aᵀ) · Bᵀ` added to the logits; differentiable in `hidden [tokens, hidden]`,
/// `a [rank, hidden]` and `b [vocabulary, rank]`.
///
/// The gradient of `B` depends on what each loss is used for, so that the backward pass computes the logits a second time, a block of
/// rows at a time, rather than keep them.
///
/// # Errors
/// When a target lies outside the vocabulary or the hidden states.
pub fn adapted_cross_entropy(
    hidden: &Tensor,
    head: &Arc<Weight>,
    targets: &[Target],
    a: &Tensor,
    b: &Tensor,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let (selected, tokens) = cross_entropy::select(hidden, head, targets)?;
    if hidden.device().is_cpu() {
        let operation = AdaptedCrossEntropy {
            head: head.clone(),
            tokens,
            scale,
            dropout,
        };
        selected.apply_op3(a, b, operation)
    } else {
        reference(&selected, head, &tokens, a, b, scale, dropout)
    }
}

fn reference(
    selected: &Tensor,
    head: &Arc<Weight>,
    tokens: &[u32],
    a: &Tensor,
    b: &Tensor,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let (vocabulary, _) = head.shape();
    let whole: Arc<[LoraPart]> = Arc::new([LoraPart {
        rows: 0..vocabulary,
        rank: 0..a.dims2()?.0,
        b_rows: 0..vocabulary,
    }]);
    let logits = lora_linear(selected, head, a, b, &whole, scale, dropout)?;
    cross_entropy::of_logits(&logits, tokens)
}

/// As [`super::cross_entropy`], with a different low-rank update of the head for each span of rows of `hidden`; for serving, not
/// differentiable.
///
/// # Errors
/// When a target lies outside the vocabulary or the hidden states.
pub fn mixed_cross_entropy(
    hidden: &Tensor,
    head: &Arc<Weight>,
    targets: &[Target],
    updates: &[LowRankUpdate<'_>],
) -> Result<Tensor> {
    let (rows, _) = hidden.dims2()?;
    cross_entropy::check((rows, head.shape().0), targets)?;
    let mut losses = vec![0f32; targets.len()];
    for start in (0..rows).step_by(BLOCK) {
        let end = rows.min(start + BLOCK);
        let within: Vec<LowRankUpdate<'_>> = updates.iter().filter_map(|update| update.within(start..end)).collect();
        let logits = mixed_linear(&hidden.narrow(0, start, end - start)?, head, &within)?;
        let here: Vec<usize> = (0..targets.len())
            .filter(|&index| (start..end).contains(&(targets[index].row as usize)))
            .collect();
        if here.is_empty() {
            continue;
        }
        let local: Vec<u32> = here.iter().map(|&index| targets[index].row - start as u32).collect();
        let local = Tensor::from_vec(local, here.len(), hidden.device())?;
        let tokens: Vec<u32> = here.iter().map(|&index| targets[index].token).collect();
        let some = cross_entropy::of_logits(&logits.index_select(&local, 0)?, &tokens)?;
        for (index, loss) in here.into_iter().zip(some.to_vec1::<f32>()?) {
            losses[index] = loss;
        }
    }
    Tensor::from_vec(losses, targets.len(), hidden.device())
}

struct AdaptedCrossEntropy {
    head: Arc<Weight>,
    tokens: Vec<u32>,
    scale: f32,
    dropout: Option<Dropout>,
}

/// The logits of a block of rows, and what the update needed for them.
struct BlockLogits {
    logits: Vec<f32>,
    /// What went into the update, `[rows, hidden]`.
    input: Vec<f32>,
    /// `input · Aᵀ`.
    low: Vec<f32>,
}

impl AdaptedCrossEntropy {
    fn block(&self, hidden: &[f32], first: usize, a: &[f32], b: &[f32]) -> Result<BlockLogits> {
        let (vocabulary, width) = self.head.shape();
        let (rows, rank) = (hidden.len() / width, a.len() / width);
        let mut logits = vec![0f32; rows * vocabulary];
        self.head.project(hidden, rows, &mut logits)?;
        let mut input = hidden.to_vec();
        if let Some(dropout) = self.dropout {
            dropout.for_use(0).apply(&mut input, first * width);
        }
        let mut low = vec![0f32; rows * rank];
        let a = MatrixView::new(a, rank, width);
        gemm(&mut low, rank, false, 1.0, MatrixView::new(&input, rows, width), a.t());
        let b = MatrixView::new(b, vocabulary, rank);
        let low_view = MatrixView::new(&low, rows, rank);
        gemm(&mut logits, vocabulary, true, self.scale, low_view, b.t());
        Ok(BlockLogits { logits, input, low })
    }

    /// Losses of a block of rows; the logits become `softmax - onehot`.
    fn losses(&self, logits: &mut [f32], first: usize) -> Vec<f32> {
        let (vocabulary, _) = self.head.shape();
        logits
            .par_chunks_mut(vocabulary)
            .zip(&self.tokens[first..])
            .map(|(logits, &token)| loss_and_gradient(logits, token as usize))
            .collect()
    }
}

impl CustomOp3 for AdaptedCrossEntropy {
    fn name(&self) -> &'static str {
        "adapted-cross-entropy"
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
        let (hidden, a, b) = (values(s1, l1)?, values(s2, l2)?, values(s3, l3)?);
        let (rows, width) = l1.shape().dims2()?;
        let (vocabulary, head_width) = self.head.shape();
        if width != head_width || l2.dims() != [l2.dims()[0], width] || l3.dims() != [vocabulary, l2.dims()[0]] {
            bail!(
                "a head [{vocabulary}, {head_width}] with an update of {:?} and {:?} got {width}",
                l2.dims(),
                l3.dims()
            )
        }
        let mut losses = Vec::with_capacity(rows);
        for start in (0..rows).step_by(BLOCK) {
            let end = rows.min(start + BLOCK);
            let mut block = self.block(&hidden[start * width..end * width], start, a, b)?;
            losses.extend(self.losses(&mut block.logits, start));
        }
        Ok((CpuStorage::F32(losses), Shape::from(rows)))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, width) = hidden.dims2()?;
        let (rank, _) = a.dims2()?;
        let (vocabulary, _) = self.head.shape();
        let mut dhidden = vec![0f32; rows * width];
        let (mut da, mut db) = (vec![0f32; rank * width], vec![0f32; vocabulary * rank]);
        let all = |hidden: &[f32], a: &[f32], b: &[f32], grad: &[f32]| -> Result<()> {
            for start in (0..rows).step_by(BLOCK) {
                let end = rows.min(start + BLOCK);
                let count = end - start;
                let mut block = self.block(&hidden[start * width..end * width], start, a, b)?;
                self.losses(&mut block.logits, start);
                for (row, grad) in block.logits.chunks_mut(vocabulary).zip(&grad[start..end]) {
                    row.iter_mut().for_each(|value| *value *= grad);
                }
                let dhidden = &mut dhidden[start * width..end * width];
                self.head.project_back(&block.logits, count, dhidden)?;
                let dlogits = MatrixView::new(&block.logits, count, vocabulary);
                let low = MatrixView::new(&block.low, count, rank);
                gemm(&mut db, rank, true, self.scale, dlogits.t(), low);
                let mut dlow = vec![0f32; count * rank];
                gemm(
                    &mut dlow,
                    rank,
                    false,
                    self.scale,
                    dlogits,
                    MatrixView::new(b, vocabulary, rank),
                );
                let dlow = MatrixView::new(&dlow, count, rank);
                gemm(
                    &mut da,
                    width,
                    true,
                    1.0,
                    dlow.t(),
                    MatrixView::new(&block.input, count, width),
                );
                let a = MatrixView::new(a, rank, width);
                lora_linear::add_masked(dhidden, dlow, a, self.dropout.map(|dropout| dropout.for_use(0)), start);
            }
            Ok(())
        };
        let mut all = all;
        with_values(hidden, |hidden| {
            with_values(a, |a| {
                with_values(b, |b| with_values(&grad.contiguous()?, |grad| all(hidden, a, b, grad)))
            })
        })?;
        Ok((
            Some(Tensor::from_vec(dhidden, hidden.shape(), hidden.device())?),
            Some(Tensor::from_vec(da, a.shape(), a.device())?),
            Some(Tensor::from_vec(db, b.shape(), b.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{largest_difference, noise, same_value_and_gradient, variable};
    use super::*;

    fn targets() -> Vec<Target> {
        (0..290)
            .map(|row| Target {
                row: (row * 7) % 300,
                token: row % 33,
            })
            .collect()
    }

    #[test]
    fn agrees_with_the_plain_composition() {
        let (hidden, a, b) = (variable(&[300, 8], 1), variable(&[2, 8], 2), variable(&[33, 2], 3));
        let head = Arc::new(Weight::Dense(noise(&[33, 8], 4)));
        let (_, tokens) = cross_entropy::select(&hidden, &head, &targets()).unwrap();
        for dropout in [
            None,
            Some(Dropout {
                probability: 0.3,
                seed: 5,
            }),
        ] {
            same_value_and_gradient(
                &[&hidden, &a, &b],
                || adapted_cross_entropy(&hidden, &head, &targets(), &a, &b, 0.5, dropout),
                || {
                    let (selected, _) = cross_entropy::select(&hidden, &head, &targets())?;
                    reference(&selected, &head, &tokens, &a, &b, 0.5, dropout)
                },
                5e-5,
            );
        }
    }

    #[test]
    fn updates_reach_only_the_rows_they_are_for() {
        let (hidden, a, b) = (noise(&[300, 8], 1), noise(&[2, 8], 2), noise(&[33, 2], 3));
        let head = Arc::new(Weight::Dense(noise(&[33, 8], 4)));
        let parts = [LoraPart {
            rows: 0..33,
            rank: 0..2,
            b_rows: 0..33,
        }];
        let update = LowRankUpdate {
            rows: 100..280,
            a: &a,
            b: &b,
            packed: None,
            parts: &parts,
            scale: 0.5,
        };
        let mixed = mixed_cross_entropy(&hidden, &head, &targets(), &[update]).unwrap();
        let plain = super::super::cross_entropy(&hidden, &head, &targets()).unwrap();
        let adapted = adapted_cross_entropy(&hidden, &head, &targets(), &a, &b, 0.5, None).unwrap();
        let choose = |index: usize| match (100..280).contains(&targets()[index].row) {
            true => adapted.get(index).unwrap(),
            false => plain.get(index).unwrap(),
        };
        let want: Vec<Tensor> = (0..290).map(choose).collect();
        assert!(largest_difference(&mixed, &Tensor::stack(&want, 0).unwrap()) < 1e-5);
    }
}
