//! `detoxd.toml`: found, read, and handed to clap as defaults.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use clap::{Args, Command};

use super::{ConfigError, RawConfig};

/// The values of a configuration file by key, as text for clap to parse like a flag's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileDefaults(BTreeMap<String, String>);

impl FileDefaults {
    /// Reads the file that `args` or the environment name, else `./detoxd.toml` if there is one.
    pub fn discover(args: &[OsString]) -> Result<Self, ConfigError> {
        let named = flag(args).or_else(|| std::env::var_os("DETOXD_CONFIG").map(PathBuf::from));
        match named {
            Some(path) => Self::read(&path),
            None if Path::new("detoxd.toml").exists() => Self::read(Path::new("detoxd.toml")),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let table: toml::Table = toml::from_str(text).map_err(|source| ConfigError::Malformed {
            path: path.into(),
            source: Box::new(source),
        })?;
        let settings = RawConfig::augment_args(Command::new("settings"));
        let is_setting =
            |key: &str| key != "config" && settings.get_arguments().any(|argument| argument.get_id() == key);
        let mut values = BTreeMap::new();
        for (key, value) in table {
            if !is_setting(&key) {
                return Err(ConfigError::UnknownKey { path: path.into(), key });
            }
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(truth) => truth.to_string(),
                _ => {
                    return Err(ConfigError::NotScalar { path: path.into(), key });
                }
            };
            values.insert(key, value);
        }
        Ok(Self(values))
    }

    /// Sets the values as defaults wherever `command` and its subcommands take the setting. A
    /// subcommand's own argument of the same name is a setting's only if it reads the setting's
    /// environment variable.
    pub fn apply(&self, command: Command) -> Command {
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        let command = self.0.iter().fold(command, |command, (key, value)| {
            let variable = format!("DETOXD_{}", key.to_uppercase());
            let takes = command
                .get_arguments()
                .any(|argument| argument.get_id() == key.as_str() && argument.get_env() == Some(OsStr::new(&variable)));
            if takes {
                command.mut_arg(key, |argument| argument.default_value(value.clone()))
            } else {
                command
            }
        });
        names.into_iter().fold(command, |command, name| {
            command.mut_subcommand(name, |sub| self.apply(sub))
        })
    }
}

/// The value of `--config`. It is needed before clap runs, because the file holds clap's defaults.
fn flag(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FileDefaults, ConfigError> {
        FileDefaults::parse(text, Path::new("detoxd.toml"))
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = parse("threshhold = 0.4").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown key `threshhold` in detoxd.toml; `detoxd --help` lists the settings"
        );
        assert!(matches!(parse("config = \"x\""), Err(ConfigError::UnknownKey { .. })));
        assert!(matches!(
            parse("[server]\nlisten = 1"),
            Err(ConfigError::UnknownKey { .. })
        ));
        assert!(matches!(parse("listen = [1]"), Err(ConfigError::NotScalar { .. })));
        assert!(matches!(parse("listen = "), Err(ConfigError::Malformed { .. })));
    }

    #[test]
    fn the_flag_is_found_in_both_spellings() {
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(flag(&args(&["detoxd", "serve", "--config", "a"])), Some("a".into()));
        assert_eq!(flag(&args(&["detoxd", "--config=a", "serve"])), Some("a".into()));
        assert_eq!(flag(&args(&["detoxd", "--", "--config=a"])), None);
    }

    #[test]
    fn every_setting_has_its_environment_variable() {
        for argument in RawConfig::augment_args(Command::new("settings")).get_arguments() {
            let wanted = format!("DETOXD_{}", argument.get_id().as_str().to_uppercase());
            assert_eq!(argument.get_env(), Some(OsStr::new(&wanted)));
        }
    }
}
