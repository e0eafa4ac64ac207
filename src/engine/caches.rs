//! Keys and values of one sequence: under its adapter, and under the bare base model where that has a say.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Result;

use crate::model::kv_cache::{CacheSpace, KvCache};

/// Both sides hold the same tokens.
pub(super) struct Caches {
    pub own: KvCache,
    /// That of a guided sequence.
    pub base: Option<KvCache>,
}

/// What several sequences continue.
pub(super) struct SharedCaches {
    pub own: Arc<KvCache>,
    base: Option<Arc<KvCache>>,
}

impl Caches {
    pub(super) fn empty(space: &CacheSpace, capacity: usize, is_guided: bool) -> Self {
        Self {
            own: space.cache(capacity),
            base: is_guided.then(|| space.cache(capacity)),
        }
    }

    pub(super) fn continuing(prefix: &SharedCaches, capacity: usize) -> Self {
        let continued = |cache: &Arc<KvCache>| KvCache::continuing(cache.clone(), capacity);
        Self {
            own: continued(&prefix.own),
            base: prefix.base.as_ref().map(continued),
        }
    }

    pub(super) fn positions(&self) -> usize {
        self.own.positions()
    }

    pub(super) fn truncate(&mut self, positions: usize) {
        self.own.truncate(positions);
        if let Some(base) = &mut self.base {
            base.truncate(positions);
        }
    }

    pub(super) fn extend_from(&mut self, other: &Self, positions: Range<usize>) -> Result<()> {
        self.own.extend_from(&other.own, positions.clone())?;
        if let (Some(base), Some(other)) = (&mut self.base, &other.base) {
            base.extend_from(other, positions)?;
        }
        Ok(())
    }

    pub(super) fn fork(&self, positions: usize, capacity: usize) -> Result<Self> {
        let fork = |cache: &KvCache| cache.fork(positions, capacity);
        Ok(Self {
            own: fork(&self.own)?,
            base: self.base.as_ref().map(fork).transpose()?,
        })
    }

    pub(super) fn share(self) -> SharedCaches {
        SharedCaches {
            own: Arc::new(self.own),
            base: self.base.map(Arc::new),
        }
    }
}
