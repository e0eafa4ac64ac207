//! What holds for any text, with the scorers that are served.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::super::checks::loses_negation;
use super::super::testing::FakeRewriter;
use super::super::*;
use crate::adapters::AdapterLease;

static JUDGES: LazyLock<Judges> = LazyLock::new(|| Judges::built_in().unwrap());

/// Takes a text through a pipeline whose model answers what `answer` says.
fn detoxified(
    text: &str,
    options: impl FnOnce(&mut Options),
    answer: impl Fn(&str) -> Vec<String> + Send + Sync + 'static,
) -> (Detoxified, Vec<String>) {
    let rewriter = Arc::new(FakeRewriter::new(move |sentence: &str| Ok(answer(sentence))));
    let detoxifier = Detoxifier::new(rewriter.clone(), JUDGES.clone());
    let mut with = Options::new(AdapterLease::none());
    options(&mut with);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let result = runtime.block_on(detoxifier.detoxify(text, &with)).unwrap();
    let asked = rewriter.asked.lock().unwrap().clone();
    (result, asked)
}

/// What a careless model writes: words are lost, the one or the other with all that must stay.
fn careless(sentence: &str) -> Vec<String> {
    let words: Vec<&str> = sentence.split(' ').collect();
    let without = |lost: &dyn Fn(usize, &str) -> bool| {
        let kept = words.iter().enumerate().filter(|(at, word)| !lost(*at, word));
        kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    };
    let insult = |word: &str| word.contains("idiot") || word.contains("stupid");
    vec![
        without(&|at, word| insult(word) || at % 2 == 0),
        without(&|_, word| insult(word) || word.contains(['@', '/', '`', '7'])),
        without(&|_, word| insult(word) || word == "not"),
        without(&|_, word| insult(word)),
    ]
}

const KEPT: [&str; 6] = [
    "https://a.example/x?y=1",
    "@some_one",
    "#tag",
    "47 km",
    "`x = 7`",
    "$7.50",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn any_unicode_goes_through(text in any::<String>(), markdown: bool) {
        let format = if markdown { Format::Markdown } else { Format::Plain };
        let (result, _) = detoxified(&text, |options| options.format = format, careless);
        let parts: String = result.segments.iter().map(|segment| segment.text.as_str()).collect();
        prop_assert_eq!(parts, result.text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_must_stay_stays(
        words in prop::collection::vec(
            prop_oneof![
                4 => prop::sample::select(vec!["you", "are", "a", "the", "stupid", "idiot", "not", "late", "again", "we", "read", "it"]),
                1 => prop::sample::select(KEPT.to_vec()),
            ],
            1..16,
        ),
    ) {
        let text = words.join(" ");
        let (result, _) = detoxified(&text, |_| {}, careless);
        let blocked = result.segments.iter().any(|segment| segment.action == SegmentAction::Blocked);
        if !blocked {
            for kept in KEPT {
                prop_assert_eq!(text.matches(kept).count(), result.text.matches(kept).count(), "{} -> {}", text, result.text);
            }
        }
        if result.segments.iter().any(|segment| segment.action == SegmentAction::Rewritten) {
            prop_assert!(!loses_negation(&text, &result.text), "{} -> {}", text, result.text);
        }
    }
}

#[test]
fn other_languages_go_by_policy_and_never_to_the_model() {
    let text = "See you at noon. Du bist ein Idiot.";
    for (policy, output) in [
        (OtherLanguages::Fallback, "See you at noon. Du bist ein ***."),
        (OtherLanguages::Keep, text),
        (OtherLanguages::Block, "See you at noon. "),
    ] {
        let (result, asked) = detoxified(text, |options| options.other_languages = policy, careless);
        assert_eq!(result.text, output);
        assert!(asked.is_empty(), "{asked:?}");
        assert_eq!(result.segments[1].reason, Some(Unfit::Language));
    }
    let (result, _) = detoxified(
        "Das ist gut.",
        |options| options.other_languages = OtherLanguages::Block,
        careless,
    );
    assert_eq!(result.text, "");
}

#[test]
fn an_insult_and_nothing_else_is_not_paraphrased() {
    for text in ["You idiot!", "stupid moron"] {
        let (result, asked) = detoxified(text, |options| options.fallback = Fallback::Block, careless);
        assert!(asked.is_empty(), "{asked:?}");
        assert_eq!(result.segments[0].reason, Some(Unfit::NothingNeutral));
        assert_eq!(result.text, "");
    }
    let (_, asked) = detoxified("You are late again, you idiot.", |_| {}, careless);
    assert_eq!(asked, ["You are late again, you idiot."]);
}

#[test]
fn code_in_plain_text_is_left_alone() {
    let text = "```\nyou stupid idiot\n```\nUse `idiot.kill()` here.";
    let (result, asked) = detoxified(text, |_| {}, careless);
    assert_eq!(result.text, text);
    assert!(asked.is_empty());
}
