//! How far a figure may be off, by chance of the sentences it was measured on: the percentile bootstrap (Efron 1979; for comparisons of systems Koehn
//! 2004).
//!
//! A figure is a quotient of two sums over units (sentences, texts, windows), or the exponential of one. As many units are drawn with
//! replacement, again and again, and the figure is worked out of each draw: 95% of what comes out lies in the interval. The draws depend on the seed and
//! the number of units alone, so two systems that were measured on the same units are drawn in pairs, and the difference of their figures has
//! an interval of its own, which is much narrower than those of the figures.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// What lies in the interval.
pub const CONFIDENCE: f64 = 0.95;

/// A figure with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// On all units.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
}

/// What a figure is computed from: a part of each of two sums, unit by unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Of the dividend and the divisor.
    terms: Vec<(f64, f64)>,
    /// The figure is the exponential of the quotient.
    exponential: bool,
}

/// How often is drawn, and which draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Draws.
    pub resamples: usize,
    /// Which ones.
    pub seed: u64,
}

/// A figure, and what it is in each draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Resampled {
    value: f64,
    draws: Vec<f64>,
}

impl Series {
    /// A mean over units; those without a value don't count.
    pub fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Self {
        let terms = values
            .into_iter()
            .map(|value| value.map_or((0.0, 0.0), |value| (value, 1.0)));
        Self {
            terms: terms.collect(),
            exponential: false,
        }
    }

    /// exp of the mean over all tokens, of sums and numbers of tokens: a perplexity.
    pub fn perplexity(likelihoods: impl IntoIterator<Item = (f64, usize)>) -> Self {
        let terms = likelihoods.into_iter().map(|(sum, tokens)| (sum, tokens as f64));
        Self {
            terms: terms.collect(),
            exponential: true,
        }
    }

    fn figure(&self, units: impl Iterator<Item = usize>) -> f64 {
        let (dividend, divisor) = units.fold((0.0, 0.0), |(a, b), unit| {
            let term = self.terms[unit];
            (a + term.0, b + term.1)
        });
        let quotient = dividend / divisor;
        if self.exponential { quotient.exp() } else { quotient }
    }
}

impl Bootstrap {
    /// The figure on all units and in each draw; none without a unit that counts.
    pub fn resample(&self, series: &Series) -> Option<Resampled> {
        let units = series.terms.len();
        if series.terms.iter().all(|term| term.1 == 0.0) {
            return None;
        }
        let mut random = StdRng::seed_from_u64(self.seed);
        let draws = (0..self.resamples).map(|_| series.figure((0..units).map(|_| random.random_range(0..units))));
        Some(Resampled {
            value: series.figure(0..units),
            draws: draws.collect(),
        })
    }
}

impl Resampled {
    /// The figure and its interval.
    pub fn estimate(&self) -> Estimate {
        estimate(self.value, self.draws.clone())
    }

    /// How much higher it is than `other`, measured on the same units.
    pub fn difference(&self, other: &Self) -> Estimate {
        let differences = self.draws.iter().zip(&other.draws).map(|(own, other)| own - other);
        estimate(self.value - other.value, differences.collect())
    }
}

fn estimate(value: f64, mut draws: Vec<f64>) -> Estimate {
    // A draw of units none of which counts has no figure.
    draws.retain(|draw| draw.is_finite());
    draws.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Estimate {
        value,
        low: quantile(&draws, tail).unwrap_or(value),
        high: quantile(&draws, 1.0 - tail).unwrap_or(value),
    }
}

/// Between the two nearest of sorted values in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let below = sorted.get(place.floor() as usize)?;
    let above = sorted.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::recorded;

    const BOOTSTRAP: Bootstrap = Bootstrap {
        resamples: 20_000,
        seed: 0,
    };

    /// Both are drawn at random: they agree up to the noise of 20,000 draws.
    #[test]
    fn intervals_are_those_of_scipy() {
        for row in recorded("bootstrap") {
            let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(row[name].clone()).unwrap() };
            let (own, other) = (numbers("own"), numbers("other"));
            let series = |values: &[f64]| Series::mean(values.iter().copied().map(Some));
            let [own, other] = [&own, &other].map(|values| BOOTSTRAP.resample(&series(values)).unwrap());
            for (got, wanted) in [(own.estimate(), "mean"), (own.difference(&other), "difference")] {
                let [value, low, high] = numbers(wanted)[..] else {
                    panic!()
                };
                assert!((got.value - value).abs() < 1e-9, "{wanted}: {got:?}");
                let noise = 0.03 * (high - low);
                assert!(
                    (got.low - low).abs() < noise && (got.high - high).abs() < noise,
                    "{wanted}: {got:?} {low} {high}"
                );
            }
        }
    }

    #[test]
    fn a_perplexity_is_over_tokens_and_its_interval_over_texts() {
        let series = Series::perplexity([(4.0, 2), (2.0, 4), (0.0, 0)]);
        let got = BOOTSTRAP.resample(&series).unwrap().estimate();
        assert!((got.value - 1f64.exp()).abs() < 1e-9);
        // One text or the other alone, since they are all there is.
        assert!(
            (got.low - 0.5f64.exp()).abs() < 1e-9 && (got.high - 2f64.exp()).abs() < 1e-9,
            "{got:?}"
        );
    }

    #[test]
    fn the_same_twice_has_no_difference_and_nothing_no_figure() {
        let series = Series::mean([Some(1.0), None, Some(3.0)]);
        let resampled = BOOTSTRAP.resample(&series).unwrap();
        assert_eq!(resampled.estimate(), BOOTSTRAP.resample(&series).unwrap().estimate());
        assert_eq!(resampled.estimate().value, 2.0);
        let none = Estimate {
            value: 0.0,
            low: 0.0,
            high: 0.0,
        };
        assert_eq!(resampled.difference(&resampled), none);
        assert_eq!(BOOTSTRAP.resample(&Series::mean([None])), None);
        assert_eq!(BOOTSTRAP.resample(&Series::mean([])), None);
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&values, 0.5), Some(3.0));
        assert!((quantile(&values, 0.9).unwrap() - 6.8).abs() < 1e-12);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
