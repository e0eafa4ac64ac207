//! How much memory adapters take, and which of them goes when another needs it.
//!
//! Everything counts that is really there: deployed versions, those that running requests still hold, and those that are being loaded,
//! which are counted before they are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::lease::Resident;
use super::version::AdapterVersion;
use crate::model::lora::LoraModel;

/// What adapters may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Versions in memory at once, retired and incoming ones among them.
    pub max_resident: usize,
    /// Memory they may take, in bytes.
    pub max_bytes: u64,
    /// Largest rank.
    pub max_rank: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            max_resident: 16,
            max_bytes: 2 << 30,
            max_rank: 256,
        }
    }
}

/// Why there is no room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// It would not fit into an empty memory.
    #[error("it takes {bytes} bytes of memory, at most {max} are allowed for adapters (`max_adapter_bytes`)")]
    TooLarge {
        /// What it takes.
        bytes: u64,
        /// What is allowed.
        max: u64,
    },
    /// What is there is in use.
    #[error(
        "{count} adapters with {bytes} bytes are in use, and with this one there would be more than {max_count} (`max_adapters`) or \
         {max_bytes} bytes (`max_adapter_bytes`); try again when running requests are done"
    )]
    InUse {
        /// Versions in memory or on their way.
        count: usize,
        /// Their bytes.
        bytes: u64,
        /// Versions allowed.
        max_count: usize,
        /// Bytes allowed.
        max_bytes: u64,
    },
}

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Versions in memory and on their way.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The adapters in memory.
pub(super) struct Memory {
    budget: Budget,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    incoming: Usage,
    /// Counts the uses, to know the least recent one.
    clock: u64,
}

/// A version that was loaded. It counts until its weights are gone, whoever holds them.
struct Slot {
    resident: Weak<Resident>,
    weights: Weak<LoraModel>,
    /// Holds versions that nothing deploys and that were asked for by name.
    kept: Option<Arc<Resident>>,
    version: AdapterVersion,
    bytes: u64,
    used: u64,
}

/// A version in memory, as seen from outside.
pub(super) struct Seen {
    pub version: AdapterVersion,
    pub bytes: u64,
    pub leases: usize,
    pub is_kept: bool,
}

impl Memory {
    pub fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Self {
            budget,
            state: Mutex::default(),
        })
    }

    pub fn budget(&self) -> Budget {
        self.budget
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A version that is in memory; `keep` keeps it there when nothing else does.
    pub fn find(&self, version: &AdapterVersion, keep: bool) -> Option<Arc<Resident>> {
        let mut state = self.state();
        state.clock += 1;
        let clock = state.clock;
        let found = |slot: &mut Slot| {
            let resident = slot.resident.upgrade()?;
            slot.used = clock;
            if keep {
                slot.kept = Some(Arc::clone(&resident));
            }
            Some(resident)
        };
        state
            .slots
            .iter_mut()
            .filter(|slot| slot.version == *version)
            .find_map(found)
    }

    /// Takes room for a version of so many bytes, in place of versions that nobody uses if need be.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, NoRoom> {
        let mut reservation = Reservation {
            memory: Arc::clone(self),
            taken: Usage::default(),
        };
        reservation.take(Usage { count: 1, bytes })?;
        Ok(reservation)
    }

    /// No longer keeps a version in memory; it goes when its last lease does.
    pub fn release(&self, version: &AdapterVersion) {
        let mut state = self.state();
        let released: Vec<_> = state
            .slots
            .iter_mut()
            .filter(|slot| slot.version == *version)
            .filter_map(|slot| slot.kept.take())
            .collect();
        drop(state);
        drop(released);
    }

    /// Versions that are kept only because they were asked for by name.
    pub fn kept(&self) -> Vec<AdapterVersion> {
        let state = self.state();
        let kept = state.slots.iter().filter(|slot| slot.kept.is_some());
        kept.map(|slot| slot.version.clone()).collect()
    }

    pub fn usage(&self) -> Usage {
        self.state().usage()
    }

    pub fn seen(&self) -> Vec<Seen> {
        let mut state = self.state();
        state.forget_gone();
        let seen = |slot: &Slot| Seen {
            version: slot.version.clone(),
            bytes: slot.bytes,
            leases: slot.resident.upgrade().map_or(0, |resident| resident.leases()),
            is_kept: slot.kept.is_some(),
        };
        state.slots.iter().map(seen).collect()
    }
}

