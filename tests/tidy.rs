//! Holds what the compiler and clippy can't: which room may know which, how long a file may be, what prose must not say.
//!
//! Each rule returns its findings as lines; a test fails with all of them. The rules' own tests are at the end: a rule
//! that finds nothing anywhere would be no rule.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use regex::Regex;

/// Room, and the rooms that it must not name. Dependencies point down this list.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("http", &["cli"]),
    ("pipeline", &["cli", "http", "train", "jobs"]),
    ("engine", &["cli", "http", "config", "pipeline", "scoring", "train"]),
    (
        "model",
        &[
            "cli", "http", "config", "pipeline", "engine", "scoring", "train", "adapters",
        ],
    ),
    ("scoring", &["cli", "http", "config", "engine", "train", "pipeline"]),
    ("train", &["cli", "http", "config", "engine"]),
    ("adapters", &["cli", "http", "config", "pipeline", "engine", "train"]),
];

/// Dependencies that point up on purpose: file, room, why. None so far.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

const MAX_LINES: usize = 500;

#[test]
fn rooms_depend_downwards() {
    report(sources().iter().flat_map(|file| upward(&file.path, &file.code)));
}

#[test]
fn files_are_short() {
    report(sources().iter().filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > MAX_LINES).then(|| {
            format!(
                "{}: {lines} lines, at most {MAX_LINES}: what second thing does it hold?",
                file.path
            )
        })
    }));
}

#[test]
fn only_the_command_line_prints() {
    report(
        sources()
            .iter()
            .filter(|file| !file.path.starts_with("src/cli/") && file.path != "src/main.rs")
            .flat_map(|file| matches(&file.path, &file.code, r"\b(e?print(ln)?|dbg)!", "use tracing")),
    );
}

#[test]
fn nothing_panics_on_purpose_outside_tests() {
    let pattern = r"\.(unwrap|expect)\(|\.unwrap_err\(|\b(panic|todo|unimplemented)!";
    report(
        sources()
            .iter()
            .flat_map(|file| matches(&file.path, &file.code, pattern, "return an error")),
    );
}

#[test]
fn every_room_says_what_lives_there() {
    report(
        sources()
            .iter()
            .filter(|file| file.path.ends_with("/mod.rs") && !file.text.starts_with("//!"))
            .map(|file| format!("{}: begins without `//!`", file.path)),
    );
}

#[test]
fn every_decision_is_listed() {
    let folder = root().join("docs/decisions");
    let index = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    names.sort();
    report(names.iter().enumerate().flat_map(|(number, name)| {
        let unlisted =
            (!index.contains(&format!("]({name})"))).then(|| format!("docs/decisions/{name} is not in its README.md"));
        let misnumbered = (!name.starts_with(&format!("{:04}-", number + 1)))
            .then(|| format!("docs/decisions/{name} should be number {:04}", number + 1));
        unlisted.into_iter().chain(misnumbered)
    }));
}

#[test]
fn nothing_depends_on_one_machine() {
    report(
        committed()
            .iter()
            // Written by cargo, which names its registry by an address.
            .filter(|path| *path != "Cargo.lock")
            .filter_map(|path| Some((path, fs::read_to_string(root().join(path)).ok()?)))
            .flat_map(|(path, text)| machine_bound(path, &text)),
    );
}

// The rules.

/// Rooms above that the code names, as `crate::room` or in `use crate::{room, …}`.
fn upward(path: &str, code: &str) -> Vec<String> {
    let Some(room) = path
        .strip_prefix("src/")
        .map(|rest| rest.split(['/', '.']).next().unwrap())
    else {
        return Vec::new();
    };
    let forbidden = match FORBIDDEN.iter().find(|(name, _)| *name == room) {
        Some((_, rooms)) => *rooms,
        None if ["cli", "main", "lib"].contains(&room) => return Vec::new(),
        None => &["cli", "http"],
    };
    named_rooms(code)
        .into_iter()
        .filter(|(_, name)| forbidden.contains(&name.as_str()))
        .filter(|(_, name)| !EXCEPTIONS.iter().any(|(file, room, _)| *file == path && room == name))
        .map(|(at, name)| format!("{path}:{}: `{room}` must not know `{name}`", line_of(code, at)))
        .collect()
}

fn named_rooms(code: &str) -> Vec<(usize, String)> {
    let mut rooms = Vec::new();
    for found in Regex::new(r"\bcrate::(\w+)").unwrap().captures_iter(code) {
        rooms.push((found.get(0).unwrap().start(), found[1].to_owned()));
    }
    for group in Regex::new(r"\bcrate::\{").unwrap().find_iter(code) {
        let (mut depth, mut name) = (0, String::new());
        for letter in code[group.end()..].chars() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => rooms.push((group.start(), std::mem::take(&mut name))),
                _ if depth == 0 => name.push(letter),
                _ => {}
            }
        }
        rooms.push((group.start(), name));
    }
    for (_, name) in &mut rooms {
        let first = name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next();
        *name = first.unwrap().to_owned();
    }
    rooms
}

