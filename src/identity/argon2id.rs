//! The passphrase's stanza in the key file: `-> tiles-argon2id SALT M T P`, an age recipient and identity.
//!
//! age's own passphrase stanza uses scrypt with a work factor measured on the machine that seals, so that a file sealed
//! on a fast machine is refused on a slow one; and it must stand alone in its file. Ours has a fixed work factor,
//! Argon2id (RFC 9106), and stands beside the recovery stanza. The body is the file key under ChaCha20-Poly1305 with an
//! all-zero nonce, as in age's own stanzas: each key wraps one message, because the salt is new each time.

use std::cell::Cell;
use std::collections::HashSet;

use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use age_core::primitives::{aead_decrypt, aead_encrypt, hkdf};
use age_core::secrecy::ExposeSecret as _;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::error::KeyError;
use super::passphrase::Passphrase;

/// The stanza's tag.
pub(super) const TAG: &str = "tiles-argon2id";

/// What the wrapping key is derived for.
const WRAP_LABEL: &[u8] = b"tiles/v1/argon2id-wrap";

const SALT_BYTES: usize = 16;

/// How much work turning a passphrase into a key is: the cost of each guess for who stole the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkFactor {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl WorkFactor {
    /// What key files are made with: 256 MiB, 3 passes, 4 lanes.
    pub const DEFAULT: Self = Self { memory_kib: 262_144, passes: 3, lanes: 4 };
    /// The least that is accepted, half the work of OWASP's minimum: 19 MiB, 1 pass, 1 lane. Tests use it.
    pub const MIN: Self = Self { memory_kib: Self::MEMORY_KIB_MIN, passes: 1, lanes: 1 };
    /// The least memory that is accepted: 19 MiB.
    pub const MEMORY_KIB_MIN: u32 = 19 * 1024;
    /// The most memory that is accepted: 1 GiB, because the file may come from anybody.
    pub const MEMORY_KIB_MAX: u32 = 1024 * 1024;
    /// The most passes that are accepted.
    pub const PASSES_MAX: u32 = 16;
    /// The most lanes that are accepted.
    pub const LANES_MAX: u32 = 8;

    /// Makes a work factor within the limits.
    ///
    /// # Errors
    /// [`KeyError::RefusedWork`] for any other.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, KeyError> {
        let accepted = (Self::MEMORY_KIB_MIN..=Self::MEMORY_KIB_MAX).contains(&memory_kib)
            && (1..=Self::PASSES_MAX).contains(&passes)
            && (1..=Self::LANES_MAX).contains(&lanes);
        if accepted {
            Ok(Self { memory_kib, passes, lanes })
        } else {
            Err(KeyError::RefusedWork { memory_kib, passes, lanes })
        }
    }

    /// The work factor that a stanza's arguments ask for; `None` where they aren't ours or outside of the limits.
    pub(super) fn from_arguments(arguments: &[&str]) -> Option<Self> {
        let [_salt, memory_kib, passes, lanes] = arguments else { return None };
        let number = |text: &str| number(text).ok();
        Self::new(number(memory_kib)?, number(passes)?, number(lanes)?).ok()
    }

    /// The memory in KiB.
    pub const fn memory_kib(self) -> u32 {
        self.memory_kib
    }

    /// The number of passes over the memory.
    pub const fn passes(self) -> u32 {
        self.passes
    }

    /// The number of lanes.
    pub const fn lanes(self) -> u32 {
        self.lanes
    }

    /// The key that wraps the file key: HKDF-SHA256 over Argon2id of the passphrase, both with the same salt.
    fn wrap_key(self, passphrase: &Passphrase, salt: &[u8; SALT_BYTES]) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32));
        let params = params.expect("the limits of a work factor are within Argon2's");
        let mut blocks: Vec<Block> = Vec::new();
        let memory = KeyError::Memory { memory_kib: self.memory_kib };
        blocks.try_reserve_exact(params.block_count()).map_err(|_| memory)?;
        blocks.resize(params.block_count(), Block::default());
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut derived = Zeroizing::new([0; 32]);
        let hashed = argon2.hash_password_into_with_memory(
            passphrase.expose().as_bytes(),
            salt,
            &mut derived[..],
            &mut blocks[..],
        );
        blocks.iter_mut().for_each(|block| block.as_mut().zeroize());
        hashed.expect("salt, output and memory have the sizes Argon2 asks for");
        Ok(Zeroizing::new(hkdf(salt, WRAP_LABEL, &derived[..])))
    }
}

