//! Stretches of a text that are never touched: code, quotes, link targets, addresses, names of
//! accounts, tags, character references, and numbers with their units.

use std::ops::Range;
use std::sync::LazyLock;

use pulldown_cmark::{Event, LinkType, Options as Extensions, Parser, Tag, TagEnd};
use regex::Regex;

use super::code;
use super::options::Format;

/// What a protected stretch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A fenced or indented block of code.
    CodeBlock,
    /// A block quote: somebody else's words.
    Quote,
    /// A block of HTML.
    HtmlBlock,
    /// Other structure of a document: link definitions, the rules and bars of a table.
    Markup,
    /// Code within a line.
    Code,
    /// An HTML tag within a line.
    Html,
    /// An image, with its text and target.
    Image,
    /// The brackets and the target of a link; its text is not protected.
    Link,
    /// A web address.
    Url,
    /// A mail address.
    Email,
    /// `@name`.
    Mention,
    /// `#tag`.
    Tag,
    /// `&amp;` or `&#128514;`, or several in a row, where no letters adjoin.
    CharacterReference,
    /// A number with its currency or unit.
    Number,
}

impl Kind {
    /// Whether it interrupts the prose around it, so that no sentence reaches over it.
    pub fn is_block(self) -> bool {
        matches!(self, Self::CodeBlock | Self::Quote | Self::HtmlBlock | Self::Markup)
    }

    /// Whether it is language at all, so that a toxicity can be told.
    pub fn is_language(self) -> bool {
        matches!(
            self,
            Self::Quote | Self::HtmlBlock | Self::Mention | Self::Tag | Self::CharacterReference | Self::Number
        )
    }
}

/// A protected stretch, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Where it is.
    pub range: Range<usize>,
    /// What it is.
    pub kind: Kind,
}

/// All protected stretches of a text, in order, none overlapping another.
pub fn find(text: &str, format: Format) -> Vec<Span> {
    let mut spans = Vec::new();
    match format {
        Format::Markdown => markdown(text, &mut spans),
        Format::Plain => code::find(text, &mut spans),
    }
    plain(text, &mut spans);
    flatten(spans)
}

/// The spans that lie within `range`, in bytes from its start.
pub fn within(spans: &[Span], range: &Range<usize>) -> Vec<Span> {
    let first = spans.partition_point(|span| span.range.start < range.start);
    spans[first..]
        .iter()
        .take_while(|span| span.range.start < range.end)
        .filter(|span| span.range.end <= range.end)
        .map(|span| Span {
            range: span.range.start - range.start..span.range.end - range.start,
            kind: span.kind,
        })
        .collect()
}

/// The numbers of a text as they are compared: without spaces, in lower case, sorted.
pub fn numbers(text: &str) -> Vec<String> {
    let mut numbers: Vec<String> = find(text, Format::Plain)
        .iter()
        .filter(|span| span.kind == Kind::Number)
        .map(|span| {
            text[span.range.clone()]
                .chars()
                .filter(|c| !c.is_whitespace())
                .flat_map(char::to_lowercase)
                .collect()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Compiles a pattern that is a constant of this program.
pub(super) fn pattern(source: &'static str) -> Regex {
    match Regex::new(source) {
        Ok(regex) => regex,
        Err(error) => unreachable!("a constant pattern does not compile: {error}"),
    }
}

static URL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r#"(?i)\b(?:https?|ftp)://[^\s<>"]+|\bwww\.[^\s<>"]+"#,
        r#"|\b[a-z0-9][a-z0-9.-]*\.(?:com|org|net|edu|gov|io)\b(?:/[^\s<>"]*)?"#
    ))
});
static EMAIL: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"));
static MENTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:^|[^\w@])(@\w+)"));
static TAG: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:^|[^\w#&])(#\w+)"));
/// Not those of letters and digits of English: they are a disguise.
static CHARACTER_REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?:&(?:#(?:12[89]|1[3-9][0-9]|[2-9][0-9]{2}|[1-9][0-9]{3,6})|#[xX][1-9a-fA-F][0-9a-fA-F]{2,5}|amp|lt|gt|quot|apos|nbsp|hellip|mdash|ndash|[lr][sd]quo);)+",
    )
});
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"(?i)(?:[$€£¥₹]\s?)?\d+(?:[.,:/]\d+)*",
        r"(?:\s?(?:%|‰|°\s?[cf]?\b|[€£¥₹])",
        r"|(?:st|nd|rd|th|s|x|k|m|g|b|bn)\b",
        r"|\s?(?:mm|cm|km|mg|kg|lbs?|oz|ml|ft|mph|kmh|hz|khz|mhz|ghz|kb|mb|gb|tb|kwh?|usd|eur|gbp|am|pm|ms|hrs?|mins?|secs?)\b)?"
    ))
});

