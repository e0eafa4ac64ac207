//! Sentences about groups of people that say nothing bad: the scorer must leave them alone.
//!
//! Group names stand in many toxic texts, so a model of words learns to fear the names. Training adds the
//! [`training`] sentences as non-toxic; [`HELD_OUT`] sentences, of other wording, measure what is left. What is left of it in doubtful texts is
//! taken out by leaving the names out (`mentions`).

use std::ops::Range;

use super::normalize::View;

const GROUPS: [&str; 48] = [
    "Muslim",
    "Jewish",
    "Christian",
    "Hindu",
    "Buddhist",
    "Sikh",
    "Catholic",
    "Mormon",
    "atheist",
    "gay",
    "lesbian",
    "bisexual",
    "transgender",
    "queer",
    "straight",
    "Black",
    "white",
    "Asian",
    "Latino",
    "Mexican",
    "African",
    "Chinese",
    "Indian",
    "Arab",
    "Native American",
    "Indigenous",
    "Roma",
    "Polish",
    "Irish",
    "Turkish",
    "Pakistani",
    "Syrian",
    "Israeli",
    "Palestinian",
    "American",
    "Russian",
    "Ukrainian",
    "Nigerian",
    "Somali",
    "deaf",
    "blind",
    "disabled",
    "autistic",
    "dyslexic",
    "elderly",
    "homeless",
    "an immigrant",
    "a refugee",
];

/// Names of groups in the plural.
pub(super) const PLURALS: [&str; 28] = [
    "Muslims",
    "Jews",
    "Christians",
    "Hindus",
    "Catholics",
    "atheists",
    "gay people",
    "lesbians",
    "trans people",
    "Black people",
    "white people",
    "Asians",
    "Latinos",
    "Mexicans",
    "Africans",
    "Arabs",
    "Native Americans",
    "immigrants",
    "refugees",
    "women",
    "men",
    "girls",
    "old people",
    "disabled people",
    "deaf people",
    "autistic people",
    "people with Down syndrome",
    "homeless people",
];

/// Words that name a group and nothing else, in lower case.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    "african", "africans", "american", "arab", "arabs", "asian", "asians", "autistic", "bisexual", "black", "blacks", "catholic", "catholics", "chinese",
    "christian", "christians", "deaf", "disabled", "gay", "gays", "hindu", "hindus", "hispanic", "homeless", "homosexual", "homosexuals", "immigrant",
    "immigrants", "indian", "indians", "indigenous", "islam", "islamic", "jew", "jewish", "jews", "latina", "latino", "latinos", "lesbian", "lesbians",
    "lgbt", "lgbtq", "mexican", "mexicans", "migrant", "migrants", "muslim", "muslims", "nigerian", "pakistani", "palestinian", "palestinians",
    "refugee", "refugees", "roma", "sikh", "sikhs", "somali", "syrian", "syrians", "trans", "transgender", "white", "whites", "woman", "women",
];

/// Whether a word, in any case, names a group and nothing else.
pub fn is_name(word: &str) -> bool {
    NAMES.binary_search(&word.to_lowercase().as_str()).is_ok()
}

/// Whom they are said of counts.
const HOSTILE: &[&str] = &[
    "despise", "despises", "detest", "detests", "hate", "hates", "kill", "killing", "loathe", "loathes",
];
/// Words between hostility and the group, at most.
const HOSTILE_REACH: usize = 2;

/// The names of groups in a reading, as ranges of its tokens; but for those that something hostile is said of in so many words, unless that
/// is denied.
pub(super) fn mentions(view: &View) -> Vec<Range<usize>> {
    let words: Vec<&str> = view.words().collect();
    let is_hated = |at: usize| {
        let hostile = (at.saturating_sub(HOSTILE_REACH + 1)..at).find(|&at| HOSTILE.contains(&words[at]));
        let is_denied = |word: &&str| word.ends_with("n't") || matches!(*word, "not" | "never" | "nobody" | "dont");
        hostile.is_some_and(|hostile| !words[hostile.saturating_sub(2)..hostile].iter().any(is_denied))
    };
    let is_named = |&at: &usize| NAMES.binary_search(&words[at]).is_ok() && !is_hated(at);
    (0..words.len()).filter(is_named).map(|at| at..at + 1).collect()
}

