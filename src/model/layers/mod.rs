//! What a block of the decoder is made of.

mod activation;
mod embedding;
mod linear;
mod norm;
mod weight;

pub use activation::activate;
pub use embedding::Embedding;
pub use linear::{Adaptation, Linear, LoraSpan, Projection};
pub use norm::Norm;
pub use weight::Weight;
