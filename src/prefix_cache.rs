//! `data/cache/`: engine states kept on the drive, encrypted, within a limit of size. They can be made again at any time, so
//! what can't be read, isn't ours or belongs to other weights is as good as absent.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::digest::Sha256Digest;
use crate::disk::{self, DiskError};
use crate::engine::prefix::{PREFIX_BYTES_MAX, PrefixState};
use crate::identity::{DerivedKey, age_identity};
use crate::message::SessionId;

/// How many bytes all states together may have.
pub const CACHE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How much of the drive's free space they leave untouched, as a multiple of the state to be written.
const FREE_FACTOR: u64 = 4;
/// What age adds to a state of this size at most: header, and 16 bytes for each 64 KiB.
const AGE_BYTES: u64 = 1024 * 1024;
const FILES_MAX: usize = 4_096;
const ENDING: &str = ".prefix";

/// The states of one bundle.
pub struct PrefixCache {
    folder: PathBuf,
    key: DerivedKey,
    bytes_max: u64,
}

impl std::fmt::Debug for PrefixCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixCache").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl PrefixCache {
    /// The states in `folder`, which needn't exist yet, under a key of the identity's for this purpose.
    pub fn new(folder: &Path, key: DerivedKey, bytes_max: u64) -> Self {
        Self { folder: folder.into(), key, bytes_max }
    }

    /// The state of a session after its last turn.
    pub fn session(&self, id: SessionId) -> Option<PrefixState> {
        self.get(&self.name("session", &id.0))
    }

    /// The state after the instructions that open conversations, such as a Modelfile's SYSTEM.
    pub fn opening(&self, origin: &Sha256Digest, tokens: &[u32]) -> Option<PrefixState> {
        self.get(&self.name("opening", &opening(origin, tokens)))
    }

    /// Keeps the state of a session.
    ///
    /// # Errors
    /// What writing can meet. Too little room isn't an error: then nothing is kept.
    pub fn keep_session(&self, id: SessionId, state: &PrefixState) -> Result<(), DiskError> {
        self.put(&self.name("session", &id.0), state)
    }

    /// Keeps the state after instructions; not again where it is there.
    ///
    /// # Errors
    /// As [`Self::keep_session`].
    pub fn keep_opening(&self, state: &PrefixState) -> Result<(), DiskError> {
        let name = self.name("opening", &opening(&state.origin, &state.tokens));
        if disk::exists(&self.folder.join(&name)) { Ok(()) } else { self.put(&name, state) }
    }

    /// Forgets the state of a session.
    ///
    /// # Errors
    /// What removing can meet.
    pub fn forget_session(&self, id: SessionId) -> Result<(), DiskError> {
        let path = self.folder.join(self.name("session", &id.0));
        if disk::exists(&path) { disk::remove(&path) } else { Ok(()) }
    }

    /// A file's name, which tells nobody without the key what it is about.
    fn name(&self, kind: &str, what: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key[..]).expect("HMAC takes keys of any length");
        mac.update(kind.as_bytes());
        mac.update(&[0]);
        mac.update(what);
        let digest = Sha256Digest(mac.finalize().into_bytes().into()).to_string();
        format!("{}{ENDING}", &digest[..32])
    }

    fn get(&self, name: &str) -> Option<PrefixState> {
        let sealed = disk::read(&self.folder.join(name), PREFIX_BYTES_MAX + AGE_BYTES).ok()?;
        let identity = age_identity(&self.key);
        let identity: &dyn age::Identity = &identity;
        let mut reader =
            age::Decryptor::new_buffered(sealed.as_slice()).ok()?.decrypt(std::iter::once(identity)).ok()?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(sealed.len()));
        reader.read_to_end(&mut bytes).ok()?;
        PrefixState::from_bytes(&bytes)
    }

    fn put(&self, name: &str, state: &PrefixState) -> Result<(), DiskError> {
        let bytes = state.bytes();
        if bytes > PREFIX_BYTES_MAX || bytes > self.bytes_max / 2 {
            return Ok(());
        }
        disk::create_folder(&self.folder)?;
        if disk::free_bytes(&self.folder)? < bytes.saturating_mul(FREE_FACTOR) {
            return Ok(());
        }
        self.make_room(name, bytes)?;
        let recipient = age_identity(&self.key).to_public();
        let recipient: &dyn age::Recipient = &recipient;
        let encryptor = age::Encryptor::with_recipients(std::iter::once(recipient));
        let encryptor = encryptor.expect("there is a recipient, and it wraps without failing");
        let path = self.folder.join(name);
        let failed = |error| DiskError::new("write", &path, error);
        let mut file = disk::PartialFile::create(&path)?;
        let mut writer = encryptor.wrap_output(&mut file).map_err(failed)?;
        state.write_to(&mut writer).and_then(|()| writer.finish().map(drop)).map_err(failed)?;
        // Not synced: a state that a power cut tears doesn't open, and is made again.
        file.finish_lazily()
    }

    /// Removes the states that were not written for longest until there is room for `bytes` more.
    fn make_room(&self, name: &str, bytes: u64) -> Result<(), DiskError> {
        let mut files = Vec::new();
        for (file, kind) in disk::list_kinds(&self.folder, FILES_MAX)? {
            if kind != disk::Kind::File || file == name {
                continue;
            }
            let path = self.folder.join(&file);
            // What isn't a state is the rest of a write that was cut off.
            if !file.ends_with(ENDING) {
                disk::remove(&path)?;
                continue;
            }
            files.push((disk::modified(&path)?, disk::size(&path)?.unwrap_or(0), path));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if total + bytes <= self.bytes_max {
                break;
            }
            disk::remove(&path)?;
            total -= size;
        }
        Ok(())
    }
}

