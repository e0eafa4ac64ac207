//! Queries, and lists in pages: the newest first, `before` the last id that was seen, `next` the one to go on with.

use std::collections::BTreeMap;

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};

use super::problem::{FieldError, Problem, Reason};

/// Most items of a page.
pub const MAX_LIMIT: u32 = 200;
const DEFAULT_LIMIT: u32 = 50;

/// The parameters of a query that were not read yet, and what was wrong with those that were.
#[derive(Debug)]
pub struct Parameters {
    left: BTreeMap<String, String>,
    errors: Vec<FieldError>,
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Items older than this one.
    pub before: Option<String>,
    /// So many at most.
    pub limit: u32,
}

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let Query(pairs) =
            query.map_err(|_| Problem::new(Reason::Malformed, "the query of the address can't be read"))?;
        let mut read = Self {
            left: BTreeMap::new(),
            errors: Vec::new(),
        };
        for (name, value) in pairs {
            if read.left.contains_key(&name) {
                read.error(&name, "is given twice");
            }
            read.left.insert(name, value);
        }
        Ok(read)
    }
}

impl Parameters {
    /// A parameter as it is.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.left.remove(name)
    }

    /// Notes that a parameter is wrong.
    pub fn error(&mut self, name: &str, detail: impl ToString) {
        self.errors.push(FieldError::new(name, detail));
    }

    /// `before` and `limit`.
    pub fn page(&mut self) -> Page {
        let before = self.text("before").and_then(|id| match uuid::Uuid::try_parse(&id) {
            // As ids are written here.
            Ok(id) => Some(id.to_string()),
            Err(_) => {
                self.error("before", "must be an id: `next` of the page before");
                None
            }
        });
        let limit = match self.text("limit").map(|text| text.parse()) {
            None => DEFAULT_LIMIT,
            Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => limit,
            Some(_) => {
                self.error("limit", format!("must be a whole number from 1 to {MAX_LIMIT}"));
                DEFAULT_LIMIT
            }
        };
        Page { before, limit }
    }

    /// Checks that nothing was wrong, and nothing is left.
    ///
    /// # Errors
    /// 422 with every parameter that is wrong.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.left) {
            self.error(&name, "is no parameter of this route");
        }
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.errors))
        }
    }

    /// Checks the query of a route that has no parameters but those of a page.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn only_page(mut self) -> Result<Page, Problem> {
        let page = self.page();
        self.finish()?;
        Ok(page)
    }
}

impl Page {
    /// One more than is wanted, to see whether there are more.
    pub fn look_ahead(&self) -> u32 {
        self.limit + 1
    }

    /// Cuts what was found to the page, and says with what to go on.
    pub fn cut<T>(&self, found: &mut Vec<T>, id: impl Fn(&T) -> &str) -> Option<String> {
        let wanted = self.limit as usize;
        let more = found.len() > wanted;
        found.truncate(wanted);
        found.last().filter(|_| more).map(|last| id(last).to_owned())
    }
}

/// A time of the database as answers have it: RFC 3339 in UTC, to the millisecond.
pub fn time(milliseconds: i64) -> String {
    chrono::DateTime::from_timestamp_millis(milliseconds)
        .unwrap_or_default()
        .to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_whether_there_are_more() {
        let page = Page { before: None, limit: 2 };
        let mut found = vec!["c", "b", "a"];
        assert_eq!(page.cut(&mut found, |id| id).as_deref(), Some("b"));
        assert_eq!(found, ["c", "b"]);
        assert_eq!(page.cut(&mut found, |id| id), None);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}
