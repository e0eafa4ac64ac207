//! What is asked for and what is kept: a file that its user may change.

use std::path::Path;

use serde::Deserialize;

/// The file that is in the binary.
pub const DEFAULT: &str = include_str!("../../assets/paraphrases.toml");

/// Where the sentence goes in a prompt.
const TEXT: &str = "{text}";

/// Prompts, and how their answers are chosen from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// Stands above each prompt.
    pub system: Option<String>,
    /// How answers are drawn.
    pub sampling: AnswerSampling,
    /// Which sentences are taken.
    #[serde(default)]
    pub anchors: Anchors,
    /// Texts that mean the same and are not toxic.
    pub positives: Side,
    /// Texts that mean the same and are toxic.
    pub negatives: Side,
    /// More fields of a request to a URL.
    #[serde(default)]
    pub request: toml::Table,
}

/// How answers are drawn.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerSampling {
    /// Logits are divided by it.
    pub temperature: f32,
    /// Share of the probability that is drawn from.
    #[serde(default = "one")]
    pub top_p: f32,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

/// Which sentences are taken.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchors {
    /// Most toxicity of a sentence.
    pub max_toxicity: f32,
}

impl Default for Anchors {
    fn default() -> Self {
        Self { max_toxicity: one() }
    }
}

/// One side of the sets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// With `{text}` in it.
    pub prompt: String,
    /// How often is asked; 0 leaves the side out.
    pub answers: usize,
    /// Most texts in a set.
    pub keep: usize,
    /// Least toxicity of a text.
    #[serde(default)]
    pub min_toxicity: f32,
    /// Most toxicity of a text.
    #[serde(default = "one")]
    pub max_toxicity: f32,
    /// Least similarity of a text to the sentence.
    #[serde(default)]
    pub min_similarity: f32,
}

fn one() -> f32 {
    1.0
}

/// Why a file of prompts can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// It can't be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML of the right shape.
    #[error("the prompts can't be read: {0}")]
    Shape(#[from] toml::de::Error),
    /// A value is out of range.
    #[error("the prompts: {0}")]
    Value(String),
}

impl Prompts {
    /// Those in the binary.
    ///
    /// # Errors
    /// Never in a released binary: a test reads them.
    pub fn embedded() -> Result<Self, PromptsError> {
        Self::parse(DEFAULT)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read or is wrong; with the place or the name of the setting.
    pub fn from_file(path: &Path) -> Result<Self, PromptsError> {
        let text = std::fs::read_to_string(path).map_err(|source| PromptsError::Io {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// As [`Prompts::from_file`].
    pub fn parse(text: &str) -> Result<Self, PromptsError> {
        let prompts: Self = toml::from_str(text)?;
        let wrong = |what: String| Err(PromptsError::Value(what));
        let AnswerSampling {
            temperature,
            top_p,
            max_tokens,
        } = prompts.sampling;
        let drawable = (0.0..=10.0).contains(&temperature) && top_p > 0.0 && top_p <= 1.0;
        if !drawable || max_tokens == 0 {
            return wrong(
                "sampling wants temperature 0 to 10, top_p above 0 up to 1, max_tokens of at least 1".to_owned(),
            );
        }
        for (name, side) in [("positives", &prompts.positives), ("negatives", &prompts.negatives)] {
            if !side.prompt.contains(TEXT) {
                return wrong(format!("{name}.prompt has no {TEXT} in it"));
            }
            if side.answers > 0 && side.keep == 0 {
                return wrong(format!("{name}.keep must be at least 1"));
            }
            if side.answers > 1000 {
                return wrong(format!("{name}.answers must be at most 1000"));
            }
            let bounds = [side.min_toxicity, side.max_toxicity, side.min_similarity];
            if bounds.iter().any(|bound| !(0.0..=1.0).contains(bound)) || side.min_toxicity > side.max_toxicity {
                return wrong(format!("{name}: toxicity and similarity lie between 0 and 1"));
            }
        }
        if prompts.positives.answers == 0 {
            return wrong("positives.answers must be at least 1: without a positive there is no set".to_owned());
        }
        for field in ["messages", "model", "n", "stream"] {
            if prompts.request.contains_key(field) {
                return wrong(format!("request.{field} is set by this program"));
            }
        }
        Ok(prompts)
    }
}

impl Side {
    /// The prompt for a sentence.
    pub fn prompt(&self, text: &str) -> String {
        self.prompt.replace(TEXT, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_prompts_are_the_papers() {
        let prompts = Prompts::embedded().unwrap();
        assert_eq!(
            prompts.positives.prompt("It rains."),
            "Paraphrase the following sentences: It rains."
        );
        assert!(prompts.negatives.prompt("It rains.").contains("in a very toxic way"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (from, to, says) in [
            ("sentences: {text}", "sentences:", "positives.prompt"),
            ("keep = 5", "keep = 0", "positives.keep"),
            ("max_toxicity = 0.3", "max_toxicity = 3.0", "positives"),
            ("max_tokens = 150", "max_token = 150", "max_token"),
            ("# top_k = 25", "model = \"x\"", "request.model"),
            ("temperature = 1.0", "temperature = -1.0", "temperature"),
        ] {
            let error = Prompts::parse(&DEFAULT.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
