//! `detoxd key`: keys of a service, in its database: the first one is needed before the service can be started for others.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::table::{self, Column};
use crate::access::{Actor, KeyRecord, Keys, Scope};
use crate::config::{StorageConfig, StorageSettings};
use crate::db::Database;

/// Arguments of `detoxd key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it: the only time that it can be seen
    Create {
        /// What it is for
        #[arg(long)]
        name: String,
        /// What it is good for; each scope holds those before it
        #[arg(long, value_enum)]
        scope: ScopeName,
        /// Prints all that is kept beside the key, for programs
        #[arg(long)]
        json: bool,
        /// Where keys are kept
        #[command(flatten)]
        storage: StorageSettings,
    },
    /// Show the keys, the newest first
    List {
        /// For programs
        #[arg(long)]
        json: bool,
        /// Where keys are kept
        #[command(flatten)]
        storage: StorageSettings,
    },
    /// Make a key good for nothing, everywhere within two seconds
    Revoke {
        /// Id of the key
        id: String,
        /// Where keys are kept
        #[command(flatten)]
        storage: StorageSettings,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeName {
    /// Have texts rewritten and scored
    Use,
    /// Upload datasets, run jobs, look at adapters
    Train,
    /// Change what is served; make and revoke keys; read the audit
    Admin,
}

const COLUMNS: [Column; 5] = [
    ("ID", "/id"),
    ("SCOPE", "/scope"),
    ("CREATED", "/created_at"),
    ("REVOKED", "/revoked_at"),
    ("NAME", "/name"),
];

/// Runs the command.
///
/// # Errors
/// When the database can't be opened, or there is no such key.
pub async fn run(args: KeyArgs) -> anyhow::Result<()> {
    let actor = Actor::part("cli");
    match args.command {
        KeyCommand::Create {
            name,
            scope,
            json,
            storage,
        } => {
            let (record, secret) = open(storage).await?.create(&name, scope.into(), &actor).await?;
            if json {
                let mut created = shown(&record);
                created["key"] = secret.expose().into();
                table::print_json(&created);
            } else {
                eprintln!("key {} of scope {}; it is shown only now:", record.id, record.scope);
                println!("{}", secret.expose());
            }
        }
        KeyCommand::List { json, storage } => {
            let keys = open(storage).await?;
            let (mut all, mut before) = (Vec::new(), None::<String>);
            loop {
                let page = keys.list(before.as_deref(), 200).await?;
                let Some(last) = page.last() else { break };
                before = Some(last.id.clone());
                all.extend(page.iter().map(shown));
            }
            if json {
                table::print_json(&json!({ "keys": all }));
            } else {
                table::print(&all, &COLUMNS);
            }
        }
        KeyCommand::Revoke { id, storage } => {
            open(storage).await?.revoke(&id, &actor).await?;
        }
    }
    Ok(())
}

async fn open(storage: StorageSettings) -> anyhow::Result<Keys> {
    let storage = StorageConfig::try_from(storage)?;
    let db = Database::open(storage.database_url.as_deref(), &storage.data_dir).await?;
    Ok(Keys::new(db))
}

fn shown(key: &KeyRecord) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "scope": key.scope,
        "created_at": time(key.created_at),
        "created_by": key.created_by,
        "revoked_at": key.revoked_at.map(time),
    })
}

fn time(milliseconds: i64) -> String {
    chrono::DateTime::from_timestamp_millis(milliseconds)
        .unwrap_or_default()
        .to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

impl From<ScopeName> for Scope {
    fn from(scope: ScopeName) -> Self {
        match scope {
            ScopeName::Use => Self::Use,
            ScopeName::Train => Self::Train,
            ScopeName::Admin => Self::Admin,
        }
    }
}
