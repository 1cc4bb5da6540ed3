//! One slot of the key file: an age v1 file of fixed size that tells damage from a wrong passphrase without deriving.
//!
//! ```text
//! age-encryption.org/v1
//! -> tiles-slot 1 GENERATION RUN_ID          first, so that it has a fixed place
//! DIGEST                                     SHA-256, 43 digits of base64
//! -> tiles-argon2id SALT M T P               the passphrase
//! …
//! -> X25519 SHARE                            the recovery words; absent with --no-recovery
//! …
//! --- MAC                                    HMAC-SHA256 over all of the above, made with the file key
//! nonce and payload                          one STREAM chunk, padded inside so that the slot has 4096 bytes
//! ```
//!
//! age has no checksum: its MAC needs the file key, which needs the derivation, which needs the passphrase. So a torn
//! slot would look like a wrong passphrase. Two files that each carry the other's sum could tear apart, and age allows
//! nothing after the payload; but it skips stanzas that it doesn't know. The digest lies in one of those, over every
//! byte of the slot but its own 43 digits and the MAC's, which covers the digest. The age crate writes the header, then
//! the payload is added, the digest filled in, and the MAC made with the file key (age v1, "Header MAC"). A flipped bit
//! in the MAC itself is found after the derivation, when the passphrase has just proved to be right: damage, too.
//!
//! # Security
//! The digest is against accidents. Who forges it gains nothing: what is inside is authenticated by age.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Read as _;
use std::ops::Range;

use age::{DecryptError, Decryptor, EncryptError, Encryptor};
use age_core::format::{FileKey, Stanza};
use age_core::primitives::hkdf;
use age_core::secrecy::ExposeSecret as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::error::KeyError;

/// The size of a slot in bytes: one page of a flash memory, and several times what the keys take.
pub const SLOT_BYTES: usize = 4096;

/// The largest slot that is read. A later Tiles may have larger ones, and is then told as newer, not as damaged.
pub const SLOT_BYTES_MAX: u64 = 16 * 1024;

/// The version of the slot that is written and read.
const SLOT_VERSION: u64 = 1;

const START: &[u8] = b"age-encryption.org/v1\n-> tiles-slot ";
const MAC_LINE: &[u8] = b"\n--- ";
/// 32 bytes in base64 without padding.
const DIGEST_TEXT_BYTES: usize = 43;
const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// The longest first line: tag, version, generation and run id.
const SLOT_LINE_BYTES_MAX: usize = 128;

/// What a whole slot says about itself before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// Counts the writes of the key file. The larger one is the newer slot.
    pub generation: u64,
    /// Drawn at each write: of two copies of one drive that both went on, the same generation has two of them.
    pub run_id: [u8; 16],
}

/// Why a slot isn't worth opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Torn or rotten, and why.
    Damaged(&'static str),
    /// Whole, and of a later Tiles.
    Newer(u64),
}

/// Why a whole slot didn't open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// No stanza for this identity, or one for another passphrase.
    WrongKey,
    /// The key fits, and what it opens isn't what was sealed.
    Damaged(&'static str),
}

/// The stanza that holds generation, run id and digest; it wraps nothing, and hands the file key to the second pass.
struct SlotRecipient {
    header: SlotHeader,
    file_key: RefCell<Option<FileKey>>,
}

impl age::Recipient for SlotRecipient {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let copy = FileKey::init_with_mut(|bytes| bytes.copy_from_slice(file_key.expose_secret()));
        self.file_key.replace(Some(copy));
        let run_id = u128::from_be_bytes(self.header.run_id);
        let args = vec![SLOT_VERSION.to_string(), self.header.generation.to_string(), format!("{run_id:032x}")];
        Ok((vec![Stanza { tag: "tiles-slot".into(), args, body: vec![0; 32] }], HashSet::new()))
    }
}

/// Seals `text` for the recipients, as a slot of [`SLOT_BYTES`].
pub(super) fn seal(text: &str, header: SlotHeader, recipients: &[&dyn age::Recipient]) -> Result<Vec<u8>, KeyError> {
    let slot = SlotRecipient { header, file_key: RefCell::new(None) };
    let first: &dyn age::Recipient = &slot;
    let encryptor = Encryptor::with_recipients([first].into_iter().chain(recipients.iter().copied()));
    let encryptor = encryptor.expect("our recipients wrap without failing and have no labels");
    let mut sealed = Vec::with_capacity(SLOT_BYTES);
    drop(encryptor.wrap_output(&mut sealed).expect("a vector takes any write"));
    let file_key = slot.file_key.take().expect("the encryptor asks each recipient");
    encrypt_payload(&mut sealed, text, &file_key)?;
    let fields = Fields::find(&sealed).expect("the header was written as it is found");
    let digest = BASE64_STANDARD_NO_PAD.encode(fields.digest_of(&sealed));
    sealed[fields.digest.clone()].copy_from_slice(digest.as_bytes());
    let mac = BASE64_STANDARD_NO_PAD.encode(header_mac(&sealed[..fields.mac.start - 1], &file_key));
    sealed[fields.mac].copy_from_slice(mac.as_bytes());
    Ok(sealed)
}

