//! The linked drives: who the operation log says belongs together, with what only this drive knows of them.
//!
//! That a drive is linked, or linked no more, is an operation, so all drives of a person agree. What the person here calls it
//! and the mesh keys are settings of the store, encrypted as everything in it.

use std::collections::BTreeMap;

use super::error::PeerError;
use super::link::Card;
use super::mesh::{self, MeshKey};
use crate::did::Did;
use crate::excerpt::visible;
use crate::oplog::body::{NICKNAME_BYTES_MAX, is_nickname};
use crate::store::{Peer, Store, StoreError};
use crate::time::Timestamp;

/// The most drives that are linked with one.
pub const LINKED_MAX: usize = 64;
/// The fewest letters of a DID, after `did:key:`, that name a drive.
const PREFIX_LETTERS_MIN: usize = 8;

const NAMES: &str = "linked-drive-names";
const MESH_KEYS: &str = "mesh-keys";

/// A linked drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedDrive {
    /// Its identity.
    pub did: Did,
    /// What its person calls it: untrusted text.
    pub nickname: String,
    /// What the person here calls it.
    pub name: Option<String>,
    /// When it was linked, last.
    pub linked_at: Timestamp,
    /// When it was last there, if it was since.
    pub seen_at: Option<Timestamp>,
    /// When it last exchanged everything.
    pub synced_at: Option<Timestamp>,
}

impl LinkedDrive {
    /// What to call it.
    pub fn called(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.nickname)
    }
}

/// All drives that are linked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkedDrives(Vec<LinkedDrive>);

impl LinkedDrives {
    /// Reads those that the drive of `me` is linked with: by itself, or by another drive that it is linked with.
    ///
    /// # Errors
    /// [`PeerError::List`] where their names aren't written as they should be, and what reading can meet.
    pub fn read(store: &Store, me: Did) -> Result<Self, PeerError> {
        let mut names = names(store)?;
        let linked = store.peers()?.into_iter().filter(|peer| peer.is_linked() && peer.did != me);
        let drives = linked.map(|Peer { did, nickname, linked_at, last_seen_at, last_sync_at, .. }| LinkedDrive {
            did,
            nickname,
            name: names.remove(&did.to_string()),
            linked_at,
            seen_at: last_seen_at,
            synced_at: last_sync_at,
        });
        Ok(Self(drives.collect()))
    }

    /// The drives, in the order in which they were linked.
    pub fn iter(&self) -> impl Iterator<Item = &LinkedDrive> {
        self.0.iter()
    }

    /// The drive of a DID.
    pub fn of(&self, did: &Did) -> Option<&LinkedDrive> {
        self.0.iter().find(|drive| drive.did == *did)
    }

    /// The drive that `text` names: its DID, the beginning of that, or what it is called.
    ///
    /// # Errors
    /// [`PeerError::NotLinked`], and [`PeerError::Ambiguous`] where several are meant.
    pub fn find(&self, text: &str) -> Result<&LinkedDrive, PeerError> {
        let key = text.strip_prefix("did:key:").unwrap_or(text);
        let is_meant = |drive: &&LinkedDrive| {
            let did = drive.did.to_string();
            let begins = key.len() >= PREFIX_LETTERS_MIN && did["did:key:".len()..].starts_with(key);
            begins || drive.called() == text
        };
        let mut meant = self.0.iter().filter(is_meant);
        let found = meant.next().ok_or_else(|| PeerError::NotLinked { text: text.into() })?;
        if meant.next().is_some() { Err(PeerError::Ambiguous { text: text.into() }) } else { Ok(found) }
    }
}

/// Unlinks a drive: an operation that all drives of the person learn of. With the last drive the mesh keys go, so that nobody
/// recognises this one any more.
///
/// # Errors
/// [`StoreError::Nothing`] where it isn't linked; [`PeerError::List`], and what writing can meet.
pub fn unlink(store: &Store, me: Did, did: Did, now: Timestamp) -> Result<(), PeerError> {
    store.unlink_peer(did, now)?;
    rename(store, did, None)?;
    if LinkedDrives::read(store, me)?.0.is_empty() {
        store.remove_setting(MESH_KEYS)?;
    }
    Ok(())
}

