//! One program at a time: a lock that says who holds it, and that is left by a program that was killed.
//!
//! The lock proper is the operating system's, which ends with the process. What is written in the file is for people, and
//! tells an unclean exit: it is blanked when the lock is given back. The file keeps one length and is written in place,
//! so that holding the bundle needs no space on a full drive.

use std::fmt;
use std::fs::File;
use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};
use serde::Deserialize;

use super::BundleError;
use crate::disk::{self, DiskError, Kind};
use crate::host::{HOST_NAME_BYTES_MAX, Host};
use crate::time::Timestamp;

/// The length of the lock file, in bytes.
const LOCK_BYTES: usize = 512;

/// Who has a bundle open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The name of the machine.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// Which run of the machine; see [`Host::boot_id`].
    pub boot_id: String,
    /// Since when.
    pub since: Timestamp,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` since {} (process {})", self.host, self.since, self.pid)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    host: String,
    pid: u32,
    boot_id: String,
    since_ms: i64,
}

impl Holder {
    /// The process `pid` on the machine `host`.
    pub fn new(now: Timestamp, host: &Host, pid: u32) -> Self {
        Self { host: host.name.clone(), pid, boot_id: host.boot_id.clone(), since: now }
    }

    fn to_content(&self) -> Vec<u8> {
        // Both names are plain (see `Host::probe`), so they need no escapes.
        let Self { host, pid, boot_id, since } = self;
        let text = format!("host = \"{host}\"\npid = {pid}\nboot_id = \"{boot_id}\"\nsince_ms = {}\n", since.as_ms());
        let mut content = text.into_bytes();
        content.resize(LOCK_BYTES, b'\n');
        content
    }

    fn from_content(content: &[u8]) -> Option<Self> {
        let wire: Wire = toml::from_str(std::str::from_utf8(content).ok()?).ok()?;
        let plain = |name: &str| {
            (1..=HOST_NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let known = plain(&wire.host) && plain(&wire.boot_id);
        known.then(|| Self {
            host: wire.host,
            pid: wire.pid,
            boot_id: wire.boot_id,
            since: Timestamp::from_ms(wire.since_ms),
        })
    }

    /// Whether the process can still run: on this run of this machine, and there.
    fn may_run(&self, here: &Self) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        self.boot_id == here.boot_id
            && pid.is_some_and(|pid| !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
    }
}

/// How the one before gave a bundle back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastExit {
    /// Properly, or there was none.
    Clean,
    /// Not at all: it was killed, or the drive was pulled. Says who, where that could be read.
    Unclean(Option<Holder>),
}

/// Who has a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockState {
    /// Nobody; and how it was given back.
    Free(LastExit),
    /// Another process.
    Held(Option<Holder>),
}

impl LockState {
    pub(super) fn read(path: &Path) -> Result<Self, BundleError> {
        let file = match disk::open(path) {
            Ok((file, _)) => file,
            Err(error) if error.is_not_found() => return Ok(Self::Free(LastExit::Clean)),
            Err(error) => return Err(error.into()),
        };
        let content = disk::read(path, LOCK_BYTES as u64).unwrap_or_else(|_| b"unreadable".to_vec());
        let last = Holder::from_content(&content);
        Ok(match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Self::Held(last),
            _ if content.iter().all(u8::is_ascii_whitespace) => Self::Free(LastExit::Clean),
            _ => Self::Free(LastExit::Unclean(last)),
        })
    }
}

/// A bundle held by this process until it is dropped; on a read-only drive nothing is held, and nothing needs to be.
#[derive(Debug)]
pub struct BundleLock {
    file: Option<File>,
    path: PathBuf,
    last_exit: LastExit,
    /// What the file has after this process: blank, or the mark of an unclean exit that nobody has looked into yet.
    left: Vec<u8>,
}

impl BundleLock {
    pub(super) fn take(data: &Path, path: &Path, is_read_only: bool, holder: Holder) -> Result<Self, BundleError> {
        let not_held = || Self { file: None, path: path.into(), last_exit: LastExit::Clean, left: Vec::new() };
        if is_read_only {
            return Ok(not_held());
        }
        // A link would make Tiles write somewhere else; a pipe would make it wait.
        for (path, expected) in [(data, Kind::Folder), (path, Kind::File)] {
            if disk::kind(path)?.is_some_and(|kind| kind != expected) {
                return Err(BundleError::WrongKind { path: path.into() });
            }
        }
        let opened = disk::create_folder(data).and_then(|()| disk::open_or_create(path));
        let file = match opened {
            Err(DiskError::ReadOnly { .. }) => return Ok(not_held()),
            opened => opened?,
        };
        let locked = file.try_lock();
        let content = disk::read(path, LOCK_BYTES as u64).unwrap_or_else(|_| b"unreadable".to_vec());
        let last = Holder::from_content(&content);
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BundleError::InUse { holder: last }),
            // A file system without locks: what is written decides.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                if last.as_ref().is_some_and(|last| last.may_run(&holder)) {
                    return Err(BundleError::InUse { holder: last });
                }
            }
            Err(TryLockError::Error(e)) => return Err(DiskError::new("lock", path, e).into()),
        }
        match disk::overwrite(&file, path, &holder.to_content()) {
            // The lock holds all the same; only its holder's name is missing.
            Ok(()) | Err(DiskError::Full { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let is_blank = content.iter().all(u8::is_ascii_whitespace);
        let last_exit = if is_blank { LastExit::Clean } else { LastExit::Unclean(last) };
        let mut left = content;
        left.resize(LOCK_BYTES, b'\n');
        Ok(Self { file: Some(file), path: path.into(), last_exit, left })
    }

    /// Whether the bundle is held; it isn't where nothing can be written.
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }

    /// How the one before gave the bundle back. After an unclean exit the database wants to be checked.
    pub fn last_exit(&self) -> &LastExit {
        &self.last_exit
    }

    /// Notes that what an unclean exit may have done to the database was looked into. Without that the mark of such an
    /// exit is there again when the bundle is given back, for whoever opens the database.
    pub fn settle(&mut self) {
        self.left = vec![b'\n'; LOCK_BYTES];
    }
}

impl Drop for BundleLock {
    fn drop(&mut self) {
        // What a defect of ours ends is an unclean exit.
        if let Some(file) = self.file.take().filter(|_| !std::thread::panicking()) {
            // A pulled drive can't be told; the next to open it then knows of an unclean exit, which it was.
            let _ = disk::overwrite(&file, &self.path, &self.left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    fn holder(host: &str, boot_id: &str) -> Holder {
        let since = Timestamp::from_ms(1_795_688_340_000);
        Holder { host: host.into(), pid: std::process::id(), boot_id: boot_id.into(), since }
    }

    fn take(folder: &TestFolder, holder: Holder) -> Result<BundleLock, BundleError> {
        let data = folder.path().join("data");
        BundleLock::take(&data, &data.join("lock"), false, holder)
    }

    #[test]
    fn the_second_is_told_who_has_it_and_the_next_gets_it() {
        let folder = TestFolder::new();
        let first = take(&folder, holder("kitchen", "b1")).expect("nobody has it");
        assert!(first.is_held());
        assert_eq!(first.last_exit(), &LastExit::Clean);
        let error = take(&folder, holder("desk", "b1")).expect_err("it is in use");
        let expected =
            format!("the bundle is in use by `kitchen` since 2026-11-26T10:19:00Z (process {})", std::process::id());
        assert_eq!(error.to_string(), expected);
        drop(first);
        let next = take(&folder, holder("desk", "b1")).expect("it was given back");
        assert_eq!(next.last_exit(), &LastExit::Clean);
    }

    #[test]
    fn what_a_killed_program_left_is_taken_over() {
        let folder = TestFolder::new();
        let path = folder.path().join("data/lock");
        disk::create_folder(&folder.path().join("data")).expect("it can be made");
        let killed = holder("kitchen", "b1");
        let cut: &[u8] = b"host = \"kit";
        let hostile: &[u8] = b"host = \"\\u001b[2J\"\npid = 1\nboot_id = \"b\"\nsince_ms = 0\n";
        let too_long = &[b'x'; 5000];
        for (content, expected) in [
            (killed.to_content().as_slice(), LastExit::Unclean(Some(killed.clone()))),
            (cut, LastExit::Unclean(None)),
            (hostile, LastExit::Unclean(None)),
            (&[0xff; LOCK_BYTES], LastExit::Unclean(None)),
            (&[b'\n'; LOCK_BYTES], LastExit::Clean),
            (b"", LastExit::Clean),
        ] {
            std::fs::write(&path, content).expect("it can be written");
            // Who doesn't look into it leaves it as it was found.
            for _ in 0..2 {
                assert_eq!(take(&folder, holder("desk", "b2")).expect("no one has it").last_exit(), &expected);
            }
            take(&folder, holder("desk", "b2")).expect("no one has it").settle();
            assert_eq!(take(&folder, holder("desk", "b2")).expect("no one has it").last_exit(), &LastExit::Clean);
        }
        std::fs::write(&path, too_long).expect("it can be written");
        let lock = take(&folder, holder("desk", "b2")).expect("no one has it");
        assert_eq!(lock.last_exit(), &LastExit::Unclean(None));
        assert_eq!(std::fs::metadata(&path).expect("it is there").len(), LOCK_BYTES as u64);
    }

    #[test]
    fn a_link_instead_of_the_lock_is_refused_and_its_target_untouched() {
        let folder = TestFolder::new();
        disk::create_folder(&folder.path().join("data")).expect("it can be made");
        let victim = folder.path().join("victim");
        std::fs::write(&victim, b"precious").expect("it can be written");
        std::os::unix::fs::symlink(&victim, folder.path().join("data/lock")).expect("it can be linked");
        assert!(matches!(take(&folder, holder("desk", "b1")), Err(BundleError::WrongKind { .. })));
        assert_eq!(std::fs::read(&victim).expect("it is there"), b"precious");
    }

    #[test]
    fn without_system_locks_the_boot_and_the_process_decide() {
        let here = holder("desk", "b1");
        assert!(holder("desk", "b1").may_run(&here), "this very process");
        assert!(!holder("desk", "b0").may_run(&here), "before the machine was started");
        assert!(!Holder { pid: u32::MAX, ..here.clone() }.may_run(&here), "no such process");
        assert!(!Holder { pid: 0, ..here.clone() }.may_run(&here), "no process at all");
    }

    #[test]
    fn on_a_read_only_drive_nothing_is_written() {
        let folder = TestFolder::new();
        let data = folder.path().join("data");
        let lock = BundleLock::take(&data, &data.join("lock"), true, holder("desk", "b1")).expect("it may be read");
        assert!(!lock.is_held() && !disk::exists(&data));
    }
}
