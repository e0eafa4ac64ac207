//! What serving remembers of a sequence: rotated keys and values of every layer.
//!
//! - `host`: in this process's memory, for the loops of the CPU; a continuation reads its prefix where it lies.
//! - `slots`: in a pool on the decoder's device, a slot a token; sequences hold lists of slots, and share those that they have in common.
//! - `step`: a forward pass over sequences in such a pool, with everything that its layers need made once; `groups`: what of it is computed
//!   together.
//!
//! Which of the two it is follows from the decoder. Whoever holds a [`KvCache`] need not know.

mod groups;
mod host;
mod slots;
mod step;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, WithDType, bail};

use super::{Decoder, DecoderConfig};
use host::HostCache;
pub use host::{advance, attend};
use slots::{SlotCache, SlotPool};
pub(crate) use step::Step;

/// Where the caches of a decoder's sequences are kept. Clones are the same place.
#[derive(Debug, Clone)]
pub struct CacheSpace(Space);

#[derive(Debug, Clone)]
enum Space {
    Host {
        layers: usize,
        /// Keys of a token and layer, and as many values.
        row: usize,
    },
    Slots(Arc<SlotPool>),
}

impl CacheSpace {
    /// In this process's memory, as much as is needed.
    pub fn on_host(config: &DecoderConfig) -> Self {
        Self(Space::Host {
            layers: config.num_layers,
            row: config.num_kv_heads * config.head_dim,
        })
    }

    /// On the device of a decoder, for this many tokens.
    pub(super) fn on_device(decoder: &Decoder, tokens: usize) -> Self {
        Self(Space::Slots(Arc::new(SlotPool::new(decoder, tokens))))
    }

    /// Tokens that it holds at most; `None` where there is no such bound.
    pub fn tokens(&self) -> Option<usize> {
        match &self.0 {
            Space::Host { .. } => None,
            Space::Slots(pool) => Some(pool.tokens()),
        }
    }

    /// Takes its memory now rather than at the first use, so that a lack of it shows.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn allocate(&self) -> Result<()> {
        match &self.0 {
            Space::Host { .. } => Ok(()),
            Space::Slots(pool) => pool.tensors().map(drop),
        }
    }

    /// An empty cache; on the host with room for `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> KvCache {
        KvCache(match &self.0 {
            Space::Host { layers, row } => Kind::Host(HostCache::new(*layers, *row, capacity)),
            Space::Slots(pool) => Kind::Slots(SlotCache::new(pool.clone())),
        })
    }
}

/// Keys and values of one sequence, possibly the continuation of a shared one.
#[derive(Debug)]
pub struct KvCache(Kind);

#[derive(Debug)]
enum Kind {
    Host(HostCache),
    Slots(SlotCache),
}

impl KvCache {
    /// An empty cache that continues `prefix`, which itself continues nothing; on the host with room for `capacity` tokens.
    pub fn continuing(prefix: Arc<Self>, capacity: usize) -> Self {
        Self(match &prefix.0 {
            Kind::Host(cache) => Kind::Host(cache.continued(prefix.clone(), capacity)),
            Kind::Slots(cache) => Kind::Slots(cache.continued()),
        })
    }

    /// Tokens held, the prefix included; the position of the next token.
    pub fn positions(&self) -> usize {
        match &self.0 {
            Kind::Host(cache) => cache.positions(),
            Kind::Slots(cache) => cache.positions(),
        }
    }

    /// Forgets all but the first `positions` tokens; the prefix is never shortened.
    pub fn truncate(&mut self, positions: usize) {
        match &mut self.0 {
            Kind::Host(cache) => cache.truncate(positions),
            Kind::Slots(cache) => cache.truncate(positions),
        }
    }

    /// Appends what `other` holds of these positions, so that they need not be computed again.
    ///
    /// # Errors
    /// When they do not follow this cache's last position, or `other` does not hold them itself: keys are rotated by their position, and on
    /// the host a prefix is not looked into.
    pub fn extend_from(&mut self, other: &Self, positions: Range<usize>) -> Result<()> {
        match (&mut self.0, &other.0) {
            (Kind::Host(cache), Kind::Host(other)) => cache.extend_from(other, positions),
            (Kind::Slots(cache), Kind::Slots(other)) => cache.extend_from(other, positions),
            _ => bail!("caches of different decoders"),
        }
    }

    /// Another continuation of the same prefix, as far as `positions`; on the host with room for `capacity` tokens of its own.
    ///
    /// # Errors
    /// When it holds fewer.
    pub fn fork(&self, positions: usize, capacity: usize) -> Result<Self> {
        Ok(Self(match &self.0 {
            Kind::Host(cache) => Kind::Host(cache.fork(positions, capacity)?),
            Kind::Slots(cache) => Kind::Slots(cache.fork(positions)?),
        }))
    }

    fn host(&self) -> Result<&HostCache> {
        match &self.0 {
            Kind::Host(cache) => Ok(cache),
            Kind::Slots(_) => bail!("a cache on a device for a decoder that keeps them on the host"),
        }
    }

    fn slots(&self) -> Result<&SlotCache> {
        match &self.0 {
            Kind::Slots(cache) => Ok(cache),
            Kind::Host(_) => bail!("a cache on the host for a decoder that keeps them on its device"),
        }
    }

    fn host_mut(&mut self) -> Result<&mut HostCache> {
        match &mut self.0 {
            Kind::Host(cache) => Ok(cache),
            Kind::Slots(_) => bail!("a cache on a device for a decoder that keeps them on the host"),
        }
    }
}

/// A sequence within a serving batch: its cache and how many of the batch's next rows are its new tokens.
#[derive(Debug)]
pub struct CachedSequence<'a> {
    /// What came before; the new tokens are appended.
    pub cache: &'a mut KvCache,
    /// Number of new tokens.
    pub len: usize,
}

/// Fails unless a pass of so many rows is that of its sequences, none of which may exceed the model's positions.
fn check(rows: usize, sequences: &[CachedSequence<'_>], positions: usize) -> Result<()> {
    if rows != sequences.iter().map(|sequence| sequence.len).sum::<usize>() {
        bail!("the rows of the batch are not those of its sequences")
    }
    match sequences.iter().map(|s| s.cache.positions() + s.len).max() {
        Some(longest) if longest > positions => {
            bail!("a sequence of {longest} tokens exceeds the model's {positions}")
        }
        _ => Ok(()),
    }
}

/// Values that go to a device together.
#[derive(Debug)]
struct Upload<T> {
    values: Vec<T>,
}

impl<T> Default for Upload<T> {
    fn default() -> Self {
        Self { values: Vec::new() }
    }
}

impl<T: WithDType> Upload<T> {
    fn section(&mut self, values: impl IntoIterator<Item = T>) -> Range<usize> {
        let start = self.values.len();
        self.values.extend(values);
        start..self.values.len()
    }

    /// `None` where there are none.
    fn send(self, device: &Device) -> Result<Option<Tensor>> {
        let len = self.values.len();
        (len > 0)
            .then(|| Tensor::from_vec(self.values, len, device))
            .transpose()
    }
}
