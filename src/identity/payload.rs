//! What is inside the key file: a few lines of TOML with the keys in hexadecimal, padded with spaces.
//!
//! Text, so that who opens a slot with stock `age` can read it. Read strictly: an unknown version is a newer Tiles,
//! anything else that isn't as written here is damage.

use std::fmt::Write as _;
use std::str::FromStr as _;

use age::x25519;
use secrecy::{ExposeSecret as _, SecretBox};
use serde::Deserialize;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::error::KeyError;
use super::{Identity, PREVIOUS_KEYS_MAX};
use crate::time::Timestamp;

/// The version of the payload that is written and read.
pub(super) const PAYLOAD_VERSION: u64 = 1;

const KIND: &str = "tiles-identity";

/// Room for the text, so that it grows without leaving copies behind.
const TEXT_BYTES_MAX: usize = 4096;

/// The keys, and the public half of the recovery key, so that a new passphrase keeps the words valid.
pub(super) struct Payload {
    pub(super) identity: Identity,
    pub(super) recovery: Option<x25519::Recipient>,
}

/// Why a payload wasn't read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PayloadError {
    Newer(u64),
    Damaged,
}

#[derive(Deserialize)]
struct AnyVersion {
    version: u64,
}

#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u64,
    kind: String,
    created_at: String,
    generation: u64,
    recovery: Option<String>,
    identity_seed: String,
    db_key: String,
    bundle_key: String,
    previous_db_keys: Vec<String>,
}

/// Writes the keys as text. The padding is the caller's.
pub(super) fn write(identity: &Identity, recovery: Option<&x25519::Recipient>) -> Result<Zeroizing<String>, KeyError> {
    let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX));
    let created_at = jiff::Timestamp::from_millisecond(identity.created_at.as_ms()).map_err(|_| KeyError::Clock)?;
    line(&mut text, "version", &PAYLOAD_VERSION.to_string(), "");
    line(&mut text, "kind", KIND, "\"");
    line(&mut text, "created_at", &created_at.to_string(), "\"");
    line(&mut text, "generation", &identity.generation.to_string(), "");
    if let Some(recovery) = recovery {
        line(&mut text, "recovery", &recovery.to_string(), "\"");
    }
    for (name, key) in [
        ("identity_seed", &identity.identity_seed),
        ("db_key", &identity.database_key),
        ("bundle_key", &identity.bundle_key),
    ] {
        line(&mut text, name, &to_hex(key), "\"");
    }
    let previous: Vec<_> = identity.previous_database_keys.iter().map(to_hex).collect();
    text.push_str("previous_db_keys = [");
    for (index, key) in previous.iter().enumerate() {
        text.push_str(if index == 0 { "\"" } else { ", \"" });
        text.push_str(key);
        text.push('"');
    }
    text.push_str("]\n");
    Ok(text)
}

fn line(text: &mut String, name: &str, value: &str, quote: &str) {
    for piece in [name, " = ", quote, value, quote, "\n"] {
        text.push_str(piece);
    }
}

/// Reads what [`write()`] wrote, padded or not.
pub(super) fn read(bytes: &[u8]) -> Result<Payload, PayloadError> {
    let text = str::from_utf8(bytes).map_err(|_| PayloadError::Damaged)?;
    let AnyVersion { version } = toml::from_str(text).map_err(|_| PayloadError::Damaged)?;
    if version > PAYLOAD_VERSION {
        return Err(PayloadError::Newer(version));
    }
    read_known(text).ok_or(PayloadError::Damaged)
}

fn read_known(text: &str) -> Option<Payload> {
    let wire: Wire = toml::from_str(text).ok()?;
    if wire.version != PAYLOAD_VERSION || wire.kind != KIND || wire.previous_db_keys.len() > PREVIOUS_KEYS_MAX {
        return None;
    }
    let created_at = wire.created_at.parse::<jiff::Timestamp>().ok()?;
    let recovery = match &wire.recovery {
        Some(text) => Some(x25519::Recipient::from_str(text).ok()?),
        None => None,
    };
    let identity = Identity::from_keys(
        Timestamp::from_ms(created_at.as_millisecond()),
        wire.generation,
        [from_hex(&wire.identity_seed)?, from_hex(&wire.db_key)?, from_hex(&wire.bundle_key)?],
        wire.previous_db_keys.iter().map(|key| from_hex(key)).collect::<Option<_>>()?,
    );
    Some(Payload { identity, recovery })
}

