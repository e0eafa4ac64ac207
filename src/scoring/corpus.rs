//! Reads the labelled texts a scorer learns from and is measured on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::features::word_hash;
use super::logistic::Random;
use super::normalize::views;

/// A text that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file can't be opened.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line isn't the JSON expected.
    #[error("{path}, line {line}: {source}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// A line of `toxicity/*.jsonl`.
#[derive(Debug, Deserialize)]
pub struct Labelled {
    /// The text.
    pub text: String,
    /// 1 if toxic.
    pub label: u8,
    /// The data set it comes from.
    #[serde(default)]
    pub source: String,
}

/// A line of `detox/*.jsonl`.
#[derive(Debug, Deserialize)]
pub struct Parallel {
    /// The toxic text.
    pub toxic: String,
    /// Rewrites by people.
    pub neutral: Vec<String>,
}

/// The lines of a text file.
pub fn lines(path: &Path) -> Result<Vec<String>, CorpusError> {
    let text = std::fs::read_to_string(path).map_err(|source| CorpusError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect())
}

/// The values of a file with one JSON value a line.
pub fn json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, CorpusError> {
    let parse = |(at, line): (usize, String)| {
        serde_json::from_str(&line).map_err(|source| CorpusError::Line {
            path: path.to_owned(),
            line: at + 1,
            source,
        })
    };
    lines(path)?.into_iter().enumerate().map(parse).collect()
}

/// Where texts go that training must not see: their words in order, whatever the case and punctuation.
#[derive(Default)]
pub struct Held(HashSet<u64>);

impl Held {
    /// Holds a text out.
    pub fn add(&mut self, text: &str) {
        self.0.insert(key(text));
    }

    /// Whether a text with the same words is held out.
    pub fn contains(&self, text: &str) -> bool {
        self.0.contains(&key(text))
    }
}

/// Equal for texts with the same words in the same order.
pub fn key(text: &str) -> u64 {
    views(text)
        .first()
        .map_or(0, |view| word_hash(&view.words().collect::<Vec<_>>().join(" ")))
}

/// Traces of how a text was collected, which would betray its class: HTML entities and retweet heads go.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        cleaned.push_str(&rest[..at]);
        let entity = rest[at + 1..]
            .find(';')
            .filter(|&end| end <= 8)
            .map(|end| &rest[at + 1..at + 1 + end]);
        match entity.filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'#')) {
            Some(name) => {
                cleaned.push_str(match name {
                    "amp" => " and ",
                    "quot" => "\"",
                    "lt" => "<",
                    "gt" => ">",
                    _ => " ",
                });
                rest = &rest[at + name.len() + 2..];
            }
            None => {
                cleaned.push('&');
                rest = &rest[at + 1..];
            }
        }
    }
    cleaned.push_str(rest);
    let kept: Vec<&str> = cleaned
        .split_whitespace()
        .filter(|word| !matches!(*word, "RT" | "[URL]" | "URL"))
        .collect();
    kept.join(" ")
}

/// A plain sentence splitter: after a run of . ! ? before white space.
pub fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut after_end = false;
    text.split_inclusive(move |c: char| {
        let boundary = after_end && c.is_whitespace();
        after_end = matches!(c, '.' | '!' | '?') || (after_end && matches!(c, '"' | '\'' | ')'));
        boundary
    })
    .map(str::trim)
    .filter(|sentence| !sentence.is_empty())
}

/// Hides a vowel inside most longer words behind a star, as people do to get past filters.
pub fn starred(text: &str, random: &mut Random) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let vowel = word
            .char_indices()
            .skip(1)
            .find(|(at, c)| at + 1 < word.len() && matches!(c, 'a' | 'e' | 'i' | 'o' | 'u'));
        match vowel {
            Some((at, _)) if word.len() >= 4 && random.below(2) == 0 => {
                words.push(format!("{}*{}", &word[..at], &word[at + 1..]))
            }
            _ => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_go_and_other_ampersands_stay() {
        assert_eq!(clean("RT a &amp; b &#9996; c & d &x"), "a and b c & d &x");
    }

    #[test]
    fn sentences_end_at_punctuation_before_space() {
        let split: Vec<&str> = sentences("It is 3.5 m. \"Really?\" Yes! ok").collect();
        assert_eq!(split, ["It is 3.5 m.", "\"Really?\"", "Yes!", "ok"]);
    }

    #[test]
    fn texts_are_held_out_by_their_words() {
        let mut held = Held::default();
        held.add("You are late , Tom .");
        assert!(held.contains("you are LATE, Tom"));
        assert!(!held.contains("you are late"));
    }
}
