//! Durations as people write them: `30s`, `500ms`, `2m`.

use std::time::Duration;

/// Reads a whole number with a unit: `ms`, `s`, `m` or `h`.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "expected a whole number with a unit, such as `30s`, `500ms` or `2m`";
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(EXPECTED),
    };
    let total = number.checked_mul(milliseconds).ok_or("too long")?;
    if total == 0 {
        return Err("must be longer than nothing");
    }
    // A deadline is now plus this: a day is beyond any use, and far from overflowing the clock.
    if total > 86_400_000 {
        return Err("must be at most `24h`");
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_units() {
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("1h"), Ok(Duration::from_secs(3600)));
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "30 s",
            "0s",
            "25h",
            "99999999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
