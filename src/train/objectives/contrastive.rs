//! Contrastive perplexity (Klein & Nabi, ACL 2025, arXiv 2401.08491), and its directed variant for rewriters.

use std::ops::Range;

use super::{Loss, Objective, Scored, Sft};

/// What is compared between candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Phi {
    /// The perplexity of a candidate's own tokens (Eq. 1 of the paper).
    Perplexity,
    /// Its logarithm, the mean negative log-likelihood.
    #[value(alias = "log-perplexity")]
    LogPerplexity,
}

/// How the distance of a candidate from the prototype becomes a similarity.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// `exp(-|phi - c|) / tau` (Eq. 4 of the paper), in which tau cancels.
    Paper,
    /// `exp(-|phi - c| / tau)`.
    Symmetric,
    /// As `Symmetric` for positives; `exp(-(phi - c) / tau)` for negatives, so that a negative likelier than the prototype is
    /// pushed up however far below it lies. A negative more than `margin` above the prototype is left alone.
    Directed {
        /// In units of phi.
        margin: f64,
    },
}

/// Which parts of the loss are computed; the other values than `Both` are for ablations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Sides {
    /// `-ln (Σ_P s / (Σ_P s + alpha Σ_N s))`
    #[default]
    Both,
    /// `-ln (Σ_P s / |P|)`: positives are pulled to their prototype
    Positives,
    /// `ln (alpha Σ_N s / |N|)`: negatives are pushed away from the prototype, which stays where it is
    Negatives,
}

/// Positives of an anchor are pulled to their prototype in perplexity space, negatives pushed away from it:
/// `-ln (Σ_P s / (Σ_P s + alpha Σ_N s))`, averaged over the anchors, plus a likelihood term on the positives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContrastivePerplexity {
    /// What is compared.
    pub phi: Phi,
    /// How distance becomes similarity.
    pub similarity: Similarity,
    /// Temperature.
    pub tau: f64,
    /// Weight of the negatives.
    pub alpha: f64,
    /// Whether the prototype is a constant for the gradient.
    pub detach_prototype: bool,
    /// Which parts of the loss are computed.
    pub sides: Sides,
    /// Weight of the contrastive term.
    pub weight: f64,
    /// Weight of the mean negative log-likelihood of the positives' tokens.
    pub sft_weight: f64,
}

/// The loss of one anchor and its derivatives with respect to every phi.
#[derive(Debug, Clone, PartialEq)]
pub struct SetLoss {
    /// `-ln J`.
    pub value: f64,
    /// By positive.
    pub positives: Vec<f64>,
    /// By negative.
    pub negatives: Vec<f64>,
}

impl ContrastivePerplexity {
    /// The contrastive loss of one anchor from its candidates' phis; computed from logarithms of similarities, so that no
    /// distance overflows.
    pub fn set_loss(&self, positives: &[f64], negatives: &[f64]) -> SetLoss {
        let count = positives.len() as f64;
        let prototype = positives.iter().sum::<f64>() / count;
        let near: Vec<LogSimilarity> = positives.iter().map(|&phi| self.positive(phi - prototype)).collect();
        let far: Vec<LogSimilarity> = negatives.iter().map(|&phi| self.negative(phi - prototype)).collect();
        let (near_log_sum, near_shares) = softmax(&near);
        let (far_log_sum, far_shares) = softmax(&far);
        let slopes = |shares: &[f64], of: &[LogSimilarity], factor: f64| -> Vec<f64> {
            shares
                .iter()
                .zip(of)
                .map(|(share, s)| factor * share * s.slope)
                .collect()
        };
        let (value, mut by_positive, by_negative) = match self.sides {
            Sides::Both => {
                let larger = near_log_sum.max(far_log_sum);
                let log_total = larger + ((near_log_sum - larger).exp() + (far_log_sum - larger).exp()).ln();
                let rest = (far_log_sum - log_total).exp();
                (
                    log_total - near_log_sum,
                    slopes(&near_shares, &near, -rest),
                    slopes(&far_shares, &far, rest),
                )
            }
            Sides::Positives => (
                count.ln() - near_log_sum,
                slopes(&near_shares, &near, -1.0),
                vec![0.0; far.len()],
            ),
            Sides::Negatives if far_log_sum == f64::NEG_INFINITY => (0.0, vec![0.0; near.len()], vec![0.0; far.len()]),
            Sides::Negatives => (
                far_log_sum - (far.len() as f64).ln(),
                vec![0.0; near.len()],
                slopes(&far_shares, &far, 1.0),
            ),
        };
        if !self.detach_prototype && self.sides != Sides::Negatives {
            // A distance is phi minus the prototype, so the prototype's derivative is the opposite of all of theirs together.
            let by_prototype = -(by_positive.iter().sum::<f64>() + by_negative.iter().sum::<f64>());
            by_positive
                .iter_mut()
                .for_each(|gradient| *gradient += by_prototype / count);
        }
        SetLoss {
            value,
            positives: by_positive,
            negatives: by_negative,
        }
    }

