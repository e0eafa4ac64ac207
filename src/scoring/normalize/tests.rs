use super::*;

fn read(text: &str) -> Vec<Vec<String>> {
    views(text)
        .iter()
        .map(|view| view.words().map(str::to_owned).collect())
        .collect()
}

fn reads_as(text: &str, plain: &str) -> bool {
    let wanted: Vec<&str> = plain.split(' ').collect();
    read(text).iter().any(|view| *view == wanted)
}

#[test]
fn ordinary_text_has_one_view() {
    for text in [
        "It's 10am, see you on the 2nd floor!",
        "A well-known price: $15 (or 20% off 3.5k).",
        "She bought 3 books in 1999; he didn't.",
        "Covid19 came after win10, **really**.",
    ] {
        assert_eq!(read(text).len(), 1, "{text}: {:?}", read(text));
    }
}

#[test]
fn disguises_are_undone() {
    for text in [
        "an 1d10t",
        "an id!ot",
        "an i d i o t",
        "an i.d.i.o.t",
        "an i-d-i-o-t!",
        "an idiooooot",
        "an \u{456}d\u{456}\u{43e}t",
        "an \u{ff49}\u{ff44}\u{ff49}\u{ff4f}\u{ff54}",
        "an id\u{200b}i\u{200d}ot",
        "an i\u{308}di\u{308}o\u{308}t",
        "an |d|ot",
    ] {
        assert!(reads_as(text, "an idiot"), "{text}: {:?}", read(text));
    }
    assert!(reads_as("so $tup1d", "so stupid"));
    assert!(reads_as("a cr@ppy day", "a crappy day"));
    assert!(reads_as("you are a i d i o t", "you are a idiot"));
}

#[test]
fn references_and_letterless_text_have_no_words() {
    assert_eq!(
        read("@someone see https://example.com/idiot, www.x.org or me@mail.example.com"),
        [["see", "or"]]
    );
    assert!(read("12:30 $$$ \u{1f600} ...").is_empty());
    assert!(read("").is_empty());
}

#[test]
fn tokens_point_into_the_text() {
    let text = "Caf\u{e9} i d i o t, \u{ff49}dio\u{200b}t";
    for view in views(text) {
        for token in view.tokens() {
            assert!(
                text.get(token.source.clone()).is_some_and(|s| !s.is_empty()),
                "{token:?}"
            );
        }
    }
    let undisguised = &views(text)[1];
    let sources: Vec<&str> = undisguised.tokens().iter().map(|t| &text[t.source.clone()]).collect();
    assert_eq!(sources, ["Caf\u{e9}", "i d i o t", "\u{ff49}dio\u{200b}t"]);
}

#[test]
fn a_star_stays() {
    assert!(reads_as("what an id*ot", "what an id*ot"));
    assert!(reads_as("this is **really** good", "this is really good"));
}
