//! Keys and values on a device: a pool of slots, one for a token, in memory that is taken once.
//!
//! A slot is written by the pass that computes its token and only read from then on. So sequences that begin alike hold the same slots: a
//! fork, a continuation and a kept prompt copy nothing, and a slot is free once its last holder has let go of it. These are the pages of
//! Kwon et al. 2023 with one token a page: keys are gathered by index in any case, and a page that is half full never has to be copied.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::model::Decoder;
use crate::model::ops::RotaryTable;

/// Slots are given out in turn from so many classes, modulo this number: what a pass writes then falls into all of them alike, and one thread
/// of a scatter, which goes through the tokens of a class one after the other, has so many times fewer.
pub(super) const STRIPES: usize = 16;
/// A slot that nobody writes: zeros, in place of keys that a shorter sequence does not have.
pub(super) const PADDING: u32 = 0;

/// Keys and values of every layer, and who holds which slot.
#[derive(Debug)]
pub(super) struct SlotPool {
    tokens: usize,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    device: Device,
    rotary: Arc<RotaryTable>,
    books: Mutex<Books>,
    tensors: OnceLock<PoolTensors>,
}

/// What lies on the device.
#[derive(Debug)]
pub(super) struct PoolTensors {
    /// By layer, the heads of keys before those of values: `[2 * num_kv_heads, slots, head_dim]`.
    pub layers: Vec<Tensor>,
    /// Cosines and sines of every position, then the same times the scale of attention: `[2 * positions, head_dim / 2]`.
    pub cos: Tensor,
    pub sin: Tensor,
}

#[derive(Debug)]
struct Books {
    /// By slot.
    holders: Vec<u32>,
    /// By class.
    free: [Vec<u32>; STRIPES],
    /// Class of the next slot.
    next: usize,
}

impl SlotPool {
    /// A pool for so many tokens of a decoder; takes no memory on the device yet.
    pub(super) fn new(decoder: &Decoder, tokens: usize) -> Self {
        let slots = slots(tokens);
        let mut free: [Vec<u32>; STRIPES] = std::array::from_fn(|_| Vec::new());
        for slot in (1..=tokens as u32).rev() {
            free[slot as usize % STRIPES].push(slot);
        }
        let config = decoder.config();
        Self {
            tokens,
            layers: config.num_layers,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: decoder.placement().dtype,
            device: decoder.device().clone(),
            rotary: decoder.rotary.clone(),
            books: Mutex::new(Books {
                holders: vec![0; slots],
                free,
                next: 0,
            }),
            tensors: OnceLock::new(),
        }
    }

    /// Tokens that it holds at most.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// What lies on the device; taken at the first call.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub(super) fn tensors(&self) -> Result<&PoolTensors> {
        if let Some(tensors) = self.tensors.get() {
            return Ok(tensors);
        }
        let shape = (2 * self.kv_heads, slots(self.tokens), self.head_dim);
        if shape.0 * shape.1 * shape.2 > u32::MAX as usize {
            bail!("{} cached tokens are more than candle's kernels count to", self.tokens)
        }
        let scale = (self.head_dim as f32).sqrt().recip();
        let (cos, sin) = self.rotary.tables(&[1.0, scale], &self.device)?;
        let layer = |_| Tensor::zeros(shape, self.dtype, &self.device);
        let made = PoolTensors {
            layers: (0..self.layers).map(layer).collect::<Result<_>>()?,
            cos: cos.to_dtype(self.dtype)?,
            sin: sin.to_dtype(self.dtype)?,
        };
        Ok(self.tensors.get_or_init(|| made))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots for new tokens, each with one holder.
    ///
    /// # Errors
    /// When fewer are free.
    pub(super) fn take(&self, count: usize) -> Result<Vec<u32>> {
        let mut books = self.books();
        let free: usize = books.free.iter().map(Vec::len).sum();
        if free < count {
            bail!("the cache of {} tokens has no room for {count} more", self.tokens)
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let class = books.next;
            books.next = (class + 1) % STRIPES;
            if let Some(slot) = books.free[class].pop() {
                books.holders[slot as usize] = 1;
                taken.push(slot);
            }
        }
        Ok(taken)
    }

    fn share(&self, slots: &[u32]) {
        let mut books = self.books();
        for &slot in slots {
            books.holders[slot as usize] += 1;
        }
    }

    fn release(&self, slots: &[u32]) {
        let mut books = self.books();
        for &slot in slots {
            let holders = &mut books.holders[slot as usize];
            *holders -= 1;
            if *holders == 0 {
                books.free[slot as usize % STRIPES].push(slot);
            }
        }
    }
}

/// Slots of a pool for so many tokens: the one for padding, and whole rounds of classes.
fn slots(tokens: usize) -> usize {
    (tokens + 1).next_multiple_of(STRIPES)
}

