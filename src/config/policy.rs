//! How texts are treated when a request says nothing else.

use super::{ConfigError, PolicySettings};
use crate::{
    adapters::AdapterLease,
    pipeline::{Action, Fallback, MAX_CANDIDATES, Options, OtherLanguages, Threshold},
};

/// How texts are treated when a request says nothing else.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Toxicity above which a sentence is acted on.
    pub threshold: Threshold,
    /// What is done with a toxic sentence.
    pub action: Action,
    /// What is done when no rewrite is good enough.
    pub fallback: Fallback,
    /// What is done with sentences in another language than English.
    pub other_languages: OtherLanguages,
    /// Rewrites drawn for each toxic sentence.
    pub candidates: usize,
}

impl Policy {
    /// The pipeline's options under this policy, for callers to adjust. The one place where
    /// options are made.
    pub fn options(&self, adapter: AdapterLease) -> Options {
        Options {
            threshold: self.threshold,
            action: self.action,
            fallback: self.fallback,
            other_languages: self.other_languages,
            candidates: self.candidates,
            ..Options::new(adapter)
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            threshold: Threshold::default(),
            action: Action::Rewrite,
            fallback: Fallback::Mask,
            other_languages: OtherLanguages::Fallback,
            candidates: 8,
        }
    }
}

impl TryFrom<PolicySettings> for Policy {
    type Error = ConfigError;

    fn try_from(raw: PolicySettings) -> Result<Self, ConfigError> {
        if !(1..=MAX_CANDIDATES).contains(&raw.candidates) {
            return Err(ConfigError::invalid("candidates", raw.candidates, "must be 1 to 16"));
        }
        Ok(Self {
            threshold: Threshold::new(raw.threshold)
                .map_err(|reason| ConfigError::invalid("threshold", raw.threshold, reason))?,
            // clap has checked these against the lists in `PolicySettings`.
            action: match raw.action.as_str() {
                "annotate" => Action::Annotate,
                "block" => Action::Block,
                _ => Action::Rewrite,
            },
            fallback: match raw.fallback.as_str() {
                "block" => Fallback::Block,
                "annotate" => Fallback::Annotate,
                _ => Fallback::Mask,
            },
            other_languages: match raw.other_languages.as_str() {
                "keep" => OtherLanguages::Keep,
                "block" => OtherLanguages::Block,
                _ => OtherLanguages::Fallback,
            },
            candidates: raw.candidates,
        })
    }
}
