//! Lineage: whether the database continues what this drive did last, or comes from an older time or from another copy.
//!
//! The database lists the runs that changed it; the drive's mark ([`RunMark`]) names the last of them. The database goes
//! first, so a cut between the two leaves a database that is ahead of its mark by a run that follows the mark's last one.
//! A run that only reads leaves no trace in either.

use rusqlite::{Connection, params};

use super::error::{StoreError, Trouble};
use super::{Store, random_id, row};
use crate::bundle::{RunMark, RunMarkFile};
use crate::identity::SlotHeader;
use crate::time::Timestamp;

/// How many runs the database keeps.
const RUNS_KEPT: i64 = 2_000;

/// A run that changed the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its id, drawn by lot.
    pub id: [u8; 16],
    /// When it began.
    pub started_at: Timestamp,
    /// The header of the key file that it had, where there was one.
    pub key: Option<SlotHeader>,
}

impl Run {
    fn tag(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.id;
        [a, b, c, d, e, f, g, h]
    }
}

/// The two sides of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Separation {
    /// When the last run before they parted began, where it is still known.
    pub parted_at: Option<Timestamp>,
    /// When the database was last changed.
    pub database_at: Timestamp,
    /// How many runs changed it since they parted, as far as known.
    pub database_runs: usize,
    /// When this drive last changed its database.
    pub drive_at: Timestamp,
    /// How many runs did so since they parted, as far as known.
    pub drive_runs: usize,
}

/// How the database stands to what this drive did last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// It goes on from there, or nothing is known that says otherwise.
    Continued,
    /// It is as it was some runs ago: an older copy was put back.
    Older {
        /// When it was last changed; `None` for one that never was.
        database_at: Option<Timestamp>,
        /// When this drive last changed its database.
        drive_at: Timestamp,
        /// How many runs it lacks.
        runs: usize,
    },
    /// It comes from another copy of this drive, and both were used since they parted.
    Forked(Separation),
    /// The key file is older than the database: an old one was put back, with the passphrase it had then.
    KeyOlder {
        /// The key file's generation.
        key: u64,
        /// The generation that the database had last.
        database: u64,
    },
    /// The key file comes from another copy of this drive, on which it was changed too.
    KeyForked {
        /// The generation that both have.
        generation: u64,
    },
}

/// This run of the program, before and after it first changes the database.
#[derive(Debug)]
pub(super) struct ThisRun {
    run: Run,
    mark: RunMarkFile,
    /// Whether the database names it already.
    is_recorded: bool,
}

