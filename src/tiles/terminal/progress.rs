//! Bars for work whose size is known and spinners for work whose size isn't: on stderr, only on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a spinner turns.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// A bar or a spinner; it is wiped off the screen when it is dropped. Where there is no terminal it does nothing.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shows a bar for a number of bytes, with the speed and the time that is left.
    pub(crate) fn bar(visible: bool, width: usize, label: &str, total_bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target(visible));
        bar.set_style(style(bar_template(width)).progress_chars("=> "));
        bar.set_message(label.to_owned());
        Self { bar }
    }

    /// Shows a spinner.
    pub(crate) fn spinner(visible: bool, label: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(visible));
        bar.set_style(style("{spinner} {wide_msg}").tick_chars("-\\|/ "));
        bar.set_message(label.to_owned());
        if visible {
            bar.enable_steady_tick(SPINNER_TICK);
        }
        Self { bar }
    }

    /// Says how many bytes were done before anything was measured: they don't count for the speed.
    pub(crate) fn begin_at(&self, done_bytes: u64) {
        self.bar.set_position(done_bytes);
        self.bar.reset_eta();
    }

    /// Says how many bytes are done in all.
    pub(crate) fn set(&self, done_bytes: u64) {
        self.bar.set_position(done_bytes);
    }

    /// Changes what a spinner says.
    pub(crate) fn label(&self, label: String) {
        self.bar.set_message(label);
    }

    /// Says that more bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn target(visible: bool) -> ProgressDrawTarget {
    if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// What fits into a width: a line that wraps could not be painted over.
fn bar_template(width: usize) -> &'static str {
    match width {
        0..32 => "{percent:>3}% {eta:>4}",
        32..72 => "{wide_msg} {percent:>3}% {eta:>4}",
        _ => "{msg} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta:>4}",
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed_and_hidden_bars_count() {
        for width in [20, 40, 80] {
            assert!(ProgressStyle::with_template(bar_template(width)).is_ok());
        }
        let progress = Progress::bar(false, 80, "Verifying", 100);
        progress.set(40);
        progress.add(2);
        assert_eq!((progress.bar.position(), progress.bar.is_hidden()), (42, true));
        assert!(Progress::spinner(false, "Loading").bar.is_hidden());
    }
}
