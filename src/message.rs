//! Messages, who said them, and the names of messages and sessions.

use std::fmt;
use std::str::FromStr;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the model that the person doesn't see as part of the talk.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in Modelfiles, chat templates and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no role.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a role is `system`, `user` or `assistant`")]
pub struct ParseRoleError;

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        match text {
            "system" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            _ => Err(ParseRoleError),
        }
    }
}

/// One message of a conversation, as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said. Untrusted: it is never allowed to speak a checkpoint's control tokens.
    pub content: String,
    /// What the model thought before it answered, kept apart from the answer.
    pub reasoning: Option<String>,
}

impl Message {
    /// Makes a message without reasoning.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), reasoning: None }
    }
}

/// The text is not an identifier of 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an identifier is 32 lower-case hexadecimal digits")]
pub struct ParseIdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let lower_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                match (lower_hex, text.len(), u128::from_str_radix(text, 16)) {
                    (true, 32, Ok(bits)) => Ok(Self(bits.to_be_bytes())),
                    _ => Err(ParseIdError),
                }
            }
        }
    };
}

id! {
    /// The name of a session: 16 random bytes, shown as 32 hexadecimal digits. A unique prefix names it to a person.
    SessionId
}
id! {
    /// The name of a message: 16 random bytes.
    MessageId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_roles_print_and_parse() {
        let id = SessionId(std::array::from_fn(|i| i as u8));
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "00", "+0102030405060708090a0b0c0d0e0f00", "000102030405060708090A0B0C0D0E0F"] {
            assert_eq!(bad.parse::<SessionId>(), Err(ParseIdError));
        }
        for role in [Role::System, Role::User, Role::Assistant] {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!("tool".parse::<Role>(), Err(ParseRoleError));
    }
}
