//! Sentences of our own in pairs of kinds: what is said to or of people to hurt them, and what looks like it and doesn't.
//!
//! Collected posts have few insults that are rare words, and few harmless sentences with words that are mostly used to insult; a
//! model of n-grams takes both for what surrounds them. [`hurtful`] and [`harmless`] add them from templates.

use super::groups;

const NOUNS: [&str; 40] = [
    "idiot",
    "moron",
    "imbecile",
    "halfwit",
    "airhead",
    "dimwit",
    "nitwit",
    "numbskull",
    "loser",
    "weasel",
    "scumbag",
    "lowlife",
    "clown",
    "buffoon",
    "bigot",
    "psycho",
    "lunatic",
    "coward",
    "snob",
    "brat",
    "creep",
    "parasite",
    "leech",
    "crook",
    "hypocrite",
    "fraud",
    "liar",
    "pig",
    "cow",
    "rat",
    "snake",
    "maggot",
    "goon",
    "nutcase",
    "bully",
    "fool",
    "freak",
    "douche",
    "dumbass",
    "hag",
];

const ADJECTIVES: [&str; 24] = [
    "stupid",
    "dumb",
    "pathetic",
    "worthless",
    "disgusting",
    "ignorant",
    "brainless",
    "spineless",
    "clueless",
    "lying",
    "corrupt",
    "degenerate",
    "deranged",
    "filthy",
    "gutless",
    "lazy",
    "rotten",
    "vile",
    "useless",
    "ugly",
    "fat",
    "crazy",
    "retarded",
    "smelly",
];

const TO_ONE: [&str; 12] = [
    "you {a} {n}",
    "You are a {a} {n}.",
    "what a {a} {n} you are",
    "I hate you, {n}.",
    "he is nothing but a {a} {n}",
    "she is such a {n} , so {a}",
    "shut up , {n}",
    "go away you {a} {n} !",
    "What is wrong with this {a} {n}?",
    "only a {n} would say that , you are {a}",
    "this {a} {n} again",
    "haha , {n} !",
];

const TO_MANY: [&str; 8] = [
    "{} are {a}.",
    "all {} are {a} {n}s",
    "I hate {}, they are {a}.",
    "{} should get out of our country , {a} {n}s",
    "{} ruin everything, the {a} {n}s",
    "no wonder nobody likes {}",
    "{} are {n}s",
    "get rid of all {}",
];

const THREATS: [&str; 16] = [
    "I will kill you.",
    "I will find you and hurt you.",
    "i am going to beat you up",
    "I'll break your legs.",
    "someone should shoot him",
    "they should all be hanged",
    "I hope you die.",
    "i hope you get hit by a bus",
    "you deserve to be beaten",
    "Go jump off a bridge.",
    "nobody would miss you if you were dead",
    "the world would be better without you",
    "We will burn your house down.",
    "you had better watch your back tonight",
    "somebody ought to lock you up and throw away the key",
    "drop dead",
];

const OF_GROUPS: [&str; 14] = [
    "Hatred against {} has no place here.",
    "Nobody should be insulted because they live with {}.",
    "Violence against {} must end.",
    "{} earn less than others, the report says.",
    "We stand with {}.",
    "Jokes about {} are not funny.",
    "{} and their children came to the party.",
    "The attack on {} was condemned by everyone.",
    "Stop blaming {} for everything.",
    "Equal pay for {} is overdue.",
    "A group for {} meets on Tuesdays.",
    "The film shows how {} were treated in the past.",
    "Friends, neighbours, {} and tourists sat at one table.",
    "My church helps {} to find work.",
];

const IN_OTHER_SENSES: [&str; 20] = [
    "The garbage is collected on Tuesdays.",
    "Growth of the plants was retarded by the cold.",
    "A fire retardant was sprayed on the roof.",
    "The bitch and her puppies are healthy.",
    "Wild asses live in the desert.",
    "The rooster is a cock, the female a hen.",
    "The killed process left a lock file.",
    "The abortion law was debated in parliament.",
    "Sexual health is taught in year nine.",
    "The patient has a rash on the penis.",
    "Breast cancer screening starts at fifty.",
    "The bomb disposal unit arrived in time.",
    "The shot was blocked by the goalkeeper.",
    "He was killed in a car accident.",
    "The slave trade was abolished in 1807.",
    "The Nazis invaded Poland in 1939.",
    "The holocaust museum opens at nine.",
    "The trial of the rapist begins in May.",
    "Domestic violence was reported to the police.",
    "The terrorist attack was condemned by all parties.",
];

/// Toxic sentences.
pub fn hurtful() -> Vec<String> {
    let fill = |template: &str, at: usize| {
        template
            .replace("{a}", ADJECTIVES[at % ADJECTIVES.len()])
            .replace("{n}", NOUNS[at % NOUNS.len()])
            .replace("{}", groups::PLURALS[at % groups::PLURALS.len()])
    };
    // Steps without a common divisor, so that words meet in many pairs.
    let to_one = TO_ONE
        .iter()
        .enumerate()
        .flat_map(|(row, template)| (0..NOUNS.len()).map(move |at| fill(template, at * 7 + row * 11)));
    let to_many = TO_MANY
        .iter()
        .enumerate()
        .flat_map(|(row, template)| (0..groups::PLURALS.len()).map(move |at| fill(template, at * 5 + row * 13)));
    to_one.chain(to_many).chain(THREATS.map(str::to_owned)).collect()
}

/// Sentences that are not.
pub fn harmless() -> Vec<String> {
    let of_groups = OF_GROUPS
        .iter()
        .flat_map(|template| groups::PLURALS.iter().map(move |group| template.replace("{}", group)));
    of_groups.chain(IN_OTHER_SENSES.map(str::to_owned)).collect()
}
