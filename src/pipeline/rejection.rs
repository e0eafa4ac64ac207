//! Why a candidate can be turned down.

use serde::Serialize;

/// Why a candidate was turned down: the first of these, in this order, that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// It has no words.
    Empty,
    /// It is far longer or shorter than the source.
    Length,
    /// It shows special tokens or control characters.
    Leakage,
    /// It repeats itself.
    Repetition,
    /// It is in another script.
    Script,
    /// An address, a name, a tag or markup is missing, or one is new.
    Protected,
    /// A number is missing, changed, or new.
    Number,
    /// The source asks, it does not.
    Question,
    /// The source denies, it does not.
    Negation,
    /// It is over the threshold.
    Toxic,
    /// It means something else.
    Meaning,
}

impl Rejection {
    /// All of them, to register metrics.
    pub const ALL: [Self; 11] = [
        Self::Empty,
        Self::Length,
        Self::Leakage,
        Self::Repetition,
        Self::Script,
        Self::Protected,
        Self::Number,
        Self::Question,
        Self::Negation,
        Self::Toxic,
        Self::Meaning,
    ];

    /// A stable name, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Length => "length",
            Self::Leakage => "leakage",
            Self::Repetition => "repetition",
            Self::Script => "script",
            Self::Protected => "protected",
            Self::Number => "number",
            Self::Question => "question",
            Self::Negation => "negation",
            Self::Toxic => "toxic",
            Self::Meaning => "meaning",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_are_serialized() {
        for reason in Rejection::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
    }
}
