//! `detoxd rewrite`, around the fake rewriter.

use std::{
    io::{self, BufReader, Write},
    sync::Arc,
};

use clap::Parser;
use detoxd::{
    cli::rewrite::{self, How, RewriteFailure},
    config::Policy,
};

use crate::support::{
    app::service,
    fake::{self, FAIL, MILDER, TOXIC},
};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    how: How,
}

async fn run(flags: &[&str], input: &[u8]) -> (String, Result<(), RewriteFailure>) {
    let service = service(&fake::parts().0);
    let how = Args::parse_from(["rewrite"].iter().chain(flags)).how;
    let options = how.options(&Policy::default(), &service).unwrap();
    let mut output = Vec::new();
    let input = BufReader::new(io::Cursor::new(input.to_vec()));
    let ended = rewrite::run(&service, options, &how, input, &mut output).await;
    (String::from_utf8(output).unwrap(), ended)
}

#[tokio::test]
async fn a_line_in_is_a_line_out_in_order() {
    let input: String = (0..500)
        .map(|n| match n % 3 {
            0 => format!("Report {n}. {TOXIC}\n"),
            1 => "\n".to_owned(),
            _ => format!("Neutral line {n}.\r\n"),
        })
        .collect();
    let expected: String = (0..500)
        .map(|n| match n % 3 {
            0 => format!("Report {n}. {MILDER}\n"),
            1 => "\n".to_owned(),
            _ => format!("Neutral line {n}.\n"),
        })
        .collect();
    let (output, ended) = run(&[], input.as_bytes()).await;
    ended.unwrap();
    assert_eq!(output, expected);
    let (output, ended) = run(&["--in-flight", "1"], input.as_bytes()).await;
    ended.unwrap();
    assert_eq!(output, expected);
}

#[tokio::test]
async fn the_last_line_needs_no_end_and_no_input_gives_no_output() {
    assert_eq!(run(&[], TOXIC.as_bytes()).await.0, format!("{MILDER}\n"));
    assert_eq!(run(&[], b"").await.0, "");
}

#[tokio::test]
async fn json_gives_result_objects() {
    let (output, ended) = run(&["--json"], format!("{TOXIC}\nHello.\n").as_bytes()).await;
    ended.unwrap();
    let results: Vec<serde_json::Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["text"], MILDER);
    assert_eq!(results[1]["changed"], false);
    assert_eq!(results[0]["usage"]["prompt_tokens"], 12);
}

#[tokio::test]
async fn a_bad_line_is_named_and_those_before_it_are_written() {
    let (output, ended) = run(&[], b"Hello.\nab\xff\nBye.\n").await;
    assert_eq!(output, "Hello.\n");
    assert_eq!(
        ended.unwrap_err().to_string(),
        "line 2 is not UTF-8: its byte 2 is wrong"
    );

    let (output, ended) = run(&[], format!("Hello.\n{FAIL}\nBye.\n").as_bytes()).await;
    assert_eq!(output, "Hello.\n");
    assert!(ended.unwrap_err().to_string().starts_with("line 2: "));
}

/// Takes some bytes, then its reader has left.
struct Leaving(usize);

impl Write for Leaving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_failure() {
    let service = service(&Arc::new(fake::FakeRewriter::default()));
    let how = Args::parse_from(["rewrite"]).how;
    let options = how.options(&Policy::default(), &service).unwrap();
    let input = BufReader::new(io::Cursor::new(vec![b'\n'; 1000]));
    rewrite::run(&service, options, &how, input, Leaving(3)).await.unwrap();
}

#[test]
fn strength_and_guidance_out_of_range_are_refused() {
    let service = service(&fake::parts().0);
    for setting in ["strength", "guidance"] {
        let how = Args::parse_from(["rewrite", &format!("--{setting}"), "3"]).how;
        let error = how.options(&Policy::default(), &service).err().unwrap();
        assert!(error.to_string().contains(&format!("`{setting}`")), "{error}");
    }
}
