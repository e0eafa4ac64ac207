//! Words that are there but not meant: denied, reported, quoted, said of oneself, or used in another sense.
//!
//! A model of n-grams sees that "idiot" stands in "He is not an idiot" and not what is done with it. The rules here find such
//! stretches; a scorer leaves them out and judges the rest, so that "You are not smart, you are an idiot" stays what it is.
//! They are few and strict: what they don't know counts as meant.

mod words;

use std::ops::Range;

use self::words::{
    AFTER_DENIAL, CALLING, DENIALS, ENDORSING, EPITHETS, NOT_DENYING, OF_OTHERS, REPORTING, SAID_TO, SAYING, SELF,
    SENSES,
};
use super::normalize::View;

/// Words between a denial and what it denies, at most.
const DENIAL_REACH: usize = 7;
/// Words between calling and the name, at most.
const CALLING_REACH: usize = 5;
/// Words between "I am" and what I am, at most.
const SELF_REACH: usize = 4;
/// Words to either side that tell a sense.
const SENSE_REACH: usize = 4;

/// The tokens of `view`, a reading of `text`, that are not meant, in order and apart.
pub fn unmeant(text: &str, view: &View) -> Vec<Range<usize>> {
    let words: Vec<&str> = view.words().collect();
    let sources = view.tokens().iter().map(|token| token.source.clone());
    let gaps = sources
        .clone()
        .zip(sources.skip(1))
        .map(|(a, b)| text.get(a.end..b.start).unwrap_or_default());
    let ends = gaps.map(|gap| gap.contains([',', ';', ':', '.', '!', '?', '(', ')', '\n', '—']));
    let sentence = Sentence {
        ends: ends.chain([true]).collect(),
        words,
    };
    let mut found = quoted(text, view, &sentence.words);
    for at in 0..sentence.words.len() {
        let rules = [
            sentence.denied(at),
            sentence.called(at),
            sentence.said(at),
            sentence.of_oneself(at),
            sentence.in_another_sense(at),
        ];
        found.extend(rules.into_iter().flatten());
    }
    merged(found)
}

struct Sentence<'a> {
    words: Vec<&'a str>,
    /// Whether a clause ends behind each word.
    ends: Vec<bool>,
}

impl Sentence<'_> {
    fn word(&self, at: usize) -> &str {
        self.words.get(at).copied().unwrap_or_default()
    }

    fn before(&self, at: usize, back: usize) -> &str {
        at.checked_sub(back).map_or("", |at| self.word(at))
    }

    /// The first epithet of the same clause, at most `reach` words on; its last one if several follow each other.
    fn epithet(&self, from: usize, reach: usize) -> Option<usize> {
        let limit = (from + reach).min(self.words.len());
        let mut at = from;
        while at < limit {
            if is_in(EPITHETS, self.word(at)) {
                while !self.ends[at] && is_in(EPITHETS, self.word(at + 1)) {
                    at += 1;
                }
                let compared =
                    matches!(self.word(at + 1), "as" | "like" | "than") && self.word(at + 2).starts_with("you");
                return (!compared).then_some(at);
            }
            if self.ends[at] {
                return None;
            }
            at += 1;
        }
        None
    }

    /// "not an idiot", "never said that you were dumb".
    fn denied(&self, at: usize) -> Option<Range<usize>> {
        let word = self.word(at);
        let contracted = word.ends_with("n't") || word.ends_with("nt");
        if self.ends[at] || !(word.ends_with("n't") || is_in(DENIALS, word)) {
            return None;
        }
        let next = self.word(at + 1);
        // "Isn't he an idiot": that is no denial.
        let asks = contracted
            && matches!(
                next,
                "you" | "he" | "she" | "they" | "it" | "this" | "that" | "we" | "i"
            );
        if asks || (word == "no" && next.starts_with("you")) {
            return None;
        }
        let end = self.epithet(at + 1, DENIAL_REACH)?;
        let pair = [next, self.word(at + 2)].join(" ");
        let start = if AFTER_DENIAL.contains(&pair.as_str()) {
            at + 3
        } else {
            at + 1
        };
        let blocked = (start..end).any(|at| is_in(NOT_DENYING, self.word(at)) && !self.called_or_been(at));
        (!blocked).then_some(at..end + 1)
    }

    /// "should be called", "to be".
    fn called_or_been(&self, at: usize) -> bool {
        self.word(at) == "be" && matches!(self.before(at, 1), "should" | "to" | "would" | "must" | "can" | "could")
    }

    /// "called him an idiot".
    fn called(&self, at: usize) -> Option<Range<usize>> {
        let so_called = self.before(at, 1) == "so";
        if !is_in(CALLING, self.word(at)) || so_called || self.ends[at] {
            return None;
        }
        let by_me = (1..=3).any(|back| {
            matches!(
                self.before(at, back),
                "i" | "i'll" | "i'd" | "i'm" | "let's" | "we" | "just"
            )
        }) && self.word(at + 1).starts_with("you");
        let end = self.epithet(at + 1, CALLING_REACH)?;
        (!by_me && !self.is_endorsed(end)).then_some(at + 1..end + 1)
    }

    /// "told me that I was stupid".
    fn said(&self, at: usize) -> Option<Range<usize>> {
        if !is_in(SAYING, self.word(at)) || self.ends[at] {
            return None;
        }
        // "I think he is a fool" and "Tell them that they are fools" are meant.
        let speaker = self.before(at, 1);
        let mine = matches!(
            speaker,
            "i" | "we" | "i'd" | "i'll" | "go" | "and" | "just" | "also" | "still" | ""
        ) && self.word(at) != "saying";
        let thought = self.word(at).starts_with("th");
        let skipped = self.words[at + 1..]
            .iter()
            .take(3)
            .take_while(|word| is_in(SAID_TO, word))
            .count();
        let target = self.word(at + 1 + skipped);
        let of_me = matches!(target, "i" | "i'm" | "im" | "we" | "we're" | "my" | "our");
        let of_others = !thought && !target.starts_with("you") && !matches!(target, "this" | "it" | "what" | "the");
        let end = self.epithet(at + 1, CALLING_REACH + skipped)?;
        let of_you = (at + 1..end).any(|at| self.word(at).starts_with("you"));
        (!mine && (of_me || of_others) && !of_you && !self.is_endorsed(end)).then_some(at + 1..end + 1)
    }

    /// "I'm such an idiot".
    fn of_oneself(&self, at: usize) -> Option<Range<usize>> {
        let pair = [self.word(at), self.word(at + 1)].join(" ");
        let length = if SELF.contains(&self.word(at)) {
            1
        } else if SELF.contains(&pair.as_str()) && !self.ends[at] {
            2
        } else {
            return None;
        };
        let start = at + length;
        if self.ends[start - 1] {
            return None;
        }
        let end = self.epithet(start, SELF_REACH)?;
        let of_others = (start..end).any(|at| is_in(OF_OTHERS, self.word(at)));
        (!of_others).then_some(start..end + 1)
    }

    /// "garbage collector".
    fn in_another_sense(&self, at: usize) -> Option<Range<usize>> {
        let near = at.saturating_sub(SENSE_REACH)..(at + 1 + SENSE_REACH).min(self.words.len());
        let told = |beside: &[&str]| {
            near.clone()
                .any(|other| other != at && beside.contains(&self.word(other)))
        };
        SENSES
            .iter()
            .any(|sense| sense.words.contains(&self.word(at)) && told(sense.beside))
            .then_some(at..at + 1)
    }

    /// Whether what ends there is shared by who reports it.
    fn is_endorsed(&self, end: usize) -> bool {
        let after = &self.words[end + 1..];
        let right = after.iter().take(6).any(|word| is_in(ENDORSING, word));
        let wrong = after
            .iter()
            .take(6)
            .any(|word| matches!(*word, "not" | "isn't" | "wrong"));
        right && !wrong
    }
}

