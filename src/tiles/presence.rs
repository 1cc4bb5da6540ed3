//! Looks after the drive while nobody touches it: when it is pulled out, Tiles ends, and with it every key in memory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tilekit::disk::{DiskError, UncachedFile};

use crate::failure::Failure;
use crate::terminal::Terminal;

/// How often the drive is asked whether it is there. With the second question, what happened is said within two seconds.
const EVERY: Duration = Duration::from_millis(1_000);
/// How long after a failed reading it is asked once more: a hub that resets its ports is no drive that was pulled out.
const AGAIN: Duration = Duration::from_millis(300);

/// Who says how the program ended: the thread that takes this first, and it never gives it back.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastWord(Arc<Mutex<()>>);

impl LastWord {
    /// Waits for ever where another thread took it.
    pub(crate) fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the drive by the file at `path`, which is read again and again, until the program ends.
///
/// When it can't be read any more this says so, puts the terminal back and ends the program at once, whatever the other
/// threads are at: the system takes their memory, and with it keys and conversation, and what was acknowledged is on the
/// drive. Nothing is closed, as there is nothing to close it on.
pub(crate) fn watch(path: PathBuf, terminal: Arc<Terminal>, last_word: LastWord) {
    // What can't be read now is told by what needs it.
    let Ok(mut file) = UncachedFile::open(&path) else { return };
    std::thread::spawn(move || {
        let error = loop {
            std::thread::sleep(EVERY);
            if file.probe().is_ok() {
                continue;
            }
            std::thread::sleep(AGAIN);
            if let Err(error) = file.probe() {
                break error;
            }
        };
        let failure = Failure::from(gone(error, &path));
        let _last_word = last_word.take();
        terminal.leave();
        terminal.error(&*failure.error, failure.hint.as_deref());
        // Not `exit`: that would run what libraries have registered while other threads still use it.
        signal_hook::low_level::exit(i32::from(failure.code as u8));
    });
}

/// The same error whatever the system says about a drive that isn't there.
fn gone(error: DiskError, path: &Path) -> DiskError {
    match error {
        DiskError::Other { source, .. } => DiskError::Gone { path: path.into(), source },
        DiskError::NotFound { path } => DiskError::Gone { path, source: std::io::ErrorKind::NotFound.into() },
        error => error,
    }
}
