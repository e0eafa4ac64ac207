//! `detoxd` rewrites toxic text into text with the same meaning and none of the toxicity.

pub mod cli;
pub mod model;
pub mod prompt;
pub mod train;
