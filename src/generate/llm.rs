//! Who answers prompts: the local model, or whatever stands behind a URL.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::engine::{Engine, EngineError, Generation, Sampling};
use crate::model::chat::{ChatError, ChatTemplate, Message};
use crate::model::lora::LoraModel;
use crate::model::tokenizer::{TextTokenizer, TokenizerError};

/// A prompt, and how its answers are drawn.
#[derive(Debug, Clone)]
pub struct Question {
    /// Stands above the prompt.
    pub system: Option<String>,
    /// The prompt.
    pub prompt: String,
    /// How many answers.
    pub answers: usize,
    /// Logits are divided by it.
    pub temperature: f32,
    /// Share of the probability that is drawn from.
    pub top_p: f32,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// The same seed draws the same answers, of the local model at least.
    pub seed: Option<u64>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What was said, to its end.
    Whole(String),
    /// What was said until the limit of tokens.
    CutOff(String),
    /// The model, or a filter before it, will not.
    Refused,
    /// The prompt is longer than the model takes.
    TooLong,
}

/// Why no answer came. None of it quotes a prompt.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// The settings of the client are wrong.
    #[error("{0}")]
    Settings(String),
    /// The server refuses the request and would again.
    #[error("{url} answered {status}: {message}")]
    Rejected {
        /// Where.
        url: String,
        /// The status.
        status: u16,
        /// What it says, shortened.
        message: String,
    },
    /// The server could not be reached or failed, time after time.
    #[error("{url} gave no answer in {attempts} attempts, the last time: {reason}")]
    Exhausted {
        /// Where.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// What happened the last time.
        reason: String,
    },
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The conversation could not be made.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// An answer could not be decoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A task broke off.
    #[error("a request broke off")]
    Broken,
}

/// Answers on their way.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Vec<Answer>, LlmError>> + Send + 'a>>;

/// Answers prompts.
pub trait Llm: Send + Sync {
    /// As many answers as are asked for. Dropping the future gives them up.
    fn ask<'a>(&'a self, question: &'a Question) -> Asking<'a>;
}

/// The model in this process.
pub struct LocalLlm {
    engine: Engine,
    tokenizer: Arc<TextTokenizer>,
    template: ChatTemplate,
    adapter: Option<Arc<LoraModel>>,
    end: u32,
}

impl LocalLlm {
    /// A model that follows instructions, seen through its chat template.
    ///
    /// # Errors
    /// When nothing says where its turn ends.
    pub fn new(
        engine: Engine,
        tokenizer: Arc<TextTokenizer>,
        template: ChatTemplate,
        adapter: Option<Arc<LoraModel>>,
    ) -> Result<Self, LlmError> {
        let end = template.end(&tokenizer)?;
        Ok(Self {
            engine,
            tokenizer,
            template,
            adapter,
            end,
        })
    }

    async fn answers(&self, question: &Question) -> Result<Vec<Answer>, LlmError> {
        let system = question.system.iter().map(Message::system);
        let talk: Vec<Message> = system.chain([Message::user(&question.prompt)]).collect();
        let prompt = self.template.prompt(&talk, &self.tokenizer)?;
        let room = self
            .engine
            .decoder()
            .config()
            .max_positions
            .saturating_sub(prompt.len());
        if room == 0 {
            return Ok(vec![Answer::TooLong; question.answers]);
        }
        let generation = Generation {
            prompt,
            end: self.end,
            max_new_tokens: question.max_tokens.min(room),
            candidates: question.answers,
            sampling: Sampling {
                temperature: question.temperature,
                top_p: question.top_p,
                seed: question.seed.unwrap_or_default(),
            },
            adapter: self.adapter.clone().map(|adapter| (adapter, 1.0)),
            guidance: 0.0,
            deadline: None,
            draft: Vec::new(),
            fairness: 0,
        };
        let generated = self.engine.generate(generation).await?;
        let answer = |completion: &crate::engine::Completion| {
            let text = self.tokenizer.decode(&completion.tokens)?;
            Ok(match completion.finished {
                true => Answer::Whole(text),
                false => Answer::CutOff(text),
            })
        };
        generated.completions.iter().map(answer).collect()
    }
}

impl Llm for LocalLlm {
    fn ask<'a>(&'a self, question: &'a Question) -> Asking<'a> {
        Box::pin(self.answers(question))
    }
}
