//! `KeyFile`: the keys of a bundle in `key.a` and `key.b`, each an age file that opens on its own.
//!
//! Both slots hold the same bytes, so one derivation tells whether a passphrase fits. They differ only after a power cut
//! or damage. A change is written to the slot that can be spared, read back from the drive and opened with the new
//! passphrase; then the other one is overwritten too, so that the old passphrase opens neither.

use std::path::Path;

use age::x25519;

use super::argon2id::{self, PassphraseIdentity, PassphraseRecipient, WorkFactor};
use super::condition::{KeyFileReport, SlotFlaw, SlotReport, SlotState};
use super::error::KeyError;
use super::passphrase::Passphrase;
use super::payload::{self, Payload, PayloadError};
use super::recovery::RecoveryWords;
use super::slot::{self, Closed, Flaw, SLOT_BYTES, SLOT_BYTES_MAX, SlotHeader};
use super::{Identity, KeyStore, Unlocked};
use crate::disk::DiskError;
use crate::disk::two_slot::{Slot, TwoSlot};

mod scrypt;

/// The key file of a bundle, in its data folder.
#[derive(Clone, Debug)]
pub struct KeyFile {
    slots: TwoSlot,
    work: WorkFactor,
}

/// A slot as it was read.
struct Read {
    slot: Slot,
    bytes: Vec<u8>,
    state: Result<SlotHeader, SlotState>,
}

