//! How good adapters are, beside each other, and whether one may replace another.
//!
//! - [`measure`]: rewrites examples with several adapters of one model, and measures all on the same sentences; [`sample`]: what was measured of one.
//! - [`chrf`], [`bleu`], [`diversity`]: of texts alone, without a model.
//! - [`bootstrap`]: from what was measured to figures with intervals; [`figures`]: what they mean; [`report`]: all of them, systems side by side;
//!   [`markdown`], [`html`]: for people.
//! - [`mod@decide`]: the stated rule by which a finished training becomes the active version, or does not.
//!
//! The judges are those of the service, or models that the user names (`scoring`): the built-in ones judge what the service does by its own
//! standards.
//!
//! What does not live here: what to do with a decision (`jobs`, `adapters`). `docs/EVALUATION.md` has the formulas.
//!
//! **Invariant:** systems of a report are measured on the same sentences, in the same way.

pub mod bleu;
pub mod bootstrap;
pub mod chrf;
pub mod decide;
pub mod diversity;
pub mod figures;
pub mod html;
pub mod markdown;
pub mod measure;
pub mod report;
pub mod sample;

pub use bootstrap::Estimate;
pub use decide::{Decision, decide};
pub use figures::{Figures, Metric};
pub use measure::{Data, EvaluateError, Evaluator, How, Measurements};
pub use report::{Comparison, Report, Setting, System};

/// Rows that other programs have computed (`tests/fixtures/record_text_metrics.py`); there are some.
#[cfg(test)]
fn recorded(metric: &str) -> Vec<serde_json::Value> {
    let text = include_str!("../../tests/fixtures/text_metrics.json");
    let mut all: serde_json::Value = serde_json::from_str(text).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_value(all[metric].take()).unwrap();
    assert!(!rows.is_empty(), "{metric}");
    rows
}
