//! Whether a finished training becomes the active version.

use serde::{Deserialize, Serialize};

use super::figures::Metric;
use super::report::Comparison;
use crate::jobs::request::ActivationPolicy;

/// How much lower than the active adapter's J may be, where the difference is within chance.
pub const J_MARGIN: f64 = 0.02;
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
/// - J is not lower than the active adapter's, or lower by at most [`J_MARGIN`] and within chance: the 95% interval of the difference, drawn in pairs,
///   reaches 0,
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
    let conditions = conditions(comparison);
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

fn conditions(comparison: &Comparison) -> Vec<Condition> {
    let Comparison {
        candidate, baseline, ..
    } = comparison;
    // A figure that is missing or not a number holds nothing.
    let both = |metric| {
        let value = |system: &super::System| system.value(metric).unwrap_or(f64::NAN);
        (value(candidate), value(baseline))
    };
    let (j, other_j) = both(Metric::J);
    let within_chance = candidate
        .differences
        .get(&Metric::J)
        .is_some_and(|difference| difference.high >= 0.0);
    let (rate, other_rate) = both(Metric::ToxicityRate);
    let mut conditions = vec![
        Condition {
            holds: j >= other_j || (j >= other_j - J_MARGIN && within_chance),
            text: format!("J {j:.3}, at least {other_j:.3}, or {J_MARGIN} less within chance"),
        },
        Condition {
            holds: rate <= other_rate + TOXICITY_RATE_MARGIN,
            text: format!("toxicity rate {rate:.3}, at most {other_rate:.3} + {TOXICITY_RATE_MARGIN}"),
        },
    ];
    if baseline.is_bare_base() {
        return conditions;
    }
    let (similarity, other_similarity) = both(Metric::Similarity);
    conditions.push(Condition {
        holds: similarity >= other_similarity - SIMILARITY_MARGIN,
        text: format!("similarity {similarity:.3}, at least {other_similarity:.3} - {SIMILARITY_MARGIN}"),
    });
    let perplexity = |system: &super::System| system.value(Metric::NeutralPerplexity);
    conditions.push(match (perplexity(candidate), perplexity(baseline)) {
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
    use crate::evaluate::{Estimate, Setting, System};

    fn exactly(value: f64) -> Estimate {
        Estimate {
            value,
            low: value,
            high: value,
        }
    }

    fn system(adapter: &str) -> System {
        let figures = [
            (Metric::ToxicityRate, 0.1),
            (Metric::Similarity, 0.8),
            (Metric::J, 0.5),
            (Metric::NeutralPerplexity, 20.0),
        ];
        System {
            adapter: adapter.to_owned(),
            examples: 64,
            figures: figures.map(|(metric, value)| (metric, exactly(value))).into(),
            differences: [(Metric::J, exactly(0.0))].into(),
        }
    }

    fn set(system: &mut System, metric: Metric, value: f64) {
        system.figures.insert(metric, exactly(value));
    }

    fn compared(change: impl FnOnce(&mut System)) -> Comparison {
        against("default@1", change)
    }

    fn against(baseline: &str, change: impl FnOnce(&mut System)) -> Comparison {
        let mut candidate = system("mine@3");
        change(&mut candidate);
        Comparison {
            candidate,
            baseline: system(baseline),
            setting: Setting::default(),
            note: None,
        }
    }

    fn if_better(comparison: &Comparison) -> Decision {
        decide(ActivationPolicy::IfBetter, Some(comparison))
    }

    #[test]
    fn never_and_always_are_not_weighed() {
        let better = compared(|own| set(own, Metric::J, 0.9));
        let worse = compared(|own| set(own, Metric::J, 0.1));
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
        let cases = [
            (Metric::J, "J", 0.479, 0.5),
            (Metric::ToxicityRate, "toxicity rate", 0.125, 0.119),
            (Metric::Similarity, "similarity", 0.775, 0.781),
            (Metric::NeutralPerplexity, "neutral perplexity", 22.1, 21.9),
        ];
        for (metric, name, beyond, within) in cases {
            let refused = if_better(&compared(|own| set(own, metric, beyond)));
            assert!(
                !refused.activate && refused.reason.starts_with(&format!("worse ({name} ")),
                "{refused:?}"
            );
            assert!(if_better(&compared(|own| set(own, metric, within))).activate, "{name}");
        }
    }

    #[test]
    fn a_lower_j_is_forgiven_where_it_is_small_and_may_be_chance() {
        let lower = |by: f64, high: f64| {
            let difference = Estimate {
                value: -by,
                low: -2.0 * by,
                high,
            };
            if_better(&compared(|own| {
                set(own, Metric::J, 0.5 - by);
                own.differences.insert(Metric::J, difference);
            }))
            .activate
        };
        assert!(lower(0.01, 0.001));
        assert!(!lower(0.01, -0.001), "small, and certain");
        assert!(!lower(0.03, 0.02), "may be chance, and is no trifle");
    }

    fn without(metric: Metric) -> Comparison {
        compared(|own| {
            own.figures.remove(&metric);
        })
    }

    #[test]
    fn a_figure_that_is_not_a_number_refuses() {
        assert!(!if_better(&compared(|own| set(own, Metric::J, f64::NAN))).activate);
        assert!(!if_better(&compared(|own| set(own, Metric::Similarity, f64::NAN))).activate);
        assert!(!if_better(&without(Metric::ToxicityRate)).activate);
    }

    #[test]
    fn a_perplexity_that_was_not_measured_is_not_held_against_it() {
        let decision = if_better(&without(Metric::NeutralPerplexity));
        assert!(decision.activate && decision.reason.contains("not measured"));
    }

    #[test]
    fn against_the_bare_base_only_j_and_toxicity_count() {
        let lower = |own: &mut System| {
            set(own, Metric::Similarity, 0.6);
            set(own, Metric::NeutralPerplexity, 90.0);
        };
        assert!(!if_better(&compared(lower)).activate);
        let mut comparison = against("none@0", lower);
        comparison.note = Some("the active adapter is of another base".to_owned());
        let decision = if_better(&comparison);
        assert!(
            decision.activate && decision.reason.contains("another base"),
            "{decision:?}"
        );
        assert!(!if_better(&against("none@0", |own| set(own, Metric::J, 0.4))).activate);
        assert!(!if_better(&against("none@0", |own| set(own, Metric::ToxicityRate, 0.2))).activate);
    }
}
