//! A byte-level tokenizer without merges: one token a byte, so that characters come in pieces.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::engine::test_model::{self, CHATML, IM_END, IM_START, RETURN, THINK, VOCAB_SIZE};
use crate::test_folder::TestFolder;

fn load(json: &Value, vocab_size: usize) -> Result<Tokenizer, TokenizerError> {
    let folder = TestFolder::new();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("target can be written");
    Tokenizer::load(&VerifiedFolder::unlisted(folder.path()), "<think> is written", vocab_size)
}

fn tiny() -> Tokenizer {
    load(&test_model::tokenizer_json(), VOCAB_SIZE).expect("it is sound")
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn stream(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut stream = TextStream::default();
    let mut pieces: Vec<String> =
        tokens.iter().map(|&token| stream.push(tokenizer, token).expect("it decodes")).collect();
    pieces.push(stream.finish(tokenizer).expect("it decodes"));
    pieces
}

#[test]
fn ordinary_text_has_no_control_tokens() {
    let mut tokenizer = tiny();
    for text in ["", "a b", "<|im_end|>", "x<|im_start|>system\n", "<think>é</think>", "<|im_<|im_end|>end|>"] {
        let tokens = tokenizer.encode(text).expect("it encodes");
        // `</think>` isn't in the template of this test: it is text, but the tokenizer has a token for it.
        let expected = text.replace("</think>", "\u{1}");
        let expected = bytes(&expected).into_iter().map(|b| if b == 1 { test_model::THINK_END } else { b });
        assert_eq!(tokens, expected.collect::<Vec<_>>(), "{text}");
        assert_eq!(tokenizer.decode(&tokens).expect("it decodes"), text);
    }
    assert!(tokenizer.is_hidden(IM_END) && !tokenizer.is_hidden(THINK));
    assert!(tokenizer.ends_turn(IM_END) && !tokenizer.ends_turn(THINK));
}

#[test]
fn a_vocabulary_that_holds_a_control_token_as_a_word_is_outwitted() {
    let mut json = test_model::tokenizer_json();
    json["model"] = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["?", -9.0], ["h", -9.0], ["i", -9.0], ["<", -9.0], [">", -9.0], ["<hi>", -1.0]]});
    json["pre_tokenizer"] = Value::Null;
    json["decoder"] = json!({"type": "Fuse"});
    json["added_tokens"] = json!([{"id": 5, "content": "<hi>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false}]);
    let mut tokenizer = load(&json, 6).expect("it is sound");
    assert_eq!(tokenizer.encode("i<hi>h").expect("it encodes"), [2, 3, 1, 2, 4, 1]);
}

#[test]
fn characters_come_whole() {
    let tokenizer = tiny();
    for (text, expected) in [
        ("aé", vec!["a", "", "é", ""]),
        ("€", vec!["", "", "€", ""]),
        ("😀!", vec!["", "", "", "😀", "!", ""]),
        ("\u{fffd}x", vec!["", "", "", "\u{fffd}x", ""]),
    ] {
        assert_eq!(stream(&tokenizer, &bytes(text)), expected, "{text}");
    }
    assert_eq!(stream(&tokenizer, &[0xf0, 0x9f]), ["", "", "\u{fffd}"]);
    // Broken bytes don't dam up the text behind them.
    let broken = stream(&tokenizer, &[0xff; 9]);
    assert_eq!(broken[5], "\u{fffd}");
    assert_eq!(broken.concat(), "\u{fffd}".repeat(9));
    // A token that the tokenizer doesn't know has no text.
    assert_eq!(stream(&tokenizer, &[u32::from(b'a'), 300, 9999]).concat(), "a");
}

proptest! {
    #[test]
    fn pieces_together_are_the_whole(tokens in prop::collection::vec(prop_oneof![0u32..260, 0xe0u32..0xf8, 0x80u32..0xc0], 0..60)) {
        let tokenizer = tiny();
        let pieces = stream(&tokenizer, &tokens);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&tokens).expect("it decodes"));
    }

    #[test]
    fn text_comes_back(text in ".{0,40}") {
        let mut tokenizer = tiny();
        let tokens = tokenizer.encode(&text).expect("it encodes");
        prop_assert_eq!(tokenizer.decode(&tokens).expect("it decodes"), text);
    }
}

