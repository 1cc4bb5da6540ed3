//! Recovery: a sound database in the place of a damaged or lost one, and nothing thrown away.
//!
//! What the damaged one still gives is taken first; what it is known to lack, or may lack, comes from a backup. The new
//! database is complete, checked and has a name of its own before the old one is moved aside. A cut on the way leaves
//! that name, and doing it again goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use secrecy::SecretBox;

use super::error::{StoreError, Trouble};
use super::salvage::{self, Missing, Salvage};
use super::{Access, Store, backups, lineage, log, opening};
use crate::disk::{self, DiskError};
use crate::message::SessionId;
use crate::transcript::{StoredMessage, Transcript};

/// How many damaged databases are kept aside under numbered names.
const ASIDE_MAX: u32 = 1_000;

/// Where the content of the recovered database comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The database is sound: there is nothing to do.
    Sound,
    /// What the damaged database still gives, alone.
    Salvage,
    /// The same, with what it lacks from a backup.
    SalvageAndBackup(PathBuf),
    /// A backup alone, or the file the person named.
    Backup(PathBuf),
    /// An earlier recovery that was cut before it was complete.
    Unfinished(PathBuf),
}

/// A recovery that can be shown before it is carried out.
#[derive(Debug)]
pub struct Recovery {
    /// Where the content comes from.
    pub source: Source,
    /// What is wrong with the database; nothing where it is sound.
    pub damage: Option<String>,
    /// How many sessions and messages the new database will have.
    pub sessions: usize,
    /// How many messages.
    pub messages: usize,
    /// How many of the messages come from the backup.
    pub from_backup: usize,
    /// What is known to be missing all the same.
    pub missing: Vec<Missing>,
    /// Whether more may be missing than is known.
    pub may_lack_more: bool,
    database: PathBuf,
    content: Salvage,
}

impl Recovery {
    /// Finds out what can be done for the `database`; writes nothing. `keys` are tried in turn, the present one first:
    /// a backup may have been made before the key was changed. With `from`, the content of that file is taken alone.
    ///
    /// # Errors
    /// What reading can meet; the database's own error where neither it nor a backup gives anything.
    pub fn plan(
        database: &Path,
        folder: &Path,
        from: Option<&Path>,
        keys: &[&SecretBox<[u8; 32]>],
    ) -> Result<Self, StoreError> {
        let unfinished = recovered_path(database);
        if from.is_none() && disk::exists(&unfinished) {
            let content = with_any(keys, |key| salvage::read(&unfinished, key))?;
            return Ok(Self::new(database, Source::Unfinished(unfinished), None, content));
        }
        let checked = with_any(keys, |key| salvage::check(database, key));
        if let Some(from) = from {
            let content = with_any(keys, |key| salvage::check(from, key).and_then(|()| salvage::read(from, key)))?;
            let damage = checked.err().map(|error| error.to_string());
            return Ok(Self::new(database, Source::Backup(from.into()), damage, content));
        }
        let damage = match checked {
            Ok(()) => {
                let content = with_any(keys, |key| salvage::read(database, key))?;
                return Ok(Self::new(database, Source::Sound, None, content));
            }
            // Neither a busy nor a newer file is damaged.
            Err(
                error @ (StoreError::InUse { .. }
                | StoreError::Newer { .. }
                | StoreError::NoCipher
                | StoreError::ReadOnly { .. }
                | StoreError::Disk(DiskError::Gone { .. })),
            ) => return Err(error),
            Err(error) => error,
        };
        let salvaged = with_any(keys, |key| salvage::read(database, key)).ok();
        let backup = newest_good(folder, keys)?;
        let (source, content, from_backup) = match (salvaged, backup) {
            (None, None) => return Err(damage),
            (None, Some((path, backup))) => (Source::Backup(path), backup, 0),
            (Some(salvaged), None) => (Source::Salvage, salvaged, 0),
            (Some(salvaged), Some((path, backup))) => {
                let (content, taken) = fill(salvaged, &backup);
                let source = if taken > 0 { Source::SalvageAndBackup(path) } else { Source::Salvage };
                (source, content, taken)
            }
        };
        let plan = Self::new(database, source, Some(damage.to_string()), content);
        Ok(Self { from_backup, ..plan })
    }