impl State {
    fn forget_gone(&mut self) {
        self.slots.retain(|slot| slot.weights.strong_count() > 0);
    }

    fn usage(&mut self) -> Usage {
        self.forget_gone();
        Usage {
            count: self.slots.len() + self.incoming.count,
            bytes: self.slots.iter().map(|slot| slot.bytes).sum::<u64>() + self.incoming.bytes,
        }
    }

    /// Takes the least recently used version that only this memory holds.
    fn evict(&mut self) -> Option<Arc<Resident>> {
        let idle = |slot: &&mut Slot| slot.kept.as_ref().is_some_and(|kept| Arc::strong_count(kept) == 1);
        let least = self.slots.iter_mut().filter(idle).min_by_key(|slot| slot.used)?;
        tracing::info!(version = %least.version, "an adapter leaves the memory, to make room for another");
        least.kept.take()
    }
}

/// Room for a version that is on its way; given back when dropped.
pub(super) struct Reservation {
    memory: Arc<Memory>,
    taken: Usage,
}

impl Reservation {
    /// Corrects the bytes, once they are known better.
    pub fn resize(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let more = bytes.saturating_sub(self.taken.bytes);
        if more > 0 {
            return self.take(Usage { count: 0, bytes: more });
        }
        let less = self.taken.bytes - bytes;
        self.taken.bytes = bytes;
        self.memory.state().incoming.bytes -= less;
        Ok(())
    }

    fn take(&mut self, more: Usage) -> Result<(), NoRoom> {
        let Budget {
            max_resident,
            max_bytes,
            ..
        } = self.memory.budget;
        let bytes = self.taken.bytes + more.bytes;
        if bytes > max_bytes {
            return Err(NoRoom::TooLarge { bytes, max: max_bytes });
        }
        let mut state = self.memory.state();
        loop {
            let used = state.usage();
            if used.count + more.count <= max_resident && used.bytes.saturating_add(more.bytes) <= max_bytes {
                state.incoming.count += more.count;
                state.incoming.bytes += more.bytes;
                drop(state);
                self.taken.count += more.count;
                self.taken.bytes += more.bytes;
                return Ok(());
            }
            // The last of its holders: its memory is given back here.
            drop(state.evict().ok_or(NoRoom::InUse {
                count: used.count,
                bytes: used.bytes,
                max_count: max_resident,
                max_bytes,
            })?);
        }
    }

