//! Datasets: JSON lines, one anchor with its positives and negatives each.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::TrainError;

/// One anchor: a text, rewrites of it to be made likelier, and texts to be made less likely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The anchor; for a rewriter the toxic source.
    pub anchor: String,
    /// Positives: non-toxic paraphrases.
    pub positives: Vec<String>,
    /// Hard negatives: toxic paraphrases, or paraphrases that lose the meaning.
    pub negatives: Vec<String>,
}

/// The shapes a line may have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Anchor {
        anchor: String,
        positives: Vec<String>,
        #[serde(default)]
        negatives: Vec<String>,
    },
    /// As ParaDetox publishes its pairs: the toxic text itself is the negative.
    Parallel { toxic: String, neutral: Vec<String> },
    /// As the authors of contrastive perplexity publish theirs.
    Paraphrases {
        input: String,
        paraphrases: Vec<String>,
        paraphrases_toxic: Vec<String>,
    },
}

impl Example {
    /// Reads one line in any of the three shapes.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn parse(line: &str) -> Result<Self, String> {
        let json: serde_json::Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let line = Line::deserialize(json).map_err(|_| {
            "expected {\"anchor\", \"positives\", \"negatives\"}, {\"toxic\", \"neutral\"} or {\"input\", \"paraphrases\", \
             \"paraphrases_toxic\"}, texts as strings and lists of strings"
                .to_owned()
        })?;
        let mut example = match line {
            Line::Anchor {
                anchor,
                positives,
                negatives,
            } => Self {
                anchor,
                positives,
                negatives,
            },
            Line::Parallel { toxic, neutral } => Self {
                anchor: toxic.clone(),
                positives: neutral,
                negatives: vec![toxic],
            },
            Line::Paraphrases {
                input,
                paraphrases,
                paraphrases_toxic,
            } => Self {
                anchor: input,
                positives: paraphrases,
                negatives: paraphrases_toxic,
            },
        };
        example.positives.retain(|text| !text.trim().is_empty());
        example.negatives.retain(|text| !text.trim().is_empty());
        if example.anchor.trim().is_empty() {
            return Err("the anchor is empty".to_owned());
        }
        if example.positives.is_empty() {
            return Err("no positive text".to_owned());
        }
        Ok(example)
    }
}

/// Reads a dataset; blank lines are skipped.
///
/// # Errors
/// Names the first malformed line.
pub fn read(path: &Path) -> Result<Vec<Example>, TrainError> {
    let file = std::fs::File::open(path).map_err(TrainError::io(path))?;
    let mut examples = Vec::new();
    for (index, line) in std::io::BufReader::new(file).lines().enumerate() {
        let malformed = |reason: String| TrainError::Dataset {
            path: path.display().to_string(),
            line: index + 1,
            reason,
        };
        let line = line.map_err(|error| malformed(error.to_string()))?;
        if !line.trim().is_empty() {
            examples.push(Example::parse(&line).map_err(malformed)?);
        }
    }
    Ok(examples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_shapes_mean_the_same() {
        let anchor = Example::parse(r#"{"anchor":"a","positives":["b"],"negatives":["a"]}"#).unwrap();
        assert_eq!(
            Example::parse(r#"{"toxic":"a","neutral":["b"],"source":"x"}"#).unwrap(),
            anchor
        );
        let published = r#"{"input":"a","paraphrases":["b",""],"paraphrases_toxic":["a"]}"#;
        assert_eq!(Example::parse(published).unwrap(), anchor);
    }

    #[test]
    fn a_malformed_line_says_what_is_wrong() {
        assert!(Example::parse("{").is_err());
        assert!(Example::parse(r#"{"text":"a"}"#).unwrap_err().contains("anchor"));
        assert_eq!(
            Example::parse(r#"{"anchor":" ","positives":["b"]}"#).unwrap_err(),
            "the anchor is empty"
        );
        assert_eq!(
            Example::parse(r#"{"anchor":"a","positives":[" "]}"#).unwrap_err(),
            "no positive text"
        );
    }
}