    fn new(database: &Path, source: Source, damage: Option<String>, content: Salvage) -> Self {
        Self {
            source,
            damage,
            sessions: content.sessions.len(),
            messages: content.messages(),
            from_backup: 0,
            missing: content.missing.clone(),
            may_lack_more: content.may_lack_more(),
            database: database.into(),
            content,
        }
    }

    /// Puts the recovered database in its place, and says where the old one is kept, where there was one.
    ///
    /// # Errors
    /// What writing can meet. Everything that was there is still there then, under one of the two names.
    pub fn carry_out(&self, key: &SecretBox<[u8; 32]>) -> Result<Option<PathBuf>, StoreError> {
        if self.source == Source::Sound {
            return Ok(None);
        }
        let recovered = recovered_path(&self.database);
        if !matches!(self.source, Source::Unfinished(_)) {
            self.write_new(&recovered, key)?;
        }
        // The log first: beside another database, SQLite would take it into that one.
        let aside = aside_path(&self.database)?;
        let logs = [&self.database, &aside].map(|path| opening::wal_path(path));
        let mut was_there = None;
        for (from, to) in [(&logs[0], &logs[1]), (&self.database, &aside)] {
            if disk::exists(from) {
                disk::rename(from, to)?;
                was_there = Some(aside.clone());
            }
        }
        disk::rename(&recovered, &self.database)?;
        Ok(was_there)
    }

    fn write_new(&self, recovered: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
        let partial = with_suffix(recovered, ".partial");
        for path in [&partial, &opening::wal_path(&partial), &recovered.to_path_buf()] {
            disk::remove(path)?;
        }
        let store = Store::open(&partial, key, Access::ReadWrite)?;
        let written = self.fill_new(&store);
        let closed = written.and_then(|()| store.close());
        let checked = closed.and_then(|()| {
            let file = disk::open_or_create(&partial)?;
            disk::sync(&file, &partial)?;
            drop(file);
            disk::forget_cached(&partial)?;
            opening::check_copy(&partial, key)
        });
        if let Err(error) = checked {
            let _ = disk::remove(&partial);
            let _ = disk::remove(&opening::wal_path(&partial));
            return Err(error);
        }
        Ok(disk::rename(&partial, recovered)?)
    }

    fn fill_new(&self, store: &Store) -> Result<(), StoreError> {
        store.import(&self.content.sessions)?;
        for peer in self.content.peers.iter().filter(|peer| peer.is_linked()) {
            store.link_peer(peer.did, &peer.nickname, peer.linked_at)?;
        }
        store.write(|connection: &Connection| -> Result<(), Trouble> {
            for (key, value) in &self.content.settings {
                connection.prepare_cached("INSERT INTO setting (key, value) VALUES (?1, ?2)")?.execute([key, value])?;
            }
            for line in &self.content.history {
                connection.prepare_cached("INSERT INTO history (line) VALUES (?1)")?.execute([line])?;
            }
            self.content.gone.iter().try_for_each(|id| log::apply::set_gone(connection, *id))?;
            self.content.runs.iter().try_for_each(|run| lineage::insert(connection, run))
        })
    }
}

/// Where the recovered database is until it takes its place.
pub(super) fn recovered_path(database: &Path) -> PathBuf {
    with_suffix(database, ".recovered")
}

