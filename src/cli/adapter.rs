//! `detoxd adapter`: the adapters of a running service.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::{Client, ServerArgs, encoded};
use super::jobs::list;
use super::table::{self, Column};
use crate::adapters::{AdapterVersion, CONFIG, WEIGHTS};

/// Arguments of `detoxd adapter`.
#[derive(Debug, Args)]
pub struct AdapterArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Prints what the service answers, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: AdapterCommand,
}

#[derive(Debug, Subcommand)]
enum AdapterCommand {
    /// Show the versions
    List,
    /// Show one version
    Show {
        /// `name@version`
        version: AdapterVersion,
    },
    /// Bring an adapter into the registry: a PEFT folder or a .tar.gz of this machine
    Import(ImportArgs),
    /// Write a version's files to a .tar.gz
    Export {
        /// `name@version`
        version: AdapterVersion,
        /// The file [default: name-version.tar.gz]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Serve a version from now on; running requests finish on theirs
    Activate {
        /// `name@version`
        version: AdapterVersion,
        #[command(flatten)]
        expected: Expected,
    },
    /// Serve the version that was active before
    Rollback {
        #[command(flatten)]
        expected: Expected,
    },
    /// Delete a version that is not served
    Delete {
        /// `name@version`
        version: AdapterVersion,
    },
    /// Show what was served, and since when, the newest first
    History {
        /// So many at most
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show the metrics of versions side by side
    Compare {
        /// `name@version`, two or more
        #[arg(required = true, num_args = 2..)]
        versions: Vec<AdapterVersion>,
    },
    /// Give versions a share of the requests; the active one has the rest. Without one, it has all
    Traffic {
        /// `name@version=WEIGHT`, the weight from 0 to 1
        #[arg(value_name = "SHARE")]
        weights: Vec<String>,
        /// `name@version` that sees the requests too, without being answered by
        #[arg(long)]
        shadow: Option<AdapterVersion>,
        #[command(flatten)]
        expected: Expected,
    },
    /// Keep a version from being deleted
    Pin {
        /// `name@version`
        version: AdapterVersion,
    },
    /// Let a version be deleted again
    Unpin {
        /// `name@version`
        version: AdapterVersion,
    },
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// Folder with adapter_config.json and adapter_model.safetensors, or their .tar.gz
    #[arg(required_unless_present_any = ["hub", "on_server"])]
    path: Option<PathBuf>,
    /// Name that the version gets [default: the folder's or file's]
    #[arg(long)]
    name: Option<String>,
    /// Instead of files of this machine, a repository of the model hub, `owner/name`
    #[arg(long, value_name = "REPOSITORY", conflicts_with_all = ["path", "on_server"], requires = "name")]
    hub: Option<String>,
    /// Instead of files of this machine, a folder of the service's, below its import folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "path", requires = "name")]
    on_server: Option<String>,
}

#[derive(Debug, Args)]
struct Expected {
    /// Only if this version is the active one
    #[arg(long, value_name = "VERSION")]
    expected: Option<AdapterVersion>,
}

impl Expected {
    fn body(&self) -> Map<String, Value> {
        let expected = self.expected.iter();
        expected
            .map(|version| ("expected".to_owned(), version.to_string().into()))
            .collect()
    }
}

const COLUMNS: [Column; 9] = [
    ("NAME", "/name"),
    ("VERSION", "/version"),
    ("STATE", "/state"),
    ("PINNED", "/pinned"),
    ("RANK", "/rank"),
    ("BYTES", "/bytes"),
    ("SOURCE", "/source"),
    ("CREATED", "/created_at"),
    ("BASE", "/base"),
];

const HISTORY: [Column; 7] = [
    ("REVISION", "/revision"),
    ("ACTIVE", "/active"),
    ("ACTION", "/action"),
    ("AT", "/at"),
    ("BY", "/actor"),
    ("WEIGHTS", "/weights"),
    ("SHADOW", "/shadow"),
];

/// Measured when it was made, on examples that it was not trained on.
const COMPARED: [Column; 9] = [
    ("ADAPTER", "/adapter"),
    ("FROM", "/lineage/parent"),
    ("EXAMPLES", "/metrics/examples"),
    ("TOXIC", "/metrics/figures/toxicity_rate/value"),
    ("SIMILARITY", "/metrics/figures/similarity/value"),
    ("FLUENCY", "/metrics/figures/fluency/value"),
    ("J", "/metrics/figures/j/value"),
    ("COPIED", "/metrics/figures/copied/value"),
    ("CREATED", "/lineage/created_at"),
];

/// Runs the command. Blocks.
///
/// # Errors
/// When a file can't be read or written, or the service can't be reached or refuses.
pub fn run(args: AdapterArgs) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let answer = match args.command {
        AdapterCommand::List => {
            show_list(&client.get("/adapters")?, "adapters", &COLUMNS, args.json);
            return Ok(());
        }
        AdapterCommand::History { limit } => {
            let all = client.get(&format!("/adapters/deployments?limit={limit}"))?;
            show_list(&all, "deployments", &HISTORY, args.json);
            return Ok(());
        }
        AdapterCommand::Export { version, out } => return export(&client, &version, out),
        AdapterCommand::Delete { version } => {
            client.delete(&path(&version))?;
            return Ok(());
        }
        AdapterCommand::Show { version } => client.get(&path(&version))?,
        AdapterCommand::Import(import) => import_adapter(&client, &import)?,
        AdapterCommand::Activate { version, expected } => {
            let path = format!("{}/activate", path(&version));
            client.send_json(Method::POST, &path, &expected.body().into())?
        }
        AdapterCommand::Rollback { expected } => {
            client.send_json(Method::POST, "/adapters/rollback", &expected.body().into())?
        }
        AdapterCommand::Compare { versions } => {
            let versions: Vec<String> = versions.iter().map(|version| encoded(&version.to_string())).collect();
            let compared = client.get(&format!("/adapters/compare?versions={}", versions.join(",")))?;
            show_list(&compared, "versions", &COMPARED, args.json);
            return Ok(());
        }
        AdapterCommand::Traffic {
            weights,
            shadow,
            expected,
        } => {
            let mut body = expected.body();
            let weights: anyhow::Result<Vec<Value>> = weights.iter().map(|weight| share(weight)).collect();
            body.insert("weights".to_owned(), weights?.into());
            body.insert("shadow".to_owned(), shadow.map(|version| version.to_string()).into());
            client.send_json(Method::PUT, "/adapters/traffic", &body.into())?
        }
        AdapterCommand::Pin { version } => {
            client.send_json(Method::PUT, &format!("{}/pin", path(&version)), &json!({}))?
        }
        AdapterCommand::Unpin { version } => client.delete(&format!("{}/pin", path(&version)))?,
    };
    show(&answer, args.json);
    Ok(())
}

fn path(version: &AdapterVersion) -> String {
    format!("/adapters/{}/{}", encoded(version.name()), version.number())
}

fn show_list(answer: &Value, name: &str, columns: &[Column], as_json: bool) {
    if as_json {
        table::print_json(answer);
    } else {
        table::print(list(answer, name), columns);
    }
}

/// Prints an answer: every field of it below the other, unless it is for a program.
fn show(answer: &Value, as_json: bool) {
    match answer {
        Value::Null => {}
        Value::Object(fields) if !as_json => table::print_all_fields(fields),
        _ => table::print_json(answer),
    }
}

fn share(text: &str) -> anyhow::Result<Value> {
    let Some((version, weight)) = text.split_once('=') else {
        bail!("{text}: expected name@version=WEIGHT");
    };
    let version: AdapterVersion = version.parse().with_context(|| text.to_owned())?;
    let weight: f64 = weight
        .parse()
        .ok()
        .filter(|weight| (0.0..=1.0).contains(weight))
        .with_context(|| format!("{text}: the weight must be a number from 0 to 1"))?;
    Ok(json!({ "adapter": version.to_string(), "weight": weight }))
}

fn import_adapter(client: &Client, args: &ImportArgs) -> anyhow::Result<Value> {
    for (key, value) in [("hub", &args.hub), ("path", &args.on_server)] {
        if let Some(value) = value {
            let body = json!({ "name": args.name, key: value });
            return Ok(client.send_json(Method::POST, "/adapters", &body)?);
        }
    }
    let path = args.path.as_deref().context("nothing to import")?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(path)?,
    };
    let archive = if path.is_dir() {
        pack(path)?
    } else {
        File::open(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    Ok(client.upload(
        &format!("/adapters?name={}", encoded(&name)),
        "application/gzip",
        archive,
    )?)
}

fn name_of(path: &Path) -> anyhow::Result<String> {
    let whole = path
        .canonicalize()
        .with_context(|| format!("cannot read {}", path.display()))?;
    let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = [".tar.gz", ".tgz"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(&name);
    Ok(name.to_owned())
}

/// The two files of a PEFT folder as an archive; nothing else that lies there.
fn pack(folder: &Path) -> anyhow::Result<File> {
    let encoder = flate2::write::GzEncoder::new(tempfile::tempfile()?, flate2::Compression::fast());
    let mut archive = tar::Builder::new(encoder);
    for name in [CONFIG, WEIGHTS] {
        let file = folder.join(name);
        ensure!(
            file.is_file(),
            "{} has no {name}; expected a folder as PEFT saves it",
            folder.display()
        );
        archive
            .append_path_with_name(&file, name)
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.rewind()?;
    Ok(file)
}

fn export(client: &Client, version: &AdapterVersion, out: Option<PathBuf>) -> anyhow::Result<()> {
    let out = out.unwrap_or_else(|| format!("{}-{}.tar.gz", version.name(), version.number()).into());
    let (_, mut archive) = client.read(&format!("{}/archive", path(version)), &[])?;
    // Under its name only when it is whole.
    let folder = out
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut write = || -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        io::copy(&mut archive, &mut file)?;
        file.persist(&out)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}", out.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_folder_is_packed_without_what_else_lies_there() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [(CONFIG, "config"), (WEIGHTS, "weights"), ("README.md", "text")] {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(pack(folder.path()).unwrap()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            found.push((entry.path().unwrap().display().to_string(), content));
        }
        assert_eq!(
            found,
            [
                (CONFIG.to_owned(), "config".to_owned()),
                (WEIGHTS.to_owned(), "weights".to_owned())
            ]
        );
        std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
        assert!(pack(folder.path()).unwrap_err().to_string().contains(WEIGHTS));
    }

    #[test]
    fn shares_are_read() {
        assert_eq!(share("a@2=0.1").unwrap(), json!({ "adapter": "a@2", "weight": 0.1 }));
        for wrong in ["a@2", "a=0.1", "a@2=2", "a@2=x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_import_is_named_after_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("milder.tar.gz");
        std::fs::write(&file, "").unwrap();
        assert_eq!(name_of(&file).unwrap(), "milder");
        let inner = folder.path().join("run/adapter");
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(name_of(&inner.join("../adapter")).unwrap(), "adapter");
    }
}
