//! Opening the database for a person: what is being checked, whether it is this drive's own, and the backup at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tilekit::bundle::{Bundle, Verified};
use tilekit::disk::{self, DiskError};
use tilekit::identity::{Identity, SlotHeader};
use tilekit::logbook::Event;
use tilekit::store::{Access, Along, BackupFile, Lineage, Separation, Step, Store, StoreError};
use tilekit::time::Clock;

use crate::app::App;
use crate::commands::size;
use crate::failure::{Code, Failure};
use crate::terminal::Terminal;

/// What to do where the database isn't the one that this drive had last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unexpected {
    /// Explain it, and ask where there is somebody to ask.
    Ask,
    /// Go on: the person said so, or just put it there with our help.
    Accept,
}

impl App {
    /// Opens the database, with a spinner for its checks, and makes sure that it is the one this drive had last.
    pub(crate) fn open_database(
        &self,
        bundle: &Bundle<Verified>,
        identity: &Identity,
        key: Option<SlotHeader>,
        access: Access,
        unexpected: Unexpected,
    ) -> Result<Store, Failure> {
        let (database, folder, mark) = (bundle.database(), bundle.backups(), bundle.run_mark());
        if Store::has_unfinished_recovery(&database) {
            let why = "a recovery of the database was cut before its end";
            return Err(Failure::new(Code::Integrity, why, "finish it with `tiles data recover`"));
        }
        if unexpected == Unexpected::Ask
            && is_gone(&database)?
            && let Some(mark) = mark.read()?
        {
            return Err(StoreError::Lost { path: database, last_at: mark.last_at }.into());
        }
        let database = if access == Access::ReadWrite {
            bundle.settle_database()?;
            bundle.database()
        } else {
            database
        };
        let store = self.open_checked(&database, identity, access, &folder)?;
        let lineage = store.lineage(&mark, key)?;
        let found = explain(&lineage);
        match (&found, unexpected, access) {
            (None, ..) | (_, Unexpected::Accept, _) => {}
            (Some((what, _)), _, Access::ReadOnly) => self.terminal.warn(what),
            (Some((what, hint)), ..) => self.ask_about(&store, &lineage, what, hint)?,
        }
        if access == Access::ReadWrite {
            store.begin_run(mark, key, self.clock.now())?;
            if found.is_some() {
                // It was gone on with, and isn't asked about again.
                store.accept_lineage()?;
            }
        }
        Ok(store)
    }

    /// Opens the database, says what is being checked meanwhile, and what was found.
    fn open_checked(
        &self,
        database: &Path,
        identity: &Identity,
        access: Access,
        backups: &Path,
    ) -> Result<Store, Failure> {
        let mut spinner = None;
        let mut on_step = |step| {
            let label = step_label(step);
            match &spinner {
                None => spinner = Some(self.terminal.spinner(&label)),
                Some(spinner) => spinner.label(label),
            }
        };
        let mut along = Along { on_step: &mut on_step, was_unclean: self.was_left_unclean(), backups: Some(backups) };
        let (present, previous) = (identity.database_key(), identity.previous_database_keys());
        let opened = Store::open_rotated_along(database, present, previous, access, &mut along);
        drop(spinner);
        let store = opened?;
        if store.opening().recovered {
            self.log(Event::Recovered);
        }
        if store.opening().rekeyed {
            self.terminal.say("Encrypting the database with its new key had been cut; it is finished now.");
        }
        if store.opening().previous_key && access == Access::ReadWrite {
            self.terminal
                .warn("the database is still encrypted with its previous key: there is no room for the new one");
        }
        if store.opening().backup_put_off {
            self.terminal
                .warn("no backup was made before the database was brought up to date: there is too little room");
        }
        Ok(store)
    }

    /// Explains what is unexpected, and goes on only where the person says so.
    fn ask_about(&self, store: &Store, lineage: &Lineage, what: &str, hint: &str) -> Result<(), Failure> {
        let sessions = store.list()?;
        let messages: u64 = sessions.iter().map(|session| session.messages).sum();
        let holds = format!("It holds {} sessions with {messages} messages.", sessions.len());
        if !self.terminal.is_interactive() {
            let hint = format!("{hint}; to go on with it as it is, run `tiles data accept`");
            return Err(Failure::new(Code::Integrity, what.to_owned(), hint));
        }
        self.terminal.warn(what);
        let is_key = matches!(lineage, Lineage::KeyOlder { .. } | Lineage::KeyForked { .. });
        self.terminal.say(if is_key { "Your conversations are all there." } else { &holds });
        self.terminal.say(&format!("You can {hint}. Nothing is ever merged by itself."));
        if self.terminal.confirm("Go on with it as it is?", "tiles data accept")? {
            return Ok(());
        }
        Err(Failure::new(Code::Integrity, "the database was left as it is", hint.to_owned()))
    }
}

