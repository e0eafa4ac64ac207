//! `detoxd jobs`: training jobs of a running service.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::{Client, ServerArgs, encoded};
use super::table::{self, Column};
use super::{dataset, watch};

/// Arguments of `detoxd jobs`.
#[derive(Debug, Args)]
pub struct JobsArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Prints what the service answers, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    /// Show the jobs, the newest first
    List {
        /// Only in these states, separated by commas: queued, running, succeeded, failed, cancelled
        #[arg(long)]
        status: Option<String>,
        /// Only those that train this adapter
        #[arg(long)]
        name: Option<String>,
        /// So many at most
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show one job
    Show {
        /// Id of the job
        id: String,
    },
    /// Follow a job to its end; the exit code is 0 when it has succeeded, 1 when it has failed or was cancelled
    Watch {
        /// Id of the job
        id: String,
    },
    /// Stop a job
    Cancel {
        /// Id of the job
        id: String,
    },
    /// Try a failed or cancelled job again, from its last checkpoint
    Retry {
        /// Id of the job
        id: String,
    },
    /// Submit a job: a request as JSON, or in flags
    Submit(Box<SubmitArgs>),
}

#[derive(Debug, Args)]
struct SubmitArgs {
    /// File with the request as `POST /train` takes it, `-` for standard input; flags replace its fields
    file: Option<PathBuf>,
    /// Name of the adapter that a new version is made of
    #[arg(long)]
    name: Option<String>,
    /// Id of a dataset, or a file of JSON lines to upload
    #[arg(long)]
    dataset: Option<String>,
    /// Base model [default: the one that is served]
    #[arg(long)]
    base: Option<String>,
    /// What is minimised: cp or sft
    #[arg(long)]
    objective: Option<String>,
    /// A hyperparameter, such as `learning_rate=1e-4`; can be given several times
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// When the result becomes the active version: never, if_better or always
    #[arg(long)]
    activate: Option<String>,
    /// Whether the result is measured on examples that are held back
    #[arg(long)]
    evaluate: Option<bool>,
    /// Jobs of a higher one are run first
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i64>,
    /// The same for every try of one request, so that it makes one job
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Follows the job to its end
    #[arg(long)]
    watch: bool,
}

const COLUMNS: [Column; 8] = [
    ("ID", "/id"),
    ("STATUS", "/status"),
    ("NAME", "/request/name"),
    ("STEP", "/progress/step"),
    ("STEPS", "/progress/steps"),
    ("LOSS", "/progress/loss"),
    ("CREATED", "/created_at"),
    ("ADAPTER", "/adapter"),
];

const FIELDS: [Column; 21] = [
    ("id", "/id"),
    ("status", "/status"),
    ("phase", "/phase"),
    ("name", "/request/name"),
    ("base", "/request/base"),
    ("dataset", "/request/dataset"),
    ("objective", "/request/objective"),
    ("hyperparameters", "/request/hyperparameters"),
    ("activate", "/request/activate"),
    ("step", "/progress/step"),
    ("of", "/progress/steps"),
    ("loss", "/progress/loss"),
    ("tokens/s", "/progress/tokens_per_second"),
    ("attempts", "/attempts"),
    ("created", "/created_at"),
    ("started", "/started_at"),
    ("finished", "/finished_at"),
    ("tried again", "/retry_at"),
    ("error", "/error/message"),
    ("metrics", "/metrics"),
    ("adapter", "/adapter"),
];