    /// The version has arrived: from now on it counts for as long as its weights are there.
    pub fn fill(self, version: &AdapterVersion, weights: Arc<LoraModel>, keep: bool) -> Arc<Resident> {
        let resident = Resident::new(version.clone(), Some(Arc::clone(&weights)));
        let mut state = self.memory.state();
        state.clock += 1;
        let slot = Slot {
            resident: Arc::downgrade(&resident),
            weights: Arc::downgrade(&weights),
            kept: keep.then(|| Arc::clone(&resident)),
            version: version.clone(),
            bytes: self.taken.bytes,
            used: state.clock,
        };
        state.slots.push(slot);
        // What was reserved is given back only now: for a moment it counts twice, rather than not at all.
        drop(state);
        resident
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.incoming.count -= self.taken.count;
        state.incoming.bytes -= self.taken.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::DecoderConfig;

    fn weights() -> Arc<LoraModel> {
        let folder = std::path::Path::new("tests/fixtures/micro");
        let config = DecoderConfig::from_hugging_face(&std::fs::read_to_string(folder.join("config.json")).unwrap());
        LoraModel::load(&folder.join("adapter"), &config.unwrap(), &candle_core::Device::Cpu)
            .unwrap()
            .into()
    }

    fn memory(max_resident: usize, max_bytes: u64) -> Arc<Memory> {
        Memory::new(Budget {
            max_resident,
            max_bytes,
            max_rank: 8,
        })
    }

    fn version(number: u32) -> AdapterVersion {
        AdapterVersion::new("a", number)
    }

    fn load(memory: &Arc<Memory>, number: u32, bytes: u64, keep: bool) -> Arc<Resident> {
        memory.reserve(bytes).unwrap().fill(&version(number), weights(), keep)
    }

    #[test]
    fn what_is_on_its_way_counts_and_is_given_back_when_it_does_not_come() {
        let memory = memory(2, 100);
        let mut first = memory.reserve(40).unwrap();
        let second = memory.reserve(40).unwrap();
        assert_eq!(memory.usage(), Usage { count: 2, bytes: 80 });
        assert!(matches!(memory.reserve(1), Err(NoRoom::InUse { count: 2, .. })));
        drop(second);
        first.resize(90).unwrap();
        assert!(matches!(memory.reserve(11), Err(NoRoom::InUse { .. })));
        assert!(matches!(
            first.resize(101),
            Err(NoRoom::TooLarge { bytes: 101, max: 100 })
        ));
        first.resize(10).unwrap();
        assert_eq!(memory.usage(), Usage { count: 1, bytes: 10 });
        drop(first);
        assert_eq!(memory.usage(), Usage::default());
    }

    #[test]
    fn a_version_counts_until_the_last_holder_of_its_weights_is_gone() {
        let memory = memory(2, 100);
        let resident = load(&memory, 1, 60, false);
        let lease = resident.lease();
        let in_the_engine = Arc::clone(lease.adapter().unwrap());
        drop(resident);
        assert!(memory.find(&version(1), false).is_some());
        drop(lease);
        assert!(memory.find(&version(1), false).is_none());
        assert_eq!(memory.usage(), Usage { count: 1, bytes: 60 });
        let weak = Arc::downgrade(&in_the_engine);
        drop(in_the_engine);
        assert_eq!(memory.usage(), Usage::default());
        assert_eq!(weak.strong_count(), 0, "the memory was given back");
    }

    #[test]
    fn the_least_recently_used_goes_and_never_one_in_use() {
        let memory = memory(3, 100);
        drop(load(&memory, 1, 10, true));
        let deployed = load(&memory, 2, 10, true);
        drop(load(&memory, 3, 10, true));
        assert!(memory.find(&version(1), true).is_some());
        drop(load(&memory, 4, 10, true));
        assert!(memory.find(&version(3), true).is_none());
        // Leased or deployed ones stay, whatever that means for the newcomer.
        let lease = memory.find(&version(1), true).unwrap().lease();
        drop(load(&memory, 5, 10, true));
        assert!(memory.find(&version(4), true).is_none());
        let (other, third) = (memory.find(&version(5), true).unwrap().lease(), deployed);
        assert!(matches!(memory.reserve(10), Err(NoRoom::InUse { .. })));
        drop((lease, third));
        assert!(memory.reserve(10).is_ok());
        assert_eq!(other.version(), &version(5));
    }

    #[test]
    fn leases_are_counted_once_however_often_they_are_cloned() {
        let memory = memory(3, 100);
        let resident = load(&memory, 1, 10, false);
        let lease = resident.lease();
        let clone = lease.clone();
        let other = resident.lease();
        assert_eq!(memory.seen()[0].leases, 2);
        drop(lease);
        assert_eq!(resident.leases(), 2);
        drop((clone, other));
        assert_eq!(resident.leases(), 0);
    }
}
