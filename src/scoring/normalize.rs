//! Splits text into word tokens, once as written and once with simple disguises undone.
//!
//! A text has one to three [`View`]s. The first is the text as written: NFKC, lower case, words of letters and
//! digits, URLs and @names left out. Where it reads differently with look-alike letters, digits for letters,
//! stretched or separated letters undone, up to two more views follow; a scorer takes the worst of them. Ordinary
//! text therefore keeps exactly its ordinary features.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// A word of a view and the bytes of the original text it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    text: Range<usize>,
    /// Byte range of the original text, on character boundaries.
    pub source: Range<usize>,
}

/// One reading of a text: its words in order.
#[derive(Debug, Clone, Default)]
pub struct View {
    buffer: String,
    tokens: Vec<Token>,
}

impl View {
    /// The words with the places they come from.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The normalised spelling of a word of this view.
    pub fn word(&self, token: &Token) -> &str {
        &self.buffer[token.text.clone()]
    }

    /// All words, in order.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|token| self.word(token))
    }

    fn push(&mut self, chars: impl Iterator<Item = char>, source: Range<usize>) {
        let start = self.buffer.len();
        self.buffer.extend(chars);
        if self.buffer.len() > start {
            self.tokens.push(Token {
                text: start..self.buffer.len(),
                source,
            });
        }
    }

    fn same_words(&self, other: &View) -> bool {
        self.tokens.len() == other.tokens.len() && self.words().eq(other.words())
    }
}

/// The readings of a text, the one as written first. Empty if the text holds no letter.
pub fn views(text: &str) -> Vec<View> {
    if !text.chars().any(char::is_alphabetic) {
        return Vec::new();
    }
    let mut plain = View::default();
    let mut suspicious = false;
    let mut singles = 0;
    for (start, chunk) in chunks(text) {
        let before = plain.tokens.len();
        suspicious |= push_plain(&mut plain, chunk, start);
        for token in &plain.tokens[before..] {
            singles = if token.text.len() == 1 { singles + 1 } else { 0 };
            suspicious |= singles >= 3;
        }
    }
    let mut views = vec![plain];
    if suspicious {
        let mut ambiguous = false;
        let undisguised = undisguise(text, 2, &mut ambiguous);
        if !undisguised.same_words(&views[0]) {
            views.push(undisguised);
        }
        if ambiguous {
            let tighter = undisguise(text, 1, &mut ambiguous);
            if !views.iter().any(|view| view.same_words(&tighter)) {
                views.push(tighter);
            }
        }
    }
    views
}

/// Pieces between white space, with their byte offsets.
fn chunks(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let base = text.as_ptr() as usize;
    text.split_whitespace()
        .map(move |chunk| (chunk.as_ptr() as usize - base, chunk))
}

/// Appends the words of `chunk` as written; says whether it could be a disguise.
fn push_plain(view: &mut View, chunk: &str, start: usize) -> bool {
    if is_reference(chunk) {
        return false;
    }
    if chunk.is_ascii() {
        let bytes = chunk.as_bytes();
        let mut suspicious = false;
        let (mut at, mut run) = (0, 1);
        while at < bytes.len() {
            if !bytes[at].is_ascii_alphanumeric() {
                // Sentence punctuation is ordinary at the edge of a chunk, and a disguise at most inside it.
                suspicious |= !matches!(
                    bytes[at],
                    b'.' | b',' | b'?' | b'!' | b';' | b':' | b'"' | b'\'' | b'(' | b')'
                ) || (at > 0
                    && at + 1 < bytes.len()
                    && bytes[at + 1].is_ascii_alphanumeric()
                    && bytes[at] != b'\'');
                at += 1;
                continue;
            }
            let from = at;
            while at < bytes.len() && is_ascii_word(bytes, from, at) {
                suspicious |= bytes[at].is_ascii_digit();
                run = if at > from && bytes[at].eq_ignore_ascii_case(&bytes[at - 1]) {
                    run + 1
                } else {
                    1
                };
                suspicious |= run >= 3;
                at += 1;
            }
            let lower = bytes[from..at].iter().map(|byte| char::from(byte.to_ascii_lowercase()));
            view.push(lower, start + from..start + at);
        }
        return suspicious;
    }
    let mut from = None;
    let mut previous = None;
    for (at, c) in chunk.char_indices().chain([(chunk.len(), ' ')]) {
        let inside = c.is_alphanumeric() || is_combining_mark(c) || is_invisible(c) || is_apostrophe(c);
        match (inside, from) {
            (true, None) if c.is_alphanumeric() => from = Some(at),
            (false, Some(begin)) => {
                push_normalised(view, &chunk[begin..at], start + begin);
                from = None;
            }
            _ => {}
        }
        previous = Some(c);
    }
    previous.is_some()
}

