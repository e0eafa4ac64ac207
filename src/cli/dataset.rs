//! `detoxd dataset`: training data of a running service.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, ClientError, ServerArgs, encoded};
use super::jobs::list;
use super::table::{self, Column};

/// Arguments of `detoxd dataset`.
#[derive(Debug, Args)]
pub struct DatasetArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Prints what the service answers, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: DatasetCommand,
}

#[derive(Debug, Subcommand)]
enum DatasetCommand {
    /// Upload a file of JSON lines, print the dataset's id
    Upload {
        /// The file
        file: PathBuf,
        /// What to call it [default: the file's name]
        #[arg(long)]
        name: Option<String>,
    },
    /// Show the datasets, the newest first
    List {
        /// So many at most
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Delete a dataset that no unfinished job needs
    Delete {
        /// Id of the dataset
        id: String,
    },
}

const COLUMNS: [Column; 5] = [
    ("ID", "/id"),
    ("ROWS", "/rows"),
    ("BYTES", "/bytes"),
    ("CREATED", "/created_at"),
    ("NAME", "/name"),
];

/// Runs the command. Blocks.
///
/// # Errors
/// When a file can't be read, or the service can't be reached or refuses.
pub fn run(args: DatasetArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    match args.command {
        DatasetCommand::Upload { file, name } => {
            let dataset = upload(&client, &file, name.as_deref())?;
            if args.json {
                table::print_json(&dataset);
            } else {
                println!("{}", dataset["id"].as_str().unwrap_or_default());
            }
        }
        DatasetCommand::List { limit } => {
            let page = client.get(&format!("/datasets?limit={limit}"))?;
            if args.json {
                table::print_json(&page);
            } else {
                table::print(list(&page, "datasets"), &COLUMNS);
            }
        }
        DatasetCommand::Delete { id } => {
            client.delete(&format!("/datasets/{}", encoded(&id)))?;
        }
    }
    Ok(())
}

/// Uploads a file; the dataset.
pub(super) fn upload(client: &Client, file: &Path, name: Option<&str>) -> Result<Value, ClientError> {
    let opened = std::fs::File::open(file).map_err(|reason| ClientError::File {
        file: file.display().to_string(),
        reason,
    })?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    client.upload(
        &format!("/datasets?name={}", encoded(&name)),
        "application/x-ndjson",
        opened,
    )
}
