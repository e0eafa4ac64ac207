//! The rewriter that is a language model: from a sentence to a prompt, from tokens to candidates.

use std::collections::HashSet;
use std::time::Instant;

use super::rewriter::{BoxFuture, Candidate, RewriteError, RewriteRequest, Rewriter, Rewrites};
use crate::engine::{Activity, Engine, EngineError, Generation, LikelihoodRequest, Sampling};
use crate::model::tokenizer::TextTokenizer;
use crate::prompt::RewritePrompt;

/// Asks the engine for continuations of the rewrite prompt.
pub struct LanguageModelRewriter {
    engine: Engine,
    tokenizer: std::sync::Arc<TextTokenizer>,
    prompt: RewritePrompt,
    name: String,
}

/// How candidates after the first are drawn.
const TEMPERATURE: f32 = 0.8;
const TOP_P: f32 = 0.95;

impl LanguageModelRewriter {
    /// A rewriter on an engine; `name` is what answers call the model.
    pub fn new(
        engine: Engine,
        tokenizer: std::sync::Arc<TextTokenizer>,
        prompt: RewritePrompt,
        name: impl Into<String>,
    ) -> Self {
        Self {
            engine,
            tokenizer,
            prompt,
            name: name.into(),
        }
    }

    async fn candidates(&self, request: RewriteRequest<'_>) -> Result<Rewrites, RewriteError> {
        if let Some(patience) = request.turn.first_wait(request.deadline) {
            self.engine.check_wait(patience)?;
        }
        let failed = |error: &dyn std::fmt::Display| RewriteError::Failed(error.to_string());
        let source = self
            .tokenizer
            .encode(request.sentence)
            .map_err(|error| failed(&error))?;
        let prompt = self.prompt.tokens(&source);
        let prompt_tokens = prompt.len();
        let generation = Generation {
            prompt,
            end: self.prompt.end(),
            // A rewrite is about as long as its source; one that runs on is of no use.
            max_new_tokens: source.len() + source.len() / 2 + 8,
            candidates: request.candidates,
            sampling: Sampling {
                temperature: TEMPERATURE,
                top_p: TOP_P,
                seed: request.seed,
            },
            adapter: request
                .adapter
                .adapter()
                .map(|adapter| (adapter.clone(), request.strength)),
            guidance: request.guidance,
            deadline: request.deadline,
            draft: source,
            fairness: request.turn.number(),
        };
        let generated = self.engine.generate(generation).await?;
        let completion_tokens = generated
            .completions
            .iter()
            .map(|completion| completion.tokens.len())
            .sum();
        let mut seen = HashSet::new();
        let mut candidates = Vec::with_capacity(generated.completions.len());
        for completion in generated
            .completions
            .into_iter()
            .filter(|completion| completion.finished)
        {
            let text = self
                .tokenizer
                .decode(&completion.tokens)
                .map_err(|error| failed(&error))?;
            let text = text.trim().to_owned();
            if seen.insert(text.clone()) {
                candidates.push(Candidate {
                    text,
                    mean_nll: completion.mean_nll,
                    base_nll: None,
                });
            }
        }
        let started = Instant::now();
        if candidates.len() > 1 {
            self.judge_fluency(&mut candidates, request.turn.number()).await?;
        }
        Ok(Rewrites {
            candidates,
            prompt_tokens,
            completion_tokens,
            queue: generated.timing.queue,
            inference: generated.timing.inference + started.elapsed(),
        })
    }

    /// How likely each candidate is for who has not read its source.
    async fn judge_fluency(&self, candidates: &mut [Candidate], fairness: u64) -> Result<(), RewriteError> {
        let mut texts = Vec::with_capacity(candidates.len());
        for candidate in candidates.iter() {
            let mut tokens = self.tokenizer.leading_tokens().to_vec();
            let encoded = self.tokenizer.encode(&candidate.text);
            tokens.extend(encoded.map_err(|error| RewriteError::Failed(error.to_string()))?);
            texts.push(tokens);
        }
        let request = LikelihoodRequest {
            texts,
            adapter: None,
            fairness: Some(fairness),
        };
        let likelihoods = self.engine.likelihoods(request).await?;
        for (candidate, nll) in candidates.iter_mut().zip(likelihoods) {
            candidate.base_nll = (!nll.is_empty()).then(|| nll.iter().sum::<f32>() / nll.len() as f32);
        }
        Ok(())
    }
}

impl Rewriter for LanguageModelRewriter {
    fn rewrite<'a>(&'a self, request: RewriteRequest<'a>) -> BoxFuture<'a, Result<Rewrites, RewriteError>> {
        Box::pin(self.candidates(request))
    }

    fn model(&self) -> &str {
        &self.name
    }

    fn activity(&self) -> Option<&Activity> {
        Some(self.engine.activity())
    }
}

impl From<EngineError> for RewriteError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Overloaded { retry_after } => Self::Overloaded { retry_after },
            EngineError::DeadlinePassed => Self::DeadlinePassed,
            EngineError::Stopped => Self::Cancelled,
            EngineError::Invalid(_) | EngineError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}