    fn positive(&self, distance: f64) -> LogSimilarity {
        // At zero the absolute value gets the derivative zero, as in PyTorch.
        let sign = if distance == 0.0 { 0.0 } else { distance.signum() };
        match self.similarity {
            Similarity::Paper => LogSimilarity {
                value: -distance.abs() - self.tau.ln(),
                slope: -sign,
            },
            Similarity::Symmetric | Similarity::Directed { .. } => LogSimilarity {
                value: -distance.abs() / self.tau,
                slope: -sign / self.tau,
            },
        }
    }

    fn negative(&self, distance: f64) -> LogSimilarity {
        let similarity = match self.similarity {
            Similarity::Directed { margin } if distance > margin => LogSimilarity {
                value: f64::NEG_INFINITY,
                slope: 0.0,
            },
            Similarity::Directed { .. } => LogSimilarity {
                value: -distance / self.tau,
                slope: -self.tau.recip(),
            },
            Similarity::Paper | Similarity::Symmetric => self.positive(distance),
        };
        LogSimilarity {
            value: similarity.value + self.alpha.ln(),
            ..similarity
        }
    }

    /// Phi of a candidate, and its derivative by the candidate's mean negative log-likelihood.
    fn phi(&self, nll: &[f32], candidate: &Range<usize>) -> (f64, f64) {
        let mean = nll[candidate.clone()]
            .iter()
            .map(|&value| f64::from(value))
            .sum::<f64>()
            / candidate.len() as f64;
        match self.phi {
            Phi::LogPerplexity => (mean, 1.0),
            Phi::Perplexity => (mean.exp(), mean.exp()),
        }
    }
}

/// `ln s` of a candidate and its derivative by the candidate's distance from the prototype.
struct LogSimilarity {
    value: f64,
    slope: f64,
}