/// Whether `bytes[at]` continues the word that began at `from`: an apostrophe does if a letter follows.
fn is_ascii_word(bytes: &[u8], from: usize, at: usize) -> bool {
    bytes[at].is_ascii_alphanumeric()
        || (bytes[at] == b'\'' && at > from && bytes.get(at + 1).is_some_and(u8::is_ascii_alphanumeric))
}

fn push_normalised(view: &mut View, word: &str, start: usize) {
    let word = word.trim_end_matches(|c| is_apostrophe(c) || is_invisible(c));
    let chars = word
        .chars()
        .filter(|&c| !is_invisible(c))
        .nfkc()
        .flat_map(char::to_lowercase);
    let chars = chars.map(|c| if is_apostrophe(c) { '\'' } else { c });
    view.push(chars.filter(|c| !c.is_whitespace()), start..start + word.len());
}

/// URLs, e-mail addresses and @names: never judged by their letters.
fn is_reference(chunk: &str) -> bool {
    let bytes = chunk.as_bytes();
    if bytes.len() < 4 || !bytes.iter().any(|b| matches!(b, b'@' | b'.' | b':')) {
        return false;
    }
    let trimmed = chunk.trim_matches(|c: char| {
        matches!(
            c,
            '(' | ')' | '<' | '>' | '"' | '\'' | ',' | ';' | '!' | '?' | '.' | ':'
        )
    });
    if let Some(name) = trimmed.strip_prefix('@') {
        let name = name.split(['\'', '’', ':', ',', '.']).next().unwrap_or_default();
        // Two s after the sign are far more often a spelling of a word than the start of a name.
        return name.len() >= 3
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.as_bytes()[..2].eq_ignore_ascii_case(b"ss");
    }
    if trimmed.contains("://") || trimmed.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("www.")) {
        return true;
    }
    if let Some((user, host)) = trimmed.split_once('@') {
        return user.len() >= 2 && host.contains('.') && !host.contains("..");
    }
    const DOMAINS: [&str; 12] = [
        "com", "org", "net", "io", "gov", "edu", "co", "uk", "ly", "me", "tv", "ca",
    ];
    let host = trimmed.split('/').next().unwrap_or_default();
    trimmed.is_ascii()
        && host.rsplit_once('.').is_some_and(|(name, domain)| {
            name.len() >= 3 && DOMAINS.iter().any(|known| domain.eq_ignore_ascii_case(known))
        })
}

/// The view with disguises undone. Letters repeated three times or more are cut to `longest_run`; `ambiguous` is set
/// if another reading (shorter runs, a spaced-out word without its first letter) is worth a look.
fn undisguise(text: &str, longest_run: usize, ambiguous: &mut bool) -> View {
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
    let hidden = has(&['_', '.']) && letters >= 4 && letters <= 14 && segments.iter().any(|s| s.len() <= 2);
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
    let digits_are_letters = letters >= 2 && letters >= 2 * digits && (letters >= 3 || !word[0].0.is_numeric());
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

fn digit_as_letter(c: char) -> char {
    match c {
        '0' => 'o',
        '1' => 'i',
        '3' => 'e',
        '4' => 'a',
        '5' => 's',
        '7' => 't',
        other => other,
    }
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’' | 'ʼ' | '‘')
}

/// Marks that take no room: zero-width, joiners, soft hyphen, direction marks, variation selectors, tags.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}')
}

/// The Latin letter a (lower-case, decomposed) letter of another script is commonly used for.
fn confusable(c: char) -> char {
    match c {
        'а' | 'α' | 'ɑ' | '∂' => 'a',
        'в' | 'β' | 'ь' | 'ß' => 'b',
        'с' | 'ϲ' | '¢' => 'c',
        'ԁ' | 'ɗ' => 'd',
        'е' | 'ε' | 'є' | 'ә' | '€' => 'e',
        'ƒ' => 'f',
        'ɡ' | 'ց' => 'g',
        'н' | 'һ' | 'η' => 'h',
        'і' | 'ι' | 'ı' | 'ɩ' | '¡' => 'i',
        'ј' => 'j',
        'к' | 'κ' => 'k',
        'ӏ' | 'ł' => 'l',
        'м' | 'μ' => 'm',
        'п' => 'n',
        'о' | 'ο' | 'σ' | 'ø' | 'օ' => 'o',
        'р' | 'ρ' => 'p',
        'ԛ' => 'q',
        'г' => 'r',
        'ѕ' | 'ꜱ' => 's',
        'т' | 'τ' => 't',
        'υ' | 'ս' => 'u',
        'ѵ' | 'ν' => 'v',
        'ш' | 'ω' | 'ԝ' => 'w',
        'х' | 'χ' => 'x',
        'у' | 'γ' | 'ү' => 'y',
        'ʟ' => 'l',
        'ʏ' => 'y',
        '’' | 'ʼ' | '‘' => '\'',
        other => other,
    }
}
