//! The terminal's input modes: changed for a while, and always put back.
//!
//! Modes are set with `TCSANOW`. `TCSAFLUSH` would throw away what the person typed ahead while we were busy.

use std::sync::{Mutex, PoisonError};

use rustix::termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// Remembers the modes that the terminal on stdin had before we changed them.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    before: Mutex<Option<Termios>>,
}

impl Modes {
    /// Lets keys arrive one by one and unseen, until the guard is dropped. Return stays `\r`, which is what a line editor
    /// expects of keys that were typed before it started.
    ///
    /// With `signals`, Ctrl-C still interrupts; without, it arrives as a key. Does nothing where stdin is no terminal.
    pub(crate) fn raw(&self, signals: bool) -> RawMode<'_> {
        let stdin = std::io::stdin();
        let Ok(now) = tcgetattr(&stdin) else { return RawMode { modes: self, outer: None } };
        self.lock().get_or_insert_with(|| now.clone());
        let mut raw = now.clone();
        raw.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
        raw.local_modes.set(LocalModes::ISIG, signals);
        raw.input_modes -= InputModes::ICRNL | InputModes::INLCR | InputModes::IGNCR;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        // A terminal that refuses stays as it is: then the kernel edits the line, and the caller reads it just the same.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        RawMode { modes: self, outer: Some(now) }
    }

    /// Puts the terminal back as it was before the first change.
    pub(crate) fn restore(&self) {
        if let Some(before) = &*self.lock() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Termios>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the terminal from showing what is typed; dropping it, also when a panic unwinds, puts the modes back.
#[must_use = "the mode lasts as long as this value"]
pub(crate) struct RawMode<'a> {
    modes: &'a Modes,
    outer: Option<Termios>,
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        match &self.outer {
            Some(outer) if tcsetattr(std::io::stdin(), OptionalActions::Now, outer).is_ok() => {}
            Some(_) => self.modes.restore(),
            None => {}
        }
    }
}

/// Says whether a whole line was typed ahead while the terminal edited lines itself: reading it then doesn't wait.
pub(crate) fn has_typed_line() -> bool {
    let stdin = std::io::stdin();
    let edits_lines = tcgetattr(&stdin).is_ok_and(|modes| modes.local_modes.contains(LocalModes::ICANON));
    // In this mode the kernel counts only the bytes of finished lines.
    edits_lines && rustix::io::ioctl_fionread(&stdin).is_ok_and(|bytes| bytes > 0)
}
