//! The whole pipeline, with scorers and rewriters that can be seen through.

mod properties;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::edits::apply;
use super::testing::{FakeRewriter, WordSimilarity, WordToxicity};
use super::*;
use crate::adapters::AdapterLease;
use crate::scoring::Toxicity;

fn options() -> Options {
    Options::new(AdapterLease::none())
}

fn detoxifier<F>(answer: F) -> (Detoxifier, Arc<FakeRewriter<F>>)
where
    F: Fn(&str) -> Result<Vec<String>, RewriteError> + Send + Sync + 'static,
{
    let rewriter = Arc::new(FakeRewriter::new(answer));
    let judges = Judges {
        toxicity: Arc::new(WordToxicity),
        similarity: Arc::new(WordSimilarity),
    };
    let detoxifier = Detoxifier::new(rewriter.clone(), judges);
    (detoxifier, rewriter)
}

/// Leaves out the toxic words, in a model's style.
fn leave_out(sentence: &str) -> Result<Vec<String>, RewriteError> {
    let words: Vec<&str> = sentence
        .split(' ')
        .filter(|word| !word.contains("idiot") && !word.contains("stupid"))
        .collect();
    Ok(vec![words.join(" ").to_lowercase()])
}

fn actions(result: &Detoxified) -> Vec<SegmentAction> {
    result.segments.iter().map(|segment| segment.action).collect()
}

#[tokio::test]
async fn a_clean_text_comes_back_and_never_reaches_the_model() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let text = " Hello there.\r\n\r\nHow are you?  😀 ";
    let result = detoxifier.detoxify(text, &options()).await.unwrap();
    assert_eq!(result.text, text);
    assert!(!result.changed && result.edits.is_empty());
    assert_eq!(result.similarity, 1.0);
    assert!(rewriter.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_model_is_given_whole_words() {
    let (detoxifier, rewriter) = detoxifier(|_| Ok(vec!["You are wrong.".to_owned()]));
    let options = Options {
        always: true,
        ..options()
    };
    detoxifier.detoxify("You are stu\u{200b}pid.", &options).await.unwrap();
    assert_eq!(*rewriter.asked.lock().unwrap(), ["You are stupid."]);
}

#[tokio::test]
async fn segments_are_observed_in_order_and_before_the_end() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let asked = Mutex::new(Vec::new());
    let observed = Mutex::new(Vec::new());
    let observer = |segment: &Segment| {
        asked.lock().unwrap().push(rewriter.asked.lock().unwrap().len());
        observed.lock().unwrap().push(segment.clone());
    };
    let text = "Fine day. You are stupid people. So be it. You are stupid people. He is an idiot man.";
    let result = detoxifier.detoxify_observed(text, &options(), &observer).await.unwrap();
    assert_eq!(result.segments, *observed.lock().unwrap());
    assert_eq!(result.segments.len(), 5);
    assert_eq!(asked.lock().unwrap()[0], 0, "before the model is asked");
}

#[tokio::test]
async fn always_and_whole_text_are_for_evaluation() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let all = Options {
        always: true,
        whole_text: true,
        ..options()
    };
    let text = "Fine day. You are stupid people.";
    let result = detoxifier.detoxify(text, &all).await.unwrap();
    assert_eq!(*rewriter.asked.lock().unwrap(), [text]);
    assert_eq!(actions(&result), [SegmentAction::Rewritten]);
    let fine = "Fine day, isn't it?";
    detoxifier.detoxify(fine, &all).await.unwrap();
    assert_eq!(rewriter.asked.lock().unwrap().len(), 2);
    assert!(detoxifier.detoxify("", &all).await.unwrap().segments.is_empty());
    let address = "https://a.example/idiot";
    assert_eq!(detoxifier.detoxify(address, &all).await.unwrap().text, address);
}

#[tokio::test]
async fn only_the_toxic_sentence_changes() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let text = "Ünique day.  Bob and Anna are stupid people.\n- You idiot, Anna, see 3 cats. 😀 https://a.example\n";
    let result = detoxifier.detoxify(text, &options()).await.unwrap();
    assert_eq!(
        result.text,
        "Ünique day.  Bob and Anna are people.\n- You Anna, see 3 cats. 😀 https://a.example\n"
    );
    use SegmentAction::{Kept, Rewritten};
    assert_eq!(actions(&result), [Kept, Rewritten, Rewritten, Kept]);
    assert_eq!(result.segments[1].start, 13);
    assert!((result.toxicity.input - 0.9).abs() < 1e-6 && result.toxicity.output == 0.0);
    assert_eq!(apply(text, &result.edits).as_deref(), Some(result.text.as_str()));
    assert_eq!(
        *rewriter.asked.lock().unwrap(),
        ["Bob and Anna are stupid people.", "You idiot, Anna, see 3 cats."]
    );
    assert_eq!(result.usage.prompt_tokens, 20);
    assert_eq!((result.adapter.as_str(), result.model.as_str()), ("none@0", "fake"));
}

