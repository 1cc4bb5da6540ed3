//! What an operation says: a session begun, a message, a title, what was taken back or deleted, who belongs together.

use serde::{Deserialize, Serialize};

use crate::did::Did;
use crate::hint::Hint;
use crate::message::{MessageId, Role, SessionId};
use crate::time::Timestamp;
use crate::transcript::{
    FinishReason, MESSAGE_BYTES_MAX, SESSION_MESSAGES_MAX, StoredMessage, TokenCount, is_model, is_title,
};

/// The longest nickname, in bytes.
pub const NICKNAME_BYTES_MAX: usize = 256;
/// The most epochs of one device that an entry about it names.
pub const EPOCHS_MAX: usize = 1_000;
/// The longest change of a memory document in one operation, in bytes.
pub const MEMORY_UPDATE_BYTES_MAX: usize = 1 << 20;
/// The longest body in bytes: a message with its reasoning.
pub const BODY_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX + 64 * 1024;

/// How far a device that no longer belongs is still believed, in one of its logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlinked {
    /// The log's epoch.
    pub epoch: [u8; 16],
    /// How many of its operations count.
    pub next: u64,
}

/// What one operation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A session began.
    Session {
        /// Its name.
        id: SessionId,
        /// The model it began with.
        model: String,
        /// When it began.
        created_at: Timestamp,
    },
    /// A session was given a title, or none.
    Title {
        /// Which session.
        session: SessionId,
        /// What the person calls it.
        title: Option<String>,
        /// When it was given.
        at: Timestamp,
    },
    /// Something was said.
    Message {
        /// In which session.
        session: SessionId,
        /// Its place there: messages stand in the order of place and name.
        place: u64,
        /// What was said.
        message: StoredMessage,
    },
    /// Messages were taken back.
    Removed {
        /// In which session.
        session: SessionId,
        /// Which messages.
        messages: Vec<MessageId>,
    },
    /// A session was deleted.
    Deleted {
        /// Which session.
        session: SessionId,
    },
    /// What the device's person wants to be called.
    Nickname {
        /// The name.
        nickname: String,
    },
    /// Another device belongs to the same person.
    Link {
        /// Which device.
        device: Did,
        /// What it is called.
        nickname: String,
    },
    /// A device no longer belongs: what it says from then on doesn't count, whoever brings it.
    Unlink {
        /// Which device.
        device: Did,
        /// How much of its logs is known, and still counts.
        known: Vec<Unlinked>,
    },
    /// A document of the memory mode was changed.
    Memory {
        /// The document's name.
        document: [u8; 16],
        /// The change, in the encoding of the document's library.
        update: Vec<u8>,
    },
}

/// Why bytes are no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// They aren't in the form of one.
    #[error("the body of an operation isn't in the form that Tiles writes")]
    Form,
    /// It says something that can't be.
    #[error("the body of an operation is wrong: {what}")]
    Value {
        /// What is wrong with it.
        what: &'static str,
    },
    /// It is of another kind than its operation says.
    #[error("the body of an operation is of another kind than it says")]
    Kind,
}

impl Hint for BodyError {
    fn hint(&self) -> Option<String> {
        Some("update Tiles on both devices; if that doesn't help, the other device is damaged or isn't Tiles".into())
    }
}