/// Appends the payload to header and nonce: `text` padded with spaces, as the one and last chunk of age's STREAM.
///
/// Done here and not by the age crate's writer, because that leaves the text in freed memory.
fn encrypt_payload(sealed: &mut Vec<u8>, text: &str, file_key: &FileKey) -> Result<(), KeyError> {
    let plain_bytes = SLOT_BYTES.checked_sub(sealed.len() + TAG_BYTES).ok_or(KeyError::TooLarge)?;
    let padding = plain_bytes.checked_sub(text.len() + 1).ok_or(KeyError::TooLarge)?;
    let payload_key = Zeroizing::new(hkdf(&sealed[sealed.len() - NONCE_BYTES..], b"payload", file_key.expose_secret()));
    let mut chunk = Zeroizing::new(Vec::with_capacity(plain_bytes));
    chunk.extend_from_slice(text.as_bytes());
    chunk.resize(text.len() + padding, b' ');
    chunk.push(b'\n');
    // Eleven bytes of counter, and one that says that the chunk is the last.
    let nonce = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let cipher = ChaCha20Poly1305::new(&(*payload_key).into());
    let tag = cipher.encrypt_inout_detached(&nonce.into(), &[], chunk.as_mut_slice().into());
    let tag = tag.expect("a page is far below what ChaCha20 can encrypt");
    sealed.extend_from_slice(&chunk);
    sealed.extend_from_slice(&tag);
    Ok(())
}

/// HMAC-SHA256 over the header, from its first byte through `---`.
fn header_mac(header: &[u8], file_key: &FileKey) -> [u8; 32] {
    let key = Zeroizing::new(hkdf(&[], b"header", file_key.expose_secret()));
    let mut mac = Hmac::<Sha256>::new_from_slice(&key[..]).expect("HMAC takes keys of any length");
    mac.update(header);
    mac.finalize().into_bytes().into()
}

/// Where in a slot the two fields lie that the digest doesn't cover.
struct Fields {
    line: Range<usize>,
    digest: Range<usize>,
    mac: Range<usize>,
}

impl Fields {
    /// Finds them, or `None` in what doesn't have the form of a slot.
    fn find(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(START)?;
        let line_bytes = rest.iter().take(SLOT_LINE_BYTES_MAX).position(|byte| *byte == b'\n')?;
        let line = START.len()..START.len() + line_bytes;
        let digest = line.end + 1..line.end + 1 + DIGEST_TEXT_BYTES;
        if bytes.get(digest.end) != Some(&b'\n') {
            return None;
        }
        let mac_line = bytes[digest.end..].windows(MAC_LINE.len()).position(|window| window == MAC_LINE)?;
        let mac_start = digest.end + mac_line + MAC_LINE.len();
        let mac = mac_start..mac_start + DIGEST_TEXT_BYTES;
        (bytes.get(mac.end) == Some(&b'\n')).then_some(Self { line, digest, mac })
    }

    /// The digest of the slot without the two fields.
    fn digest_of(&self, bytes: &[u8]) -> [u8; 32] {
        let covered = [&bytes[..self.digest.start], &bytes[self.digest.end..self.mac.start], &bytes[self.mac.end..]];
        let mut hasher = Sha256::new();
        covered.iter().for_each(|piece| hasher.update(piece));
        hasher.finalize().into()
    }
}

/// Says whether a slot is whole, and its header; derives and decrypts nothing.
pub(super) fn inspect(bytes: &[u8]) -> Result<SlotHeader, Flaw> {
    let fields = Fields::find(bytes).ok_or(Flaw::Damaged("it has lost the form of a key file"))?;
    let digest = BASE64_STANDARD_NO_PAD.encode(fields.digest_of(bytes));
    if digest.as_bytes() != &bytes[fields.digest.clone()] {
        return Err(Flaw::Damaged("its content isn't what was written"));
    }
    // From here on it is as somebody wrote it, a later Tiles or a forger.
    let strange = Flaw::Damaged("its first line says nothing known");
    let line = str::from_utf8(&bytes[fields.line]).map_err(|_| strange)?;
    let mut words = line.split(' ');
    let version = words.next().and_then(number).ok_or(strange)?;
    if version > SLOT_VERSION {
        return Err(Flaw::Newer(version));
    }
    let generation = words.next().and_then(number).ok_or(strange)?;
    let run_id = words.next().and_then(run_id).ok_or(strange)?;
    match words.next() {
        None if version == SLOT_VERSION => Ok(SlotHeader { generation, run_id }),
        _ => Err(strange),
    }
}

