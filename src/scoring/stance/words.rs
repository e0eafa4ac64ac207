//! The words that the rules of stance know.

/// Words that are an insult when somebody is called by them, and say nothing bad when that is denied. Swearing is not
/// among them: it is swearing in a denial too.
#[rustfmt::skip]
pub(super) const EPITHETS: &[&str] = &[
    "animal", "animals", "awful", "brainless", "clown", "clowns", "coward", "cowards", "cow", "crazy", "creep",
    "criminal", "criminals", "disgusting", "dumb", "dummies", "dummy", "evil", "fake", "fat", "failure", "filthy",
    "fool", "foolish", "fools", "freak", "freaks", "garbage", "hypocrite", "hypocrites", "idiot", "idiotic",
    "idiots", "ignorant", "imbecile", "incompetent", "inferior", "insane", "lazy", "liar", "liars", "loser",
    "losers", "lunatic", "mad", "monster", "monsters", "moron", "moronic", "morons", "nasty", "nazi", "nazis",
    "nuts", "pathetic", "pig", "pigs", "psycho", "racist", "racists", "rat", "rats", "retard", "retarded", "rubbish",
    "scum", "sick", "silly", "slow", "stupid", "stupidity", "subhuman", "terrible", "terrorist", "terrorists",
    "thief", "thieves", "trash", "troll", "trolls", "ugly", "useless", "vermin", "weak", "worthless",
];

/// What denies, beside all that ends in "n't".
#[rustfmt::skip]
pub(super) const DENIALS: &[&str] = &[
    "aint", "arent", "didnt", "doesnt", "dont", "havent", "isnt", "never", "no", "nobody", "none", "not", "wasnt",
    "werent", "without", "wouldnt",
];

/// Between a denial and an epithet: then it is not the epithet that is denied ("I don't like fools", "not just a fool").
#[rustfmt::skip]
pub(super) const NOT_DENYING: &[&str] = &[
    "act", "acting", "and", "because", "be", "being", "believe", "but", "care", "either", "even", "ever", "everyone",
    "get", "give", "hate", "have", "heard", "help", "how", "if", "just", "know", "let", "like", "listen", "longer",
    "mean", "merely", "met", "more", "need", "only", "or", "pretend", "respect", "seen", "simply", "since", "so",
    "stand", "such", "surprised", "talk", "than", "trust", "understand", "unless", "until", "wait", "want", "when",
    "wonder", "why", "with", "you're", "youre",
];

/// They may follow a denial all the same.
#[rustfmt::skip]
pub(super) const AFTER_DENIAL: &[&str] = &[
    "feel like", "such thing", "one should", "one deserves",
];

/// To call somebody something.
#[rustfmt::skip]
pub(super) const CALLING: &[&str] = &[
    "brand", "branded", "branding", "call", "called", "calling", "calls", "label", "labeled", "labelled", "labels",
];

/// To say, of others.
#[rustfmt::skip]
pub(super) const SAYING: &[&str] = &[
    "claim", "claimed", "claims", "insisted", "say", "saying", "says", "said", "tell", "telling", "tells", "think",
    "thinks", "thought", "told",
];

/// Words between saying and what is said.
#[rustfmt::skip]
pub(super) const SAID_TO: &[&str] = &[
    "all", "me", "us", "him", "her", "them", "people", "everyone", "that",
];

/// Outside of quotation marks: what is within is reported, or spoken of.
#[rustfmt::skip]
pub(super) const REPORTING: &[&str] = &[
    "book", "call", "called", "calling", "calls", "chanted", "chanting", "comment", "comments", "defines",
    "graffiti", "headline", "insult", "labelled", "lyrics", "means", "message", "phrase", "quote", "quoted", "read",
    "reads", "said", "saying", "says", "screamed", "shouted", "shouting", "shouts", "sign", "slogan", "slur", "song",
    "term", "title", "titled", "told", "tweet", "tweeted", "word", "words", "write", "writes", "wrote", "yelled",
    "yelling", "yells", "something", "replied", "muttered", "printed", "sprayed", "painted", "caption",
];

/// What is reported is shared.
#[rustfmt::skip]
pub(super) const ENDORSING: &[&str] = &[
    "agree", "correct", "deserve", "deserved", "deserves", "exactly", "indeed", "one", "right", "true",
];

/// "I am …", in one or two words.
#[rustfmt::skip]
pub(super) const SELF: &[&str] = &[
    "i am", "i feel", "i felt", "i'm", "i must", "i was", "im", "me feel", "we are", "we felt", "we were", "we're",
    "i look", "i looked",
];

/// Behind "I am": then it is others who are spoken of.
#[rustfmt::skip]
pub(super) const OF_OTHERS: &[&str] = &[
    "about", "against", "around", "as", "at", "because", "being", "by", "calling", "dealing", "for", "from", "he",
    "how", "if", "not", "of", "saying", "she", "sorry", "surrounded", "sure", "talking", "that", "they", "this",
    "to", "with", "you", "your", "you're",
];

/// A word that is harmless next to others: what it means there has another name than the insult.
pub(super) struct Sense {
    pub words: &'static [&'static str],
    pub beside: &'static [&'static str],
}

