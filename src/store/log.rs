//! The operation log in the store: this device's own log, the logs of others, and how they are shared.
//!
//! Every change of sessions and messages is an operation, stored in the same transaction in which it acts on the tables; see
//! [`apply`]. The own log needs no key while it grows: it is chained and signed when something is shared.

use rusqlite::{CachedStatement, Connection, Row, params};

use super::error::{StoreError, Trouble};
use super::text_index::Indexing;
use super::{random_id, row};
use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::message::SessionId;
use crate::oplog::{Body, Hlc, LOG_OPS_MAX, LogId, OpHead, Unlinked, body_digest, chain_start};
use crate::time::Timestamp;
use crate::transcript::{MODEL_BYTES_MAX, TITLE_BYTES_MAX};

pub(super) mod apply;
mod runs;

pub use runs::{Import, Lacking, Refusal};

/// A log's row.
#[derive(Clone, Debug)]
struct LogRow {
    seq: i64,
    device: Option<Did>,
    epoch: [u8; 16],
    is_own: bool,
    next: u64,
    last_hlc: Hlc,
    sealed: u64,
    chain: Option<Sha256Digest>,
    is_forked: bool,
}

const LOG_COLUMNS: &str = "seq, device, epoch, is_own, next, last_hlc, sealed, chain, forked_at IS NOT NULL";

impl LogRow {
    fn read(found: &Row<'_>) -> Result<Self, Trouble> {
        Ok(Self {
            seq: row::number(found, 0)?,
            device: row::optional_key(found, 1)?.map(did).transpose()?,
            epoch: row::id(found, 2)?,
            is_own: row::number(found, 3)? == 1,
            next: count(found, 4)?,
            last_hlc: hlc(found, 5)?,
            sealed: count(found, 6)?,
            chain: row::optional_key(found, 7)?.map(Sha256Digest),
            is_forked: row::number(found, 8)? == 1,
        })
    }

    /// Which log it is, once its device is known.
    fn id(&self) -> Option<LogId> {
        Some(LogId { device: self.device?, epoch: self.epoch })
    }

    /// The chain as far as it is sealed.
    fn sealed_chain(&self, id: &LogId) -> Sha256Digest {
        self.chain.unwrap_or_else(|| chain_start(id))
    }
}

fn did(public_key: [u8; 32]) -> Result<Did, Trouble> {
    Did::from_public_key(public_key).map_err(|_| Trouble::Row("a device has no usable key"))
}

fn count(found: &Row<'_>, idx: usize) -> Result<u64, Trouble> {
    row::optional_count(found, idx)?.ok_or(Trouble::Row("a count is missing"))
}

fn hlc(found: &Row<'_>, idx: usize) -> Result<Hlc, Trouble> {
    Hlc::from_bits(count(found, idx)?).ok_or(Trouble::Row("a time is out of range"))
}

fn all_logs(connection: &Connection) -> Result<Vec<LogRow>, Trouble> {
    let sql = format!("SELECT {LOG_COLUMNS} FROM log ORDER BY is_own DESC, seq");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(())?;
    let mut logs = Vec::new();
    while let Some(found) = rows.next()? {
        logs.push(LogRow::read(found)?);
    }
    Ok(logs)
}

