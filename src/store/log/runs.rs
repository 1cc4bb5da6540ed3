//! Sharing logs: the own one is signed, what another device lacks is read out, and what it brings is taken in.

use rusqlite::{Connection, Row, params};

use super::{InsertOp, LogRow, all_logs, apply, count, find_log, own_log};
use crate::did::Did;
use crate::digest::Sha256Digest;
use crate::hint::Hint;
use crate::identity::Identity;
use crate::message::SessionId;
use crate::oplog::body::BODY_BYTES_MAX;
use crate::oplog::run::{RUN_BYTES, RUN_OPS_MAX};
use crate::oplog::vector::LOGS_MAX;
use crate::oplog::{
    Body, CheckedRun, Head, Hlc, LogId, OpHead, Run, RunError, RunOp, Vector, chain, chain_start, signed_text,
};
use crate::store::error::Trouble;
use crate::store::text_index::Indexing;
use crate::store::{Store, StoreError, peers, random_id, row, sessions};
use crate::time::Timestamp;

/// Why operations of another device weren't taken over. Nothing else is lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// They aren't what their device signed, or can't be.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Their device isn't linked.
    #[error("they are of a device that isn't linked")]
    Stranger,
    /// Their device was unlinked before.
    #[error("they are of a device that was unlinked before")]
    Unlinked,
    /// What comes before them isn't here.
    #[error("what comes before them isn't here")]
    Gap,
    /// Their device has written its log twice: its drive was copied, and both copies were used.
    #[error("their device has written its log in two ways: its drive was copied, and both copies were used")]
    Forked,
    /// There are more logs than can be.
    #[error("there are more logs than any person has")]
    TooMany,
}

impl Hint for Refusal {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Run(error) => return error.hint(),
            Self::Stranger => "link that device with `tiles link enable`".into(),
            Self::Unlinked => "link it again if you want what it says".into(),
            Self::Gap => "sync with the device that they come from".into(),
            Self::Forked => "sync the copied drives themselves: each then continues under a log of its own".into(),
            Self::TooMany => "unlink the device that this came from".into(),
        })
    }
}

/// What taking in a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// How many operations were new.
    pub ops: usize,
    /// How many of them were messages.
    pub messages: usize,
    /// Whether they say which devices belong together.
    pub has_devices: bool,
    /// Whether the own log had forked, and goes on under another epoch.
    pub has_new_epoch: bool,
}

/// A part of a log that another device lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Which log.
    pub log: LogId,
    /// The number of the first operation that it lacks.
    pub first: u64,
    /// The number of the operation after the last.
    pub end: u64,
}

/// An operation as it is read to be shared.
struct OpRow {
    number: u64,
    op: RunOp,
    signature: Option<[u8; 64]>,
}

const OP_COLUMNS: &str = "number, hlc, kind, digest, salt, body, signature";

impl OpRow {
    fn read(found: &Row<'_>) -> Result<Self, Trouble> {
        let body = match (row::optional_bytes(found, 4, 16)?, row::optional_bytes(found, 5, BODY_BYTES_MAX)?) {
            (Some(salt), Some(body)) => {
                let salt = <[u8; 16]>::try_from(salt).map_err(|_| Trouble::Row("a salt isn't 16 bytes"))?;
                Some((salt, body.to_vec()))
            }
            _ => None,
        };
        let signature = row::optional_bytes(found, 6, 64)?.map(<[u8; 64]>::try_from).transpose();
        Ok(Self {
            number: count(found, 0)?,
            op: RunOp { head: op_head(found)?, body },
            signature: signature.map_err(|_| Trouble::Row("a signature isn't 64 bytes"))?,
        })
    }

    fn bytes(&self) -> usize {
        self.op.body.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }
}

/// What an operation commits to, from the columns after its number.
fn op_head(found: &Row<'_>) -> Result<OpHead, Trouble> {
    let digest = row::optional_key(found, 3)?.ok_or(Trouble::Row("a digest is missing"))?;
    Ok(OpHead {
        hlc: super::hlc(found, 1)?,
        kind: u8::try_from(row::number(found, 2)?).map_err(|_| Trouble::Row("a kind is out of range"))?,
        digest: Sha256Digest(digest),
    })
}

