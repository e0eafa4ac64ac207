//! Causal grouped-query attention over a ragged batch, rotary embedding included.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::super::kernels::vector::{add_scaled, dot, softmax};
use super::super::packing::{PackedGroup, PackedSequence, Packing};
use super::rotary::{RotaryTable, rotate, rotate_back};
use super::{values, with_values};

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; query head `h` reads key-value head `h * num_kv_heads / num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How many tokens a token sees, itself included; `usize::MAX` for all.
    pub window: usize,
}

impl AttentionShape {
    /// Values in one row of fused queries, keys and values, in this order.
    pub fn row(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Values in one row of the output.
    pub fn out(&self) -> usize {
        self.num_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// First value of key head `head` in a row; the value head follows `num_kv_heads` heads later.
    fn key(&self, head: usize) -> usize {
        (self.num_heads + head) * self.head_dim
    }

    fn value(&self, head: usize) -> usize {
        self.key(self.num_kv_heads + head)
    }
}

/// Attention of every token to its own sequence up to itself and to its sequence's prefix, as far back as the window reaches.
/// `qkv [tokens, (num_heads + 2 num_kv_heads) * head_dim]`, not yet rotated, to `[tokens, num_heads * head_dim]`.
///
/// # Errors
/// When the shapes do not fit, or a sequence is longer than the rotary table.
pub fn attention(
    qkv: &Tensor,
    shape: AttentionShape,
    packing: &Arc<Packing>,
    rotary: &Arc<RotaryTable>,
) -> Result<Tensor> {
    let (tokens, row) = qkv.dims2()?;
    if tokens != packing.tokens() || row != shape.row() {
        bail!(
            "attention over {tokens} rows of {row}, expected {} of {}",
            packing.tokens(),
            shape.row()
        )
    }
    if packing.max_positions() > rotary.positions() {
        bail!(
            "a sequence of {} tokens exceeds the model's {}",
            packing.max_positions(),
            rotary.positions()
        )
    }
    if qkv.device().is_cpu() {
        qkv.apply_op1(Attention {
            shape,
            packing: packing.clone(),
            rotary: rotary.clone(),
        })
    } else {
        reference(qkv, shape, packing, rotary)
    }
}

/// One query head against `keys` and `values` that lie `stride` values apart: `out = softmax(q · kᵀ * scale) · v`.
/// The rows come in up to two runs, each `(keys, values, count)`.
#[inline(always)]
fn attend_row(
    out: &mut [f32],
    query: &[f32],
    runs: [(&[f32], &[f32], usize); 2],
    stride: usize,
    scores: &mut Vec<f32>,
) {
    let width = query.len();
    let scale = (width as f32).sqrt().recip();
    scores.clear();
    for (keys, _, count) in runs {
        // A loop, not an iterator: the library's adapters would be compiled without the vector instructions.
        for j in 0..count {
            scores.push(dot(query, &keys[j * stride..j * stride + width]) * scale);
        }
    }
    softmax(scores);
    out.fill(0.0);
    let mut next = 0;
    for (_, values, count) in runs {
        for j in 0..count {
            add_scaled(out, scores[next], &values[j * stride..j * stride + width]);
            next += 1;
        }
    }
}

struct Attention {
    shape: AttentionShape,
    packing: Arc<Packing>,
    rotary: Arc<RotaryTable>,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = values(storage, layout)?;
        let (row, width) = (self.shape.row(), self.shape.out());
        let mut out = vec![0f32; self.packing.tokens() * width];
        self.by_group(&mut out, width).into_par_iter().for_each(|(group, out)| {
            let qkv = &qkv[group.start * row..(group.start + group.len) * row];
            forward_group(out, qkv, group, self.shape, &self.rotary);
        });
        Ok((CpuStorage::F32(out), Shape::from((self.packing.tokens(), width))))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (row, width) = (self.shape.row(), self.shape.out());
        let grad = grad.contiguous()?;
        let mut out = vec![0f32; qkv.elem_count()];
        with_values(qkv, |qkv| {
            with_values(&grad, |grad| {
                self.by_group(&mut out, row).into_par_iter().for_each(|(group, out)| {
                    let rows = group.start..group.start + group.len;
                    let qkv = &qkv[rows.start * row..rows.end * row];
                    let grad = &grad[rows.start * width..rows.end * width];
                    backward_group(out, qkv, grad, group, self.shape, &self.rotary);
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(out, qkv.shape(), qkv.device())?))
    }
}

impl Attention {
    /// The groups, each with its own rows of `out`.
    fn by_group<'a>(&'a self, mut out: &'a mut [f32], width: usize) -> Vec<(&'a PackedGroup, &'a mut [f32])> {
        let mut parts = Vec::with_capacity(self.packing.groups().len());
        for group in self.packing.groups() {
            let (part, rest) = out.split_at_mut(group.len * width);
            parts.push((group, part));
            out = rest;
        }
        parts
    }
}

/// Calls `visit(row, position)` for every row of the group, rows counted from the group's first.
#[inline(always)]
fn for_each_position(group: &PackedGroup, mut visit: impl FnMut(usize, usize)) {
    for sequence in &group.sequences {
        for offset in 0..sequence.len {
            visit(
                sequence.start - group.start + offset,
                sequence.first_position() + offset,
            );
        }
    }
}

/// Queries and keys turned to their positions, values as they were.
#[inline(always)]
fn rotated(qkv: &[f32], group: &PackedGroup, shape: AttentionShape, rotary: &RotaryTable) -> Vec<f32> {
    let (row, turned) = (shape.row(), (shape.num_heads + shape.num_kv_heads) * shape.head_dim);
    let mut out = qkv.to_vec();
    for_each_position(group, |index, position| {
        let (cos, sin) = rotary.at(position);
        for head in out[index * row..index * row + turned].chunks_exact_mut(shape.head_dim) {
            rotate(head, cos, sin);
        }
    });
    out
}

/// The rows that the last of a sequence's first `own` tokens attends to, as up to two runs `(first row, count)` within the group.
fn visible(group: &PackedGroup, sequence: &PackedSequence, own: usize, window: usize) -> [(usize, usize); 2] {
    let (start, len) = sequence
        .prefix
        .map_or((0, 0), |prefix| (prefix.start - group.start, prefix.len));
    let (of_prefix, of_own) = beyond_window(len, own, window);
    [
        (start + of_prefix, len - of_prefix),
        (sequence.start - group.start + of_own, own - of_own),
    ]
}

/// Of a run of `first` tokens and one of `second` after it: how many of each the last token no longer sees.
#[inline(always)]
pub(crate) fn beyond_window(first: usize, second: usize, window: usize) -> (usize, usize) {
    let skipped = (first + second).saturating_sub(window);
    let of_first = skipped.min(first);
    (of_first, skipped - of_first)
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn forward_group(out: &mut [f32], qkv: &[f32], group: &PackedGroup, shape: AttentionShape, rotary: &RotaryTable) {
    let (row, width, dim) = (shape.row(), shape.out(), shape.head_dim);
    let qkv = rotated(qkv, group, shape, rotary);
    let mut scores = Vec::new();
    for sequence in &group.sequences {
        for offset in 0..sequence.len {
            let index = sequence.start - group.start + offset;
            let runs = visible(group, sequence, offset + 1, shape.window);
            for head in 0..shape.num_heads {
                let kv_head = head * shape.num_kv_heads / shape.num_heads;
                let query = &qkv[index * row + head * dim..][..dim];
                let run = |(first, count): (usize, usize)| {
                    let base = first * row;
                    (
                        &qkv[(base + shape.key(kv_head)).min(qkv.len())..],
                        &qkv[(base + shape.value(kv_head)).min(qkv.len())..],
                        count,
                    )
                };
                let out = &mut out[index * width + head * dim..][..dim];
                attend_row(out, query, runs.map(run), row, &mut scores);
            }
        }
    }
}

/// With p = softmax(q·kᵀ s): dv_j += p_j do; dp_j = do·v_j; ds_j = p_j (dp_j - Σ p dp) s; dq += ds_j k_j; dk_j += ds_j q.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma"))]
fn backward_group(
    out: &mut [f32],
    qkv: &[f32],
    grad: &[f32],
    group: &PackedGroup,
    shape: AttentionShape,
    rotary: &RotaryTable,
) {
    let (row, width, dim) = (shape.row(), shape.out(), shape.head_dim);
    let qkv = rotated(qkv, group, shape, rotary);
    let (mut weights, mut dweights) = (Vec::new(), Vec::new());
    for sequence in &group.sequences {
        for offset in 0..sequence.len {
            let index = sequence.start - group.start + offset;
            let runs = visible(group, sequence, offset + 1, shape.window);
            for head in 0..shape.num_heads {
                let kv_head = head * shape.num_kv_heads / shape.num_heads;
                let query = &qkv[index * row + head * dim..][..dim];
                let grad = &grad[index * width + head * dim..][..dim];
                weights.clear();
                dweights.clear();
                for (first, count) in runs {
                    for j in first..first + count {
                        weights.push(dot(query, &qkv[j * row + shape.key(kv_head)..][..dim]) * shape.scale());
                        dweights.push(dot(grad, &qkv[j * row + shape.value(kv_head)..][..dim]));
                    }
                }
                softmax(&mut weights);
                let mean = dot(&weights, &dweights);
                let mut next = 0;
                for (first, count) in runs {
                    for j in first..first + count {
                        let dscore = weights[next] * (dweights[next] - mean) * shape.scale();
                        let (key, value) = (j * row + shape.key(kv_head), j * row + shape.value(kv_head));
                        add_scaled(
                            &mut out[index * row + head * dim..][..dim],
                            dscore,
                            &qkv[key..key + dim],
                        );
                        add_scaled(&mut out[key..key + dim], dscore, query);
                        add_scaled(&mut out[value..value + dim], weights[next], grad);
                        next += 1;
                    }
                }
            }
        }
    }
    let turned = (shape.num_heads + shape.num_kv_heads) * dim;
    for_each_position(group, |index, position| {
        let (cos, sin) = rotary.at(position);
        for head in out[index * row..index * row + turned].chunks_exact_mut(dim) {
            rotate_back(head, cos, sin);
        }
    });
}

/// The plain composition: every token of the batch against every other, under a mask.
fn reference(qkv: &Tensor, shape: AttentionShape, packing: &Packing, rotary: &RotaryTable) -> Result<Tensor> {
    let (tokens, device, dim) = (packing.tokens(), qkv.device(), shape.head_dim);
    let mut positions = vec![0; tokens];
    let mut mask = vec![f32::NEG_INFINITY; tokens * tokens];
    for group in packing.groups() {
        for_each_position(group, |index, position| positions[group.start + index] = position);
        for sequence in &group.sequences {
            for offset in 0..sequence.len {
                let query = sequence.start + offset;
                for (first, count) in visible(group, sequence, offset + 1, shape.window) {
                    let first = query * tokens + group.start + first;
                    mask[first..first + count].fill(0.0);
                }
            }
        }
    }
    let mask = Tensor::from_vec(mask, (tokens, tokens), device)?;
    let (cos, sin) = rotary.gather(&positions, device)?;
    let heads = |first: usize, count: usize| {
        qkv.narrow(1, first * dim, count * dim)?
            .reshape((tokens, count, dim))?
            .transpose(0, 1)
    };
    let turn = |x: &Tensor| -> Result<Tensor> {
        let halves = x.chunk(2, D::Minus1)?;
        let low = (halves[0].broadcast_mul(&cos)? - halves[1].broadcast_mul(&sin)?)?;
        let high = (halves[1].broadcast_mul(&cos)? + halves[0].broadcast_mul(&sin)?)?;
        Tensor::cat(&[low, high], D::Minus1)
    };
    let repeat = |x: Tensor| -> Result<Tensor> {
        let groups = shape.num_heads / shape.num_kv_heads;
        x.unsqueeze(1)?
            .broadcast_as((shape.num_kv_heads, groups, tokens, dim))?
            .reshape((shape.num_heads, tokens, dim))
    };
    let query = turn(&heads(0, shape.num_heads)?)?.contiguous()?;
    let key = repeat(turn(&heads(shape.num_heads, shape.num_kv_heads)?)?)?;
    let value = repeat(heads(shape.num_heads + shape.num_kv_heads, shape.num_kv_heads)?)?;
    let scores = (query.matmul(&key.t()?.contiguous()?)? * f64::from(shape.scale()))?.broadcast_add(&mask)?;
    let largest = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&largest)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights
        .matmul(&value.contiguous()?)?
        .transpose(0, 1)?
        .reshape((tokens, shape.out()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{same_value_and_gradient, variable};
    use super::*;

    #[test]
    fn agrees_with_the_plain_composition_on_a_ragged_batch_with_shared_prompts() {
        for window in [usize::MAX, 4, 1] {
            agrees(window);
        }
    }

    #[test]
    fn a_window_ends_where_it_should() {
        assert_eq!(beyond_window(3, 2, usize::MAX), (0, 0));
        assert_eq!(beyond_window(3, 2, 4), (1, 0));
        assert_eq!(beyond_window(3, 2, 1), (3, 1));
    }

    fn agrees(window: usize) {
        let shape = AttentionShape {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 6,
            window,
        };
        let mut packing = Packing::new();
        packing.push_sequence(5);
        packing.push_shared(3, &[2, 4]);
        packing.push_sequence(1);
        let (packing, rotary) = (Arc::new(packing), Arc::new(RotaryTable::new(16, &[1.0, 0.05, 0.002])));
        let qkv = variable(&[packing.tokens(), shape.row()], 5);
        same_value_and_gradient(
            &[&qkv],
            || attention(&qkv, shape, &packing, &rotary),
            || reference(&qkv, shape, &packing, &rotary),
            1e-5,
        );
    }

    #[test]
    fn a_sequence_longer_than_the_table_is_an_error() {
        let shape = AttentionShape {
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 2,
            window: usize::MAX,
        };
        let mut packing = Packing::new();
        packing.push_sequence(5);
        let qkv = variable(&[5, 6], 1);
        let rotary = Arc::new(RotaryTable::new(4, &[1.0]));
        assert!(attention(&qkv, shape, &Arc::new(packing), &rotary).is_err());
    }
}