/// Calls a drive something else, here alone; none is what its own person calls it.
///
/// # Errors
/// [`PeerError::List`], and what writing can meet.
pub fn rename(store: &Store, did: Did, name: Option<&str>) -> Result<(), PeerError> {
    let mut names = names(store)?;
    let before = match name {
        Some(name) => names.insert(did.to_string(), name.into()),
        None => names.remove(&did.to_string()),
    };
    if before.as_deref() != name {
        let text = serde_json::to_string(&names).expect("texts can be written as JSON");
        store.set_setting(NAMES, &text)?;
    }
    Ok(())
}

/// What the person here calls drives, by DID.
fn names(store: &Store) -> Result<BTreeMap<String, String>, PeerError> {
    match store.setting(NAMES)? {
        Some(text) => serde_json::from_str(&text).map_err(|_| PeerError::List),
        None => Ok(BTreeMap::new()),
    }
}

/// The mesh keys that a store keeps.
///
/// # Errors
/// What reading can meet.
pub fn mesh_keys(store: &Store) -> Result<Vec<MeshKey>, StoreError> {
    Ok(store.setting(MESH_KEYS)?.map(|text| mesh::from_text(&zeroize::Zeroizing::new(text))).unwrap_or_default())
}

/// Keeps the mesh keys that this drive has from now on.
///
/// # Errors
/// What writing can meet.
pub fn keep_mesh_keys(store: &Store, keys: &[MeshKey]) -> Result<(), StoreError> {
    store.set_setting(MESH_KEYS, &mesh::to_text(keys))
}

/// Keeps a link in a store: the drive, and the mesh keys that this one has from now on.
///
/// # Errors
/// [`PeerError::TooMany`], [`PeerError::List`], and what writing can meet.
pub fn keep(store: &Store, me: Did, card: &Card, keys: &[MeshKey], now: Timestamp) -> Result<(), PeerError> {
    let drives = LinkedDrives::read(store, me)?;
    let nickname = nickname_of(card);
    // The keys first: a drive without them would be linked and never be found.
    keep_mesh_keys(store, keys)?;
    match drives.of(&card.did) {
        Some(known) if known.nickname == nickname => Ok(()),
        None if drives.0.len() >= LINKED_MAX => Err(PeerError::TooMany),
        _ => Ok(store.link_peer(card.did, &nickname, now)?),
    }
}

