//! How good an adapter is, and whether it may replace another.
//!
//! - [`metrics`]: the figures, each with its formula; from samples to a summary, without a model.
//! - [`run`]: rewrites held-back examples with two adapters of one model and measures both on the same sentences.
//! - [`mod@decide`]: the stated rule by which a finished training becomes the active version, or does not.
//!
//! The scorers are those of the service: they judge what it does by its own standards. An independent judge is no part of the
//! program (docs/EXPERIMENTS.md).
//!
//! What does not live here: what to do with a decision (`jobs`, `adapters`).
//!
//! **Invariant:** candidate and baseline are measured on the same sentences, in the same way, or not compared.

pub mod decide;
pub mod metrics;
pub mod run;

pub use decide::{Decision, decide};
pub use metrics::{Comparison, Metrics, Sample};
pub use run::{EvaluateError, Evaluator, How};
