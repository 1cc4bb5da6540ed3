//! The keys as a file for stock `age` and a passphrase: age's own scrypt stanza, which `age -d` asks the passphrase for.

use std::io::Write as _;

use age::Encryptor;
use age::scrypt::Recipient;
use secrecy::SecretString;

use super::{KeyFile, Opener};
use crate::identity::error::KeyError;
use crate::identity::passphrase::Passphrase;
use crate::identity::payload;

/// log2 of scrypt's N: 2^18, 256 MiB, what the Go `age` writes. Fixed, because age's crate measures the machine that seals,
/// and a file sealed on a fast one is refused on a slow one.
const SCRYPT_LOG_N: u8 = 18;

impl KeyFile {
    /// The keys, readable text sealed with the same passphrase in a form that stock `age -d` opens. The passphrase is in
    /// Unicode's normalisation form C, which is what a terminal gives of nearly all keyboards.
    ///
    /// # Errors
    /// As [`super::KeyStore::open`].
    ///
    /// # Security
    /// Scrypt costs a thief less than the key file's own Argon2id, and the file stays valid whatever is changed later. The
    /// age crate's writer leaves the text in freed memory: for a process that ends after.
    pub fn to_scrypt(&self, passphrase: &Passphrase) -> Result<Vec<u8>, KeyError> {
        let read = self.read()?;
        let (_, payload) = self.open_newest(&read, &Opener::Passphrase(passphrase))?;
        let text = payload::write(&payload.identity, payload.recovery.as_ref())?;
        let mut recipient = Recipient::new(SecretString::from(passphrase.expose().to_owned()));
        recipient.set_work_factor(SCRYPT_LOG_N);
        let recipients: [&dyn age::Recipient; 1] = [&recipient];
        let encryptor = Encryptor::with_recipients(recipients.into_iter());
        let encryptor = encryptor.expect("one scrypt recipient stands alone, as it must");
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).expect("a vector takes any write");
        writer.write_all(text.as_bytes()).expect("a vector takes any write");
        writer.finish().expect("a vector takes any write");
        Ok(sealed)
    }
}
