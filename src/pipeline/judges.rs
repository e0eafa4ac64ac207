//! Who judges texts for the pipeline, and where: quick judges on the spot, slow ones on threads that serve nobody else.

use std::sync::Arc;

use super::rewriter::RewriteError;
use crate::scoring::{ScorerError, Similarity, SimilarityScorer, Toxicity, ToxicityScorer};

/// A judge of toxicity and one of meaning. Cheap to clone.
#[derive(Clone)]
pub struct Judges {
    /// How toxic texts are.
    pub toxicity: Arc<dyn Toxicity>,
    /// How much of the meaning rewrites keep.
    pub similarity: Arc<dyn Similarity>,
}

impl Judges {
    /// Those inside the binary.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn built_in() -> Result<Self, ScorerError> {
        let toxicity = Arc::new(ToxicityScorer::embedded()?);
        let similarity = Arc::new(SimilarityScorer::new(Arc::clone(&toxicity)));
        Ok(Self { toxicity, similarity })
    }

    /// How toxic a text is, 0..=1.
    ///
    /// # Errors
    /// When the judge can't tell, or the process is shutting down.
    pub async fn toxicity_of(&self, text: &str) -> Result<f32, RewriteError> {
        let text = text.to_owned();
        let score = self.judge(move |judges| judges.toxicity.score(&text)).await?;
        match score.is_nan() {
            true => Err(RewriteError::Failed("the toxicity model gave no score".to_owned())),
            false => Ok(score),
        }
    }

    /// Does `work`, which asks the judges: here if they are quick, else on a thread for work that blocks. Dropping the future does not stop work
    /// that has begun.
    ///
    /// # Errors
    /// When the process is shutting down.
    pub async fn judge<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, RewriteError> {
        if !self.toxicity.is_slow() && !self.similarity.is_slow() {
            return Ok(work(self));
        }
        let judges = self.clone();
        let judged = tokio::task::spawn_blocking(move || work(&judges)).await;
        judged.map_err(|error| match error.try_into_panic() {
            // As if it had happened here.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => RewriteError::Cancelled,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::time::Duration;

    use super::*;
    use crate::pipeline::testing::WordSimilarity;

    /// Takes its time.
    struct Slow;

    impl Toxicity for Slow {
        fn score(&self, _: &str) -> f32 {
            std::thread::sleep(Duration::from_millis(300));
            0.25
        }

        fn attributions(&self, _: &str) -> Vec<(Range<usize>, f32)> {
            Vec::new()
        }

        fn is_slow(&self) -> bool {
            true
        }
    }

    // On one thread: what blocks it blocks all.
    #[tokio::test]
    async fn others_are_served_while_a_slow_judge_thinks() {
        let judges = Judges {
            toxicity: Arc::new(Slow),
            similarity: Arc::new(WordSimilarity),
        };
        let verdict = tokio::spawn(async move { judges.judge(|judges| judges.toxicity.score("a")).await });
        let mut others = 0;
        while !verdict.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            others += 1;
        }
        assert_eq!(verdict.await.unwrap(), Ok(0.25));
        assert!(others > 5, "{others}");
    }
}
