//! Code in a text that is not marked up as a whole: fences that are closed, and what stands between backticks and looks like code.

use super::protect::{Kind, Span};

/// Appends the stretches of code.
pub(super) fn find(text: &str, spans: &mut Vec<Span>) {
    if !text.contains(['`', '~']) {
        return;
    }
    let lines: Vec<Line<'_>> = lines(text);
    let closers = closers(&lines);
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let closed = line
            .fence
            .filter(|fence| closers[at + 1][usize::from(fence.mark == '~')] >= fence.length);
        let end = closed.and_then(|fence| {
            let closes = |line: &Line<'_>| {
                line.fence
                    .is_some_and(|other| other.closes && other.mark == fence.mark && other.length >= fence.length)
            };
            lines[at + 1..].iter().position(closes).map(|found| at + 1 + found)
        });
        match end {
            Some(end) => {
                let last = &lines[end];
                push(
                    spans,
                    line.start,
                    last.start + last.text.trim_end().len(),
                    Kind::CodeBlock,
                );
                at = end + 1;
            }
            None => {
                inline(line, spans);
                at += 1;
            }
        }
    }
}

struct Line<'a> {
    start: usize,
    text: &'a str,
    fence: Option<Fence>,
}

/// Three marks or more at the start of a line.
#[derive(Clone, Copy)]
struct Fence {
    mark: char,
    length: usize,
    /// Whether nothing follows, so that it can end a block.
    closes: bool,
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut start = 0;
    let line = |text: &'_ str| {
        let indent = text.len() - text.trim_start_matches(' ').len();
        let rest = &text[indent..];
        let mark = rest.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let length = rest.len() - rest.trim_start_matches(mark).len();
        let info = rest[length..].trim();
        (indent <= 3 && length >= 3 && !info.contains('`')).then_some(Fence {
            mark,
            length,
            closes: info.is_empty(),
        })
    };
    text.split_inclusive('\n')
        .map(|text| {
            let begun = start;
            start += text.len();
            Line {
                start: begun,
                text,
                fence: line(text),
            }
        })
        .collect()
}

/// For each line, the longest fence at or behind it that can end a block: of backticks and of tildes. Thereby a fence that nothing ends
/// costs no search.
fn closers(lines: &[Line<'_>]) -> Vec<[usize; 2]> {
    let mut longest = vec![[0; 2]; lines.len() + 1];
    for (at, line) in lines.iter().enumerate().rev() {
        longest[at] = longest[at + 1];
        if let Some(fence) = line.fence.filter(|fence| fence.closes) {
            let of_mark = &mut longest[at][usize::from(fence.mark == '~')];
            *of_mark = fence.length.max(*of_mark);
        }
    }
    longest
}

/// Code between backticks within a line.
fn inline(line: &Line<'_>, spans: &mut Vec<Span>) {
    let mut rest = line.text;
    while let Some(open) = rest.find('`') {
        let marks = rest[open..].len() - rest[open..].trim_start_matches('`').len();
        let inner = &rest[open + marks..];
        let before = rest[..open].chars().next_back();
        let close = inner.find('`').filter(|&close| {
            let closing = inner[close..].len() - inner[close..].trim_start_matches('`').len();
            let after = inner[close + closing..].chars().next();
            let joined = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            closing == marks && !joined(before) && !joined(after) && looks_like_code(&inner[..close])
        });
        let start = line.start + line.text.len() - rest.len() + open;
        rest = match close {
            Some(close) => {
                push(spans, start, start + marks + close + marks, Kind::Code);
                &inner[close + marks..]
            }
            None => inner,
        };
    }
}

/// A single word, or words with signs that prose hasn't: people put backticks around prose too.
fn looks_like_code(inner: &str) -> bool {
    let trimmed = inner.trim();
    let signs = |c: char| "_/\\=<>{}[]()$;|&*+#%^~:-.".contains(c) || c.is_ascii_digit();
    let closing = |c: char| ".:!?,;".contains(c);
    !trimmed.is_empty() && (!trimmed.contains(char::is_whitespace) || trimmed.trim_end_matches(closing).contains(signs))
}

fn push(spans: &mut Vec<Span>, start: usize, end: usize, kind: Kind) {
    spans.push(Span {
        range: start..end,
        kind,
    });
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let mut spans = Vec::new();
        find(text, &mut spans);
        spans.into_iter().map(|span| &text[span.range]).collect()
    }

    #[test]
    fn fences_that_are_closed_and_backticks_around_code() {
        assert_eq!(
            found("You fool:\n```rust\nlet idiot = 1;\n```\nbye"),
            ["```rust\nlet idiot = 1;\n```"]
        );
        assert_eq!(found("~~~\na `b` c\n~~~~\n"), ["~~~\na `b` c\n~~~~"]);
        assert_eq!(
            found("run `kill -9 idiot` or `idiot` now"),
            ["`kill -9 idiot`", "`idiot`"]
        );
        assert_eq!(found("``a`b`` is `x`"), ["`x`"]);
    }

    #[test]
    fn what_is_no_code_is_prose() {
        for text in [
            "```\nyou idiot",
            "`you are an idiot`",
            "it`s an idiot`s thing",
            "` `",
            "``````",
            "`a\nb`",
        ] {
            assert!(found(text).is_empty(), "{text:?}: {:?}", found(text));
        }
    }

    #[test]
    fn a_megabyte_takes_linear_time() {
        for piece in ["```\n", "````a\n", "`", "` a", "`a` ", "~~~x\n```\n", "``a`"] {
            let text = piece.repeat(1_000_000 / piece.len());
            let begun = Instant::now();
            found(&text);
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "{piece:?} took {:?}",
                begun.elapsed()
            );
        }
    }
}