/// The slots of one sequence, in the order of its tokens.
#[derive(Debug)]
pub(super) struct SlotCache {
    pool: Arc<SlotPool>,
    slots: Vec<u32>,
    /// How many at the beginning are those of a prefix.
    prefix: usize,
}

impl SlotCache {
    pub(super) fn new(pool: Arc<SlotPool>) -> Self {
        Self {
            pool,
            slots: Vec::new(),
            prefix: 0,
        }
    }

    pub(super) fn continued(&self) -> Self {
        self.beginning(self.slots.len(), self.slots.len())
    }

    pub(super) fn positions(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn truncate(&mut self, positions: usize) {
        let keep = positions.max(self.prefix).min(self.slots.len());
        self.pool.release(&self.slots[keep..]);
        self.slots.truncate(keep);
    }

    pub(super) fn extend_from(&mut self, other: &Self, positions: Range<usize>) -> Result<()> {
        if positions.start != self.positions() || !Arc::ptr_eq(&self.pool, &other.pool) {
            bail!(
                "positions {positions:?} do not continue a cache of {}",
                self.positions()
            )
        }
        let Some(slots) = other.slots.get(positions.clone()) else {
            bail!("a cache of {} does not hold {positions:?}", other.positions())
        };
        self.pool.share(slots);
        self.slots.extend_from_slice(slots);
        Ok(())
    }

    pub(super) fn fork(&self, positions: usize) -> Result<Self> {
        if !(self.prefix..=self.positions()).contains(&positions) {
            bail!("a cache of {} has no fork at {positions}", self.positions())
        }
        Ok(self.beginning(positions, self.prefix))
    }

    fn beginning(&self, positions: usize, prefix: usize) -> Self {
        let slots = self.slots[..positions].to_vec();
        self.pool.share(&slots);
        Self {
            pool: self.pool.clone(),
            slots,
            prefix,
        }
    }

    pub(super) fn pool(&self) -> &Arc<SlotPool> {
        &self.pool
    }

    pub(super) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Takes over slots of which it is the one holder.
    pub(super) fn append(&mut self, slots: &[u32]) {
        self.slots.extend_from_slice(slots);
    }
}

impl Drop for SlotCache {
    fn drop(&mut self) {
        self.pool.release(&self.slots);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::model::weights::{ModelFiles, Purpose};

    fn pool(tokens: usize) -> Arc<SlotPool> {
        let files = ModelFiles::open(Path::new("tests/fixtures/llama-tiny/tied")).unwrap();
        let purpose = Purpose::ServeOnDevice { dtype: DType::F32 };
        let decoder = files.load(purpose, &Device::Cpu).unwrap();
        Arc::new(SlotPool::new(&decoder, tokens))
    }

    fn free(pool: &SlotPool) -> usize {
        pool.books().free.iter().map(Vec::len).sum()
    }

    #[test]
    fn a_slot_is_one_sequences_until_it_is_shared_and_free_when_nobody_holds_it() {
        let pool = pool(100);
        let mut rng = StdRng::seed_from_u64(1);
        let mut caches: Vec<SlotCache> = Vec::new();
        for _ in 0..5000 {
            let at = rng.random_range(0..=caches.len());
            match (caches.get_mut(at), rng.random_range(0..6)) {
                (None, _) => caches.push(SlotCache::new(pool.clone())),
                (Some(cache), 0 | 1) => {
                    let count = rng.random_range(0..20);
                    match pool.take(count) {
                        Ok(taken) => cache.append(&taken),
                        Err(_) => assert!(free(&pool) < count),
                    }
                }
                (Some(cache), 2) => cache.truncate(rng.random_range(0..40)),
                (Some(cache), 3) => {
                    let positions = rng.random_range(cache.prefix..=cache.positions());
                    let fork = cache.fork(positions).unwrap();
                    caches.push(fork);
                }
                (Some(cache), 4) => {
                    let continued = cache.continued();
                    caches.push(continued);
                }
                (Some(_), _) => drop(caches.swap_remove(at)),
            }
            let held: HashSet<u32> = caches.iter().flat_map(|cache| cache.slots.iter().copied()).collect();
            assert_eq!(held.len() + free(&pool), 100);
            assert!(!held.contains(&PADDING));
            for cache in &caches {
                let own: HashSet<&u32> = cache.slots.iter().collect();
                assert_eq!(own.len(), cache.slots.len(), "a slot twice in a sequence");
            }
        }
        drop(caches);
        assert_eq!(free(&pool), 100);
    }

    #[test]
    fn what_is_taken_falls_into_all_classes_alike() {
        let pool = pool(1000);
        for count in [1, 16, 40, 256] {
            let mut classes = [0; STRIPES];
            for slot in pool.take(count).unwrap() {
                classes[slot as usize % STRIPES] += 1;
            }
            assert_eq!(classes.into_iter().max(), Some(count.div_ceil(STRIPES)));
        }
    }
}
