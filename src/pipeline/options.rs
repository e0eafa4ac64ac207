//! What a caller may ask for. The ranges are checked here, once; inside the pipeline they hold.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::segment::Sentence;
use super::turn::Turn;
use super::unfit::Unfit;
use crate::adapters::AdapterLease;

/// A number outside of its range.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("must be a number from {low} to {high}")]
pub struct OutOfRange {
    low: f32,
    high: f32,
}

fn within(value: f32, low: f32, high: f32) -> Result<f32, OutOfRange> {
    // Not a number is in no range, so it is refused as well.
    if (low..=high).contains(&value) {
        Ok(value)
    } else {
        Err(OutOfRange { low, high })
    }
}

/// A number that is checked where it is made, so that whoever holds one need not check it again.
macro_rules! bounded {
    ($(#[$about:meta])* $name:ident, $low:literal to $high:literal, default $default:literal) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f32", into = "f32")]
        pub struct $name(f32);

        impl $name {
            /// Checks the range.
            pub fn new(value: f32) -> Result<Self, OutOfRange> {
                within(value, $low, $high).map(Self)
            }

            /// The number itself.
            pub fn get(self) -> f32 {
                self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }

        impl TryFrom<f32> for $name {
            type Error = OutOfRange;

            fn try_from(value: f32) -> Result<Self, OutOfRange> {
                Self::new(value)
            }
        }

        impl From<$name> for f32 {
            fn from(value: $name) -> f32 {
                value.0
            }
        }
    };
}

bounded! {
    /// The toxicity up to which (inclusive) a sentence is fine, 0..=1.
    Threshold, 0.0 to 1.0, default 0.5
}

bounded! {
    /// How strongly the adapter acts: its LoRA scale, 0..=2.
    Strength, 0.0 to 2.0, default 1.0
}

bounded! {
    /// How far beyond the adapter the choice of tokens goes, 0..=2: by `log p + guidance * (log p - log p_base)`.
    Guidance, 0.0 to 2.0, default 0.0
}

impl Threshold {
    /// Whether a toxicity is over it.
    pub fn is_exceeded_by(self, toxicity: f32) -> bool {
        toxicity > self.0
    }
}

/// What to do with a text that has a toxic sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Rewrite its toxic sentences.
    #[default]
    Rewrite,
    /// Leave it as it is and report the scores.
    Annotate,
    /// Withhold all of it: the answer's text is empty.
    Block,
}

/// What to do with a toxic sentence of which no rewrite is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Replace its worst words by `***`, those that are toxic by themselves; if even that is too toxic, block it.
    #[default]
    Mask,
    /// Withhold the sentence; the sentences around it stay.
    Block,
    /// Leave it as it is; its segment says so.
    Annotate,
}

/// What to do with sentences in another language than English.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherLanguages {
    /// What the scorer calls toxic goes to the fallback; the model never sees it.
    #[default]
    Fallback,
    /// They stay as they are.
    Keep,
    /// They are withheld, toxic or not.
    Block,
}

impl OtherLanguages {
    /// Whether `sentence` is not given back.
    pub(super) fn withholds(self, sentence: &Sentence) -> bool {
        self == Self::Block && sentence.unfit == Some(Unfit::Language)
    }
}

/// How the text is marked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Not at all.
    #[default]
    Plain,
    /// CommonMark with tables: code, quotes, HTML and link targets are never touched.
    Markdown,
}

/// Most candidates that a sentence may have.
pub const MAX_CANDIDATES: usize = 16;

/// One text's options. [`Options::new`] has the defaults.
#[derive(Clone)]
pub struct Options {
    /// A sentence at or under it is kept, byte for byte.
    pub threshold: Threshold,
    /// What to do with a toxic text.
    pub action: Action,
    /// What to do with a toxic sentence that cannot be rewritten.
    pub fallback: Fallback,
    /// What to do with sentences in another language than English.
    pub other_languages: OtherLanguages,
    /// The adapter version to rewrite with.
    pub adapter: AdapterLease,
    /// How strongly it acts.
    pub strength: Strength,
    /// How far beyond it the choice of tokens goes.
    pub guidance: Guidance,
    /// Candidates a sentence, 1..=[`MAX_CANDIDATES`]; one is enough without verification.
    pub candidates: usize,
    /// Seed of the sampling. Every sentence has the same, so that what becomes of a sentence
    /// does not depend on where it stands.
    pub seed: u64,
    /// How the text is marked up.
    pub format: Format,
    /// Whether candidates are checked; if not, the first is taken.
    pub verify: bool,
    /// Whether sentences at or under the threshold are rewritten as well: to evaluate a model.
    pub always: bool,
    /// Whether the text is one sentence, however many it seems to have.
    pub whole_text: bool,
    /// Whether the candidates of each sentence are told too.
    pub explain: bool,
    /// When the answer is no longer of use.
    pub deadline: Option<Instant>,
    /// The request's turn with the model; texts of the same request share it.
    pub turn: Arc<Turn>,
}

impl Options {
    /// The defaults, with this adapter.
    pub fn new(adapter: AdapterLease) -> Self {
        Self {
            threshold: Threshold::default(),
            action: Action::default(),
            fallback: Fallback::default(),
            other_languages: OtherLanguages::default(),
            adapter,
            strength: Strength::default(),
            guidance: Guidance::default(),
            candidates: 8,
            seed: 0,
            format: Format::default(),
            verify: true,
            always: false,
            whole_text: false,
            explain: false,
            deadline: None,
            turn: Arc::new(Turn::new(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        assert!(Threshold::new(0.0).is_ok());
        assert!(Threshold::new(1.0).is_ok());
        assert!(Threshold::new(1.01).is_err());
        assert!(Threshold::new(f32::NAN).is_err());
        assert!(Strength::new(2.0).is_ok());
        assert!(Strength::new(-0.1).is_err());
        assert_eq!(
            Strength::new(3.0).unwrap_err().to_string(),
            "must be a number from 0 to 2"
        );
    }

    #[test]
    fn a_bad_threshold_is_refused_when_it_is_read() {
        assert!(serde_json::from_str::<Threshold>("0.7").is_ok());
        assert!(serde_json::from_str::<Threshold>("7").is_err());
    }
}
