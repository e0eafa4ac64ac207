//! Whether a rewrite kept the protected stretches of its source and added none, and putting back those whose
//! place is beyond doubt.

use super::options::Format;
use super::protect::{Kind, Span, find, stands_alone};

/// Whether every protected stretch of `source` stands in `candidate` as often as in the source, and by itself where it did.
///
/// Numbers are left out: they are compared by value, see [`super::protect::numbers`].
pub fn keeps_all(source: &str, spans: &[Span], candidate: &str) -> bool {
    let text = |span: &Span| source.get(span.range.clone()).unwrap_or_default();
    let mut spans: Vec<&Span> = spans.iter().filter(|span| span.kind != Kind::Number).collect();
    spans.sort_unstable_by_key(|span| text(span));
    spans.chunk_by(|a, b| text(a) == text(b)).all(|same| {
        let stood_alone = same.iter().all(|span| stands_alone(source, &span.range));
        let stands = candidate
            .match_indices(text(same[0]))
            .filter(|(at, found)| !stood_alone || stands_alone(candidate, &(*at..at + found.len())));
        stands.count() >= same.len()
    })
}

/// Whether `candidate` has no address, name, tag or character reference that `source` lacks: a model that spells one wrong links or calls
/// something else.
pub fn adds_none(source: &str, candidate: &str) -> bool {
    find(candidate, Format::Plain)
        .iter()
        .filter(|span| is_name(span.kind))
        .all(|span| source.contains(&candidate[span.range.clone()]))
}

/// Whether it is a word that stands for something elsewhere.
fn is_name(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Mention | Kind::Tag | Kind::Url | Kind::Email | Kind::CharacterReference
    )
}

/// `candidate` with what it lost of the protected stretches, as far as their place is clear:
/// at the start or the end of the source, or a word changed between the same neighbours, or
/// changed in case only.
pub fn restore(source: &str, spans: &[Span], candidate: &str) -> String {
    let mut text = candidate.to_owned();
    if keeps_all(source, spans, &text) {
        return text;
    }
    text = restore_words(source, spans, &text);
    let (head, tail) = edges(source, spans);
    let has_none = |edge: &str, text: &str| !edge.is_empty() && parts(edge).all(|part| !text.contains(part));
    if has_none(head, &text) {
        text = format!("{head} {text}");
    }
    if has_none(tail, &text) {
        text = format!("{text} {tail}");
    }
    text
}

/// The words of an edge; character references in a row are a word each.
fn parts(edge: &str) -> impl Iterator<Item = &str> {
    edge.split_inclusive(|c: char| c.is_whitespace() || c == ';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn texts<'a>(source: &'a str, spans: &[Span]) -> Vec<&'a str> {
    spans
        .iter()
        .filter(|span| span.kind != Kind::Number)
        .filter_map(|span| source.get(span.range.clone()))
        .collect()
}

/// Puts back words of the candidate that differ from a protected word in case, or that stand in
/// its place between the same neighbours.
fn restore_words(source: &str, spans: &[Span], candidate: &str) -> String {
    let lost: Vec<&str> = texts(source, spans)
        .into_iter()
        .filter(|text| !candidate.contains(text))
        .collect();
    let old: Vec<&str> = source.split_whitespace().collect();
    let mut new: Vec<String> = candidate.split_whitespace().map(str::to_owned).collect();
    let in_step = old.len() == new.len();
    for text in lost {
        let same_but_case = new
            .iter()
            .position(|word| core(word).to_lowercase() == text.to_lowercase());
        let same_place = old.iter().position(|word| core(word) == text).filter(|&at| {
            let agrees = |at: Option<usize>| match at.and_then(|at| Some((old.get(at)?, new.get(at)?))) {
                Some((a, b)) => a.eq_ignore_ascii_case(b),
                None => true,
            };
            in_step && old.len() > 1 && agrees(at.checked_sub(1)) && agrees(Some(at + 1))
        });
        if let Some(at) = same_but_case.or(same_place) {
            let replaced = new[at].replacen(core(&new[at]), text, 1);
            new[at] = replaced;
        }
    }
    new.join(" ")
}

/// A word without the punctuation around it.
fn core(word: &str) -> &str {
    let trimmed = word.trim_end_matches(|c: char| ".,;:!?'\")]}".contains(c));
    let trimmed = trimmed.trim_start_matches(|c: char| "'\"([{".contains(c));
    if trimmed.is_empty() { word } else { trimmed }
}

/// The protected stretches at the very start and at the very end of the source.
fn edges<'a>(source: &'a str, spans: &[Span]) -> (&'a str, &'a str) {
    let mut start = 0;
    for span in spans.iter().filter(|span| is_name(span.kind)) {
        let between = source.get(start..span.range.start).unwrap_or("x");
        if !between.trim().is_empty() {
            break;
        }
        start = span.range.end;
    }
    let mut end = source.len();
    for span in spans.iter().rev().filter(|span| is_name(span.kind)) {
        let between = source.get(span.range.end..end).unwrap_or("x");
        if !between.trim().is_empty() || span.range.start < start {
            break;
        }
        end = span.range.start;
    }
    (&source[..start], &source[end..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::options::Format;
    use crate::pipeline::protect::find;

    fn restored(source: &str, candidate: &str) -> Option<String> {
        let spans = find(source, Format::Plain);
        let text = restore(source, &spans, candidate);
        keeps_all(source, &spans, &text).then_some(text)
    }

    #[test]
    fn what_stood_at_an_end_is_put_back_there() {
        assert_eq!(restored("you idiot #sad #bad", "you").unwrap(), "you #sad #bad");
        assert_eq!(
            restored("@Bob @Eve you idiot", "You are wrong").unwrap(),
            "@Bob @Eve You are wrong"
        );
    }

    #[test]
    fn part_of_what_stood_at_an_end_is_not_put_back_twice() {
        let source = "you idiot &#128514;&#128557;";
        assert_eq!(restored(source, "you").unwrap(), "you &#128514;&#128557;");
        assert_eq!(restored(source, "you &#128514;"), None);
    }

    #[test]
    fn a_word_that_grew_is_not_kept() {
        assert_eq!(restored("ask @Bob you idiot now", "ask @Bobby you know now"), None);
        assert_eq!(restored("salt &amp; pepper idiot", "salt &amp;pepper friend"), None);
        assert!(restored("run `x`s idiot", "run `x`s friend").is_some());
    }

    #[test]
    fn case_is_put_back() {
        assert_eq!(
            restored("hey @BobX, you idiot", "hey @bobx, you").unwrap(),
            "hey @BobX, you"
        );
    }

    #[test]
    fn a_word_between_the_same_neighbours_is_put_back() {
        assert_eq!(
            restored("see www.a.org/x1y now idiot ok", "see www.a.org/x1 now friend ok").unwrap(),
            "see www.a.org/x1y now friend ok"
        );
    }

    #[test]
    fn a_doubtful_place_is_left_alone() {
        assert_eq!(restored("you idiot ask @Bob about this", "ask about this"), None);
        assert_eq!(restored("@a you idiot @a", "@a you"), None);
    }

    proptest! {
        #[test]
        fn anything_goes(source in "(@a|#b|www\\.a\\.org|é| |\\PC){0,20}", candidate in any::<String>()) {
            restored(&source, &candidate);
        }
    }
}
