//! Mesh keys: what linked drives share so that they, and nobody else, recognise each other's announcements.
//!
//! A drive announces itself on a local network under a label that is an HMAC of its DID and the day. Who has no key of its
//! mesh sees another label every day and learns nothing from it; who has one computes the labels of the drives it knows.
//!
//! Two drives that both had links before keep both keys: each of their other peers knows only one.

use data_encoding::{BASE32_DNSSEC, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::error::PeerError;
use crate::did::Did;
use crate::time::Timestamp;

/// The most keys that a drive keeps.
pub const MESH_KEYS_MAX: usize = 8;

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
/// The bytes of a label; 32 letters, which fit a name of DNS.
const LABEL_BYTES: usize = 20;

/// A key that linked drives share.
///
/// # Security
/// It opens nothing: it recognises announcements. Overwritten when dropped; no `Debug`.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct MeshKey([u8; 32]);

impl MeshKey {
    /// Draws a new one.
    ///
    /// # Errors
    /// [`PeerError::Random`] where the operating system gives no random bytes.
    pub fn draw() -> Result<Self, PeerError> {
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0).map_err(|_| PeerError::Random)?;
        Ok(key)
    }

    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the drive of `did` announces itself as on the day of `now`.
    pub fn label(&self, did: &Did, now: Timestamp) -> String {
        self.label_of_day(did, now.as_ms().div_euclid(DAY_MS))
    }

    /// The labels of the drive of `did` on the day of `now`, the one before and the one after: clocks differ.
    pub fn labels_around(&self, did: &Did, now: Timestamp) -> [String; 3] {
        let day = now.as_ms().div_euclid(DAY_MS);
        [day, day - 1, day + 1].map(|day| self.label_of_day(did, day))
    }

    fn label_of_day(&self, did: &Did, day: i64) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"tiles/v1/sync-label");
        mac.update(did.public_key());
        mac.update(&day.to_be_bytes());
        BASE32_DNSSEC.encode(&mac.finalize().into_bytes()[..LABEL_BYTES])
    }
}

/// The keys of a drive as the text of one setting.
pub fn to_text(keys: &[MeshKey]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(keys.len() * 65));
    for key in keys {
        HEXLOWER.encode_append(&key.0, &mut text);
        text.push('\n');
    }
    text
}

/// Reads what [`to_text`] wrote; what can't be a key is left out, as if the drive had never had it.
pub fn from_text(text: &str) -> Vec<MeshKey> {
    let keys = text.lines().filter_map(|line| {
        let bytes = Zeroizing::new(HEXLOWER.decode(line.as_bytes()).ok()?);
        Some(MeshKey(bytes.as_slice().try_into().ok()?))
    });
    keys.take(MESH_KEYS_MAX).collect()
}

/// Adds those of `theirs` that are new to `keys`. Past [`MESH_KEYS_MAX`] the rest is left out.
pub fn merge(keys: &mut Vec<MeshKey>, theirs: &[MeshKey]) {
    for key in theirs {
        if keys.len() < MESH_KEYS_MAX && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(seed: u8) -> Did {
        let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key();
        Did::from_public_key(key.to_bytes()).expect("a real key")
    }

    #[test]
    fn a_label_is_of_one_key_one_drive_and_one_day() {
        let [key, other] = [MeshKey([1; 32]), MeshKey([2; 32])];
        let noon = Timestamp::from_ms(DAY_MS * 20_000 + DAY_MS / 2);
        let label = key.label(&did(1), noon);
        assert_eq!(label.len(), 32);
        assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{label}");
        // HMAC-SHA256 and base 32 computed with Python's hmac and base64.
        assert_eq!(label, "7h3dacf0jeod16d3it7jn68um0rfj781");
        assert_eq!(key.label(&did(1), Timestamp::from_ms(noon.as_ms() + 1_000)), label);
        let tomorrow = key.label(&did(1), Timestamp::from_ms(noon.as_ms() + DAY_MS));
        let mut all = vec![label.clone(), tomorrow.clone(), key.label(&did(2), noon), other.label(&did(1), noon)];
        assert_eq!(key.labels_around(&did(1), noon)[0], label);
        assert_eq!(key.labels_around(&did(1), noon)[2], tomorrow);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn keys_come_back_from_their_text_and_are_never_too_many() {
        let keys: Vec<_> = (0..MESH_KEYS_MAX as u8).map(|byte| MeshKey([byte; 32])).collect();
        assert!(from_text(&to_text(&keys)) == keys);
        assert!(from_text("").is_empty() && from_text("zz\n00\n").is_empty());
        let mut merged = keys[..2].to_vec();
        merge(&mut merged, &keys[1..3]);
        assert!(merged == keys[..3]);
        merge(&mut merged, &(100..200).map(|byte| MeshKey([byte; 32])).collect::<Vec<_>>());
        assert_eq!(merged.len(), MESH_KEYS_MAX);
    }
}
