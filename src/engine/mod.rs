//! The engine: continues token sequences, many at once, each under its own adapter.
//!
//! - [`Engine`] (`handle`) is what others hold; it sends requests to one thread and waits for answers.
//! - `scheduler` is that thread: it owns every sequence and its cache, and nobody else touches them; `step` is one forward pass.
//! - `queue` is what waits, in a fair order; `prefixes` what is remembered of prompts.
//! - `sequence` is one request's state in the batch, `caches` what it remembers; `sampling` chooses tokens from logits; `scoring` is a text's likelihood.
//! - `draft` guesses tokens from a source; `pace` measures what guesses cost and bring, and says how many to make.
//! - `activity` is what it counts, and whether it makes progress; `load` says how long a newcomer would wait.
//!
//! **Invariant:** what is written depends on the request alone: not on drafts, nor on what else is in the batch.
//! **Invariant:** this room sees token ids only; it knows no text, no prompt and no HTTP.

mod activity;
mod caches;
mod draft;
mod handle;
mod load;
mod pace;
mod prefixes;
mod queue;
pub mod sampling;
mod scheduler;
mod scoring;
mod sequence;
mod step;

pub use activity::Activity;
pub use handle::{Completion, Engine, EngineConfig, EngineError, Generated, Generation, LikelihoodRequest, Timing};
pub use sampling::Sampling;
