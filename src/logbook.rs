//! The log in the bundle: when Tiles started and how it ended, so that trouble can be understood afterwards.
//!
//! An [`Event`] has no text but what was compiled in: nothing that was said, no secret, no name of the host's files can
//! get into the log. It is bounded in size and number, and written without waiting for the medium.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::disk::{self, DiskError, Kind};
use crate::time::Timestamp;

/// From which size on a new log is begun, in bytes: some 4 000 events.
pub const LOG_BYTES_MAX: u64 = 256 << 10;
/// How many logs are kept, with the one that is written.
pub const LOGS_KEPT: usize = 4;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The program took the bundle.
    Started {
        /// Its version.
        version: &'static str,
    },
    /// The one before didn't give the bundle back.
    Unclean,
    /// A database with something to take in was checked, and is sound.
    Recovered,
    /// A command ended with an error.
    Failed {
        /// The exit code.
        code: u8,
        /// The error's type.
        kind: &'static str,
    },
    /// A command ended well, or was interrupted.
    Ended {
        /// The exit code.
        code: u8,
    },
    /// A defect of ours.
    Panicked {
        /// Which of our sources; see [`Event::panicked`].
        file: String,
        /// The line there.
        line: u32,
    },
}

impl Event {
    /// A panic at a place that was compiled in. Of a crate's file only that it is one is kept: its path is of the machine
    /// that built the program. The panic's own words are never kept, for they may quote what was said.
    pub fn panicked(file: &str, line: u32) -> Self {
        let is_ours =
            file.starts_with("src/") && file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_.".contains(&byte));
        Self::Panicked { file: if is_ours { file.into() } else { "a-dependency".into() }, line }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { version } => write!(f, "started version={version}"),
            Self::Unclean => f.write_str("unclean the last exit"),
            Self::Recovered => f.write_str("recovered"),
            Self::Failed { code, kind } => write!(f, "failed code={code} error={kind}"),
            Self::Ended { code } => write!(f, "ended code={code}"),
            Self::Panicked { file, line } => write!(f, "panicked at={file}:{line}"),
        }
    }
}

/// An open log.
#[derive(Debug)]
pub struct Logbook {
    file: Mutex<File>,
    path: PathBuf,
}

impl Logbook {
    /// Opens the log in `folder`, and begins a new one where it is full.
    ///
    /// # Errors
    /// What writing can meet. A link or anything else in the place of a log is refused.
    pub fn open(folder: &Path) -> Result<Self, DiskError> {
        disk::create_folder(folder)?;
        let path = log_path(folder, 0);
        if disk::kind(&path)?.is_some_and(|kind| kind != Kind::File) {
            return Err(DiskError::Exists { path });
        }
        if disk::size_unopened(&path)?.is_some_and(|bytes| bytes >= LOG_BYTES_MAX) {
            disk::remove(&log_path(folder, LOGS_KEPT - 1))?;
            for number in (0..LOGS_KEPT - 1).rev() {
                let from = log_path(folder, number);
                if disk::exists(&from) {
                    disk::rename(&from, &log_path(folder, number + 1))?;
                }
            }
        }
        let file = Mutex::new(disk::open_to_append(&path)?);
        Ok(Self { file, path })
    }

    /// Adds an event.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn add(&self, at: Timestamp, event: Event) -> Result<(), DiskError> {
        let file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        disk::append(&file, &self.path, format!("{at} {event}\n").as_bytes())
    }
}

fn log_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(match number {
        0 => "tiles.log".to_owned(),
        number => format!("tiles.{number}.log"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn events_are_lines_and_logs_are_bounded() {
        let folder = TestFolder::new();
        let at = Timestamp::from_ms(1_795_688_340_000);
        let log = Logbook::open(folder.path()).expect("it can be made");
        log.add(at, Event::Started { version: "1.2.3" }).expect("it can be written");
        log.add(at, Event::Failed { code: 5, kind: "StoreError" }).expect("it can be written");
        let path = folder.path().join("tiles.log");
        let text = std::fs::read_to_string(&path).expect("it is there");
        let expected =
            "2026-11-26T10:19:00Z started version=1.2.3\n2026-11-26T10:19:00Z failed code=5 error=StoreError\n";
        assert_eq!(text, expected);
        for round in 0..6 {
            std::fs::write(&path, vec![b'x'; LOG_BYTES_MAX as usize + round]).expect("it can be written");
            Logbook::open(folder.path()).expect("it can be made");
            assert_eq!(std::fs::metadata(&path).expect("it is there").len(), 0);
        }
        let mut sizes: Vec<u64> = std::fs::read_dir(folder.path())
            .expect("it is there")
            .map(|entry| entry.expect("it can be listed").metadata().expect("it is there").len())
            .collect();
        sizes.sort_unstable();
        let kept: Vec<u64> = [3, 4, 5].map(|round| LOG_BYTES_MAX + round).into();
        assert_eq!(sizes, [vec![0], kept].concat());
    }

    #[test]
    fn a_panic_is_told_by_its_place_alone() {
        for (file, expected) in [
            ("src/store.rs", "panicked at=src/store.rs:7"),
            ("/home/ada/.cargo/registry/x.rs", "panicked at=a-dependency:7"),
            ("src/\u{1b}[2J", "panicked at=a-dependency:7"),
        ] {
            assert_eq!(Event::panicked(file, 7).to_string(), expected);
        }
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let folder = TestFolder::new();
        let victim = folder.path().join("victim");
        std::os::unix::fs::symlink(&victim, folder.path().join("tiles.log")).expect("it can be linked");
        assert!(Logbook::open(folder.path()).is_err());
        assert!(!victim.exists());
    }
}
