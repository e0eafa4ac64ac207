//! Stub of the registry's signatures.
use std::{fmt, str::FromStr, sync::Arc};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterVersion {
    name: String,
    number: u32,
}
impl fmt::Display for AdapterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.number)
    }
}
#[derive(Debug, Clone)]
pub struct AdapterLease(Arc<AdapterVersion>);
impl AdapterLease {
    pub fn version(&self) -> &AdapterVersion {
        &self.0
    }
    pub fn none() -> Self {
        Self(Arc::new(AdapterVersion {
            name: "none".into(),
            number: 0,
        }))
    }
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRef {
    name: String,
    number: Option<u32>,
}
impl fmt::Display for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "{}@{number}", self.name),
            None => f.write_str(&self.name),
        }
    }
}
#[derive(Debug, thiserror::Error)]
#[error("an adapter is written `name` or `name@version`")]
pub struct ParseAdapterRefError;
impl FromStr for AdapterRef {
    type Err = ParseAdapterRefError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = match text.split_once('@') {
            Some((name, number)) => (
                name,
                Some(number.parse().map_err(|_| ParseAdapterRefError)?),
            ),
            None => (text, None),
        };
        let ok = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if ok {
            Ok(Self {
                name: name.into(),
                number,
            })
        } else {
            Err(ParseAdapterRefError)
        }
    }
}
#[derive(Debug, thiserror::Error)]
#[error("there is no adapter `{0}`")]
pub struct UnknownAdapter(AdapterRef);
pub struct Residents(Vec<AdapterLease>);
impl Residents {
    pub fn none() -> Self {
        Self(vec![AdapterLease::none()])
    }
    pub fn lease(&self, wanted: Option<&AdapterRef>) -> Result<AdapterLease, UnknownAdapter> {
        match wanted {
            None => Ok(self.0[0].clone()),
            Some(wanted) => self
                .0
                .iter()
                .find(|lease| {
                    lease.0.name == wanted.name && wanted.number.is_none_or(|n| n == lease.0.number)
                })
                .cloned()
                .ok_or_else(|| UnknownAdapter(wanted.clone())),
        }
    }
}
