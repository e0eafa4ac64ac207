//! What of a sentence is scored, and what of it a model may rewrite.

use std::ops::Range;

use super::protect::{Kind, Span};

/// Without white space at the ends and without the marker of a list item or a heading.
pub(super) fn body_of(text: &str, range: &Range<usize>, is_prose: bool) -> Range<usize> {
    let slice = &text[range.clone()];
    let trimmed = slice.trim_start();
    let mut start = range.end - trimmed.len();
    let end = start + trimmed.trim_end().len();
    let before = &text[..start];
    if is_prose && (before.is_empty() || before.trim_end_matches([' ', '\t']).ends_with('\n')) {
        while let Some(length) = marker(&text[start..end]) {
            start += length;
        }
    }
    start..end
}

/// Length of a list marker at the start of a line, white space after it included.
fn marker(line: &str) -> Option<usize> {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let hashes = line.bytes().take_while(|b| *b == b'#').count();
    let rest = if (1..=3).contains(&digits) {
        line[digits..].strip_prefix(['.', ')'])?
    } else if (1..=6).contains(&hashes) {
        &line[hashes..]
    } else {
        line.strip_prefix(['-', '*', '+', '•', '>'])?
    };
    let after = rest.trim_start();
    (after.len() < rest.len() && !after.is_empty()).then_some(line.len() - after.len())
}

/// Without what a rewriting model only spoils: emoji and addresses at either end.
pub(super) fn core_of(text: &str, spans: &[Span], body: &Range<usize>) -> Range<usize> {
    let Range { mut start, mut end } = *body;
    while let Some(c) = text[start..end].chars().next() {
        let next = spans.partition_point(|span| span.range.start < start);
        match spans.get(next) {
            Some(span) if span.range.start == start && span.range.end <= end && span.kind == Kind::Url => {
                start = span.range.end;
            }
            _ if c.is_whitespace() || is_harmless_emoji(c) => start += c.len_utf8(),
            _ => break,
        }
    }
    while let Some(c) = text[start..end].chars().next_back() {
        let next = spans.partition_point(|span| span.range.end < end);
        match spans.get(next) {
            Some(span) if span.range.end == end && span.range.start >= start && span.kind == Kind::Url => {
                end = span.range.start;
            }
            _ if c.is_whitespace() || is_harmless_emoji(c) => end -= c.len_utf8(),
            _ => break,
        }
    }
    start..end
}

/// Emoji that insult by themselves stay in the core: they must not slip through.
fn is_harmless_emoji(c: char) -> bool {
    let is_emoji = matches!(c, '\u{1F1E6}'..='\u{1F1FF}' | '\u{1F300}'..='\u{1FAFF}' | '\u{2600}'..='\u{27BF}' | '\u{FE0F}' | '\u{200D}');
    is_emoji
        && !matches!(
            c,
            '\u{1F595}' | '\u{1F4A9}' | '\u{1F921}' | '\u{1F437}' | '\u{1F416}' | '\u{1F412}' | '\u{1F435}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_need_white_space_and_text_after_them() {
        assert_eq!(marker("- a"), Some(2));
        assert_eq!(marker("12)  a"), Some(5));
        assert_eq!(marker("### a"), Some(4));
        assert_eq!(marker("-a"), None);
        assert_eq!(marker("1.5 a"), None);
        assert_eq!(marker("1234. a"), None);
        assert_eq!(marker("- "), None);
    }
}