/// Senses of technical and medical language, and of animals.
#[rustfmt::skip]
pub(super) const SENSES: &[Sense] = &[
    Sense {
        words: &[
            "retard", "retarded", "retardant", "retards", "retardation",
        ],
        beside: &[
            "growth", "bacteria", "corrosion", "development", "flame", "fire", "ignition", "spark", "timing", "bone",
            "potential", "evaporation", "setting", "foetal", "fetal", "combustion", "spread",
        ],
    },
    Sense {
        words: &[
            "garbage", "trash", "rubbish",
        ],
        beside: &[
            "can", "cans", "bag", "bags", "bin", "bins", "truck", "collector", "collection", "collected", "disposal",
            "day", "out", "compactor", "heap",
        ],
    },
    Sense {
        words: &[
            "dumb", "dummy", "idiot",
        ],
        beside: &[
            "terminal", "terminals", "variable", "variables", "crash", "proof", "waiter", "waiters", "bell", "bells",
            "load", "phone", "phones", "lights", "data", "switch",
        ],
    },
    Sense {
        words: &[
            "bitch", "bitches",
        ],
        beside: &[
            "puppies", "puppy", "pups", "litter", "breeder", "breeders", "birth", "whelped", "kennel", "dog",
            "spayed", "pedigree", "labrador", "terrier", "spaniel", "hound",
        ],
    },
    Sense {
        words: &[
            "ass", "asses",
        ],
        beside: &[
            "donkey", "donkeys", "wild", "mule", "horse", "african", "asiatic", "foal",
        ],
    },
    Sense {
        words: &[
            "cock", "cocks", "cocked", "cocking",
        ],
        beside: &[
            "gun", "guns", "hammer", "pistol", "rifle", "revolver", "trigger", "hen", "hens", "bantam", "rooster",
            "crowed", "head", "ear", "eyebrow", "ball", "fighting",
        ],
    },
    Sense {
        words: &[
            "dick",
        ],
        beside: &[
            "tom", "harry", "moby", "cheney", "tracy", "grayson", "whittington",
        ],
    },
    Sense {
        words: &[
            "tit", "tits", "boobies", "booby", "shag", "shags",
        ],
        beside: &[
            "blue", "great", "coal", "bird", "birds", "feeder", "nest", "nests", "nesting", "footed", "trap",
            "trapped", "prize", "cormorant", "cormorants", "carpet", "marsh", "bearded",
        ],
    },
    Sense {
        words: &[
            "slave", "slaves",
        ],
        beside: &[
            "master", "masters", "clock", "bus", "node", "nodes", "device", "devices", "database", "replica",
            "cylinder", "trade", "spi", "register", "traders",
        ],
    },
    Sense {
        words: &[
            "kill", "kills", "killed", "killing", "abort", "aborts", "aborted", "execute", "hang", "hangs",
        ],
        beside: &[
            "process", "processes", "thread", "threads", "signal", "switch", "server", "job", "jobs", "child",
            "daemon", "script", "timeout", "session", "container", "weeds", "bacteria", "germs", "engine", "command",
            "pod", "pods", "task", "tasks",
        ],
    },
    Sense {
        words: &[
            "faggot", "faggots",
        ],
        beside: &[
            "gravy", "peas", "meatballs", "wood", "sticks", "firewood", "bundle", "bundles", "oven",
        ],
    },
    Sense {
        words: &[
            "dyke", "dykes",
        ],
        beside: &[
            "sea", "flood", "floods", "water", "river", "dutch", "bikes", "basalt", "ditch", "polder", "volcanic",
        ],
    },
    Sense {
        words: &[
            "spastic",
        ],
        beside: &[
            "colon", "muscle", "muscles", "paralysis", "diplegia", "gait", "palsy", "hemiplegia", "bladder",
        ],
    },
    Sense {
        words: &[
            "nuts", "nut", "screw", "screws", "screwed", "screwing",
        ],
        beside: &[
            "bolt", "bolts", "washer", "washers", "driver", "thread", "wood", "board", "loose", "bracket", "plate",
            "lid", "cap", "wall", "tight", "tighten",
        ],
    },
    Sense {
        words: &[
            "hooker", "prop",
        ],
        beside: &[
            "rugby", "scrum", "lineout", "row", "try",
        ],
    },
    Sense {
        words: &[
            "hoe", "hoes", "rake",
        ],
        beside: &[
            "garden", "soil", "weeds", "rake", "spade", "shovel", "beds",
        ],
    },
    Sense {
        words: &[
            "pussy",
        ],
        beside: &[
            "willow", "willows", "cat", "boots",
        ],
    },
    Sense {
        words: &[
            "anal", "anus", "rectal", "penis", "vagina", "vaginal", "semen", "sperm", "nipple", "nipples", "breast",
            "breasts", "scrotum", "testicles",
        ],
        beside: &[
            "patient", "patients", "bleeding", "fissure", "sphincter", "cancer", "exam", "examination", "infection",
            "doctor", "surgeon", "symptoms", "treatment", "discharge", "pain", "count", "sample", "screening",
            "swab", "gland", "feeding", "nurse", "tumour", "tumor", "surgery", "biopsy", "antibiotics", "ultrasound",
        ],
    },
    Sense {
        words: &[
            "crackers", "cracker", "queer", "bastard", "crap", "craps",
        ],
        beside: &[
            "cheese", "soup", "theory", "studies", "file", "title", "table", "dice",
        ],
    },
];
