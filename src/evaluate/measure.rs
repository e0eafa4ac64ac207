//! Rewrites examples with several adapters of one model, and measures all of them on the same sentences.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::chrf::chrf;
use super::diversity::Diversity;
use super::sample::{Measured, MeasuredBase, Plain, Sample, fluency};
use crate::adapters::AdapterLease;
use crate::pipeline::{
    Detoxified, Detoxifier, DetoxifyError, Fallback, Likelihood, Options, PerplexityScorer, RewriteError,
    RewriteRequest, Rewriter,
};
use crate::train::dataset::Example;

/// How the outputs that are measured come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The likeliest rewrite of the whole text, unchecked: the model is measured, not the verifier. A rewrite that does not come
    /// to an end counts as empty.
    #[default]
    Greedy,
    /// As the service answers with its default policy: only toxic sentences, eight candidates, verified, masked when none passes.
    Served,
}

impl How {
    /// Its word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::Served => "served",
        }
    }
}

/// Why an evaluation has no result.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// Nothing to measure on.
    #[error("there is no example to evaluate on")]
    Empty,
    /// The model gave no answer.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The work on an example broke off.
    #[error("the work on an example broke off")]
    Broken,
}

/// What is measured on.
#[derive(Debug, Clone, Default)]
pub struct Data {
    /// Toxic sentences with their references.
    pub examples: Vec<Example>,
    /// Texts that should come back as they are.
    pub neutral: Vec<String>,
    /// A plain text of any length.
    pub text: Option<String>,
}

impl Data {
    /// Pieces of work that measuring `systems` on it takes.
    pub fn pieces(&self, systems: usize) -> usize {
        self.examples.len() + self.neutral.len() + self.text.iter().len() * (1 + systems)
    }
}

/// Measures adapters. Cheap to clone.
#[derive(Clone)]
pub struct Evaluator {
    /// Rewrites, and judges.
    pub detoxifier: Arc<Detoxifier>,
    /// Writes candidates.
    pub rewriter: Arc<dyn Rewriter>,
    /// Likelihoods under base and adapter.
    pub perplexity: Arc<dyn PerplexityScorer>,
    /// How the outputs come about.
    pub how: How,
    /// Candidates drawn of each source for the diversity; 0 for none.
    pub samples: usize,
    /// Most tokens of a window of a plain text.
    pub window: usize,
    /// Texts worked on at once, at least 1: they share the model's batch.
    pub in_flight: usize,
}

/// What was measured, of the systems in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measurements {
    /// Of the base model alone.
    pub base: MeasuredBase,
    /// Of each system.
    pub systems: Vec<Measured>,
}

impl Evaluator {
    /// Measures every system on everything; `report` is told how many pieces are done.
    ///
    /// # Errors
    /// When there is no example, or the model fails on one: a mean over some of them is no result.
    pub async fn measure(
        &self,
        data: &Data,
        systems: &[AdapterLease],
        mut report: impl FnMut(usize),
    ) -> Result<Measurements, EvaluateError> {
        if data.examples.is_empty() {
            return Err(EvaluateError::Empty);
        }
        let systems: Arc<[AdapterLease]> = systems.into();
        let mut done = 0;
        let mut step = || {
            done += 1;
            report(done);
        };
        let mut measured = Measurements {
            systems: systems.iter().map(|_| Measured::default()).collect(),
            ..Measurements::default()
        };
        let examples = data.examples.iter().map(|example| {
            let (this, example, systems) = (self.clone(), example.clone(), Arc::clone(&systems));
            async move { this.example(&example, &systems).await }
        });
        for (base, samples) in self.each(examples, &mut step).await? {
            measured.base.plain.push(base);
            for (system, sample) in measured.systems.iter_mut().zip(samples) {
                system.samples.push(sample);
            }
        }
        let neutral = data.neutral.iter().map(|text| {
            let (this, text, systems) = (self.clone(), text.clone(), Arc::clone(&systems));
            async move { this.changes(&text, &systems).await }
        });
        for changes in self.each(neutral, &mut step).await? {
            for (system, changed) in measured.systems.iter_mut().zip(changes) {
                system.changed.push(changed);
            }
        }
        if let Some(text) = &data.text {
            measured.base.windows = self.windows(text, &AdapterLease::none()).await?;
            step();
            for (system, adapter) in measured.systems.iter_mut().zip(systems.iter()) {
                system.windows = match adapter.adapter() {
                    Some(_) => self.windows(text, adapter).await?,
                    None => measured.base.windows.clone(),
                };
                step();
            }
        }
        Ok(measured)
    }

