//! A report as one HTML page with plots, which needs nothing but itself.

use super::bootstrap::Estimate;
use super::figures::{Figures, Metric};
use super::markdown::{arrow, facts, show, shown};
use super::report::{Report, System};
use crate::svg::{Anchor, COLOURS, FAINT, GRID, INK, Scale, Svg, escape, number};

const WIDTH: f64 = 860.0;
/// Where the names of figures end and the plot begins.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 34.0;
/// Height of a system's line in a plot.
const LINE: f64 = 16.0;

const STYLE: &str = "body{font:15px/1.5 sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .75rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}\
td small{color:#777}svg{width:100%;height:auto}.key{display:inline-block;width:.75em;height:.75em;margin-right:.4em}\
div{overflow-x:auto}";

/// The report as a page.
pub fn html(report: &Report) -> String {
    let facts: String = facts(report)
        .iter()
        .map(|fact| format!("<li>{}</li>", escape(fact)))
        .collect();
    let mut sections = vec![
        legend(report),
        section("Shares and scores", &values(report, Metric::is_share)),
        section("Perplexities", &values(report, |metric| !metric.is_share())),
    ];
    if report.systems.len() > 1 {
        let title = format!("Differences from {}", report.systems[0].adapter);
        sections.push(section(&title, &differences(report)));
    }
    sections.push(section("Toxicity against meaning", &trade_off(report)));
    sections.push(section("All figures", &table(report)));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Evaluation</title><style>{STYLE}</style></head>\n\
         <body><h1>Evaluation</h1><ul>{facts}</ul>\n{}</body></html>\n",
        sections.concat()
    )
}

fn section(title: &str, content: &str) -> String {
    match content {
        "" => String::new(),
        _ => format!("<h2>{}</h2>\n<div>{content}</div>\n", escape(title)),
    }
}

fn colour(place: usize) -> &'static str {
    COLOURS[place % COLOURS.len()]
}

fn legend(report: &Report) -> String {
    let key = |(place, system): (usize, &System)| {
        format!(
            "<span class=\"key\" style=\"background:{}\"></span>{} ",
            colour(place),
            escape(&system.adapter)
        )
    };
    let keys: String = report.systems.iter().enumerate().map(key).collect();
    format!("<p>{keys}</p>\n")
}

fn values(report: &Report, wanted: impl Fn(Metric) -> bool) -> String {
    let metrics: Vec<Metric> = shown(report).into_iter().filter(|metric| wanted(*metric)).collect();
    let systems: Vec<(usize, &Figures)> = report
        .systems
        .iter()
        .map(|system| &system.figures)
        .enumerate()
        .collect();
    forest(&metrics, &systems, None)
}

fn differences(report: &Report) -> String {
    let metrics: Vec<Metric> = shown(report).into_iter().filter(|metric| metric.is_share()).collect();
    let systems = report.systems.iter().map(|system| &system.differences).enumerate();
    forest(&metrics, &systems.skip(1).collect::<Vec<_>>(), Some(0.0))
}

/// A row a figure: a dot and an interval a system, on one scale. `mark` is a value to measure by.
fn forest(metrics: &[Metric], systems: &[(usize, &Figures)], mark: Option<f64>) -> String {
    let of = |metric: Metric| systems.iter().filter_map(move |(_, figures)| figures.get(&metric));
    let measured: Vec<&Estimate> = metrics.iter().copied().flat_map(of).collect();
    if measured.is_empty() {
        return String::new();
    }
    let row = LINE * systems.len() as f64 + 10.0;
    let height = TOP + row * metrics.len() as f64 + BOTTOM;
    let mut svg = Svg::new(WIDTH, height);
    let ends = measured
        .iter()
        .flat_map(|figure| [figure.low, figure.value, figure.high]);
    let x = Scale::over(ends.chain(mark), LEFT, WIDTH - RIGHT);
    for tick in x.ticks() {
        let at = x.at(tick);
        svg.line((at, TOP), (at, height - BOTTOM), GRID, 1.0);
        svg.text((at, height - BOTTOM + 16.0), Anchor::Middle, 11, FAINT, &number(tick));
    }
    if let Some(mark) = mark {
        svg.line((x.at(mark), TOP), (x.at(mark), height - BOTTOM), FAINT, 1.5);
    }
    for (number, metric) in metrics.iter().enumerate() {
        let top = TOP + row * number as f64;
        let label = format!("{}{}", metric.label(), arrow(*metric));
        svg.text((LEFT - 12.0, top + row / 2.0 + 4.0), Anchor::End, 12, INK, &label);
        for (line, (place, figures)) in systems.iter().enumerate() {
            let Some(figure) = figures.get(metric) else { continue };
            let y = top + 5.0 + LINE * (line as f64 + 0.5);
            svg.line((x.at(figure.low), y), (x.at(figure.high), y), colour(*place), 2.0);
            svg.dot(
                (x.at(figure.value), y),
                colour(*place),
                &show(*metric, Some(figure), ""),
            );
        }
    }
    svg.finish()
}

