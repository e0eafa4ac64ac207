//! A sentence-embedding model as judge of meaning.

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, Tensor};
use rayon::ThreadPool;
use serde::Deserialize;
use serde_json::Value;

use super::config::EncoderConfig;
use super::text::json;
use super::weights::Weights;
use super::{Encoder, EncoderError};
use crate::scoring::judge::Similarity;

/// A sentence-embedding model of a folder in sentence-transformers' layout.
pub struct Embedder {
    encoder: Encoder,
    pooling: Pooling,
    normalises: bool,
}

/// How a text's hidden states become its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// That of the first token.
    First,
    /// Their mean over the text's tokens.
    Mean,
}

/// A line of `modules.json`.
#[derive(Deserialize)]
struct ModuleEntry {
    path: String,
    /// A Python class, whose last word tells.
    #[serde(rename = "type")]
    class: String,
}

impl Embedder {
    /// Opens a folder. Without a `modules.json` the embedding is the mean over the tokens, as in sentence-transformers.
    ///
    /// # Errors
    /// With the file, the setting or the tensor that is wrong.
    pub fn open(folder: &Path, threads: Arc<ThreadPool>) -> Result<Self, EncoderError> {
        let config = EncoderConfig::open(folder)?;
        let (pooling, normalises) = modules(folder)?;
        let weights = Weights::open(folder)?;
        let embedder = Self {
            encoder: Encoder::open(folder, &config, &weights, threads)?,
            pooling,
            normalises,
        };
        let tried = embedder.embed(&["Is this computed?"])?;
        match tried.concat().iter().all(|value| value.is_finite()) {
            true => Ok(embedder),
            false => Err(EncoderError::NotFinite),
        }
    }

    /// The embedding of each text.
    ///
    /// # Errors
    /// When a computation fails.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncoderError> {
        self.encoder.run(texts, |hidden, mask| {
            let pooled = self.pooling.of(hidden, mask)?;
            if !self.normalises {
                return Ok(pooled);
            }
            let norm = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
            pooled.broadcast_div(&norm.maximum(1e-12)?)
        })
    }
}

impl Similarity for Embedder {
    fn score(&self, source: &str, rewrite: &str) -> f32 {
        self.scores(source, &[rewrite]).first().copied().unwrap_or(f32::NAN)
    }

    /// Cosines, those below 0 as 0.
    fn scores(&self, source: &str, rewrites: &[&str]) -> Vec<f32> {
        let mut texts = vec![source];
        texts.extend(rewrites);
        match self.embed(&texts) {
            Ok(embeddings) => embeddings[1..]
                .iter()
                .map(|rewrite| cosine(&embeddings[0], rewrite).max(0.0))
                .collect(),
            Err(error) => {
                tracing::error!(%error, "the similarity model failed");
                vec![f32::NAN; rewrites.len()]
            }
        }
    }

    fn is_slow(&self) -> bool {
        true
    }
}

impl Pooling {
    fn of(self, hidden: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::First => hidden.narrow(1, 0, 1)?.squeeze(1),
            Self::Mean => {
                let mask = mask.unsqueeze(D::Minus1)?;
                let sum = hidden.broadcast_mul(&mask)?.sum(1)?;
                sum.broadcast_div(&mask.sum(1)?)
            }
        }
    }

    /// From `1_Pooling/config.json`, in either of the forms that sentence-transformers has written.
    fn read(path: &Path) -> Result<Self, EncoderError> {
        let config: Value = json(path)?.ok_or_else(|| EncoderError::file(path, "there is no such file"))?;
        let modes: Vec<&str> = match &config["pooling_mode"] {
            Value::String(mode) => vec![mode],
            Value::Array(modes) => modes.iter().filter_map(Value::as_str).collect(),
            _ => {
                let set = config
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(_, value)| **value == true);
                set.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect()
            }
        };
        match modes.as_slice() {
            ["cls" | "cls_token"] => Ok(Self::First),
            ["mean" | "mean_tokens"] => Ok(Self::Mean),
            other => Err(EncoderError::Unsupported {
                setting: "pooling_mode",
                value: other.join(" and "),
                supported: "cls and mean are computed",
            }),
        }
    }
}

/// Pooling, and whether the embedding is normalised.
fn modules(folder: &Path) -> Result<(Pooling, bool), EncoderError> {
    let prompts: Option<Value> = json(&folder.join("config_sentence_transformers.json"))?;
    if let Some(prompt) = prompts
        .as_ref()
        .and_then(|config| config["default_prompt_name"].as_str())
    {
        return Err(EncoderError::Unsupported {
            setting: "default_prompt_name",
            value: prompt.to_owned(),
            supported: "texts are embedded as they are, without a prompt",
        });
    }
    let (mut pooling, mut normalises) = (Pooling::Mean, false);
    let modules: Vec<ModuleEntry> = json(&folder.join("modules.json"))?.unwrap_or_default();
    for module in modules {
        match module.class.rsplit('.').next().unwrap_or_default() {
            "Transformer" if module.path.is_empty() => {}
            "Pooling" => pooling = Pooling::read(&folder.join(&module.path).join("config.json"))?,
            "Normalize" => normalises = true,
            _ => {
                return Err(EncoderError::Unsupported {
                    setting: "modules.json",
                    value: module.class,
                    supported: "a Transformer in the folder itself, Pooling and Normalize are computed",
                });
            }
        }
    }
    Ok((pooling, normalises))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_pooling_are_read_and_others_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Pooling::read(&path)
        };
        let old =
            r#"{"word_embedding_dimension": 8, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        assert_eq!(read(old).unwrap(), Pooling::First);
        assert_eq!(
            read(r#"{"pooling_mode": "mean", "include_prompt": true}"#).unwrap(),
            Pooling::Mean
        );
        for other in [
            r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#,
            r#"{"pooling_mode": "lasttoken"}"#,
        ] {
            let error = read(other).unwrap_err().to_string();
            assert!(error.contains("tokens") || error.contains("lasttoken"), "{error}");
        }
    }

    #[test]
    fn cosines() {
        assert!((cosine(&[3.0, 4.0], &[4.0, 3.0]) - 0.96).abs() < 1e-6);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
