//! What work there is and how fast it is done: how long one who comes now would wait.

use std::collections::HashMap;
use std::time::Duration;

/// What a step's share of the speed weighs after each later one.
const KEPT: f64 = 0.98;

/// Work by whom it is for. Costs are in tokens at the longest.
#[derive(Debug, Default)]
pub(super) struct Load {
    waiting: HashMap<u64, Flow>,
    running: u64,
    /// Cost of what was done of late, and the seconds that it took.
    done: f64,
    seconds: f64,
}

#[derive(Debug, Default)]
struct Flow {
    entries: u64,
    cost: u64,
}

impl Load {
    /// Something of this cost begins to wait.
    pub(super) fn come(&mut self, key: u64, cost: usize) {
        let flow = self.waiting.entry(key).or_default();
        flow.entries += 1;
        flow.cost += cost as u64;
    }

    /// It waits no longer.
    pub(super) fn go(&mut self, key: u64, cost: usize) {
        if let Some(flow) = self.waiting.get_mut(&key) {
            flow.entries = flow.entries.saturating_sub(1);
            flow.cost = flow.cost.saturating_sub(cost as u64);
            if flow.entries == 0 {
                self.waiting.remove(&key);
            }
        }
    }

    /// What is in the batch costs so much.
    pub(super) fn run(&mut self, cost: usize) {
        self.running = cost as u64;
    }

    /// Work of this cost was finished in a step that took so long.
    pub(super) fn worked(&mut self, cost: usize, took: Duration) {
        self.done = self.done * KEPT + cost as f64;
        self.seconds = self.seconds * KEPT + took.as_secs_f64();
    }

    /// How long one who comes now would wait at the speed of late: for half of what runs, and, the queue being fair, for one entry of
    /// each other. A second while there is no speed to judge by.
    pub(super) fn wait(&self) -> Duration {
        let ahead: f64 = self
            .waiting
            .values()
            .map(|flow| flow.cost as f64 / flow.entries as f64)
            .sum();
        let ahead = ahead + self.running as f64 / 2.0;
        if ahead == 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(ahead * self.seconds / self.done).unwrap_or(Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_what_is_ahead_at_the_speed_of_late() {
        let mut load = Load::default();
        assert_eq!(load.wait(), Duration::ZERO, "nothing is ahead");
        load.come(1, 200);
        assert_eq!(load.wait(), Duration::from_secs(1), "nothing to judge by");
        for _ in 0..50 {
            load.worked(10, Duration::from_millis(100));
        }
        load.come(2, 300);
        load.run(100);
        assert!((load.wait().as_secs_f64() - 5.5).abs() < 1e-6);
        load.go(1, 200);
        assert!((load.wait().as_secs_f64() - 3.5).abs() < 1e-6);
        for _ in 0..1000 {
            load.come(2, 300);
        }
        assert!(
            (load.wait().as_secs_f64() - 3.5).abs() < 1e-6,
            "a long text holds up nobody but itself"
        );
        for _ in 0..1001 {
            load.go(2, 300);
        }
        load.run(0);
        assert_eq!(load.wait(), Duration::ZERO);
    }
}