/// Tells the heads of a log's operations from `first` to before `end`, in order.
fn each_head(
    connection: &Connection,
    log: i64,
    (first, end): (u64, u64),
    mut tell: impl FnMut(u64, &OpHead, usize) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let sql = "SELECT number, hlc, kind, digest, coalesce(length(body), 0) FROM op
        WHERE log = ?1 AND number >= ?2 AND number < ?3 ORDER BY number";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![log, first as i64, end as i64])?;
    let mut expected = first;
    while let Some(found) = rows.next()? {
        if count(found, 0)? != expected {
            break;
        }
        tell(expected, &op_head(found)?, count(found, 4)? as usize)?;
        expected += 1;
    }
    if expected == end { Ok(()) } else { Err(Trouble::Row("a log lacks an operation")) }
}

/// The chain of a log before its operation `number`.
fn chain_before(connection: &Connection, log: &LogRow, id: &LogId, number: u64) -> Result<Sha256Digest, Trouble> {
    if number == log.sealed {
        return Ok(log.sealed_chain(id));
    }
    // From the last place before it that is known.
    let sql = "SELECT number, chain FROM op WHERE log = ?1 AND number < ?2 AND chain IS NOT NULL
        ORDER BY number DESC LIMIT 1";
    let known = {
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![log.seq, number as i64])?;
        match rows.next()? {
            Some(found) => Some((count(found, 0)? + 1, row::optional_key(found, 1)?)),
            None => None,
        }
    };
    let (first, mut before) = match known {
        Some((first, Some(chain))) => (first, Sha256Digest(chain)),
        _ => (0, chain_start(id)),
    };
    each_head(connection, log.seq, (first, number), |number, head, _| {
        before = chain(&before, number, head);
        Ok(())
    })?;
    Ok(before)
}

