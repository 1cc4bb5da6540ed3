//! `Keychain`: a second way to the keys of an installed Tiles on a Mac, so that the passphrase isn't asked for each time.
//!
//! The key file stays what counts: passphrase and recovery words open it, and backups of the Mac carry it. The Keychain has
//! one item more with the same payload, which says of which write of the key file it is. So nothing is lost with the
//! Keychain (a new Mac, a reset login password), and an item that is of another write, or of another copy of the folder, is
//! never used: then the passphrase is asked for once, and the item is made anew. An item that can't be *read* is no reason
//! to write one.
//!
//! ```text
//! data/keychain              the item's account: an id of this installation, drawn by lot; without it, no item is looked for
//! service Tiles, account ID  tiles-keychain 1 GENERATION RUN_ID, then the payload as it is in the key file
//! ```

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::KeyError;
use super::key_file::KeyFile;
use super::payload::{self, PayloadError};
use super::slot::SlotHeader;
use super::{Identity, Unlocked};
use crate::disk;

#[cfg(target_os = "macos")]
mod login;

/// The service that items are under.
pub const KEYCHAIN_SERVICE: &str = "Tiles";
/// The file that names the item's account.
const ACCOUNT_NAME: &str = "keychain";
/// How long an account is: 16 bytes in hexadecimal.
const ACCOUNT_DIGITS: usize = 32;
/// The most that is read of the file with the account.
const ACCOUNT_BYTES_MAX: u64 = 64;
const TAG: &str = "tiles-keychain";
const VERSION: u64 = 1;

/// That the Keychain didn't do what it was asked for, other than having no such item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({status})")]
pub struct Refusal {
    /// Security.framework's `OSStatus`.
    pub status: i32,
    /// What the system says about it.
    pub message: String,
}

impl Refusal {
    /// `errSecUserCanceled`: the person said no to the dialogue.
    pub const CANCELED: i32 = -128;
    /// `errSecAuthFailed`: the login keychain has another password than was given.
    pub const AUTH_FAILED: i32 = -25293;
    /// `errSecDuplicateItem`.
    pub const DUPLICATE: i32 = -25299;
    /// `errSecItemNotFound`.
    pub const NOT_FOUND: i32 = -25300;
    /// `errSecInteractionNotAllowed`: it is locked, and there is no screen to ask on, as over ssh.
    pub const INTERACTION_NOT_ALLOWED: i32 = -25308;

    /// What the person can do.
    pub(super) fn hint(&self) -> &'static str {
        match self.status {
            Self::CANCELED | Self::AUTH_FAILED => {
                "allow it when the Mac asks, or open the keys with the passphrase: `--passphrase-file`, or type it"
            }
            Self::INTERACTION_NOT_ALLOWED => {
                "unlock the Keychain first, with `security unlock-keychain`, or use the passphrase: `--passphrase-file`"
            }
            _ => {
                "use the passphrase: `--passphrase-file`, or type it; `tiles key keychain off` asks the Keychain no more"
            }
        }
    }
}

/// What a keychain does with secrets under [`KEYCHAIN_SERVICE`]: the Mac's, and one in memory for tests.
pub trait SecretItems {
    /// The secret under `account`; `None` only where there surely is none.
    ///
    /// # Errors
    /// Everything else: locked, denied, canceled, nobody there to ask.
    fn read(&self, account: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal>;

    /// Adds a secret, and overwrites none.
    ///
    /// # Errors
    /// [`Refusal::DUPLICATE`] where there is one, and as [`SecretItems::read`].
    fn add(&self, account: &str, secret: &[u8]) -> Result<(), Refusal>;

    /// Removes the secret; none is fine.
    ///
    /// # Errors
    /// As [`SecretItems::read`].
    fn remove(&self, account: &str) -> Result<(), Refusal>;
}

/// The keychain of this system; `None` where it has none.
pub fn system_keychain() -> Option<Box<dyn SecretItems>> {
    #[cfg(target_os = "macos")]
    return Some(Box::new(login::LoginKeychain));
    #[cfg(not(target_os = "macos"))]
    None
}

/// What the Keychain has for a key file.
pub enum Kept {
    /// It isn't used for this installation.
    Off,
    /// It was used, and the item is gone: another Mac or user, or somebody removed it.
    Gone,
    /// The item is of another write of the key file, which counts.
    Outdated,
    /// The keys. `header` is the key file's; `None` where the key file has no whole copy any more, and this is all there is.
    Open(Box<Unlocked>),
}

/// The Keychain's item for the keys in one data folder.
pub struct Keychain {
    items: Box<dyn SecretItems>,
    account_path: PathBuf,
}

impl Keychain {
    /// For the installation in `data_folder`. Touches nothing.
    pub fn new(items: Box<dyn SecretItems>, data_folder: &Path) -> Self {
        Self { items, account_path: data_folder.join(ACCOUNT_NAME) }
    }

    /// Whether the keys were put into the Keychain.
    pub fn is_on(&self) -> bool {
        disk::exists(&self.account_path)
    }

