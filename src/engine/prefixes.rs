//! Prompts that were computed lately: one that begins alike need not be computed again.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use candle_core::Result;

use super::handle::Generation;
use crate::model::kv_cache::KvCache;
use crate::model::lora::LoraModel;

/// Fewer tokens than this are computed as fast as they are found.
const LEAST: usize = 4;

/// Keys and values of prompts, up to a number of tokens; the one that was used longest ago goes first.
pub(super) struct Prefixes {
    entries: VecDeque<Entry>,
    tokens: usize,
    most: usize,
}

struct Entry {
    under: Under,
    tokens: Vec<u32>,
    cache: Arc<KvCache>,
}

/// What the keys and values were computed with. Does not keep an adapter in memory.
struct Under(Option<(Weak<LoraModel>, f32)>);

impl Under {
    fn of(generation: &Generation) -> Self {
        let adapter = generation.adapter.as_ref();
        Self(adapter.map(|(adapter, strength)| (Arc::downgrade(adapter), *strength)))
    }

    fn is(&self, generation: &Generation) -> bool {
        match (&self.0, &generation.adapter) {
            (None, None) => true,
            // The weak reference keeps the address from being given to another adapter.
            (Some((kept, kept_strength)), Some((adapter, strength))) => {
                kept.as_ptr() == Arc::as_ptr(adapter) && kept_strength == strength
            }
            _ => false,
        }
    }

    fn is_gone(&self) -> bool {
        self.0.as_ref().is_some_and(|(adapter, _)| adapter.strong_count() == 0)
    }
}

/// Tokens at the beginning of a prompt that are those of another one under the same adapter; the last token is always computed.
pub(super) fn shared(prompt: &[u32], other: &[u32]) -> usize {
    let same = prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
    let same = same.min(prompt.len().saturating_sub(1));
    if same < LEAST { 0 } else { same }
}

impl Prefixes {
    /// Keeps at most so many tokens.
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            tokens: 0,
            most,
        }
    }

    /// Fills an empty cache of the generation's prompt with as much of its beginning as is known.
    ///
    /// # Errors
    /// When a kept cache is not what it should be.
    pub(super) fn begin(&mut self, generation: &Generation, cache: &mut KvCache) -> Result<()> {
        let longest = (0..self.entries.len())
            .filter(|&index| self.entries[index].under.is(generation))
            .map(|index| (shared(&generation.prompt, &self.entries[index].tokens), index))
            .max();
        if let Some((same, index)) = longest
            && same > 0
            && let Some(entry) = self.entries.remove(index)
        {
            cache.extend_from(&entry.cache, 0..same)?;
            self.entries.push_back(entry);
        }
        Ok(())
    }

    /// Keeps a prompt that was computed.
    pub(super) fn keep(&mut self, generation: &Generation, cache: &Arc<KvCache>) {
        let prompt = &generation.prompt;
        if prompt.len() < LEAST {
            return;
        }
        // What is a part of this one, or can't be asked for any more, makes room.
        let is_needless =
            |entry: &Entry| entry.under.is_gone() || (entry.under.is(generation) && prompt.starts_with(&entry.tokens));
        self.retain(|entry| !is_needless(entry));
        self.tokens += prompt.len();
        self.entries.push_back(Entry {
            under: Under::of(generation),
            tokens: prompt.clone(),
            cache: cache.clone(),
        });
        self.shrink(self.most);
    }

    /// Forgets until at most so many tokens are kept.
    pub(super) fn shrink(&mut self, most: usize) {
        while self.tokens > most
            && let Some(entry) = self.entries.pop_front()
        {
            self.tokens -= entry.tokens.len();
        }
    }

    /// Tokens kept.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        self.entries.retain(keep);
        self.tokens = self.entries.iter().map(|entry| entry.tokens.len()).sum();
    }
}