impl Store {
    /// Says whose the own log is, and chains and signs what was added to it: from then on it can be shared.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn seal_log(&self, identity: &Identity) -> Result<(), StoreError> {
        let device = identity.did();
        let is_sealed = self.read(|connection| {
            let own = all_logs(connection)?.into_iter().find(|log| log.is_own);
            Ok(own.is_none_or(|own| own.next == 0 || own.device == Some(device) && own.sealed == own.next))
        })?;
        if is_sealed {
            return Ok(());
        }
        // Chain and signatures come out the same when they are made again.
        self.write_unhurried(|connection| {
            let own = own_as(connection, device)?;
            seal(connection, &own, identity)
        })
    }

    /// Has ready what an exchange asks and writes, while nobody waits for it yet: statements are compiled, and the pages to
    /// which most is added are read and decrypted. Together that is a millisecond or two of a short exchange.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn prepare_exchange(&self) -> Result<(), StoreError> {
        self.vector()?;
        self.forked_logs()?;
        self.read(|connection| {
            InsertOp::new(connection)?;
            apply::prepare(connection)?;
            let last =
                "SELECT (SELECT max(seq) FROM op), (SELECT max(seq) FROM message), (SELECT max(id) FROM message),
                (SELECT max(message) FROM unindexed),
                (SELECT max(number) FROM op WHERE log = (SELECT max(seq) FROM log))";
            connection.query_row(last, (), |_| Ok(()))?;
            Ok(())
        })
    }

    /// How much there is of each log that can be shared.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn vector(&self) -> Result<Vector, StoreError> {
        self.read(|connection| {
            let logs = all_logs(connection)?.into_iter().filter(|log| log.sealed > 0);
            let heads = logs.filter_map(|log| {
                let id = log.id()?;
                Some((id, Head { next: log.sealed, chain: log.sealed_chain(&id) }))
            });
            Ok(Vector(heads.take(LOGS_MAX).collect()))
        })
    }

    /// The operations of a log from `first` on, as many as fit into a run; nothing where there are none.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn run_after(&self, log: LogId, first: u64) -> Result<Option<Run>, StoreError> {
        self.read(|connection| {
            let Some(row) = find_log(connection, &log)?.filter(|row| first < row.sealed) else { return Ok(None) };
            let sql = format!(
                "SELECT {OP_COLUMNS} FROM op WHERE log = ?1 AND number >= ?2 AND number < ?3 ORDER BY number LIMIT ?4"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let limit = RUN_OPS_MAX as i64;
            let mut rows = statement.query(params![row.seq, first as i64, row.sealed as i64, limit])?;
            let (mut ops, mut bytes, mut signed) = (Vec::new(), 0, None);
            while let Some(found) = rows.next()? {
                let read = OpRow::read(found)?;
                if read.number != first + ops.len() as u64 {
                    return Err(Trouble::Row("a log lacks an operation"));
                }
                bytes += read.bytes();
                ops.push(read.op);
                signed = read.signature.map(|signature| (ops.len(), signature)).or(signed);
                if bytes >= RUN_BYTES {
                    break;
                }
            }
            let (length, signature) = signed.ok_or(Trouble::Row("a log isn't signed where it should be"))?;
            ops.truncate(length);
            let before = chain_before(connection, &row, &log, first)?;
            Ok(Some(Run { log, first, before, ops, signature }))
        })
    }

    /// Takes over the operations of each run that are new here, all of a run or none of it; all runs in one transaction. `me`
    /// is this device.
    ///
    /// Where a run shows that this device's own log was continued elsewhere, as by another copy of this drive, the own log
    /// goes on under a new epoch, and what the other one said is taken over like that of any device.
    ///
    /// # Errors
    /// What writing can meet; what is wrong with a run is a [`Refusal`], and changes nothing.
    pub fn import_runs(
        &self,
        runs: &[CheckedRun],
        me: Did,
        now: Timestamp,
    ) -> Result<Vec<Result<Import, Refusal>>, StoreError> {
        let taken: Vec<_> = self.write(|connection| {
            own_as(connection, me)?;
            runs.iter().map(|run| import(connection, run, me, now)).collect()
        })?;
        // What was taken back to nothing here was gone on with elsewhere.
        let on_drive = self.read(|connection| {
            let is_there = |id: &SessionId| sessions::find_seq(connection, *id).map(|seq| seq.map(|_| *id));
            self.pending.borrow().keys().filter_map(|id| is_there(id).transpose()).collect::<Result<Vec<_>, _>>()
        })?;
        self.pending.borrow_mut().retain(|id, _| !on_drive.contains(id));
        let takes_back = |(run, taken): (&CheckedRun, &Result<Import, Refusal>)| {
            taken.is_ok() && run.bodies().iter().flatten().any(|body| matches!(body.kind(), 3 | 4))
        };
        if runs.iter().zip(&taken).any(takes_back) {
            self.forget_old_pages()?;
        }
        Ok(taken)
    }

    /// What another device says of logs that can't be so together with what is here: a log that is no longer there, and goes
    /// another way. It may be lying, so this changes nothing: a run from the log's beginning, which its device signed, would
    /// prove it. What was proved already isn't told again.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn disputed(&self, other: &Vector) -> Result<Vec<LogId>, StoreError> {
        self.read(|connection| {
            let mut disputed = Vec::new();
            for row in all_logs(connection)?.into_iter().filter(|row| !row.is_forked) {
                let Some((id, there)) = row.id().and_then(|id| Some((id, other.0.get(&id)?))) else { continue };
                if there.next <= row.sealed && chain_before(connection, &row, &id, there.next)? != there.chain {
                    disputed.push(id);
                }
            }
            Ok(disputed)
        })
    }

    /// What a device with `theirs` lacks and may have, in the order in which it is to be sent: the own log first, as it says
    /// whose the others are. A log in `from_start` is sent from its beginning, one in `unwanted` not at all.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn lacking(
        &self,
        theirs: &Vector,
        from_start: &[LogId],
        unwanted: &[LogId],
        me: Did,
    ) -> Result<Vec<Lacking>, StoreError> {
        self.read(|connection| {
            let mut lacking = Vec::new();
            for row in all_logs(connection)? {
                let Some(log) = row.id().filter(|id| !unwanted.contains(id)) else { continue };
                let end = match peers::find(connection, log.device)? {
                    _ if log.device == me => row.sealed,
                    Some(peer) if peer.is_linked() => row.sealed,
                    // What an unlinked device said after that would be refused.
                    Some(_) => row.sealed.min(peers::cut_of(connection, log.device, log.epoch)?),
                    None => 0,
                };
                let first = if from_start.contains(&log) { 0 } else { theirs.next(&log) };
                if first < end {
                    lacking.push(Lacking { log, first, end });
                }
            }
            Ok(lacking)
        })
    }

    /// The logs that were found to be written in two ways.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn forked_logs(&self) -> Result<Vec<LogId>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT device, epoch FROM log WHERE forked_at IS NOT NULL AND device IS NOT NULL LIMIT ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([LOGS_MAX as i64])?;
            let mut logs = Vec::new();
            while let Some(found) = rows.next()? {
                let key = row::optional_key(found, 0)?.ok_or(Trouble::Row("a device's key is missing"))?;
                logs.push(LogId { device: super::did(key)?, epoch: row::id(found, 1)? });
            }
            Ok(logs)
        })
    }
}

