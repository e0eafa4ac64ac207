//! Sampling a rewriter and sorting what it says.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use super::sort::{Criteria, sort};
use crate::engine::{Engine, EngineError, Generation, Sampling};
use crate::model::lora::LoraModel;
use crate::model::tokenizer::{TextTokenizer, TokenizerError};
use crate::pipeline::{Similarity, Toxicity};
use crate::prompt::RewritePrompt;
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

/// What was read of one line of an earlier run.
#[derive(serde::Deserialize)]
struct Made {
    anchor: String,
}

impl SetGenerator {
    /// Appends a set for each example to `out`, in order; examples up to the last one that has a set there are not sampled
    /// again. `report` is told how many examples are done.
    ///
    /// # Errors
    /// When the output cannot be written or the model fails; what was written stays.
    pub async fn run(
        self: Arc<Self>,
        examples: &[Example],
        out: &Path,
        mut report: impl FnMut(usize),
    ) -> Result<(), GenerateError> {
        let io = |source| GenerateError::Io {
            path: out.display().to_string(),
            source,
        };
        let done = match last_anchor(out).map_err(io)? {
            Some(anchor) => examples
                .iter()
                .rposition(|example| example.anchor == anchor)
                .map_or(0, |index| index + 1),
            None => 0,
        };
        let mut file = OpenOptions::new().create(true).append(true).open(out).map_err(io)?;
        for (chunk_index, chunk) in examples[done..].chunks(self.in_flight.max(1)).enumerate() {
            let first = done + chunk_index * self.in_flight.max(1);
            let tasks: Vec<_> = chunk
                .iter()
                .enumerate()
                .map(|(offset, example)| {
                    let (this, example) = (self.clone(), example.clone());
                    tokio::spawn(async move { this.sample(&example.anchor, (first + offset) as u64).await })
                })
                .collect();
            for (example, task) in chunk.iter().zip(tasks) {
                let samples = task.await.map_err(|_| GenerateError::Broken)??;
                let set = sort(
                    &example.anchor,
                    &example.positives,
                    &samples,
                    &self.criteria,
                    &*self.toxicity,
                    &*self.similarity,
                );
                if let Some(set) = set {
                    let line = serde_json::to_string(&set)?;
                    writeln!(file, "{line}").map_err(io)?;
                }
            }
            file.flush().map_err(io)?;
            report(first + chunk.len());
        }
        Ok(())
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

/// The anchor of the last complete line; a line cut short by an interruption is removed.
fn last_anchor(path: &Path) -> std::io::Result<Option<String>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let (mut last, mut good, mut line) = (None, 0u64, String::new());
    while reader.read_line(&mut line)? > 0 {
        match serde_json::from_str::<Made>(&line) {
            Ok(made) if line.ends_with('\n') => {
                good += line.len() as u64;
                last = Some(made.anchor);
            }
            _ => break,
        }
        line.clear();
    }
    OpenOptions::new().write(true).open(path)?.set_len(good)?;
    Ok(last)
}
