//! `detoxd` rewrites toxic text into text with the same meaning and none of the toxicity.

pub mod adapters;
pub mod cli;
pub mod config;
pub mod engine;
pub mod generate;
pub mod http;
pub mod metrics;
pub mod model;
pub mod pipeline;
pub mod prompt;
pub mod scoring;
pub mod shutdown;
pub mod telemetry;
pub mod train;