/// Runs the command. Blocks.
///
/// # Errors
/// When the service can't be reached or refuses, and when a watched job has not succeeded.
pub fn run(args: JobsArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    match args.command {
        JobsCommand::List { status, name, limit } => {
            let mut path = format!("/jobs?limit={limit}");
            for (key, value) in [("status", status), ("name", name)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{key}={}", encoded(&value)));
                }
            }
            let page = client.get(&path)?;
            if args.json {
                table::print_json(&page);
            } else {
                table::print(list(&page, "jobs"), &COLUMNS);
            }
        }
        JobsCommand::Show { id } => show(&client.get(&job(&id))?, args.json),
        JobsCommand::Cancel { id } => show(&client.post(&format!("{}/cancel", job(&id)))?, args.json),
        JobsCommand::Retry { id } => show(&client.post(&format!("{}/retry", job(&id)))?, args.json),
        JobsCommand::Watch { id } => watch::run(&client, &job(&id), args.json)?,
        JobsCommand::Submit(submit) => {
            let id = submit_job(&client, &submit)?;
            if submit.watch {
                eprintln!("job {id}");
                watch::run(&client, &job(&id), args.json)?;
            } else if args.json {
                table::print_json(&json!({ "id": id }));
            } else {
                println!("{id}");
            }
        }
    }
    Ok(())
}

fn job(id: &str) -> String {
    format!("/jobs/{}", encoded(id))
}

/// The items of a page.
pub(super) fn list<'a>(page: &'a Value, name: &str) -> &'a [Value] {
    page[name].as_array().map_or(&[], Vec::as_slice)
}

fn show(job: &Value, as_json: bool) {
    if as_json {
        table::print_json(job);
    } else {
        table::print_fields(job, &FIELDS);
    }
}

fn submit_job(client: &Client, args: &SubmitArgs) -> anyhow::Result<String> {
    let mut body = match &args.file {
        Some(file) => read(file)?,
        None => Map::new(),
    };
    if let Some(given) = &args.dataset {
        let id = if Path::new(given).is_file() {
            let uploaded = dataset::upload(client, Path::new(given), None)?;
            uploaded["id"].as_str().unwrap_or_default().to_owned()
        } else {
            given.clone()
        };
        body.insert("dataset".to_owned(), id.into());
    }
    for (name, value) in [
        ("name", args.name.clone().map(Value::from)),
        ("base", args.base.clone().map(Value::from)),
        ("objective", args.objective.clone().map(Value::from)),
        ("activate", args.activate.clone().map(Value::from)),
        ("evaluate", args.evaluate.map(Value::from)),
        ("priority", args.priority.map(Value::from)),
    ] {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    }
    if !args.settings.is_empty() {
        let settings = body.entry("hyperparameters").or_insert_with(|| json!({}));
        for setting in &args.settings {
            let (name, value) = hyperparameter(setting)?;
            settings[name] = value;
        }
    }
    let headers = args.idempotency_key.as_deref().map(|key| ("idempotency-key", key));
    let accepted = client.send_json_with(Method::POST, "/train", &body.into(), headers.as_slice())?;
    let id = accepted["id"]
        .as_str()
        .context("the service accepted the job without an id")?;
    Ok(id.to_owned())
}

fn read(file: &Path) -> anyhow::Result<Map<String, Value>> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a JSON object", file.display()))
}

/// A hyperparameter as it is written on the command line: JSON where it is JSON, several words as a list, else a word.
fn hyperparameter(setting: &str) -> anyhow::Result<(&str, Value)> {
    let Some((name, value)) = setting.split_once('=') else {
        bail!("--set {setting}: expected NAME=VALUE");
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| match name {
        "target_modules" => value.split(',').map(Value::from).collect(),
        _ => value.into(),
    });
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperparameters_are_numbers_lists_and_words() {
        for (setting, name, value) in [
            ("learning_rate=1e-4", "learning_rate", json!(1e-4)),
            ("max_steps=40", "max_steps", json!(40)),
            ("detach_prototype=true", "detach_prototype", json!(true)),
            ("phi=log_perplexity", "phi", json!("log_perplexity")),
            (
                "target_modules=q_proj,v_proj",
                "target_modules",
                json!(["q_proj", "v_proj"]),
            ),
            ("target_modules=q_proj", "target_modules", json!(["q_proj"])),
        ] {
            assert_eq!(hyperparameter(setting).unwrap(), (name, value));
        }
        assert!(hyperparameter("epochs").is_err());
    }
}
