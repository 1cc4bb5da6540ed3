//! A model's thoughts on the terminal: dim, in full, or folded into one line that says how long they are.

use std::time::Instant;

use crate::terminal::escape::Neutraliser;
use crate::terminal::progress::Progress;
use crate::terminal::style::paint;
use crate::terminal::{Stream, Terminal};

/// Thoughts that come before an answer. Without a terminal on stderr they aren't shown.
pub(crate) struct Thoughts<'a> {
    terminal: &'a Terminal,
    folds: bool,
    neutraliser: Neutraliser,
    /// While the model thinks: since when, and how many words so far.
    thinking: Option<Thinking>,
}

struct Thinking {
    since: Instant,
    words: usize,
    in_word: bool,
    spinner: Option<Progress>,
}

impl<'a> Thoughts<'a> {
    /// Shows them in full, or `folds` them.
    pub(crate) fn new(terminal: &'a Terminal, folds: bool) -> Self {
        Self { terminal, folds, neutraliser: Neutraliser::default(), thinking: None }
    }

    /// Shows the next piece of them.
    pub(crate) fn show(&mut self, text: &str) {
        if !self.terminal.is_terminal(Stream::Err) {
            return;
        }
        let (terminal, folds) = (self.terminal, self.folds);
        let thinking = self.thinking.get_or_insert_with(|| Thinking {
            since: Instant::now(),
            words: 0,
            in_word: false,
            spinner: (folds && !terminal.is_dumb()).then(|| terminal.spinner("Thinking")),
        });
        for character in text.chars() {
            let is_word = !character.is_whitespace();
            thinking.words += usize::from(is_word && !thinking.in_word);
            thinking.in_word = is_word;
        }
        if folds {
            if let Some(spinner) = &thinking.spinner {
                spinner.label(format!("Thinking: {} words", thinking.words));
            }
        } else {
            let shown = self.neutraliser.feed(text);
            terminal.say_piece(&paint(terminal.styles(Stream::Err).dim, &shown));
        }
    }

    /// Ends them: the answer comes, or nothing more.
    pub(crate) fn finish(&mut self) {
        let Some(thinking) = self.thinking.take() else { return };
        drop(thinking.spinner);
        if self.folds {
            let seconds = thinking.since.elapsed().as_secs_f64();
            let line = format!("Thought for {seconds:.1} s, {} words; /thoughts shows them.\n", thinking.words);
            self.terminal.say(&paint(self.terminal.styles(Stream::Err).dim, &line));
        } else {
            self.terminal.say_piece("\n\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::terminal::TerminalSettings;
    use crate::terminal::style::TerminalEnv;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics while it writes").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What stderr shows of two thoughts in three pieces.
    fn shown(folds: bool, is_terminal: bool) -> String {
        let err = Shared::default();
        let env = TerminalEnv { term: Some("dumb".into()), ..TerminalEnv::default() };
        let settings = TerminalSettings { env, ..TerminalSettings::default() };
        let terminal = Terminal::over(settings, Box::new(Shared::default()), Box::new(err.clone()), [is_terminal; 3]);
        let mut thoughts = Thoughts::new(&terminal, folds);
        ["One tho", "ught, \u{1b}]0;title\u{7}", "two"].into_iter().for_each(|piece| thoughts.show(piece));
        thoughts.finish();
        thoughts.finish();
        String::from_utf8(err.0.lock().expect("no test panics while it writes").clone()).expect("text is shown")
    }

    #[test]
    fn thoughts_are_shown_folded_or_not_at_all() {
        assert_eq!(shown(false, false), "");
        assert_eq!(shown(true, false), "");
        let full = shown(false, true);
        assert!(full.starts_with("One thought, ") && full.ends_with("two\n\n") && !full.contains('\u{1b}'), "{full:?}");
        let folded = shown(true, true);
        assert!(folded.starts_with("Thought for 0.0 s, 3 words; /thoughts shows them.\n"), "{folded:?}");
    }
}