    /// Opens the keys with what the Keychain has, as far as that is of the last write of `key_file`.
    ///
    /// # Errors
    /// [`KeyError::Keychain`], [`KeyError::Damaged`], [`KeyError::Newer`], and what reading can meet. None of them is a
    /// reason to write anything.
    pub fn open(&self, key_file: &KeyFile) -> Result<Kept, KeyError> {
        let Some(account) = self.account()? else { return Ok(Kept::Off) };
        let Some((identity, header)) = self.item(&account)? else { return Ok(Kept::Gone) };
        Ok(match key_file.report()?.newest() {
            Some(newest) if newest == header => Kept::Open(Box::new(unlocked(identity, Some(header)))),
            Some(_) => Kept::Outdated,
            None => Kept::Open(Box::new(unlocked(identity, None))),
        })
    }

    /// Puts the keys, as the key file with this header has them, into the Keychain, and reads them back.
    ///
    /// # Errors
    /// [`KeyError::Keychain`] where what is there can't be read: it isn't overwritten. [`KeyError::Exists`] where it is
    /// another identity's. What writing can meet.
    pub fn keep(&self, identity: &Identity, header: SlotHeader) -> Result<(), KeyError> {
        let account = match self.account()? {
            Some(account) => account,
            None => self.draw_account()?,
        };
        match self.item(&account)? {
            Some((kept, same)) if same == header && kept.did() == identity.did() => return Ok(()),
            Some((kept, _)) if kept.did() != identity.did() => {
                return Err(KeyError::Exists { path: self.account_path.clone() });
            }
            Some(_) => self.items.remove(&account).map_err(|refusal| refused("replaced", refusal))?,
            None => {}
        }
        let SlotHeader { generation, run_id } = header;
        let first = format!("{TAG} {VERSION} {generation} {:032x}\n", u128::from_be_bytes(run_id));
        let text = payload::write(identity, None)?;
        // Made with its length, so that no copy is left behind by growing.
        let mut secret = Zeroizing::new(Vec::with_capacity(first.len() + text.len()));
        secret.extend_from_slice(first.as_bytes());
        secret.extend_from_slice(text.as_bytes());
        self.items.add(&account, &secret).map_err(|refusal| refused("written", refusal))?;
        let kept = self.items.read(&account).map_err(|refusal| refused("read back", refusal))?;
        match kept {
            Some(kept) if *kept == *secret => Ok(()),
            _ => Err(KeyError::NotKept { path: self.account_path.clone() }),
        }
    }

    /// Takes the keys out of the Keychain, which is asked no more. The key file is left as it is.
    ///
    /// # Errors
    /// [`KeyError::Keychain`], and what removing can meet; nothing has changed then.
    pub fn forget(&self) -> Result<(), KeyError> {
        if let Some(account) = self.account()? {
            self.items.remove(&account).map_err(|refusal| refused("removed", refusal))?;
        }
        Ok(disk::remove(&self.account_path)?)
    }

    fn account(&self) -> Result<Option<String>, KeyError> {
        let text = match disk::read(&self.account_path, ACCOUNT_BYTES_MAX) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_account = text.len() == ACCOUNT_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        // A cut left it torn: no item is found under it, as if it weren't there.
        Ok(is_account.then_some(text))
    }

    fn draw_account(&self) -> Result<String, KeyError> {
        let mut id = [0; ACCOUNT_DIGITS / 2];
        getrandom::fill(&mut id)?;
        let account = format!("{:032x}", u128::from_be_bytes(id));
        disk::write(&self.account_path, format!("{account}\n").as_bytes())?;
        Ok(account)
    }

    fn item(&self, account: &str) -> Result<Option<(Identity, SlotHeader)>, KeyError> {
        let read = self.items.read(account).map_err(|refusal| refused("read", refusal))?;
        read.map(|secret| self.parse(&secret)).transpose()
    }

    fn parse(&self, secret: &[u8]) -> Result<(Identity, SlotHeader), KeyError> {
        let path = || self.account_path.clone();
        let damaged = || KeyError::Damaged { path: path(), reason: "its item in the Keychain isn't as it was written" };
        let end = secret.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let first = std::str::from_utf8(&secret[..end]).map_err(|_| damaged())?;
        let mut words = first.split(' ');
        if words.next() != Some(TAG) {
            return Err(damaged());
        }
        let version: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
        if version > VERSION {
            return Err(KeyError::Newer { path: path(), version });
        }
        let generation = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
        let run_id = words.next().filter(|word| word.len() == ACCOUNT_DIGITS);
        let run_id = run_id.and_then(|word| u128::from_str_radix(word, 16).ok()).ok_or_else(damaged)?.to_be_bytes();
        let payload = payload::read(&secret[end + 1..]).map_err(|error| match error {
            PayloadError::Newer(version) => KeyError::Newer { path: path(), version },
            PayloadError::Damaged => damaged(),
        })?;
        Ok((payload.identity, SlotHeader { generation, run_id }))
    }
}

fn unlocked(identity: Identity, header: Option<SlotHeader>) -> Unlocked {
    Unlocked { identity, header, flaw: None }
}

fn refused(action: &'static str, refusal: Refusal) -> KeyError {
    KeyError::Keychain { action, refusal }
}

#[cfg(test)]
mod tests;
