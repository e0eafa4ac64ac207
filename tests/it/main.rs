//! Behaviour of the service through its router, and of `detoxd rewrite`, with a rewriter whose
//! answers are known. No model is needed.

mod adapters;
mod bad_input;
mod cli;
mod dashboards;
mod database;
mod datasets;
mod detoxify;
mod follow;
mod jobs;
mod kept;
mod keys;
mod leases;
mod limits;
mod observe;
mod operations;
mod queue;
mod registry;
mod rewrite;
mod score;
mod shutdown;
mod store;
mod stream;
mod support;
mod train;
mod versions;
mod worker;
