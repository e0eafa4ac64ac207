//! What the rest of the service holds of the engine.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::activity::Activity;
use super::sampling::Sampling;
use super::scheduler::Scheduler;
use crate::model::Decoder;
use crate::model::lora::LoraModel;

/// Limits of the engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Requests that may wait for a place in the batch.
    pub max_waiting: usize,
    /// Sequences decoded at once.
    pub max_sequences: usize,
    /// Prompt tokens taken into one step; longer prompts take several, and others write meanwhile.
    pub max_prefill_tokens: usize,
    /// Tokens, prompts and continuations at their longest, whose keys and values may be held, prompts kept for reuse among them; on a device
    /// memory for them is taken at the start. A request that exceeds it runs alone.
    pub max_cached_tokens: usize,
    /// Draft tokens that a sequence may put to the test in one step; 0 turns drafts off.
    pub max_draft_tokens: usize,
    /// Threads of the matrix products.
    pub threads: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            max_waiting: 1024,
            max_sequences: 64,
            max_prefill_tokens: 256,
            // Some 190 MB for the default model.
            max_cached_tokens: 4096,
            max_draft_tokens: 16,
            threads,
        }
    }
}

/// A prompt to be continued.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// The token that ends a continuation.
    pub end: u32,
    /// Most tokens of a continuation, the end token included.
    pub max_new_tokens: usize,
    /// How many continuations; the first is the likeliest token at each step, the others are drawn.
    pub candidates: usize,
    /// How the others are drawn.
    pub sampling: Sampling,
    /// The adapter and its strength; the base model without one.
    pub adapter: Option<(Arc<LoraModel>, f32)>,
    /// Model arithmetic (Dekoninck et al. 2024): where it is over 0, tokens are chosen by `log p + guidance * (log p - log p_base)`, `p` being the
    /// probabilities under the adapter and `p_base` those of the bare base model after the same tokens. Everything is computed twice then.
    pub guidance: f32,
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
    /// Token ids that the continuation is expected to copy for the most part; empty without such. What is written does not depend on them.
    pub draft: Vec<u32>,
    /// Whom it is for: generations of one key wait behind each other rather than before those of other keys.
    pub fairness: u64,
}

impl Generation {
    /// Whether the bare base model has a say.
    pub(super) fn is_guided(&self) -> bool {
        self.guidance > 0.0
    }

    /// How often everything is computed.
    fn sides(&self) -> usize {
        if self.is_guided() { 2 } else { 1 }
    }

    /// Places in the batch.
    pub(super) fn sequences(&self) -> usize {
        self.candidates * self.sides()
    }

    /// Tokens of its prompt and its continuations at their longest.
    pub(super) fn most_tokens(&self) -> usize {
        (self.prompt.len() + self.candidates * self.max_new_tokens) * self.sides()
    }

    /// Roughly how much work it is.
    pub(super) fn cost(&self) -> usize {
        self.most_tokens()
    }
}

/// Texts whose likelihoods are asked for, each by itself. Short ones go through the model side by side.
#[derive(Debug, Clone)]
pub struct LikelihoodRequest {
    /// Token ids of each.
    pub texts: Vec<Vec<u32>>,
    /// The adapter and its strength; the base model without one.
    pub adapter: Option<(Arc<LoraModel>, f32)>,
    /// Whom it is for, as in [`Generation`]; those for nobody wait behind each other.
    pub fairness: Option<u64>,
}

impl LikelihoodRequest {
    /// Of all texts together.
    pub(super) fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }
}

/// One continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Without the end token.
    pub tokens: Vec<u32>,
    /// Mean negative log-likelihood of its tokens, the end token included, in nats.
    pub mean_nll: f32,
    /// Whether it ended by itself rather than at the limit.
    pub finished: bool,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// From the request to its place in the batch.
    pub queue: Duration,
    /// From there to the last token.
    pub inference: Duration,
}

/// The answer to a [`Generation`].
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// In the order of the candidates.
    pub completions: Vec<Completion>,
    /// Where the time went.
    pub timing: Timing,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Too many requests wait already.
    #[error("too much waits for the engine: some {retry_after:?} of work")]
    Overloaded {
        /// How long one who comes now would wait, at the speed of late.
        retry_after: Duration,
    },
    /// The deadline passed first.
    #[error("the deadline passed before the text was finished")]
    DeadlinePassed,
    /// The request cannot be computed.
    #[error("{0}")]
    Invalid(String),
    /// The model failed.
    #[error("the model failed: {0}")]
    Failed(String),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

pub(super) enum Command {
    Generate(
        Box<Generation>,
        Instant,
        oneshot::Sender<Result<Generated, EngineError>>,
    ),
    Likelihood(LikelihoodRequest, oneshot::Sender<Result<Vec<Vec<f32>>, EngineError>>),
}

impl Command {
    /// Whom it is for.
    pub(super) fn key(&self) -> u64 {
        match self {
            Self::Generate(generation, ..) => generation.fairness,
            Self::Likelihood(request, _) => request.fairness.unwrap_or(u64::MAX),
        }
    }