/// The form on the drive and on the wire. The order of the kinds is part of it.
#[derive(Serialize, Deserialize)]
enum Wire<'a> {
    Session { id: [u8; 16], model: &'a str, created_at_ms: i64 },
    Title { session: [u8; 16], title: Option<&'a str>, at_ms: i64 },
    Message(#[serde(borrow)] WireMessage<'a>),
    Removed { session: [u8; 16], messages: Vec<[u8; 16]> },
    Deleted { session: [u8; 16] },
    Nickname { nickname: &'a str },
    Link { device: [u8; 32], nickname: &'a str },
    Unlink { device: [u8; 32], known: Vec<Unlinked> },
    Memory { document: [u8; 16], update: &'a [u8] },
}

#[derive(Serialize, Deserialize)]
struct WireMessage<'a> {
    session: [u8; 16],
    place: u64,
    id: [u8; 16],
    role: u8,
    content: &'a str,
    reasoning: Option<&'a str>,
    created_at_ms: i64,
    finish_reason: Option<u8>,
    model: Option<&'a str>,
    usage: Option<(u64, u64)>,
}

const ROLES: [Role; 3] = [Role::System, Role::User, Role::Assistant];
const REASONS: [FinishReason; 3] = [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled];

impl Body {
    /// The kind of messages.
    pub const MESSAGE_KIND: u8 = 2;

    /// The number of its kind, as operations commit to it.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Session { .. } => 0,
            Self::Title { .. } => 1,
            Self::Message { .. } => Self::MESSAGE_KIND,
            Self::Removed { .. } => 3,
            Self::Deleted { .. } => 4,
            Self::Nickname { .. } => 5,
            Self::Link { .. } => 6,
            Self::Unlink { .. } => 7,
            Self::Memory { .. } => 8,
        }
    }

    /// The session that it is about.
    pub const fn session(&self) -> Option<SessionId> {
        match self {
            Self::Session { id: session, .. }
            | Self::Title { session, .. }
            | Self::Message { session, .. }
            | Self::Removed { session, .. }
            | Self::Deleted { session } => Some(*session),
            _ => None,
        }
    }

    /// Prints it in the form that [`Body::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let wire = match self {
            Self::Session { id, model, created_at } => {
                Wire::Session { id: id.0, model, created_at_ms: created_at.as_ms() }
            }
            Self::Title { session, title, at } => {
                Wire::Title { session: session.0, title: title.as_deref(), at_ms: at.as_ms() }
            }
            Self::Message { session, place, message } => Wire::Message(wire_message(*session, *place, message)),
            Self::Removed { session, messages } => {
                Wire::Removed { session: session.0, messages: messages.iter().map(|id| id.0).collect() }
            }
            Self::Deleted { session } => Wire::Deleted { session: session.0 },
            Self::Nickname { nickname } => Wire::Nickname { nickname },
            Self::Link { device, nickname } => Wire::Link { device: *device.public_key(), nickname },
            Self::Unlink { device, known } => Wire::Unlink { device: *device.public_key(), known: known.clone() },
            Self::Memory { document, update } => Wire::Memory { document: *document, update },
        };
        postcard::to_allocvec(&wire).expect("memory takes what has a form")
    }

    /// Reads a body; the bytes may come from anyone.
    ///
    /// # Errors
    /// [`BodyError::Form`], also for bytes that go on after the body or could be written shorter; [`BodyError::Value`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BodyError> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(wrong("it is longer than any"));
        }
        let (wire, rest): (Wire<'_>, _) = postcard::take_from_bytes(bytes).map_err(|_| BodyError::Form)?;
        if !rest.is_empty() {
            return Err(BodyError::Form);
        }
        let body = check(wire)?;
        // One text a body: what two devices hash is the same.
        if body.to_bytes() == bytes { Ok(body) } else { Err(BodyError::Form) }
    }
}

const fn wrong(what: &'static str) -> BodyError {
    BodyError::Value { what }
}

fn wire_message(session: SessionId, place: u64, message: &StoredMessage) -> WireMessage<'_> {
    WireMessage {
        session: session.0,
        place,
        id: message.id.0,
        role: ROLES.iter().position(|role| *role == message.role).expect("all roles are listed") as u8,
        content: &message.content,
        reasoning: message.reasoning.as_deref(),
        created_at_ms: message.created_at.as_ms(),
        finish_reason: message
            .finish_reason
            .map(|reason| REASONS.iter().position(|known| *known == reason).expect("all reasons are listed") as u8),
        model: message.model.as_deref(),
        usage: message.usage.map(|usage| (usage.input_tokens, usage.output_tokens)),
    }
}