impl Store {
    /// How the database stands to the drive's mark and to the key file with the header `key`. Changes nothing.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn lineage(&self, mark: &RunMarkFile, key: Option<SlotHeader>) -> Result<Lineage, StoreError> {
        let mark = mark.read().map_err(Box::new)?;
        let runs = self.runs()?;
        Ok(compare(&runs, mark.as_ref(), key))
    }

    /// Makes this run known: its first change is recorded in the database, together with the change, and in the mark.
    ///
    /// Going on with a database that is older or forked makes it this drive's own from then on.
    ///
    /// # Errors
    /// [`StoreError::Random`].
    pub fn begin_run(&self, mark: RunMarkFile, key: Option<SlotHeader>, now: Timestamp) -> Result<(), StoreError> {
        let run = Run { id: random_id()?, started_at: now, key };
        self.run.replace(Some(ThisRun { run, mark, is_recorded: false }));
        Ok(())
    }

    /// Records this run now, though it changes nothing else: for who accepts a database that isn't the one expected.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn accept_lineage(&self) -> Result<(), StoreError> {
        self.write(|_| Ok(()))
    }

    /// Whether this run changed anything.
    pub fn has_changed(&self) -> bool {
        self.run.borrow().as_ref().is_some_and(|this| this.is_recorded)
    }

    /// Whether the next change is the first of a run that is known.
    pub(super) fn is_first_change(&self) -> bool {
        self.run.borrow().as_ref().is_some_and(|this| !this.is_recorded)
    }

    /// The runs that changed the database, the last one last.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn runs(&self) -> Result<Vec<Run>, StoreError> {
        self.read(runs)
    }

    /// Adds this run to the transaction that is its first, and says whether it did.
    pub(super) fn record_run(&self, transaction: &Connection) -> Result<bool, Trouble> {
        match &*self.run.borrow() {
            Some(this) if !this.is_recorded => insert(transaction, &this.run).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Marks this run on the drive, once it is in the database. Where that fails the next run finds a database that is
    /// ahead of its mark, as after a cut; what was changed is safe already, so it is no reason to report a failure.
    pub(super) fn mark_run(&self) {
        let mut this = self.run.borrow_mut();
        let Some(this) = this.as_mut() else { return };
        this.is_recorded = true;
        let _ = this.mark.read().and_then(|previous| {
            this.mark.write(&RunMark::after(previous.as_ref(), this.run.tag(), this.run.started_at))
        });
    }
}

/// The runs of a database, the last one last.
pub(super) fn runs(connection: &Connection) -> Result<Vec<Run>, Trouble> {
    let sql = "SELECT id, started_at, key_generation, key_run_id FROM run ORDER BY seq DESC LIMIT ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([RUNS_KEPT])?;
    let mut runs = Vec::new();
    while let Some(found) = rows.next()? {
        let key = match row::optional_count(found, 2)? {
            Some(generation) => Some(SlotHeader { generation, run_id: row::id(found, 3)? }),
            None => None,
        };
        runs.push(Run { id: row::id(found, 0)?, started_at: row::moment(found, 1)?, key });
    }
    runs.reverse();
    Ok(runs)
}

/// Writes a run, and forgets the oldest.
pub(super) fn insert(connection: &Connection, run: &Run) -> Result<(), Trouble> {
    let sql = "INSERT INTO run (id, started_at, key_generation, key_run_id) VALUES (?1, ?2, ?3, ?4)";
    let generation = run.key.map(|key| i64::try_from(key.generation).unwrap_or(i64::MAX));
    let run_id = run.key.map(|key| key.run_id);
    let seq = connection.prepare_cached(sql)?.insert(params![run.id, run.started_at.as_ms(), generation, run_id])?;
    connection.prepare_cached("DELETE FROM run WHERE seq <= ?1")?.execute([seq.saturating_sub(RUNS_KEPT)])?;
    Ok(())
}

/// How a database with `runs` stands to the drive's mark and key file.
fn compare(runs: &[Run], mark: Option<&RunMark>, key: Option<SlotHeader>) -> Lineage {
    if let Some((mark, drive_last)) = mark.and_then(|mark| Some((mark, mark.runs.last()?))) {
        let place = |run: &Run| mark.runs.iter().rposition(|tag| *tag == run.tag());
        // Where the mark's last run is in the list, the database is the same or ahead of it: nothing is lost.
        if !runs.iter().any(|run| run.tag() == *drive_last) {
            let drive_at = mark.last_at;
            let Some(last) = runs.last() else {
                return Lineage::Older { database_at: None, drive_at, runs: mark.runs.len() };
            };
            if let Some(place) = place(last) {
                let lacking = mark.runs.len() - 1 - place;
                return Lineage::Older { database_at: Some(last.started_at), drive_at, runs: lacking };
            }
            let common = runs.iter().enumerate().rev().find_map(|(idx, run)| Some((idx, place(run)?, run.started_at)));
            return Lineage::Forked(Separation {
                parted_at: common.map(|(_, _, at)| at),
                database_at: last.started_at,
                database_runs: common.map_or(runs.len(), |(idx, _, _)| runs.len() - 1 - idx),
                drive_at,
                drive_runs: common.map_or(mark.runs.len(), |(_, place, _)| mark.runs.len() - 1 - place),
            });
        }
    }
    match (key, runs.last().and_then(|run| run.key)) {
        (Some(now), Some(last)) if now.generation < last.generation => {
            Lineage::KeyOlder { key: now.generation, database: last.generation }
        }
        (Some(now), Some(last)) if now.generation == last.generation && now.run_id != last.run_id => {
            Lineage::KeyForked { generation: now.generation }
        }
        _ => Lineage::Continued,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u8, key: Option<(u64, u8)>) -> Run {
        let key = key.map(|(generation, id)| SlotHeader { generation, run_id: [id; 16] });
        Run { id: [n; 16], started_at: Timestamp::from_ms(i64::from(n)), key }
    }

    fn mark(runs: &[u8]) -> Option<RunMark> {
        let last = *runs.last()?;
        let runs = runs.iter().map(|n| [*n; 8]).collect();
        Some(RunMark { count: 1, last_at: Timestamp::from_ms(i64::from(last)), runs })
    }

    #[test]
    fn a_database_is_compared_with_the_drive() {
        let at = |ms| Timestamp::from_ms(ms);
        let forked = |parted: Option<i64>, database: (i64, usize), drive: (i64, usize)| {
            Lineage::Forked(Separation {
                parted_at: parted.map(at),
                database_at: at(database.0),
                database_runs: database.1,
                drive_at: at(drive.0),
                drive_runs: drive.1,
            })
        };
        let older = |database: Option<i64>, drive, runs| Lineage::Older {
            database_at: database.map(at),
            drive_at: at(drive),
            runs,
        };
        for (database, drive, expected) in [
            (&[][..], &[][..], Lineage::Continued),
            (&[1, 2], &[], Lineage::Continued),
            (&[1, 2], &[1, 2], Lineage::Continued),
            // The mark of the last run was cut, or the copy here was never used since.
            (&[1, 2, 3], &[1, 2], Lineage::Continued),
            (&[1, 2, 3, 4], &[2], Lineage::Continued),
            (&[1], &[1, 2, 3], older(Some(1), 3, 2)),
            (&[], &[1, 2], older(None, 2, 2)),
            (&[1, 2, 5, 6], &[1, 2, 3], forked(Some(2), (6, 2), (3, 1))),
            (&[5], &[1, 2], forked(None, (5, 1), (2, 2))),
        ] {
            let runs: Vec<Run> = database.iter().map(|n| run(*n, None)).collect();
            assert_eq!(compare(&runs, mark(drive).as_ref(), None), expected, "{database:?} {drive:?}");
        }
    }

    #[test]
    fn a_database_is_compared_with_the_key_file() {
        for (last, now, expected) in [
            (None, Some((1, 1)), Lineage::Continued),
            (Some((1, 1)), None, Lineage::Continued),
            (Some((1, 1)), Some((1, 1)), Lineage::Continued),
            (Some((1, 1)), Some((2, 9)), Lineage::Continued),
            (Some((3, 1)), Some((2, 9)), Lineage::KeyOlder { key: 2, database: 3 }),
            (Some((2, 1)), Some((2, 9)), Lineage::KeyForked { generation: 2 }),
        ] {
            let header = |(generation, id)| SlotHeader { generation, run_id: [id; 16] };
            let found = compare(&[run(1, last)], mark(&[1]).as_ref(), now.map(header));
            assert_eq!(found, expected, "{last:?} {now:?}");
        }
    }
}
