//! What the board and the alerts ask for is what the program shows, and what it shows is documented.
//!
//! The names are read from the sources: a metric with labels is not in `/metrics` before it was touched, and no test touches all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;
use serde_json::Value;

/// Metrics of the process collector, and of Prometheus itself.
const OTHERS: &[&str] = &[
    "up",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];

/// Labels that Prometheus adds.
const ADDED_LABELS: &[&str] = &["instance", "job", "le"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
struct Metric {
    kind: Kind,
    labels: BTreeSet<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every metric that is constructed anywhere in the sources.
fn metrics() -> BTreeMap<String, Metric> {
    let constructor =
        Regex::new(r#"(Int)?(Counter|Gauge|Histogram)(Vec)?::(new|with_opts)\((?:[\s\w:]*\()*\s*"(detoxd_\w+)""#)
            .unwrap();
    // A function of its own that makes histograms with a label `which`, or none.
    let helper = Regex::new(r#"\bhistogram\(\s*"(detoxd_\w+)""#).unwrap();
    let labels = Regex::new(r#"&\[((?:\s*"\w+",?)+)\s*\]"#).unwrap();
    let mut found = BTreeMap::new();
    for text in sources(&root().join("src")) {
        for made in constructor.captures_iter(&text) {
            let kind = match &made[2] {
                "Counter" => Kind::Counter,
                "Gauge" => Kind::Gauge,
                _ => Kind::Histogram,
            };
            let of = |labels: &str| {
                labels
                    .split(',')
                    .map(|label| label.trim().trim_matches('"').to_owned())
                    .collect()
            };
            let labels = match made.get(3) {
                Some(_) => of(&labels
                    .captures(&text[made.get(0).unwrap().end()..])
                    .expect("labels follow")[1]),
                None => BTreeSet::new(),
            };
            let labels = labels.into_iter().filter(|label: &String| !label.is_empty()).collect();
            found.insert(made[5].to_owned(), Metric { kind, labels });
        }
        for made in helper.captures_iter(&text) {
            let (kind, labels) = (Kind::Histogram, BTreeSet::from(["which".to_owned()]));
            found.insert(made[1].to_owned(), Metric { kind, labels });
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(&path).unwrap());
        }
    }
    texts
}

/// What is wrong with an expression.
fn wrong(expression: &str, metrics: &BTreeMap<String, Metric>) -> Vec<String> {
    let name = Regex::new(r"\b((?:detoxd|process)_\w+|up\b)(?:\{([^}]*)\})?").unwrap();
    let label = Regex::new(r"(\w+)\s*(?:=~|!~|!=|=)").unwrap();
    let mut wrong = Vec::new();
    let mut known_labels: BTreeSet<&str> = ADDED_LABELS.iter().copied().collect();
    for used in name.captures_iter(expression) {
        let full = &used[1];
        if OTHERS.contains(&full) {
            continue;
        }
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| full.strip_suffix(suffix).filter(|base| metrics.contains_key(*base)));
        let Some((metric, is_part)) = metrics
            .get(full)
            .map(|metric| (metric, false))
            .or_else(|| base.map(|base| (&metrics[base], true)))
        else {
            wrong.push(format!("there is no metric {full}"));
            continue;
        };
        if (metric.kind == Kind::Histogram) != is_part {
            wrong.push(format!("{full}: a histogram is asked by its parts, and only it"));
        }
        let is_raw_counter = (metric.kind == Kind::Counter || is_part)
            && !Regex::new(&format!(r"(rate|increase|changes)\({full}\b"))
                .unwrap()
                .is_match(expression);
        if is_raw_counter {
            wrong.push(format!("{full}: a counter means nothing without a rate"));
        }
        known_labels.extend(metric.labels.iter().map(String::as_str));
        for selector in label.captures_iter(used.get(2).map_or("", |selector| selector.as_str())) {
            let label = &selector[1];
            if !metric.labels.contains(label) && !ADDED_LABELS.contains(&label) {
                wrong.push(format!("{full} has no label {label}"));
            }
        }
    }
    let by = Regex::new(r"\b(?:by|without|on)\s*\(([^)]*)\)").unwrap();
    for group in by.captures_iter(expression) {
        for label in group[1].split(',').map(str::trim) {
            if !known_labels.contains(label) {
                wrong.push(format!("nothing has the label {label}"));
            }
        }
    }
    wrong
}

fn board() -> Value {
    serde_json::from_str(&read("deploy/grafana/dashboards/detoxd.json")).unwrap()
}

fn panels(board: &Value) -> &[Value] {
    board["panels"].as_array().unwrap()
}

/// Expressions of the rules, each on the line of its key or folded below it.
fn rules(text: &str) -> Vec<(String, String)> {
    let mut rules: Vec<(String, String)> = Vec::new();
    let mut folded = false;
    let key = Regex::new(r"^\w+:( |$)").unwrap();
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("- alert: ") {
            rules.push((name.to_owned(), String::new()));
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            folded = expression == ">-";
            if !folded {
                rules.last_mut().unwrap().1 = expression.to_owned();
            }
        } else if folded && key.is_match(line) {
            folded = false;
        } else if folded {
            rules.last_mut().unwrap().1.push_str(&format!(" {line}"));
        }
    }
    rules
}

#[test]
fn the_board_asks_for_metrics_that_there_are() {
    let metrics = metrics();
    assert!(metrics.len() > 30, "{metrics:?}");
    let board = board();
    let mut findings = Vec::new();
    let mut asked = 0;
    for panel in panels(&board) {
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        for expression in targets.iter().map(|target| target["expr"].as_str().unwrap()) {
            asked += 1;
            let title = panel["title"].as_str().unwrap();
            findings.extend(
                wrong(expression, &metrics)
                    .into_iter()
                    .map(|say| format!("{title}: {say}")),
            );
        }
    }
    for annotation in board["annotations"]["list"].as_array().unwrap() {
        findings.extend(wrong(annotation["expr"].as_str().unwrap(), &metrics));
    }
    for variable in board["templating"]["list"].as_array().unwrap() {
        findings.extend(wrong(variable["definition"].as_str().unwrap(), &metrics));
    }
    assert!(asked > 40, "{asked}");
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn the_board_is_laid_out_without_overlaps() {
    let board = board();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&board) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for (x, y) in (place("x")..place("x") + place("w"))
            .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert((x, y)), "overlaps: {panel}");
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "prometheus", "{panel}");
        }
    }
    let rows: Vec<&str> = panels(&board)
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|panel| panel["title"].as_str().unwrap())
        .collect();
    assert_eq!(
        rows,
        [
            "Requests",
            "Rewriting",
            "Engine",
            "Adapters and swaps",
            "Jobs",
            "Process"
        ]
    );
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are_and_say_what_to_do() {
    let metrics = metrics();
    let text = read("deploy/alerts.yml");
    let rules = rules(&text);
    assert_eq!(rules.len(), text.matches("- alert:").count());
    let operations = read("docs/OPERATIONS.md");
    let mut findings = Vec::new();
    for (name, expression) in &rules {
        assert!(!expression.is_empty(), "{name}");
        findings.extend(
            wrong(expression, &metrics)
                .into_iter()
                .map(|say| format!("{name}: {say}")),
        );
        if !operations.contains(&format!("`{name}`")) {
            findings.push(format!("docs/OPERATIONS.md does not say what to do about {name}"));
        }
    }
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn every_metric_is_documented() {
    let log = read("docs/LOGGING.md");
    let missing: Vec<_> = metrics()
        .into_keys()
        .filter(|name| !log.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/LOGGING.md lacks {missing:?}");
}

#[test]
fn what_is_wrong_is_found() {
    let metrics = metrics();
    assert_eq!(metrics["detoxd_requests_total"].kind, Kind::Counter);
    let labels = &metrics["detoxd_requests_total"].labels;
    assert!(
        labels.contains("route") && labels.contains("status") && labels.len() == 2,
        "{labels:?}"
    );
    assert!(metrics["detoxd_batch_sequences"].labels.is_empty());
    for (expression, count) in [
        ("rate(detoxd_requests_total{route=\"/detoxify\"}[5m])", 0),
        ("sum by (le) (rate(detoxd_request_duration_seconds_bucket[5m]))", 0),
        ("detoxd_requests_running / detoxd_requests_capacity", 0),
        ("detoxd_no_such_metric", 1),
        ("rate(detoxd_requests_total{colour=\"red\"}[5m])", 1),
        ("detoxd_requests_total", 1),
        ("detoxd_request_duration_seconds", 1),
        ("sum by (colour) (detoxd_requests_running)", 1),
    ] {
        assert_eq!(
            wrong(expression, &metrics).len(),
            count,
            "{expression}: {:?}",
            wrong(expression, &metrics)
        );
    }
}