impl Store {
    /// Whether a recovery of the `database` was cut before its end; [`Recovery::plan`] goes on with it.
    pub fn has_unfinished_recovery(database: &Path) -> bool {
        disk::exists(&recovered_path(database))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// A free name for a damaged database, beside it.
fn aside_path(database: &Path) -> Result<PathBuf, StoreError> {
    let mut names = (1..=ASIDE_MAX).map(|number| database.with_file_name(format!("tiles-aside-{number}.db")));
    let free = names.find(|path| !disk::exists(path) && !disk::exists(&opening::wal_path(path)));
    free.ok_or_else(|| DiskError::Exists { path: database.with_file_name("tiles-aside-1.db") }.into())
}

/// Runs `step` with each key until it isn't the wrong one.
fn with_any<T>(
    keys: &[&SecretBox<[u8; 32]>],
    step: impl Fn(&SecretBox<[u8; 32]>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut first = None;
    for key in keys {
        match step(key) {
            Err(error @ StoreError::WrongKey { .. }) => first = first.or(Some(error)),
            done => return done,
        }
    }
    Err(first.unwrap_or(StoreError::NoCipher))
}

/// The newest backup that is sound.
fn newest_good(folder: &Path, keys: &[&SecretBox<[u8; 32]>]) -> Result<Option<(PathBuf, Salvage)>, StoreError> {
    for backup in backups(folder)? {
        let path = backup.path;
        let content = with_any(keys, |key| {
            salvage::check(&path, key)?;
            salvage::read(&path, key)
        });
        match content {
            Ok(content) => return Ok(Some((path, content))),
            Err(error @ StoreError::Disk(DiskError::Gone { .. })) => return Err(error),
            // A damaged one is passed over for an older one.
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Adds from `backup` what `salvaged` is known to lack, and what it may lack. What the person deleted since the backup
/// stays deleted, as far as the damage leaves that to be known. Says how many messages were taken.
fn fill(mut salvaged: Salvage, backup: &Salvage) -> (Salvage, usize) {
    let mut taken = 0;
    let mut missing: BTreeMap<SessionId, Missing> =
        std::mem::take(&mut salvaged.missing).into_iter().map(|missing| (missing.session, missing)).collect();
    let has: BTreeSet<[u8; 16]> =
        salvaged.sessions.iter().flat_map(|session| &session.messages).map(|message| message.id.0).collect();
    for old in &backup.sessions {
        let wanted = |message: &&StoredMessage| {
            let id = message.id.0;
            !has.contains(&id) && (salvaged.missing_ids.contains(&id) || !salvaged.knows_all_messages)
        };
        let found: Vec<StoredMessage> = old.messages.iter().filter(wanted).cloned().collect();
        let place = salvaged.sessions.iter().position(|session| session.id == old.id);
        let is_known = place.is_some() || missing.contains_key(&old.id);
        if found.is_empty() || !is_known && salvaged.has_all_sessions {
            continue;
        }
        taken += found.len();
        if let Some(missing) = missing.get_mut(&old.id) {
            let known = found.iter().filter(|message| salvaged.missing_ids.contains(&message.id.0)).count();
            missing.messages = missing.messages.saturating_sub(known);
        }
        match place {
            Some(place) => {
                let session: &mut Transcript = &mut salvaged.sessions[place];
                take_in(&mut session.messages, &old.messages, found);
                session.title = session.title.take().or_else(|| old.title.clone());
            }
            None => salvaged.sessions.push(Transcript { messages: found, ..old.clone() }),
        }
    }
    salvaged.missing = missing.into_values().filter(|missing| missing.messages > 0).collect();
    if !salvaged.has_all_settings {
        let set: BTreeSet<String> = salvaged.settings.iter().map(|(key, _)| key.clone()).collect();
        salvaged.settings.extend(backup.settings.iter().filter(|(key, _)| !set.contains(key)).cloned());
        if salvaged.history.len() < backup.history.len() {
            salvaged.history.clone_from(&backup.history);
        }
        if salvaged.peers.is_empty() {
            salvaged.peers.clone_from(&backup.peers);
        }
        if salvaged.runs.is_empty() {
            salvaged.runs.clone_from(&backup.runs);
        }
    }
    (salvaged, taken)
}

/// Puts the messages `found` in their places: where they stood in `old`, of which `messages` has some.
fn take_in(messages: &mut Vec<StoredMessage>, old: &[StoredMessage], found: Vec<StoredMessage>) {
    let mut found: BTreeMap<[u8; 16], StoredMessage> = found.into_iter().map(|m| (m.id.0, m)).collect();
    let mut next: Option<[u8; 16]> = None;
    for message in old.iter().rev() {
        let id = message.id.0;
        if let Some(message) = found.remove(&id) {
            let before = next.and_then(|next| messages.iter().position(|m| m.id.0 == next));
            // After the last one that is still there: what was said since the backup is later.
            let at = before.unwrap_or_else(|| messages.partition_point(|m| m.created_at <= message.created_at));
            messages.insert(at, message);
            next = Some(id);
        } else if messages.iter().any(|m| m.id.0 == id) {
            next = Some(id);
        }
    }
}
