//! Judges that are transformer encoders: BERT, RoBERTa, XLM-RoBERTa, DistilBERT and DeBERTa-v2/v3 in Hugging Face layout.
//!
//! - [`classifier`]: a sequence classifier as judge of toxicity; `labels` says which of its labels mean toxic, `occlusion` which words.
//! - [`embedder`]: a sentence-embedding model as judge of meaning.
//! - `config`, `weights`, `text`, `network`: what `config.json` says, the tensors, text to padded ids, and candle-transformers' models
//!   behind one forward pass.
//!
//! A text that is longer than a model's positions is cut there, as transformers does: what comes later has no say. Everything is
//! computed on the CPU in single precision, in batches of texts of about the same length, on threads of its own: the engine's are busy with
//! rewriting.
//!
//! Probabilities are the model's own: nothing calibrates them.

pub mod classifier;
mod config;
pub mod embedder;
mod labels;
mod network;
mod occlusion;
mod text;
mod weights;

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::ThreadPool;
use rayon::prelude::*;

pub use classifier::Classifier;
pub use embedder::Embedder;

use config::EncoderConfig;
use network::Network;
use text::Tokeniser;
use weights::Weights;

/// Tokens of a batch, padding included: enough to keep the matrix products busy, few enough for the attention of the longest texts.
const BATCH_TOKENS: usize = 2048;

/// Why an encoder can't be used. Every message names the file, the setting or the tensor.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A file is missing, unreadable or malformed.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting asks for what is not computed here.
    #[error("`{setting}` is {value}: {supported}")]
    Unsupported {
        /// The file's key.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What is computed.
        supported: &'static str,
    },
    /// A tensor is missing or has another shape.
    #[error("the weights do not fit config.json: {0}")]
    Weights(String),
    /// It is not known which labels mean toxic.
    #[error("{0}")]
    Labels(String),
    /// It gives values that are not numbers.
    #[error("it gives values that are not finite")]
    NotFinite,
    /// A computation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl EncoderError {
    fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File {
            path: path.display().to_string(),
            reason: reason.to_string(),
        }
    }
}

/// A transformer that reads texts, without what is made of its hidden states.
struct Encoder {
    network: Network,
    tokeniser: Tokeniser,
    threads: Arc<ThreadPool>,
}

/// Texts of about the same length, padded at their ends: ids and mask are [texts, tokens], the mask 1 where there is a token.
struct Batch {
    ids: Tensor,
    mask: Tensor,
}

impl Encoder {
    fn open(
        folder: &Path,
        config: &EncoderConfig,
        weights: &Weights,
        threads: Arc<ThreadPool>,
    ) -> Result<Self, EncoderError> {
        Ok(Self {
            tokeniser: Tokeniser::open(folder, config)?,
            network: Network::load(config, weights)?,
            threads,
        })
    }

    /// What `read` makes of each text's hidden states: from [texts, tokens, hidden] and the mask to [texts, values].
    fn run(
        &self,
        texts: &[&str],
        read: impl Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor> + Sync,
    ) -> Result<Vec<Vec<f32>>, EncoderError> {
        self.threads.install(|| {
            let sequences = self.tokeniser.encode(texts)?;
            let batches = batches(&sequences);
            let of_batches: Vec<Vec<Vec<f32>>> = batches
                .par_iter()
                .map(|members| {
                    let batch = self.pad(members, &sequences)?;
                    let hidden = self.network.forward(&batch)?;
                    Ok(read(&hidden, &batch.mask)?.to_vec2()?)
                })
                .collect::<Result<_, EncoderError>>()?;
            let mut values = vec![Vec::new(); texts.len()];
            for (members, of_batch) in batches.iter().zip(of_batches) {
                for (&member, of_text) in members.iter().zip(of_batch) {
                    values[member] = of_text;
                }
            }
            Ok(values)
        })
    }

    fn pad(&self, members: &[usize], sequences: &[Vec<u32>]) -> Result<Batch, EncoderError> {
        let longest = members.iter().map(|&member| sequences[member].len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(members.len() * longest);
        let mut mask = Vec::with_capacity(ids.capacity());
        for &member in members {
            let sequence = &sequences[member];
            let padding = longest - sequence.len();
            ids.extend_from_slice(sequence);
            ids.extend(std::iter::repeat_n(self.tokeniser.padding(), padding));
            mask.extend(std::iter::repeat_n(1f32, sequence.len()));
            mask.extend(std::iter::repeat_n(0f32, padding));
        }
        let shape = (members.len(), longest);
        Ok(Batch {
            ids: Tensor::from_vec(ids, shape, &Device::Cpu)?,
            mask: Tensor::from_vec(mask, shape, &Device::Cpu)?,
        })
    }
}

/// Which sequences go together: the shortest first, as many as fit.
fn batches(sequences: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&index| sequences[index].len());
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        // The longest of a batch is the last one.
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * sequences[index].len() <= BATCH_TOKENS => batch.push(index),
            _ => batches.push(vec![index]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_text_once_and_no_more_tokens_than_they_should() {
        let sequences: Vec<Vec<u32>> = (0..300).map(|n| vec![1; n * 37 % 257]).collect();
        let batches = batches(&sequences);
        let mut members: Vec<usize> = batches.concat();
        members.sort_unstable();
        assert_eq!(members, (0..300).collect::<Vec<_>>());
        let padded = |batch: &Vec<usize>| batch.len() * batch.iter().map(|&n| sequences[n].len()).max().unwrap();
        assert!(batches.iter().all(|batch| padded(batch) <= BATCH_TOKENS));
        assert!(batches.len() < 30, "{}", batches.len());
    }
}
