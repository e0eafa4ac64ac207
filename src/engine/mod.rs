//! The engine: continues token sequences, many at once, each under its own adapter.
//!
//! - [`Engine`] (`handle`) is what others hold; it sends requests to one thread and waits for answers.
//! - `scheduler` is that thread: it owns every sequence and its cache, and nobody else touches them.
//! - `activity` is what it counts, and whether it makes progress.
//! - `sequence` is one request's state in the batch; `sampling` chooses tokens from logits.
//!
//! **Invariant:** this room sees token ids only; it knows no text, no prompt and no HTTP.

mod activity;
mod handle;
mod sampling;
mod scheduler;
mod sequence;

pub use activity::Activity;
pub use handle::{Completion, Engine, EngineConfig, EngineError, Generated, Generation, LikelihoodRequest, Timing};
pub use sampling::Sampling;
