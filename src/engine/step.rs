//! One forward pass over what is in the batch: pieces of prompts, last tokens, drafts.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::pace::Slot;
use super::sampling::Row;
use super::scheduler::Scheduler;
use super::sequence::{Came, Group};
use crate::model::kv_cache::CachedSequence;
use crate::model::layers::{Adaptation, LoraSpan};
use crate::model::lora::LoraModel;
use crate::model::ops::with_values;

/// What a step was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stepped {
    /// Sequences that took part.
    pub sequences: usize,
    /// Tokens computed.
    pub rows: usize,
    /// Of these, tokens whose logits were wanted.
    pub with_logits: usize,
    /// Of these, tokens of prompts.
    pub prefilled: usize,
    /// Draft tokens.
    pub drafted: usize,
    /// Of these, right ones.
    pub accepted: usize,
    /// Tokens written.
    pub written: usize,
}

/// A sequence's part of a step.
struct Item {
    group: usize,
    part: Part,
    /// Draft tokens at its end.
    drafted: usize,
}

enum Part {
    /// So many tokens of the prompt.
    Prompt(usize),
    /// The last token of a branch.
    Branch(usize),
}

impl Scheduler {
    /// One forward pass. Those whose logits it yields move on.
    pub(super) fn step(&mut self) -> Result<Stepped> {
        for group in &mut self.groups {
            let reused = group.reuse(&mut self.prefixes, &self.caches)?;
            if reused > 0 {
                self.activity.reused(reused);
            }
        }
        let items = self.plan();
        let (hidden, rows, row_spans) = self.forward(&items)?;
        let mut stepped = Stepped {
            sequences: items.len(),
            rows: hidden.dims()[0],
            with_logits: rows.len(),
            ..Stepped::default()
        };
        for item in &items {
            stepped.drafted += item.drafted;
            if let Part::Prompt(tokens) = item.part {
                stepped.prefilled += tokens;
            }
        }
        if rows.is_empty() {
            // Nothing is fetched that would wait for a device, and the step's time is to be its own.
            self.decoder.device().synchronize()?;
            return Ok(stepped);
        }
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, hidden.device())?;
        let logits = self
            .decoder
            .logits(&hidden.index_select(&rows, 0)?, Adaptation::Mixed(&row_spans))?
            .to_device(&Device::Cpu)?;
        let came = with_values(&logits, |logits| self.settle(&items, logits))?;
        stepped.written = came.written;
        stepped.accepted = came.accepted;
        Ok(stepped)
    }

    /// What each sequence brings: prompts by a budget of tokens, and drafts where they are worth it.
    fn plan(&self) -> Vec<Item> {
        let pieces = pieces(&self.groups, self.config.max_prefill_tokens.max(1));
        let mut items = Vec::new();
        let mut slots: Vec<Slot> = Vec::new();
        let mut rows = 0;
        for (index, (group, piece)) in self.groups.iter().zip(pieces).enumerate() {
            let item = |part| Item {
                group: index,
                part,
                drafted: 0,
            };
            if piece > 0 {
                rows += piece;
                // A piece that ends before the prompt does yields no token.
                let is_last = piece == group.left_of_prompt().len();
                slots.push(if is_last { group.slot() } else { Slot::NONE });
                items.push(item(Part::Prompt(piece)));
            }
            for (number, branch) in group.branches.iter().enumerate() {
                rows += 1;
                slots.push(group.slot_of(branch));
                items.push(item(Part::Branch(number)));
            }
        }
        for (item, length) in items.iter_mut().zip(self.pace.plan(&slots, rows)) {
            item.drafted = length;
        }
        items
    }

    /// Hidden states, the rows whose logits are wanted, and the adapters of these. What the bare base model is asked for guided sequences comes
    /// after all the rest, in the same order.
    fn forward(&mut self, items: &[Item]) -> Result<(Tensor, Vec<u32>, Vec<LoraSpan>)> {
        let mut tokens = Vec::new();
        let mut sequences = Vec::new();
        let (mut spans, mut rows, mut row_spans) = (Vec::new(), Vec::new(), Vec::new());
        // Caches of the base's side, their tokens, and how many of these at the end yield logits.
        let mut base_sides = Vec::new();
        let mut items = items.iter().peekable();
        for (index, group) in self.groups.iter_mut().enumerate() {
            let (first, first_row) = (tokens.len(), rows.len());
            let mut branches = group.branches.iter_mut().enumerate();
            let mut prompt = group.prompt.as_mut();
            while let Some(item) = items.next_if(|item| item.group == index) {
                let start = tokens.len();
                let (caches, pointer, known) = match item.part {
                    Part::Prompt(piece) => {
                        let Some(caches) = prompt.take() else { continue };
                        let done = caches.positions();
                        tokens.extend(&group.generation.prompt[done..done + piece]);
                        let is_last = done + piece == group.generation.prompt.len();
                        (caches, &group.draft, is_last.then_some(piece))
                    }
                    Part::Branch(number) => {
                        let Some((_, branch)) = branches.find(|(index, _)| *index == number) else {
                            continue;
                        };
                        tokens.push(branch.last);
                        (&mut branch.caches, &branch.draft, Some(1))
                    }
                };
                tokens.extend(&pointer.expected()[..item.drafted]);
                let first_known = known.map_or(tokens.len(), |known| start + known - 1);
                rows.extend(first_known as u32..tokens.len() as u32);
                let len = tokens.len() - start;
                sequences.push(CachedSequence {
                    cache: &mut caches.own,
                    len,
                });
                if let Some(base) = &mut caches.base {
                    base_sides.push((base, start..tokens.len(), tokens.len() - first_known));
                }
            }
            if let Some((adapter, strength)) = &group.generation.adapter {
                extend_spans(&mut spans, first, tokens.len(), adapter, *strength);
                extend_spans(&mut row_spans, first_row, rows.len(), adapter, *strength);
            }
        }
        for (cache, same, known) in base_sides {
            sequences.push(CachedSequence { cache, len: same.len() });
            tokens.extend_from_within(same);
            rows.extend((tokens.len() - known) as u32..tokens.len() as u32);
        }
        let hidden = self
            .decoder
            .forward_cached(&tokens, &mut sequences, Adaptation::Mixed(&spans))?;
        Ok((hidden, rows, row_spans))
    }

    /// Lets every candidate choose from its logits.
    fn settle(&mut self, items: &[Item], logits: &[f32]) -> Result<Came> {
        let groups = &self.groups;
        let ends = |item: &&Item| match item.part {
            Part::Prompt(_) => groups[item.group].left_of_prompt().is_empty(),
            Part::Branch(_) => true,
        };
        let items: Vec<&Item> = items.iter().filter(ends).collect();
        let of_rows: Vec<_> = items
            .iter()
            .flat_map(|item| std::iter::repeat_n(&groups[item.group], item.drafted + 1))
            .collect();
        let vocabulary = self.decoder.config().vocab_size;
        let (logits, bases) = logits.split_at(of_rows.len() * vocabulary);
        let mut bases = bases.chunks_exact(vocabulary);
        let of_rows: Vec<_> = of_rows
            .into_iter()
            .map(|group| (group, group.generation.is_guided().then(|| bases.next()).flatten()))
            .collect();
        let rows: Vec<Row<'_>> = logits
            .par_chunks_exact(vocabulary)
            .zip(of_rows)
            .with_min_len(2)
            .map(|(logits, (group, base))| match base {
                Some(base) => Row::guided(logits, base, group.generation.guidance, group.sampling()),
                None => Row::new(logits, group.sampling()),
            })
            .collect();
        let mut rows = rows.as_slice();
        let mut came = Came::default();
        let mut items = items.into_iter().peekable();
        for (index, group) in self.groups.iter_mut().enumerate() {
            let mut branches = std::mem::take(&mut group.branches).into_iter();
            while let Some(item) = items.next_if(|item| item.group == index) {
                let own;
                (own, rows) = rows.split_at(item.drafted + 1);
                let here = match item.part {
                    Part::Prompt(_) => {
                        let (here, prompt) = group.begin(own, item.drafted, &mut self.pace)?;
                        if let Some(prompt) = prompt {
                            self.prefixes.keep(&group.generation, &prompt);
                        }
                        here
                    }
                    Part::Branch(_) => match branches.next() {
                        Some(branch) => group.go_on(branch, own, item.drafted, &mut self.pace)?,
                        None => Came::default(),
                    },
                };
                came.written += here.written;
                came.accepted += here.accepted;
            }
        }
        Ok(came)
    }
}

