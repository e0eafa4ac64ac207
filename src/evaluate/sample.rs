//! What a system made of one example, and of all: measured, not yet summed up.

use super::bootstrap::Series;
use super::diversity::Diversity;
use super::figures::Metric;
use crate::pipeline::{Likelihood, Threshold};

/// What one system made of one example.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// Of the output, 0 to 1.
    pub toxicity: f64,
    /// Of the output with the source, 0 to 1.
    pub similarity: f64,
    /// Of the output with the closest reference, 0 to 1.
    pub chrf: f64,
    /// See [`fluency`]; 0 for an output without a word.
    pub fluency: f64,
    /// Whether the output has the words of the source.
    pub copied: bool,
    /// Whether the output has no word.
    pub empty: bool,
    /// Of the output, under the base model.
    pub output: Likelihood,
    /// Of source and references as plain text, under the system's model.
    pub plain: Plain,
    /// Of the candidates.
    pub diversity: Diversity,
}

/// How likely a model finds the two sides of an example, without a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Plain {
    /// The source.
    pub source: Likelihood,
    /// All references together.
    pub neutral: Likelihood,
    /// Mean log-perplexity of the source minus that of the references, in nats; absent where a side has no likelihood.
    pub gap: Option<f64>,
}

impl Plain {
    /// Of a source and its references.
    pub fn new(source: Likelihood, references: &[Likelihood]) -> Self {
        let known: Vec<f64> = references.iter().filter_map(|reference| reference.mean()).collect();
        let gap = source
            .mean()
            .filter(|_| !known.is_empty())
            .map(|source| source - known.iter().sum::<f64>() / known.len() as f64);
        Self {
            source,
            neutral: references.iter().copied().sum(),
            gap,
        }
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

/// All that was measured of one system.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// By example.
    pub samples: Vec<Sample>,
    /// Whether each neutral text came back changed.
    pub changed: Vec<bool>,
    /// Of a plain text, by window.
    pub windows: Vec<Likelihood>,
}

/// All that was measured of the base model alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MeasuredBase {
    /// By example.
    pub plain: Vec<Plain>,
    /// Of a plain text, by window.
    pub windows: Vec<Likelihood>,
}

impl Measured {
    /// What a figure is computed from.
    pub fn series(&self, metric: Metric) -> Series {
        let samples = self.samples.iter();
        let mean = |value: fn(&Sample) -> f64| Series::mean(samples.clone().map(|sample| Some(value(sample))));
        let mean_of_some = |value: fn(&Sample) -> Option<f64>| Series::mean(samples.clone().map(value));
        match metric {
            Metric::ToxicityRate => mean(|sample| share(Threshold::default().is_exceeded_by(sample.toxicity as f32))),
            Metric::Toxicity => mean(|sample| sample.toxicity),
            Metric::Similarity => mean(|sample| sample.similarity),
            Metric::Chrf => mean(|sample| sample.chrf),
            Metric::Fluency => mean(|sample| sample.fluency),
            Metric::J => mean(Sample::j),
            Metric::Copied => mean(|sample| share(sample.copied)),
            Metric::Empty => mean(|sample| share(sample.empty)),
            Metric::FalsePositives => Series::mean(self.changed.iter().map(|&changed| Some(share(changed)))),
            Metric::Distinct1 => mean_of_some(|sample| sample.diversity.distinct_1),
            Metric::Distinct2 => mean_of_some(|sample| sample.diversity.distinct_2),
            Metric::SelfBleu => mean_of_some(|sample| sample.diversity.self_bleu),
            Metric::OutputPerplexity => perplexity(samples.map(|sample| sample.output)),
            Metric::NeutralPerplexity => perplexity(samples.map(|sample| sample.plain.neutral)),
            Metric::PerplexityGap => mean_of_some(|sample| sample.plain.gap),
            Metric::TextPerplexity => perplexity(self.windows.iter().copied()),
        }
    }
}

