//! One request within the batch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::handle::{Completion, EngineError, Generated, Generation, Timing};
use super::sampling::{Choice, Sampler};
use crate::model::DecoderConfig;
use crate::model::kv_cache::KvCache;

/// A request whose prompt is computed once and shared by its candidates.
pub(super) struct Group {
    pub generation: Generation,
    pub reply: oneshot::Sender<Result<Generated, EngineError>>,
    pub candidates: Vec<Candidate>,
    /// Keys and values of the prompt, while it is being computed.
    pub prompt: Option<KvCache>,
    queue: Duration,
    admitted: Instant,
}

/// One continuation.
pub(super) struct Candidate {
    pub cache: KvCache,
    pub tokens: Vec<u32>,
    sampler: Sampler,
    total_nll: f32,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// Ended by itself.
    Finished,
    /// Reached the limit of tokens.
    Exhausted,
}

impl Group {
    pub(super) fn admit(
        generation: Generation,
        submitted: Instant,
        reply: oneshot::Sender<Result<Generated, EngineError>>,
        config: &DecoderConfig,
    ) -> Self {
        let prompt = Some(KvCache::new(config, generation.prompt.len()));
        let (queue, admitted) = (submitted.elapsed(), Instant::now());
        Self {
            generation,
            reply,
            candidates: Vec::new(),
            prompt,
            queue,
            admitted,
        }
    }

    /// Begins all candidates from the logits after the prompt.
    pub(super) fn begin(&mut self, logits: &[f32], config: &DecoderConfig) {
        let Some(prompt) = self.prompt.take() else { return };
        let prompt = Arc::new(prompt);
        let generation = &self.generation;
        self.candidates = (0..generation.candidates)
            .map(|index| {
                let cache = KvCache::continuing(prompt.clone(), config, generation.max_new_tokens);
                let sampler = Sampler::new(generation.sampling, index);
                let mut candidate = Candidate {
                    cache,
                    tokens: Vec::new(),
                    sampler,
                    total_nll: 0.0,
                    state: State::Running,
                };
                candidate.take(logits, generation);
                candidate
            })
            .collect();
    }

    pub(super) fn is_done(&self) -> bool {
        self.prompt.is_none()
            && self
                .candidates
                .iter()
                .all(|candidate| candidate.state != State::Running)
    }

    /// Tokens whose keys and values it holds at most.
    pub(super) fn cached_tokens(&self) -> usize {
        self.generation.prompt.len() + self.generation.candidates * self.generation.max_new_tokens
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

impl Candidate {
    /// Chooses the next token from the logits after the last one.
    pub(super) fn take(&mut self, logits: &[f32], generation: &Generation) {
        let Choice { token, nll } = self.sampler.choose(logits);
        self.total_nll += nll;
        if token == generation.end {
            self.state = State::Finished;
            return;
        }
        self.tokens.push(token);
        if self.tokens.len() >= generation.max_new_tokens {
            self.state = State::Exhausted;
        }
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
