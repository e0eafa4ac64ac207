//! Rewrites held-back examples with two adapters of one model and measures both on the same sentences.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::metrics::{Comparison, Likelihood, Metrics, Sample, fluency};
use crate::adapters::AdapterLease;
use crate::pipeline::{
    Detoxified, Detoxifier, DetoxifyError, Fallback, Options, Perplexity, PerplexityScorer, RewriteError,
};
use crate::scoring::SimilarityScorer;
use crate::train::dataset::Example;

/// How the outputs that are measured come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum How {
    /// The likeliest rewrite of the whole text, unchecked: the model is measured, not the verifier. A rewrite that does not come
    /// to an end counts as empty.
    #[default]
    Greedy,
    /// As the service answers with its default policy: only toxic sentences, eight candidates, verified, masked when none passes.
    Served,
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

/// Measures adapters on examples. Cheap to clone.
#[derive(Clone)]
pub struct Evaluator {
    /// Rewrites.
    pub detoxifier: Arc<Detoxifier>,
    /// Likelihoods under base and adapter.
    pub perplexity: Arc<dyn PerplexityScorer>,
    /// Counts characters in common with the references.
    pub overlap: Arc<SimilarityScorer>,
    /// How the outputs come about.
    pub how: How,
    /// Examples worked on at once, at least 1: they share the model's batch.
    pub in_flight: usize,
}

/// What is measured of an example for both adapters.
struct Compared {
    number: usize,
    candidate: Sample,
    baseline: Sample,
}

impl Evaluator {
    /// Measures both adapters on every example; `report` is told how many examples are done.
    ///
    /// # Errors
    /// When there is no example, or the model fails on one: a mean over some of them is no result.
    pub async fn compare(
        &self,
        examples: &[Example],
        candidate: &AdapterLease,
        baseline: &AdapterLease,
        mut report: impl FnMut(usize),
    ) -> Result<Comparison, EvaluateError> {
        if examples.is_empty() {
            return Err(EvaluateError::Empty);
        }
        let mut waiting = examples.iter().enumerate();
        let mut running = JoinSet::new();
        let mut done: Vec<Compared> = Vec::with_capacity(examples.len());
        loop {
            while running.len() < self.in_flight.max(1) {
                let Some((number, example)) = waiting.next() else {
                    break;
                };
                let (this, example) = (self.clone(), example.clone());
                let (candidate, baseline) = (candidate.clone(), baseline.clone());
                running.spawn(async move { this.both(number, &example, &candidate, &baseline).await });
            }
            let Some(ended) = running.join_next().await else {
                break;
            };
            done.push(ended.map_err(|_| EvaluateError::Broken)??);
            report(done.len());
        }
        // Sums of floating-point numbers depend on their order, and the order of finishing on the machine.
        done.sort_by_key(|compared| compared.number);
        let of = |lease: &AdapterLease, sample: fn(&Compared) -> Sample| {
            let samples: Vec<Sample> = done.iter().map(sample).collect();
            Metrics::of(lease.version().to_string(), &samples)
        };
        Ok(Comparison {
            candidate: of(candidate, |compared| compared.candidate),
            baseline: of(baseline, |compared| compared.baseline),
            skipped: 0,
            note: None,
        })
    }

    async fn both(
        self,
        number: usize,
        example: &Example,
        candidate: &AdapterLease,
        baseline: &AdapterLease,
    ) -> Result<Compared, EvaluateError> {
        let source = self.base_likelihood(&example.anchor).await?;
        // Side by side: both are in the batch at once.
        let (candidate, baseline) = tokio::try_join!(
            self.sample(example, source, candidate),
            self.sample(example, source, baseline)
        )?;
        Ok(Compared {
            number,
            candidate,
            baseline,
        })
    }

    async fn sample(
        &self,
        example: &Example,
        source: Likelihood,
        adapter: &AdapterLease,
    ) -> Result<Sample, EvaluateError> {
        let anchor = example.anchor.trim();
        let options = self.options(adapter);
        let output = self.rewrite(anchor, &options).await?;
        let text = output.text.trim();
        let words = words(text);
        let (mut neutral, mut neutral_base) = (Vec::new(), Vec::new());
        for reference in &example.positives {
            let Perplexity { base, adapter, tokens } = self.likelihood(reference.trim(), adapter).await?;
            neutral.push(Likelihood::of(adapter, tokens));
            neutral_base.push(Likelihood::of(base, tokens));
        }
        let overlaps = example
            .positives
            .iter()
            .map(|reference| f64::from(self.overlap.overlap(text, reference)));
        let empty = words.is_empty();
        Ok(Sample {
            toxicity: f64::from(self.detoxifier.judges().toxicity_of(text).await?),
            similarity: f64::from(output.similarity),
            overlap: overlaps.fold(0.0, f64::max),
            fluency: if empty {
                0.0
            } else {
                fluency(source, self.base_likelihood(text).await?)
            },
            copied: !empty && words == self::words(anchor),
            empty,
            neutral: neutral.into_iter().sum(),
            neutral_base: neutral_base.into_iter().sum(),
        })
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

    async fn base_likelihood(&self, text: &str) -> Result<Likelihood, EvaluateError> {
        let perplexity = self.likelihood(text.trim(), &AdapterLease::none()).await?;
        Ok(Likelihood::of(perplexity.base, perplexity.tokens))
    }

    async fn likelihood(&self, text: &str, adapter: &AdapterLease) -> Result<Perplexity, EvaluateError> {
        loop {
            match self.perplexity.perplexity(text, adapter).await {
                Ok(perplexity) => return Ok(perplexity),
                Err(error) => wait_or_fail(error).await?,
            }
        }
    }

    async fn rewrite(&self, text: &str, options: &Options) -> Result<Detoxified, EvaluateError> {
        loop {
            match self.detoxifier.detoxify(text, options).await {
                Ok(output) => return Ok(output),
                Err(DetoxifyError::Rewrite(error)) => wait_or_fail(error).await?,
            }
        }
    }
}

/// Waits where the engine had no room: an evaluation has all the time it needs.
async fn wait_or_fail(error: RewriteError) -> Result<(), EvaluateError> {
    match error {
        RewriteError::Overloaded { retry_after } => {
            tokio::time::sleep(retry_after.min(Duration::from_secs(1))).await;
            Ok(())
        }
        error => Err(error.into()),
    }
}

/// The words of a text, in lower case.
fn words(text: &str) -> Vec<String> {
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::pipeline::{BoxFuture, Candidate, Judges, RewriteRequest, Rewriter, Rewrites};
    use crate::scoring::ToxicityScorer;

    /// Deletes the insult from every sentence but the second's, has no room the first time, and writes nothing for the third.
    #[derive(Default)]
    struct Fake {
        asked: AtomicUsize,
    }

    impl Rewriter for Fake {
        fn rewrite<'a>(&'a self, request: RewriteRequest<'a>) -> BoxFuture<'a, Result<Rewrites, RewriteError>> {
            Box::pin(async move {
                if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Err(RewriteError::Overloaded {
                        retry_after: Duration::ZERO,
                    });
                }
                let text = match request.sentence {
                    sentence if sentence.contains("copied") => sentence.to_owned(),
                    sentence if sentence.contains("unfinished") => return Ok(Rewrites::default()),
                    sentence if sentence.contains("broken") => {
                        return Err(RewriteError::Failed("no memory".to_owned()));
                    }
                    sentence => sentence.replace(", you stupid idiot", ""),
                };
                Ok(Rewrites {
                    candidates: vec![Candidate { text, mean_nll: 1.0 }],
                    ..Rewrites::default()
                })
            })
        }

        fn model(&self) -> &str {
            "fake"
        }
    }