/// Right and up is better: less toxic, closer in meaning.
fn trade_off(report: &Report) -> String {
    const HEIGHT: f64 = 360.0;
    let points: Vec<(usize, Estimate, Estimate)> = report
        .systems
        .iter()
        .enumerate()
        .filter_map(|(place, system)| {
            let figure = |metric| system.figures.get(&metric).copied();
            let toxicity = figure(Metric::ToxicityRate)?;
            let clean = Estimate {
                value: 1.0 - toxicity.value,
                low: 1.0 - toxicity.high,
                high: 1.0 - toxicity.low,
            };
            Some((place, clean, figure(Metric::Similarity)?))
        })
        .collect();
    if points.is_empty() {
        return String::new();
    }
    let ends = |figure: &Estimate| [figure.low, figure.value, figure.high];
    let x = Scale::over(points.iter().flat_map(|point| ends(&point.1)), 70.0, WIDTH - RIGHT);
    let y = Scale::over(points.iter().flat_map(|point| ends(&point.2)), HEIGHT - 50.0, TOP);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for tick in x.ticks() {
        svg.line((x.at(tick), TOP), (x.at(tick), HEIGHT - 50.0), GRID, 1.0);
        svg.text((x.at(tick), HEIGHT - 34.0), Anchor::Middle, 11, FAINT, &number(tick));
    }
    for tick in y.ticks() {
        svg.line((70.0, y.at(tick)), (WIDTH - RIGHT, y.at(tick)), GRID, 1.0);
        svg.text((62.0, y.at(tick) + 4.0), Anchor::End, 11, FAINT, &number(tick));
    }
    svg.text(
        (WIDTH / 2.0, HEIGHT - 12.0),
        Anchor::Middle,
        12,
        INK,
        "share of outputs that are not toxic",
    );
    svg.text((8.0, TOP - 8.0), Anchor::Start, 12, INK, "similarity");
    for (place, clean, similarity) in points {
        let (at_x, at_y) = (x.at(clean.value), y.at(similarity.value));
        svg.line((x.at(clean.low), at_y), (x.at(clean.high), at_y), colour(place), 1.5);
        svg.line(
            (at_x, y.at(similarity.low)),
            (at_x, y.at(similarity.high)),
            colour(place),
            1.5,
        );
        svg.dot((at_x, at_y), colour(place), &report.systems[place].adapter);
    }
    svg.finish()
}

fn table(report: &Report) -> String {
    let names = report
        .systems
        .iter()
        .map(|system| format!("<th>{}</th>", escape(&system.adapter)));
    let mut rows = format!(
        "<tr><th></th><th>base alone</th>{}<th></th></tr>",
        names.collect::<String>()
    );
    for metric in shown(report) {
        let figures = std::iter::once(&report.base).chain(report.systems.iter().map(|system| &system.figures));
        let cells: String = figures
            .map(|figures| format!("<td>{}</td>", show(metric, figures.get(&metric), "")))
            .collect();
        rows += &format!(
            "<tr><th>{}{}</th>{cells}<td><small>{}</small></td></tr>",
            metric.label(),
            arrow(metric),
            escape(metric.meaning())
        );
    }
    format!("<table>{rows}</table>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::report::testing;

    #[test]
    fn a_page_is_whole_and_asks_nobody_for_anything() {
        let page = html(&testing::report(&[&[0.2, 0.9, 0.5], &[0.1, 0.8, 0.7]]));
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        for part in [
            "Shares and scores",
            "Perplexities",
            "Differences from a@1",
            "Toxicity against meaning",
            "<td>0.533 [",
            "a &lt;note&gt;",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for no in ["NaN", "inf", "<script", "<link", "src=", "href=", "url("] {
            assert!(!page.contains(no), "{no}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        // The name space is no address that is asked.
        assert_eq!(page.matches("http").count(), 4);
    }

    #[test]
    fn every_place_is_within_its_drawing() {
        let page = html(&testing::report(&[&[0.0, 1.0], &[1.0, 1.0], &[0.5, 0.5]]));
        for drawing in page.split("<svg").skip(1) {
            let height: f64 = drawing
                .split("viewBox=\"0 0 860 ")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            for dot in drawing.split("<circle cx=\"").skip(1) {
                let numbers: Vec<f64> = dot
                    .split('"')
                    .step_by(2)
                    .take(2)
                    .map(|number| number.parse().unwrap())
                    .collect();
                assert!(
                    (0.0..=WIDTH).contains(&numbers[0]) && (0.0..=height).contains(&numbers[1]),
                    "{numbers:?}"
                );
            }
        }
        assert!(html(&testing::report(&[&[0.5]])).matches("<svg").count() == 3);
    }
}
