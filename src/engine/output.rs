//! From an answer's tokens to its text: decoded, thoughts apart, ended by a stop string.

use super::EngineError;
use super::harmony::{Harmony, Tags};
use super::reasoning::{OPEN, Piece, ReasoningSplit};
use super::stop::StopStrings;
use super::tokenizer::{TextStream, Tokenizer};
use crate::modelfile::Form;

/// How a model writes its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Nothing but the answer.
    Plain,
    /// `<think>…</think>` may stand before the answer.
    Think,
    /// Messages in channels.
    Harmony(Tags),
}

impl Format {
    /// The format that was asked for, or the one that goes with a chat template; `None` where the tokenizer lacks its tags.
    pub(crate) fn of(parser: Form, template: &str, tokenizer: &Tokenizer) -> Option<Self> {
        let tag = |text| tokenizer.control().iter().find(|token| token.text == text).map(|token| token.id);
        let tags = || {
            let (start, end) = (tag("<|start|>")?, tag("<|end|>")?);
            Some(Tags { start, channel: tag("<|channel|>")?, message: tag("<|message|>")?, end })
        };
        Some(match parser {
            Form::Harmony => Self::Harmony(tags()?),
            Form::Chatml => Self::Think,
            Form::Passthrough => Self::Plain,
            Form::Auto => match tags().filter(|_| template.contains("<|channel|>")) {
                Some(tags) => Self::Harmony(tags),
                None if template.contains("</think>") => Self::Think,
                None => Self::Plain,
            },
        })
    }
}

/// The text of one answer while it grows.
#[derive(Debug)]
pub(crate) struct Output {
    stream: TextStream,
    split: ReasoningSplit,
    harmony: Option<Harmony>,
    /// Stop strings count in the answer, not in thoughts.
    stops: StopStrings,
    is_stopped: bool,
    text: String,
    reasoning: Option<String>,
}

impl Output {
    /// Makes the output of an answer to `prompt`.
    pub(crate) fn new(format: Format, prompt: &str, stops: &[String]) -> Self {
        Self {
            stream: TextStream::default(),
            split: ReasoningSplit::new(format == Format::Think, prompt),
            harmony: match format {
                Format::Harmony(tags) => Some(Harmony::new(tags)),
                Format::Plain | Format::Think => None,
            },
            stops: StopStrings::new(stops),
            is_stopped: false,
            text: String::new(),
            reasoning: None,
        }
    }

