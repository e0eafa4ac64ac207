//! The figures of an evaluation, each with its formula.

use serde::{Deserialize, Serialize};

use crate::pipeline::Threshold;

/// How well an adapter rewrites held-back examples. Shares and scores are between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// What was measured: `name@version`, a folder's name, or `none@0` for the bare base model.
    pub adapter: String,
    /// Sentences measured, n. Every mean below is over them.
    pub examples: u64,
    /// Share of outputs whose toxicity is over 0.5, the service's default threshold.
    pub toxicity_rate: f64,
    /// Mean toxicity of the outputs: the calibrated probability that one is toxic.
    pub toxicity: f64,
    /// Mean similarity in meaning of output and source, by the service's scorer.
    pub similarity: f64,
    /// Mean overlap of the output with the closest human rewrite: F1 of character 1- to 6-grams, mean over the orders, as in chrF.
    pub overlap: f64,
    /// Mean fluency of the outputs: min(1, exp(1 + NLL(source) - NLL(output))), where NLL is the mean negative log-likelihood of a
    /// text's tokens after the first under the base model, in nats. An output of up to e times its source's perplexity has 1, for
    /// every doubling beyond it loses half, and one without a word has 0.
    pub fluency: f64,
    /// Mean of (1 - toxicity) * similarity * fluency, taken sentence by sentence.
    pub j: f64,
    /// Share of outputs with the words of their source, in its order.
    pub copied: f64,
    /// Share of outputs without a word: nothing was written, or it did not come to an end.
    pub empty: f64,
    /// Perplexity of the human rewrites as plain text, without a prompt, under base and adapter: exp of the mean negative
    /// log-likelihood over all their tokens after each text's first. It rises when an adapter harms the model's language.
    /// Absent when no rewrite has two tokens.
    pub neutral_perplexity: Option<f64>,
    /// The same under the base model alone.
    pub base_perplexity: Option<f64>,
}

/// Two adapters on the same sentences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The one that asks to be activated.
    pub candidate: Metrics,
    /// The one that is active, or the bare base model.
    pub baseline: Metrics,
    /// Examples left out because they exceed the model's context.
    #[serde(default)]
    pub skipped: u64,
    /// What was not as asked for: why the baseline is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What one adapter made of one example.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// Of the output, 0 to 1.
    pub toxicity: f64,
    /// Of the output with the source, 0 to 1.
    pub similarity: f64,
    /// Of the output with the closest reference, 0 to 1.
    pub overlap: f64,
    /// See [`fluency`].
    pub fluency: f64,
    /// Whether the output has the words of the source.
    pub copied: bool,
    /// Whether the output has no word.
    pub empty: bool,
    /// Of the references, under base and adapter.
    pub neutral: Likelihood,
    /// Of the references, under the base model.
    pub neutral_base: Likelihood,
}

/// How likely some texts are, so that it can be added up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Likelihood {
    /// Sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// Tokens that were predicted: all but the first of each text.
    pub tokens: usize,
}

impl Likelihood {
    /// From a text's perplexity and its tokens, the first included. A text of fewer than two has no likelihood and adds nothing.
    pub fn of(perplexity: f32, tokens: usize) -> Self {
        let predicted = tokens.saturating_sub(1);
        let nll = f64::from(perplexity).ln() * predicted as f64;
        if predicted > 0 && nll.is_finite() {
            Self { nll, tokens: predicted }
        } else {
            Self::default()
        }
    }

    /// Mean negative log-likelihood of a token, in nats.
    pub fn mean(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nll / self.tokens as f64)
    }

    fn add(self, other: Self) -> Self {
        Self {
            nll: self.nll + other.nll,
            tokens: self.tokens + other.tokens,
        }
    }
}

impl std::iter::Sum for Likelihood {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), Self::add)
    }
}

/// How much less likely than its source, in nats a token, an output may be for nothing. Human rewrites, which tend to be shorter, differ
/// from their sources by 0.0 on average with a standard deviation of 1.7 (150 held-out pairs, SmolLM2-135M): without an allowance
/// they have a fluency of 0.76, with it 0.91, and with their words shuffled 0.35.
const ALLOWANCE: f64 = 1.0;

