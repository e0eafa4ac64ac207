//! Examples as token sets.

use super::TrainError;
use super::batch::TokenSet;
use super::dataset::Example;
use crate::model::tokenizer::TextTokenizer;
use crate::prompt::RewritePrompt;

/// What a candidate's likelihood is conditioned on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conditioning {
    /// The rewrite prompt of the anchor; a candidate ends with the prompt's end token, which counts.
    Prompt(RewritePrompt),
    /// Nothing but what the tokenizer itself puts before any text; a candidate's first token predicts and is not predicted.
    Nothing,
}

/// Tokenised examples.
#[derive(Debug, Clone)]
pub struct TokenSets {
    /// One a usable example.
    pub sets: Vec<TokenSet>,
    /// Examples that were left out: too long, or without a positive that has a token to predict.
    pub left_out: usize,
}

/// Tokenises examples as they come, so that no more than one text is held. Those whose prompt and longest candidate exceed
/// `max_tokens` are left out.
///
/// # Errors
/// The first example that is one, and when none can be used.
pub fn tokenise(
    examples: impl IntoIterator<Item = Result<Example, TrainError>>,
    tokenizer: &TextTokenizer,
    conditioning: &Conditioning,
    max_tokens: usize,
) -> Result<TokenSets, TrainError> {
    let (mut sets, mut left_out) = (Vec::new(), 0);
    for example in examples {
        let set = set(&example?, tokenizer, conditioning)?;
        let longest = set.candidates().map(Vec::len).max().unwrap_or(0);
        if set.positives.is_empty() || set.prompt.len() + longest > max_tokens {
            left_out += 1;
        } else {
            sets.push(set);
        }
    }
    if sets.is_empty() {
        return Err(TrainError::Empty(match left_out {
            0 => "it is empty".to_owned(),
            count => format!("every one of {count} is longer than {max_tokens} tokens, or too short"),
        }));
    }
    Ok(TokenSets { sets, left_out })
}

fn set(example: &Example, tokenizer: &TextTokenizer, conditioning: &Conditioning) -> Result<TokenSet, TrainError> {
    let encode = |text: &str| {
        tokenizer
            .encode(text.trim())
            .map_err(|error| TrainError::Setting(error.to_string()))
    };
    let candidates = |texts: &[String]| -> Result<Vec<Vec<u32>>, TrainError> {
        let mut candidates = Vec::with_capacity(texts.len());
        for text in texts {
            let mut tokens = encode(text)?;
            match conditioning {
                Conditioning::Prompt(prompt) => tokens.push(prompt.end()),
                Conditioning::Nothing => tokens = [tokenizer.leading_tokens(), &tokens].concat(),
            }
            if *conditioning != Conditioning::Nothing || tokens.len() > 1 {
                candidates.push(tokens);
            }
        }
        Ok(candidates)
    };
    Ok(TokenSet {
        prompt: match conditioning {
            Conditioning::Prompt(prompt) => prompt.tokens(&encode(&example.anchor)?),
            Conditioning::Nothing => Vec::new(),
        },
        positives: candidates(&example.positives)?,
        negatives: candidates(&example.negatives)?,
        random: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> TextTokenizer {
        let file = "tests/fixtures/llama-tiny/tied/tokenizer.json";
        TextTokenizer::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
    }

    fn example(anchor: &str, positive: &str, negative: &str) -> Result<Example, TrainError> {
        Ok(Example {
            anchor: anchor.to_owned(),
            positives: vec![positive.to_owned()],
            negatives: vec![negative.to_owned()],
        })
    }

    #[test]
    fn a_prompt_conditions_and_its_end_counts() {
        let tokenizer = tokenizer();
        let prompt = RewritePrompt::new(&tokenizer).unwrap();
        let examples = [example("a b", "c", "d"), example("a b c d e f g h i j", "c", "d")];
        let got = tokenise(examples, &tokenizer, &Conditioning::Prompt(prompt.clone()), 10).unwrap();
        assert_eq!((got.sets.len(), got.left_out), (1, 1));
        assert_eq!(got.sets[0].prompt, prompt.tokens(&tokenizer.encode("a b").unwrap()));
        let end = [tokenizer.encode("c").unwrap(), vec![prompt.end()]].concat();
        assert_eq!(got.sets[0].positives, [end]);
    }

    #[test]
    fn without_a_prompt_texts_stand_alone() {
        let tokenizer = tokenizer();
        let examples = [example("a b", "c d e", "d"), example("a b", "c", "d e")];
        let got = tokenise(examples, &tokenizer, &Conditioning::Nothing, 10).unwrap();
        // One token alone has nothing to predict.
        assert_eq!((got.sets.len(), got.left_out), (1, 1));
        let set = &got.sets[0];
        assert!(set.prompt.is_empty() && set.negatives.is_empty());
        assert_eq!(set.positives, [tokenizer.encode("c d e").unwrap()]);
    }

    #[test]
    fn a_bad_line_stops_it() {
        let bad = TrainError::Setting("line 3".to_owned());
        let got = tokenise(
            [example("a", "b", "c"), Err(bad)],
            &tokenizer(),
            &Conditioning::Nothing,
            9,
        );
        assert_eq!(got.unwrap_err().to_string(), "line 3");
    }
}
