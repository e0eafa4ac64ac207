//! `detoxd model`: the models that can be had by name.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::DecimalBytes;

use super::train::SaveDType;
use crate::model::catalogue::{self, Catalogue, Entry, Progress};
use crate::model::merge;

/// Arguments of `detoxd model`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Folder for fetched models [default: $XDG_CACHE_HOME/detoxd, else ~/.cache/detoxd]
    #[arg(long, env = "DETOXD_CACHE_DIR", global = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Fetch a model into the cache, print its path
    Pull {
        /// As `model list` names it
        name: String,
    },
    /// Show the models that can be pulled, and which are here
    List {
        /// Hash the cached files again
        #[arg(long)]
        verify: bool,
    },
    /// Put a model file that you have into the cache, after checking it
    Import {
        /// As `model list` names it
        name: String,
        /// The file, or the folder that holds its files
        path: PathBuf,
    },
    /// Merge an adapter into its base: a full checkpoint in Hugging Face layout
    Merge {
        /// Base model: a name of the catalogue, a GGUF file, a folder in Hugging Face layout, or a hub id (owner/name)
        #[arg(long, env = "DETOXD_MODEL", default_value = "smollm2-135m")]
        model: String,
        /// The adapter, a PEFT folder
        #[arg(long, value_name = "FOLDER")]
        adapter: PathBuf,
        /// Folder of the merged checkpoint
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Type of the numbers [default: the base's, or f16 where that is quantised]
        #[arg(long, value_enum)]
        save_dtype: Option<SaveDType>,
    },
}

/// Runs `detoxd model`. Blocks.
///
/// # Errors
/// An unknown name, no source for a model, a file that is not the model's, a folder that can't be written, and for
/// `list --verify` a cached file that is damaged.
pub fn run(args: ModelArgs) -> anyhow::Result<()> {
    let catalogue = Catalogue::embedded()?;
    let cache = match args.cache_dir {
        Some(folder) => folder,
        None => catalogue::cache_dir()?,
    };
    match args.command {
        ModelCommand::Pull { name } => {
            let entry = find(&catalogue, &name)?;
            let path = catalogue::pull(entry, &cache, Progress::auto())?;
            println!("{}", path.display());
        }
        ModelCommand::List { verify } => list(&catalogue, &cache, verify)?,
        ModelCommand::Import { name, path } => {
            let entry = find(&catalogue, &name)?;
            let path = catalogue::import(entry, &path, &cache)?;
            println!("{}", path.display());
        }
        ModelCommand::Merge {
            model,
            adapter,
            out,
            save_dtype,
        } => {
            let base = super::model_path(&model, Some(&cache))?;
            merge::merge(&base, &adapter, &out, save_dtype.map(Into::into))?;
            println!("{}", out.display());
        }
    }
    Ok(())
}

fn find<'a>(catalogue: &'a Catalogue, name: &str) -> anyhow::Result<&'a Entry> {
    catalogue.entry(name).with_context(|| {
        let names: Vec<_> = catalogue.entries().iter().map(|e| &*e.name).collect();
        format!(
            "there is no model `{name}` in the catalogue; it has: {}",
            names.join(", ")
        )
    })
}

fn list(catalogue: &Catalogue, cache: &Path, verify: bool) -> anyhow::Result<()> {
    let width = catalogue.entries().iter().map(|e| e.name.len()).max();
    let width = width.unwrap_or(0).max("NAME".len());
    println!(
        "{:width$}  {:>9}  {:12}  {:9}  PATH",
        "NAME", "SIZE", "LICENCE", "STATE"
    );
    let mut damaged = Vec::new();
    for entry in catalogue.entries() {
        let path = catalogue::location(entry, cache);
        let state = if !path.exists() {
            if entry.is_built_in() { "built-in" } else { "absent" }
        } else if verify {
            if catalogue::verify(entry, cache) {
                "verified"
            } else {
                damaged.push(&*entry.name);
                "damaged"
            }
        } else if catalogue::cached_in(entry, cache).is_some() {
            "cached"
        } else {
            "damaged"
        };
        let size = DecimalBytes(entry.bytes()).to_string();
        println!(
            "{:width$}  {size:>9}  {:12}  {state:9}  {}",
            entry.name,
            entry.licence,
            path.display()
        );
    }
    if !damaged.is_empty() {
        bail!(
            "damaged: {0}; `detoxd model pull` fetches a damaged model again",
            damaged.join(", ")
        );
    }
    Ok(())
}
