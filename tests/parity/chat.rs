//! Chat templates against transformers' `apply_chat_template` (`record_chat_templates.py`).

use std::collections::BTreeMap;
use std::path::Path;

use detoxd::model::chat::{ChatError, ChatTemplate, Message};
use detoxd::model::tokenizer::TextTokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    tokenizer: String,
    special: BTreeMap<String, String>,
    talks: Vec<Talk>,
}

#[derive(Deserialize)]
struct Talk {
    messages: Vec<Turn>,
    answering: bool,
    rendered: Option<String>,
    ids: Option<Vec<u32>>,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

fn message(turn: &Turn) -> Message {
    match turn.role.as_str() {
        "user" => Message::user(&turn.content),
        "system" => Message::system(&turn.content),
        _ => Message::assistant(&turn.content),
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../fixtures/chat_templates.json")).unwrap()
}

fn load(case: &Case) -> (ChatTemplate, TextTokenizer) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(&case.tokenizer);
    let template = ChatTemplate::new(&case.template, case.special.clone()).unwrap();
    (template, TextTokenizer::from_file(path).unwrap())
}

#[test]
fn every_talk_is_rendered_and_tokenised_as_transformers_does() {
    let mut tokenised = 0;
    for case in cases() {
        let (template, tokenizer) = load(&case);
        for (number, talk) in case.talks.iter().enumerate() {
            let messages: Vec<Message> = talk.messages.iter().map(message).collect();
            let rendered = template.render(&messages, talk.answering);
            if let Some(reason) = &talk.refused {
                assert!(
                    matches!(&rendered, Err(ChatError::Refused(found)) if found == reason),
                    "{} {number}",
                    case.name
                );
                continue;
            }
            let today = chrono::Local::now().format("%d %b %Y").to_string();
            let rendered = rendered.unwrap();
            assert_eq!(
                rendered.replace(&today, "{TODAY}"),
                talk.rendered.clone().unwrap(),
                "{} {number}",
                case.name
            );
            let Some(ids) = &talk.ids else { continue };
            assert_eq!(
                &tokenizer.encode_with_control(&rendered).unwrap(),
                ids,
                "{} {number}",
                case.name
            );
            if talk.answering {
                assert_eq!(&template.prompt(&messages, &tokenizer).unwrap(), ids);
            }
            tokenised += 1;
        }
    }
    assert!(tokenised > 40);
}

#[test]
fn a_turn_ends_with_what_the_template_says() {
    for case in cases() {
        let (template, tokenizer) = load(&case);
        let expected = case.special.get("eos_token").unwrap();
        assert_eq!(
            Some(template.end(&tokenizer).unwrap()),
            tokenizer.token_id(expected),
            "{}",
            case.name
        );
    }
}
