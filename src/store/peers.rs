//! The devices that belong to the same person: linked, seen, unlinked. Who belongs is said in the log, so all devices agree.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::{StoreError, Trouble};
use super::log::apply::read_body;
use super::{Store, log, row, settings};
use crate::did::Did;
use crate::oplog::body::{BODY_BYTES_MAX, EPOCHS_MAX, NICKNAME_BYTES_MAX, is_nickname};
use crate::oplog::{Body, Unlinked};
use crate::time::Timestamp;

/// The most devices of a person that are remembered, unlinked ones included.
pub const PEERS_MAX: usize = 256;

/// A device that is, or was, linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub did: Did,
    /// What it is called. Untrusted text, of one line.
    pub nickname: String,
    /// When it was linked.
    pub linked_at: Timestamp,
    /// When it was unlinked, if it was.
    pub unlinked_at: Option<Timestamp>,
    /// When it was last met.
    pub last_seen_at: Option<Timestamp>,
    /// When everything was last exchanged with it.
    pub last_sync_at: Option<Timestamp>,
}

impl Peer {
    /// Whether it belongs to the person now.
    pub const fn is_linked(&self) -> bool {
        self.unlinked_at.is_none()
    }
}

/// Reads all of them, each as [`peer`] takes it.
pub(super) const ALL: &str = "SELECT device, nickname, linked_at, unlinked_at, last_seen_at, last_sync_at FROM peer";
const COLUMNS: &str = "device, nickname, linked_at, unlinked_at, last_seen_at, last_sync_at";

impl Store {
    /// The devices that are or were linked, the one linked first first. The own one is among them once another device has
    /// linked it.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn peers(&self) -> Result<Vec<Peer>, StoreError> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM peer ORDER BY linked_at, device LIMIT ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([PEERS_MAX as i64])?;
            let mut peers = Vec::new();
            while let Some(found) = rows.next()? {
                peers.push(peer(found)?);
            }
            Ok(peers)
        })
    }

    /// What is known of a device.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn peer(&self, did: Did) -> Result<Option<Peer>, StoreError> {
        self.read(|connection| find(connection, did))
    }

    /// Links a device, or gives a linked one another name. It becomes known to all devices of the person.
    ///
    /// # Errors
    /// [`StoreError::BadName`] for the nickname, [`StoreError::TooLarge`], and what writing can meet.
    pub fn link_peer(&self, did: Did, nickname: &str, now: Timestamp) -> Result<(), StoreError> {
        super::check_length("the nickname", nickname, NICKNAME_BYTES_MAX)?;
        if !is_nickname(nickname) {
            return Err(StoreError::BadName { what: "a nickname" });
        }
        let body = Body::Link { device: did, nickname: nickname.into() };
        self.write(|connection| {
            let count: i64 = connection.query_row("SELECT count(*) FROM peer", (), |row| row.get(0))?;
            if count >= PEERS_MAX as i64 && find(connection, did)?.is_none() {
                let (what, unit) = ("the list of devices", "devices");
                return Err(StoreError::TooLarge { what, count: PEERS_MAX + 1, count_max: PEERS_MAX, unit }.into());
            }
            log::record(connection, &[body], now)
        })
    }

    /// Unlinks a device: what it says from now on doesn't count, whoever brings it. What was taken over from it stays.
    ///
    /// # Errors
    /// [`StoreError::Nothing`] where it isn't linked, and what writing can meet.
    pub fn unlink_peer(&self, did: Did, now: Timestamp) -> Result<(), StoreError> {
        self.write(|connection| {
            if !find(connection, did)?.is_some_and(|peer| peer.is_linked()) {
                return Err(StoreError::Nothing { what: "linked device of that DID" }.into());
            }
            let known = log::known_of(connection, did, EPOCHS_MAX)?;
            log::record(connection, &[Body::Unlink { device: did, known }], now)
        })
    }

    /// Calls this device's person something else: here, and on all linked devices once they learn of it.
    ///
    /// # Errors
    /// As [`Store::link_peer`].
    pub fn set_nickname(&self, nickname: &str, now: Timestamp) -> Result<(), StoreError> {
        super::check_length("the nickname", nickname, NICKNAME_BYTES_MAX)?;
        if !is_nickname(nickname) {
            return Err(StoreError::BadName { what: "a nickname" });
        }
        self.write(|connection| {
            settings::set(connection, settings::NICKNAME, nickname)?;
            log::record(connection, &[Body::Nickname { nickname: nickname.into() }], now)
        })
    }

    /// Remembers that a linked device was met.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn note_seen(&self, did: Did, now: Timestamp) -> Result<(), StoreError> {
        self.note(did, "UPDATE peer SET last_seen_at = ?2 WHERE device = ?1", now)
    }

    /// Remembers that everything was exchanged with a linked device.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn note_synced(&self, did: Did, now: Timestamp) -> Result<(), StoreError> {
        self.note(did, "UPDATE peer SET last_seen_at = ?2, last_sync_at = ?2 WHERE device = ?1", now)
    }

    fn note(&self, did: Did, sql: &str, now: Timestamp) -> Result<(), StoreError> {
        self.write_unhurried(|connection| {
            connection.prepare_cached(sql)?.execute(params![did.public_key(), now.as_ms()])?;
            Ok(())
        })
    }
}