fn check(wire: Wire<'_>) -> Result<Body, BodyError> {
    Ok(match wire {
        Wire::Session { id, model, created_at_ms } => {
            Body::Session { id: SessionId(id), model: model_name(model)?, created_at: moment(created_at_ms)? }
        }
        Wire::Title { session, title, at_ms } => {
            if title.is_some_and(|title| !is_title(title)) {
                return Err(wrong("a title is empty, too long or has control characters"));
            }
            Body::Title { session: SessionId(session), title: title.map(Into::into), at: moment(at_ms)? }
        }
        Wire::Message(message) => check_message(message)?,
        Wire::Removed { session, messages } => {
            if messages.len() > SESSION_MESSAGES_MAX {
                return Err(wrong("more messages are taken back than a session has"));
            }
            Body::Removed { session: SessionId(session), messages: messages.into_iter().map(MessageId).collect() }
        }
        Wire::Deleted { session } => Body::Deleted { session: SessionId(session) },
        Wire::Nickname { nickname } => Body::Nickname { nickname: nickname_of(nickname)? },
        Wire::Link { device, nickname } => Body::Link { device: did(device)?, nickname: nickname_of(nickname)? },
        Wire::Unlink { device, known } => {
            if known.len() > EPOCHS_MAX {
                return Err(wrong("a device has too many epochs"));
            }
            Body::Unlink { device: did(device)?, known }
        }
        Wire::Memory { document, update } => {
            if update.len() > MEMORY_UPDATE_BYTES_MAX {
                return Err(wrong("a change of a memory document is too long"));
            }
            Body::Memory { document, update: update.to_vec() }
        }
    })
}

fn check_message(wire: WireMessage<'_>) -> Result<Body, BodyError> {
    if wire.content.len().max(wire.reasoning.map_or(0, str::len)) > MESSAGE_BYTES_MAX {
        return Err(wrong("a message is too long"));
    }
    if wire.place > i64::MAX as u64 {
        return Err(wrong("a message stands at no place"));
    }
    let known = |value: u64| i64::try_from(value).is_ok();
    if wire.usage.is_some_and(|(input, output)| !known(input) || !known(output)) {
        return Err(wrong("a message took more tokens than can be counted"));
    }
    let finish_reason = match wire.finish_reason {
        None => None,
        Some(number) => Some(*REASONS.get(usize::from(number)).ok_or(wrong("a finish reason is none that is known"))?),
    };
    let message = StoredMessage {
        id: MessageId(wire.id),
        role: *ROLES.get(usize::from(wire.role)).ok_or(wrong("a role is none that is known"))?,
        content: wire.content.into(),
        reasoning: wire.reasoning.map(Into::into),
        created_at: moment(wire.created_at_ms)?,
        finish_reason,
        model: wire.model.map(model_name).transpose()?,
        usage: wire.usage.map(|(input_tokens, output_tokens)| TokenCount { input_tokens, output_tokens }),
    };
    Ok(Body::Message { session: SessionId(wire.session), place: wire.place, message })
}

fn moment(ms: i64) -> Result<Timestamp, BodyError> {
    // The years 1970 to 9999, as in a file of sessions.
    match ms {
        0..=253_402_300_799_999 => Ok(Timestamp::from_ms(ms)),
        _ => Err(wrong("a time lies outside the years 1970 to 9999")),
    }
}

fn model_name(model: &str) -> Result<String, BodyError> {
    if is_model(model) { Ok(model.into()) } else { Err(wrong("a model's name is too long or has control characters")) }
}

fn nickname_of(nickname: &str) -> Result<String, BodyError> {
    match is_nickname(nickname) {
        true => Ok(nickname.into()),
        false => Err(wrong("a nickname is empty, too long or has control characters")),
    }
}

fn did(public_key: [u8; 32]) -> Result<Did, BodyError> {
    Did::from_public_key(public_key).map_err(|_| wrong("a device has no usable key"))
}