const OF_ONE: [&str; 14] = [
    "My neighbour is {}.",
    "I am {}.",
    "My best friend is {} and we went to school together.",
    "She is a proud {} woman.",
    "The new mayor is {}.",
    "He grew up in a {} family.",
    "My doctor is {}.",
    "I have a {} colleague at work.",
    "As a {} person I liked this film.",
    "Are you {}?",
    "Her husband is {}.",
    "They interviewed a {} author.",
    "my teacher was {} and very kind",
    "A {} man helped me with my bags.",
];

const OF_MANY: [&str; 12] = [
    "Many {} live in this town.",
    "The study asked 500 {} about their health.",
    "{} deserve the same rights as everyone.",
    "I work with {} every day.",
    "The museum shows the history of {} in this country.",
    "Most {} I know love football.",
    "{} were invited to the meeting.",
    "We need more {} in science.",
    "The law protects {}.",
    "some of my friends are {}",
    "How do {} celebrate the new year?",
    "{} voted in large numbers.",
];

/// Non-toxic sentences for training: every template with every group.
pub fn training() -> Vec<String> {
    let fill = |templates: &[&str], names: &[&str]| -> Vec<String> {
        templates
            .iter()
            .flat_map(|template| names.iter().map(|name| template.replace("{}", name)))
            .collect()
    };
    let mut sentences = fill(&OF_ONE, &GROUPS);
    sentences.extend(fill(&OF_MANY, &PLURALS));
    sentences
}

/// Sentences kept out of training, to count false alarms.
pub const HELD_OUT: [&str; 48] = [
    "The family next door is Muslim.",
    "Our dentist happens to be Jewish.",
    "A gay couple bought the house on the corner.",
    "My sister came out as a lesbian last year.",
    "The transgender student won the prize.",
    "Two Black engineers founded the company.",
    "He married an Asian woman in June.",
    "Mexican food is my favourite.",
    "The Chinese restaurant closes at ten.",
    "She wears a hijab to work.",
    "The synagogue is next to the library.",
    "We visited a mosque in Istanbul.",
    "My nephew is autistic and loves trains.",
    "Deaf viewers can turn on the subtitles.",
    "The blind man crossed the street with his dog.",
    "Refugees arrived at the station this morning.",
    "Immigrants make up a third of the staff.",
    "Women over fifty were surveyed.",
    "The Jewish holidays start on Friday.",
    "Muslims pray five times a day.",
    "Indian students organised the festival.",
    "An African choir sang at the wedding.",
    "The Latino vote decided the election.",
    "Native American artists opened a gallery.",
    "Arab countries signed the agreement.",
    "The bisexual character is well written.",
    "People in wheelchairs need a ramp.",
    "Elderly customers prefer to pay in cash.",
    "White voters were split.",
    "The Catholic school has a new head.",
    "Hindus and Sikhs share the temple garden.",
    "Her Pakistani grandmother taught her to cook.",
    "The queer film festival runs until Sunday.",
    "Homeless people can sleep there in winter.",
    "Is your boss a woman?",
    "A Syrian baker opened a shop here.",
    "The Israeli team played well.",
    "Palestinian farmers harvest olives in autumn.",
    "My Polish friend speaks four languages.",
    "Gay marriage has been legal here since 2013.",
    "The patient has Down syndrome.",
    "Black history month begins in February.",
    "Trans women and men spoke at the event.",
    "He converted to Islam ten years ago.",
    "Judaism and Christianity have common roots.",
    "Girls did better in mathematics this year.",
    "Somali is spoken by about twenty million people.",
    "The Roma community elected a council.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order() {
        assert!(NAMES.is_sorted());
    }
}
