//! Who signed a list: an Ed25519 signature over its exact bytes, in a small file of its own.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::Deserialize;

use super::ManifestError;

/// The longest signature file that is read, in bytes.
pub const SIGNATURE_BYTES_MAX: u64 = 1024;

/// The public half of the key that seals a bundle.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SealPublicKey(pub [u8; 32]);

impl SealPublicKey {
    /// Reads 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }

    /// The first 16 hexadecimal digits, for people: enough that nobody makes another key with the same ones.
    pub fn short(&self) -> String {
        to_hex(&self.0[..8])
    }
}

impl fmt::Display for SealPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for SealPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealPublicKey({self})")
    }
}

/// A signature and the key that it claims to be from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Whose it is.
    pub public_key: SealPublicKey,
    /// The 64 bytes of RFC 8032.
    pub signature: [u8; 64],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    algorithm: String,
    public_key: String,
    signature: String,
}

impl Signature {
    /// Signs the exact `bytes` of a list.
    pub fn sign(key: &SigningKey, bytes: &[u8]) -> Self {
        Self { public_key: SealPublicKey(key.verifying_key().to_bytes()), signature: key.sign(bytes).to_bytes() }
    }

    /// Reads the text of `MANIFEST.sig`.
    ///
    /// # Errors
    /// [`ManifestError::SignatureText`].
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::SignatureText { what: what.into() };
        if text.len() as u64 > SIGNATURE_BYTES_MAX {
            return Err(damaged("it is too long"));
        }
        let wire: Wire = toml::from_str(text)
            .map_err(|_| damaged("`algorithm`, `public_key` and `signature` are expected, and nothing else"))?;
        if wire.algorithm != "ed25519" {
            return Err(damaged("its algorithm isn't `ed25519`"));
        }
        let public_key = SealPublicKey::from_hex(&wire.public_key)
            .ok_or_else(|| damaged("its public key isn't 64 hexadecimal digits"))?;
        let signature =
            from_hex(&wire.signature).ok_or_else(|| damaged("its signature isn't 128 hexadecimal digits"))?;
        Ok(Self { public_key, signature })
    }

    /// The text of `MANIFEST.sig`.
    pub fn to_toml(&self) -> String {
        format!(
            "# over the exact bytes of MANIFEST.toml\nalgorithm = \"ed25519\"\npublic_key = \"{}\"\nsignature = \"{}\"\n",
            self.public_key,
            to_hex(&self.signature)
        )
    }

    /// Verifies that the key it names signed exactly `bytes`; whether that key is trusted is for the caller to say.
    ///
    /// # Errors
    /// [`ManifestError::WrongSignature`].
    pub fn verify(&self, bytes: &[u8]) -> Result<(), ManifestError> {
        let wrong = |_| ManifestError::WrongSignature;
        let key = VerifyingKey::from_bytes(&self.public_key.0).map_err(wrong)?;
        // Strict: keys of small order, with which one signature fits many texts, are refused.
        key.verify_strict(bytes, &ed25519_dalek::Signature::from_bytes(&self.signature)).map_err(wrong)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads `N` bytes of lower-case hexadecimal digits.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_fits_only_the_bytes_it_was_made_for() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let signature = Signature::sign(&key, b"the list");
        assert_eq!(signature.verify(b"the list"), Ok(()));
        assert_eq!(Signature::parse(&signature.to_toml()), Ok(signature.clone()));
        for other in [b"the list\n".as_slice(), b"the lisT", b""] {
            assert_eq!(signature.verify(other), Err(ManifestError::WrongSignature));
        }
        let foreign = Signature { public_key: SealPublicKey([9; 32]), ..signature.clone() };
        assert_eq!(foreign.verify(b"the list"), Err(ManifestError::WrongSignature));
        for bit in 0..512 {
            let mut flipped = signature.clone();
            flipped.signature[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(flipped.verify(b"the list"), Err(ManifestError::WrongSignature), "bit {bit}");
        }
    }

    #[test]
    fn rfc_8032_test_2_verifies() {
        let public_key = SealPublicKey::from_hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = concat!(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        let signature = Signature {
            public_key: public_key.expect("64 digits"),
            signature: from_hex(signature).expect("128 digits"),
        };
        assert_eq!(signature.verify(&[0x72]), Ok(()));
    }

    #[test]
    fn a_key_of_small_order_is_refused() {
        // The neutral element: with it, the signature (neutral, 0) would fit every text.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        let forged = Signature { public_key: SealPublicKey(neutral), signature };
        assert_eq!(forged.verify(b"anything"), Err(ManifestError::WrongSignature));
    }

    #[test]
    fn damaged_signature_files_are_refused() {
        let good = Signature::sign(&SigningKey::from_bytes(&[7; 32]), b"x").to_toml();
        for (text, expected) in [
            (String::new(), "are expected"),
            (good.replace("ed25519", "rsa"), "algorithm"),
            (good.replacen("public_key = \"", "public_key = \"0", 1), "public key"),
            (good.replacen("\nsignature = \"", "\nsignature = \"G", 1), "its signature"),
            (format!("{good}more = 1\n"), "nothing else"),
            (good.clone() + &"#".repeat(2000), "too long"),
        ] {
            let error = Signature::parse(&text).expect_err("it is damaged").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
