//! Measures a toxicity scorer on texts it hasn't seen.

use std::path::Path;

use serde::Serialize;

use super::calibration::Reliability;
use super::corpus::{CorpusError, Labelled, Parallel, clean, json_lines, lines, sentences};
use super::groups;
use super::toxicity::ToxicityScorer;

/// All figures of the model card.
#[derive(Debug, Serialize)]
pub struct Evaluation {
    /// `toxicity/valid.jsonl`.
    pub labelled: Reliability,
    /// The same by data set: name, AUC, detected, false positives.
    pub by_source: Vec<(String, usize, f64, f64, f64)>,
    /// `detox/valid.jsonl`, toxic texts against rewrites.
    pub parallel: Reliability,
    /// Share of toxic texts of `detox/valid.jsonl` with a sentence above 0.5, split into sentences.
    pub parallel_detected_by_sentence: f64,
    /// Share of the odd lines of `text/comments.neutral.txt` (training has the even ones) above 0.5 as a whole.
    pub comments_false_positives: f64,
    /// Share of the same lines with a sentence above 0.5.
    pub comments_touched: f64,
    /// Share of toxic texts of `detox/valid.jsonl` found by the threshold that touches 2.5% of the comments.
    pub detected_at_2_5_percent: f64,
    /// That threshold.
    pub threshold_at_2_5_percent: f32,
    /// Neutral sentences that mention groups, above 0.5.
    pub group_false_positives: Vec<(String, f32)>,
    /// Sentences scored a second on one thread.
    pub sentences_per_second: f64,
}

/// Scores the validation files under `data`.
pub fn evaluate(scorer: &ToxicityScorer, data: &Path) -> Result<Evaluation, CorpusError> {
    let prior = scorer.metadata().prior;
    let labelled: Vec<Labelled> = json_lines(&data.join("toxicity/valid.jsonl"))?;
    let parallel: Vec<Parallel> = json_lines(&data.join("detox/valid.jsonl"))?;
    // The others are for training.
    let comments: Vec<String> = lines(&data.join("text/comments.neutral.txt"))?
        .into_iter()
        .step_by(2)
        .collect();
    let scored: Vec<(f32, bool)> = labelled
        .iter()
        .map(|row| (scorer.score(&clean(&row.text)), row.label != 0))
        .collect();
    let mut names: Vec<&str> = labelled.iter().map(|row| row.source.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let by_source = names.into_iter().map(|name| {
        let of_source = labelled.iter().zip(&scored).filter(|(row, _)| row.source == name);
        let result = Reliability::of(&of_source.map(|(_, scored)| *scored).collect::<Vec<_>>(), prior);
        (
            name.to_owned(),
            result.n,
            result.auc,
            result.detected,
            result.false_positives,
        )
    });
    let pairs: Vec<(f32, bool)> = parallel
        .iter()
        .flat_map(|row| std::iter::once((&row.toxic, true)).chain(row.neutral.iter().map(|text| (text, false))))
        .map(|(text, toxic)| (scorer.score(text), toxic))
        .collect();
    let worst = |text: &str| {
        sentences(text)
            .map(|sentence| scorer.score(sentence))
            .fold(0.0, f32::max)
    };
    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    let begun = std::time::Instant::now();
    let parts: Vec<&str> = comments.iter().flat_map(|text| sentences(text)).collect();
    parts.iter().for_each(|part| {
        std::hint::black_box(scorer.score(part));
    });
    let speed = parts.len() as f64 / begun.elapsed().as_secs_f64();
    let mut of_comments: Vec<f32> = comments.iter().map(|text| worst(text)).collect();
    of_comments.sort_by(|a, b| b.total_cmp(a));
    let threshold = of_comments.get(of_comments.len() / 40).copied().unwrap_or(0.5);
    Ok(Evaluation {
        detected_at_2_5_percent: share(
            parallel.iter().filter(|row| worst(&row.toxic) > threshold).count(),
            parallel.len(),
        ),
        threshold_at_2_5_percent: threshold,
        labelled: Reliability::of(&scored, prior),
        by_source: by_source.collect(),
        parallel: Reliability::of(&pairs, prior),
        parallel_detected_by_sentence: share(
            parallel.iter().filter(|row| worst(&row.toxic) > 0.5).count(),
            parallel.len(),
        ),
        comments_false_positives: share(
            comments.iter().filter(|text| scorer.score(text) > 0.5).count(),
            comments.len(),
        ),
        comments_touched: share(comments.iter().filter(|text| worst(text) > 0.5).count(), comments.len()),
        group_false_positives: groups::HELD_OUT
            .iter()
            .map(|text| (text.to_string(), scorer.score(text)))
            .filter(|(_, score)| *score > 0.5)
            .collect(),
        sentences_per_second: speed,
    })
}
