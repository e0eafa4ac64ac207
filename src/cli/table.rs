//! Answers of the service as tables for people, and as JSON for programs.

use serde_json::Value;

/// A column: its heading, and where its value stands in a row (a JSON pointer).
pub type Column = (&'static str, &'static str);

/// Prints a list under its headings, each column as wide as its widest value.
pub fn print(rows: &[Value], columns: &[Column]) {
    let mut lines = vec![
        columns
            .iter()
            .map(|(heading, _)| (*heading).to_owned())
            .collect::<Vec<_>>(),
    ];
    lines.extend(
        rows.iter()
            .map(|row| columns.iter().map(|(_, at)| cell(row.pointer(at))).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            lines
                .iter()
                .map(|line: &Vec<String>| line[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for line in lines {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("{}", padded.join("  ").trim_end());
    }
}

/// Prints fields below one another; what is absent is left out.
pub fn print_fields(value: &Value, fields: &[Column]) {
    let width = fields.iter().map(|(heading, _)| heading.len()).max().unwrap_or(0);
    for (heading, at) in fields {
        print_field(heading, value.pointer(at), width);
    }
}

/// Prints every field of an object below the other.
pub fn print_all_fields(fields: &serde_json::Map<String, Value>) {
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        print_field(name, Some(value), width);
    }
}

fn print_field(heading: &str, value: Option<&Value>, width: usize) {
    if let Some(found) = value.filter(|found| !found.is_null()) {
        println!("{heading:width$}  {}", cell(Some(found)));
    }
}

/// Prints JSON for programs.
pub fn print_json(value: &Value) {
    println!("{value:#}");
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        // A time to the second.
        Some(Value::String(text)) if is_time(text) => format!("{}Z", text[..19].replace('T', " ")),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(truth)) => if *truth { "yes" } else { "no" }.to_owned(),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.4}"),
            _ => number.to_string(),
        },
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

fn is_time(text: &str) -> bool {
    text.len() == 24 && text.is_ascii() && text.ends_with('Z') && text.as_bytes()[10] == b'T'
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_are_for_people() {
        for (value, shown) in [
            (json!("2026-11-24T10:00:00.123Z"), "2026-11-24 10:00:00Z"),
            (json!("milder@1"), "milder@1"),
            (json!(true), "yes"),
            (json!(12), "12"),
            (json!(1.5), "1.5000"),
            (json!(null), "-"),
            (json!(["a", 1]), "a, 1"),
        ] {
            assert_eq!(cell(Some(&value)), shown);
        }
        assert_eq!(cell(None), "-");
    }
}
