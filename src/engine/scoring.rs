//! Texts whose likelihoods are asked for, computed piece by piece so that long ones hold up nobody for long.

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
    reply: oneshot::Sender<std::result::Result<Vec<Vec<f32>>, EngineError>>,
    /// Of each text.
    caches: Vec<KvCache>,
    /// Of the tokens after the first of each text, as far as it got.
    losses: Vec<Vec<f32>>,
}

impl Scoring {
    pub(super) fn new(
        request: LikelihoodRequest,
        reply: oneshot::Sender<std::result::Result<Vec<Vec<f32>>, EngineError>>,
        caches: &CacheSpace,
    ) -> Self {
        let caches: Vec<KvCache> = request.texts.iter().map(|tokens| caches.cache(tokens.len())).collect();
        let losses = vec![Vec::new(); caches.len()];
        Self {
            request,
            reply,
            caches,
            losses,
        }
    }

    /// Takes at most so many tokens further; `true` when all are done.
    pub(super) fn step(&mut self, decoder: &Decoder, most: usize) -> Result<bool> {
        let (mut tokens, mut sequences) = (Vec::new(), Vec::new());
        let (mut targets, mut targets_of) = (Vec::new(), Vec::new());
        for (index, (text, cache)) in self.request.texts.iter().zip(&mut self.caches).enumerate() {
            let first = cache.positions();
            let end = text.len().min(first + most - tokens.len());
            if first == end {
                continue;
            }
            let row = tokens.len() as u32;
            tokens.extend_from_slice(&text[first..end]);
            let len = end - first;
            sequences.push(CachedSequence { cache, len });
            let following = text.iter().skip(first + 1).take(len);
            targets.extend(following.zip(row..).map(|(&token, row)| Target { row, token }));
            targets_of.resize(targets.len(), index);
        }
        let mut spans = Vec::new();
        if let Some((adapter, strength)) = &self.request.adapter {
            extend_spans(&mut spans, 0, tokens.len(), adapter, *strength);
        }
        let hidden = decoder.forward_cached(&tokens, &mut sequences, Adaptation::Mixed(&spans))?;
        if !targets.is_empty() {
            let losses = decoder.cross_entropy(&hidden, &targets, Adaptation::Mixed(&spans))?;
            for (loss, index) in losses.to_vec1::<f32>()?.into_iter().zip(targets_of) {
                self.losses[index].push(loss);
            }
        }
        Ok(self.left() == 0)
    }

    /// Tokens still to be computed.
    pub(super) fn left(&self) -> usize {
        self.request.tokens() - self.caches.iter().map(KvCache::positions).sum::<usize>()
    }

    /// Work, in the unit of [`super::Generation::cost`].
    pub(super) fn cost(&self) -> usize {
        self.request.tokens()
    }

    /// Tokens whose keys and values it holds at most.
    pub(super) fn cached_tokens(&self) -> usize {
        self.request.tokens()
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
