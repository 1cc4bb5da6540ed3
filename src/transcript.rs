//! A session as values: what was said, by whom and when; printed as Markdown and JSON, and read back from our JSON.

use std::collections::HashSet;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::hint::Hint;
use crate::message::{Message, MessageId, Role, SessionId};
use crate::time::Timestamp;

/// The largest file of transcripts that is parsed, in bytes.
pub const TRANSCRIPTS_BYTES_MAX: u64 = 256 << 20;
/// The longest content or reasoning of one message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The longest title, in bytes.
pub const TITLE_BYTES_MAX: usize = 512;
/// The longest name of a model, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;
/// The most messages of one session.
pub const SESSION_MESSAGES_MAX: usize = 100_000;
/// The most sessions of one store, and of one file of transcripts.
pub const SESSIONS_MAX: usize = 100_000;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// The limit of tokens or of the context was reached.
    Length,
    /// The person stopped it; what was said until then is kept.
    Cancelled,
}

impl FinishReason {
    /// The reason's name in JSON and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Stop, Self::Length, Self::Cancelled].into_iter().find(|reason| reason.as_str() == name)
    }
}

/// How many tokens an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCount {
    /// The prompt's.
    pub input_tokens: u64,
    /// The answer's, thoughts included.
    pub output_tokens: u64,
}

/// A message that is, or was, kept in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its name.
    pub id: MessageId,
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
    /// What the model thought before it answered.
    pub reasoning: Option<String>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// Why the answer ended; nothing for what a person said.
    pub finish_reason: Option<FinishReason>,
    /// The model that answered.
    pub model: Option<String>,
    /// The tokens the answer took.
    pub usage: Option<TokenCount>,
}

impl StoredMessage {
    /// Whether the person stopped the answer before its end.
    pub fn is_interrupted(&self) -> bool {
        self.finish_reason == Some(FinishReason::Cancelled)
    }

    /// The message as the model sees it.
    pub fn to_message(&self) -> Message {
        Message { role: self.role, content: self.content.clone(), reasoning: self.reasoning.clone() }
    }
}

/// A whole session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// Its name.
    pub id: SessionId,
    /// What the person calls it.
    pub title: Option<String>,
    /// The model it began with.
    pub model: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last added to.
    pub updated_at: Timestamp,
    /// What was said, oldest first.
    pub messages: Vec<StoredMessage>,
}

/// A text is not our JSON of transcripts.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// The text isn't JSON of the right shape.
    #[error("this isn't a file of Tiles sessions")]
    Shape(#[source] serde_json::Error),
    /// It is of a format this version doesn't know.
    #[error("the sessions are in format {found}, and this version reads format {FORMAT}")]
    Format {
        /// The format's number.
        found: u32,
    },
    /// A value is one that can't be.
    #[error("session {} is wrong: {what}", session_idx + 1)]
    Value {
        /// Which session of the file, from 0.
        session_idx: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file is larger than anything that is read.
    #[error("the file has {bytes} bytes, more than the {TRANSCRIPTS_BYTES_MAX} that are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl Hint for TranscriptError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Format { .. } => "update Tiles and try again".into(),
            Self::TooLarge { .. } => "export fewer sessions into one file".into(),
            _ => "use a file that `tiles session export --format json` wrote".into(),
        })
    }
}

/// The format's number in JSON.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFile {
    tiles_sessions: u32,
    sessions: Vec<WireSession>,
}