/// The own log, as that of this device.
fn own_as(connection: &Connection, device: Did) -> Result<LogRow, Trouble> {
    let mut own = own_log(connection)?;
    if own.device != Some(device) {
        if own.device.is_some() {
            // Another identity had this drive: what was said under it stays its own.
            connection.prepare_cached("UPDATE log SET is_own = 0 WHERE seq = ?1")?.execute([own.seq])?;
            own = own_log(connection)?;
        }
        let sql = "UPDATE log SET device = ?2 WHERE seq = ?1";
        connection.prepare_cached(sql)?.execute(params![own.seq, device.public_key()])?;
        own.device = Some(device);
    }
    Ok(own)
}

/// Chains and signs what was added to the own log since, at the places where runs may end.
fn seal(connection: &Connection, own: &LogRow, identity: &Identity) -> Result<(), Trouble> {
    let id = own.id().ok_or(Trouble::Row("the own log has no device"))?;
    let mut before = own.sealed_chain(&id);
    let (mut ops, mut bytes, mut places) = (0, 0, Vec::new());
    each_head(connection, own.seq, (own.sealed, own.next), |number, head, body_bytes| {
        before = chain(&before, number, head);
        ops += 1;
        bytes += body_bytes;
        if ops == RUN_OPS_MAX || bytes >= RUN_BYTES || number + 1 == own.next {
            places.push((number, before));
            (ops, bytes) = (0, 0);
        }
        Ok(())
    })?;
    let sql = "UPDATE op SET chain = ?3, signature = ?4 WHERE log = ?1 AND number = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    for (number, chain) in places {
        let signature = identity.sign(&signed_text(&id, number + 1, &chain));
        statement.execute(params![own.seq, number as i64, chain.0, signature])?;
    }
    let sql = "UPDATE log SET sealed = next, chain = ?2 WHERE seq = ?1";
    connection.prepare_cached(sql)?.execute(params![own.seq, before.0])?;
    Ok(())
}

fn import(
    connection: &Connection,
    checked: &CheckedRun,
    me: Did,
    now: Timestamp,
) -> Result<Result<Import, Refusal>, Trouble> {
    let (run, bodies) = (checked.run(), checked.bodies());
    if let Some(refusal) = refuse(connection, run, me)? {
        return Ok(Err(refusal));
    }
    let mut has_new_epoch = false;
    let mut row = match find_log(connection, &run.log)? {
        Some(row) => row,
        None => match add_log(connection, &run.log)? {
            Some(row) => row,
            None => return Ok(Err(Refusal::TooMany)),
        },
    };
    if run.first > row.next {
        return Ok(Err(Refusal::Gap));
    }
    if !agrees(connection, &row, run)? {
        set_forked(connection, &run.log, now)?;
        if !row.is_own {
            return Ok(Err(Refusal::Forked));
        }
        has_new_epoch = true;
        row = match add_log(connection, &run.log)? {
            Some(row) => row,
            None => return Ok(Err(Refusal::TooMany)),
        };
        if run.first > 0 {
            // From its beginning, the other one's log comes the next time.
            return Ok(Ok(Import { has_new_epoch, ..Import::default() }));
        }
    }
    let known = usize::try_from(row.next - run.first).unwrap_or(usize::MAX);
    let new = run.ops.iter().zip(bodies).zip(run.first..).skip(known);
    let mut taken = Import { has_new_epoch, ..Import::default() };
    let mut said = Vec::new();
    let mut ops = InsertOp::new(connection)?;
    for ((op, body), number) in new {
        let kept = op.body.as_ref().map(|(salt, bytes)| (salt, bytes.as_slice()));
        ops.insert(row.seq, number, &op.head, body.as_ref(), kept)?;
        taken.ops += 1;
        taken.messages += usize::from(matches!(body, Some(Body::Message { .. })));
        taken.has_devices |= matches!(body, Some(Body::Link { .. } | Body::Unlink { .. }));
        said.extend(body.as_ref());
    }
    drop(ops);
    if taken.ops > 0 {
        note_end(connection, &row, run)?;
        apply::apply(connection, said, Indexing::Later)?;
    }
    Ok(Ok(taken))
}