/// Wraps a file key for a passphrase. The derivation is done once, when this is made.
pub(super) struct PassphraseRecipient {
    salt: [u8; SALT_BYTES],
    work: WorkFactor,
    wrap_key: Zeroizing<[u8; 32]>,
}

impl PassphraseRecipient {
    /// Derives the wrapping key from the passphrase and a new salt.
    pub(super) fn derive(passphrase: &Passphrase, work: WorkFactor) -> Result<Self, KeyError> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt)?;
        Ok(Self { salt, work, wrap_key: work.wrap_key(passphrase, &salt)? })
    }
}

impl age::Recipient for PassphraseRecipient {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let WorkFactor { memory_kib, passes, lanes } = self.work;
        let salt = BASE64_STANDARD_NO_PAD.encode(self.salt);
        let stanza = Stanza {
            tag: TAG.into(),
            args: vec![salt, memory_kib.to_string(), passes.to_string(), lanes.to_string()],
            body: aead_encrypt(&self.wrap_key, file_key.expose_secret()),
        };
        Ok((vec![stanza], HashSet::new()))
    }
}

/// Unwraps the file key with a passphrase, and remembers why it didn't where that isn't the passphrase's fault.
pub(super) struct PassphraseIdentity<'a> {
    passphrase: &'a Passphrase,
    refused: Cell<Option<KeyError>>,
}

impl<'a> PassphraseIdentity<'a> {
    /// Unwraps with this passphrase.
    pub(super) fn new(passphrase: &'a Passphrase) -> Self {
        Self { passphrase, refused: Cell::new(None) }
    }

    /// Why the derivation wasn't even tried.
    pub(super) fn refusal(&self) -> Option<KeyError> {
        self.refused.take()
    }

    fn unwrap(&self, stanza: &Stanza) -> Result<Option<FileKey>, Refusal> {
        let [salt, memory_kib, passes, lanes] = stanza.args.as_slice() else {
            return Err(Refusal::Malformed);
        };
        let salt: [u8; SALT_BYTES] =
            BASE64_STANDARD_NO_PAD.decode(salt).ok().and_then(|salt| salt.try_into().ok()).ok_or(Refusal::Malformed)?;
        let [memory_kib, passes, lanes] = [number(memory_kib)?, number(passes)?, number(lanes)?];
        if stanza.body.len() != FILE_KEY_BYTES + 16 {
            return Err(Refusal::Malformed);
        }
        let work = WorkFactor::new(memory_kib, passes, lanes)?;
        let wrap_key = work.wrap_key(self.passphrase, &salt)?;
        let Ok(file_key) = aead_decrypt(&wrap_key, FILE_KEY_BYTES, &stanza.body).map(Zeroizing::new) else {
            return Ok(None);
        };
        Ok(Some(FileKey::init_with_mut(|bytes| bytes.copy_from_slice(&file_key))))
    }
}

enum Refusal {
    Malformed,
    Key(KeyError),
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

/// A number as it is printed: without sign and leading zeros.
fn number(text: &str) -> Result<u32, Refusal> {
    let number = text.parse::<u32>().map_err(|_| Refusal::Malformed)?;
    if number.to_string() == text { Ok(number) } else { Err(Refusal::Malformed) }
}

impl age::Identity for PassphraseIdentity<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        if stanza.tag != TAG {
            return None;
        }
        match self.unwrap(stanza) {
            Ok(file_key) => file_key.map(Ok),
            Err(Refusal::Malformed) => Some(Err(age::DecryptError::InvalidHeader)),
            Err(Refusal::Key(error)) => {
                self.refused.set(Some(error));
                Some(Err(age::DecryptError::KeyDecryptionFailed))
            }
        }
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, age::DecryptError>> {
        let mut ours = stanzas.iter().filter(|stanza| stanza.tag == TAG);
        match (ours.next(), ours.next()) {
            (Some(stanza), None) => self.unwrap_stanza(stanza),
            // A second one would make one guess cost two derivations, and none is a file that isn't ours.
            _ => Some(Err(age::DecryptError::InvalidHeader)),
        }
    }
}

