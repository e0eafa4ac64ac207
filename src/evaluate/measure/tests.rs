//! Measuring with a rewriter and likelihoods that can be seen through.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::pipeline::{BoxFuture, Candidate, Judges, Perplexity, Rewrites};

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
            let candidate = Candidate {
                text,
                mean_nll: 1.0,
                base_nll: None,
            };
            Ok(Rewrites {
                candidates: vec![candidate; request.candidates],
                ..Rewrites::default()
            })
        })
    }

    fn model(&self) -> &str {
        "fake"
    }
}

/// A text with an insult is half as likely, token by token, as one without: ln 40 nats against ln 20.
struct FakePerplexity;

impl PerplexityScorer for FakePerplexity {
    fn perplexity<'a>(&'a self, _: &'a str, _: &'a AdapterLease) -> BoxFuture<'a, Result<Perplexity, RewriteError>> {
        Box::pin(async { Err(RewriteError::Failed("not asked".to_owned())) })
    }

    fn likelihoods<'a>(
        &'a self,
        text: &'a str,
        _: &'a AdapterLease,
        window: usize,
    ) -> BoxFuture<'a, Result<Vec<Likelihood>, RewriteError>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let nll = if text.contains("idiot") { 40f64 } else { 20.0 }.ln();
        let likelihoods = words.chunks(window).map(|words| Likelihood {
            nll: nll * words.len() as f64,
            tokens: words.len(),
        });
        let likelihoods = likelihoods.collect();
        Box::pin(async { Ok(likelihoods) })
    }
}

fn evaluator() -> Evaluator {
    let rewriter = Arc::new(Fake::default());
    Evaluator {
        detoxifier: Arc::new(Detoxifier::new(rewriter.clone(), Judges::built_in().unwrap())),
        rewriter,
        perplexity: Arc::new(FakePerplexity),
        how: How::Greedy,
        samples: 0,
        window: 16,
        in_flight: 2,
    }
}

fn examples(anchors: &[&str]) -> Vec<Example> {
    let example = |anchor: &&str| Example {
        anchor: (*anchor).to_owned(),
        positives: vec!["The report is late again.".to_owned()],
        negatives: Vec::new(),
    };
    anchors.iter().map(example).collect()
}

#[tokio::test]
async fn outputs_are_measured_in_the_order_of_the_examples() {
    let data = Data {
        examples: examples(&[
            "The report is late again, you stupid idiot.",
            "The copied report is late again, you stupid idiot.",
            "The unfinished report is late again, you stupid idiot.",
            // Not toxic, and rewritten all the same: the model is measured, not the gate.
            "The report is late again.",
        ]),
        ..Data::default()
    };
    let mut reported = Vec::new();
    let systems = [AdapterLease::none(), AdapterLease::none()];
    let measured = evaluator()
        .measure(&data, &systems, |done| reported.push(done))
        .await
        .unwrap();
    assert_eq!((reported, data.pieces(2)), (vec![1, 2, 3, 4], 4));
    let [own, other] = &measured.systems[..] else { panic!() };
    assert_eq!(own, other);
    let [deleted, copied, unfinished, same] = own.samples[..] else {
        panic!()
    };
    assert_eq!(deleted, Sample { chrf: 1.0, ..deleted });
    assert!(
        deleted.toxicity < 0.5 && deleted.similarity > 0.5 && deleted.similarity < 1.0,
        "{deleted:?}"
    );
    assert!(copied.copied && copied.toxicity > 0.5 && copied.similarity == 1.0 && copied.chrf < 1.0);
    assert!(unfinished.empty && unfinished.fluency == 0.0 && unfinished.j() == 0.0);
    assert!(same.copied && same.fluency == 1.0);
    let gap = |place: usize| measured.base.plain[place].gap.unwrap();
    assert!((gap(0) - 2f64.ln()).abs() < 1e-9 && gap(3).abs() < 1e-9);
    assert_eq!(own.samples[0].plain, measured.base.plain[0]);
    assert_eq!(own.samples[0].diversity, Diversity::default());
}

#[tokio::test]
async fn neutral_texts_candidates_and_a_plain_text_are_measured_when_asked_for() {
    let evaluator = Evaluator {
        samples: 3,
        ..evaluator()
    };
    let data = Data {
        examples: examples(&["The report is late again, you stupid idiot."]),
        neutral: ["All is fine.", "You are a stupid idiot.", "So be it."]
            .map(str::to_owned)
            .into(),
        text: Some("word ".repeat(40)),
    };
    let mut reported = 0;
    let measured = evaluator
        .measure(&data, &[AdapterLease::none()], |done| reported = done)
        .await
        .unwrap();
    assert_eq!((reported, data.pieces(1)), (6, 6));
    let own = &measured.systems[0];
    assert_eq!(own.changed, [false, true, false]);
    let tokens: Vec<usize> = own.windows.iter().map(|window| window.tokens).collect();
    assert_eq!((tokens, &own.windows), (vec![16, 16, 8], &measured.base.windows));
    // Three times the same.
    assert_eq!(own.samples[0].diversity.self_bleu, Some(1.0));
    assert_eq!(own.samples[0].diversity.distinct_1, Some(1.0 / 3.0));
}

#[tokio::test]
async fn a_failure_on_one_example_is_no_result() {
    let of = |anchors: &[&str]| Data {
        examples: examples(anchors),
        ..Data::default()
    };
    let none = [AdapterLease::none()];
    let broken = of(&["Fine.", "The broken report is late."]);
    let error = evaluator().measure(&broken, &none, |_| ()).await.unwrap_err();
    assert!(error.to_string().contains("no memory"), "{error}");
    let error = evaluator().measure(&of(&[]), &none, |_| ()).await.unwrap_err();
    assert!(matches!(error, EvaluateError::Empty));
}

#[tokio::test]
async fn as_served_nothing_toxic_is_left_but_masked() {
    let evaluator = Evaluator {
        how: How::Served,
        ..evaluator()
    };
    let data = Data {
        examples: examples(&["The copied report is late again, you stupid idiot."]),
        ..Data::default()
    };
    let measured = evaluator.measure(&data, &[AdapterLease::none()], |_| ()).await.unwrap();
    let sample = measured.systems[0].samples[0];
    assert!(sample.toxicity <= 0.5 && !sample.copied, "{sample:?}");
}