/// Paths of a development machine, and hosts of package registries: a mirror or another machine must do as well.
fn machine_bound(path: &str, text: &str) -> Vec<String> {
    // In pieces, so that this file passes its own rule.
    let hosts = [
        "pypi.",
        "org|files.python",
        "hosted.org|crates",
        r"\.io\b|registry.npm",
        "js.org",
    ]
    .concat();
    let folders = ["(^|[^[:alnum:]._~/-])/(wo", "rk|home/[a-z]|ro", "ot|Users/[A-Za-z])/"].concat();
    let mut found = matches(path, text, &hosts, "names a registry's host");
    found.extend(matches(
        path,
        text,
        &format!("(?m){folders}"),
        "names a folder of one machine",
    ));
    found
}

fn matches(path: &str, text: &str, pattern: &str, say: &str) -> Vec<String> {
    Regex::new(pattern)
        .unwrap()
        .find_iter(text)
        .map(|found| {
            let line = line_of(text, found.start());
            format!("{path}:{line}: `{}`: {say}", found.as_str().trim())
        })
        .collect()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn report(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<_> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

// What is read.

struct SourceFile {
    path: String,
    text: String,
    /// `text` without comments, literals and tests, line for line.
    code: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<SourceFile> {
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    assert!(!paths.is_empty());
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            // A file of tests is declared under cfg(test) by its parent.
            let is_test = path.ends_with("/tests.rs") || path.ends_with("/testing.rs") || path.contains("/tests/");
            let code = if is_test {
                String::new()
            } else {
                without_tests(&code_only(&text))
            };
            SourceFile { path, text, code }
        })
        .collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// Files that git holds or would hold. None where there is no git: then a release archive is being tested, made from checked files.
fn committed() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    match listed {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)
            .unwrap()
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}

/// Blanks comments and the insides of literals, keeping line breaks.
fn code_only(text: &str) -> String {
    let literals = Regex::new(concat!(
        r###"(?s)//[^\n]*|/\*.*?\*/|b?r"[^"]*"|b?r#".*?"#|b?r##".*?"##|"###,
        r####"b?r###".*?"###|b?"(?:[^"\\]|\\.)*"|"####,
        r"b?'(?:[^'\\\n]|\\[^\n][^'\n]*)'",
    ))
    .unwrap();
    let blank = |found: &regex::Captures| found[0].chars().filter(|c| *c == '\n').collect::<String>();
    literals.replace_all(text, blank).into_owned()
}

/// Removes the items under `#[cfg(test)]`, keeping line breaks.
fn without_tests(code: &str) -> String {
    let mut rest = code;
    let mut kept = String::new();
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..at]);
        let end = item_end(&rest[at..]);
        kept.extend(rest[at..at + end].chars().filter(|c| *c == '\n'));
        rest = &rest[at + end..];
    }
    kept + rest
}

/// An item ends at its first `;` outside braces, or where its braces close.
fn item_end(item: &str) -> usize {
    let mut depth = 0;
    for (at, letter) in item.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

#[test]
fn the_rules_find_what_they_are_for() {
    let upward_use =
        "use std::fs;\nuse crate::{model::{Decoder, http}, pipeline::Options};\nfn f() { crate::http::g() }";
    assert_eq!(
        upward("src/engine/batch.rs", upward_use),
        [
            "src/engine/batch.rs:3: `engine` must not know `http`",
            "src/engine/batch.rs:2: `engine` must not know `pipeline`"
        ]
    );
    assert_eq!(upward("src/tasks/reap.rs", "crate::http::g()").len(), 1);
    assert!(upward("src/cli/serve.rs", upward_use).is_empty());

    let code = code_only(
        "let a = \"x.unwrap()\"; // .unwrap()\nlet b = '\"'; c.unwrap(); /* \n */ let l: &'a str = r#\"{\"#;",
    );
    assert_eq!(matches("a.rs", &code, r"\.unwrap\(", "no"), ["a.rs:2: `.unwrap(`: no"]);
    assert_eq!(code.matches('\n').count(), 2);

    let tested = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c.unwrap() } }\n#[cfg(test)]\nuse d;\nfn e() {}";
    assert_eq!(without_tests(tested), "fn a() {}\n\n\n\n\nfn e() {}");

    let folder = ["see /wo", "rk/data"].concat();
    assert_eq!(machine_bound("a.md", &folder).len(), 1);
    assert_eq!(machine_bound("a.md", &["https://crates", ".io/x"].concat()).len(), 1);
    assert!(machine_bound("a.md", "https://example.com/work/root/").is_empty());
}
