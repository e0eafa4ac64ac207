//! `detoxd` rewrites toxic text into text with the same meaning and none of the toxicity.

pub mod access;
pub mod adapters;
pub mod cli;
pub mod config;
pub mod datasets;
pub mod db;
pub mod engine;
pub mod evaluate;
pub mod generate;
pub mod http;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod outgoing;
pub mod pipeline;
pub mod prompt;
pub mod scoring;
pub mod shutdown;
pub mod store;
pub mod svg;
pub mod tasks;
pub mod telemetry;
pub mod train;
