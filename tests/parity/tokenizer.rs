use std::collections::HashMap;
use std::fs::File;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use detoxd::model::tokenizer::{TextTokenizer, TokenizerError};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    vocabulary_size: usize,
    named: HashMap<String, u32>,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn smollm2_gives_the_recorded_ids() {
    let Some(path) = crate::base_model() else {
        return;
    };
    let recorded: Recorded = serde_json::from_str(include_str!("tokenizer.json")).unwrap();
    let content = Content::read(&mut File::open(path).unwrap()).unwrap();
    let tokenizer = TextTokenizer::from_gguf(&content).unwrap();

    assert_eq!(tokenizer.vocabulary_size(), recorded.vocabulary_size);
    assert!(tokenizer.leading_tokens().is_empty());
    for (name, id) in &recorded.named {
        assert_eq!(tokenizer.token_id(name), Some(*id), "{name}");
    }
    for Line { text, ids, decoded } in &recorded.lines {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{text:?}");
    }
}

#[test]
fn a_tokenizer_json_gives_the_recorded_ids() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama-tiny");
    let tokenizer = TextTokenizer::from_file(format!("{folder}/tied/tokenizer.json")).unwrap();
    let recorded = std::fs::read(format!("{folder}/expected.json")).unwrap();
    let recorded: Vec<Line> = serde_json::from_slice(&recorded).unwrap();

    assert_eq!(tokenizer.vocabulary_size(), 300);
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    for Line { text, ids, decoded } in &recorded {
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{text:?}");
    }
    let absent = TextTokenizer::from_file(format!("{folder}/absent.json")).unwrap_err();
    assert!(absent.to_string().contains("absent.json"), "{absent}");
}

#[test]
fn every_family_gives_the_recorded_ids_from_either_file() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/families/tokenizers");
    let recorded = std::fs::read(format!("{folder}/expected.json")).unwrap();
    let recorded: HashMap<String, Vec<Line>> = serde_json::from_slice(&recorded).unwrap();
    assert_eq!(recorded.len(), 4);
    for (name, lines) in &recorded {
        let json = TextTokenizer::from_file(format!("{folder}/{name}.json")).unwrap();
        let content = Content::read(&mut File::open(format!("{folder}/{name}.gguf")).unwrap()).unwrap();
        let gguf = TextTokenizer::from_gguf(&content).unwrap();
        for (file, tokenizer) in [("json", &json), ("gguf", &gguf)] {
            for Line { text, ids, decoded } in lines {
                assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{name}.{file}: {text:?}");
                assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{name}.{file}: {text:?}");
            }
        }
        assert_eq!(json.leading_tokens(), gguf.leading_tokens(), "{name}");
        assert_eq!(
            json.leading_tokens().len(),
            usize::from(name.starts_with("llama")),
            "{name}"
        );
    }
}

#[test]
fn control_tokens_are_named_by_code_and_never_by_text() {
    let tokenizer = TextTokenizer::from_gguf(&tiny_gguf("smollm")).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let ids = tokenizer.encode("hi<|im_end|>").unwrap();
    assert!(!ids.contains(&end));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hi<|im_end|>");
    assert_eq!(tokenizer.decode(&[&ids[..], &[end]].concat()).unwrap(), "hi<|im_end|>");
}

#[test]
fn a_digit_takes_no_space_with_it_under_smollm() {
    let three_spaces_then_one = |pre| {
        let tokenizer = TextTokenizer::from_gguf(&tiny_gguf(pre)).unwrap();
        tokenizer.encode("   1").unwrap().len()
    };
    assert_eq!(three_spaces_then_one("smollm"), 3); // "  ", " ", "1"
    assert_eq!(three_spaces_then_one("gpt-2"), 2); // "  ", " 1"
}

#[test]
fn every_known_rule_gives_the_text_back() {
    for pre in ["smollm", "gpt-2", "default", "llama-bpe", "qwen2", "falcon"] {
        let tokenizer = TextTokenizer::from_gguf(&tiny_gguf(pre)).unwrap();
        for text in ["", " a  b\r\n\t1234 It's…", "中文 1２ 👍🏽", &" ".repeat(5000)] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{pre}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let unknown = TextTokenizer::from_gguf(&tiny_gguf("tekken")).unwrap_err();
    assert!(unknown.to_string().contains("`tekken`"), "{unknown}");

    let mut no_merges = tiny_gguf("smollm");
    no_merges.metadata.remove("tokenizer.ggml.merges");
    let missing = TextTokenizer::from_gguf(&no_merges).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.ggml.merges"), "{missing}");

    let mut sentencepiece = tiny_gguf("default");
    let model = Value::String("t5".to_owned());
    sentencepiece.metadata.insert("tokenizer.ggml.model".to_owned(), model);
    let kind = TextTokenizer::from_gguf(&sentencepiece).unwrap_err();
    assert!(matches!(kind, TokenizerError::UnsupportedModel(_)));

    let tokenizer = TextTokenizer::from_gguf(&tiny_gguf("smollm")).unwrap();
    let beyond = tokenizer.decode(&[0, 9_999]).unwrap_err();
    assert!(matches!(beyond, TokenizerError::UnknownToken(9_999)));
}

/// Metadata of a byte-level vocabulary: a control token, the bytes, two spaces, and " 1".
fn tiny_gguf(pre: &str) -> Content {
    let mut tokens = vec!["<|im_end|>".to_owned()];
    let mut odd = 256;
    for byte in 0..=255u32 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let letter = if printable { byte } else { odd };
        odd += u32::from(!printable);
        tokens.push(char::from_u32(letter).unwrap().to_string());
    }
    tokens.extend(["ĠĠ".to_owned(), "Ġ1".to_owned()]);
    let types = (0..tokens.len()).map(|i| Value::I32(if i == 0 { 3 } else { 1 }));
    let strings = |list: &[&str]| Value::Array(list.iter().map(|s| Value::String(s.to_string())).collect());
    let tokens_value = strings(&tokens.iter().map(String::as_str).collect::<Vec<_>>());
    let metadata = [
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String(pre.to_owned())),
        ("tokenizer.ggml.tokens", tokens_value),
        ("tokenizer.ggml.token_type", Value::Array(types.collect())),
        ("tokenizer.ggml.merges", strings(&["Ġ Ġ", "Ġ 1"])),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ];
    Content {
        magic: VersionedMagic::GgufV3,
        metadata: metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        tensor_infos: HashMap::new(),
        tensor_data_offset: 0,
    }
}
