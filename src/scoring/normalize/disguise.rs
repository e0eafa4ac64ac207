//! Undoes simple disguises: look-alike letters, signs and digits for letters, stretched and separated letters.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use super::characters::{confusable, digit_as_letter, is_invisible};
use super::{Token, View, chunks, is_reference};

/// The view with disguises undone. Letters repeated three times or more are cut to `longest_run`; `ambiguous` is set
/// if another reading (shorter runs, a spaced-out word without its first letter) is worth a look.
pub(super) fn undisguise(text: &str, longest_run: usize, ambiguous: &mut bool) -> View {
    let mut view = View::default();
    let mut chars = Vec::new();
    for (start, chunk) in chunks(text) {
        if is_reference(chunk) {
            continue;
        }
        chars.clear();
        for (at, c) in chunk.char_indices() {
            let source = start + at..start + at + c.len_utf8();
            if is_invisible(c) {
                continue;
            }
            for plain in std::iter::once(c)
                .nfkd()
                .filter(|&c| !is_combining_mark(c))
                .flat_map(char::to_lowercase)
            {
                chars.push((confusable(plain), source.clone()));
            }
        }
        for piece in chars.split(|(c, _)| !is_word_or_disguise(*c)) {
            push_piece(&mut view, piece, longest_run, ambiguous);
        }
    }
    join_spaced_letters(view, longest_run == 1, ambiguous)
}

type Placed = (char, Range<usize>);

fn is_separator(c: char) -> bool {
    matches!(
        c,
        '.' | '-' | '_' | '*' | '~' | '·' | '•' | '+' | '=' | '^' | '/' | '\\' | ','
    )
}

fn is_word_or_disguise(c: char) -> bool {
    c.is_alphanumeric() || c == '\'' || matches!(c, '@' | '$' | '!' | '|') || is_separator(c)
}

/// Appends a run of letters, digits, signs that stand for letters, and separators.
fn push_piece(view: &mut View, piece: &[Placed], longest_run: usize, ambiguous: &mut bool) {
    // Separators and closing signs at the edges are punctuation or emphasis.
    let edge = |c: char| is_separator(c) || matches!(c, '!' | '|' | '\'');
    let Some(first) = piece.iter().position(|(c, _)| !edge(*c) || matches!(c, '!' | '|')) else {
        return;
    };
    let last = piece.iter().rposition(|(c, _)| !edge(*c)).unwrap_or(first);
    if last < first {
        return;
    }
    let starred_end = piece[..first].iter().all(|(c, _)| *c != '*')
        && piece[last + 1..].iter().filter(|(c, _)| *c == '*').count() > 1;
    let piece = &piece[first..=if starred_end { piece.len() - 1 } else { last }];
    let segments: Vec<&[Placed]> = piece
        .split(|(c, _)| is_separator(*c))
        .filter(|s| !s.is_empty())
        .collect();
    let letters = piece.iter().filter(|(c, _)| c.is_alphabetic()).count();
    let all_short = segments.len() >= 3 && segments.iter().all(|s| s.len() <= 2);
    let has = |wanted: &[char]| piece.iter().any(|(c, _)| wanted.contains(c));
    let starred = has(&['*']) && !all_short && letters >= 2;
    let hidden = has(&['_', '.']) && (4..=14).contains(&letters) && segments.iter().any(|s| s.len() <= 2);
    if letters >= 3 && (all_short || hidden) {
        let joined: Vec<Placed> = piece.iter().filter(|(c, _)| !is_separator(*c)).cloned().collect();
        push_word(view, &joined, longest_run, ambiguous);
    } else if starred {
        // A star stands for a letter we can't know: it stays, and the n-grams around it speak.
        for part in piece.split(|(c, _)| is_separator(*c) && *c != '*') {
            push_word(view, part, longest_run, ambiguous);
        }
    } else {
        for segment in segments {
            push_word(view, segment, longest_run, ambiguous);
        }
    }
}

