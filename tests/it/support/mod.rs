//! What the tests share.

pub mod adapters;
pub mod app;
pub mod databases;
pub mod fake;
pub mod proxy;
pub mod queue;
