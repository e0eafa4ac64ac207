//! The command line: one file a command. The settings themselves are `config`'s.

pub mod adapter;
pub mod backend;
pub mod bench;
pub mod child;
pub mod client;
pub mod compose;
pub mod dataset;
pub mod evaluate;
pub mod generate;
pub mod health;
pub mod jobs;
pub mod judges;
pub mod key;
pub mod model;
pub mod rewrite;
pub mod scorer;
mod start;
mod table;
pub mod train;
mod watch;
pub mod worker;

use std::ffi::OsString;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{ConfigError, RawConfig, file::FileDefaults};
use crate::model::catalogue::{self, Catalogue, FilesOf, HubId, Network, Progress};

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
    /// Run training jobs from the queue.
    Worker(Box<worker::WorkerArgs>),
    /// Training jobs of a running service.
    Jobs(jobs::JobsArgs),
    /// Adapters of a running service.
    Adapter(adapter::AdapterArgs),
    /// Training data of a running service.
    Dataset(dataset::DatasetArgs),
    /// Keys of a service.
    Key(Box<key::KeyArgs>),
    /// Rewrite standard input, one text a line, to standard output.
    Rewrite(Box<rewrite::RewriteArgs>),
    /// Train an adapter or a model.
    Train(Box<train::TrainArgs>),
    /// Measure adapters on held-back examples, side by side.
    Evaluate(Box<evaluate::EvaluateArgs>),
    /// Ask a running process how it is.
    Health(health::HealthArgs),
    /// Measure how fast a running service answers.
    Bench(Box<bench::BenchArgs>),
    /// Make training sets: paraphrases by an LLM, or samples of a rewriter.
    Generate(Box<generate::GenerateArgs>),
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
    Ok(cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.serve))))
}

/// What answers call a model: its name in the catalogue, that of its file or folder, or the name in its hub id.
pub fn model_name(model: &str) -> String {
    let in_catalogue = Catalogue::embedded().is_ok_and(|catalogue| catalogue.entry(model).is_some());
    if in_catalogue {
        return model.to_owned();
    }
    let path = std::path::Path::new(model);
    let id = model.parse::<HubId>().ok().filter(|_| !path.exists());
    if let Some(id) = &id
        && id.file.is_none()
        && let Some((_, name)) = id.repository.split_once('/')
    {
        return name.to_owned();
    }
    match path.file_name() {
        Some(name) => name.to_string_lossy().trim_end_matches(".gguf").to_owned(),
        None => model.to_owned(),
    }
}

/// The file or folder of a model: a path that exists as it is, else a hub id.
fn folder_or_hub(model: &str, files: FilesOf) -> anyhow::Result<std::path::PathBuf> {
    let path = std::path::PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    let id: HubId = model
        .parse()
        .map_err(|_| anyhow::anyhow!("it is neither a file or folder that exists, nor a hub id (owner/name)"))?;
    catalogue::fetch_from_hub(&id, files, &Network::from_env(), Progress::auto())
        .context("it is no file or folder here, so it was taken for a model of the hub")
}

/// The file or folder of a model: a path as it is; a name of the catalogue from the cache, fetched into it when it is not there; else a
/// hub id, from the hub's cache or the hub.
///
/// # Errors
/// When it is none of them, or can't be fetched; with the next step.
pub fn model_path(model: &str, cache: Option<&std::path::Path>) -> anyhow::Result<std::path::PathBuf> {
    let catalogue = Catalogue::embedded()?;
    let Some(entry) = catalogue.entry(model) else {
        return folder_or_hub(model, FilesOf::Decoder)
            .with_context(|| format!("{model} is no name that `detoxd model list` shows"));
    };
    let cache = match cache {
        Some(folder) => folder.to_owned(),
        None => catalogue::cache_dir()?,
    };
    Ok(catalogue::pull(entry, &cache, Progress::auto())?)
}