    /// Some at once, the results in the order of the work: sums of floating-point numbers depend on it, and the order of finishing on the
    /// machine.
    async fn each<T: Send + 'static>(
        &self,
        work: impl Iterator<Item = impl Future<Output = Result<T, EvaluateError>> + Send + 'static>,
        step: &mut impl FnMut(),
    ) -> Result<Vec<T>, EvaluateError> {
        let mut waiting = work.enumerate();
        let mut running = JoinSet::new();
        let mut done = Vec::new();
        loop {
            while running.len() < self.in_flight.max(1)
                && let Some((number, work)) = waiting.next()
            {
                running.spawn(async move { Ok((number, work.await?)) });
            }
            let Some(ended) = running.join_next().await else {
                break;
            };
            let ended: Result<_, EvaluateError> = ended.map_err(|_| EvaluateError::Broken)?;
            done.push(ended?);
            step();
        }
        done.sort_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    async fn example(
        &self,
        example: &Example,
        systems: &[AdapterLease],
    ) -> Result<(Plain, Vec<Sample>), EvaluateError> {
        let none = AdapterLease::none();
        let base = self.plain(example, &none).await?;
        let mut samples = Vec::with_capacity(systems.len());
        for adapter in systems {
            let plain = match adapter.adapter() {
                Some(_) => self.plain(example, adapter).await?,
                None => base,
            };
            samples.push(self.sample(example, base.source, plain, adapter).await?);
        }
        Ok((base, samples))
    }

    /// How likely both sides of an example are, without a prompt.
    async fn plain(&self, example: &Example, adapter: &AdapterLease) -> Result<Plain, EvaluateError> {
        let source = self.likelihood(&example.anchor, adapter).await?;
        let mut references = Vec::with_capacity(example.positives.len());
        for reference in &example.positives {
            references.push(self.likelihood(reference, adapter).await?);
        }
        Ok(Plain::new(source, &references))
    }

    async fn sample(
        &self,
        example: &Example,
        source: Likelihood,
        plain: Plain,
        adapter: &AdapterLease,
    ) -> Result<Sample, EvaluateError> {
        let anchor = example.anchor.trim();
        let options = self.options(adapter);
        let written = self.rewrite(anchor, &options).await?;
        let text = written.text.trim();
        let words = words(text);
        let empty = words.is_empty();
        let output = self.likelihood(text, &AdapterLease::none()).await?;
        Ok(Sample {
            toxicity: f64::from(self.detoxifier.judges().toxicity_of(text).await?),
            similarity: f64::from(written.similarity),
            chrf: chrf(text, &example.positives),
            fluency: if empty { 0.0 } else { fluency(source, output) },
            copied: !empty && words == self::words(anchor),
            empty,
            output,
            plain,
            diversity: self.diversity(anchor, &options).await?,
        })
    }

    async fn diversity(&self, source: &str, options: &Options) -> Result<Diversity, EvaluateError> {
        if self.samples == 0 {
            return Ok(Diversity::default());
        }
        let request = RewriteRequest {
            sentence: source,
            adapter: &options.adapter,
            strength: options.strength.get(),
            guidance: options.guidance.get(),
            candidates: self.samples,
            seed: options.seed,
            deadline: None,
            turn: &options.turn,
        };
        let rewrites = patiently(|| self.rewriter.rewrite(request.clone())).await?;
        let candidates: Vec<String> = rewrites
            .candidates
            .into_iter()
            .map(|candidate| candidate.text)
            .collect();
        Ok(Diversity::of(&candidates))
    }

    /// Whether a text comes back changed, as served.
    async fn changes(&self, text: &str, systems: &[AdapterLease]) -> Result<Vec<bool>, EvaluateError> {
        let mut changes = Vec::with_capacity(systems.len());
        for adapter in systems {
            changes.push(self.rewrite(text, &Options::new(adapter.clone())).await?.changed);
        }
        Ok(changes)
    }

    fn options(&self, adapter: &AdapterLease) -> Options {
        let options = Options::new(adapter.clone());
        match self.how {
            How::Served => options,
            How::Greedy => Options {
                verify: false,
                always: true,
                whole_text: true,
                candidates: 1,
                fallback: Fallback::Block,
                ..options
            },
        }
    }

    async fn likelihood(&self, text: &str, adapter: &AdapterLease) -> Result<Likelihood, EvaluateError> {
        Ok(self.windows(text.trim(), adapter).await?.into_iter().sum())
    }

    async fn windows(&self, text: &str, adapter: &AdapterLease) -> Result<Vec<Likelihood>, EvaluateError> {
        Ok(patiently(|| self.perplexity.likelihoods(text, adapter, self.window)).await?)
    }

    async fn rewrite(&self, text: &str, options: &Options) -> Result<Detoxified, EvaluateError> {
        let rewritten = patiently(|| async {
            let rewritten = self.detoxifier.detoxify(text, options).await;
            rewritten.map_err(|DetoxifyError::Rewrite(error)| error)
        });
        Ok(rewritten.await?)
    }
}

/// Waits and tries again where the engine has no room: an evaluation has all the time it needs.
async fn patiently<T, F>(work: impl Fn() -> F) -> Result<T, RewriteError>
where
    F: Future<Output = Result<T, RewriteError>>,
{
    loop {
        match work().await {
            Err(RewriteError::Overloaded { retry_after }) => {
                tokio::time::sleep(retry_after.min(Duration::from_secs(1))).await;
            }
            ended => return ended,
        }
    }
}

/// The words of a text, in lower case.
fn words(text: &str) -> Vec<String> {
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}
