//! A projection with a different low-rank update for each span of rows: many adapters in one batch, for serving.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::super::layers::Weight;
use super::lora_linear::reference;
use super::{LoraPart, linear, low_rank, with_values};

/// A low-rank update of some rows of a batch.
pub struct LowRankUpdate<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Stacked `A [Σ rank, in]`.
    pub a: &'a Tensor,
    /// Stacked `B [Σ rows, rank]`.
    pub b: &'a Tensor,
    /// Both as serving reads them, where that is at hand.
    pub(crate) packed: Option<&'a PackedUpdate>,
    /// What each part updates.
    pub parts: &'a [LoraPart],
    /// Factor on the update.
    pub scale: f32,
}

impl LowRankUpdate<'_> {
    /// `x · Aᵀ` of its rows of the input.
    fn gather(&self, x: &[f32], in_size: usize) -> Result<Hidden<'_>> {
        let (ranks, a_in) = self.a.dims2()?;
        if a_in != in_size {
            bail!("an adapter of {a_in} values got {in_size}")
        }
        let packed = match self.packed {
            Some(packed) => Cow::Borrowed(packed),
            None => Cow::Owned(PackedUpdate::new(self.a, self.b, self.parts)?),
        };
        let mut values = vec![0f32; self.rows.len() * ranks];
        low_rank::gather(x, &packed.a, in_size, ranks, &mut values);
        Ok(Hidden { values, ranks, packed })
    }

    /// Adds the update to its rows of the result `[rows, out]`.
    fn spread(&self, hidden: &Hidden<'_>, out: &mut [f32]) {
        let out_width = out.len() / self.rows.len().max(1);
        for part in self.parts {
            let rank = part.rank.len();
            let spread = low_rank::Spread {
                hidden: &hidden.values,
                ranks: hidden.ranks,
                first: part.rank.start,
                b: &hidden.packed.b[part.b_rows.start * rank..part.b_rows.end * rank],
                rank,
                scale: self.scale,
            };
            spread.add_to(out, out_width, part.rows.start);
        }
    }

    /// The same for a part of the batch, whose first row becomes row 0; `None` when it has no row there.
    pub(super) fn within(&self, batch: Range<usize>) -> Option<Self> {
        let (start, end) = (self.rows.start.max(batch.start), self.rows.end.min(batch.end));
        (start < end).then(|| Self {
            rows: start - batch.start..end - batch.start,
            ..*self
        })
    }
}

/// `x · Wᵀ` with a different low-rank update for each span of rows; for serving, not differentiable. On the CPU a row's result does not
/// depend on the other rows, to the bit, but for weights in blocks.
///
/// # Errors
/// When the shapes do not fit.
pub fn mixed_linear(x: &Tensor, weight: &Arc<Weight>, updates: &[LowRankUpdate<'_>]) -> Result<Tensor> {
    let (tokens, in_size) = x.dims2()?;
    let (out_size, _) = weight.shape();
    if !x.device().is_cpu() {
        let mut rows = Vec::new();
        let mut next = 0;
        for update in updates {
            rows.push(linear(&x.narrow(0, next, update.rows.start - next)?, weight)?);
            let x = x.narrow(0, update.rows.start, update.rows.len())?;
            rows.push(reference(
                &x,
                weight,
                update.a,
                update.b,
                update.parts,
                update.scale,
                None,
            )?);
            next = update.rows.end;
        }
        rows.push(linear(&x.narrow(0, next, tokens - next)?, weight)?);
        rows.retain(|part| part.elem_count() > 0);
        return Tensor::cat(&rows, 0);
    }
    let mut out = vec![0f32; tokens * out_size];
    let mut hidden: Vec<Result<Hidden<'_>>> = Vec::new();
    with_values(x, |x| {
        let mut project = || match &**weight {
            Weight::Dense(weight) => with_values(weight, |weight| {
                low_rank::project(x, weight, tokens, out_size, in_size, &mut out);
                Ok(())
            }),
            weight => weight.project(x, tokens, &mut out),
        };
        let gather = || {
            hidden = updates
                .iter()
                .map(|update| update.gather(&x[update.rows.start * in_size..update.rows.end * in_size], in_size))
                .collect();
        };
        // Beside each other: were one thread to gather alone, the others would fall asleep before every product.
        if updates.is_empty() {
            project()?;
        } else {
            rayon::join(project, gather).0?;
        }
        for (update, hidden) in updates.iter().zip(hidden) {
            update.spread(
                &hidden?,
                &mut out[update.rows.start * out_size..update.rows.end * out_size],
            );
        }
        Ok(())
    })?;
    Tensor::from_vec(out, (tokens, out_size), x.device())
}

/// `x · Aᵀ` of an update, and what is to be done with it.
struct Hidden<'a> {
    /// `[rows, Σ rank]`.
    values: Vec<f32>,
    ranks: usize,
    packed: Cow<'a, PackedUpdate>,
}

/// The matrices of an update in the order in which serving reads them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PackedUpdate {
    a: Vec<[f32; low_rank::LANES]>,
    /// Each part's rows in the place where the part has them.
    b: Vec<f32>,
}

impl PackedUpdate {
    /// From stacked `A [Σ rank, in]` and `B [Σ rows, rank]`.
    ///
    /// # Errors
    /// When they are not on the CPU.
    pub(crate) fn new(a: &Tensor, b: &Tensor, parts: &[LoraPart]) -> Result<Self> {
        let (ranks, _) = a.dims2()?;
        let mut packed = Self {
            a: Vec::new(),
            b: Vec::new(),
        };
        with_values(a, |a| {
            low_rank::pack_a(a, ranks, &mut packed.a);
            Ok(())
        })?;
        with_values(b, |b| {
            for part in parts {
                let rank = part.rank.len();
                low_rank::pack_b(
                    &b[part.b_rows.start * rank..part.b_rows.end * rank],
                    rank,
                    &mut packed.b,
                );
            }
            Ok(())
        })?;
        Ok(packed)
    }
}
