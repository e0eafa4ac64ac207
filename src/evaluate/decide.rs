//! Whether a finished training becomes the active version.

use serde::{Deserialize, Serialize};

use super::metrics::{Comparison, Metrics};
use crate::jobs::request::ActivationPolicy;

/// How much higher than the active adapter's the share of toxic outputs may be.
pub const TOXICITY_RATE_MARGIN: f64 = 0.02;
/// How much lower than the active adapter's the similarity may be.
pub const SIMILARITY_MARGIN: f64 = 0.02;
/// How many times the active adapter's perplexity on neutral text may be.
pub const PERPLEXITY_RATIO: f64 = 1.1;

/// What becomes of a finished training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it is to be activated.
    pub activate: bool,
    /// Why, with every figure that counted.
    pub reason: String,
}

/// Decides by the job's policy.
///
/// `never` and `always` are as they say. `if_better` activates when, on the same held-back sentences,
/// - J is not lower than the active adapter's,
/// - the share of toxic outputs is at most [`TOXICITY_RATE_MARGIN`] above the active adapter's,
/// - the similarity is at most [`SIMILARITY_MARGIN`] below it,
/// - the perplexity on neutral text is at most [`PERPLEXITY_RATIO`] times it.
///
/// Against the bare base model (nothing is active, or what is active is of another base) only the first two count: a model that
/// copies its source has a similarity of 1, and one that was never trained has the base's perplexity. Without a comparison
/// nothing is activated.
pub fn decide(policy: ActivationPolicy, comparison: Option<&Comparison>) -> Decision {
    let measured = comparison.filter(|comparison| comparison.candidate.examples > 0);
    let decision = |activate, reason: String| Decision { activate, reason };
    match policy {
        ActivationPolicy::Never => decision(false, "the policy is never: activated by hand only".to_owned()),
        ActivationPolicy::Always => decision(true, "the policy is always: not weighed".to_owned()),
        ActivationPolicy::IfBetter => match measured {
            None => decision(
                false,
                "the policy is if_better, and nothing was compared: no example was held back".to_owned(),
            ),
            Some(comparison) => if_better(comparison),
        },
    }
}

/// One condition of the rule, with its figures.
struct Condition {
    holds: bool,
    text: String,
}

fn if_better(comparison: &Comparison) -> Decision {
    let Comparison {
        candidate, baseline, ..
    } = comparison;
    let conditions = conditions(candidate, baseline);
    let failed: Vec<&str> = conditions
        .iter()
        .filter(|condition| !condition.holds)
        .map(|condition| condition.text.as_str())
        .collect();
    let all: Vec<&str> = conditions.iter().map(|condition| condition.text.as_str()).collect();
    let figures = format!(
        "on {} sentences against {}: {}",
        candidate.examples,
        baseline.adapter,
        all.join("; ")
    );
    let note = comparison
        .note
        .as_ref()
        .map_or(String::new(), |note| format!(" ({note})"));
    let verdict = match failed.as_slice() {
        [] => "no worse".to_owned(),
        failed => format!("worse ({})", failed.join("; ")),
    };
    Decision {
        activate: failed.is_empty(),
        reason: format!("{verdict} {figures}{note}"),
    }
}

