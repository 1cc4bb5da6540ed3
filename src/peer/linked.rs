//! The linked drives, as this one remembers them: one setting of the store, encrypted as everything in it.

use serde::{Deserialize, Serialize};

use super::error::PeerError;
use super::link::{Card, NICKNAME_BYTES_MAX};
use super::mesh::{self, MeshKey};
use crate::did::Did;
use crate::store::{Store, StoreError};
use crate::time::Timestamp;

/// The most drives that are linked with one.
pub const LINKED_MAX: usize = 64;
/// The fewest letters of a DID, after `did:key:`, that name a drive.
const PREFIX_LETTERS_MIN: usize = 8;

const DRIVES: &str = "linked-drives";
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
    /// When it was last there.
    pub seen_at: Timestamp,
    /// When it last exchanged anything.
    pub synced_at: Option<Timestamp>,
}

impl LinkedDrive {
    /// What to call it.
    pub fn called(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.nickname)
    }
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    did: String,
    nickname: String,
    name: Option<String>,
    linked_at: i64,
    seen_at: i64,
    synced_at: Option<i64>,
}

/// All linked drives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkedDrives(Vec<LinkedDrive>);

impl LinkedDrives {
    /// Reads the list of a store.
    ///
    /// # Errors
    /// [`PeerError::List`] where it isn't one, and what reading can meet.
    pub fn read(store: &Store) -> Result<Self, PeerError> {
        match store.setting(DRIVES)? {
            Some(text) => Self::from_text(&text).ok_or(PeerError::List),
            None => Ok(Self::default()),
        }
    }

    /// Writes the list into a store. With the last drive the mesh keys go, so that nobody recognises this drive any more.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn write(&self, store: &Store) -> Result<(), StoreError> {
        if self.0.is_empty() {
            store.remove_setting(MESH_KEYS)?;
        }
        store.set_setting(DRIVES, &self.to_text())
    }

    /// The drives, in the order in which they were linked.
    pub fn iter(&self) -> impl Iterator<Item = &LinkedDrive> {
        self.0.iter()
    }

    /// Adds a drive, or links one anew.
    ///
    /// # Errors
    /// [`PeerError::TooMany`].
    pub fn link(&mut self, card: &Card, now: Timestamp) -> Result<(), PeerError> {
        if let Some(known) = self.0.iter_mut().find(|drive| drive.did == card.did) {
            known.nickname.clone_from(&card.nickname);
            (known.linked_at, known.seen_at) = (now, now);
            return Ok(());
        }
        if self.0.len() >= LINKED_MAX {
            return Err(PeerError::TooMany);
        }
        self.0.push(LinkedDrive {
            did: card.did,
            nickname: card.nickname.clone(),
            name: None,
            linked_at: now,
            seen_at: now,
            synced_at: None,
        });
        Ok(())
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

    /// Takes a drive off the list, and says whether it was on it.
    pub fn unlink(&mut self, did: &Did) -> bool {
        let before = self.0.len();
        self.0.retain(|drive| drive.did != *did);
        self.0.len() < before
    }

    /// Calls a drive something else; none is what its own person calls it.
    pub fn rename(&mut self, did: &Did, name: Option<String>) {
        if let Some(drive) = self.0.iter_mut().find(|drive| drive.did == *did) {
            drive.name = name;
        }
    }

    fn to_text(&self) -> String {
        let wire: Vec<Wire> = self.0.iter().map(Wire::from).collect();
        serde_json::to_string(&wire).expect("texts and numbers can be written as JSON")
    }

    fn from_text(text: &str) -> Option<Self> {
        let wire: Vec<Wire> = serde_json::from_str(text).ok()?;
        if wire.len() > LINKED_MAX {
            return None;
        }
        wire.into_iter().map(Wire::into_drive).collect::<Option<_>>().map(Self)
    }
}

impl From<&LinkedDrive> for Wire {
    fn from(drive: &LinkedDrive) -> Self {
        Self {
            did: drive.did.to_string(),
            nickname: drive.nickname.clone(),
            name: drive.name.clone(),
            linked_at: drive.linked_at.as_ms(),
            seen_at: drive.seen_at.as_ms(),
            synced_at: drive.synced_at.map(Timestamp::as_ms),
        }
    }
}

impl Wire {
    fn into_drive(self) -> Option<LinkedDrive> {
        let fits = |text: &str| text.len() <= NICKNAME_BYTES_MAX;
        if !fits(&self.nickname) || !self.name.as_deref().is_none_or(fits) {
            return None;
        }
        Some(LinkedDrive {
            did: self.did.parse().ok()?,
            nickname: self.nickname,
            name: self.name,
            linked_at: Timestamp::from_ms(self.linked_at),
            seen_at: Timestamp::from_ms(self.seen_at),
            synced_at: self.synced_at.map(Timestamp::from_ms),
        })
    }
}