/// Appends one word with signs and digits read as letters and long runs cut.
fn push_word(view: &mut View, word: &[Placed], longest_run: usize, ambiguous: &mut bool) {
    let letters = word.iter().filter(|(c, _)| c.is_alphabetic()).count();
    let digits = word.iter().filter(|(c, _)| c.is_numeric()).count();
    let mostly_letters = letters >= 2 && letters >= 2 * digits && (letters >= 3 || !word[0].0.is_numeric());
    let trailing = word.iter().rev().take_while(|(c, _)| c.is_numeric()).count();
    // "10am" and "win10" keep their digits, "1d10t" doesn't: a digit stands between letters.
    let between = || {
        let is_letter = |(c, _): &Placed| c.is_alphabetic();
        let (first, last) = (word.iter().position(is_letter), word.iter().rposition(is_letter));
        first
            .zip(last)
            .is_some_and(|(first, last)| word[first..last].iter().any(|(c, _)| c.is_numeric()))
    };
    let digits_are_letters =
        (mostly_letters && trailing < 2) || (letters >= 2 && digits <= letters + 1 && word.len() >= 4 && between());
    let mut begun: Option<usize> = None;
    let mut chars: Vec<char> = Vec::with_capacity(word.len());
    let flush = |view: &mut View, chars: &mut Vec<char>, range: Range<usize>| {
        while chars.last() == Some(&'\'') {
            chars.pop();
        }
        view.push(chars.drain(..), range);
    };
    let mut end = 0;
    for (i, (c, source)) in word.iter().enumerate() {
        let next_is_letter = word
            .get(i + 1)
            .is_some_and(|(n, _)| n.is_alphanumeric() || matches!(n, '$' | '@' | '*'));
        let letter = match c {
            '!' | '|' if next_is_letter => Some('i'),
            '@' if letters > 0 && (next_is_letter || i > 0) => Some('a'),
            '$' if letters > 0 && (next_is_letter || i > 0) => Some('s'),
            '!' | '|' | '@' | '$' => None,
            '\'' => (i > 0).then_some('\''),
            digit if digits_are_letters && digit.is_numeric() => Some(digit_as_letter(*digit)),
            other => Some(*other),
        };
        match letter {
            Some(letter) => {
                let start = *begun.get_or_insert(source.start);
                end = source.end.max(start);
                let run = chars.iter().rev().take(2).take_while(|&&c| c == letter).count();
                // A run of two may be spelling; the third says that letters are stretched.
                if letter.is_alphabetic() && run >= 2 {
                    *ambiguous = true;
                }
                chars.push(letter);
                if letter.is_alphabetic() && run >= 2 {
                    // Keep the run at two while reading, so that the look back stays short.
                    chars.pop();
                }
            }
            None => {
                if let Some(start) = begun.take() {
                    flush(view, &mut chars, start..end);
                }
            }
        }
    }
    if let Some(start) = begun {
        if longest_run == 1 {
            let stretched = stretched_letters(word);
            let mut previous = None;
            chars.retain(|&c| {
                let keep = previous != Some(c) || stretched.binary_search(&c).is_err();
                previous = Some(c);
                keep
            });
        }
        flush(view, &mut chars, start..end);
    }
}

/// Letters that stand three times in a row or more.
fn stretched_letters(word: &[Placed]) -> Vec<char> {
    let mut found: Vec<char> = word
        .windows(3)
        .filter(|w| w[0].0 == w[1].0 && w[1].0 == w[2].0)
        .map(|w| w[0].0)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Joins three or more single letters in a row to one word: "i d i o t".
fn join_spaced_letters(view: View, drop_first: bool, ambiguous: &mut bool) -> View {
    let single = |token: &Token| view.word(token).chars().nth(1).is_none();
    let mut joined = View::default();
    let mut at = 0;
    while at < view.tokens.len() {
        let mut run = view.tokens[at..].iter().take_while(|token| single(token)).count();
        let letters = view.tokens[at..at + run]
            .iter()
            .filter(|t| view.word(t).chars().all(char::is_alphabetic))
            .count();
        let mut from = at;
        if run >= 3 && letters >= 2 && 2 * letters >= run {
            // "you are a i d i o t": the first letter may be a word of its own.
            if run >= 5 && matches!(view.word(&view.tokens[at]), "a" | "i" | "u") {
                *ambiguous = true;
                if drop_first {
                    joined.push(view.word(&view.tokens[at]).chars(), view.tokens[at].source.clone());
                    from += 1;
                }
            }
            let word = &view.tokens[from..at + run];
            let source = word[0].source.start..word[word.len() - 1].source.end;
            joined.push(
                word.iter().flat_map(|t| view.word(t).chars()).map(digit_as_letter),
                source,
            );
        } else {
            run = run.max(1);
            for token in &view.tokens[at..at + run] {
                joined.push(view.word(token).chars(), token.source.clone());
            }
        }
        at += run;
    }
    joined
}