/// How many tokens of each group's prompt a step takes, at most `budget` together: half of them of the one that waits longest, so that it
/// comes to its end, then of the shortest, which are done soonest. A prompt that begins as one that is under way waits for it.
fn pieces(groups: &std::collections::VecDeque<Group>, budget: usize) -> Vec<usize> {
    let mut pieces = vec![0; groups.len()];
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let left = group.left_of_prompt().len();
        let is_begun = || group.left_of_prompt().len() < group.generation.prompt.len();
        let will_share = || order.iter().any(|&(_, other)| groups[other].begins_like(group));
        if left > 0 && (is_begun() || !will_share()) {
            order.push((left, index));
        }
    }
    let Some(&(left, oldest)) = order.first() else {
        return pieces;
    };
    let mut rest = budget;
    let mut take = |index: usize, most: usize| {
        let more = most.min(rest);
        pieces[index] += more;
        rest -= more;
    };
    take(oldest, left.min(budget.div_ceil(2)));
    order.remove(0);
    order.sort_unstable();
    for (left, index) in order {
        take(index, left);
    }
    let more = left - left.min(budget.div_ceil(2));
    take(oldest, more);
    pieces
}

/// Adds rows `first..end` to the spans, joined to the last one when it has the same adapter and strength.
pub(super) fn extend_spans(
    spans: &mut Vec<LoraSpan>,
    first: usize,
    end: usize,
    adapter: &Arc<LoraModel>,
    strength: f32,
) {
    if first == end || strength == 0.0 {
        return;
    }
    match spans.last_mut() {
        Some(last) if last.rows.end == first && Arc::ptr_eq(&last.adapter, adapter) && last.strength == strength => {
            last.rows.end = end;
        }
        _ => spans.push(LoraSpan {
            rows: first..end,
            adapter: adapter.clone(),
            strength,
        }),
    }
}
