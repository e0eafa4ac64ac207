//! Adapters of a batch on a device: each over all rows, with a factor for each row that is zero where a row is not its.
//!
//! Two products and a sum for each adapter in the batch, however many spans of rows it has: a rank-16 update of all rows costs about a hundredth of the
//! projection itself, while every span of its own would cost as many launches.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::super::lora::LoraModel;
use super::{Adaptation, Projection};

/// An adapter, and how strong it is in each row of a batch.
#[derive(Debug)]
pub struct ByRow<'a> {
    adapter: &'a LoraModel,
    strength: Strength,
}

#[derive(Debug)]
enum Strength {
    /// In every row.
    Same(f32),
    /// `[rows, 1]`
    Each(Tensor),
}

impl<'a> ByRow<'a> {
    /// The adapters of a batch of `rows` rows.
    ///
    /// # Errors
    /// When a span lies outside the batch, or this is a training step.
    pub(crate) fn of(adaptation: Adaptation<'a>, rows: usize, device: &Device, dtype: DType) -> Result<Vec<Self>> {
        let spans = match adaptation {
            Adaptation::Base => return Ok(Vec::new()),
            Adaptation::Lora(adapter) => {
                let strength = Strength::Same(1.0);
                return Ok(vec![Self { adapter, strength }]);
            }
            Adaptation::Mixed(spans) => spans,
            Adaptation::Training(..) | Adaptation::ByRow(_) => bail!("a decoder that only serves is not trained"),
        };
        let mut adapters: Vec<(&LoraModel, Vec<f32>)> = Vec::new();
        for span in spans {
            let at = match adapters
                .iter()
                .position(|(known, _)| std::ptr::eq(*known, &*span.adapter))
            {
                Some(at) => at,
                None => {
                    adapters.push((&span.adapter, vec![0.0; rows]));
                    adapters.len() - 1
                }
            };
            match adapters[at].1.get_mut(span.rows.clone()) {
                Some(own) => own.fill(span.strength),
                None => bail!("rows {:?} of a batch of {rows}", span.rows),
            }
        }
        let each = |(adapter, strengths): (&'a LoraModel, Vec<f32>)| {
            let strength = match strengths.first() {
                Some(first) if strengths.iter().all(|other| other == first) => Strength::Same(*first),
                _ => Strength::Each(Tensor::from_vec(strengths, (rows, 1), device)?.to_dtype(dtype)?),
            };
            Ok(Self { adapter, strength })
        };
        adapters.into_iter().map(each).collect()
    }

    /// `y [rows, out]` with the update of a projection of `x [rows, in]`, if there is one.
    ///
    /// # Errors
    /// When the adapter was not placed where the decoder is.
    pub(super) fn add_to(&self, y: Tensor, x: &Tensor, layer: usize, projection: Projection) -> Result<Tensor> {
        let Some(group) = self.adapter.group(layer, projection) else {
            return Ok(y);
        };
        let update = group.placed()?;
        let hidden = x.matmul(&update.a.t()?)?;
        let hidden = match &self.strength {
            Strength::Same(1.0) => hidden,
            Strength::Same(strength) => (hidden * f64::from(*strength))?,
            Strength::Each(strengths) => hidden.broadcast_mul(strengths)?,
        };
        y + hidden.matmul(&update.b.t()?)?
    }
}