#[tokio::test]
async fn the_answer_is_the_contracts() {
    let (detoxifier, _) = detoxifier(leave_out);
    let result = detoxifier.detoxify("See the idiot go.", &options()).await.unwrap();
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(
        json["edits"],
        serde_json::json!([{"start": 8, "end": 14, "from": "idiot ", "to": ""}])
    );
    assert_eq!(json["segments"][0]["action"], "rewritten");
    let mut keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "adapter",
            "changed",
            "edits",
            "model",
            "segments",
            "similarity",
            "text",
            "toxicity",
            "usage"
        ]
    );
}

#[tokio::test]
async fn equal_sentences_are_rewritten_once_and_few_at_a_time() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let mut text = "You are an idiot here.\n".repeat(3);
    for n in 0..40 {
        text.push_str(&format!("You are an idiot at {n} here.\n"));
    }
    let result = detoxifier.detoxify(&text, &options()).await.unwrap();
    assert!(!result.text.contains("idiot"));
    assert_eq!(rewriter.asked.lock().unwrap().len(), 41);
    assert_eq!(rewriter.most_running.load(Ordering::SeqCst), 16);
}

#[tokio::test]
async fn a_failure_fails_the_whole_text() {
    let (detoxifier, _) = detoxifier(|sentence: &str| {
        if sentence.contains("stupid") {
            return Err(RewriteError::Cancelled);
        }
        leave_out(sentence)
    });
    let result = detoxifier
        .detoxify("You idiot there. You left, stupid one.", &options())
        .await;
    assert_eq!(result, Err(DetoxifyError::Rewrite(RewriteError::Cancelled)));
    let late = Options {
        deadline: Some(Instant::now()),
        ..options()
    };
    let result = detoxifier.detoxify("Fine.", &late).await;
    assert_eq!(result, Err(DetoxifyError::Rewrite(RewriteError::DeadlinePassed)));
}

#[tokio::test]
async fn fallbacks() {
    let (detoxifier, _) = detoxifier(|_: &str| Ok(vec![String::new(), "You left, idiot!".into()]));
    let text = "Fine.  You left, idiot! Bye.";
    for (fallback, expected, action) in [
        (Fallback::Mask, "Fine.  You left, ***! Bye.", SegmentAction::Masked),
        (Fallback::Block, "Fine.   Bye.", SegmentAction::Blocked),
        (Fallback::Annotate, text, SegmentAction::Annotated),
    ] {
        let options = Options { fallback, ..options() };
        let result = detoxifier.detoxify(text, &options).await.unwrap();
        assert_eq!(result.text, expected);
        assert_eq!(result.segments[1].action, action);
        assert_eq!(result.rejections, [Rejection::Empty, Rejection::Toxic]);
    }
    let result = detoxifier.detoxify("Ask @idiot now.", &options()).await.unwrap();
    assert_eq!(actions(&result), [SegmentAction::Blocked]);
    assert_eq!(result.text, "");
}