/// What a drive is called in the log: what its card says, made one line of visible text.
fn nickname_of(card: &Card) -> String {
    let mut nickname: String = card.nickname.trim().chars().map(visible).collect();
    nickname.truncate(nickname.floor_char_boundary(NICKNAME_BYTES_MAX));
    if is_nickname(&nickname) { nickname } else { card.did.short() }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;
    use crate::store::Access;
    use crate::test_folder::TestFolder;

    fn did(seed: u8) -> Did {
        let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key();
        Did::from_public_key(key.to_bytes()).expect("a real key")
    }

    fn card(seed: u8, nickname: &str) -> Card {
        Card { nickname: nickname.into(), did: did(seed) }
    }

    fn store(folder: &TestFolder) -> Store {
        let key = SecretBox::new(Box::new([7; 32]));
        Store::open(&folder.path().join("tiles.db"), &key, Access::ReadWrite).expect("it can be made")
    }

    const ME: u8 = 100;

    fn read(store: &Store) -> LinkedDrives {
        LinkedDrives::read(store, did(ME)).expect("it is one")
    }

    #[test]
    fn links_come_back_from_the_store_and_the_keys_go_with_the_last() {
        let folder = TestFolder::new();
        let store = store(&folder);
        let keys = [MeshKey::draw().expect("there is randomness")];
        let at = Timestamp::from_ms;
        assert_eq!(read(&store), LinkedDrives::default());
        let keep = |card: &Card, now| keep(&store, did(ME), card, &keys, at(now));
        keep(&card(1, "Bob\u{1b}[2J"), 5).expect("it can be kept");
        keep(&card(2, "Eve"), 6).expect("it can be kept");
        assert_eq!(read(&store).of(&did(1)).expect("it is linked").nickname, "Bob\u{fffd}[2J");
        keep(&card(1, "Bobby"), 9).expect("it can be linked anew");
        // Another drive of the person has linked this one.
        store.link_peer(did(ME), "myself", at(10)).expect("it is a name");
        let shown: Vec<_> =
            read(&store).iter().map(|drive| (drive.called().to_owned(), drive.linked_at.as_ms())).collect();
        assert_eq!(shown, [("Bobby".into(), 5), ("Eve".into(), 6)]);
        assert!(mesh_keys(&store).expect("they are there") == keys);
        rename(&store, did(2), Some("laptop")).expect("it can be renamed");
        assert_eq!(read(&store).find("laptop").map(|drive| drive.did).ok(), Some(did(2)));
        unlink(&store, did(ME), did(1), at(11)).expect("it is linked");
        assert!(unlink(&store, did(ME), did(1), at(12)).is_err(), "it isn't any more");
        assert_eq!(read(&store).iter().map(LinkedDrive::called).collect::<Vec<_>>(), ["laptop"]);
        assert_eq!(mesh_keys(&store).expect("they are there").len(), 1);
        unlink(&store, did(ME), did(2), at(13)).expect("it is linked");
        assert!(mesh_keys(&store).expect("none is fine").is_empty());
        keep(&card(2, "Eve"), 14).expect("it can be linked again");
        assert_eq!(read(&store).iter().map(LinkedDrive::called).collect::<Vec<_>>(), ["Eve"], "its old name is gone");
        for damaged in ["", "[", "[1]", r#"{"a":1}"#] {
            store.set_setting(NAMES, damaged).expect("it can be set");
            assert!(matches!(LinkedDrives::read(&store, did(ME)), Err(PeerError::List)), "{damaged:?}");
        }
    }

    #[test]
    fn a_nickname_becomes_one_line_of_visible_text() {
        let short = did(1).short();
        for (nickname, expected) in [
            ("Bob", "Bob"),
            ("  Bob ", "Bob"),
            ("a\nb\u{7}\u{202e}", "a⏎b\u{fffd}\u{fffd}"),
            ("", short.as_str()),
            (" ", short.as_str()),
            (&"é".repeat(200), &"é".repeat(NICKNAME_BYTES_MAX / 2)),
        ] {
            assert_eq!(nickname_of(&card(1, nickname)), expected, "{nickname:?}");
        }
    }

    #[test]
    fn a_drive_is_named_by_its_did_its_beginning_or_its_name() {
        let folder = TestFolder::new();
        let store = store(&folder);
        let keep = |card: &Card| keep(&store, did(ME), card, &[], Timestamp::from_ms(0));
        for (seed, nickname) in [(1, "Bob"), (2, "Eve"), (3, "Eve")] {
            keep(&card(seed, nickname)).expect("there is room");
        }
        let drives = read(&store);
        let whole = did(1).to_string();
        for text in [whole.as_str(), &whole["did:key:".len()..], &whole[..20], &whole[8..17], "Bob"] {
            assert_eq!(drives.find(text).map(|drive| drive.did).ok(), Some(did(1)), "{text}");
        }
        for text in ["", "z6Mk", "did:key:", "did:key:z6Mk", "bob", &did(9).to_string()] {
            assert!(matches!(drives.find(text), Err(PeerError::NotLinked { .. })), "{text}");
        }
        assert!(matches!(drives.find("Eve"), Err(PeerError::Ambiguous { .. })));
        for seed in 4..=LINKED_MAX as u8 {
            keep(&card(seed, "x")).expect("there is room");
        }
        assert!(matches!(keep(&card(200, "x")), Err(PeerError::TooMany)));
        keep(&card(1, "Bobby")).expect("he is linked already");
    }
}
