//! One request within the batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Result;
use tokio::sync::oneshot;

use super::caches::Caches;
use super::draft::{Draft, Trust};
use super::handle::{Completion, EngineError, Generated, Generation, Timing};
use super::pace::{Pace, Rate, Slot};
use super::prefixes::{Prefixes, shared};
use super::sampling::{Choice, Row, Sampler, Sampling};
use crate::model::kv_cache::{CacheSpace, KvCache};

/// A request whose prompt is computed once and shared by its candidates.
pub(super) struct Group {
    pub generation: Generation,
    pub reply: oneshot::Sender<std::result::Result<Generated, EngineError>>,
    /// Keys and values of the prompt, while it is being computed.
    pub prompt: Option<Caches>,
    pub branches: Vec<Branch>,
    candidates: Vec<Candidate>,
    /// Where drafts begin.
    pub draft: Draft,
    rate: Rate,
    queue: Duration,
    admitted: Instant,
}

/// What candidates have in common that have written the same so far: the next token is computed once for all of them.
pub(super) struct Branch {
    /// Keys and values of all tokens but the last.
    pub caches: Caches,
    /// The token that was written last.
    pub last: u32,
    /// How many were written.
    written: usize,
    /// Places of the candidates.
    members: Vec<usize>,
    pub draft: Draft,
    rate: Rate,
}

/// One continuation.
struct Candidate {
    tokens: Vec<u32>,
    sampler: Sampler,
    total_nll: f32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Ended by itself.
    Finished,
    /// Reached the limit of tokens.
    Exhausted,
}

/// What a pass over a branch, or over the end of a prompt, came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Came {
    /// Tokens written, over all candidates.
    pub written: usize,
    /// Draft tokens that were right for at least one of them.
    pub accepted: usize,
}

impl Group {
    /// With nothing computed.
    pub(super) fn admit(
        generation: Generation,
        submitted: Instant,
        reply: oneshot::Sender<std::result::Result<Generated, EngineError>>,
        caches: &CacheSpace,
        pace: &Pace,
    ) -> Self {
        let prompt = Caches::empty(caches, 0, generation.is_guided());
        let candidates = (0..generation.candidates)
            .map(|index| Candidate {
                tokens: Vec::new(),
                sampler: Sampler::new(generation.sampling, index),
                total_nll: 0.0,
                state: State::Running,
            })
            .collect();
        Self {
            draft: Draft::new(&generation.draft),
            rate: pace.prior(),
            generation,
            reply,
            prompt: Some(prompt),
            branches: Vec::new(),
            candidates,
            queue: submitted.elapsed(),
            admitted: Instant::now(),
        }
    }

    /// Takes over what is known of its prompt already, if none of it is computed; returns how many tokens.
    pub(super) fn reuse(&mut self, prefixes: &mut Prefixes, caches: &CacheSpace) -> Result<usize> {
        match &mut self.prompt {
            Some(prompt) if prompt.positions() == 0 => {
                *prompt = Caches::empty(caches, self.generation.prompt.len(), self.generation.is_guided());
                // What the base made of a prompt is not kept.
                if !self.generation.is_guided() {
                    prefixes.begin(&self.generation, &mut prompt.own)?;
                }
                Ok(prompt.positions())
            }
            _ => Ok(0),
        }
    }

    /// Tokens of the prompt that are still to be computed.
    pub(super) fn left_of_prompt(&self) -> &[u32] {
        let done = self
            .prompt
            .as_ref()
            .map_or(self.generation.prompt.len(), Caches::positions);
        self.generation.prompt.get(done..).unwrap_or_default()
    }

    /// What its candidates are drawn with; `None` if all there is is the likeliest.
    pub(super) fn sampling(&self) -> Option<Sampling> {
        (self.candidates.len() > 1).then_some(self.generation.sampling)
    }