/// What stands within double quotation marks, in a sentence that reports or speaks of words.
fn quoted(text: &str, view: &View, words: &[&str]) -> Vec<Range<usize>> {
    let marks: Vec<(usize, char)> = text
        .char_indices()
        .filter(|(_, c)| matches!(c, '"' | '“' | '”' | '«' | '»' | '„'))
        .collect();
    let tokens = view.tokens();
    let stretches: Vec<Range<usize>> = marks
        .chunks_exact(2)
        .map(|pair| {
            let first = tokens.partition_point(|token| token.source.start < pair[0].0);
            first
                ..tokens
                    .partition_point(|token| token.source.start < pair[1].0)
                    .max(first)
        })
        .filter(|stretch| !stretch.is_empty())
        .collect();
    let outside = |at: &usize| !stretches.iter().any(|stretch| stretch.contains(at));
    let reports = (0..words.len()).filter(outside).any(|at| is_in(REPORTING, words[at]));
    let endorsed = stretches
        .last()
        .is_some_and(|last| words[last.end..].iter().take(6).any(|word| is_in(ENDORSING, word)));
    if reports && !endorsed { stretches } else { Vec::new() }
}

fn is_in(list: &[&str], word: &str) -> bool {
    list.contains(&word)
}

fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match apart.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use crate::scoring::ToxicityScorer;

    /// The share of a kind's lines that are on their side of 0.5.
    fn right(lines: &str, toxic: bool) -> f32 {
        let scorer = ToxicityScorer::embedded().expect("the embedded scorer loads");
        let of_kind = lines.lines().filter_map(|line| line.split_once('\t'));
        let right: Vec<bool> = of_kind
            .filter(|(kind, _)| kind.starts_with("toxic") == toxic)
            .map(|(_, text)| (scorer.score(text) > 0.5) == toxic)
            .collect();
        right.iter().filter(|right| **right).count() as f32 / right.len() as f32
    }

    #[test]
    fn what_looks_toxic_is_told_from_what_is() {
        // Rules and training were made with the first file in view, the second was written afterwards.
        let tuned = include_str!("../../tests/fixtures/stance/tuned.tsv");
        let held = include_str!("../../tests/fixtures/stance/held.tsv");
        for (name, lines, harmless, toxic) in [("tuned", tuned, 0.9, 0.85), ("held", held, 0.9, 0.85)] {
            assert!(
                right(lines, false) >= harmless,
                "{name}, harmless: {}",
                right(lines, false)
            );
            assert!(right(lines, true) >= toxic, "{name}, toxic: {}", right(lines, true));
        }
    }
}
