//! What stands between the two halves of the feed-forward part.

use candle_core::{Result, Tensor};

use super::super::config::ActivationKind;
use super::super::ops;

/// The activation of a kind: of `[tokens, 2 * intermediate]`, gate and up side by side, or of `[tokens, intermediate]` without a gate.
///
/// # Errors
/// When the shape does not fit.
pub fn activate(kind: ActivationKind, x: &Tensor) -> Result<Tensor> {
    match kind {
        ActivationKind::SwiGlu => ops::swiglu(x),
        ActivationKind::Gelu => ops::gelu(x),
    }
}
