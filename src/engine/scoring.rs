//! A text whose likelihood is asked for, computed piece by piece so that a long one holds up nobody for long.

use candle_core::Result;
use tokio::sync::oneshot;

use super::handle::{EngineError, LikelihoodRequest};
use super::step::extend_spans;
use crate::model::Decoder;
use crate::model::kv_cache::{CacheSpace, CachedSequence, KvCache};
use crate::model::layers::Adaptation;
use crate::model::ops::Target;

pub(super) struct Scoring {
    request: LikelihoodRequest,
    reply: oneshot::Sender<std::result::Result<Vec<f32>, EngineError>>,
    cache: KvCache,
    /// Of the tokens after the first, as far as it got.
    losses: Vec<f32>,
}

impl Scoring {
    pub(super) fn new(
        request: LikelihoodRequest,
        reply: oneshot::Sender<std::result::Result<Vec<f32>, EngineError>>,
        caches: &CacheSpace,
    ) -> Self {
        let cache = caches.cache(request.tokens.len());
        Self {
            request,
            reply,
            cache,
            losses: Vec::new(),
        }
    }

    /// Takes at most so many tokens further; `true` when all are done.
    pub(super) fn step(&mut self, decoder: &Decoder, most: usize) -> Result<bool> {
        let first = self.cache.positions();
        let end = self.request.tokens.len().min(first + most);
        let tokens = &self.request.tokens[first..end];
        let mut spans = Vec::new();
        if let Some((adapter, strength)) = &self.request.adapter {
            extend_spans(&mut spans, 0, tokens.len(), adapter, *strength);
        }
        let mut sequences = [CachedSequence {
            cache: &mut self.cache,
            len: tokens.len(),
        }];
        let hidden = decoder.forward_cached(tokens, &mut sequences, Adaptation::Mixed(&spans))?;
        let targets: Vec<Target> = self
            .request
            .tokens
            .iter()
            .skip(first + 1)
            .zip(0..tokens.len() as u32)
            .map(|(&token, row)| Target { row, token })
            .collect();
        if !targets.is_empty() {
            let losses = decoder.cross_entropy(&hidden, &targets, Adaptation::Mixed(&spans))?;
            self.losses.extend(losses.to_vec1::<f32>()?);
        }
        Ok(end == self.request.tokens.len())
    }

    /// Tokens still to be computed.
    pub(super) fn left(&self) -> usize {
        self.request.tokens.len() - self.cache.positions()
    }

    /// Work, in the unit of [`super::Generation::cost`].
    pub(super) fn cost(&self) -> usize {
        self.request.tokens.len()
    }

    /// Tokens whose keys and values it holds at most.
    pub(super) fn cached_tokens(&self) -> usize {
        self.request.tokens.len()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    pub(super) fn finish(self) {
        // The receiver may have gone meanwhile; then there is nobody to tell.
        let _ = self.reply.send(Ok(self.losses));
    }

    pub(super) fn fail(self, error: &candle_core::Error) {
        let _ = self.reply.send(Err(EngineError::Failed(error.to_string())));
    }
}
