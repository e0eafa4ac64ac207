//! Negative log-likelihoods from hidden states, without ever holding all logits or any probabilities.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::super::kernels::vector::exp_shifted;
use super::super::layers::Weight;
use super::{linear, values, with_values};

/// A token to be predicted, and the row of the hidden states that predicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the hidden states.
    pub row: u32,
    /// The token that follows.
    pub token: u32,
}

/// `-ln p(token)` in nats for every target: `hidden [tokens, hidden]` and a head `[vocabulary, hidden]` to `[targets]`.
///
/// The gradient of one target's loss with respect to its hidden state, `(softmax - onehot) · W`, does not depend on what
/// the loss is used for, so it is computed together with the loss while the logits of a block of rows are at hand.
///
/// # Errors
/// When a target lies outside the vocabulary or the hidden states.
pub fn cross_entropy(hidden: &Tensor, head: &Arc<Weight>, targets: &[Target]) -> Result<Tensor> {
    let (selected, tokens) = select(hidden, head, targets)?;
    let trains_head = matches!(&**head, Weight::Dense(matrix) if matrix.track_op());
    if hidden.device().is_cpu() && !trains_head {
        let differentiate = hidden.track_op();
        selected.apply_op1(CrossEntropy {
            head: head.clone(),
            tokens,
            differentiate,
            gradient: OnceLock::new(),
        })
    } else {
        reference(&selected, head, &tokens)
    }
}

fn reference(selected: &Tensor, head: &Arc<Weight>, tokens: &[u32]) -> Result<Tensor> {
    of_logits(&linear(selected, head)?, tokens)
}

/// `-ln softmax(logits)[token]` of every target, from logits `[rows, vocabulary]` of all rows.
///
/// # Errors
/// When a target lies outside them.
pub(crate) fn cross_entropy_of(logits: &Tensor, targets: &[Target]) -> Result<Tensor> {
    check(logits.dims2()?, targets)?;
    let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
    let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
    let rows = Tensor::from_vec(rows, targets.len(), logits.device())?;
    of_logits(&logits.index_select(&rows, 0)?, &tokens)
}

/// `-ln softmax(logits)[token]` of every row, as a plain composition.
pub(super) fn of_logits(logits: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let tokens = Tensor::from_slice(tokens, (tokens.len(), 1), logits.device())?;
    (log_sum - shifted.gather(&tokens, D::Minus1)?)?.squeeze(D::Minus1)
}

/// Fails when a target lies outside so many rows and tokens.
pub(super) fn check((rows, vocabulary): (usize, usize), targets: &[Target]) -> Result<()> {
    match targets
        .iter()
        .find(|t| t.row as usize >= rows || t.token as usize >= vocabulary)
    {
        Some(target) => bail!("the target {target:?} lies outside {rows} rows or {vocabulary} tokens"),
        None => Ok(()),
    }
}

/// The rows that predict the targets, `[targets, hidden]`, and the targets' tokens.
pub(super) fn select(hidden: &Tensor, head: &Weight, targets: &[Target]) -> Result<(Tensor, Vec<u32>)> {
    check((hidden.dims2()?.0, head.shape().0), targets)?;
    let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
    let rows = Tensor::from_vec(rows, targets.len(), hidden.device())?;
    let tokens = targets.iter().map(|target| target.token).collect();
    Ok((hidden.index_select(&rows, 0)?, tokens))
}

struct CrossEntropy {
    head: Arc<Weight>,
    tokens: Vec<u32>,
    differentiate: bool,
    /// d loss / d hidden of every target, `[targets, hidden]`.
    gradient: OnceLock<Vec<f32>>,
}

/// Rows whose logits are held at once.
pub(super) const BLOCK: usize = 256;

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "fused-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = values(storage, layout)?;
        let (rows, width) = layout.shape().dims2()?;
        let (vocabulary, _) = self.head.shape();
        let mut losses = vec![0f32; rows];
        let mut gradient = if self.differentiate {
            vec![0f32; rows * width]
        } else {
            Vec::new()
        };
        let mut logits = vec![0f32; BLOCK.min(rows) * vocabulary];
        for start in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - start);
            let logits = &mut logits[..count * vocabulary];
            self.head
                .project(&hidden[start * width..(start + count) * width], count, logits)?;
            logits
                .par_chunks_mut(vocabulary)
                .zip(
                    losses[start..start + count]
                        .par_iter_mut()
                        .zip(&self.tokens[start..start + count]),
                )
                .for_each(|(logits, (loss, &token))| *loss = loss_and_gradient(logits, token as usize));
            if self.differentiate {
                let gradient = &mut gradient[start * width..(start + count) * width];
                self.head.project_back(logits, count, gradient)?;
            }
        }
        let _ = self.gradient.set(gradient);
        Ok((CpuStorage::F32(losses), Shape::from(rows)))
    }

    fn bwd(&self, hidden: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self
            .gradient
            .get()
            .filter(|gradient| gradient.len() == hidden.elem_count())
        else {
            bail!("cross-entropy was computed without its gradient")
        };
        let (_, width) = hidden.dims2()?;
        let mut out = gradient.clone();
        with_values(&grad.contiguous()?, |grad| {
            for (row, grad) in out.chunks_mut(width).zip(grad) {
                row.iter_mut().for_each(|value| *value *= grad);
            }
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(out, hidden.shape(), hidden.device())?))
    }
}

/// Replaces logits by `softmax - onehot(token)` and returns `-ln softmax[token]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
pub(super) fn loss_and_gradient(logits: &mut [f32], token: usize) -> f32 {
    let logit = logits[token];
    let (largest, total) = exp_shifted(logits);
    let inverse = total.recip();
    for value in logits.iter_mut() {
        *value *= inverse;
    }
    logits[token] -= 1.0;
    total.ln() + largest - logit
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition() {
        let hidden = variable(&[300, 8], 1);
        let head = Arc::new(Weight::Dense(noise(&[33, 8], 2)));
        let targets: Vec<Target> = (0..290)
            .map(|row| Target {
                row: (row * 7) % 300,
                token: row % 33,
            })
            .collect();
        let rows = Tensor::from_vec(targets.iter().map(|t| t.row).collect::<Vec<_>>(), 290, hidden.device()).unwrap();
        let tokens: Vec<u32> = targets.iter().map(|t| t.token).collect();
        same_value_and_gradient(
            &[&hidden],
            || cross_entropy(&hidden, &head, &targets),
            || reference(&hidden.index_select(&rows, 0)?, &head, &tokens),
            1e-5,
        );
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        let head = Arc::new(Weight::Dense(noise(&[33, 8], 2)));
        let target = Target { row: 0, token: 33 };
        assert!(cross_entropy(&variable(&[3, 8], 1), &head, &[target]).is_err());
    }
}