/// Only the number, to tell a newer format from a wrong shape.
#[derive(Deserialize)]
struct WireFormat {
    tiles_sessions: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSession {
    id: String,
    title: Option<String>,
    model: String,
    created_at_ms: i64,
    updated_at_ms: i64,
    messages: Vec<WireMessage>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    id: String,
    role: String,
    content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    created_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finish_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<WireUsage>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireUsage {
    input_tokens: u64,
    output_tokens: u64,
}

/// Prints sessions as JSON that [`parse_json`] reads back, indented, with a newline at the end.
pub fn to_json(transcripts: &[Transcript]) -> String {
    let sessions = transcripts.iter().map(wire_session).collect();
    let file = WireFile { tiles_sessions: FORMAT, sessions };
    let mut text = serde_json::to_string_pretty(&file).expect("texts and numbers can be written as JSON");
    text.push('\n');
    text
}

fn wire_session(transcript: &Transcript) -> WireSession {
    let messages = transcript.messages.iter().map(|message| WireMessage {
        id: message.id.to_string(),
        role: message.role.as_str().into(),
        content: message.content.clone(),
        reasoning: message.reasoning.clone(),
        created_at_ms: message.created_at.as_ms(),
        finish_reason: message.finish_reason.map(|reason| reason.as_str().into()),
        model: message.model.clone(),
        usage: message
            .usage
            .map(|usage| WireUsage { input_tokens: usage.input_tokens, output_tokens: usage.output_tokens }),
    });
    WireSession {
        id: transcript.id.to_string(),
        title: transcript.title.clone(),
        model: transcript.model.clone(),
        created_at_ms: transcript.created_at.as_ms(),
        updated_at_ms: transcript.updated_at.as_ms(),
        messages: messages.collect(),
    }
}

/// Reads what [`to_json`] printed. The text may come from anyone: every value is checked, unknown fields are refused.
///
/// # Errors
/// [`TranscriptError`], naming the session that is wrong.
pub fn parse_json(text: &str) -> Result<Vec<Transcript>, TranscriptError> {
    if text.len() as u64 > TRANSCRIPTS_BYTES_MAX {
        return Err(TranscriptError::TooLarge { bytes: text.len() });
    }
    let format: WireFormat = serde_json::from_str(text).map_err(TranscriptError::Shape)?;
    if format.tiles_sessions != FORMAT {
        return Err(TranscriptError::Format { found: format.tiles_sessions });
    }
    let file: WireFile = serde_json::from_str(text).map_err(TranscriptError::Shape)?;
    let mut seen = Seen::default();
    let sessions = file.sessions.into_iter().enumerate();
    let checked = sessions.map(|(session_idx, session)| {
        check_session(session, &mut seen).map_err(|what| TranscriptError::Value { session_idx, what })
    });
    checked.collect()
}

/// The names a file has used so far: none may come twice.
#[derive(Default)]
struct Seen {
    sessions: HashSet<SessionId>,
    messages: HashSet<MessageId>,
}

fn check_session(wire: WireSession, seen: &mut Seen) -> Result<Transcript, &'static str> {
    let id = wire.id.parse().map_err(|_| "its `id` isn't 32 hexadecimal digits")?;
    if !seen.sessions.insert(id) {
        return Err("its `id` is in the file twice");
    }
    if seen.sessions.len() > SESSIONS_MAX {
        return Err("there are too many sessions before it");
    }
    if wire.title.as_deref().is_some_and(|title| !is_title(title)) {
        return Err("its `title` is empty, too long or has control characters");
    }
    if !is_model(&wire.model) {
        return Err("its `model` is too long or has control characters");
    }
    if wire.messages.len() > SESSION_MESSAGES_MAX {
        return Err("it has too many messages");
    }
    let messages = wire.messages.into_iter().map(|message| check_message(message, seen));
    Ok(Transcript {
        id,
        title: wire.title,
        model: wire.model,
        created_at: moment(wire.created_at_ms)?,
        updated_at: moment(wire.updated_at_ms)?,
        messages: messages.collect::<Result<_, _>>()?,
    })
}

fn check_message(wire: WireMessage, seen: &mut Seen) -> Result<StoredMessage, &'static str> {
    let id = wire.id.parse().map_err(|_| "a message's `id` isn't 32 hexadecimal digits")?;
    if !seen.messages.insert(id) {
        return Err("a message's `id` is in the file twice");
    }
    if wire.content.len().max(wire.reasoning.as_deref().map_or(0, str::len)) > MESSAGE_BYTES_MAX {
        return Err("a message is too long");
    }
    if wire.model.as_deref().is_some_and(|model| !is_model(model)) {
        return Err("a message's `model` is too long or has control characters");
    }
    let finish_reason = wire.finish_reason.as_deref().map(FinishReason::from_name);
    if finish_reason == Some(None) {
        return Err("a message's `finish_reason` is none that is known");
    }
    let usage = wire.usage.map(|u| TokenCount { input_tokens: u.input_tokens, output_tokens: u.output_tokens });
    if usage.is_some_and(|u| i64::try_from(u.input_tokens.max(u.output_tokens)).is_err()) {
        return Err("a message's `usage` is more than can be counted");
    }
    Ok(StoredMessage {
        id,
        role: wire.role.parse().map_err(|_| "a message's `role` is none that is known")?,
        content: wire.content,
        reasoning: wire.reasoning,
        created_at: moment(wire.created_at_ms)?,
        finish_reason: finish_reason.flatten(),
        model: wire.model,
        usage,
    })
}

/// A moment between the epoch and the year 9999.
fn moment(ms: i64) -> Result<Timestamp, &'static str> {
    match ms {
        0..=253_402_300_799_999 => Ok(Timestamp::from_ms(ms)),
        _ => Err("a time lies outside the years 1970 to 9999"),
    }
}

/// Whether `title` may be a session's title: one line of visible text, not longer than [`TITLE_BYTES_MAX`].
pub fn is_title(title: &str) -> bool {
    !title.trim().is_empty() && title.len() <= TITLE_BYTES_MAX && !title.chars().any(char::is_control)
}

/// Whether `model` may be a model's name here: one line, not longer than [`MODEL_BYTES_MAX`].
pub fn is_model(model: &str) -> bool {
    model.len() <= MODEL_BYTES_MAX && !model.chars().any(char::is_control)
}

/// Prints a session as Markdown for a person to read. The reasoning is quoted; contents are as they were said.
pub fn to_markdown(transcript: &Transcript) -> String {
    let mut text = format!("# {}\n\n", transcript.title.as_deref().unwrap_or("Untitled session"));
    let _ = writeln!(text, "Session {}, {}, {}", transcript.id, transcript.created_at, transcript.model);
    for message in &transcript.messages {
        let who = match message.role {
            Role::System => "Instructions",
            Role::User => "You",
            Role::Assistant => "Assistant",
        };
        let _ = write!(text, "\n## {who}\n\n");
        if let Some(reasoning) = message.reasoning.as_deref().filter(|reasoning| !reasoning.trim().is_empty()) {
            for line in reasoning.trim_end().lines() {
                let _ = writeln!(text, "{}", format!("> {line}").trim_end());
            }
            text.push('\n');
        }
        text.push_str(message.content.trim_end());
        text.push('\n');
        match message.finish_reason {
            Some(FinishReason::Cancelled) => text.push_str("\n*(interrupted)*\n"),
            Some(FinishReason::Length) => text.push_str("\n*(cut off at the limit of tokens)*\n"),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests;
