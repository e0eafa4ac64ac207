//! The command line: one file a command. The settings themselves are `config`'s.

pub mod compose;
pub mod model;
pub mod rewrite;
pub mod scorer;
pub mod train;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{ConfigError, RawConfig, file::FileDefaults};

/// Rewrites toxic text into text with the same meaning and none of the toxicity.
///
/// Every setting is a flag, an environment variable and a key of `detoxd.toml` (the flag's name
/// with underscores), in that order of precedence.
#[derive(Debug, Parser)]
#[command(name = "detoxd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Without a command: `serve`.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: RawConfig,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the HTTP service (the default command).
    Serve(Box<RawConfig>),
    /// Rewrite standard input, one text a line, to standard output.
    Rewrite(Box<rewrite::RewriteArgs>),
    /// Train an adapter or a model.
    Train(train::TrainArgs),
    /// Train and check the toxicity scorer.
    Scorer(scorer::ScorerArgs),
    /// List and fetch models.
    Model(model::ModelArgs),
    /// Print the OpenAPI document.
    Openapi,
}

/// Why there is no command to run.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The configuration file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments are wrong, or ask for help or the version.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
}

/// Reads the configuration file, then `args`.
///
/// # Errors
/// When either is wrong; also for `--help` and `--version`, as clap has it.
pub fn parse(args: Vec<OsString>) -> Result<Command, UsageError> {
    let command = FileDefaults::discover(&args)?.apply(Cli::command());
    let cli = Cli::from_arg_matches(&command.try_get_matches_from(args)?)?;
    Ok(cli
        .command
        .unwrap_or_else(|| Command::Serve(Box::new(cli.serve))))
}
