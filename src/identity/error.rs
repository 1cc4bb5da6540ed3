//! `KeyError`: why keys can't be unlocked or kept, by what the person can do about it.

use std::path::PathBuf;

use super::keychain::Refusal;
use super::recovery::WordsError;
use crate::disk::DiskError;
use crate::disk::two_slot::TwoSlotError;
use crate::hint::Hint;

/// Why keys weren't unlocked, made or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key file is whole, and the passphrase isn't the one it was locked with.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// The key file is whole, and the recovery words aren't those it was made with.
    #[error("these aren't the recovery words of this key file")]
    WrongWords,
    /// The key file was made without recovery words.
    #[error("this key file has no recovery words")]
    NoRecovery,
    /// Neither slot is whole.
    #[error("the key file `{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The slot that was tried last.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A later Tiles wrote it.
    #[error("the key file `{}` has format {version}, which this Tiles doesn't know", path.display())]
    Newer {
        /// The slot.
        path: PathBuf,
        /// The version it says it has.
        version: u64,
    },
    /// There is no key file.
    #[error("there is no key file at `{}`", path.display())]
    Missing {
        /// Where the first slot would be.
        path: PathBuf,
    },
    /// There is a key file, and it isn't overwritten.
    #[error("there is a key file at `{}` already", path.display())]
    Exists {
        /// The slot that is there.
        path: PathBuf,
    },
    /// The key file asks for more or less work than any Tiles does.
    #[error(
        "the key file asks for {memory_kib} KiB, {passes} passes and {lanes} lanes to open, outside of what is accepted"
    )]
    RefusedWork {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// The host hasn't the memory that the derivation takes.
    #[error("opening the key file takes {} MiB of memory, which this computer can't give", memory_kib / 1024)]
    Memory {
        /// How much in KiB.
        memory_kib: u32,
    },
    /// Nothing was typed.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// More was typed than anybody types.
    #[error("the passphrase is longer than {} bytes", super::passphrase::PASSPHRASE_BYTES_MAX)]
    LongPassphrase,
    /// The file or pipe that holds the passphrase holds something else.
    #[error("the passphrase isn't UTF-8 text")]
    PassphraseNotText,
    /// The recovery words have a mistake.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The keys don't fit a slot, or there are more previous keys than are kept.
    #[error("the keys don't fit the key file")]
    TooLarge,
    /// The date is beyond what can be written.
    #[error("the computer's clock shows an impossible date")]
    Clock,
    /// What was written isn't what the drive gives back.
    #[error("`{}` reads back differently from what was written: the drive loses what it is given", path.display())]
    NotKept {
        /// The slot.
        path: PathBuf,
    },
    /// The Keychain refused.
    #[error("the keys can't be {action} in the Keychain")]
    Keychain {
        /// What was to be done.
        action: &'static str,
        /// Why it wasn't.
        #[source]
        refusal: Refusal,
    },
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes")]
    Random(#[from] getrandom::Error),
    /// Reading or writing failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<TwoSlotError<KeyError>> for KeyError {
    fn from(error: TwoSlotError<KeyError>) -> Self {
        match error {
            TwoSlotError::Disk(DiskError::Exists { path }) => Self::Exists { path },
            TwoSlotError::Disk(error) => Self::Disk(error),
            TwoSlotError::NotKept { path } => Self::NotKept { path },
            TwoSlotError::Refused(error) => error,
        }
    }
}

impl Hint for KeyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::WrongPassphrase => {
                "type it again; if it is lost, set a new one with `tiles key restore` and the 24 recovery words".into()
            }
            Self::WrongWords => "look for the words written down when Tiles was set up here".into(),
            Self::NoRecovery => "open it with the passphrase; nothing else can".into(),
            Self::Damaged { .. } => {
                "copy `key.a` and `key.b` back from a backup or another copy of `data`; each opens on its own".into()
            }
            Self::Newer { .. } => "open it with the Tiles that wrote it, or a later one".into(),
            Self::Missing { .. } => "copy `key.a` or `key.b` back from a backup, or run `tiles` to begin anew".into(),
            Self::Exists { .. } => "unlock it, or choose another folder with `--bundle`".into(),
            Self::RefusedWork { .. } => "copy `key.a` and `key.b` back from a backup; Tiles didn't write these".into(),
            Self::Memory { .. } => "close other programs, or plug the drive into a computer with more memory".into(),
            Self::EmptyPassphrase => "type at least four words".into(),
            Self::LongPassphrase => "choose a shorter one".into(),
            Self::PassphraseNotText => "give the file that holds nothing but the passphrase".into(),
            Self::Words(error) => return error.hint(),
            Self::TooLarge => "report this as a bug of Tiles".into(),
            Self::Clock => "set the computer's clock and try again".into(),
            Self::NotKept { .. } => "copy the folder to another drive, and don't trust this one".into(),
            Self::Keychain { refusal, .. } => refusal.hint().into(),
            Self::Random(_) => "restart the computer and try again".into(),
            Self::Disk(error) => return error.hint(),
        })
    }
}

impl Hint for WordsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Count { .. } => "type all 24 words with spaces between them".into(),
            Self::Unknown { position, near } if near.is_empty() => format!("check word {position} on the paper"),
            Self::Unknown { position, near } => {
                format!("check word {position} on the paper; words like it are `{}`", near.join("`, `"))
            }
            Self::Checksum => "compare each word with the paper, in order".into(),
        })
    }
}
