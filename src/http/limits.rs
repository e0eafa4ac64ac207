//! Who is let in, and for how long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{FieldError, Problem, Reason};

/// A bounded number of places; who finds none is turned away at once, not queued.
#[derive(Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    running: IntGauge,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
    running: IntGauge,
}

impl Admission {
    /// `places` requests at once; `running` shows how many there are.
    pub fn new(places: usize, running: IntGauge) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            running,
        }
    }

    /// A place.
    ///
    /// # Errors
    /// 503 with `Retry-After` when all are taken.
    pub fn admit(&self) -> Result<Permit, Problem> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Problem::overloaded(Duration::from_secs(1)))?;
        self.running.inc();
        Ok(Permit {
            _place: place,
            running: self.running.clone(),
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.running.dec();
    }
}

/// Runs `work` until `deadline` at most; then it is dropped, which cancels it.
///
/// # Errors
/// 504 when the deadline passes first, else the error of `work`.
pub async fn until<T>(deadline: Instant, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    tokio::time::timeout_at(deadline.into(), work)
        .await
        .unwrap_or_else(|_| Err(Problem::deadline_passed()))
}

/// Checks that a text is not too long.
///
/// # Errors
/// 413 with both figures.
pub fn check_length(field: &str, text: &str, max_chars: usize) -> Result<(), Problem> {
    // A code point has at most 4 bytes and at least 1: most texts need no counting.
    if text.len() <= max_chars {
        return Ok(());
    }
    let chars = text.chars().count();
    if chars <= max_chars {
        return Ok(());
    }
    let detail = format!("has {chars} characters, at most {max_chars} are accepted");
    Err(Problem::about(Reason::TooLarge, vec![FieldError::new(field, detail)]))
}
