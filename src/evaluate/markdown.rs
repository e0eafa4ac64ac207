//! A report as Markdown.

use super::bootstrap::Estimate;
use super::figures::{Better, Metric};
use super::report::Report;

/// The report as a page.
pub fn markdown(report: &Report) -> String {
    let mut lines = vec!["# Evaluation".to_owned(), String::new()];
    lines.extend(facts(report).into_iter().map(|fact| format!("- {fact}")));
    lines.push(String::new());
    lines.extend(figures(report));
    if report.systems.len() > 1 {
        let first = &report.systems[0].adapter;
        lines.push(String::new());
        lines.push(format!("Differences from {first}, drawn in pairs:"));
        lines.push(String::new());
        lines.extend(differences(report));
    }
    lines.join("\n") + "\n"
}

/// What the figures rest on, a sentence each.
pub(super) fn facts(report: &Report) -> Vec<String> {
    let setting = &report.setting;
    let examples = report.systems.first().map_or(0, |system| system.examples);
    let mut facts = vec![
        format!("model: {}; outputs: {}", setting.model, setting.outputs.as_str()),
        format!(
            "judges: toxicity {}, similarity {}",
            setting.toxicity_model, setting.similarity_model
        ),
        format!("{examples} examples, {} left out as too long", setting.skipped),
    ];
    if setting.neutral_texts > 0 {
        facts.push(format!("{} neutral texts", setting.neutral_texts));
    }
    if setting.samples > 0 {
        facts.push(format!("diversity of {} candidates of each source", setting.samples));
    }
    if setting.windows > 0 {
        let (windows, tokens) = (setting.windows, setting.window_tokens);
        facts.push(format!(
            "plain text in {windows} windows of at most {tokens} tokens, each from its own beginning"
        ));
    }
    facts.push(format!(
        "in brackets: 95% intervals, percentile bootstrap over sentences, texts or windows, {} draws, seed {}",
        setting.resamples, setting.seed
    ));
    facts.extend(report.note.clone());
    facts
}

fn figures(report: &Report) -> Vec<String> {
    let mut head = vec!["".to_owned(), "base alone".to_owned()];
    head.extend(report.systems.iter().map(|system| cell(&system.adapter)));
    let mut lines = vec![row(&head), row(&vec!["---".to_owned(); head.len()])];
    for metric in shown(report) {
        let base = report.base.get(&metric);
        let systems = report.systems.iter().map(|system| system.figures.get(&metric));
        let mut cells = vec![format!("{}{}", metric.label(), arrow(metric))];
        cells.extend(
            std::iter::once(base)
                .chain(systems)
                .map(|figure| show(metric, figure, "")),
        );
        lines.push(row(&cells));
    }
    lines
}

fn differences(report: &Report) -> Vec<String> {
    let others = &report.systems[1..];
    let mut head = vec!["".to_owned()];
    head.extend(others.iter().map(|system| cell(&system.adapter)));
    let mut lines = vec![row(&head), row(&vec!["---".to_owned(); head.len()])];
    for metric in shown(report) {
        let mut cells = vec![format!("{}{}", metric.label(), arrow(metric))];
        let of_others = others.iter().map(|system| system.differences.get(&metric));
        cells.extend(of_others.map(|difference| show(metric, difference, "+")));
        lines.push(row(&cells));
    }
    lines
}

/// The figures that were measured.
pub(super) fn shown(report: &Report) -> Vec<Metric> {
    let is_measured = |metric: &Metric| report.systems.iter().any(|system| system.figures.contains_key(metric));
    Metric::ALL.into_iter().filter(is_measured).collect()
}

/// A figure with its interval; `plus` stands before a value above 0.
pub(super) fn show(metric: Metric, figure: Option<&Estimate>, plus: &str) -> String {
    let Some(Estimate { value, low, high }) = figure else {
        return String::new();
    };
    let number = |value: f64| match metric.show(value) {
        text if value > 0.0 => format!("{plus}{text}"),
        text => text,
    };
    format!("{} [{}, {}]", number(*value), number(*low), number(*high))
}

/// Which way is better.
pub(super) fn arrow(metric: Metric) -> &'static str {
    match metric.better() {
        Better::Lower => " ↓",
        Better::Higher => " ↑",
        Better::Neither => "",
    }
}

fn row(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

/// A name that does not end its cell.
fn cell(name: &str) -> String {
    name.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::report::testing;

    #[test]
    fn tables_have_a_row_a_figure_and_a_column_a_system() {
        let text = markdown(&testing::report(&[&[0.75, 0.75], &[0.25, 0.25], &[0.75, 0.75]]));
        for line in [
            "|  | base alone | a@1 | a@2 | a@3 |",
            "| toxicity rate ↓ |  | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] | 1.000 [1.000, 1.000] |",
            "| text perplexity ↓ | 7.39 [7.39, 7.39] | 20.09 [20.09, 20.09] | 20.09 [20.09, 20.09] | 20.09 [20.09, 20.09] |",
            "| J ↑ | +0.400 [+0.400, +0.400] | 0.000 [0.000, 0.000] |",
            "- 2 examples, 1 left out as too long",
            "- a <note>",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
        assert!(!text.contains("self-BLEU"), "not measured");
        let one = markdown(&testing::report(&[&[0.5]]));
        assert!(!one.contains("Differences"), "{one}");
    }
}
