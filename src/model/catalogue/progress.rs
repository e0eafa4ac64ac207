//! How far a download is: a bar on a terminal, a log line now and then elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

/// Where to show how far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A bar on stderr.
    Bar,
    /// Log lines, at most one in ten seconds and one for each tenth.
    Log,
    /// Nowhere.
    Silent,
}

impl Progress {
    /// A bar when stderr is a terminal, log lines otherwise.
    pub fn auto() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bar
        } else {
            Self::Log
        }
    }
}

const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// One download being shown. The bar goes away with it.
pub(super) struct Meter {
    total: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Log { tenths: u64, last: Instant },
    Nothing,
}

impl Meter {
    /// `total` in bytes.
    pub fn start(progress: Progress, what: &str, total: u64) -> Self {
        let shown = match progress {
            Progress::Bar => Shown::Bar(bar(what, total)),
            Progress::Log => Shown::Log {
                tenths: 0,
                last: Instant::now(),
            },
            Progress::Silent => Shown::Nothing,
        };
        Self { total, shown }
    }

    pub fn set(&mut self, position: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(position),
            Shown::Log { tenths, last } => {
                let now = 10 * position / self.total.max(1);
                if now > *tenths && last.elapsed() >= LOG_INTERVAL {
                    *tenths = now;
                    *last = Instant::now();
                    let (done, total) = (DecimalBytes(position), DecimalBytes(self.total));
                    tracing::info!("fetched {done} of {total}");
                }
            }
            Shown::Nothing => {}
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &str, total: u64) -> ProgressBar {
    let template = "{msg} {bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
    let bar = ProgressBar::new(total).with_message(what.to_owned());
    // The template is a constant and right; were it not, the plain bar would do.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