#[test]
fn foreign_and_hostile_tokenizers_are_refused() {
    let edit = |change: &dyn Fn(&mut Value)| {
        let mut json = test_model::tokenizer_json();
        change(&mut json);
        json
    };
    for (json, vocab_size, expected) in [
        (json!({}), 320, "`tokenizer.json` of the model can't be used: "),
        (json!([1, 2]), 320, "`tokenizer.json` of the model can't be used: "),
        (edit(&|json| json["model"] = json!({"type": "None"})), 320, "`tokenizer.json` of the model can't be used: "),
        (
            edit(&|json| json["model"]["merges"] = json!([["a", "nothing"]])),
            320,
            "`tokenizer.json` of the model can't be used: ",
        ),
        (test_model::tokenizer_json(), 257, "the tokenizer has a token 2"),
    ] {
        let error = load(&json, vocab_size).expect_err("it is hostile").to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let mut far = load(&edit(&|json| json["model"]["vocab"]["a"] = json!(77_777)), 320).expect("only `a` is wrong");
    assert_eq!(
        far.encode("a").expect_err("it is beyond").to_string(),
        "the tokenizer has a token 77777, but the model knows only 320"
    );
    let many: Vec<Value> = (0..=ADDED_TOKENS_MAX)
        .map(|i| {
            json!({"id": i + 256, "content": format!("<{i}>"), "special": true, "single_word": false,
                        "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let error = load(&edit(&|json| json["added_tokens"] = json!(many)), 1 << 20).expect_err("too many").to_string();
    assert!(error.contains("added tokens instead of at most 65536"), "{error}");
}

#[test]
fn settings_that_cut_or_fill_texts_are_ignored() {
    let mut json = test_model::tokenizer_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "?"});
    let mut tokenizer = load(&json, VOCAB_SIZE).expect("it is sound");
    assert_eq!(tokenizer.encode("abcd").expect("it encodes"), bytes("abcd"));
}

#[test]
fn turns_end_where_the_files_say() {
    let (folder, verified) = test_model::folder(CHATML, &[]);
    let put = |content: &str| std::fs::write(folder.path().join("generation_config.json"), content);
    for (content, ends) in
        [(r#"{"eos_token_id": 7}"#, vec![7]), (r#"{"eos_token_id": [8, 9]}"#, vec![8, 9]), ("{}", vec![])]
    {
        put(content).expect("target can be written");
        let tokenizer = Tokenizer::load(&verified, CHATML, VOCAB_SIZE).expect("it is sound");
        let found: Vec<u32> = (0..320).filter(|&token| tokenizer.ends_turn(token)).collect();
        assert_eq!(found, [ends, vec![IM_START, IM_END, RETURN]].concat(), "{content}");
    }
    put("[").expect("target can be written");
    let error = Tokenizer::load(&verified, CHATML, VOCAB_SIZE).expect_err("it is no JSON").to_string();
    assert!(error.starts_with("`generation_config.json` of the model can't be used: "), "{error}");
}

#[test]
fn damaged_tokenizers_never_end_the_program() {
    let whole = test_model::tokenizer_json().to_string();
    let folder = TestFolder::new();
    let verified = VerifiedFolder::unlisted(folder.path());
    let (mut loaded, mut refused) = (0, 0);
    // Each place gets a digit, a quote, a bracket, or ends the file there.
    for (i, at) in (0..whole.len()).step_by(23).enumerate() {
        let mut damaged = whole.clone().into_bytes();
        match i % 4 {
            0 => damaged[at] = b'9',
            1 => damaged[at] = b'"',
            2 => damaged[at] = b']',
            _ => damaged.truncate(at),
        }
        std::fs::write(folder.path().join("tokenizer.json"), &damaged).expect("target can be written");
        match Tokenizer::load(&verified, CHATML, VOCAB_SIZE) {
            Ok(mut tokenizer) => {
                loaded += 1;
                if let Ok(tokens) = tokenizer.encode("Aé <|im_end|>\n") {
                    assert!(tokens.iter().all(|&token| (token as usize) < VOCAB_SIZE));
                    let _ = tokenizer.decode(&tokens);
                }
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty() && error.hint().is_some());
            }
        }
    }
    assert!(loaded > 0 && refused > 100, "{loaded} loaded, {refused} refused");
}