pub(super) fn find(connection: &Connection, did: Did) -> Result<Option<Peer>, Trouble> {
    let sql = format!("SELECT {COLUMNS} FROM peer WHERE device = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([did.public_key()])?;
    rows.next()?.map(peer).transpose()
}

/// Up to where a log of an unlinked device counts.
pub(super) fn cut_of(connection: &Connection, did: Did, epoch: [u8; 16]) -> Result<u64, Trouble> {
    let mut statement = connection.prepare_cached("SELECT next FROM cut WHERE device = ?1 AND epoch = ?2")?;
    let next: Option<i64> = statement.query_row(params![did.public_key(), epoch], |row| row.get(0)).optional()?;
    Ok(next.and_then(|next| u64::try_from(next).ok()).unwrap_or(0))
}

pub(super) fn peer(found: &Row<'_>) -> Result<Peer, Trouble> {
    let key = row::optional_key(found, 0)?.ok_or(Trouble::Row("a device's key is missing"))?;
    let moment = |idx| Ok::<_, Trouble>(row::optional_number(found, idx)?.map(Timestamp::from_ms));
    Ok(Peer {
        did: Did::from_public_key(key).map_err(|_| Trouble::Row("a device has no usable key"))?,
        nickname: row::text(found, 1, NICKNAME_BYTES_MAX)?,
        linked_at: row::moment(found, 2)?,
        unlinked_at: moment(3)?,
        last_seen_at: moment(4)?,
        last_sync_at: moment(5)?,
    })
}

/// Makes the list of devices anew of what all logs say: of what was said about a device, the latest counts.
pub(super) fn project(connection: &Connection) -> Result<(), Trouble> {
    connection.prepare_cached("DELETE FROM cut")?.execute(())?;
    let sql = "SELECT op.body, op.hlc, log.device FROM op JOIN log ON log.seq = op.log
        WHERE op.kind BETWEEN 5 AND 7 AND op.body IS NOT NULL ORDER BY op.hlc, log.device, op.body";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(())?;
    while let Some(found) = rows.next()? {
        let Some(bytes) = row::optional_bytes(found, 0, BODY_BYTES_MAX)? else { continue };
        let at = row::number(found, 1)? >> 16;
        match read_body(bytes)? {
            Body::Link { device, nickname } => linked(connection, device, &nickname, at)?,
            Body::Unlink { device, known } => unlinked(connection, device, &known, at)?,
            Body::Nickname { nickname } => {
                let sql = "UPDATE peer SET nickname = ?2 WHERE device = ?1";
                connection.prepare_cached(sql)?.execute(params![row::optional_key(found, 2)?, nickname])?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn linked(connection: &Connection, device: Did, nickname: &str, at_ms: i64) -> Result<(), Trouble> {
    // What it is said to have been linked at is when it first was, since it was last unlinked.
    // More than the most are left out: only a hostile device says so many.
    let sql = "INSERT INTO peer (device, nickname, linked_at) SELECT ?1, ?2, ?3
        WHERE EXISTS (SELECT 1 FROM peer WHERE device = ?1) OR (SELECT count(*) FROM peer) < ?4
        ON CONFLICT (device) DO UPDATE SET
        nickname = ?2, linked_at = iif(unlinked_at IS NULL, min(linked_at, ?3), ?3), unlinked_at = NULL";
    connection.prepare_cached(sql)?.execute(params![device.public_key(), nickname, at_ms, PEERS_MAX as i64])?;
    connection.prepare_cached("DELETE FROM cut WHERE device = ?1")?.execute([device.public_key()])?;
    Ok(())
}

fn unlinked(connection: &Connection, device: Did, known: &[Unlinked], at_ms: i64) -> Result<(), Trouble> {
    let sql = "UPDATE peer SET unlinked_at = ?2 WHERE device = ?1";
    if connection.prepare_cached(sql)?.execute(params![device.public_key(), at_ms])? == 0 {
        return Ok(());
    }
    connection.prepare_cached("DELETE FROM cut WHERE device = ?1")?.execute([device.public_key()])?;
    let sql = "INSERT OR REPLACE INTO cut (device, epoch, next) VALUES (?1, ?2, ?3)";
    for Unlinked { epoch, next } in known {
        let next = i64::try_from(*next).unwrap_or(i64::MAX);
        connection.prepare_cached(sql)?.execute(params![device.public_key(), epoch, next])?;
    }
    Ok(())
}
