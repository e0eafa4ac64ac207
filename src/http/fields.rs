//! Fields of a JSON object, read one by one, so that a client gets all that are wrong at once, each with its path.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::problem::{FieldError, Problem};

/// The fields of an object that were not read yet, and what was wrong with those that were. A `null` is as good as nothing.
#[derive(Debug, Default)]
pub struct Fields {
    /// Before each name: empty, or the object's own path and a full stop.
    prefix: String,
    left: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// Of a body.
    ///
    /// # Errors
    /// 422 when it is no object.
    pub fn of(body: Value) -> Result<Self, Problem> {
        match body {
            Value::Object(left) => Ok(Self {
                left,
                ..Self::default()
            }),
            _ => Err(Problem::invalid(vec![FieldError::new(".", "must be an object")])),
        }
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => self.wrong(name, "must be a string"),
        }
    }

    /// A truth.
    pub fn truth(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(truth) => Some(truth),
            _ => self.wrong(name, "must be true or false"),
        }
    }

    /// A whole number.
    pub fn whole(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.take(name)?;
        // 3.0 is how some languages write 3.
        let whole = value.as_i64().or_else(|| {
            let float = value.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
        });
        match whole {
            Some(number) if range.contains(&number) => Some(number),
            _ => self.wrong(
                name,
                format!("must be a whole number from {} to {}", range.start(), range.end()),
            ),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&mut self, name: &str, range: RangeInclusive<u32>) -> Option<u64> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.whole(name, range).map(i64::unsigned_abs)
    }

    /// A number for which `holds`; `expected` says which those are, after "must be a number ".
    pub fn number(&mut self, name: &str, expected: &str, holds: impl FnOnce(f64) -> bool) -> Option<f64> {
        match self.take(name)?.as_f64() {
            Some(number) if holds(number) => Some(number),
            _ => self.wrong(name, format!("must be a number {expected}")),
        }
    }

    /// One of these words.
    pub fn word<'a>(&mut self, name: &str, words: &[&'a str]) -> Option<&'a str> {
        let value = self.take(name)?;
        let found = words.iter().find(|word| value.as_str() == Some(word));
        match found {
            Some(word) => Some(word),
            None => self.wrong(name, format!("must be one of: {}", words.join(", "))),
        }
    }

    /// A list of some of these words, none of them twice.
    pub fn words(&mut self, name: &str, words: &[&str]) -> Option<Vec<String>> {
        let value = self.take(name)?;
        let list: Option<Vec<String>> = value
            .as_array()
            .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        let sound = |list: &Vec<String>| {
            let twice = (1..list.len()).any(|index| list[..index].contains(&list[index]));
            !list.is_empty() && !twice && list.iter().all(|item| words.contains(&item.as_str()))
        };
        match list.filter(sound) {
            Some(list) => Some(list),
            None => self.wrong(name, format!("must be a list of one or more of: {}", words.join(", "))),
        }
    }

    /// An object, read by `read`; what is wrong in it is named by its path.
    pub fn object<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match self.take(name)? {
            Value::Object(left) => {
                let mut inner = Self {
                    prefix: format!("{}{name}.", self.prefix),
                    left,
                    errors: Vec::new(),
                };
                let read = read(&mut inner);
                inner.refuse_the_rest();
                self.errors.append(&mut inner.errors);
                Some(read)
            }
            _ => self.wrong(name, "must be an object"),
        }
    }

    /// Whether the field is there as a truth: for fields that may be one or an object.
    pub fn is_truth(&self, name: &str) -> bool {
        self.left.get(name).is_some_and(Value::is_boolean)
    }

    /// Notes that a field is wrong.
    pub fn error(&mut self, name: &str, detail: impl ToString) {
        self.errors
            .push(FieldError::new(format!("{}{name}", self.prefix), detail));
    }

    /// A value that must be there.
    pub fn required<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        let path = format!("{}{name}", self.prefix);
        // One that is wrong was named already.
        if value.is_none() && self.errors.iter().all(|error| error.field != path) {
            self.error(name, "is missing");
        }
        value
    }

    /// What was read, when nothing was wrong. Fields that nobody asked for are.
    ///
    /// # Errors
    /// 422 with every field that is wrong.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Problem> {
        self.refuse_the_rest();
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(Problem::invalid(self.errors)),
        }
    }

    fn refuse_the_rest(&mut self) {
        for (name, _) in std::mem::take(&mut self.left) {
            self.error(&name, "is no field of this request");
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    fn wrong<T>(&mut self, name: &str, detail: impl ToString) -> Option<T> {
        self.error(name, detail);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(problem: Problem) -> Vec<(String, String)> {
        problem
            .errors
            .into_iter()
            .map(|error| (error.field, error.detail))
            .collect()
    }

    #[test]
    fn all_that_is_wrong_is_named_with_its_path() {
        let body = json!({
            "a": 1, "b": {"c": 0, "d": "x", "e": true, "new": 1}, "f": ["q", "q"], "g": -1, "null": null, "h": 2.5
        });
        let mut fields = Fields::of(body).unwrap();
        fields.text("a");
        fields.object("b", |inner| {
            inner.number("c", "above 0", |number| number > 0.0);
            inner.word("d", &["y", "z"]);
            inner.truth("e");
        });
        fields.words("f", &["q"]);
        fields.count("g", 0..=9);
        fields.whole("h", 0..=9);
        assert_eq!(fields.text("null"), None);
        let missing: Option<()> = None;
        fields.required("null", missing);
        fields.required("a", missing);
        let named = errors(fields.finish(Some(())).unwrap_err());
        let expected = [
            ("a", "must be a string"),
            ("b.c", "must be a number above 0"),
            ("b.d", "must be one of: y, z"),
            ("b.new", "is no field of this request"),
            ("f", "must be a list of one or more of: q"),
            ("g", "must be a whole number from 0 to 9"),
            ("h", "must be a whole number from 0 to 9"),
            ("null", "is missing"),
        ];
        let named: Vec<(&str, &str)> = named.iter().map(|(field, detail)| (&**field, &**detail)).collect();
        assert_eq!(named, expected);
    }

    #[test]
    fn what_is_right_is_read() {
        let mut fields = Fields::of(json!({"a": "x", "b": 3.0, "c": ["q"], "d": false})).unwrap();
        assert_eq!(fields.text("a").as_deref(), Some("x"));
        assert_eq!(fields.count("b", 0..=9), Some(3));
        assert_eq!(fields.words("c", &["q", "r"]), Some(vec!["q".to_owned()]));
        assert!(fields.is_truth("d"));
        assert_eq!(fields.truth("d"), Some(false));
        fields.finish(Some(())).unwrap();
        assert_eq!(errors(Fields::of(json!([])).unwrap_err())[0].0, ".");
    }
}