fn to_hex(key: &SecretBox<[u8; 32]>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in key.expose_secret() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn from_hex(text: &str) -> Option<SecretBox<[u8; 32]>> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let nibble = |digit: u8| if digit <= b'9' { digit - b'0' } else { digit - b'a' + 10 };
    Some(SecretBox::init_with_mut(|key: &mut [u8; 32]| {
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn boxed(byte: u8) -> SecretBox<[u8; 32]> {
        SecretBox::new(Box::new([byte; 32]))
    }

    fn text(previous: u8) -> Zeroizing<String> {
        let keys = [boxed(0x1a), boxed(2), boxed(3)];
        let previous = (0..previous).map(boxed).collect();
        write(&Identity::from_keys(Timestamp::from_ms(1_795_688_340_123), 5, keys, previous), None)
            .expect("the date is possible")
    }

    #[test]
    fn the_text_is_as_documented() {
        let expected = format!(
            "version = 1\nkind = \"tiles-identity\"\ncreated_at = \"2026-11-26T10:19:00.123Z\"\ngeneration = 5\n\
             identity_seed = \"{}\"\ndb_key = \"{}\"\nbundle_key = \"{}\"\nprevious_db_keys = [\"{}\"]\n",
            "1a".repeat(32),
            "02".repeat(32),
            "03".repeat(32),
            "00".repeat(32)
        );
        assert_eq!(*text(1), expected);
        assert!(text(PREVIOUS_KEYS_MAX as u8).len() < TEXT_BYTES_MAX / 2);
    }

    #[test]
    fn an_impossible_date_is_refused_before_it_is_written() {
        let identity = Identity::from_keys(Timestamp::from_ms(i64::MAX), 1, [1, 2, 3].map(boxed), Vec::new());
        assert!(matches!(write(&identity, None), Err(KeyError::Clock)));
    }

    #[test]
    fn damage_and_newer_versions_are_told_apart() {
        let good = text(2);
        assert!(read(format!("{}{}\n", *good, " ".repeat(900)).as_bytes()).is_ok());
        let with = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            read(good.replacen(from, to, 1).as_bytes()).map(drop)
        };
        assert_eq!(with("version = 1", "version = 2"), Err(PayloadError::Newer(2)));
        assert_eq!(with("version = 1", "version = 99\nfuture = 1"), Err(PayloadError::Newer(99)));
        for (from, to) in [
            ("version = 1", "version = 0"),
            ("version = 1", "version = -1"),
            ("version = 1\n", ""),
            ("tiles-identity", "other"),
            ("2026-", "20x6-"),
            ("generation = 5", "generation = -5"),
            ("generation = 5", "generation = 18446744073709551616"),
            ("1a1a", "1A1A"),
            ("1a1a", "1a1"),
            ("\"\n", "\"\nextra = 1\n"),
            ("previous_db_keys", "previous"),
            ("kind", "recovery = \"age1x\"\nkind"),
        ] {
            assert_eq!(with(from, to), Err(PayloadError::Damaged), "{from} → {to}");
        }
        assert_eq!(read(text(PREVIOUS_KEYS_MAX as u8 + 1).as_bytes()).map(drop), Err(PayloadError::Damaged));
        assert_eq!(read(b"\xff").map(drop), Err(PayloadError::Damaged));
        assert_eq!(read(b"").map(drop), Err(PayloadError::Damaged));
    }

    proptest! {
        #[test]
        fn writing_and_reading_are_inverse(
            ms in 0i64..253_402_300_799_999, generation in 0..=i64::MAX as u64, seeds: [u8; 3],
            previous in 0u8..=PREVIOUS_KEYS_MAX as u8, with_recovery: bool, padding in 0usize..99
        ) {
            let recovery = with_recovery.then(|| x25519::Identity::generate().to_public());
            let keys = seeds.map(boxed);
            let identity = Identity::from_keys(Timestamp::from_ms(ms), generation, keys, (0..previous).map(boxed).collect());
            let text = write(&identity, recovery.as_ref()).expect("the date is possible");
            let padded = format!("{}{}", *text, " ".repeat(padding));
            let Ok(read) = read(padded.as_bytes()) else { return Err(TestCaseError::fail("it is whole")) };
            let again = write(&read.identity, read.recovery.as_ref()).expect("the date is possible");
            prop_assert_eq!(&*again, &*text);
        }
    }
}
