//! The token embedding.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use super::Weight;

/// Looks up one row of `[vocabulary, hidden]` for each token.
#[derive(Debug, Clone)]
pub enum Embedding {
    /// A dense table.
    Dense(Tensor),
    /// A matrix in blocks, maybe that of the output head, decoded row by row.
    Blocks(Arc<Weight>),
}

impl Embedding {
    /// Token ids to `[tokens, hidden]`.
    ///
    /// # Errors
    /// When a token lies outside the vocabulary.
    pub fn forward(&self, tokens: &[u32], device: &Device) -> Result<Tensor> {
        match self {
            Self::Dense(table) => {
                let ids = Tensor::from_slice(tokens, tokens.len(), device)?;
                table.index_select(&ids, 0)
            }
            Self::Blocks(weight) => {
                let (vocabulary, hidden) = weight.shape();
                let mut rows = vec![0f32; tokens.len() * hidden];
                for (&token, row) in tokens.iter().zip(rows.chunks_mut(hidden)) {
                    if token as usize >= vocabulary {
                        bail!("the token {token} lies outside the vocabulary of {vocabulary}")
                    }
                    weight.decode_row(token as usize, row)?;
                }
                Tensor::from_vec(rows, (tokens.len(), hidden), device)
            }
        }
    }
}
