//! Who judges texts.

use super::{BUILT_IN, ConfigError, JudgeSettings};

/// Who judges texts; `None` is the scorer in the binary, else a folder or a hub id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JudgesConfig {
    /// Judge of toxicity.
    pub toxicity: Option<String>,
    /// Its labels that mean toxic, where that is said.
    pub toxicity_label: Option<String>,
    /// Judge of meaning.
    pub similarity: Option<String>,
}

impl TryFrom<JudgeSettings> for JudgesConfig {
    type Error = ConfigError;

    fn try_from(raw: JudgeSettings) -> Result<Self, ConfigError> {
        let model = |setting, model: String| match model.as_str() {
            "" => Err(ConfigError::invalid(setting, "", "must not be empty")),
            BUILT_IN => Ok(None),
            _ => Ok(Some(model)),
        };
        let toxicity = model("toxicity_model", raw.toxicity_model)?;
        let toxicity_label = raw.toxicity_label.filter(|label| !label.is_empty());
        if let (None, Some(label)) = (&toxicity, &toxicity_label) {
            return Err(ConfigError::invalid(
                "toxicity_label",
                label,
                "is for a toxicity_model; the built-in scorer has no labels",
            ));
        }
        Ok(Self {
            toxicity,
            toxicity_label,
            similarity: model("similarity_model", raw.similarity_model)?,
        })
    }
}

impl JudgesConfig {
    /// The settings as environment variables, for a child that is to judge as this process does.
    pub fn environment(&self) -> [(&'static str, &str); 3] {
        [
            ("DETOXD_TOXICITY_MODEL", self.toxicity.as_deref().unwrap_or(BUILT_IN)),
            (
                "DETOXD_TOXICITY_LABEL",
                self.toxicity_label.as_deref().unwrap_or_default(),
            ),
            (
                "DETOXD_SIMILARITY_MODEL",
                self.similarity.as_deref().unwrap_or(BUILT_IN),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_is_a_name_and_a_label_needs_a_model() {
        let settings = |toxicity: &str, label: Option<&str>, similarity: &str| {
            JudgesConfig::try_from(JudgeSettings {
                toxicity_model: toxicity.to_owned(),
                toxicity_label: label.map(str::to_owned),
                similarity_model: similarity.to_owned(),
            })
        };
        assert_eq!(settings(BUILT_IN, None, BUILT_IN).unwrap(), JudgesConfig::default());
        // As a child gets it.
        assert_eq!(settings(BUILT_IN, Some(""), BUILT_IN).unwrap(), JudgesConfig::default());
        let config = settings("a/b", Some("rude"), "./c").unwrap();
        let said = [config.toxicity, config.toxicity_label, config.similarity].map(Option::unwrap);
        assert_eq!(said, ["a/b", "rude", "./c"]);
        let error = settings(BUILT_IN, Some("rude"), BUILT_IN).unwrap_err();
        assert!(error.to_string().contains("toxicity_label"), "{error}");
        assert!(settings("", None, BUILT_IN).is_err());
    }
}