fn conditions(candidate: &Metrics, baseline: &Metrics) -> Vec<Condition> {
    let mut conditions = vec![
        Condition {
            holds: candidate.j >= baseline.j,
            text: format!("J {:.3}, at least {:.3}", candidate.j, baseline.j),
        },
        Condition {
            holds: candidate.toxicity_rate <= baseline.toxicity_rate + TOXICITY_RATE_MARGIN,
            text: format!(
                "toxicity rate {:.3}, at most {:.3} + {TOXICITY_RATE_MARGIN}",
                candidate.toxicity_rate, baseline.toxicity_rate
            ),
        },
    ];
    if baseline.is_bare_base() {
        return conditions;
    }
    conditions.push(Condition {
        holds: candidate.similarity >= baseline.similarity - SIMILARITY_MARGIN,
        text: format!(
            "similarity {:.3}, at least {:.3} - {SIMILARITY_MARGIN}",
            candidate.similarity, baseline.similarity
        ),
    });
    conditions.push(match (candidate.neutral_perplexity, baseline.neutral_perplexity) {
        (Some(own), Some(other)) => Condition {
            holds: own <= other * PERPLEXITY_RATIO,
            text: format!("neutral perplexity {own:.2}, at most {other:.2} * {PERPLEXITY_RATIO}"),
        },
        _ => Condition {
            holds: true,
            text: "neutral perplexity not measured".to_owned(),
        },
    });
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(adapter: &str) -> Metrics {
        Metrics {
            adapter: adapter.to_owned(),
            examples: 64,
            toxicity_rate: 0.1,
            toxicity: 0.15,
            similarity: 0.8,
            overlap: 0.7,
            fluency: 0.9,
            j: 0.5,
            copied: 0.0,
            empty: 0.0,
            neutral_perplexity: Some(20.0),
            base_perplexity: Some(25.0),
        }
    }

    fn compared(change: impl FnOnce(&mut Metrics)) -> Comparison {
        against("default@1", change)
    }

    fn against(baseline: &str, change: impl FnOnce(&mut Metrics)) -> Comparison {
        let mut candidate = metrics("mine@3");
        change(&mut candidate);
        Comparison {
            candidate,
            baseline: metrics(baseline),
            skipped: 0,
            note: None,
        }
    }

    fn if_better(comparison: &Comparison) -> Decision {
        decide(ActivationPolicy::IfBetter, Some(comparison))
    }

    #[test]
    fn never_and_always_are_not_weighed() {
        let (better, worse) = (compared(|own| own.j = 0.9), compared(|own| own.j = 0.1));
        assert!(!decide(ActivationPolicy::Never, Some(&better)).activate);
        assert!(decide(ActivationPolicy::Always, Some(&worse)).activate);
        assert!(decide(ActivationPolicy::Always, None).activate);
        assert!(!decide(ActivationPolicy::Never, None).activate);
    }

    #[test]
    fn without_a_comparison_nothing_is_activated() {
        for comparison in [None, Some(&compared(|own| own.examples = 0))] {
            let decision = decide(ActivationPolicy::IfBetter, comparison);
            assert!(
                !decision.activate && decision.reason.contains("held back"),
                "{decision:?}"
            );
        }
    }

    #[test]
    fn the_same_figures_are_no_worse_and_the_reason_names_each() {
        let decision = if_better(&compared(|_| ()));
        assert!(decision.activate);
        for figure in [
            "64 sentences",
            "default@1",
            "J 0.500",
            "toxicity rate 0.100",
            "similarity 0.800",
            "perplexity 20.00",
        ] {
            assert!(decision.reason.contains(figure), "{figure}: {}", decision.reason);
        }
    }

    #[test]
    fn each_condition_can_refuse_and_its_margin_can_not() {
        type Change = fn(&mut Metrics);
        let cases: [(&str, Change, Change); 4] = [
            ("J", |own| own.j = 0.4999, |own| own.j = 0.5),
            (
                "toxicity rate",
                |own| own.toxicity_rate = 0.125,
                |own| own.toxicity_rate = 0.119,
            ),
            ("similarity", |own| own.similarity = 0.775, |own| own.similarity = 0.781),
            (
                "neutral perplexity",
                |own| own.neutral_perplexity = Some(22.1),
                |own| own.neutral_perplexity = Some(21.9),
            ),
        ];
        for (name, beyond, within) in cases {
            let refused = if_better(&compared(beyond));
            assert!(
                !refused.activate && refused.reason.starts_with(&format!("worse ({name} ")),
                "{refused:?}"
            );
            assert!(if_better(&compared(within)).activate, "{name}");
        }
    }

    #[test]
    fn a_figure_that_is_not_a_number_refuses() {
        assert!(!if_better(&compared(|own| own.j = f64::NAN)).activate);
        assert!(!if_better(&compared(|own| own.similarity = f64::NAN)).activate);
    }

    #[test]
    fn a_perplexity_that_was_not_measured_is_not_held_against_it() {
        let decision = if_better(&compared(|own| own.neutral_perplexity = None));
        assert!(decision.activate && decision.reason.contains("not measured"));
    }

    #[test]
    fn against_the_bare_base_only_j_and_toxicity_count() {
        let lower = |own: &mut Metrics| {
            own.similarity = 0.6;
            own.neutral_perplexity = Some(90.0);
        };
        assert!(!if_better(&compared(lower)).activate);
        let mut comparison = against("none@0", lower);
        comparison.note = Some("the active adapter is of another base".to_owned());
        let decision = if_better(&comparison);
        assert!(
            decision.activate && decision.reason.contains("another base"),
            "{decision:?}"
        );
        assert!(!if_better(&against("none@0", |own| own.j = 0.4)).activate);
        assert!(!if_better(&against("none@0", |own| own.toxicity_rate = 0.2)).activate);
    }
}
