//! From an answer's tokens to its text: decoded, thoughts apart, ended by a stop string.

use super::EngineError;
use super::reasoning::{Piece, ReasoningSplit};
use super::stop::StopStrings;
use super::tokenizer::{TextStream, Tokenizer};

/// The text of one answer while it grows.
#[derive(Debug)]
pub(crate) struct Output {
    stream: TextStream,
    split: ReasoningSplit,
    /// Stop strings count in the answer, not in thoughts.
    stops: StopStrings,
    is_stopped: bool,
    text: String,
    reasoning: Option<String>,
}

impl Output {
    /// Makes the output of a model that may think, or not, after `prompt`.
    pub(crate) fn new(prompt: &str, thinks: bool, stops: &[String]) -> Self {
        Self {
            stream: TextStream::default(),
            split: ReasoningSplit::new(thinks, prompt),
            stops: StopStrings::new(stops),
            is_stopped: false,
            text: String::new(),
            reasoning: None,
        }
    }

    /// Takes the next token and gives the pieces that are certain.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<Vec<Piece>, EngineError> {
        if tokenizer.is_hidden(token) {
            return Ok(Vec::new());
        }
        let text = self.stream.push(tokenizer, token)?;
        let pieces = self.split.push(&text);
        Ok(self.take(pieces))
    }

    /// Gives what was held back: no more tokens come.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<Vec<Piece>, EngineError> {
        if self.is_stopped {
            return Ok(Vec::new());
        }
        let text = self.stream.finish(tokenizer)?;
        let mut pieces = self.split.push(&text);
        pieces.extend(self.split.finish());
        let mut pieces = self.take(pieces);
        if !self.is_stopped {
            let held = self.stops.finish();
            self.text.push_str(&held);
            pieces.extend((!held.is_empty()).then_some(Piece::Text(held)));
        }
        Ok(pieces)
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
