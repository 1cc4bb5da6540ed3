//! The key with which somebody seals the bundles they build: an Ed25519 seed in a file of its own, never on the drive.

use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use zeroize::{Zeroize as _, Zeroizing};

use crate::disk::{self, DiskError};
use crate::hint::Hint;
use crate::manifest::signature::from_hex;

/// The longest key file that is read, in bytes.
const SEAL_KEY_BYTES_MAX: u64 = 256;

/// Why there is no key to seal with.
#[derive(Debug, thiserror::Error)]
pub enum SealKeyError {
    /// The file is something else.
    #[error("`{}` isn't a seal key: 64 hexadecimal digits are expected", path.display())]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// The system has no randomness to give.
    #[error("the system gives no random bytes: {what}")]
    NoRandomness {
        /// What it said.
        what: String,
    },
    /// The file can't be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Hint for SealKeyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotAKey { .. } => Some("give another file; where there is none, a key is made".into()),
            Self::NoRandomness { .. } => None,
            Self::Disk(error) => error.hint(),
        }
    }
}

/// Reads the key at `path`, or makes one there that only its owner may read. Says whether it was made.
///
/// # Errors
/// See [`SealKeyError`]. A file that isn't a key is never replaced.
pub fn load_or_create(path: &Path) -> Result<(SigningKey, bool), SealKeyError> {
    match disk::read(path, SEAL_KEY_BYTES_MAX) {
        Ok(content) => {
            let content = Zeroizing::new(content);
            let text = std::str::from_utf8(&content).ok().map(str::trim_ascii);
            let seed = Zeroizing::new(
                text.and_then(from_hex::<32>).ok_or_else(|| SealKeyError::NotAKey { path: path.into() })?,
            );
            Ok((SigningKey::from_bytes(&seed), false))
        }
        Err(error) if error.is_not_found() => {
            let mut seed = Zeroizing::new([0; 32]);
            getrandom::fill(seed.as_mut_slice()).map_err(|e| SealKeyError::NoRandomness { what: e.to_string() })?;
            let mut text: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
            text.push('\n');
            let written = disk::write_private(path, text.as_bytes());
            text.zeroize();
            written?;
            Ok((SigningKey::from_bytes(&seed), true))
        }
        Err(DiskError::TooLarge { path, .. }) => Err(SealKeyError::NotAKey { path }),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn a_key_is_made_once_and_is_its_owners() {
        let folder = TestFolder::new();
        let path = folder.path().join("seal.key");
        let (made, is_new) = load_or_create(&path).expect("it can be made");
        assert!(is_new);
        let (read, is_new) = load_or_create(&path).expect("it can be read");
        assert!(!is_new);
        assert_eq!(made.to_bytes(), read.to_bytes());
        assert_ne!(made.to_bytes(), [0; 32]);
        assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn another_file_is_not_taken_for_a_key_nor_replaced() {
        let folder = TestFolder::new();
        let path = folder.path().join("notes");
        for content in ["", "notes", &"g".repeat(64), &"a".repeat(63), &"a".repeat(5000)] {
            std::fs::write(&path, content).expect("it can be written");
            assert!(matches!(load_or_create(&path), Err(SealKeyError::NotAKey { .. })));
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), content);
        }
    }
}