/// min(1, exp(1 + NLL(source) - NLL(output))). A text of a single token has no likelihood; where one is missing there is nothing to
/// hold against the output, and it is 1.
pub fn fluency(source: Likelihood, output: Likelihood) -> f64 {
    match (source.mean(), output.mean()) {
        (Some(source), Some(output)) => (ALLOWANCE + source - output).exp().min(1.0),
        _ => 1.0,
    }
}

impl Sample {
    /// (1 - toxicity) * similarity * fluency.
    pub fn j(&self) -> f64 {
        (1.0 - self.toxicity) * self.similarity * self.fluency
    }
}

impl Metrics {
    /// Sums up what an adapter made of all examples. Of none, every mean is 0.
    pub fn of(adapter: impl Into<String>, samples: &[Sample]) -> Self {
        let mean = |value: fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / samples.len().max(1) as f64;
        let perplexity = |of: fn(&Sample) -> Likelihood| {
            let all: Likelihood = samples.iter().map(of).sum();
            all.mean().map(f64::exp)
        };
        Self {
            adapter: adapter.into(),
            examples: samples.len() as u64,
            toxicity_rate: mean(|sample| share(Threshold::default().is_exceeded_by(sample.toxicity as f32))),
            toxicity: mean(|sample| sample.toxicity),
            similarity: mean(|sample| sample.similarity),
            overlap: mean(|sample| sample.overlap),
            fluency: mean(|sample| sample.fluency),
            j: mean(Sample::j),
            copied: mean(|sample| share(sample.copied)),
            empty: mean(|sample| share(sample.empty)),
            neutral_perplexity: perplexity(|sample| sample.neutral),
            base_perplexity: perplexity(|sample| sample.neutral_base),
        }
    }

    /// Whether the bare base model was measured, which is no rewriter.
    pub fn is_bare_base(&self) -> bool {
        self.adapter == crate::adapters::AdapterVersion::none().to_string()
    }
}

fn share(counts: bool) -> f64 {
    f64::from(u8::from(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up_as_the_formulas_say() {
        let neutral = |nll: f64, tokens| Likelihood { nll, tokens };
        let first = Sample {
            toxicity: 0.9,
            similarity: 1.0,
            overlap: 0.5,
            fluency: 1.0,
            copied: true,
            empty: false,
            neutral: neutral(4.0, 2),
            neutral_base: neutral(2.0, 2),
        };
        let second = Sample {
            toxicity: 0.5,
            similarity: 0.8,
            overlap: 0.7,
            fluency: 0.5,
            neutral: neutral(2.0, 4),
            neutral_base: neutral(4.0, 4),
            ..Sample::default()
        };
        let metrics = Metrics::of("a@1", &[first, second]);
        let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-9, "{got} {wanted}");
        assert_eq!(metrics.examples, 2);
        near(metrics.toxicity_rate, 0.5); // 0.5 itself is not over the threshold.
        near(metrics.toxicity, 0.7);
        near(metrics.similarity, 0.9);
        near(metrics.overlap, 0.6);
        near(metrics.fluency, 0.75);
        near(metrics.j, (0.1 + 0.5 * 0.8 * 0.5) / 2.0);
        near(metrics.copied, 0.5);
        near(metrics.empty, 0.0);
        // By tokens, not by texts.
        near(metrics.neutral_perplexity.unwrap(), 1f64.exp());
        near(metrics.base_perplexity.unwrap(), 1f64.exp());
    }

    #[test]
    fn nothing_measured_is_no_perplexity_and_survives_json() {
        let metrics = Metrics::of("none@0", &[]);
        assert!(metrics.is_bare_base());
        assert_eq!(metrics.neutral_perplexity, None);
        let text = serde_json::to_string(&metrics).unwrap();
        assert_eq!(serde_json::from_str::<Metrics>(&text).unwrap(), metrics);
    }

    #[test]
    fn fluency_is_bounded_and_relative_to_the_source() {
        let text = |perplexity| Likelihood::of(perplexity, 11);
        let e = 1f32.exp();
        assert!((fluency(text(20.0), text(20.0 * e)) - 1.0).abs() < 1e-6);
        assert!((fluency(text(20.0), text(40.0 * e)) - 0.5).abs() < 1e-6);
        assert_eq!(fluency(text(20.0), text(10.0)), 1.0);
        assert_eq!(fluency(text(20.0), Likelihood::of(f32::NAN, 1)), 1.0);
        assert_eq!(Likelihood::of(f32::INFINITY, 5), Likelihood::default());
    }
}
