//! The binary: settings and their precedence, exit codes.

use std::{
    path::Path,
    process::{Command, Output},
};

fn detoxd(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_detoxd"))
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// The threshold that a run of `serve` complains about: each place gives one that is out of range.
fn complaint(folder: &Path, args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = detoxd(folder, args, environment);
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_flag_beats_the_environment_beats_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("detoxd.toml"), "threshold = 7\n").unwrap();
    let folder = folder.path();
    let environment = [("DETOXD_THRESHOLD", "8")];
    assert!(complaint(folder, &[], &[]).contains("`7` for `threshold`"));
    assert!(complaint(folder, &["serve"], &[]).contains("`7` for `threshold`"));
    assert!(complaint(folder, &["serve"], &environment).contains("`8` for `threshold`"));
    let flag = ["serve", "--threshold", "9"];
    assert!(complaint(folder, &flag, &environment).contains("`9` for `threshold`"));
    let flag = ["--threshold", "9"];
    assert!(complaint(folder, &flag, &environment).contains("`9` for `threshold`"));

    std::fs::write(folder.join("other.toml"), "candidates = 99\n").unwrap();
    let other = complaint(folder, &["serve", "--config", "other.toml"], &[]);
    assert!(other.contains("`99` for `candidates`"));
    let other = complaint(folder, &["rewrite"], &[("DETOXD_CONFIG", "other.toml")]);
    assert!(other.contains("`99` for `candidates`"));
}

#[test]
fn help_shows_what_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("detoxd.toml"), "max_text_chars = 1234\n").unwrap();
    let output = detoxd(folder.path(), &["serve", "--help"], &[]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("1234"));
    assert!(help.contains("DETOXD_MAX_TEXT_CHARS"));
}

#[test]
fn bad_configuration_ends_with_64_and_names_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (args, says) in [
        (&["serve", "--timeout", "30"][..], "`timeout`"),
        (&["serve", "--device", "gpu"], "`device`"),
        (&["serve", "--adapter", "a@b"], "`adapter`"),
        (&["serve", "--log", "detoxd=loud"], "`log`"),
        (
            &["serve", "--max-concurrent-requests", "0"],
            "`max_concurrent_requests`",
        ),
        (&["serve", "--listen", "here"], "--listen"),
        (&["serve", "--action", "shout"], "--action"),
        (&["serve", "--nonsense"], "--nonsense"),
        (&["serve", "--config", "none.toml"], "none.toml"),
        (&["rewrite", "--candidates", "17"], "`candidates`"),
        (&["serve", "--kv-cache-tokens", "0"], "`kv_cache_tokens`"),
    ] {
        let complaint = complaint(folder, args, &[]);
        assert!(complaint.contains(says), "{args:?}: {complaint}");
    }
    std::fs::write(folder.join("detoxd.toml"), "treshold = 0.5\n").unwrap();
    assert!(complaint(folder, &["serve"], &[]).contains("unknown key `treshold`"));
}

/// Whether it was built for GPUs or not, with or without a driver.
#[test]
fn a_gpu_that_is_not_there_is_said_to_be_missing() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/micro");
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "rewrite",
        "--model",
        model,
        "--adapter",
        "none",
        "--device",
        "cuda:9999",
    ];
    let output = detoxd(folder.path(), &args, &[]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(
        complaint.contains("cuda:9999 can't be used") && complaint.contains("--device cpu"),
        "{complaint}"
    );
}

#[test]
fn the_document_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let output = detoxd(folder.path(), &["openapi"], &[]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        include_str!("../../openapi/openapi.json")
    );
}
