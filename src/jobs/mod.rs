//! The queue of training jobs, and the worker that runs them.
//!
//! - [`job`]: a job as it is kept; [`request`]: what was asked for.
//! - [`queue`]: the queue as clients see it; [`claims`]: as workers do. One statement a function. Whoever runs a job holds a
//!   [`Claim`]: its writes count for as long as nobody else has claimed the job since.
//! - [`metrics`]: what `/metrics` shows of jobs.
//!
//! What does not live here: training itself (`train`, in a child process), and what becomes of a version once it is registered
//! (`adapters`).
//!
//! **Invariant:** a job that was accepted ends as succeeded, failed or cancelled, whatever dies in between.
//! **Invariant:** at most one worker's writes to a job count at any time.

mod checkpoints;
pub mod child;
pub mod claims;
mod finish;
mod heartbeat;
pub mod job;
pub mod metrics;
mod prepare;
pub mod queue;
pub mod request;
mod row;
mod run;
mod split;
pub mod worker;

pub use claims::{Claim, ClaimError};
pub use job::{Job, JobError, JobState, Phase, Progress};
pub use metrics::{JobMetrics, Outcome};
pub use queue::{JobFilter, NewJob, Queue, QueueCounts, QueueError, Submitted};
pub use request::TrainRequest;
pub use run::Ended;
pub use worker::{BaseError, TickOutcome, Worker};
