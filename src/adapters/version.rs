//! How adapters are named.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One version of an adapter, written `name@number`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdapterVersion {
    pub(super) name: String,
    pub(super) number: u32,
}

impl AdapterVersion {
    /// Version `number` of the adapter `name`.
    pub fn new(name: impl Into<String>, number: u32) -> Self {
        Self {
            name: name.into(),
            number,
        }
    }

    /// What the bare base model is called.
    pub fn none() -> Self {
        Self::new("none", 0)
    }

    /// Whether it is the bare base model.
    pub fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version's number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether `wanted` means this version.
    pub fn answers_to(&self, wanted: &AdapterRef) -> bool {
        self.name == wanted.name && wanted.number.is_none_or(|number| number == self.number)
    }
}

impl fmt::Display for AdapterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.number)
    }
}

/// A text that names no version of an adapter.
#[derive(Debug, thiserror::Error)]
#[error("a version of an adapter is written `name@version`")]
pub struct ParseAdapterVersionError;

impl FromStr for AdapterVersion {
    type Err = ParseAdapterVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted: AdapterRef = text.parse().map_err(|_| ParseAdapterVersionError)?;
        let number = wanted.number.ok_or(ParseAdapterVersionError)?;
        Ok(Self::new(wanted.name, number))
    }
}

impl TryFrom<String> for AdapterVersion {
    type Error = ParseAdapterVersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AdapterVersion> for String {
    fn from(version: AdapterVersion) -> Self {
        version.to_string()
    }
}

/// An adapter as a request names it: `name`, or `name@number` for one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRef {
    name: String,
    number: Option<u32>,
}

impl From<&AdapterVersion> for AdapterRef {
    fn from(version: &AdapterVersion) -> Self {
        Self {
            name: version.name.clone(),
            number: Some(version.number),
        }
    }
}

impl AdapterRef {
    /// The name alone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version, where it names one.
    pub fn version(&self) -> Option<AdapterVersion> {
        self.number.map(|number| AdapterVersion::new(&self.name, number))
    }
}

impl fmt::Display for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "{}@{number}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A text that names no adapter.
#[derive(Debug, thiserror::Error)]
#[error("an adapter is written `name` or `name@version`")]
pub struct ParseAdapterRefError;

impl FromStr for AdapterRef {
    type Err = ParseAdapterRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = match text.split_once('@') {
            Some((name, number)) => (name, Some(number.parse().map_err(|_| ParseAdapterRefError)?)),
            None => (text, None),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(ParseAdapterRefError);
        }
        Ok(Self {
            name: name.to_owned(),
            number,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_version() {
        let version = AdapterVersion::new("default", 3);
        for (text, answers) in [
            ("default", true),
            ("default@3", true),
            ("default@2", false),
            ("other", false),
        ] {
            let wanted: AdapterRef = text.parse().unwrap();
            assert_eq!(version.answers_to(&wanted), answers, "{text}");
            assert_eq!(wanted.to_string(), text);
        }
        for text in ["", "@1", "a@", "a@x", "a@-1", "../a", "a b"] {
            assert!(text.parse::<AdapterRef>().is_err(), "{text}");
            assert!(text.parse::<AdapterVersion>().is_err(), "{text}");
        }
        assert!("default".parse::<AdapterVersion>().is_err());
        assert_eq!("default@3".parse::<AdapterVersion>().unwrap(), version);
    }
}