fn opening(origin: &Sha256Digest, tokens: &[u32]) -> Vec<u8> {
    origin.0.iter().copied().chain(tokens.iter().flat_map(|token| token.to_le_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::Dtype;
    use crate::engine::prefix::LayerState;
    use crate::test_folder::TestFolder;

    fn state(tokens: u32) -> PrefixState {
        let bytes = vec![5; tokens as usize * 200];
        let layer = LayerState { dtype: Dtype::F16, width: 100, first: 0, keys: bytes.clone(), values: bytes };
        PrefixState { origin: Sha256Digest([1; 32]), tokens: (0..tokens).collect(), layers: vec![layer] }
    }

    fn cache(folder: &TestFolder, key: u8, bytes_max: u64) -> PrefixCache {
        PrefixCache::new(&folder.path().join("cache"), DerivedKey::init(|bytes| *bytes = [key; 32]), bytes_max)
    }

    #[test]
    fn states_are_kept_encrypted_and_forgotten() {
        let folder = TestFolder::new();
        let ours = cache(&folder, 1, 1 << 20);
        let (id, other) = (SessionId([3; 16]), SessionId([4; 16]));
        assert_eq!(ours.session(id), None);
        ours.forget_session(id).expect("there is nothing to forget");
        ours.keep_session(id, &state(40)).expect("target can be written");
        assert_eq!(ours.session(id), Some(state(40)));
        assert_eq!(ours.session(other), None);
        assert_eq!(cache(&folder, 2, 1 << 20).session(id), None, "another key");
        let opening = state(7);
        ours.keep_opening(&opening).expect("target can be written");
        assert_eq!(ours.opening(&opening.origin, &opening.tokens), Some(opening.clone()));
        assert_eq!(ours.opening(&Sha256Digest([2; 32]), &opening.tokens), None, "of other weights");
        for name in disk::list(&folder.path().join("cache")).expect("it is there") {
            assert!(!name.contains("0303"), "names tell nothing");
            let path = folder.path().join("cache").join(name);
            let sealed = std::fs::read(&path).expect("it is there");
            assert!(!sealed.windows(8).any(|bytes| bytes == [5; 8]), "nothing is in clear");
            // One flipped bit anywhere, or a torn end, and it is as good as absent.
            for at in [0, 100, sealed.len() / 2, sealed.len() - 1] {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                std::fs::write(&path, &damaged).expect("target can be written");
                assert!(ours.session(id).is_none() || ours.opening(&opening.origin, &opening.tokens).is_none());
            }
            std::fs::write(&path, &sealed[..sealed.len() / 2]).expect("target can be written");
            assert!(ours.session(id).is_none() || ours.opening(&opening.origin, &opening.tokens).is_none());
            std::fs::write(&path, sealed).expect("target can be written");
        }
        ours.forget_session(id).expect("it is there");
        assert_eq!(ours.session(id), None);
    }

    #[test]
    fn the_limit_holds_and_the_oldest_go_first() {
        let folder = TestFolder::new();
        let size = state(50).bytes() + 400;
        let ours = cache(&folder, 1, 3 * size);
        for id in 0..6_u8 {
            ours.keep_session(SessionId([id; 16]), &state(50)).expect("target can be written");
            // The clocks of some file systems are coarse.
            let path = folder.path().join("cache").join(ours.name("session", &[id; 16]));
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000 + u64::from(id));
            std::fs::File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_modified(time))
                .expect("it is there");
        }
        let kept: Vec<u8> = (0..6).filter(|id| ours.session(SessionId([*id; 16])).is_some()).collect();
        assert_eq!(kept, [3, 4, 5]);
        ours.keep_session(SessionId([9; 16]), &state(500)).expect("it is too large, which is no error");
        assert_eq!(ours.session(SessionId([9; 16])), None);
    }
}
