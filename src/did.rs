//! `Did`: who somebody is, as `did:key` ⇄ Ed25519 public key.
//!
//! The text is `did:key:z` followed by base58btc of the multicodec prefix 0xed01 and the 32 bytes of the public key
//! (W3C CCG, The did:key Method v0.9). Every Ed25519 key therefore starts with `did:key:z6Mk`. Bitcoin's alphabet has
//! no 0, O, I and l, so the text can be read out, and each key has exactly one text.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, VerifyingKey};

use crate::hint::Hint;

/// The longest text that is looked at; the real ones have 56 bytes.
pub const DID_TEXT_BYTES_MAX: usize = 64;

/// The multicodec of an Ed25519 public key, as an unsigned varint.
const MULTICODEC_ED25519: [u8; 2] = [0xed, 0x01];

/// A person's or a device's name that needs no registry: the Ed25519 public key itself.
///
/// # Security
/// The bytes are a point of the curve in its only encoding and not one of the eight weak points, so that two unequal
/// `Did`s are two keys, and nobody can make a signature that fits every message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Did([u8; 32]);

/// Why something isn't the DID of an Ed25519 key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DidError {
    /// It doesn't start as every DID of this method does.
    #[error("a DID starts with `did:key:z6Mk`")]
    Method,
    /// What follows the `z` isn't base58btc, or of another length.
    #[error("the DID has a mistyped, missing or surplus character")]
    Text,
    /// It is the DID of a key that isn't an Ed25519 key.
    #[error("the DID holds a key that isn't an Ed25519 key")]
    Codec,
    /// The bytes aren't a public key that anybody can sign with.
    #[error("the DID holds no usable Ed25519 public key")]
    Key,
}

impl Hint for DidError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Method | Self::Codec | Self::Key => "ask the other person for what `tiles account` shows".into(),
            Self::Text => "copy the whole DID again; it has 56 characters".into(),
        })
    }
}

impl Did {
    /// Makes the DID of an Ed25519 public key.
    ///
    /// # Errors
    /// [`DidError::Key`] for bytes that are no point of the curve, a second encoding of one, or a weak point.
    pub fn from_public_key(public_key: [u8; 32]) -> Result<Self, DidError> {
        let key = VerifyingKey::from_bytes(&public_key).map_err(|_| DidError::Key)?;
        let canonical = key.to_edwards().compress().to_bytes() == public_key;
        if canonical && !key.is_weak() { Ok(Self(public_key)) } else { Err(DidError::Key) }
    }

    /// The Ed25519 public key, which is the endpoint id in iroh too.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this key's signature of `message`.
    ///
    /// # Security
    /// Verifies strictly: malleable signatures and such of weak keys don't count.
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }

    /// The DID for people to recognise: `z6MkiTBz…mDooWp`.
    ///
    /// # Security
    /// A short form can be forged by trying keys. It is for showing, never for comparing or looking up.
    pub fn short(&self) -> String {
        let text = self.to_string();
        let key = &text["did:key:".len()..];
        format!("{}…{}", &key[..8], &key[key.len() - 6..])
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 34];
        bytes[..2].copy_from_slice(&MULTICODEC_ED25519);
        bytes[2..].copy_from_slice(&self.0);
        write!(f, "did:key:z{}", bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Did({self})")
    }
}

impl FromStr for Did {
    type Err = DidError;

    fn from_str(text: &str) -> Result<Self, DidError> {
        let encoded = text.strip_prefix("did:key:z").ok_or(DidError::Method)?;
        if text.len() > DID_TEXT_BYTES_MAX {
            return Err(DidError::Text);
        }
        let mut bytes = [0; DID_TEXT_BYTES_MAX];
        let count = bs58::decode(encoded).onto(&mut bytes[..]).map_err(|_| DidError::Text)?;
        let key = bytes[..count].strip_prefix(&MULTICODEC_ED25519).ok_or(DidError::Codec)?;
        Self::from_public_key(key.try_into().map_err(|_| DidError::Text)?)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;

    use super::*;

    /// From the W3C CCG did:key test vectors, ed25519-x25519.json: the seed's last byte, and the DID.
    const VECTORS: [(u8, &str); 3] = [
        (0, "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"),
        (1, "did:key:z6MkjchhfUsD6mmvni8mCdXHw216Xrm9bQe2mBH1P5RDjVJG"),
        (2, "did:key:z6MknGc3ocHs3zdPiJbnaaqDi58NGb4pk1Sp9WxWufuXSdxf"),
    ];

    fn signing_key(last: u8) -> SigningKey {
        let mut seed = [0; 32];
        seed[31] = last;
        SigningKey::from_bytes(&seed)
    }

    #[test]
    fn the_known_vectors_print_and_parse() {
        for (last, text) in VECTORS {
            let did = Did::from_public_key(signing_key(last).verifying_key().to_bytes()).expect("a real key");
            assert_eq!(did.to_string(), text);
            assert_eq!(text.parse(), Ok(did));
        }
        let first: Did = VECTORS[0].1.parse().expect("a vector");
        assert_eq!(first.short(), "z6MkiTBz…mDooWp");
    }

    #[test]
    fn what_is_no_did_of_an_ed25519_key_is_refused() {
        let encode = |bytes: &[u8]| format!("did:key:z{}", bs58::encode(bytes).into_string());
        let keyed = |key: [u8; 32]| encode(&[&MULTICODEC_ED25519[..], &key].concat());
        let mut above_p = [0xff; 32];
        above_p[0] = 0xf0; // y = p + 3, a second encoding of the point with y = 3
        above_p[31] = 0x7f;
        let weak = [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }];
        for (text, expected) in [
            (String::new(), DidError::Method),
            ("did:web:example.org".into(), DidError::Method),
            ("did:key:u7QE".into(), DidError::Method),
            ("did:key:z".into(), DidError::Codec),
            (VECTORS[0].1.replace('T', "0"), DidError::Text),
            (VECTORS[0].1[..55].into(), DidError::Codec),
            (format!("did:key:z{}", "1".repeat(60)), DidError::Text),
            (format!("did:key:z{}", "z".repeat(100_000)), DidError::Text),
            (encode(&[&MULTICODEC_ED25519[..], &[1; 31]].concat()), DidError::Text),
            (encode(&[&[0xec, 0x01][..], &[9; 32]].concat()), DidError::Codec),
            (keyed([2; 32]), DidError::Key),
            (keyed(above_p), DidError::Key),
            (keyed(weak[0]), DidError::Key),
            (keyed(weak[1]), DidError::Key),
        ] {
            assert_eq!(text.parse::<Did>(), Err(expected), "{text:.80}");
        }
    }

    #[test]
    fn signatures_are_checked() {
        let key = signing_key(7);
        let did = Did::from_public_key(key.verifying_key().to_bytes()).expect("a real key");
        let mut signature = key.sign(b"message").to_bytes();
        assert!(did.verifies(b"message", &signature));
        assert!(!did.verifies(b"another", &signature));
        signature[40] ^= 1;
        assert!(!did.verifies(b"message", &signature));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(seed: [u8; 32]) {
            let did = Did::from_public_key(SigningKey::from_bytes(&seed).verifying_key().to_bytes());
            let did = did.expect("a real key");
            prop_assert!(did.to_string().starts_with("did:key:z6Mk"));
            prop_assert_eq!(did.to_string().parse(), Ok(did));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}", tail in "[1-9A-Za-z]{0,60}") {
            let _ = text.parse::<Did>();
            let _ = format!("did:key:z{tail}").parse::<Did>();
        }
    }
}
