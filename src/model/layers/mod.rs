//! What a block of the decoder is made of.

mod embedding;
mod linear;
mod weight;

pub use embedding::Embedding;
pub use linear::{Adaptation, Linear, LoraSpan, Projection};
pub use weight::Weight;