    /// The base finds a text with an insult half as likely, token by token, as one without.
    struct FakePerplexity;

    impl PerplexityScorer for FakePerplexity {
        fn perplexity<'a>(
            &'a self,
            text: &'a str,
            _: &'a AdapterLease,
        ) -> BoxFuture<'a, Result<Perplexity, RewriteError>> {
            Box::pin(async move {
                Ok(Perplexity {
                    base: if text.contains("idiot") { 40.0 } else { 20.0 },
                    adapter: 10.0,
                    tokens: text.split_whitespace().count(),
                })
            })
        }
    }

    fn evaluator() -> Evaluator {
        let judges = Judges::built_in().unwrap();
        Evaluator {
            detoxifier: Arc::new(Detoxifier::new(Arc::new(Fake::default()), judges)),
            perplexity: Arc::new(FakePerplexity),
            overlap: Arc::new(SimilarityScorer::new(Arc::new(ToxicityScorer::embedded().unwrap()))),
            how: How::Greedy,
            in_flight: 2,
        }
    }

    fn example(anchor: &str) -> Example {
        Example {
            anchor: anchor.to_owned(),
            positives: vec!["The report is late again.".to_owned()],
            negatives: Vec::new(),
        }
    }

    #[tokio::test]
    async fn outputs_are_measured_in_the_order_of_the_examples() {
        let examples = [
            "The report is late again, you stupid idiot.",
            "The copied report is late again, you stupid idiot.",
            "The unfinished report is late again, you stupid idiot.",
            // Not toxic, and rewritten all the same: the model is measured, not the gate.
            "The report is late again.",
        ]
        .map(example);
        let mut reported = Vec::new();
        let none = AdapterLease::none();
        let comparison = evaluator()
            .compare(&examples, &none, &none, |done| reported.push(done))
            .await
            .unwrap();
        assert_eq!(reported, [1, 2, 3, 4]);
        assert_eq!(comparison.candidate, comparison.baseline);
        let metrics = comparison.candidate;
        assert_eq!((metrics.examples, metrics.adapter.as_str()), (4, "none@0"));
        assert_eq!(
            (metrics.toxicity_rate, metrics.copied, metrics.empty),
            (0.25, 0.5, 0.25)
        );
        assert!(
            metrics.similarity > 0.5 && metrics.similarity <= 0.75,
            "{}",
            metrics.similarity
        );
        assert!(metrics.overlap > 0.6 && metrics.overlap < 0.75, "{}", metrics.overlap);
        assert_eq!(metrics.fluency, 0.75);
        assert!(metrics.j > 0.3 && metrics.j < metrics.similarity, "{}", metrics.j);
        assert!((metrics.neutral_perplexity.unwrap() - 10.0).abs() < 1e-4);
        assert!((metrics.base_perplexity.unwrap() - 20.0).abs() < 1e-4);
    }

    #[tokio::test]
    async fn a_failure_on_one_example_is_no_result() {
        let examples = ["Fine.", "The broken report is late."].map(example);
        let none = AdapterLease::none();
        let error = evaluator().compare(&examples, &none, &none, |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("no memory"), "{error}");
        let error = evaluator().compare(&[], &none, &none, |_| ()).await.unwrap_err();
        assert!(matches!(error, EvaluateError::Empty));
    }

    #[tokio::test]
    async fn as_served_nothing_toxic_is_left_but_masked() {
        let mut evaluator = evaluator();
        evaluator.how = How::Served;
        let examples = ["The copied report is late again, you stupid idiot."].map(example);
        let none = AdapterLease::none();
        let comparison = evaluator.compare(&examples, &none, &none, |_| ()).await.unwrap();
        assert_eq!(comparison.candidate.toxicity_rate, 0.0);
        assert_eq!(comparison.candidate.copied, 0.0);
    }
}
