//! What people write for a model of a hub.

use std::str::FromStr;

/// A model of a hub: `owner/name`, `owner/name@revision`, and with `:file.gguf` behind it one file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit; `main` if nothing is said.
    pub revision: String,
    /// A GGUF file; without one, the repository is a folder in Hugging Face layout.
    pub file: Option<String>,
}

/// What is written is no [`HubId`].
#[derive(Debug, thiserror::Error)]
#[error("a model of a hub is written `owner/name`, `owner/name@revision` or `owner/name:file.gguf`")]
pub struct NotAHubId;

impl FromStr for HubId {
    type Err = NotAHubId;

    fn from_str(text: &str) -> Result<Self, NotAHubId> {
        let (head, file) = text
            .split_once(':')
            .map_or((text, None), |(head, file)| (head, Some(file)));
        let (repository, revision) = head.split_once('@').unwrap_or((head, "main"));
        let is_path = |path: &str| path.split('/').all(is_word);
        let is_repository = repository.split('/').count() == 2 && is_path(repository);
        let is_file = file.is_none_or(|file| is_path(file) && file.to_ascii_lowercase().ends_with(".gguf"));
        if !is_repository || !is_path(revision) || !is_file {
            return Err(NotAHubId);
        }
        Ok(Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            repository, revision, ..
        } = self;
        write!(f, "{repository}@{revision}")
    }
}

/// Nothing that could leave its folder.
pub(super) fn is_word(word: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !word.is_empty() && word.chars().all(allowed) && !word.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id: HubId = "owner/Some-Model.v2@refs/pr/1:sub/x.Q4_K.gguf".parse().unwrap();
        assert_eq!(
            (id.repository.as_str(), id.revision.as_str(), id.file.as_deref()),
            ("owner/Some-Model.v2", "refs/pr/1", Some("sub/x.Q4_K.gguf"))
        );
        assert_eq!("a/b".parse::<HubId>().unwrap().revision, "main");
        for text in [
            "smollm2-135m",
            "a/b/c",
            "./a",
            "../a",
            "a/..",
            "/a/b",
            "a/b@",
            "a/b@../x",
            "a/b:",
            "a/b:x.bin",
            "a/b:../x.gguf",
            "a /b",
            "a/b?x",
            "C:/models",
            "~/model",
        ] {
            assert!(text.parse::<HubId>().is_err(), "{text}");
        }
    }
}
