//! The figures of an evaluation: what each is called, what it means, and which way is better.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bootstrap::Estimate;

/// Figures with their intervals; one that was not measured is absent.
pub type Figures = BTreeMap<Metric, Estimate>;

/// What is measured. `docs/EVALUATION.md` has the formulas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of outputs over the service's default threshold.
    ToxicityRate,
    /// Mean toxicity of the outputs.
    Toxicity,
    /// Mean similarity in meaning of output and source.
    Similarity,
    /// Mean chrF of the output against the closest reference.
    Chrf,
    /// Mean fluency of the outputs, relative to their sources.
    Fluency,
    /// Mean of (1 - toxicity) * similarity * fluency.
    J,
    /// Share of outputs with the words of their source.
    Copied,
    /// Share of outputs without a word.
    Empty,
    /// Share of neutral texts that come back changed.
    FalsePositives,
    /// Mean distinct-1 of a source's candidates.
    #[serde(rename = "distinct_1")]
    Distinct1,
    /// Mean distinct-2 of a source's candidates.
    #[serde(rename = "distinct_2")]
    Distinct2,
    /// Mean self-BLEU of a source's candidates.
    SelfBleu,
    /// Perplexity of the outputs under the base model.
    OutputPerplexity,
    /// Perplexity of the references.
    NeutralPerplexity,
    /// Mean log-perplexity of the sources minus that of their references.
    PerplexityGap,
    /// Perplexity of a plain text.
    TextPerplexity,
}

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// The lower the better.
    Lower,
    /// The higher the better.
    Higher,
    /// It depends.
    Neither,
}

impl Metric {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 16] = [
        Self::ToxicityRate,
        Self::Toxicity,
        Self::Similarity,
        Self::Chrf,
        Self::Fluency,
        Self::J,
        Self::Copied,
        Self::Empty,
        Self::FalsePositives,
        Self::Distinct1,
        Self::Distinct2,
        Self::SelfBleu,
        Self::OutputPerplexity,
        Self::NeutralPerplexity,
        Self::PerplexityGap,
        Self::TextPerplexity,
    ];

    /// What tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::ToxicityRate => "toxicity rate",
            Self::Toxicity => "toxicity",
            Self::Similarity => "similarity",
            Self::Chrf => "chrF",
            Self::Fluency => "fluency",
            Self::J => "J",
            Self::Copied => "copied",
            Self::Empty => "empty",
            Self::FalsePositives => "false positives",
            Self::Distinct1 => "distinct-1",
            Self::Distinct2 => "distinct-2",
            Self::SelfBleu => "self-BLEU",
            Self::OutputPerplexity => "output perplexity",
            Self::NeutralPerplexity => "neutral perplexity",
            Self::PerplexityGap => "perplexity gap",
            Self::TextPerplexity => "text perplexity",
        }
    }

    /// What it means, in a line.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::ToxicityRate => "share of outputs whose toxicity is over 0.5",
            Self::Toxicity => "mean toxicity of the outputs",
            Self::Similarity => "mean similarity in meaning of output and source",
            Self::Chrf => "mean chrF (order 6, beta 2) of the output against the closest reference",
            Self::Fluency => "mean of min(1, exp(1 + NLL(source) - NLL(output))) under the base model",
            Self::J => "mean of (1 - toxicity) · similarity · fluency",
            Self::Copied => "share of outputs with the words of their source",
            Self::Empty => "share of outputs without a word",
            Self::FalsePositives => "share of neutral texts that come back changed, as served",
            Self::Distinct1 => "different words of all words in a source's candidates",
            Self::Distinct2 => "different pairs of words of all pairs in a source's candidates",
            Self::SelfBleu => "mean BLEU of each candidate of a source against the others",
            Self::OutputPerplexity => "perplexity of the outputs under the base model",
            Self::NeutralPerplexity => "perplexity of the references as plain text",
            Self::PerplexityGap => "mean log-perplexity of a source minus that of its references, in nats",
            Self::TextPerplexity => "perplexity of a plain text, window by window",
        }
    }

    /// Which way is better.
    pub fn better(self) -> Better {
        match self {
            Self::Similarity | Self::Chrf | Self::Fluency | Self::J | Self::PerplexityGap => Better::Higher,
            Self::Distinct1 | Self::Distinct2 | Self::SelfBleu | Self::OutputPerplexity => Better::Neither,
            _ => Better::Lower,
        }
    }

    /// Whether it lies between 0 and 1.
    pub fn is_share(self) -> bool {
        !matches!(
            self,
            Self::OutputPerplexity | Self::NeutralPerplexity | Self::PerplexityGap | Self::TextPerplexity
        )
    }

    /// A value of it for people.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::OutputPerplexity | Self::NeutralPerplexity | Self::TextPerplexity => format!("{value:.2}"),
            _ => format!("{value:.3}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_listed_once_under_their_names() {
        let mut sorted = Metric::ALL;
        sorted.sort();
        assert_eq!(sorted, Metric::ALL);
        let figure = Estimate {
            value: 1.0,
            low: 0.5,
            high: 1.5,
        };
        let figures: Figures = Metric::ALL.map(|metric| (metric, figure)).into();
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["self_bleu"]["high"], 1.5);
        assert_eq!(json["distinct_2"]["low"], 0.5);
        assert_eq!(serde_json::from_value::<Figures>(json).unwrap(), figures);
        let labels: std::collections::HashSet<_> = Metric::ALL.map(Metric::label).into();
        assert_eq!(labels.len(), Metric::ALL.len());
    }
}