/// What opens a slot: a passphrase, or the recovery words.
enum Opener<'a> {
    Passphrase(&'a Passphrase),
    Words(&'a RecoveryWords),
}

impl KeyFile {
    /// The key file in `data_folder`, which it doesn't touch yet. Written with [`WorkFactor::DEFAULT`].
    pub fn new(data_folder: &Path) -> Self {
        Self::with_work_factor(data_folder, WorkFactor::DEFAULT)
    }

    /// As [`KeyFile::new`], written with another work factor. Files of any accepted work factor are read.
    pub fn with_work_factor(data_folder: &Path, work: WorkFactor) -> Self {
        Self { slots: TwoSlot::new(data_folder, "key", SLOT_BYTES), work }
    }

    /// Where a slot is.
    pub fn path(&self, slot: Slot) -> &Path {
        self.slots.path(slot)
    }

    /// What both slots say about themselves; opens nothing, so it needs no passphrase.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn headers(&self) -> Result<[Result<SlotHeader, SlotState>; 2], KeyError> {
        let [a, b] = self.read()?;
        Ok([a.state, b.state])
    }

    /// What both slots say about themselves, each compared with the newest whole one; opens nothing.
    ///
    /// A flipped bit in a slot's MAC is found only by opening it; [`KeyStore::open`] tells of it.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn report(&self) -> Result<KeyFileReport, KeyError> {
        let read = self.read()?;
        let generation = |read: &&Read| read.state.ok().map(|header| header.generation);
        // Of two of one generation, `a` is the first, as in opening.
        let newest = read.iter().rev().filter(|read| read.state.is_ok()).max_by_key(generation);
        let slots = [&read[0], &read[1]].map(|slot| {
            let state = match newest {
                Some(newest) if newest.slot != slot.slot => Self::flaw(newest, slot).map(|flaw| flaw.state),
                _ => slot.state.err(),
            };
            SlotReport { path: self.path(slot.slot).into(), header: slot.state.ok(), state }
        });
        Ok(KeyFileReport {
            slots,
            work: newest
                .and_then(|read| slot::stanza(&read.bytes, argon2id::TAG))
                .and_then(|arguments| WorkFactor::from_arguments(&arguments)),
            has_recovery: newest.map(|read| slot::has_recovery(&read.bytes)),
        })
    }

    /// Sets a new passphrase. The keys and the recovery words stay as they are.
    ///
    /// # Errors
    /// As [`KeyStore::unlock`] with `current`, and what writing can meet. Until the last slot is begun, `current` opens the
    /// key file; from when the first is complete, `new` does.
    ///
    /// # Security
    /// Copies of the drive that were made before still open with the old passphrase.
    pub fn change_passphrase(&self, current: &Passphrase, new: &Passphrase) -> Result<(), KeyError> {
        self.rewrap(&Opener::Passphrase(current), new, |_| Ok(())).map(drop)
    }

    /// Sets a new passphrase with the recovery words, where the old one is lost.
    ///
    /// # Errors
    /// [`KeyError::WrongWords`], [`KeyError::NoRecovery`], and as [`KeyFile::change_passphrase`].
    ///
    /// # Security
    /// As [`KeyFile::change_passphrase`].
    pub fn restore(&self, words: &RecoveryWords, new: &Passphrase) -> Result<(), KeyError> {
        self.rewrap(&Opener::Words(words), new, |_| Ok(())).map(drop)
    }

    /// Makes other recovery words the valid ones, or none.
    ///
    /// # Errors
    /// As [`KeyFile::change_passphrase`].
    ///
    /// # Security
    /// Copies of the drive that were made before still open with the old words.
    pub fn change_recovery(&self, passphrase: &Passphrase, words: Option<&RecoveryWords>) -> Result<(), KeyError> {
        let recovery = words.map(|words| words.to_age_identity().to_public());
        let change = |payload: &mut Payload| {
            payload.recovery = recovery;
            Ok(())
        };
        self.rewrap(&Opener::Passphrase(passphrase), passphrase, change).map(drop)
    }

    /// Draws a new database key, keeps the one in force among the previous ones, and gives the keys as they are now kept.
    ///
    /// When this returns, both slots hold the new key and the old one, so the database may be encrypted anew: whichever
    /// slot is lost, and wherever that is cut, the other one opens the database.
    ///
    /// # Errors
    /// As [`KeyFile::change_passphrase`].
    pub fn rotate_database_key(&self, passphrase: &Passphrase) -> Result<Identity, KeyError> {
        let changed =
            self.rewrap(&Opener::Passphrase(passphrase), passphrase, |payload| payload.identity.draw_database_key())?;
        Ok(changed.identity)
    }

    /// Writes keys that came from elsewhere over a key file of which no copy is whole, under a new passphrase. Recovery
    /// words have to be made anew.
    ///
    /// # Errors
    /// [`KeyError::Exists`] where a copy is whole, [`KeyError::Newer`], and what writing can meet.
    pub fn renew(&self, identity: &Identity, passphrase: &Passphrase) -> Result<(), KeyError> {
        for read in &self.read()? {
            match read.state {
                Ok(_) => return Err(KeyError::Exists { path: self.path(read.slot).into() }),
                Err(SlotState::Newer(version)) => {
                    return Err(KeyError::Newer { path: self.path(read.slot).into(), version });
                }
                Err(_) => {}
            }
        }
        let sealed = self.seal(identity, None, 1, passphrase)?;
        for slot in Slot::BOTH {
            self.slots.write(slot, &sealed, |slot, kept| self.check(slot, kept, passphrase))?;
        }
        Ok(())
    }

    /// The bytes of the newest slot that `passphrase` opens: a whole age file.
    ///
    /// # Errors
    /// As [`KeyStore::open`].
    pub fn sealed(&self, passphrase: &Passphrase) -> Result<Vec<u8>, KeyError> {
        let read = self.read()?;
        let (opened, _) = self.open_newest(&read, &Opener::Passphrase(passphrase))?;
        Ok(opened.bytes.clone())
    }

    /// Whether these words open the key file.
    ///
    /// # Errors
    /// [`KeyError::WrongWords`], [`KeyError::NoRecovery`], and as [`KeyStore::open`].
    pub fn check_words(&self, words: &RecoveryWords) -> Result<(), KeyError> {
        self.open_newest(&self.read()?, &Opener::Words(words)).map(drop)
    }

    /// Opens the key file, changes what is inside, and seals it anew into both slots.
    fn rewrap(
        &self,
        opener: &Opener<'_>,
        new: &Passphrase,
        change: impl FnOnce(&mut Payload) -> Result<(), KeyError>,
    ) -> Result<Payload, KeyError> {
        let read = self.read()?;
        let (opened, mut payload) = self.open_newest(&read, opener)?;
        let newer = read.iter().find(|read| matches!(read.state, Err(SlotState::Newer(_))));
        if let Some(newer) = newer.and_then(|read| self.why_not(read)) {
            return Err(newer);
        }
        let newest = read.iter().filter_map(|read| read.state.ok()).map(|header| header.generation).max();
        let generation = newest.unwrap_or(0).checked_add(1).ok_or(KeyError::TooLarge)?;
        change(&mut payload)?;
        let sealed = self.seal(&payload.identity, payload.recovery.as_ref(), generation, new)?;
        self.slots.replace(opened.slot, &sealed, |slot, kept| self.check(slot, kept, new))?;
        Ok(payload)
    }

    fn seal(
        &self,
        identity: &Identity,
        recovery: Option<&x25519::Recipient>,
        generation: u64,
        passphrase: &Passphrase,
    ) -> Result<Vec<u8>, KeyError> {
        let mut run_id = [0; 16];
        getrandom::fill(&mut run_id)?;
        let wrapped = PassphraseRecipient::derive(passphrase, self.work)?;
        let mut recipients: Vec<&dyn age::Recipient> = vec![&wrapped];
        recipients.extend(recovery.map(|recovery| recovery as &dyn age::Recipient));
        slot::seal(&payload::write(identity, recovery)?, SlotHeader { generation, run_id }, &recipients)
    }

    /// Opens what was read back after writing.
    fn check(&self, slot: Slot, kept: &[u8], passphrase: &Passphrase) -> Result<(), KeyError> {
        let path = self.path(slot);
        slot::inspect(kept).map_err(|_| KeyError::NotKept { path: path.into() })?;
        open(path, kept, &Opener::Passphrase(passphrase)).map(drop)
    }

    fn read(&self) -> Result<[Read; 2], KeyError> {
        let [a, b] = Slot::BOTH.map(|slot| self.read_slot(slot));
        Ok([a?, b?])
    }

    fn read_slot(&self, slot: Slot) -> Result<Read, KeyError> {
        let read = |bytes: Vec<u8>, state| Ok(Read { slot, bytes, state });
        match self.slots.read(slot, SLOT_BYTES_MAX) {
            Ok(None) => read(Vec::new(), Err(SlotState::Missing)),
            Ok(Some(bytes)) => {
                let state = slot::inspect(&bytes).map_err(SlotState::from);
                read(bytes, state)
            }
            Err(DiskError::TooLarge { .. }) => read(Vec::new(), Err(SlotState::Damaged("it is too large"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the newest whole slot that the opener fits.
    fn open_newest<'a>(&self, read: &'a [Read; 2], opener: &Opener<'_>) -> Result<(&'a Read, Payload), KeyError> {
        let mut whole: Vec<_> = read.iter().filter_map(|read| Some((read.state.ok()?.generation, read))).collect();
        // The sort is stable: of two of one generation, `a` is the first.
        whole.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
        whole.dedup_by(|(_, next), (_, read)| next.bytes == read.bytes);
        let mut first_error = None;
        for (_, read) in whole {
            match open(self.path(read.slot), &read.bytes, opener) {
                Ok(payload) => return Ok((read, payload)),
                // The key fits the newest keys: older ones would be the wrong answer.
                Err(error @ KeyError::Newer { .. }) => return Err(error),
                Err(error) => first_error = prefer(first_error, error),
            }
        }
        Err(first_error.unwrap_or_else(|| self.none_whole(read)))
    }

    /// Why there is nothing to open.
    fn none_whole(&self, read: &[Read; 2]) -> KeyError {
        let errors = || read.iter().filter_map(|read| self.why_not(read));
        let newer = errors().find(|error| matches!(error, KeyError::Newer { .. }));
        newer.or_else(|| errors().next()).unwrap_or_else(|| KeyError::Missing { path: self.path(Slot::A).into() })
    }

    /// Why a slot isn't even tried; `None` for one that is, and for one that isn't there.
    fn why_not(&self, read: &Read) -> Option<KeyError> {
        let path = self.path(read.slot).to_path_buf();
        match read.state {
            Err(SlotState::Newer(version)) => Some(KeyError::Newer { path, version }),
            Err(SlotState::Damaged(reason)) => Some(KeyError::Damaged { path, reason }),
            _ => None,
        }
    }

    /// What is wrong with the slot that wasn't opened.
    fn flaw(opened: &Read, other: &Read) -> Option<SlotFlaw> {
        let state = match (opened.state, other.state) {
            (_, Err(state)) => state,
            (Ok(opened), Ok(other)) if other.generation > opened.generation => SlotState::Ahead,
            (Ok(opened), Ok(other)) if other.generation < opened.generation => SlotState::Behind,
            (Ok(opened), Ok(other)) if other.run_id != opened.run_id => SlotState::Foreign,
            _ if opened.bytes != other.bytes => SlotState::Damaged("its header isn't what was written"),
            _ => return None,
        };
        Some(SlotFlaw { slot: other.slot, state })
    }
}

/// The error that says more: damage that the right key found, or a refusal, rather than that the other slot didn't fit.
fn prefer(first: Option<KeyError>, next: KeyError) -> Option<KeyError> {
    match first {
        None | Some(KeyError::WrongPassphrase | KeyError::WrongWords | KeyError::NoRecovery) => Some(next),
        first => first,
    }
}

fn open(path: &Path, bytes: &[u8], opener: &Opener<'_>) -> Result<Payload, KeyError> {
    let opened = match opener {
        Opener::Passphrase(passphrase) => {
            let identity = PassphraseIdentity::new(passphrase);
            let opened = slot::open(bytes, &identity);
            if let Some(refusal) = identity.refusal() {
                return Err(refusal);
            }
            opened
        }
        Opener::Words(words) => slot::open(bytes, &words.to_age_identity()),
    };
    let path = || path.to_path_buf();
    let text = opened.map_err(|closed| match (closed, opener) {
        (Closed::Damaged(reason), _) => KeyError::Damaged { path: path(), reason },
        (Closed::WrongKey, Opener::Passphrase(_)) => KeyError::WrongPassphrase,
        (Closed::WrongKey, Opener::Words(_)) if !slot::has_recovery(bytes) => KeyError::NoRecovery,
        (Closed::WrongKey, Opener::Words(_)) => KeyError::WrongWords,
    })?;
    payload::read(&text).map_err(|error| match error {
        PayloadError::Newer(version) => KeyError::Newer { path: path(), version },
        PayloadError::Damaged => {
            KeyError::Damaged { path: path(), reason: "its keys aren't written as they should be" }
        }
    })
}

impl From<Flaw> for SlotState {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Damaged(reason) => Self::Damaged(reason),
            Flaw::Newer(version) => Self::Newer(version),
        }
    }
}

impl KeyStore for KeyFile {
    fn exists(&self) -> Result<bool, KeyError> {
        let read = self.read()?;
        Ok(read.iter().any(|read| !matches!(read.state, Err(SlotState::Missing))))
    }

    fn open(&self, passphrase: &Passphrase) -> Result<Unlocked, KeyError> {
        let read = self.read()?;
        let (opened, payload) = self.open_newest(&read, &Opener::Passphrase(passphrase))?;
        let other = read.iter().find(|read| read.slot != opened.slot);
        let flaw = other.and_then(|other| Self::flaw(opened, other));
        Ok(Unlocked { identity: payload.identity, header: opened.state.ok(), flaw })
    }

    fn create(
        &self,
        identity: &Identity,
        passphrase: &Passphrase,
        words: Option<&RecoveryWords>,
    ) -> Result<(), KeyError> {
        if let Some(slot) = self.read()?.iter().find(|read| !matches!(read.state, Err(SlotState::Missing))) {
            return Err(KeyError::Exists { path: self.path(slot.slot).into() });
        }
        let recovery = words.map(|words| words.to_age_identity().to_public());
        let sealed = self.seal(identity, recovery.as_ref(), 1, passphrase)?;
        Ok(self.slots.create(&sealed, |slot, kept| self.check(slot, kept, passphrase))?)
    }

    fn mend(&self, passphrase: &Passphrase) -> Result<bool, KeyError> {
        let read = self.read()?;
        let (opened, _) = self.open_newest(&read, &Opener::Passphrase(passphrase))?;
        let other = read.iter().find(|read| read.slot != opened.slot);
        match other.and_then(|other| Self::flaw(opened, other)) {
            Some(SlotFlaw { slot, state }) if state.can_be_mended() => {
                self.slots.write(slot, &opened.bytes, |slot, kept| self.check(slot, kept, passphrase))?;
                Ok(true)
            }
            // A slot of a later Tiles, of another passphrase or of another copy of the drive is not ours to overwrite.
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests;