/// The logarithm of the sum of similarities, and the share of each in it.
fn softmax(similarities: &[LogSimilarity]) -> (f64, Vec<f64>) {
    let largest = similarities.iter().map(|s| s.value).fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return (largest, vec![0.0; similarities.len()]);
    }
    let weights: Vec<f64> = similarities.iter().map(|s| (s.value - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    (
        largest + total.ln(),
        weights.iter().map(|weight| weight / total).collect(),
    )
}

impl Objective for ContrastivePerplexity {
    fn loss(&self, scored: &Scored<'_>) -> Loss {
        let nll = scored.nll;
        let mut loss = Sft.loss(scored);
        loss.scale(self.sft_weight);
        let contrasted = || {
            scored.sets.iter().filter(|set| {
                let against_none = self.sides == Sides::Positives || set.hard_and_random().next().is_some();
                !set.positives.is_empty() && against_none
            })
        };
        let share = self.weight / contrasted().count().max(1) as f64;
        for set in contrasted() {
            let phi = |candidate: &Range<usize>| self.phi(nll, candidate);
            let (positives, positive_slopes): (Vec<f64>, Vec<f64>) = set.positives.iter().map(phi).unzip();
            let (negatives, negative_slopes): (Vec<f64>, Vec<f64>) = set.hard_and_random().map(phi).unzip();
            let set_loss = self.set_loss(&positives, &negatives);
            loss.value += share * set_loss.value;
            let candidates = set.positives.iter().chain(set.hard_and_random());
            let slopes = positive_slopes.iter().chain(&negative_slopes);
            let gradients = set_loss.positives.iter().chain(&set_loss.negatives);
            for ((candidate, slope), gradient) in candidates.zip(slopes).zip(gradients) {
                let a_token = share * gradient * slope / candidate.len() as f64;
                candidate.clone().for_each(|token| loss.gradient[token] += a_token);
            }
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::single_range_in_vec_init,
        reason = "a candidate is a range of tokens; one candidate is one range"
    )]

    use serde_json::Value;

    use super::super::super::batch::CandidateSet;
    use super::*;

    fn loss_of(objective: &dyn Objective, nll: &[f32], sets: &[CandidateSet]) -> Loss {
        objective.loss(&Scored {
            nll,
            reference: &[],
            sets,
        })
    }

    const PLAIN: ContrastivePerplexity = ContrastivePerplexity {
        phi: Phi::LogPerplexity,
        similarity: Similarity::Paper,
        tau: 1.0,
        alpha: 1.0,
        detach_prototype: false,
        sides: Sides::Both,
        weight: 1.0,
        sft_weight: 0.0,
    };

    fn numbers(value: &Value) -> Vec<f64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|number| number.as_f64().unwrap())
            .collect()
    }

    fn check(objective: &ContrastivePerplexity, case: &Value) {
        let (positives, negatives) = (numbers(&case["positives"]), numbers(&case["negatives"]));
        let loss = objective.set_loss(&positives, &negatives);
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got}, expected {want} in {case}");
        close(loss.value, case["loss"].as_f64().unwrap());
        let want = [numbers(&case["grad_positives"]), numbers(&case["grad_negatives"])].concat();
        for (got, want) in loss.positives.iter().chain(&loss.negatives).zip(want) {
            close(*got, want);
        }
    }

    fn cases(json: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(json).unwrap();
        file["cases"].as_array().unwrap().clone()
    }

    #[test]
    fn the_papers_form_agrees_with_automatic_differentiation() {
        let cases = cases(include_str!("../../../tests/fixtures/cp_loss.json"));
        assert!(cases.len() > 3);
        for case in &cases {
            let objective = ContrastivePerplexity {
                tau: case["tau"].as_f64().unwrap(),
                alpha: case["alpha"].as_f64().unwrap(),
                detach_prototype: case["detach_prototype"].as_bool().unwrap(),
                ..PLAIN
            };
            check(&objective, case);
        }
    }

    #[test]
    fn the_directed_and_symmetric_forms_agree_with_automatic_differentiation() {
        let cases = cases(include_str!("../../../tests/fixtures/cp_directed.json"));
        assert!(cases.len() > 3);
        for case in &cases {
            let margin = case["margin"].as_f64().unwrap_or(f64::INFINITY);
            let objective = ContrastivePerplexity {
                similarity: match case["similarity"].as_str().unwrap() {
                    "symmetric" => Similarity::Symmetric,
                    _ => Similarity::Directed { margin },
                },
                tau: case["tau"].as_f64().unwrap(),
                alpha: case["alpha"].as_f64().unwrap(),
                detach_prototype: case["detach_prototype"].as_bool().unwrap(),
                ..PLAIN
            };
            check(&objective, case);
        }
    }

    #[test]
    fn the_gradient_by_token_agrees_with_finite_differences() {
        let objective = ContrastivePerplexity {
            phi: Phi::Perplexity,
            similarity: Similarity::Directed { margin: 50.0 },
            tau: 0.7,
            weight: 0.3,
            sft_weight: 0.5,
            ..PLAIN
        };
        let sets = [
            CandidateSet {
                positives: vec![0..2, 2..5],
                negatives: vec![5..6],
                random: vec![6..8],
            },
            CandidateSet {
                positives: vec![8..9],
                ..CandidateSet::default()
            },
        ];
        let nll = [0.5f32, 1.0, 0.25, 2.0, 1.5, 0.75, 1.25, 0.5, 1.0];
        let loss = loss_of(&objective, &nll, &sets);
        for token in 0..nll.len() {
            let moved = |by: f32| {
                let mut nll = nll;
                nll[token] += by;
                loss_of(&objective, &nll, &sets).value
            };
            let step = 0.001953125;
            let want = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!(
                (loss.gradient[token] - want).abs() < 1e-5,
                "token {token}: {}, expected {want}",
                loss.gradient[token]
            );
        }
    }

    #[test]
    fn distances_of_any_size_give_finite_numbers() {
        for similarity in [
            Similarity::Paper,
            Similarity::Symmetric,
            Similarity::Directed { margin: f64::INFINITY },
        ] {
            let loss = ContrastivePerplexity {
                similarity,
                tau: 0.1,
                ..PLAIN
            }
            .set_loss(&[900.0, 5.0], &[1.0, 1e6]);
            let all = loss.positives.iter().chain(&loss.negatives).chain([&loss.value]);
            assert!(all.clone().all(|value| value.is_finite()), "{loss:?}");
        }
    }
}
