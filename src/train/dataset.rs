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

/// The examples of a file, read a line at a time; blank lines are skipped. A malformed line is an error that names it.
pub struct Examples {
    path: String,
    lines: std::io::Lines<std::io::BufReader<std::fs::File>>,
    /// Of the last line read, counted from 1.
    line: usize,
}

impl Examples {
    /// Opens a file.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let file = std::fs::File::open(path).map_err(TrainError::io(path))?;
        Ok(Self {
            path: path.display().to_string(),
            lines: std::io::BufReader::new(file).lines(),
            line: 0,
        })
    }
}

impl Iterator for Examples {
    type Item = Result<Example, TrainError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.lines.next()?;
            self.line += 1;
            let parsed = match line {
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => Example::parse(&line),
                Err(error) => Err(error.to_string()),
            };
            return Some(parsed.map_err(|reason| TrainError::Dataset {
                path: self.path.clone(),
                line: self.line,
                reason,
            }));
        }
    }
}

/// Reads a whole dataset.
///
/// # Errors
/// Names the first malformed line.
pub fn read(path: &Path) -> Result<Vec<Example>, TrainError> {
    Examples::open(path)?.collect()
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

    #[test]
    fn lines_are_counted_as_an_editor_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        let good = r#"{"toxic":"a","neutral":["b"]}"#;
        std::fs::write(&path, format!("{good}\n\n{good}\r\n{{\"toxic\": 3}}\n{good}")).unwrap();
        let mut examples = Examples::open(&path).unwrap();
        assert!(examples.next().unwrap().is_ok() && examples.next().unwrap().is_ok());
        let error = examples.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("data.jsonl, line 4: expected"), "{error}");
        assert!(examples.next().unwrap().is_ok() && examples.next().is_none());
        assert!(read(&path).is_err());
    }
}
