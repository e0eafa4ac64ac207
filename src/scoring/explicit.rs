//! Insults that have no other use.
//!
//! A model of n-grams weighs what all words of a text say together, so in a long sentence one such word goes under, and a rare one it never saw.
//! Wherever one of these stands, the text is not harmless.

use super::normalize::View;

/// In lower case and in order. No word that is also a thing, a name or mere swearing.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "arsehole", "arseholes", "asshat", "asshats", "asshole", "assholes", "asswipe", "asswipes", "bellend", "bellends", "cunt", "cunts", "dickhead",
    "dickheads", "dipshit", "dipshits", "douchebag", "douchebags", "dumbass", "dumbasses", "dumbfuck", "dumbfucks", "fuckface", "fuckhead", "fuckheads",
    "fucktard", "fucktards", "fuckwit", "fuckwits", "halfwit", "halfwits", "jackass", "jackasses", "lardass", "motherfucker", "motherfuckers", "nitwit",
    "nitwits", "numpty", "pillock", "pillocks", "plonker", "plonkers", "scumbag", "scumbags", "shitface", "shithead", "shitheads", "skank", "skanks",
    "sleazebag", "sleazebags", "sleazeball", "slut", "sluts", "stfu", "tosser", "tossers", "twat", "twats", "wanker", "wankers",
];

/// The places of such words among the tokens of a reading.
pub(super) fn insults(view: &View) -> impl Iterator<Item = usize> {
    let places = view.words().enumerate();
    places.filter_map(|(at, word)| WORDS.binary_search(&word).is_ok().then_some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::ToxicityScorer;
    use crate::scoring::normalize::views;

    #[test]
    fn the_list_can_be_searched() {
        assert!(WORDS.is_sorted());
        let found = |text: &str| insults(&views(text)[0]).collect::<Vec<_>>();
        assert_eq!(found("You plonker, that was the shuttlecock, plonker!"), [1, 6]);
        assert_eq!(found("A jack of all trades"), [0; 0]);
    }

    #[test]
    fn a_long_sentence_does_not_hide_one() {
        let scorer = ToxicityScorer::embedded().expect("the embedded scorer loads");
        let long = "someone please write back to me when that jackass from the second floor has sent his report on the new shelves";
        for (text, toxic) in [
            (long, true),
            (&*long.replace("jackass", "j@ckass"), true),
            (&*long.replace("jackass", "man"), false),
            ("What a plonker, honestly.", true),
        ] {
            assert_eq!(scorer.score(text) > 0.5, toxic, "{text}: {}", scorer.score(text));
        }
        let words = scorer.attributions(long);
        let worst = words.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        assert_eq!(worst.map(|(range, _)| &long[range.clone()]), Some("jackass"));
    }
}