/// Whether a stretch of a text is no part of a word: no letter, no digit and no underscore adjoins it.
pub(super) fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let before = text.get(..range.start).and_then(|before| before.chars().next_back());
    let after = text.get(range.end..).and_then(|after| after.chars().next());
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    ![before, after].into_iter().flatten().any(joins)
}

/// What a plain text has.
fn plain(text: &str, spans: &mut Vec<Span>) {
    // Closing punctuation after an address is the sentence's, not the address's.
    let closers = |c: char| ".,;:!?'\")]}*_".contains(c);
    for found in URL.find_iter(text) {
        let length = found.as_str().trim_end_matches(closers).len();
        push(spans, found.start()..found.start() + length, Kind::Url);
    }
    for found in EMAIL.find_iter(text) {
        push(spans, found.range(), Kind::Email);
    }
    for (regex, kind) in [(&MENTION, Kind::Mention), (&TAG, Kind::Tag)] {
        for found in regex.captures_iter(text).filter_map(|c| c.get(1)) {
            push(spans, found.range(), kind);
        }
    }
    // Within a word they are spelling ("str8", "2day"), nothing by themselves.
    for (regex, kind) in [
        (&CHARACTER_REFERENCE, Kind::CharacterReference),
        (&NUMBER, Kind::Number),
    ] {
        let alone = regex.find_iter(text).filter(|found| stands_alone(text, &found.range()));
        for found in alone {
            push(spans, found.range(), kind);
        }
    }
}

/// What a Markdown text has besides.
fn markdown(text: &str, spans: &mut Vec<Span>) {
    let parser = Parser::new_ext(text, Extensions::ENABLE_TABLES);
    for (_, definition) in parser.reference_definitions().iter() {
        push(spans, definition.span.clone(), Kind::Markup);
    }
    // Open links with the range of what they hold, and where the last table cell ended.
    let mut links: Vec<(Range<usize>, Option<Range<usize>>)> = Vec::new();
    let mut table = 0;
    for (event, range) in parser.into_offset_iter() {
        if let Some((_, held)) = links.last_mut()
            && !matches!(event, Event::End(_))
        {
            let held = held.get_or_insert_with(|| range.clone());
            held.end = held.end.max(range.end);
        }
        match event {
            Event::Start(Tag::CodeBlock(_)) => push(spans, range, Kind::CodeBlock),
            Event::Start(Tag::BlockQuote(_)) => push(spans, range, Kind::Quote),
            Event::Start(Tag::HtmlBlock) => push(spans, range, Kind::HtmlBlock),
            Event::Start(Tag::Image { .. }) => push(spans, range, Kind::Image),
            Event::Code(_) => push(spans, range, Kind::Code),
            Event::InlineHtml(_) => push(spans, range, Kind::Html),
            Event::Start(Tag::Link { link_type, .. }) => match link_type {
                LinkType::Inline | LinkType::Reference => links.push((range, None)),
                _ => push(spans, range, Kind::Url),
            },
            Event::End(TagEnd::Link) if links.last().is_some_and(|(link, _)| *link == range) => {
                if let Some((link, held)) = links.pop() {
                    let held = held.unwrap_or(link.start..link.start);
                    push(spans, link.start..held.start, Kind::Link);
                    push(spans, held.end..link.end, Kind::Link);
                }
            }
            Event::Start(Tag::Table(_)) => table = range.start,
            Event::Start(Tag::TableCell) => {
                push(spans, table..range.start, Kind::Markup);
                table = range.end;
            }
            Event::End(TagEnd::Table) => push(spans, table..range.end, Kind::Markup),
            _ => {}
        }
    }
}

fn push(spans: &mut Vec<Span>, range: Range<usize>, kind: Kind) {
    if range.start < range.end {
        spans.push(Span { range, kind });
    }
}