fn find_log(connection: &Connection, id: &LogId) -> Result<Option<LogRow>, Trouble> {
    let sql = format!("SELECT {LOG_COLUMNS} FROM log WHERE device = ?1 AND epoch = ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![id.device.public_key(), id.epoch])?;
    rows.next()?.map(LogRow::read).transpose()
}

/// The log that this device appends to, made where there is none yet.
fn own_log(connection: &Connection) -> Result<LogRow, Trouble> {
    let sql = format!("SELECT {LOG_COLUMNS} FROM log WHERE is_own = 1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(())?;
    if let Some(found) = rows.next()? {
        return LogRow::read(found);
    }
    let insert = "INSERT INTO log (epoch, is_own, next, last_hlc, sealed) VALUES (?1, 1, 0, 0, 0)";
    connection.prepare_cached(insert)?.execute([random_id()?])?;
    drop(rows);
    LogRow::read(statement.query(())?.next()?.ok_or(Trouble::Row("the own log isn't there"))?)
}

/// The latest time that any operation here has.
fn last_hlc(connection: &Connection) -> Result<Option<Hlc>, Trouble> {
    let sql = "SELECT max(last_hlc) FROM log WHERE next > 0";
    let bits: Option<i64> = connection.prepare_cached(sql)?.query_row((), |row| row.get(0))?;
    Ok(bits.and_then(|bits| Hlc::from_bits(bits as u64)))
}

/// Appends what this device does to its log, and does it to the tables.
pub(super) fn record(connection: &Connection, bodies: &[Body], now: Timestamp) -> Result<(), Trouble> {
    append(connection, bodies, now)?;
    apply::apply(connection, bodies, Indexing::Now)
}

fn append(connection: &Connection, bodies: &[Body], now: Timestamp) -> Result<(), Trouble> {
    let log = own_log(connection)?;
    let mut last = last_hlc(connection)?;
    let mut next = log.next;
    let mut ops = InsertOp::new(connection)?;
    for body in bodies {
        let hlc = Hlc::next(now, last).ok_or(Trouble::Row("the last operation's time leaves none after it"))?;
        let (salt, bytes) = (random_id()?, body.to_bytes());
        let head = OpHead { hlc, kind: body.kind(), digest: body_digest(&salt, &bytes) };
        ops.insert(log.seq, next, &head, Some(body), Some((&salt, &bytes)))?;
        last = Some(hlc);
        next += 1;
    }
    if next > LOG_OPS_MAX {
        let (what, unit, most) = ("the operation log", "operations", LOG_OPS_MAX as usize);
        return Err(StoreError::TooLarge { what, count: next as usize, count_max: most, unit }.into());
    }
    let update = "UPDATE log SET next = ?2, last_hlc = ?3 WHERE seq = ?1";
    let last = last.unwrap_or_default().to_bits() as i64;
    connection.prepare_cached(update)?.execute(params![log.seq, next as i64, last])?;
    Ok(())
}

/// What adds an operation to a log.
struct InsertOp<'a>(CachedStatement<'a>);

impl<'a> InsertOp<'a> {
    fn new(connection: &'a Connection) -> Result<Self, Trouble> {
        let sql = "INSERT INTO op (log, number, hlc, kind, digest, session, message, salt, body)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        Ok(Self(connection.prepare_cached(sql)?))
    }

    fn insert(
        &mut self,
        log: i64,
        number: u64,
        head: &OpHead,
        said: Option<&Body>,
        body: Option<(&[u8; 16], &[u8])>,
    ) -> Result<(), Trouble> {
        let message = match said {
            Some(Body::Message { message, .. }) => Some(message.id.0),
            _ => None,
        };
        self.0.execute(params![
            log,
            number as i64,
            head.hlc.to_bits() as i64,
            head.kind,
            head.digest.0,
            said.and_then(Body::session).map(|session| session.0),
            message,
            body.map(|(salt, _)| salt),
            body.map(|(_, bytes)| bytes),
        ])?;
        Ok(())
    }
}

/// Makes the beginning of the own log of what a database from before had. The tables stay as they are.
pub(super) fn adopt(connection: &Connection) -> Result<(), Trouble> {
    let mut statement = connection.prepare("SELECT seq, id, title, model, created_at, updated_at FROM session")?;
    let mut rows = statement.query(())?;
    while let Some(found) = rows.next()? {
        let (seq, id) = (row::number(found, 0)?, SessionId(row::id(found, 1)?));
        let mut bodies = vec![
            Body::Session { id, model: row::text(found, 3, MODEL_BYTES_MAX)?, created_at: row::moment(found, 4)? },
            Body::Title {
                session: id,
                title: row::optional_text(found, 2, TITLE_BYTES_MAX)?,
                at: row::moment(found, 5)?,
            },
        ];
        bodies.extend(apply::messages_of(connection, seq, id)?);
        append(connection, &bodies, Timestamp::from_ms(0))?;
    }
    Ok(())
}

/// How much of a device's logs is known.
pub(super) fn known_of(connection: &Connection, device: Did, epochs_max: usize) -> Result<Vec<Unlinked>, Trouble> {
    let logs = all_logs(connection)?.into_iter().filter(|log| log.device == Some(device));
    Ok(logs.take(epochs_max).map(|log| Unlinked { epoch: log.epoch, next: log.next }).collect())
}
