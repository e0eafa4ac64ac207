//! A sequence classifier as judge of toxicity.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::{Linear, Module};
use rayon::ThreadPool;

use super::config::{Activation, EncoderConfig, Family};
use super::labels::Verdict;
use super::occlusion::occlusion;
use super::weights::Weights;
use super::{Encoder, EncoderError};
use crate::scoring::judge::Toxicity;

/// A classifier of a folder in Hugging Face layout.
pub struct Classifier {
    encoder: Encoder,
    head: Head,
    verdict: Verdict,
}

/// From the first token's hidden state to logits.
struct Head {
    hidden: Linear,
    nonlinearity: Nonlinearity,
    output: Linear,
}

enum Nonlinearity {
    Tanh,
    Of(Activation),
}

impl Classifier {
    /// Opens a folder; `label` names the labels that mean toxic, with commas between, where their names don't say so.
    ///
    /// # Errors
    /// With the file, the setting, the tensor or the label that is wrong.
    pub fn open(folder: &Path, label: Option<&str>, threads: Arc<ThreadPool>) -> Result<Self, EncoderError> {
        let config = EncoderConfig::open(folder)?;
        let verdict = Verdict::new(&config, label)?;
        let weights = Weights::open(folder)?;
        let classifier = Self {
            head: Head::load(&config, &weights)?,
            encoder: Encoder::open(folder, &config, &weights, threads)?,
            verdict,
        };
        let tried = classifier.logits(&["Is this computed?"])?;
        match tried.concat().iter().all(|logit| logit.is_finite()) {
            true => Ok(classifier),
            false => Err(EncoderError::NotFinite),
        }
    }

    /// The logits of each text, one a label.
    ///
    /// # Errors
    /// When a computation fails.
    pub fn logits(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncoderError> {
        self.encoder.run(texts, |hidden, _| self.head.forward(hidden))
    }

    /// Log odds of each text being toxic; where they can't be computed, not a number.
    fn log_odds(&self, texts: &[&str]) -> Vec<f32> {
        match self.logits(texts) {
            Ok(logits) => logits.iter().map(|logits| self.verdict.log_odds(logits)).collect(),
            Err(error) => {
                tracing::error!(%error, "the toxicity model failed");
                vec![f32::NAN; texts.len()]
            }
        }
    }
}

impl Toxicity for Classifier {
    fn score(&self, text: &str) -> f32 {
        self.scores(&[text]).first().copied().unwrap_or(f32::NAN)
    }

    fn scores(&self, texts: &[&str]) -> Vec<f32> {
        self.log_odds(texts)
            .iter()
            .map(|odds| 1.0 / (1.0 + (-odds).exp()))
            .collect()
    }

    fn attributions(&self, text: &str) -> Vec<(Range<usize>, f32)> {
        occlusion(text, |texts| self.log_odds(texts))
    }

    fn is_slow(&self) -> bool {
        true
    }
}

impl Head {
    fn load(config: &EncoderConfig, weights: &Weights) -> Result<Self, EncoderError> {
        let (width, labels) = (config.hidden_size, config.labels.len());
        let pooler = format!("{}pooler.dense", weights.prefix("bert"));
        let (hidden, nonlinearity, output) = match config.family {
            Family::Bert => (pooler.as_str(), Nonlinearity::Tanh, "classifier"),
            Family::Roberta => ("classifier.dense", Nonlinearity::Tanh, "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier", Nonlinearity::Of(Activation::Relu), "classifier"),
            Family::DebertaV2 => ("pooler.dense", Nonlinearity::Of(config.pooler_activation), "classifier"),
        };
        Ok(Self {
            hidden: weights.linear(hidden, width, width)?,
            nonlinearity,
            output: weights.linear(output, width, labels)?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let first = hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        let hidden = self.hidden.forward(&first)?;
        let hidden = match self.nonlinearity {
            Nonlinearity::Tanh => hidden.tanh(),
            Nonlinearity::Of(Activation::Gelu) => hidden.gelu_erf(),
            Nonlinearity::Of(Activation::GeluApproximate) => hidden.gelu(),
            Nonlinearity::Of(Activation::Relu) => hidden.relu(),
        }?;
        self.output.forward(&hidden)
    }
}
