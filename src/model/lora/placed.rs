//! An adapter as a decoder on a device computes with it.

use candle_core::{Device, Result, Tensor, bail};

use super::{LoraGroup, LoraModel};
use crate::model::ops::{Backend, with_values};
use crate::model::{DecoderConfig, ModelError, Placement};

/// The update of one fused projection, in the decoder's number format and on its device.
#[derive(Debug, Clone)]
pub(in crate::model) struct PlacedUpdate {
    /// `A [Σ rank, in]`.
    pub a: Tensor,
    /// `scale · B [out, Σ rank]`: each module's in its own rows and columns, zeros elsewhere, so that one product updates all modules.
    pub b: Tensor,
}

impl LoraModel {
    /// The same adapter for a decoder at `placement`. Its own tensors stay on the host where the decoder only serves.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn placed(mut self, decoder: &DecoderConfig, placement: &Placement) -> std::result::Result<Self, ModelError> {
        let scale = self.scale();
        for (&(_, projection), group) in &mut self.groups {
            match placement.backend {
                Backend::Own => {
                    group.a = group.a.to_device(&placement.device)?;
                    group.b = group.b.to_device(&placement.device)?;
                }
                Backend::Candle => {
                    let out = decoder.parts(projection).last().map_or(0, |part| part.rows.end);
                    group.placed = Some(group.place(out, scale, placement)?);
                }
            }
        }
        Ok(self)
    }
}

impl LoraGroup {
    /// What a decoder on a device computes with.
    ///
    /// # Errors
    /// When the adapter was not placed on one.
    pub(in crate::model) fn placed(&self) -> Result<&PlacedUpdate> {
        match &self.placed {
            Some(placed) => Ok(placed),
            None => bail!("an adapter that was not placed on the decoder's device"),
        }
    }

    fn place(&self, out: usize, scale: f32, placement: &Placement) -> Result<PlacedUpdate> {
        let (ranks, _) = self.a.dims2()?;
        let mut spread = vec![0f32; out * ranks];
        with_values(&self.b.to_device(&Device::Cpu)?, |b| {
            for part in &*self.parts {
                let rank = part.rank.len();
                for (row, from) in part.rows.clone().zip(part.b_rows.clone()) {
                    let spread = &mut spread[row * ranks + part.rank.start..][..rank];
                    for (spread, b) in spread.iter_mut().zip(&b[from * rank..]) {
                        *spread = b * scale;
                    }
                }
            }
            Ok(())
        })?;
        let place = |tensor: Tensor| tensor.to_device(&placement.device)?.to_dtype(placement.dtype);
        Ok(PlacedUpdate {
            a: place(self.a.clone())?,
            b: place(Tensor::from_vec(spread, (out, ranks), &Device::Cpu)?)?,
        })
    }
}