/// Whether `nickname` may be one: one line of visible text, not longer than [`NICKNAME_BYTES_MAX`].
pub fn is_nickname(nickname: &str) -> bool {
    !nickname.trim().is_empty() && nickname.len() <= NICKNAME_BYTES_MAX && !nickname.chars().any(char::is_control)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oplog::tests::log;

    /// One of each kind.
    pub(crate) fn each() -> Vec<Body> {
        let (session, created_at) = (SessionId([1; 16]), Timestamp::from_ms(5));
        let message = StoredMessage {
            id: MessageId([2; 16]),
            role: Role::Assistant,
            content: "Blue.".into(),
            reasoning: Some("Rayleigh".into()),
            created_at,
            finish_reason: Some(FinishReason::Length),
            model: Some("m".into()),
            usage: Some(TokenCount { input_tokens: 3, output_tokens: 4 }),
        };
        vec![
            Body::Session { id: session, model: "m".into(), created_at },
            Body::Title { session, title: Some("Sky".into()), at: created_at },
            Body::Title { session, title: None, at: created_at },
            Body::Message { session, place: 7, message },
            Body::Removed { session, messages: vec![MessageId([2; 16]), MessageId([3; 16])] },
            Body::Deleted { session },
            Body::Nickname { nickname: "Ada".into() },
            Body::Link { device: log(1).device, nickname: "laptop".into() },
            Body::Unlink { device: log(1).device, known: vec![Unlinked { epoch: [1; 16], next: 9 }] },
            Body::Memory { document: [4; 16], update: vec![0, 255] },
        ]
    }

    #[test]
    fn bodies_print_and_parse() {
        for body in each() {
            let bytes = body.to_bytes();
            assert_eq!(Body::from_bytes(&bytes), Ok(body.clone()));
            for end in 0..bytes.len() {
                assert!(Body::from_bytes(&bytes[..end]).is_err(), "{body:?} cut at {end}");
            }
            assert_eq!(Body::from_bytes(&[&bytes[..], &[0]].concat()), Err(BodyError::Form), "{body:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let session = [1; 16];
        let message = |change: &dyn Fn(&mut WireMessage<'_>)| {
            let mut wire = WireMessage {
                session,
                place: 0,
                id: session,
                role: 1,
                content: "a",
                reasoning: None,
                created_at_ms: 0,
                finish_reason: None,
                model: None,
                usage: None,
            };
            change(&mut wire);
            postcard::to_allocvec(&Wire::Message(wire)).expect("it has a form")
        };
        assert!(Body::from_bytes(&message(&|_| ())).is_ok(), "the control");
        let plain = |wire: Wire<'_>| postcard::to_allocvec(&wire).expect("it has a form");
        for (bytes, part) in [
            (message(&|wire| wire.role = 3), "role"),
            (message(&|wire| wire.finish_reason = Some(9)), "finish reason"),
            (message(&|wire| wire.place = u64::MAX), "place"),
            (message(&|wire| wire.created_at_ms = -1), "time"),
            (message(&|wire| wire.model = Some("\u{1b}]0;x")), "model"),
            (message(&|wire| wire.usage = Some((u64::MAX, 0))), "tokens"),
            (plain(Wire::Title { session, title: Some("\u{7}"), at_ms: 0 }), "title"),
            (plain(Wire::Nickname { nickname: "\u{1b}[2J" }), "nickname"),
            (plain(Wire::Nickname { nickname: " " }), "nickname"),
            (plain(Wire::Link { device: [0; 32], nickname: "x" }), "key"),
            // A length that memory has no room for.
            (
                vec![3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                "form",
            ),
            (vec![200], "form"),
            (Vec::new(), "form"),
        ] {
            let error = Body::from_bytes(&bytes).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(body) = Body::from_bytes(&bytes) {
                prop_assert_eq!(body.to_bytes(), bytes);
            }
        }
    }
}