    /// What might be drafted behind the prompt.
    pub(super) fn slot(&self) -> Slot {
        slot(
            &self.draft,
            self.rate,
            self.candidates.len(),
            self.generation.max_new_tokens,
        )
    }

    /// What might be drafted for a branch.
    pub(super) fn slot_of(&self, branch: &Branch) -> Slot {
        let left = self.generation.max_new_tokens - branch.written;
        slot(&branch.draft, branch.rate, branch.members.len(), left)
    }

    /// Whether its prompt's keys and values are those at the beginning of another's, for the most part.
    pub(super) fn begins_like(&self, other: &Self) -> bool {
        let under = |group: &Self| {
            let adapter = group.generation.adapter.as_ref();
            adapter.map(|(adapter, strength)| (Arc::as_ptr(adapter), *strength))
        };
        under(self) == under(other)
            && !self.generation.is_guided()
            && !other.generation.is_guided()
            && 2 * shared(&other.generation.prompt, &self.generation.prompt) > other.generation.prompt.len()
    }

    /// Begins all candidates from the logits after the prompt and after each of `drafted` tokens; the prompt's cache holds both. The
    /// prompt alone is left in the returned cache, which is none where it would be of no use to others.
    pub(super) fn begin(
        &mut self,
        rows: &[Row<'_>],
        drafted: usize,
        pace: &mut Pace,
    ) -> Result<(Came, Option<Arc<KvCache>>)> {
        let Some(computed) = self.prompt.take() else {
            return Ok((Came::default(), None));
        };
        let length = self.generation.prompt.len();
        let prompt = computed.fork(length, length)?.share();
        let draft = self.draft.expected()[..drafted].to_vec();
        let members: Vec<usize> = (0..self.candidates.len()).collect();
        let outcomes = self.follow(&members, &draft, rows);
        learn(&outcomes, &mut self.rate, self.draft.trust(), pace);
        for (accepted, last, members) in outcomes.branches {
            let mut caches = Caches::continuing(&prompt, self.generation.max_new_tokens);
            caches.extend_from(&computed, length..length + accepted)?;
            self.branches.push(Branch {
                caches,
                last,
                written: accepted + 1,
                members,
                draft: moved(&self.draft, &draft[..accepted], last),
                rate: self.rate,
            });
        }
        Ok((outcomes.came, (!self.generation.is_guided()).then_some(prompt.own)))
    }

    /// Goes on with a branch from the logits after its last token and after each of `drafted` tokens; its cache holds them all.
    pub(super) fn go_on(&mut self, branch: Branch, rows: &[Row<'_>], drafted: usize, pace: &mut Pace) -> Result<Came> {
        let Branch {
            mut caches,
            written,
            members,
            draft: pointer,
            mut rate,
            ..
        } = branch;
        let draft = pointer.expected()[..drafted].to_vec();
        let before = caches.positions() - drafted;
        let mut outcomes = self.follow(&members, &draft, rows);
        learn(&outcomes, &mut rate, pointer.trust(), pace);
        let mut parted = |accepted: usize, last: u32, members: Vec<usize>, caches: Caches| {
            self.branches.push(Branch {
                caches,
                last,
                written: written + accepted + 1,
                members,
                draft: moved(&pointer, &draft[..accepted], last),
                rate,
            });
        };
        let kept = outcomes.branches.pop();
        for (accepted, last, members) in outcomes.branches {
            let fork = caches.fork(before + accepted, self.generation.max_new_tokens)?;
            parted(accepted, last, members, fork);
        }
        if let Some((accepted, last, members)) = kept {
            caches.truncate(before + accepted);
            parted(accepted, last, members, caches);
        }
        Ok(outcomes.came)
    }

    /// Lets each member choose along the draft, as far as it chooses what was drafted.
    fn follow(&mut self, members: &[usize], draft: &[u32], rows: &[Row<'_>]) -> Outcomes {
        let mut outcomes = Outcomes {
            tried: vec![(0, 0); draft.len()],
            ..Outcomes::default()
        };
        for &member in members {
            let candidate = &mut self.candidates[member];
            let mut accepted = 0;
            for (row, expected) in rows.iter().zip(draft.iter().map(Some).chain([None])) {
                let token = candidate.take(row, &self.generation);
                outcomes.came.written += 1;
                let is_right = expected == Some(&token);
                outcomes.came.accepted = outcomes.came.accepted.max(accepted + usize::from(is_right));
                if let Some((reached, right)) = outcomes.tried.get_mut(accepted) {
                    *reached += 1;
                    *right += usize::from(is_right);
                }
                if candidate.state != State::Running {
                    break;
                }
                if is_right {
                    accepted += 1;
                    continue;
                }
                match outcomes
                    .branches
                    .iter_mut()
                    .find(|(other, last, _)| (*other, *last) == (accepted, token))
                {
                    Some((_, _, members)) => members.push(member),
                    None => outcomes.branches.push((accepted, token, vec![member])),
                }
                break;
            }
        }
        outcomes
    }

    pub(super) fn is_done(&self) -> bool {
        self.prompt.is_none() && self.branches.is_empty()
    }

    /// Tokens whose keys and values it holds at most.
    pub(super) fn cached_tokens(&self) -> usize {
        self.generation.most_tokens()
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.generation.deadline.is_some_and(|deadline| now >= deadline)
    }

    pub(super) fn finish(self) {
        let timing = Timing {
            queue: self.queue,
            inference: self.admitted.elapsed(),
        };
        let completions = self.candidates.into_iter().map(Candidate::into_completion).collect();
        // The receiver may have gone meanwhile; then there is nobody to tell.
        let _ = self.reply.send(Ok(Generated { completions, timing }));
    }

    pub(super) fn fail(self, error: EngineError) {
        let _ = self.reply.send(Err(error));
    }
}

/// Where the members of a branch went.
#[derive(Default)]
struct Outcomes {
    /// Draft tokens accepted, the token written after them, and who wrote it.
    branches: Vec<(usize, u32, Vec<usize>)>,
    /// Of each draft token, how many members reached it and for how many it was right.
    tried: Vec<(usize, usize)>,
    came: Came,
}

fn slot(draft: &Draft, rate: Rate, members: usize, left: usize) -> Slot {
    Slot {
        members,
        // The pass writes one token more than was drafted.
        limit: draft.expected().len().min(left.saturating_sub(1)),
        trust: draft.trust(),
        rate,
    }
}

fn moved(draft: &Draft, accepted: &[u32], last: u32) -> Draft {
    let mut draft = draft.clone();
    for token in accepted {
        draft.advance(*token);
    }
    draft.advance(last);
    draft
}

/// Each draft token that was reached says how good drafts are; those behind a wrong one were not put to the test.
fn learn(outcomes: &Outcomes, rate: &mut Rate, trust: Trust, pace: &mut Pace) {
    for (place, &(reached, right)) in outcomes.tried.iter().enumerate() {
        if reached == 0 {
            break;
        }
        let share = right as f64 / reached as f64;
        pace.tried(if place == 0 { trust } else { Trust::Following }, share);
        rate.add(share);
    }
}

impl Candidate {
    /// Chooses the next token from the logits after the last one.
    fn take(&mut self, row: &Row<'_>, generation: &Generation) -> u32 {
        let Choice { token, nll } = self.sampler.choose(row);
        self.total_nll += nll;
        if token == generation.end {
            self.state = State::Finished;
            return token;
        }
        self.tokens.push(token);
        if self.tokens.len() >= generation.max_new_tokens {
            self.state = State::Exhausted;
        }
        token
    }

    fn into_completion(self) -> Completion {
        let finished = self.state == State::Finished;
        let choices = self.tokens.len() + usize::from(finished);
        Completion {
            mean_nll: self.total_nll / choices.max(1) as f32,
            tokens: self.tokens,
            finished,
        }
    }
}
