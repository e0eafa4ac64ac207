//! Drawings as SVG: what the curves of a training run and the plots of an evaluation share.

use std::fmt::Write;

/// Text in the middle of attention.
pub const INK: &str = "#222";
/// Text beside it.
pub const FAINT: &str = "#777";
/// Lines to measure by.
pub const GRID: &str = "#ddd";
/// What is shown.
pub const COLOURS: [&str; 6] = ["#1f6fb2", "#c8553d", "#3a8f5c", "#8a5fa8", "#b8860b", "#4a4e69"];

/// Where a text stands from the point it is put at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Begins there.
    Start,
    /// Has its middle there.
    Middle,
    /// Ends there.
    End,
}

/// A drawing that is being made.
pub struct Svg {
    width: f64,
    height: f64,
    content: String,
}

impl Svg {
    /// On white paper, in points.
    pub fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            content: String::new(),
        }
    }

    /// A line of text.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, size: u32, colour: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{colour}\">{text}</text>"
        ));
    }

    /// A straight line.
    pub fn line(&mut self, (x, y): (f64, f64), (to_x, to_y): (f64, f64), colour: &str, width: f64) {
        self.put(format_args!(
            "<path d=\"M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        ));
    }

    /// A line through points.
    pub fn polyline(&mut self, points: impl IntoIterator<Item = (f64, f64)>, colour: &str, width: f64) {
        let points: Vec<String> = points.into_iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            points.join(" ")
        ));
    }

    /// A dot; whoever points at it reads `title`.
    pub fn dot(&mut self, (x, y): (f64, f64), colour: &str, title: &str) {
        let title = escape(title);
        self.put(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{title}</title></circle>"
        ));
    }

    /// The drawing as a document of its own, or as part of an HTML page.
    pub fn finish(self) -> String {
        let Self { width, height, content } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{content}</svg>\n"
        )
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string can't fail.
        let _ = writeln!(self.content, "{element}");
    }
}

/// From values to places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// So that the least of the finite values is at `from` and the greatest at `to`.
    pub fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = range(values);
        Self { low, high, from, to }
    }

    /// Where a value is.
    pub fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round numbers on it, about four.
    pub fn ticks(&self) -> Vec<f64> {
        ticks(self.low, self.high)
    }
}

/// A number as briefly as it can be told from its neighbours.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e6).contains(&size) => format!("{value:.1e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// Text that means itself in SVG and HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The least and the greatest finite value, apart from each other.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low > high {
        (0.0, 1.0)
    } else if low == high {
        (low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9))
    } else {
        (low, high)
    }
}

/// Round numbers within a range, about four.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|index| index as f64 * step)
        .take_while(|tick| *tick <= high)
        .take(12)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 1000.0), [0.0, 500.0, 1000.0]);
        assert_eq!(ticks(1.1, 2.9), [1.5, 2.0, 2.5]);
        assert_eq!(
            (number(0.0002), number(12.5), number(1234.0)),
            ("2.0e-4".into(), "12.5".into(), "1234".into())
        );
    }

    #[test]
    fn values_have_places_whatever_they_are() {
        let scale = Scale::over([2.0, 4.0, f64::NAN].into_iter(), 100.0, 0.0);
        assert_eq!((scale.at(2.0), scale.at(3.0), scale.at(4.0)), (100.0, 50.0, 0.0));
        for values in [vec![], vec![7.0], vec![0.0, 0.0]] {
            let scale = Scale::over(values.into_iter(), 0.0, 10.0);
            assert!(scale.at(7.0).is_finite() && scale.ticks().len() < 13);
        }
    }

    #[test]
    fn a_name_is_never_markup() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text((0.0, 0.0), Anchor::Start, 11, INK, "a<b & \"c\"");
        assert!(svg.finish().contains(">a&lt;b &amp; &quot;c&quot;</text>"));
    }
}