    /// Roughly how much work it is.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Generate(generation, ..) => generation.cost(),
            Self::Likelihood(request, _) => request.tokens(),
        }
    }

    /// Tokens whose keys and values it may need.
    pub(super) fn most_tokens(&self) -> usize {
        match self {
            Self::Generate(generation, ..) => generation.most_tokens(),
            Self::Likelihood(request, _) => request.tokens(),
        }
    }

    /// Places in the batch.
    pub(super) fn sequences(&self) -> usize {
        match self {
            Self::Generate(generation, ..) => generation.sequences(),
            Self::Likelihood(..) => 0,
        }
    }

    /// Whether its client has left or its deadline has passed.
    pub(super) fn is_unwanted(&self, now: Instant) -> bool {
        match self {
            Self::Generate(generation, _, reply) => {
                reply.is_closed() || generation.deadline.is_some_and(|deadline| now >= deadline)
            }
            Self::Likelihood(_, reply) => reply.is_closed(),
        }
    }

    pub(super) fn fail(self, error: EngineError) {
        // The receiver may have gone meanwhile; then there is nobody to tell.
        match self {
            Self::Generate(_, _, reply) => drop(reply.send(Err(error))),
            Self::Likelihood(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// A handle on the engine's thread; clones share it. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    commands: Sender<Command>,
    activity: Activity,
    max_waiting: usize,
    decoder: Arc<Decoder>,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// When threads cannot be had, or memory for the caches on a device.
    pub fn start(decoder: Arc<Decoder>, config: EngineConfig) -> Result<Self, EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Failed(error.to_string());
        let (commands, receiver) = channel();
        let activity = Activity::new().map_err(|error| failed(&error))?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads.max(1))
            .thread_name(|index| format!("engine-{index}"))
            .build()
            .map_err(|error| failed(&error))?;
        let caches = decoder.cache_space(config.max_cached_tokens);
        caches.allocate().map_err(|error| failed(&error))?;
        let scheduler = Scheduler::new(decoder.clone(), caches, config, activity.clone());
        std::thread::Builder::new()
            .name("engine".to_owned())
            // The loop itself runs on a thread of the pool: products called from outside would wait for a wake-up each.
            .spawn(move || pool.install(|| scheduler.run(receiver)))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            commands,
            activity,
            max_waiting: config.max_waiting.max(1),
            decoder,
        })
    }

    /// Continues a prompt. Dropping the future takes its sequences out of the batch at the next step.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn generate(&self, generation: Generation) -> Result<Generated, EngineError> {
        let positions = self.decoder.config().max_positions;
        if generation.prompt.is_empty() || generation.candidates == 0 || generation.max_new_tokens == 0 {
            return Err(EngineError::Invalid(
                "a prompt, candidates and tokens to generate are needed".to_owned(),
            ));
        }
        if !(0.0..f32::INFINITY).contains(&generation.guidance) {
            return Err(EngineError::Invalid(format!("guidance by {}", generation.guidance)));
        }
        if generation.prompt.len() + generation.max_new_tokens > positions {
            return Err(EngineError::Invalid(format!(
                "the text exceeds the model's {positions} tokens"
            )));
        }
        self.check_tokens(&generation.prompt)?;
        self.check_tokens(&generation.draft)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Generate(Box::new(generation), Instant::now(), reply))?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Negative log-likelihoods in nats of every token after the first, for each text.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn likelihoods(&self, request: LikelihoodRequest) -> Result<Vec<Vec<f32>>, EngineError> {
        let positions = self.decoder.config().max_positions;
        for tokens in &request.texts {
            if tokens.len() > positions {
                return Err(EngineError::Invalid(format!(
                    "the text exceeds the model's {positions} tokens"
                )));
            }
            self.check_tokens(tokens)?;
        }
        if request.texts.iter().all(|tokens| tokens.len() < 2) {
            return Ok(vec![Vec::new(); request.texts.len()]);
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Likelihood(request, reply))?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Steps made so far.
    pub fn steps(&self) -> u64 {
        self.activity.steps()
    }

    /// What it counts, and whether it makes progress.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The model it runs.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// In the batch an unknown token would fail every request beside it.
    fn check_tokens(&self, tokens: &[u32]) -> Result<(), EngineError> {
        let vocabulary = self.decoder.config().vocab_size;
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(token) => Err(EngineError::Invalid(format!(
                "the token {token} lies outside the vocabulary of {vocabulary}"
            ))),
            None => Ok(()),
        }
    }

    /// Whether one who comes now will have his turn within `patience`.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when not.
    pub fn check_wait(&self, patience: Duration) -> Result<(), EngineError> {
        let wait = self.activity.expected_wait();
        if wait > patience {
            return Err(EngineError::Overloaded { retry_after: wait });
        }
        Ok(())
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        let (key, cost) = (command.key(), command.cost());
        // Counted first: the engine may have taken it before this returns.
        if !self.activity.submit(key, cost, self.max_waiting) {
            return Err(EngineError::Overloaded {
                retry_after: self.activity.expected_wait(),
            });
        }
        self.commands.send(command).map_err(|_| {
            self.activity.received(key, cost);
            EngineError::Stopped
        })
    }
}
