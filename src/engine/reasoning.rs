//! `<think>…</think>`: keeps what a model thinks apart from what it answers, while the text arrives in pieces.

/// What begins a thought.
pub(crate) const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// A piece of text and which stream it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A thought, which is no part of the answer.
    Reasoning(String),
    /// A part of the answer.
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but whitespace came so far.
    Start,
    /// In a thought that has no text yet.
    ThoughtStart,
    /// In a thought.
    Thought,
    /// After a thought, before the answer has any text.
    AnswerStart,
    /// In the answer.
    Answer,
}

/// Splits text that arrives in pieces. A thought can only stand before the answer: `<think>` later is ordinary text.
#[derive(Clone, Debug)]
pub struct ReasoningSplit {
    state: State,
    held: String,
}

impl ReasoningSplit {
    /// Makes a split for a model that thinks where `thinks`; else all text is the answer. `prompt` is the rendered
    /// prompt: some templates open the thought themselves.
    pub fn new(thinks: bool, prompt: &str) -> Self {
        let state = match thinks {
            true if prompt.trim_end().ends_with(OPEN) => State::ThoughtStart,
            true => State::Start,
            false => State::Answer,
        };
        Self { state, held: String::new() }
    }

    /// Takes the next piece of text and gives out what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Whether what comes next belongs to the answer, or would begin it.
    pub fn is_answering(&self) -> bool {
        match self.state {
            State::Start => self.held.trim().is_empty(),
            State::AnswerStart | State::Answer => true,
            State::ThoughtStart | State::Thought => false,
        }
    }

    /// Whether a thought may still begin.
    pub fn may_think(&self) -> bool {
        self.state == State::Start
    }

    /// Gives out what is still held back: no more text comes.
    pub fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Thought | State::ThoughtStart if !held.trim().is_empty() => {
                vec![Piece::Reasoning(held.trim_end().to_owned())]
            }
            State::Start | State::Answer if !held.is_empty() => vec![Piece::Text(held)],
            _ => Vec::new(),
        }
    }

    /// Moves on by one state; says whether there is more to do.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(thought) = text.strip_prefix(OPEN) {
                    self.held = thought.to_owned();
                    self.state = State::ThoughtStart;
                    return true;
                }
                let is_open = OPEN.starts_with(text);
                self.state = if is_open { State::Start } else { State::Answer };
                !is_open
            }
            State::ThoughtStart | State::AnswerStart => {
                self.held = self.held.trim_start().to_owned();
                let is_empty = self.held.is_empty();
                if !is_empty {
                    self.state = if self.state == State::ThoughtStart { State::Thought } else { State::Answer };
                }
                !is_empty
            }
            State::Thought => {
                let close = self.held.find(CLOSE);
                let end = close.unwrap_or_else(|| held_from(&self.held));
                // The whitespace before the closing tag belongs to neither stream.
                let thought = &self.held[..end];
                let thought = if close.is_some() { thought.trim_end() } else { thought };
                if !thought.is_empty() {
                    pieces.push(Piece::Reasoning(thought.to_owned()));
                }
                self.held = self.held[end + close.map_or(0, |_| CLOSE.len())..].to_owned();
                self.state = if close.is_some() { State::AnswerStart } else { State::Thought };
                close.is_some()
            }
            State::Answer => {
                if !self.held.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }
}

/// Where the end of a thought's text begins that may turn out to be whitespace before `</think>`, or its beginning.
fn held_from(text: &str) -> usize {
    let tag = (1..CLOSE.len()).rev().find(|&len| text.ends_with(&CLOSE[..len])).unwrap_or(0);
    text[..text.len() - tag].trim_end().len()
}

/// Splits a whole text, such as one that another program stored: the thought, where there is one, and the answer.
pub fn split_whole(text: &str) -> (Option<String>, String) {
    let mut split = ReasoningSplit::new(true, "");
    let mut pieces = split.push(text);
    pieces.extend(split.finish());
    let (mut reasoning, mut answer) = (None, String::new());
    for piece in pieces {
        match piece {
            Piece::Reasoning(text) => reasoning.get_or_insert_with(String::new).push_str(&text),
            Piece::Text(text) => answer.push_str(&text),
        }
    }
    (reasoning, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(thinks: bool, prompt: &str, text: &str, cut: usize) -> (String, String) {
        let mut split = ReasoningSplit::new(thinks, prompt);
        let chars: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> =
            chars.chunks(cut).flat_map(|part| split.push(&part.iter().collect::<String>())).collect();
        pieces.extend(split.finish());
        pieces.into_iter().fold(Default::default(), |(thought, answer), piece| match piece {
            Piece::Reasoning(text) => (thought + &text, answer),
            Piece::Text(text) => (thought, answer + &text),
        })
    }

    #[test]
    fn thoughts_and_answers_are_apart_however_the_text_arrives() {
        for (thinks, prompt, text, thought, answer) in [
            (true, "", "<think>\nhm,\nso\n</think>\n\nYes.", "hm,\nso", "Yes."),
            (true, "…<think>\n", "hm\n</think>\n\nYes.", "hm", "Yes."),
            (true, "", "\n<think></think>Yes.", "", "Yes."),
            (true, "", "<think>\n\n</think>\n\nYes.\n", "", "Yes.\n"),
            (true, "", "Yes <think>no</think>", "", "Yes <think>no</think>"),
            (true, "", " <thin air", "", " <thin air"),
            (true, "", "<thi", "", "<thi"),
            (true, "", "<think>a < b </thin </think>c", "a < b </thin", "c"),
            (true, "", "<think>cut off </th", "cut off </th", ""),
            (true, "", "<think>cut off \n", "cut off", ""),
            (true, "", "<think>é ü</think>ö", "é ü", "ö"),
            (true, "", "", "", ""),
            (false, "…<think>\n", "a <think>b</think>", "", "a <think>b</think>"),
        ] {
            for cut in [1, 2, 3, 7, 100] {
                assert_eq!(run(thinks, prompt, text, cut), (thought.into(), answer.into()), "{text:?} in {cut}s");
            }
        }
    }

    #[test]
    fn a_whole_text_is_split() {
        assert_eq!(split_whole("<think>a</think>b"), (Some("a".into()), "b".into()));
        assert_eq!(split_whole("b </think> c"), (None, "b </think> c".into()));
    }
}
