//! Sampling a rewriter and sorting what it says.

use std::path::Path;
use std::sync::Arc;

use super::llm::LlmError;
use super::output::{Anchor, Output};
use super::sort::{Criteria, sort};
use crate::engine::{Engine, EngineError, Generation, Sampling};
use crate::model::lora::LoraModel;
use crate::model::tokenizer::{TextTokenizer, TokenizerError};
use crate::prompt::RewritePrompt;
use crate::scoring::{Similarity, Toxicity};
use crate::train::dataset::Example;

/// Why sets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The output could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is something in the output already.
    #[error("{0} has something in it; go on with it by --resume, or name another file")]
    Exists(String),
    /// The output was made of something else.
    #[error("{path} can't be gone on with: line {line} {reason}; name another file")]
    Foreign {
        /// The file.
        path: String,
        /// The line.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No answers came.
    #[error(transparent)]
    Llm(#[from] LlmError),
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A text could not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A set could not be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A sampling task broke off.
    #[error("the work on an example broke off")]
    Broken,
}

/// Makes a set of each example.
pub struct SetGenerator {
    /// Runs the model.
    pub engine: Engine,
    /// Its tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// The prompt it was trained with.
    pub prompt: RewritePrompt,
    /// The adapter that is sampled.
    pub adapter: Option<Arc<LoraModel>>,
    /// Samples a source, the first the likeliest.
    pub samples: usize,
    /// How the others are drawn; the seed is that of the first example.
    pub sampling: Sampling,
    /// Sources sampled at once.
    pub in_flight: usize,
    /// What is a positive and what a negative.
    pub criteria: Criteria,
    /// Judge of toxicity.
    pub toxicity: Arc<dyn Toxicity>,
    /// Judge of meaning.
    pub similarity: Arc<dyn Similarity>,
}

/// What became of the sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RewriteSummary {
    /// Sources.
    pub sources: usize,
    /// Sources that an earlier run had done.
    pub resumed: usize,
    /// Different samples.
    pub samples: usize,
    /// Sets written; the other sources had no positive.
    pub written: usize,
    /// Positives in the sets.
    pub positives: usize,
    /// Negatives in the sets, the sources among them.
    pub negatives: usize,
}

impl SetGenerator {
    /// Appends a set for each example to `out`, in order; `first` is the number of the first one. With `resume`, examples up to the last one that
    /// has a set there are not sampled again. `report` is told how many examples are done.
    ///
    /// # Errors
    /// When the output cannot be written or the model fails; what was written stays.
    pub async fn run(
        self: Arc<Self>,
        examples: &[Example],
        first: usize,
        out: &Path,
        resume: bool,
        mut report: impl FnMut(usize),
    ) -> Result<RewriteSummary, GenerateError> {
        let anchors: Vec<Anchor> = (first..)
            .zip(examples)
            .map(|(number, example)| Anchor {
                number,
                text: example.anchor.clone(),
            })
            .collect();
        let (mut output, last) = Output::open(out, &anchors, resume)?;
        let done = anchors.partition_point(|anchor| anchor.number <= last);
        let mut summary = RewriteSummary {
            sources: examples.len(),
            resumed: done,
            ..RewriteSummary::default()
        };
        report(done);
        let at_once = self.in_flight.max(1);
        for (chunk_index, chunk) in examples[done..].chunks(at_once).enumerate() {
            let start = done + chunk_index * at_once;
            let tasks: Vec<_> = chunk
                .iter()
                .zip(&anchors[start..])
                .map(|(example, anchor)| {
                    let (this, source, number) = (self.clone(), example.anchor.clone(), anchor.number as u64);
                    tokio::spawn(async move { this.sample(&source, number).await })
                })
                .collect();
            for ((example, anchor), task) in chunk.iter().zip(&anchors[start..]).zip(tasks) {
                let samples = task.await.map_err(|_| GenerateError::Broken)??;
                summary.samples += samples.len();
                let set = sort(
                    &example.anchor,
                    &example.positives,
                    &samples,
                    &self.criteria,
                    &*self.toxicity,
                    &*self.similarity,
                );
                if let Some(set) = set {
                    output.write(anchor.number, &set)?;
                    summary.written += 1;
                    summary.positives += set.positives.len();
                    summary.negatives += set.negatives.len();
                }
            }
            report(start + chunk.len());
        }
        Ok(summary)
    }

    async fn sample(&self, source: &str, number: u64) -> Result<Vec<String>, GenerateError> {
        let tokens = self.tokenizer.encode(source.trim())?;
        let generation = Generation {
            max_new_tokens: tokens.len() + tokens.len() / 2 + 8,
            prompt: self.prompt.tokens(&tokens),
            end: self.prompt.end(),
            candidates: self.samples,
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(number << 8),
                ..self.sampling
            },
            adapter: self.adapter.clone().map(|adapter| (adapter, 1.0)),
            guidance: 0.0,
            deadline: None,
            draft: tokens,
            fairness: 0,
        };
        let generated = self.engine.generate(generation).await?;
        let mut texts: Vec<String> = Vec::new();
        for completion in generated.completions.iter().filter(|completion| completion.finished) {
            let text = self.tokenizer.decode(&completion.tokens)?.trim().to_owned();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        Ok(texts)
    }
}
