//! A request's turn with the model.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The number of the next turn.
static TURNS: AtomicU64 = AtomicU64::new(1);

/// Who waits for the model: the sentences of one request wait behind each other rather than before those of others. Whether the model has
/// too much to do is asked once, when the first of them needs it: who was let in is carried through.
#[derive(Debug)]
pub struct Turn {
    number: u64,
    max_wait: Option<Duration>,
    is_let_in: AtomicBool,
}

impl Turn {
    /// A new one, which is not worth waiting for longer than `max_wait`.
    pub fn new(max_wait: Option<Duration>) -> Self {
        Self {
            number: TURNS.fetch_add(1, Ordering::Relaxed),
            max_wait,
            is_let_in: AtomicBool::new(false),
        }
    }

    /// What tells it from others.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How long it may have to wait, when this is asked for the first time and there is a limit: `max_wait`, or what is left before
    /// `deadline`.
    pub fn first_wait(&self, deadline: Option<Instant>) -> Option<Duration> {
        if self.is_let_in.swap(true, Ordering::Relaxed) {
            return None;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.max_wait.into_iter().chain(left).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sentence_asks_for_all() {
        let second = Duration::from_secs(1);
        let turn = Turn::new(Some(second));
        assert_eq!(turn.first_wait(None), Some(second));
        assert_eq!(turn.first_wait(None), None);
        assert_ne!(turn.number(), Turn::new(None).number());
        assert_eq!(Turn::new(None).first_wait(None), None);
    }

    #[test]
    fn a_deadline_shortens_the_wait() {
        let soon = Instant::now() + Duration::from_millis(20);
        let patience = Turn::new(Some(Duration::from_secs(1))).first_wait(Some(soon));
        assert!(patience.is_some_and(|patience| patience <= Duration::from_millis(20)));
        assert_eq!(Turn::new(None).first_wait(Some(Instant::now())), Some(Duration::ZERO));
    }
}
