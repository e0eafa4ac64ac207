//! What waits for a place in the batch, in a fair order.
//!
//! Start-time fair queueing (Goyal et al. 1996): an entry starts, in virtual time, when the one before it of the same key has ended, or
//! now; it ends after its cost; the entry that starts first is next. A key with a thousand entries waits behind itself, not others
//! behind it. Virtual time moves on by what is done for each of the keys (as in weighted fair queueing): without that, an endless stream
//! of new keys, all of which start now, would keep the second entry of a key waiting for ever.

use std::collections::{HashMap, VecDeque};

/// Units of virtual time in a unit of cost: it moves by fractions.
const UNIT: u64 = 1024;

/// Entries by key.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    flows: HashMap<u64, Flow<T>>,
    /// Virtual time.
    now: u64,
    /// Entries so far: of those that start at the same time the first to come is next.
    arrived: u64,
}

#[derive(Debug)]
struct Flow<T> {
    waiting: VecDeque<Entry<T>>,
    /// Virtual end of the last entry.
    end: u64,
}

#[derive(Debug)]
struct Entry<T> {
    /// In virtual time.
    start: u64,
    number: u64,
    cost: u64,
    what: T,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            flows: HashMap::new(),
            now: 0,
            arrived: 0,
        }
    }

    /// Puts an entry behind the others of its key.
    pub(super) fn push(&mut self, key: u64, cost: usize, entry: T) {
        let flow = self.flows.entry(key).or_insert_with(|| Flow {
            waiting: VecDeque::new(),
            end: 0,
        });
        let start = flow.end.max(self.now);
        let cost = (cost as u64).saturating_mul(UNIT);
        flow.end = start.saturating_add(cost);
        self.arrived += 1;
        flow.waiting.push_back(Entry {
            start,
            number: self.arrived,
            cost,
            what: entry,
        });
    }

    /// Takes the entry that is next among the keys that `may` go, if it `fits`; else nothing: were smaller ones let by, there would never be
    /// room for it.
    pub(super) fn pop(&mut self, mut may: impl FnMut(u64, &T) -> bool, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let next = self
            .flows
            .iter()
            .filter_map(|(key, flow)| {
                let first = flow.waiting.front()?;
                may(*key, &first.what).then_some((first.start, first.number, *key))
            })
            .min()?;
        let keys = self.flows.values().filter(|flow| !flow.waiting.is_empty()).count() as u64;
        let (_, _, key) = next;
        let flow = self.flows.get_mut(&key)?;
        let entry = flow.waiting.pop_front_if(|entry| fits(&entry.what))?;
        self.now = self.now.max(entry.start) + entry.cost / keys;
        self.forget();
        Some(entry.what)
    }

    /// Takes out every entry that is not to be kept.
    pub(super) fn take_out(&mut self, mut keep: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for flow in self.flows.values_mut() {
            if flow.waiting.iter().all(|entry| keep(&entry.what)) {
                continue;
            }
            for entry in std::mem::take(&mut flow.waiting) {
                if keep(&entry.what) {
                    flow.waiting.push_back(entry);
                } else {
                    out.push(entry.what);
                }
            }
        }
        self.forget();
        out
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.values().all(|flow| flow.waiting.is_empty())
    }

    /// Lets go of keys that nothing would be remembered of: those that were served no more than others, or all, when nobody waits.
    fn forget(&mut self) {
        if self.is_empty() {
            let ends = self.flows.values().map(|flow| flow.end);
            self.now = ends.max().unwrap_or(0).max(self.now);
        }
        let now = self.now;
        self.flows.retain(|_, flow| !flow.waiting.is_empty() || flow.end > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_of_one_key_wait_behind_themselves() {
        let mut queue = FairQueue::new();
        for number in 0..500 {
            queue.push(1, 10, (1, number));
        }
        let first: Vec<_> = (0..3).filter_map(|_| queue.pop(|_, _| true, |_| true)).collect();
        assert_eq!(first, [(1, 0), (1, 1), (1, 2)]);
        queue.push(2, 10, (2, 0));
        queue.push(3, 30, (3, 0));
        queue.push(3, 30, (3, 1));
        let next: Vec<_> = (0..5).filter_map(|_| queue.pop(|_, _| true, |_| true)).collect();
        let small: Vec<_> = next.iter().filter(|(key, _)| *key != 1).collect();
        assert_eq!(
            small,
            [&(2, 0), &(3, 0)],
            "{next:?}: the second of key 3 costs three of key 1"
        );
    }

    #[test]
    fn a_key_that_may_not_go_holds_up_no_other() {
        let mut queue = FairQueue::new();
        queue.push(1, 1, 'a');
        queue.push(2, 9, 'b');
        assert_eq!(queue.pop(|key, _| key != 1, |_| true), Some('b'));
        assert_eq!(queue.pop(|key, _| key != 1, |_| true), None);
        assert!(!queue.is_empty());
        assert_eq!(queue.pop(|_, _| true, |_| true), Some('a'));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_stream_of_new_keys_keeps_nobody_waiting_for_ever() {
        let mut queue = FairQueue::new();
        queue.push(0, 100, 0);
        queue.push(0, 100, 0);
        let mut taken = Vec::new();
        for key in 1..100 {
            queue.push(key, 100, key);
            queue.push(1000 + key, 100, key);
            taken.extend(queue.pop(|_, _| true, |_| true));
        }
        // More come than go; the second of key 0 came before all others but one, and is owed no more than its turn.
        let second = taken.iter().skip(1).position(|key| *key == 0);
        assert!(second.is_some_and(|at| at < 20), "{taken:?}");
    }

    #[test]
    fn what_does_not_fit_is_not_overtaken() {
        let mut queue = FairQueue::new();
        queue.push(1, 100, 100);
        queue.push(2, 1, 1);
        assert_eq!(queue.pop(|_, _| true, |&size| size <= 10), None);
        assert_eq!(queue.pop(|_, _| true, |&size| size <= 100), Some(100));
        assert_eq!(queue.pop(|_, _| true, |&size| size <= 10), Some(1));
    }

    #[test]
    fn idling_earns_nothing_and_memory_is_let_go() {
        let mut queue = FairQueue::new();
        for _ in 0..100 {
            queue.push(1, 10, 1);
            assert_eq!(queue.pop(|_, _| true, |_| true), Some(1));
        }
        queue.push(2, 10, 2);
        queue.push(2, 10, 2);
        queue.push(1, 10, 1);
        assert_eq!(queue.pop(|_, _| true, |_| true), Some(2));
        assert_eq!(
            queue.pop(|_, _| true, |_| true),
            Some(1),
            "key 2 has no claim on the past"
        );
        assert_eq!(queue.take_out(|_| false), [2]);
        for key in 0..1000 {
            queue.push(key, 1, 0);
            queue.pop(|_, _| true, |_| true);
        }
        assert!(queue.flows.len() < 4);
    }
}