impl MeasuredBase {
    /// What the figures that need no output are computed from.
    pub fn series(&self) -> [(Metric, Series); 3] {
        [
            (
                Metric::NeutralPerplexity,
                perplexity(self.plain.iter().map(|plain| plain.neutral)),
            ),
            (
                Metric::PerplexityGap,
                Series::mean(self.plain.iter().map(|plain| plain.gap)),
            ),
            (Metric::TextPerplexity, perplexity(self.windows.iter().copied())),
        ]
    }
}

fn perplexity(likelihoods: impl Iterator<Item = Likelihood>) -> Series {
    Series::perplexity(likelihoods.map(|likelihood| (likelihood.nll, likelihood.tokens)))
}

fn share(counts: bool) -> f64 {
    f64::from(u8::from(counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::bootstrap::Bootstrap;

    fn likelihood(nll: f64, tokens: usize) -> Likelihood {
        Likelihood { nll, tokens }
    }

    #[test]
    fn samples_are_summed_up_as_the_formulas_say() {
        let first = Sample {
            toxicity: 0.9,
            similarity: 1.0,
            chrf: 0.5,
            fluency: 1.0,
            copied: true,
            output: likelihood(3.0, 3),
            plain: Plain::new(likelihood(9.0, 3), &[likelihood(4.0, 2), likelihood(0.0, 0)]),
            diversity: Diversity {
                distinct_1: Some(0.5),
                ..Diversity::default()
            },
            ..Sample::default()
        };
        let second = Sample {
            toxicity: 0.5,
            similarity: 0.8,
            chrf: 0.7,
            fluency: 0.5,
            output: likelihood(3.0, 1),
            plain: Plain::new(likelihood(0.0, 0), &[likelihood(2.0, 4)]),
            ..Sample::default()
        };
        let measured = Measured {
            samples: vec![first, second],
            changed: vec![true, false, false, false],
            windows: vec![likelihood(20.0, 10)],
        };
        let bootstrap = Bootstrap { resamples: 10, seed: 0 };
        let figure = |metric| {
            bootstrap
                .resample(&measured.series(metric))
                .map(|figure| figure.estimate().value)
        };
        for (metric, wanted) in [
            (Metric::ToxicityRate, 0.5), // 0.5 itself is not over the threshold.
            (Metric::Toxicity, 0.7),
            (Metric::Similarity, 0.9),
            (Metric::Chrf, 0.6),
            (Metric::Fluency, 0.75),
            (Metric::J, (0.1 + 0.5 * 0.8 * 0.5) / 2.0),
            (Metric::Copied, 0.5),
            (Metric::Empty, 0.0),
            (Metric::FalsePositives, 0.25),
            (Metric::Distinct1, 0.5),
            // By tokens, not by texts.
            (Metric::OutputPerplexity, 1.5f64.exp()),
            (Metric::NeutralPerplexity, 1f64.exp()),
            // 3 nats a token against 2; the other example has no likelihood on its toxic side.
            (Metric::PerplexityGap, 1.0),
            (Metric::TextPerplexity, 2f64.exp()),
        ] {
            let got = figure(metric).unwrap();
            assert!((got - wanted).abs() < 1e-9, "{metric:?}: {got} {wanted}");
        }
        assert_eq!(figure(Metric::SelfBleu), None);
        let base = MeasuredBase {
            plain: measured.samples.iter().map(|sample| sample.plain).collect(),
            windows: measured.windows.clone(),
        };
        for (metric, series) in base.series() {
            assert_eq!(series, measured.series(metric));
        }
    }

    #[test]
    fn fluency_is_bounded_and_relative_to_the_source() {
        let text = |perplexity: f64| likelihood(perplexity.ln() * 10.0, 10);
        let e = 1f64.exp();
        assert!((fluency(text(20.0), text(20.0 * e)) - 1.0).abs() < 1e-6);
        assert!((fluency(text(20.0), text(40.0 * e)) - 0.5).abs() < 1e-6);
        assert_eq!(fluency(text(20.0), text(10.0)), 1.0);
        assert_eq!(fluency(text(20.0), Likelihood::default()), 1.0);
    }
}
