//! Harmony, gpt-oss's format of answers: messages with a header, each in a channel.
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`. Read by tokens, not
//! by text, so that an answer that only speaks of these tags stays an answer. Format: OpenAI's `openai-harmony`, docs.

use super::reasoning::Piece;

/// The longest header that is kept, in bytes; the rest can't name a channel.
const HEADER_BYTES_MAX: usize = 1024;

/// The format's control tokens of one tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    /// `<|start|>`: a header begins.
    pub start: u32,
    /// `<|channel|>`: in a header, the channel's name follows.
    pub channel: u32,
    /// `<|message|>`: the header is over, the text begins.
    pub message: u32,
    /// `<|end|>`: the text is over.
    pub end: u32,
}

/// Which stream a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Reasoning,
    Text,
}

/// Follows the messages of one answer. It begins within a header: the prompt ends with `<|start|>assistant`.
#[derive(Clone, Debug)]
pub struct Harmony {
    tags: Tags,
    /// The header so far, from the last `<|channel|>` on, or the stream of the text.
    state: Result<Stream, String>,
    /// Whether a message of the same stream came before: a blank line parts them.
    is_continued: [bool; 2],
    /// Whether the message is the answer, not something for the person to read meanwhile.
    is_final: bool,
}

impl Harmony {
    /// Makes the reader of one answer.
    pub fn new(tags: Tags) -> Self {
        Self { tags, state: Err(String::new()), is_continued: [false; 2], is_final: false }
    }

    /// Takes one of the tokenizer's control tokens; gives what parts the message that begins with it, where one does,
    /// from an earlier one of the same stream. Stray ones change nothing.
    pub fn take(&mut self, token: u32) -> Option<Piece> {
        let Tags { start, channel, message, end } = self.tags;
        match &self.state {
            _ if token == start || token == end => self.state = Err(String::new()),
            Err(_) if token == channel => self.state = Err(String::new()),
            Err(header) if token == message => {
                let stream = stream_of(header);
                self.is_final = !header.trim_start().starts_with("commentary");
                self.state = Ok(stream);
                return self.separator(stream);
            }
            _ => {}
        }
        None
    }

    /// Whether the text of an answer follows, in the channel `final`.
    pub fn is_final(&self) -> bool {
        self.state == Ok(Stream::Text) && self.is_final
    }

    /// Takes text between the format's own tokens; gives what isn't part of a header.
    pub fn push(&mut self, text: String) -> Option<Piece> {
        match &mut self.state {
            Err(header) => {
                if header.len() + text.len() <= HEADER_BYTES_MAX {
                    header.push_str(&text);
                }
                None
            }
            Ok(_) if text.is_empty() => None,
            Ok(Stream::Reasoning) => Some(Piece::Reasoning(text)),
            Ok(Stream::Text) => Some(Piece::Text(text)),
        }
    }

    fn separator(&mut self, stream: Stream) -> Option<Piece> {
        let is_continued = &mut self.is_continued[usize::from(stream == Stream::Text)];
        let separator = "\n\n".to_owned();
        match (std::mem::replace(is_continued, true), stream) {
            (false, _) => None,
            (true, Stream::Reasoning) => Some(Piece::Reasoning(separator)),
            (true, Stream::Text) => Some(Piece::Text(separator)),
        }
    }
}

/// The stream of a channel. `commentary` is for the person to read, unless it is addressed to a tool; a message
/// without a channel is an answer.
fn stream_of(header: &str) -> Stream {
    let name = header.split_whitespace().next().unwrap_or_default();
    match name {
        "analysis" => Stream::Reasoning,
        "commentary" if header.contains("to=") => Stream::Reasoning,
        _ => Stream::Text,
    }
}
