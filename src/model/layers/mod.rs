//! What a block of the decoder is made of.

mod by_row;
mod embedding;
mod linear;
mod norm;
mod weight;

pub use by_row::ByRow;
pub use embedding::Embedding;
pub use linear::{Adaptation, Linear, LoraSpan, Projection};
pub use norm::Norm;
pub use weight::Weight;