/// Whether there is no database, or an empty file, which SQLite would take for a new one.
fn is_gone(database: &Path) -> Result<bool, Failure> {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let is_empty = |path: &Path| disk::size_unopened(path).map(|bytes| bytes.is_none_or(|bytes| bytes == 0));
    Ok(is_empty(database)? && is_empty(Path::new(&log))?)
}

fn step_label(step: Step) -> String {
    match step {
        Step::TakingIn => "Tiles wasn't closed properly: taking in what was said last".into(),
        Step::CheckingPages(bytes) => {
            format!("Tiles wasn't closed properly: checking {} of the database", size(bytes))
        }
        Step::CheckingTables => "Tiles wasn't closed properly: checking the conversations".into(),
        Step::BackingUp => "Backing the database up before it is brought up to date".into(),
        Step::Migrating => "Bringing the database up to date".into(),
        Step::Making => "Making the database".into(),
    }
}

/// What is unexpected, in words, and what can be done; nothing where all is as it should be.
pub(crate) fn explain(lineage: &Lineage) -> Option<(String, &'static str)> {
    Some(match lineage {
        Lineage::Continued => return None,
        Lineage::Older { database_at, drive_at, runs } => {
            let (was, lacks) = match database_at {
                Some(at) => (
                    format!("was last changed at {at}"),
                    match runs {
                        1 => "what was said in the last use".into(),
                        runs => format!("what was said in {runs} later uses"),
                    },
                ),
                None => ("was never used".into(), "everything that was said".into()),
            };
            let what = format!(
                "an older database was put in place: it {was}, and what is here was last used at {drive_at}, so it lacks {lacks}"
            );
            (what, "put the newer `data/db/tiles.db` back if you still have it")
        }
        Lineage::Forked(Separation { parted_at, database_at, database_runs, drive_at, drive_runs }) => {
            let parted = parted_at.map_or("some time ago".into(), |at| format!("after {at}"));
            let newer = if database_at > drive_at { "the one that is here now" } else { "the one that was here" };
            let what = format!(
                "this database comes from another copy of what is here, and both copies were used since they parted {parted}. The \
                 one here now was used {}, last at {database_at}; the one that was here {}, last at {drive_at}. The newer is \
                 {newer}",
                times(*database_runs),
                times(*drive_runs)
            );
            (
                what,
                "put the other `data/db/tiles.db` back, or bring what you miss over: `tiles session export ID --format json` on the other copy, `tiles session import FILE` here",
            )
        }
        Lineage::KeyOlder { key, database } => {
            let what = format!(
                "an older key file was put in place (change {key}; the database was last opened with change {database}), \
                 so the passphrase is the one of that time"
            );
            // Setting the passphrase alone would make it one of another copy: the database knows a change of that number.
            (
                what,
                "put the newer `data/key.a` and `data/key.b` back; without them, go on with it and then set the passphrase again with `tiles key passphrase`",
            )
        }
        Lineage::KeyForked { generation } => {
            let what = format!(
                "the key file comes from another copy of what is here, on which the passphrase was changed too (both are change \
                 {generation})"
            );
            (
                what,
                "put the own `data/key.a` and `data/key.b` back, or set the passphrase again with `tiles key passphrase`",
            )
        }
    })
}

fn times(count: usize) -> String {
    match count {
        1 => "once".into(),
        2 => "twice".into(),
        count => format!("{count} times"),
    }
}

/// What is done when the database is closed: a backup, where one is due.
pub(crate) struct AtExit {
    pub(crate) terminal: Arc<Terminal>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) interrupted: Arc<AtomicBool>,
    pub(crate) folder: PathBuf,
}

impl AtExit {
    /// Backs the database up where that is due. That it can't be now is told in a line, and is no failure: what was said
    /// is safe in the database itself.
    pub(crate) fn back_up(&self, store: &Store, identity: &Identity) {
        let is_stopped = || self.interrupted.load(Ordering::Relaxed);
        if store.access() == Access::ReadOnly || store.opening().previous_key || is_stopped() {
            return;
        }
        match store.is_backup_due(&self.folder, self.clock.now()) {
            Ok(true) => {}
            _ => return,
        }
        match self.make(store, identity, &is_stopped) {
            Ok(_) => {}
            Err(StoreError::Interrupted) => self.terminal.say("Today's backup was put off."),
            Err(StoreError::Disk(DiskError::Full { .. })) => {
                self.terminal.warn("there is too little room for today's backup; everything said is stored");
            }
            Err(error) => self.terminal.warn(&format!("today's backup wasn't made: {error}")),
        }
    }

    /// Makes a backup now.
    pub(crate) fn make(
        &self,
        store: &Store,
        identity: &Identity,
        is_stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<BackupFile, StoreError> {
        let bytes = disk::size_unopened(store.path())?.unwrap_or(0);
        let _spinner = self.terminal.spinner(&format!("Backing up {} (Ctrl-C puts it off)", size(bytes)));
        store.back_up(&self.folder, identity.database_key(), is_stopped)
    }
}
