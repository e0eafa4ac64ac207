//! A run's log as a drawing: `curves.svg`, for whoever looks into the folder.

use std::fs;
use std::path::Path;

use super::TrainError;
use super::trainer::StepReport;
use crate::svg::{Anchor, COLOURS, FAINT, GRID, INK, Scale, Svg, number};

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
    let mut svg = Svg::new(WIDTH, PANEL * curves.len().max(1) as f64);
    for (index, curve) in curves.iter().enumerate() {
        panel(&mut svg, curve, index as f64 * PANEL);
    }
    svg.finish()
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

fn panel(svg: &mut Svg, curve: &Curve, top: f64) {
    let x = Scale::over(curve.values.iter().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Scale::over(
        curve.values.iter().map(|point| point.1),
        top + PANEL - BOTTOM,
        top + TOP,
    );
    let latest = curve.values.last().map_or(0.0, |point| point.1);
    svg.text((LEFT, top + 20.0), Anchor::Start, 13, INK, curve.title);
    svg.text((WIDTH - RIGHT, top + 20.0), Anchor::End, 13, FAINT, &number(latest));
    for tick in y.ticks() {
        let at = y.at(tick);
        svg.line((LEFT, at), (WIDTH - RIGHT, at), GRID, 1.0);
        svg.text((LEFT - 6.0, at + 4.0), Anchor::End, 11, FAINT, &number(tick));
    }
    for tick in x.ticks().into_iter().filter(|tick| tick.fract() == 0.0) {
        svg.text(
            (x.at(tick), top + PANEL - 10.0),
            Anchor::Middle,
            11,
            FAINT,
            &number(tick),
        );
    }
    let mut line = |values: &[(f64, f64)], colour: &str, width: f64| {
        let points = thinned(values);
        svg.polyline(
            points.iter().map(|&(step, value)| (x.at(step), y.at(value))),
            colour,
            width,
        );
    };
    if curve.smooth {
        line(&curve.values, "#9ec5e8", 1.0);
        line(&smoothed(&curve.values), COLOURS[0], 2.0);
    } else {
        line(&curve.values, COLOURS[0], 1.5);
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
    use std::fmt::Write;

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
            assert!(drawn.contains(&format!(">{title}<")), "{title}");
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
}
