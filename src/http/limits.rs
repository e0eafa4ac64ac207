//! Who is let in, and for how long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
    /// Milliseconds that a place was held, lately.
    held: Arc<AtomicU64>,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
    running: IntGauge,
    since: Instant,
    held: Arc<AtomicU64>,
}

impl Admission {
    /// `places` requests at once; `running` shows how many there are.
    pub fn new(places: usize, running: IntGauge) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            running,
            held: Arc::default(),
        }
    }

    /// A place.
    ///
    /// # Errors
    /// 503 when all are taken, with the time that a request has taken lately as `Retry-After`: by then a full house has changed hands.
    pub fn admit(&self) -> Result<Permit, Problem> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Problem::overloaded(self.usual_time()))?;
        self.running.inc();
        Ok(Permit {
            _place: place,
            running: self.running.clone(),
            since: Instant::now(),
            held: Arc::clone(&self.held),
        })
    }

    fn usual_time(&self) -> Duration {
        Duration::from_millis(self.held.load(Ordering::Relaxed))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let took = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Of two that leave at once one may not count: it is an average.
        let before = self.held.load(Ordering::Relaxed);
        self.held.store(before - before / 8 + took / 8, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_place_hears_how_long_requests_take() {
        let running = IntGauge::new("running", "running").unwrap();
        let admission = Admission::new(1, running);
        for _ in 0..40 {
            let mut permit = admission.admit().unwrap();
            permit.since -= Duration::from_secs(4);
        }
        let usual = admission.usual_time();
        assert!((3500..4100).contains(&usual.as_millis()), "{usual:?}");
        let _in = admission.admit().unwrap();
        assert!(admission.admit().is_err());
    }
}