fn number(word: &str) -> Option<u64> {
    word.parse::<u64>().ok().filter(|number| number.to_string() == word)
}

fn run_id(word: &str) -> Option<[u8; 16]> {
    let run_id = u128::from_str_radix(word, 16).ok()?;
    (format!("{run_id:032x}") == word).then_some(run_id.to_be_bytes())
}

/// Opens a slot that [`inspect`] found whole.
pub(super) fn open(bytes: &[u8], identity: &dyn age::Identity) -> Result<Zeroizing<Vec<u8>>, Closed> {
    let damaged = |error| match error {
        DecryptError::NoMatchingKeys => Closed::WrongKey,
        DecryptError::InvalidMac => Closed::Damaged("its header isn't what was written"),
        DecryptError::InvalidHeader => Closed::Damaged("its header isn't that of a key file"),
        _ => Closed::Damaged("its keys can't be read"),
    };
    let mut reader =
        Decryptor::new_buffered(bytes).and_then(|file| file.decrypt([identity].into_iter())).map_err(damaged)?;
    // As large as the slot, so that it never grows and leaves a copy behind.
    let mut payload = Zeroizing::new(vec![0; bytes.len()]);
    let mut filled = 0;
    loop {
        match reader.read(&mut payload[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(_) => return Err(Closed::Damaged("its keys can't be read")),
        }
    }
    payload.truncate(filled);
    Ok(payload)
}

/// Whether a whole slot has a stanza for recovery words.
pub(super) fn has_recovery(bytes: &[u8]) -> bool {
    stanza(bytes, "X25519").is_some()
}

/// The arguments of the first stanza with this tag in a whole slot.
pub(super) fn stanza<'a>(bytes: &'a [u8], tag: &str) -> Option<Vec<&'a str>> {
    let fields = Fields::find(bytes)?;
    let header = bytes[..fields.mac.start].split(|byte| *byte == b'\n');
    let mut stanzas = header.filter_map(|line| str::from_utf8(line.strip_prefix(b"-> ")?).ok());
    stanzas.find_map(|line| line.strip_prefix(tag)?.strip_prefix(' ')).map(|arguments| arguments.split(' ').collect())
}

/// Gives a changed slot the digest that fits it, as a forger would.
#[cfg(test)]
pub(super) fn with_right_digest(mut bytes: Vec<u8>) -> Vec<u8> {
    let fields = Fields::find(&bytes).expect("it has the form of a slot");
    let digest = BASE64_STANDARD_NO_PAD.encode(fields.digest_of(&bytes));
    bytes[fields.digest].copy_from_slice(digest.as_bytes());
    bytes
}

/// Where the header's MAC lies.
#[cfg(test)]
pub(super) fn mac_field(bytes: &[u8]) -> Range<usize> {
    Fields::find(bytes).expect("it has the form of a slot").mac
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes: Vec<u8>, line in "[0-9a-f ]{0,140}", digits in "[A-Za-z0-9+/]{40,46}") {
            prop_assert!(inspect(&bytes).is_err());
            // The form of a slot, nearly or quite; the digest is right where there is room for one.
            let header = format!("{line}\n{digits}\n-> tiles-argon2id x\n\n--- {digits}\n");
            bytes.splice(0..0, [START, header.as_bytes()].concat());
            if Fields::find(&bytes).is_some() {
                bytes = with_right_digest(bytes);
            }
            if inspect(&bytes).is_ok() {
                let closed = open(&bytes, &age::x25519::Identity::generate());
                prop_assert!(matches!(closed, Err(Closed::Damaged(_) | Closed::WrongKey)));
            }
        }

        #[test]
        fn sealing_and_opening_are_inverse(text in "[ -~]{0,2000}", generation: u64, run_id: [u8; 16]) {
            let recovery = age::x25519::Identity::generate();
            let header = SlotHeader { generation, run_id };
            let recipient: &dyn age::Recipient = &recovery.to_public();
            let sealed = seal(&text, header, &[recipient]).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(sealed.len(), SLOT_BYTES);
            prop_assert_eq!(inspect(&sealed), Ok(header));
            let opened = open(&sealed, &recovery).map_err(|closed| TestCaseError::fail(format!("{closed:?}")))?;
            prop_assert_eq!(str::from_utf8(&opened).map(str::trim_end), Ok(text.trim_end()));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let recipient: &dyn age::Recipient = &age::x25519::Identity::generate().to_public();
        let header = SlotHeader { generation: 1, run_id: [0; 16] };
        for bytes in [SLOT_BYTES - 100, SLOT_BYTES, 10 * SLOT_BYTES] {
            assert!(matches!(seal(&"x".repeat(bytes), header, &[recipient]), Err(KeyError::TooLarge)));
        }
    }
}