/// The mesh keys that a store keeps.
///
/// # Errors
/// What reading can meet.
pub fn mesh_keys(store: &Store) -> Result<Vec<MeshKey>, StoreError> {
    Ok(store.setting(MESH_KEYS)?.map(|text| mesh::from_text(&zeroize::Zeroizing::new(text))).unwrap_or_default())
}

/// Keeps a link in a store: the drive, and the mesh keys that this one has from now on.
///
/// # Errors
/// [`PeerError::TooMany`], [`PeerError::List`], and what writing can meet.
pub fn keep(store: &Store, card: &Card, keys: &[MeshKey], now: Timestamp) -> Result<(), PeerError> {
    let mut drives = LinkedDrives::read(store)?;
    drives.link(card, now)?;
    // The keys first: a drive without them would be linked and never be found.
    store.set_setting(MESH_KEYS, &mesh::to_text(keys))?;
    Ok(drives.write(store)?)
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

    #[test]
    fn links_come_back_from_the_store_and_the_keys_go_with_the_last() {
        let folder = TestFolder::new();
        let key = SecretBox::new(Box::new([7; 32]));
        let store = Store::open(&folder.path().join("tiles.db"), &key, Access::ReadWrite).expect("it can be made");
        let keys = [MeshKey::draw().expect("there is randomness")];
        let at = Timestamp::from_ms;
        assert_eq!(LinkedDrives::read(&store).expect("none is fine"), LinkedDrives::default());
        keep(&store, &card(1, "Bob\u{1b}[2J"), &keys, at(5)).expect("it can be kept");
        keep(&store, &card(2, "Eve"), &keys, at(6)).expect("it can be kept");
        keep(&store, &card(1, "Bobby"), &keys, at(9)).expect("it can be linked anew");
        let mut drives = LinkedDrives::read(&store).expect("it is one");
        let shown: Vec<_> = drives.iter().map(|drive| (drive.called(), drive.linked_at.as_ms())).collect();
        assert_eq!(shown, [("Bobby", 9), ("Eve", 6)]);
        assert!(mesh_keys(&store).expect("they are there") == keys);
        drives.rename(&did(2), Some("laptop".into()));
        assert!(drives.unlink(&did(1)) && !drives.unlink(&did(1)));
        drives.write(&store).expect("it can be written");
        assert_eq!(LinkedDrives::read(&store).expect("it is one"), drives);
        assert_eq!(mesh_keys(&store).expect("they are there").len(), 1);
        drives.unlink(&did(2));
        drives.write(&store).expect("it can be written");
        assert!(mesh_keys(&store).expect("none is fine").is_empty());
        for damaged in [
            "",
            "[",
            "{}",
            "[{}]",
            r#"[{"did":"did:key:x","nickname":"","name":null,"linked_at":0,"seen_at":0,"synced_at":null}]"#,
        ] {
            store.set_setting(DRIVES, damaged).expect("it can be set");
            assert!(matches!(LinkedDrives::read(&store), Err(PeerError::List)), "{damaged:?}");
        }
    }

    #[test]
    fn a_drive_is_named_by_its_did_its_beginning_or_its_name() {
        let mut drives = LinkedDrives::default();
        for (seed, nickname) in [(1, "Bob"), (2, "Eve"), (3, "Eve")] {
            drives.link(&card(seed, nickname), Timestamp::from_ms(0)).expect("there is room");
        }
        let whole = did(1).to_string();
        for text in [whole.as_str(), &whole["did:key:".len()..], &whole[..20], &whole[8..17], "Bob"] {
            assert_eq!(drives.find(text).map(|drive| drive.did).ok(), Some(did(1)), "{text}");
        }
        for text in ["", "z6Mk", "did:key:", "did:key:z6Mk", "bob", &did(9).to_string()] {
            assert!(matches!(drives.find(text), Err(PeerError::NotLinked { .. })), "{text}");
        }
        assert!(matches!(drives.find("Eve"), Err(PeerError::Ambiguous { .. })));
        for seed in 4..=LINKED_MAX as u8 {
            drives.link(&card(seed, "x"), Timestamp::from_ms(0)).expect("there is room");
        }
        assert!(matches!(drives.link(&card(200, "x"), Timestamp::from_ms(0)), Err(PeerError::TooMany)));
        drives.link(&card(1, "Bob"), Timestamp::from_ms(1)).expect("he is linked already");
    }
}
