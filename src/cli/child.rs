//! How a command talks with the worker whose child it is, with `--report json`: JSON lines on standard output, `stop` and the end of
//! input on standard input, and an exit code that says whether another try can help.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Another try with the same input fails the same way, as `EX_DATAERR` of `sysexits.h`.
pub const EX_DATAERR: u8 = 65;
/// Stopped because it was told to, as `EX_TEMPFAIL`.
pub const EX_TEMPFAIL: u8 = 75;

/// Ends the process with a code; whatever there was to say has been said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("exit code {0}")]
pub struct Ended(pub u8);

/// Why a command failed, in the word that a job keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Data or settings that can't work.
    Invalid,
    /// The loss stopped being a number.
    Diverged,
    /// Anything else; another try may succeed.
    Failed,
}

impl Kind {
    /// The exit code that goes with it.
    pub fn code(self) -> u8 {
        match self {
            Self::Invalid | Self::Diverged => EX_DATAERR,
            Self::Failed => 1,
        }
    }
}

#[derive(Serialize)]
struct ErrorLine {
    error: ErrorBody,
}

#[derive(Serialize)]
struct ErrorBody {
    kind: Kind,
    message: String,
}

/// Writes one line of JSON to standard output.
///
/// # Errors
/// When nobody reads it any more.
pub fn say(line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&text)?;
    output.flush()
}

/// Says why the command failed; the returned error ends the process with the code for it.
pub fn failed(kind: Kind, error: &anyhow::Error) -> anyhow::Error {
    let message = format!("{error:#}");
    // Without a reader there is nobody to tell; the code still says it.
    let _ = say(&ErrorLine {
        error: ErrorBody { kind, message },
    });
    Ended(kind.code()).into()
}

/// Listens to standard input on a thread of its own: the token is cancelled by the line `stop`. At the end of input the process ends
/// at once: its worker is dead, and another one may already be at the same work.
pub fn listen() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            match line {
                Ok(line) if line.trim() == "stop" => told.cancel(),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        #[expect(clippy::disallowed_methods, reason = "nobody waits for what would be finished")]
        std::process::exit(i32::from(EX_TEMPFAIL));
    });
    stop
}