#[cfg(test)]
mod tests {
    use age::Recipient as _;
    use argon2::ParamsBuilder;

    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.into()).expect("it isn't empty")
    }

    /// RFC 9106, section 5.3: the crate and how it is called here give the standard's own answer.
    #[test]
    fn argon2id_gives_the_answer_of_rfc_9106() {
        let mut params = ParamsBuilder::new();
        params.m_cost(32).t_cost(3).p_cost(4).output_len(32);
        params.data(argon2::AssociatedData::new(&[4; 12]).expect("it fits"));
        let params = params.build().expect("they are the standard's");
        let secret = [3; 8];
        let argon2 = Argon2::new_with_secret(&secret, Algorithm::Argon2id, Version::V0x13, params);
        let mut tag = [0; 32];
        let argon2 = argon2.expect("the secret is short");
        argon2.hash_password_into(&[1; 32], &[2; 16], &mut tag).expect("the sizes are right");
        let expected = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
        assert_eq!(tag.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
    }

    #[test]
    fn work_outside_the_limits_is_refused() {
        let (low, high) = (WorkFactor::MEMORY_KIB_MIN, WorkFactor::MEMORY_KIB_MAX);
        for (memory_kib, passes, lanes, accepted) in [
            (low, 1, 1, true),
            (high, 16, 8, true),
            (262_144, 3, 4, true),
            (low - 1, 1, 1, false),
            (high + 1, 1, 1, false),
            (u32::MAX, u32::MAX, u32::MAX, false),
            (low, 0, 1, false),
            (low, 17, 1, false),
            (low, 1, 0, false),
            (low, 1, 9, false),
        ] {
            assert_eq!(WorkFactor::new(memory_kib, passes, lanes).is_ok(), accepted, "{memory_kib} {passes} {lanes}");
        }
    }

    #[test]
    fn only_the_passphrase_unwraps_and_damaged_stanzas_are_not_its_fault() {
        let right = passphrase("correct horse");
        let recipient = PassphraseRecipient::derive(&right, WorkFactor::MIN).expect("19 MiB are there");
        let file_key = FileKey::new(Box::new([7; 16]));
        let (stanzas, labels) = recipient.wrap_file_key(&file_key).expect("nothing can fail");
        assert!(labels.is_empty());
        let open = |passphrase: &Passphrase, args: &[&str], body_bytes: usize| {
            let mut stanza = Stanza { tag: TAG.into(), args: stanzas[0].args.clone(), body: stanzas[0].body.clone() };
            stanza.args.splice(1.., args.iter().map(|arg| (*arg).to_owned()));
            stanza.body.truncate(body_bytes);
            let identity = PassphraseIdentity::new(passphrase);
            let unwrapped = age::Identity::unwrap_stanzas(&identity, &[stanza]);
            let unwrapped = unwrapped.map(|r| r.map(|key| *key.expose_secret()).map_err(|e| e.to_string()));
            (unwrapped, identity.refusal().map(|error| error.to_string()))
        };
        assert_eq!(open(&right, &["19456", "1", "1"], 32), (Some(Ok([7; 16])), None));
        assert_eq!(open(&passphrase("correct horsf"), &["19456", "1", "1"], 32), (None, None));
        let started = std::time::Instant::now();
        for args in [["19455", "1", "1"], ["4294967295", "1", "1"], ["1048576", "17", "1"], ["1048576", "16", "9"]] {
            let (unwrapped, refusal) = open(&right, &args, 32);
            assert!(unwrapped.is_some_and(|unwrapped| unwrapped.is_err()));
            assert!(refusal.is_some_and(|text| text.contains("KiB")), "{args:?}");
        }
        for args in [&["019456", "1", "1"][..], &["+19456", "1", "1"], &["19456", "1"], &["19456", "1", "1", "1"]] {
            let (unwrapped, refusal) = open(&right, args, 32);
            assert!(unwrapped.is_some_and(|unwrapped| unwrapped.is_err()) && refusal.is_none(), "{args:?}");
        }
        assert!(open(&right, &["19456", "1", "1"], 31).0.is_some_and(|unwrapped| unwrapped.is_err()));
        assert!(started.elapsed().as_millis() < 2000, "17 passes over 1 GiB would take many seconds");
    }
}