/// Whether the device may say this.
fn refuse(connection: &Connection, run: &Run, me: Did) -> Result<Option<Refusal>, Trouble> {
    let author = run.log.device;
    if author == me {
        return Ok(None);
    }
    Ok(match peers::find(connection, author)? {
        None => Some(Refusal::Stranger),
        Some(peer) if peer.is_linked() => None,
        Some(_) if run.next() <= peers::cut_of(connection, author, run.log.epoch)? => None,
        Some(_) => Some(Refusal::Unlinked),
    })
}

fn add_log(connection: &Connection, id: &LogId) -> Result<Option<LogRow>, Trouble> {
    let logs: i64 = connection.prepare_cached("SELECT count(*) FROM log")?.query_row((), |row| row.get(0))?;
    if logs >= LOGS_MAX as i64 {
        return Ok(None);
    }
    let sql = "INSERT INTO log (device, epoch, is_own, next, last_hlc, sealed) VALUES (?1, ?2, 0, 0, 0, 0)";
    connection.prepare_cached(sql)?.execute(params![id.device.public_key(), id.epoch])?;
    find_log(connection, id)
}

/// Whether a run says of what is here the same as what is here.
fn agrees(connection: &Connection, log: &LogRow, run: &Run) -> Result<bool, Trouble> {
    let end = run.next().min(log.next);
    let mut same = true;
    each_head(connection, log.seq, (run.first, end), |number, head, _| {
        same &= run.ops[(number - run.first) as usize].head == *head;
        Ok(())
    })?;
    // The same operations after another beginning are signed too, so what comes before them must be compared.
    Ok(same && run.before == chain_before(connection, log, &run.log, run.first)?)
}

/// Remembers that a log was written in two ways. The own one goes on under a new epoch: what was said here stays said.
fn set_forked(connection: &Connection, log: &LogId, now: Timestamp) -> Result<(), Trouble> {
    let Some(row) = find_log(connection, log)? else { return Ok(()) };
    if row.is_own {
        let sql = "UPDATE op SET chain = NULL, signature = NULL WHERE log = ?1 AND chain IS NOT NULL";
        connection.prepare_cached(sql)?.execute([row.seq])?;
        let sql = "UPDATE log SET epoch = ?2, sealed = 0, chain = NULL WHERE seq = ?1";
        connection.prepare_cached(sql)?.execute(params![row.seq, random_id()?])?;
    } else {
        let sql = "UPDATE log SET forked_at = coalesce(forked_at, ?2) WHERE seq = ?1";
        connection.prepare_cached(sql)?.execute(params![row.seq, now.as_ms()])?;
    }
    Ok(())
}

/// Notes how far a log goes now, and its device's signature there.
fn note_end(connection: &Connection, log: &LogRow, run: &Run) -> Result<(), Trouble> {
    let (next, chain) = (run.next() as i64, run.chain().0);
    let last = run.ops.last().map_or(Hlc::default(), |op| op.head.hlc).max(log.last_hlc);
    let sql = "UPDATE op SET chain = ?3, signature = ?4 WHERE log = ?1 AND number = ?2 - 1";
    connection.prepare_cached(sql)?.execute(params![log.seq, next, chain, run.signature])?;
    let sql = "UPDATE log SET next = ?2, last_hlc = ?3, sealed = ?2, chain = ?4 WHERE seq = ?1";
    connection.prepare_cached(sql)?.execute(params![log.seq, next, last.to_bits() as i64, chain])?;
    Ok(())
}