#[tokio::test]
async fn actions_without_a_model() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let text = "Fine. You idiot!";
    let annotate = Options {
        action: Action::Annotate,
        ..options()
    };
    let result = detoxifier.detoxify(text, &annotate).await.unwrap();
    assert_eq!((result.text.as_str(), result.changed), (text, false));
    assert_eq!(actions(&result), [SegmentAction::Kept, SegmentAction::Annotated]);
    assert!((result.toxicity.output - 0.9).abs() < 1e-6);
    let block = Options {
        action: Action::Block,
        ..options()
    };
    let result = detoxifier.detoxify(text, &block).await.unwrap();
    assert_eq!(
        (result.text.as_str(), result.changed, result.similarity),
        ("", true, 0.0)
    );
    assert_eq!(actions(&result), [SegmentAction::Blocked, SegmentAction::Blocked]);
    assert_eq!(apply(text, &result.edits).as_deref(), Some(""));
    assert_eq!(detoxifier.detoxify("Fine.", &block).await.unwrap().text, "Fine.");
    assert!(rewriter.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn markdown_structure_survives() {
    let (detoxifier, rewriter) = detoxifier(leave_out);
    let text = "# You idiot there\n\n```\nidiot()\n```\n\n> stupid quote\n\nRun `stupid x` you idiot now.\n";
    let options = Options {
        format: Format::Markdown,
        ..options()
    };
    let result = detoxifier.detoxify(text, &options).await.unwrap();
    // The candidate breaks the code, so that sentence is masked instead.
    assert_eq!(
        result.text,
        "# You there\n\n```\nidiot()\n```\n\n> stupid quote\n\nRun `stupid x` you *** now.\n"
    );
    assert_eq!(rewriter.asked.lock().unwrap().len(), 2);
    assert!((result.toxicity.output - 0.8).abs() < 1e-6, "the quote is reported");
}

#[tokio::test]
async fn without_verification_the_first_candidate_is_taken() {
    let (detoxifier, _) = detoxifier(|_: &str| Ok(vec!["still an idiot".into()]));
    let options = Options {
        verify: false,
        ..options()
    };
    let result = detoxifier.detoxify("You left, idiot.", &options).await.unwrap();
    assert_eq!(result.text, "Still an idiot.");
    assert!(result.toxicity.output > 0.5);
}

/// The same judge, but not for the thread that serves.
struct Slow {
    serving: std::thread::ThreadId,
}

impl Toxicity for Slow {
    fn score(&self, text: &str) -> f32 {
        assert_ne!(std::thread::current().id(), self.serving);
        WordToxicity.score(text)
    }

    fn attributions(&self, text: &str) -> Vec<(std::ops::Range<usize>, f32)> {
        WordToxicity.attributions(text)
    }

    fn is_slow(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_slow_judge_comes_to_the_same_answer() {
    let (quick, rewriter) = detoxifier(leave_out);
    let judges = Judges {
        toxicity: Arc::new(Slow {
            serving: std::thread::current().id(),
        }),
        similarity: Arc::new(WordSimilarity),
    };
    let slow = Detoxifier::new(rewriter, judges);
    let text = "Fine day. You are stupid people, idiot. So be it. You are an idiot. You are stupid people, idiot.";
    for (fallback, threshold) in [(Fallback::Mask, 0.5), (Fallback::Mask, 0.1), (Fallback::Block, 0.0)] {
        let options = Options {
            fallback,
            threshold: Threshold::new(threshold).unwrap(),
            ..options()
        };
        let [quick, slow] = [&quick, &slow].map(|detoxifier| detoxifier.detoxify(text, &options));
        assert_eq!(quick.await.unwrap(), slow.await.unwrap());
    }
}

#[tokio::test]
async fn the_future_can_be_spawned() {
    let (detoxifier, _) = detoxifier(leave_out);
    let task = tokio::spawn(async move { detoxifier.detoxify("You idiot.", &options()).await });
    assert!(task.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_large_text_is_quick() {
    let (detoxifier, _) = detoxifier(leave_out);
    let text = "You are an idiot. This is fine.\n".repeat(1 << 14);
    let start = Instant::now();
    detoxifier.detoxify(&text, &options()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// Candidates that a model should never give, and now and then does.
fn nasty() -> impl Strategy<Value = Vec<String>> {
    let one = prop_oneof![
        any::<String>(),
        Just(String::new()),
        Just("\0\0".to_owned()),
        Just("ты не прав".to_owned()),
        Just("no ".repeat(20_000)),
        Just("😆".repeat(3_000)),
        "[a-zA-Z @#.!?'\"]{0,40}",
    ];
    prop::collection::vec(one, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn nothing_panics_and_everything_adds_up(
        text in prop_oneof![
            any::<String>(),
            "(idiot|stupid|crap|you|@idiot|#a|`idiot`|> |- |\n|https://a\\.example|12 km|[ .!?'\"]|\\PC){0,40}",
        ],
        candidates in nasty(),
        action in prop_oneof![3 => Just(Action::Rewrite), 1 => Just(Action::Annotate), 1 => Just(Action::Block)],
        fallback in prop_oneof![Just(Fallback::Mask), Just(Fallback::Block), Just(Fallback::Annotate)],
        markdown: bool,
        verify: bool,
        threshold in 0.0f32..=1.0,
    ) {
        let (detoxifier, _) = detoxifier(move |_: &str| Ok(candidates.clone()));
        let options = Options {
            threshold: Threshold::new(threshold).unwrap(),
            action, fallback, verify,
            format: if markdown { Format::Markdown } else { Format::Plain },
            ..options()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = runtime.block_on(detoxifier.detoxify(&text, &options)).unwrap();
        prop_assert_eq!(apply(&text, &result.edits), Some(result.text.clone()));
        let parts: String = result.segments.iter().map(|segment| segment.text.as_str()).collect();
        prop_assert_eq!(&parts, &result.text);
        let mut at = 0;
        for segment in &result.segments {
            prop_assert_eq!(segment.start, at);
            at = segment.end;
        }
        prop_assert_eq!(at, text.chars().count());
        prop_assert_eq!(result.changed, result.text != text);
        if verify && fallback != Fallback::Annotate && action == Action::Rewrite && !markdown {
            prop_assert!(result.toxicity.output <= threshold);
        }
    }
}