/// Sorts the spans and resolves overlaps: the outer one swallows the inner one, and of two that
/// cross the first grows over the second.
fn flatten(mut spans: Vec<Span>) -> Vec<Span> {
    // Stable: what begins and ends together keeps the kind that was found first.
    spans.sort_by_key(|span| (span.range.start, usize::MAX - span.range.end));
    let mut flat: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match flat.last_mut() {
            Some(last) if span.range.start < last.range.end => {
                last.range.end = last.range.end.max(span.range.end);
            }
            _ => flat.push(span),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(text: &str, format: Format) -> Vec<(&str, Kind)> {
        find(text, format)
            .into_iter()
            .map(|span| (&text[span.range], span.kind))
            .collect()
    }

    #[test]
    fn addresses_names_and_numbers() {
        assert_eq!(
            found(
                "See https://a.example/b?c=1. Ask @Bob_1 or me@x.org (www.y.net) about #Rust!",
                Format::Plain
            ),
            vec![
                ("https://a.example/b?c=1", Kind::Url),
                ("@Bob_1", Kind::Mention),
                ("me@x.org", Kind::Email),
                ("www.y.net", Kind::Url),
                ("#Rust", Kind::Tag),
            ]
        );
        assert_eq!(
            found(
                "It cost $4.50, 10 % off, at 12:30 pm, 5 minutes, 3rd, str8",
                Format::Plain
            ),
            ["$4.50", "10 %", "12:30 pm", "5", "3rd"].map(|n| (n, Kind::Number))
        );
    }

    #[test]
    fn character_references_that_stand_by_themselves() {
        assert_eq!(
            found(
                "salt &amp; pepper &#128514;&#x1F602; &#105; &#00105; R&amp;B b&#257;d &no; 5",
                Format::Plain
            ),
            vec![
                ("&amp;", Kind::CharacterReference),
                ("&#128514;&#x1F602;", Kind::CharacterReference),
                ("105", Kind::Number),
                ("00105", Kind::Number),
                ("257", Kind::Number),
                ("5", Kind::Number),
            ]
        );
    }

    #[test]
    fn numbers_compare_without_spacing() {
        assert_eq!(numbers("about 10 KM and 7"), numbers("7 and 10km"));
        assert_ne!(numbers("7"), numbers("7 7"));
    }

    #[test]
    fn markdown_structure() {
        let text = "Use `rm x` [here, fool](http://a.b/c \"t\") <b>now</b>.\n\n> you idiot\n\n```\nstupid\n```\n\n[r]: http://z.y\n";
        assert_eq!(
            found(text, Format::Markdown),
            vec![
                ("`rm x`", Kind::Code),
                ("[", Kind::Link),
                ("](http://a.b/c \"t\")", Kind::Link),
                ("<b>", Kind::Html),
                ("</b>", Kind::Html),
                ("> you idiot\n", Kind::Quote),
                ("```\nstupid\n```", Kind::CodeBlock),
                ("[r]: http://z.y", Kind::Markup),
            ]
        );
    }

    #[test]
    fn the_cells_of_a_table_are_free() {
        let text = "| a | b |\n|---|---|\n| you fool | x |\n";
        let spans = find(text, Format::Markdown);
        let free = |needle: &str| {
            let at = text.find(needle).unwrap();
            !spans.iter().any(|span| span.range.contains(&at))
        };
        assert!(free("you fool"));
        assert!(!free("---"));
        assert!(!free("| x"));
    }

    #[test]
    fn the_text_of_a_link_is_free_and_its_markup_is_not() {
        let text = "[**bold** fool](x)";
        assert_eq!(
            found(text, Format::Markdown),
            vec![("[", Kind::Link), ("](x)", Kind::Link)]
        );
    }

    proptest! {
        #[test]
        fn spans_are_sorted_apart_and_on_boundaries(text in "(\\PC|[\\[\\]()`>@#|\n.0-9a<-]){0,60}") {
            for format in [Format::Plain, Format::Markdown] {
                let mut last = 0;
                for span in find(&text, format) {
                    prop_assert!(span.range.start >= last && span.range.start < span.range.end);
                    prop_assert!(text.get(span.range.clone()).is_some());
                    last = span.range.end;
                }
            }
        }
    }
}
