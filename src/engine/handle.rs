//! What the rest of the service holds of the engine.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
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
    /// Prompt tokens taken into one step.
    pub max_prefill_tokens: usize,
    /// Tokens, prompts and continuations at their longest, whose keys and values may be held; a single request may exceed it.
    pub max_cached_tokens: usize,
    /// Threads of the matrix products.
    pub threads: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            max_waiting: 1024,
            max_sequences: 64,
            max_prefill_tokens: 512,
            // Some 190 MB for the default model.
            max_cached_tokens: 4096,
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
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
}

/// A text whose likelihood is asked for.
#[derive(Debug, Clone)]
pub struct LikelihoodRequest {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// The adapter and its strength; the base model without one.
    pub adapter: Option<(Arc<LoraModel>, f32)>,
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
    #[error("the engine's queue is full")]
    Overloaded,
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
    Likelihood(LikelihoodRequest, oneshot::Sender<Result<Vec<f32>, EngineError>>),
}

/// A handle on the engine's thread; clones share it. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    activity: Activity,
    decoder: Arc<Decoder>,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// When threads cannot be had.
    pub fn start(decoder: Arc<Decoder>, config: EngineConfig) -> Result<Self, EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Failed(error.to_string());
        let (commands, receiver) = sync_channel(config.max_waiting.max(1));
        let activity = Activity::new().map_err(|error| failed(&error))?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads.max(1))
            .thread_name(|index| format!("engine-{index}"))
            .build()
            .map_err(|error| failed(&error))?;
        let scheduler = Scheduler::new(decoder.clone(), config, activity.clone());
        std::thread::Builder::new()
            .name("engine".to_owned())
            // The loop itself runs on a thread of the pool: products called from outside would wait for a wake-up each.
            .spawn(move || pool.install(|| scheduler.run(receiver)))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            commands,
            activity,
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
        if generation.prompt.len() + generation.max_new_tokens > positions {
            return Err(EngineError::Invalid(format!(
                "the text exceeds the model's {positions} tokens"
            )));
        }
        self.check_tokens(&generation.prompt)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Generate(Box::new(generation), Instant::now(), reply))?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Negative log-likelihood in nats of every token after the first.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn likelihood(&self, request: LikelihoodRequest) -> Result<Vec<f32>, EngineError> {
        let positions = self.decoder.config().max_positions;
        if request.tokens.len() > positions {
            return Err(EngineError::Invalid(format!(
                "the text exceeds the model's {positions} tokens"
            )));
        }
        if request.tokens.len() < 2 {
            return Ok(Vec::new());
        }
        self.check_tokens(&request.tokens)?;
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

    fn send(&self, command: Command) -> Result<(), EngineError> {
        // Counted first: the engine may have taken it before this returns.
        self.activity.submitted();
        self.commands.try_send(command).map_err(|error| {
            self.activity.received();
            match error {
                TrySendError::Full(_) => EngineError::Overloaded,
                TrySendError::Disconnected(_) => EngineError::Stopped,
            }
        })
    }
}