    /// Takes the next token and gives the pieces that are certain.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<Vec<Piece>, EngineError> {
        let Some(harmony) = &mut self.harmony else {
            if tokenizer.is_hidden(token) {
                return Ok(Vec::new());
            }
            let text = self.stream.push(tokenizer, token)?;
            let pieces = self.split.push(&text);
            return Ok(self.take(pieces));
        };
        let mut pieces = Vec::new();
        if tokenizer.is_hidden(token) {
            // Text that waits belongs before the tag.
            pieces.extend(harmony.push(self.stream.finish(tokenizer)?));
            pieces.extend(harmony.take(token));
        } else {
            pieces.extend(harmony.push(self.stream.push(tokenizer, token)?));
        }
        Ok(self.take(pieces))
    }

    /// Gives what was held back: no more tokens come.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<Vec<Piece>, EngineError> {
        if self.is_stopped {
            return Ok(Vec::new());
        }
        let text = self.stream.finish(tokenizer)?;
        let pieces = match &mut self.harmony {
            Some(harmony) => harmony.push(text).into_iter().collect(),
            None => {
                let mut pieces = self.split.push(&text);
                pieces.extend(self.split.finish());
                pieces
            }
        };
        let mut pieces = self.take(pieces);
        if !self.is_stopped {
            let held = self.stops.finish();
            self.text.push_str(&held);
            pieces.extend((!held.is_empty()).then_some(Piece::Text(held)));
        }
        Ok(pieces)
    }

    /// Whether the next token belongs to the answer, or would begin it: a grammar applies there.
    pub(crate) fn is_answering(&self) -> bool {
        match &self.harmony {
            Some(harmony) => harmony.is_final(),
            None => self.split.is_answering(),
        }
    }

    /// The tag that may open a thought instead of an answer now.
    pub(crate) fn thought_tag(&self) -> Option<&'static str> {
        (self.harmony.is_none() && self.split.may_think()).then_some(OPEN)
    }

    /// Whether a stop string came.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// The answer and the thought.
    pub(crate) fn into_text(self) -> (String, Option<String>) {
        (self.text, self.reasoning)
    }

    fn take(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        let mut taken = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Reasoning(thought) => {
                    self.reasoning.get_or_insert_default().push_str(&thought);
                    taken.push(Piece::Reasoning(thought));
                }
                Piece::Text(_) if self.is_stopped => {}
                Piece::Text(text) => {
                    let (text, is_stopped) = self.stops.push(&text);
                    self.is_stopped = is_stopped;
                    self.text.push_str(&text);
                    taken.extend((!text.is_empty()).then_some(Piece::Text(text)));
                }
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::test_model::{self, HARMONY, VOCAB_SIZE};

    /// Runs an answer; `{` `}` `:` `#` stand for Harmony's start, end, message and channel.
    fn run(answer: &str, stops: &[&str]) -> (String, Option<String>) {
        let template = "<|channel|>";
        let (_folder, verified) = test_model::folder(template, &[]);
        let tokenizer = Tokenizer::load(&verified, template, VOCAB_SIZE).expect("it is sound");
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut output = Output::new(Format::of(Form::Auto, template, &tokenizer).expect("it is known"), "", &stops);
        let mut streamed = (String::new(), None::<String>);
        let mut add = |pieces: Vec<Piece>| {
            for piece in pieces {
                match piece {
                    Piece::Text(text) => streamed.0.push_str(&text),
                    Piece::Reasoning(text) => streamed.1.get_or_insert_default().push_str(&text),
                }
            }
        };
        for byte in answer.bytes() {
            let token = "{}:#".bytes().position(|tag| tag == byte).map_or(u32::from(byte), |i| HARMONY[i]);
            add(output.push(&tokenizer, token).expect("it decodes"));
            if output.is_stopped() {
                break;
            }
        }
        add(output.finish(&tokenizer).expect("it decodes"));
        let whole = output.into_text();
        assert_eq!(whole, streamed);
        whole
    }

    #[test]
    fn channels_are_read() {
        for (answer, stops, text, reasoning) in [
            ("#analysis:hmé}{assistant#final:Yes.", &[][..], "Yes.", Some("hmé")),
            ("#final:Yes.", &[], "Yes.", None),
            (":Yes.", &[], "Yes.", None),
            ("#analysis:a}{assistant#analysis:b}{assistant#final:c}{assistant#final:d", &[], "c\n\nd", Some("a\n\nb")),
            ("#commentary:I look.}{assistant#commentary to=functions.f json:x}", &[], "I look.", Some("x")),
            (" to=functions.f#commentary json:x", &[], "x", None),
            ("#analysis:cut", &[], "", Some("cut")),
            ("#ana", &[], "", None),
            ("#analysis:a#b}{assistant#final:<|end|>", &[], "<|end|>", Some("ab")),
            ("#analysis:stop}{assistant#final:a stop b", &["stop"], "a ", Some("stop")),
            ("#analysis:a:b{assistant#final:c", &[], "c", Some("ab")),
            ("", &[], "", None),
        ] {
            let expected = (text.to_owned(), reasoning.map(str::to_owned));
            assert_eq!(run(answer, stops), expected, "{answer}");
        }
    }

    #[test]
    fn the_format_goes_with_the_template() {
        let (_folder, verified) = test_model::folder("", &[]);
        let tokenizer = Tokenizer::load(&verified, "", VOCAB_SIZE).expect("it is sound");
        let [start, end, message, channel] = HARMONY;
        for (template, format) in [
            ("", Format::Plain),
            ("a </think> b", Format::Think),
            ("a <|channel|> </think>", Format::Harmony(Tags { start, channel, message, end })),
        ] {
            assert_eq!(Format::of(Form::Auto, template, &tokenizer), Some(format));
        }
        assert_eq!(Format::of(Form::Chatml, "", &tokenizer), Some(Format::Think));
        assert_eq!(Format::of(Form::Passthrough, "</think>", &tokenizer), Some(Format::Plain));
        assert!(matches!(Format::of(Form::Harmony, "", &tokenizer), Some(Format::Harmony(_))));
        let mut json = test_model::tokenizer_json();
        json["added_tokens"] = serde_json::json!([]);
        std::fs::write(verified.path().join("tokenizer.json"), json.to_string()).expect("target can be written");
        let without = Tokenizer::load(&verified, "", VOCAB_SIZE).expect("it is sound");
        assert_eq!(Format::of(Form::Harmony, "", &without), None);
    }
}
