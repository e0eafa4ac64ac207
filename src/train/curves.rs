//! A run's log as a drawing: `curves.svg`, for whoever looks into the folder.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::TrainError;
use super::trainer::StepReport;

const WIDTH: f64 = 880.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 26.0;
/// More points than the drawing has room for are averaged.
const POINTS: usize = 400;
/// Steps over which the thick line looks back, about.
const SMOOTHING: f64 = 20.0;

/// One curve: what it shows, and a value a step.
struct Curve {
    title: &'static str,
    values: Vec<(f64, f64)>,
    smooth: bool,
}

/// Draws the lines of a loss log: loss, gradient norm, learning rate, tokens a second, and reward where there is one.
///
/// # Errors
/// When the log can't be read or the drawing can't be written.
pub fn draw(log: &Path, svg: &Path) -> Result<(), TrainError> {
    let text = fs::read_to_string(log).map_err(TrainError::io(log))?;
    let steps: Vec<StepReport> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    // Written aside and renamed: whoever reads it never finds a half.
    let unfinished = svg.with_extension("svg.unfinished");
    fs::write(&unfinished, drawing(&steps)).map_err(TrainError::io(&unfinished))?;
    fs::rename(&unfinished, svg).map_err(TrainError::io(svg))
}

fn drawing(steps: &[StepReport]) -> String {
    let curve = |title, smooth, value: &dyn Fn(&StepReport) -> Option<f64>| Curve {
        title,
        values: steps
            .iter()
            .filter_map(|step| Some((step.step as f64, value(step)?)))
            .collect(),
        smooth,
    };
    let mut curves = vec![
        curve("loss", true, &|step| Some(step.loss)),
        curve("reward", true, &|step| step.reward),
        curve("nats of divergence", true, &|step| step.divergence),
        curve("gradient norm", true, &|step| Some(step.gradient_norm)),
        curve("learning rate", false, &|step| Some(step.learning_rate)),
    ];
    curves.push(Curve {
        title: "tokens a second",
        values: speeds(steps),
        smooth: false,
    });
    curves.retain(|curve| !curve.values.is_empty());
    let height = PANEL * curves.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (index, curve) in curves.iter().enumerate() {
        panel(&mut svg, curve, index as f64 * PANEL);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Tokens a second of each step by itself: what the log has is the mean since the beginning.
fn speeds(steps: &[StepReport]) -> Vec<(f64, f64)> {
    let mut before = 0.0;
    let mut speeds = Vec::with_capacity(steps.len());
    for step in steps {
        if step.seconds > before {
            speeds.push((step.step as f64, step.tokens as f64 / (step.seconds - before)));
        }
        before = step.seconds;
    }
    speeds
}

fn panel(svg: &mut String, curve: &Curve, top: f64) {
    let (first, last) = range(curve.values.iter().map(|point| point.0));
    let (low, high) = range(curve.values.iter().map(|point| point.1));
    let x = |step: f64| LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| top + PANEL - BOTTOM - (value - low) / (high - low) * (PANEL - TOP - BOTTOM);
    let latest = curve.values.last().map_or(0.0, |point| point.1);
    // Writing to a string can't fail.
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"13\" fill=\"#222\">{} <tspan fill=\"#777\">{}</tspan></text>",
        top + 20.0,
        curve.title,
        number(latest)
    );
    for tick in ticks(low, high) {
        let at = y(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#777\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            number(tick)
        );
    }
    for tick in ticks(first, last).into_iter().filter(|tick| tick.fract() == 0.0) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#777\">{}</text>",
            x(tick),
            top + PANEL - 10.0,
            number(tick)
        );
    }
    let line = |svg: &mut String, values: &[(f64, f64)], style: &str| {
        let points: Vec<String> = thinned(values)
            .iter()
            .map(|&(step, value)| format!("{:.1},{:.1}", x(step), y(value)))
            .collect();
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" {style}/>", points.join(" "));
    };
    if curve.smooth {
        line(svg, &curve.values, "stroke=\"#9ec5e8\" stroke-width=\"1\"");
        line(svg, &smoothed(&curve.values), "stroke=\"#1f6fb2\" stroke-width=\"2\"");
    } else {
        line(svg, &curve.values, "stroke=\"#1f6fb2\" stroke-width=\"1.5\"");
    }
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

fn number(value: f64) -> String {
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

/// An exponential mean, without the bias towards its beginning.
fn smoothed(values: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - SMOOTHING.recip();
    let (mut sum, mut weight) = (0.0, 0.0);
    values
        .iter()
        .map(|&(step, value)| {
            sum = keep * sum + value;
            weight = keep * weight + 1.0;
            (step, sum / weight)
        })
        .collect()
}

fn thinned(values: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = values.len().div_ceil(POINTS).max(1);
    let mean =
        |points: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    values
        .chunks(size)
        .map(|chunk| (mean(chunk, |point| point.0), mean(chunk, |point| point.1)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(count: usize) -> Vec<StepReport> {
        (1..=count)
            .map(|step| StepReport {
                step,
                steps: count,
                loss: 3.0 / step as f64,
                gradient_norm: 1.0,
                learning_rate: 2e-4,
                tokens: 100,
                tokens_per_second: 50.0,
                seconds: 2.0 * step as f64,
                reward: None,
                divergence: None,
            })
            .collect()
    }

    #[test]
    fn every_curve_of_the_log_is_drawn_within_its_panel() {
        let folder = tempfile::tempdir().unwrap();
        let (log, svg) = (folder.path().join("loss.jsonl"), folder.path().join("curves.svg"));
        let mut text = String::new();
        for step in steps(1000) {
            writeln!(text, "{}", serde_json::to_string(&step).unwrap()).unwrap();
        }
        // The last line of a run that was killed may be cut.
        fs::write(&log, text + "{\"step\": 10").unwrap();
        draw(&log, &svg).unwrap();
        let drawn = fs::read_to_string(&svg).unwrap();
        for title in ["loss", "gradient norm", "learning rate", "tokens a second"] {
            assert!(drawn.contains(&format!(">{title} <")), "{title}");
        }
        assert!(!drawn.contains("reward") && !drawn.contains("NaN") && !drawn.contains("inf"));
        let lines: Vec<&str> = drawn.lines().filter(|line| line.starts_with("<polyline")).collect();
        assert_eq!(lines.len(), 6);
        for (line, panel) in lines.iter().zip([0.0, 0.0, 1.0, 1.0, 2.0, 3.0]) {
            let points = line.split('"').nth(1).unwrap();
            assert!(points.split(' ').count() <= POINTS);
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH).contains(&x), "{point}");
                assert!((panel * PANEL..=(panel + 1.0) * PANEL).contains(&y), "{point}");
            }
        }
    }

    #[test]
    fn a_log_of_nothing_or_of_one_step_is_drawn_too() {
        for count in [0, 1] {
            let drawn = drawing(&steps(count));
            assert!(drawn.ends_with("</svg>\n") && !drawn.contains("NaN"), "{drawn}");
        }
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 1000.0), [0.0, 500.0, 1000.0]);
        assert_eq!(ticks(1.1, 2.9), [1.5, 2.0, 2.5]);
        assert_eq!(
            (number(0.0002), number(12.5), number(1234.0)),
            ("2.0e-4".into(), "12.5".into(), "1234".into())
        );
    }
}
