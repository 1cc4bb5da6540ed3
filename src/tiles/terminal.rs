//! The terminal: stdout for data, stderr for talk; colour, width, questions and progress.

pub(crate) mod escape;
pub(crate) mod style;
pub(crate) mod mode;
pub(crate) mod ask;
pub(crate) mod progress;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use tilekit::hint::Hint;
use zeroize::Zeroizing;

use self::escape::{neutralise, neutralise_line};
use self::mode::{Modes, RawMode};
use self::progress::Progress;
use self::style::{ColorChoice, Styles, TerminalEnv, paint};

/// The width of a terminal that doesn't say how wide it is.
const WIDTH_DEFAULT: usize = 80;
/// How many causes of an error are shown.
const CAUSES_MAX: usize = 16;

/// Why nothing could be printed or asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// The reader of stdout went away (`| head -1`): not a failure, the program ends quietly.
    #[error("the reader of the output went away")]
    Closed,
    /// The output took nothing more, such as a full disk.
    #[error("can't write the output")]
    Write(#[source] io::Error),
    /// The keyboard can't be read.
    #[error("can't read the answer")]
    Read(#[source] io::Error),
    /// The person pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// The person pressed Ctrl-D, or the terminal went away.
    #[error("the input ended before the answer")]
    EndOfInput,
    /// There is nobody to ask.
    #[error("can't ask `{prompt}` without a terminal")]
    NotInteractive {
        /// What would have been asked.
        prompt: String,
        /// The flag that answers it.
        flag: &'static str,
    },
    /// The answer goes on and on.
    #[error("the answer is longer than {} bytes", ask::ANSWER_BYTES_MAX)]
    AnswerTooLong,
    /// The answer has bytes that make no characters.
    #[error("the answer isn't UTF-8 text")]
    AnswerNotText,
}

impl Hint for TerminalError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotInteractive { flag, .. } => {
                Some(format!("give `{flag}`, or run it in a terminal without `--no-input`"))
            }
            Self::AnswerNotText => Some("set the terminal to UTF-8".to_owned()),
            Self::AnswerTooLong => Some("give a shorter answer".to_owned()),
            Self::Write(_) => Some("check that the disk isn't full".to_owned()),
            Self::Closed | Self::Read(_) | Self::Interrupted | Self::EndOfInput => None,
        }
    }
}

/// What the flags and the environment say about the terminal.
#[derive(Clone, Debug, Default)]
pub(crate) struct TerminalSettings {
    /// `--color`.
    pub color: ColorChoice,
    /// The environment's values.
    pub env: TerminalEnv,
    /// `--quiet`: no talk and no progress; warnings and errors stay.
    pub quiet: bool,
    /// `--no-input`: never ask.
    pub no_input: bool,
}

/// One of the two streams that are printed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Data.
    Out,
    /// Talk.
    Err,
}

/// How long an answer is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Never,
    WhileTyped,
    Always,
}

/// The person's terminal, or what stands in its place in a script. It can be shared with the thread that watches signals.
pub(crate) struct Terminal {
    settings: TerminalSettings,
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    is_terminal: [bool; 3],
    modes: Modes,
}

impl Terminal {
    /// Takes stdin, stdout and stderr.
    pub(crate) fn new(settings: TerminalSettings) -> Self {
        let is_terminal = [io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()];
        Self::over(settings, Box::new(io::stdout()), Box::new(io::stderr()), is_terminal)
    }

    /// Takes other streams; `is_terminal` says which of stdin, stdout and stderr count as terminals.
    pub(crate) fn over(
        settings: TerminalSettings,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        is_terminal: [bool; 3],
    ) -> Self {
        Self { settings, out: Mutex::new(out), err: Mutex::new(err), is_terminal, modes: Modes::default() }
    }

    /// Prints data on stdout as it is, and at once; the caller ends its lines itself.
    ///
    /// # Errors
    /// `Closed` if the reader went away, `Write` if the output takes nothing more.
    pub(crate) fn out(&self, text: &str) -> Result<(), TerminalError> {
        self.out_bytes(text.as_bytes())
    }

    /// Prints bytes on stdout as they are.
    ///
    /// # Errors
    /// As `out`.
    pub(crate) fn out_bytes(&self, bytes: &[u8]) -> Result<(), TerminalError> {
        let mut stream = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => TerminalError::Closed,
            _ => TerminalError::Write(error),
        })
    }

    /// Says a line on stderr, unless the person asked for quiet.
    ///
    /// Talk that can't be written is dropped: nobody is there to hear it, and the work must not fail of it.
    pub(crate) fn say(&self, line: &str) {
        if !self.settings.quiet {
            let _ = write_to(&self.err, &format!("{line}\n"));
        }
    }

    /// Prints a piece of talk without ending the line, such as reasoning while it comes.
    pub(crate) fn say_piece(&self, piece: &str) {
        if !self.settings.quiet {
            let _ = write_to(&self.err, piece);
        }
    }

    /// Warns on stderr, also when the person asked for quiet.
    pub(crate) fn warn(&self, line: &str) {
        let label = paint(self.styles(Stream::Err).warning, "warning:");
        let _ = write_to(&self.err, &format!("{label} {}\n", neutralise(line)));
    }

    /// Reports an error with its causes and what the person can do.
    pub(crate) fn error(&self, error: &dyn Error, hint: Option<&str>) {
        let _ = write_to(&self.err, &report(error, hint, self.styles(Stream::Err)));
    }

    /// Says whether there is a person to ask: stdin and stderr are terminals, and `--no-input` wasn't given.
    pub(crate) fn is_interactive(&self) -> bool {
        self.is_terminal[0] && self.is_terminal[2] && !self.settings.no_input
    }

    /// Says whether a stream is a terminal.
    pub(crate) fn is_terminal(&self, stream: Stream) -> bool {
        match stream {
            Stream::Out => self.is_terminal[1],
            Stream::Err => self.is_terminal[2],
        }
    }

    /// Says whether the terminal can't move its cursor.
    pub(crate) fn is_dumb(&self) -> bool {
        self.settings.env.is_dumb()
    }

    /// Says whether a stream has colour.
    pub(crate) fn has_color(&self, stream: Stream) -> bool {
        self.settings.env.color(self.settings.color, self.is_terminal(stream))
    }

    /// Gives the styles of a stream; they are plain where it has no colour.
    pub(crate) fn styles(&self, stream: Stream) -> Styles {
        Styles::new(self.has_color(stream))
    }

    /// Gives the columns of a stream, or `None` where it is no terminal and lines must not be wrapped.
    pub(crate) fn width(&self, stream: Stream) -> Option<usize> {
        if !self.is_terminal(stream) {
            return None;
        }
        let own = match stream {
            Stream::Out => rustix::termios::tcgetwinsize(io::stdout()),
            Stream::Err => rustix::termios::tcgetwinsize(io::stderr()),
        };
        let own = own.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Some(self.settings.env.width().or(own).unwrap_or(WIDTH_DEFAULT))
    }

    /// Asks for a line that isn't shown. `flag` is what answers the question in a script.
    ///
    /// # Errors
    /// `NotInteractive` if there is nobody to ask, `Interrupted` for Ctrl-C, `EndOfInput` for Ctrl-D.
    ///
    /// # Security
    /// The answer is wiped from memory when it is dropped, and so is each byte on its way here.
    pub(crate) fn ask_hidden(&self, prompt: &str, flag: &'static str) -> Result<Zeroizing<String>, TerminalError> {
        self.ask(prompt, flag, Shown::Never)
    }

    /// Asks for a line that is shown while it is typed, and taken off the screen when it is complete: for what can't be
    /// typed unseen and mustn't stay there. A dumb terminal keeps it.
    ///
    /// # Errors
    /// As `ask_hidden`.
    ///
    /// # Security
    /// As `ask_hidden`; but who looks over the shoulder sees it, and so does what records the screen.
    pub(crate) fn ask_fleeting(&self, prompt: &str, flag: &'static str) -> Result<Zeroizing<String>, TerminalError> {
        self.ask(prompt, flag, Shown::WhileTyped)
    }

    /// Asks for a line. `flag` is what answers the question in a script.
    ///
    /// # Errors
    /// As `ask_hidden`.
    pub(crate) fn ask_line(&self, prompt: &str, flag: &'static str) -> Result<String, TerminalError> {
        self.ask(prompt, flag, Shown::Always).map(|answer| answer.to_string())
    }

    /// Asks for yes or no; anything but `y` or `yes` is no. `flag` is what says yes in a script.
    ///
    /// # Errors
    /// As `ask_hidden`.
    pub(crate) fn confirm(&self, question: &str, flag: &'static str) -> Result<bool, TerminalError> {
        let answer = self.ask_line(&format!("{question} [y/N] "), flag)?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    fn ask(&self, prompt: &str, flag: &'static str, shown: Shown) -> Result<Zeroizing<String>, TerminalError> {
        if !self.is_interactive() {
            let prompt = neutralise_line(prompt).trim_end_matches([' ', ':']).to_owned();
            return Err(TerminalError::NotInteractive { prompt, flag });
        }
        // The mode comes before the prompt: who answers the moment it appears must not see the secret either.
        let _raw = self.modes.raw(false);
        write_to(&self.err, &neutralise(prompt)).map_err(TerminalError::Write)?;
        let mut screen = io::stderr();
        let answer = ask::read_answer(io::stdin(), if shown == Shown::Never { None } else { Some(&mut screen) });
        let end = match (&answer, shown) {
            (Ok(answer), Shown::WhileTyped) if !self.is_dumb() => self.wiped(prompt, answer),
            _ => "\n".to_owned(),
        };
        let _ = write_to(&self.err, &end);
        answer
    }

    /// What takes prompt and answer off the screen, however many rows they fill, and leaves the prompt.
    fn wiped(&self, prompt: &str, answer: &str) -> String {
        use unicode_width::UnicodeWidthStr as _;
        let columns = self.width(Stream::Err).unwrap_or(WIDTH_DEFAULT);
        let rows = (prompt.width() + answer.width()).saturating_sub(1) / columns.max(1);
        let up = if rows > 0 { format!("\x1b[{rows}A") } else { String::new() };
        format!("\r{up}\x1b[J{}\n", neutralise(prompt.trim_end()))
    }

    /// Keeps what is typed from appearing in the middle of a reply, and saves it for the prompt. Ctrl-C still interrupts.
    ///
    /// Hold it while a reply streams or a long step runs; `None` where there is nobody to type.
    pub(crate) fn hold_typing(&self) -> Option<RawMode<'_>> {
        self.is_interactive().then(|| self.modes.raw(true))
    }

    /// Puts the terminal back as it was: for the thread that ends the program on a signal, where nothing is dropped.
    pub(crate) fn restore(&self) {
        self.modes.restore();
    }

    /// Takes the terminal from whichever thread has it, for the thread that ends the program: its modes are put back, and
    /// what follows begins on a line of its own, with nothing behind it.
    pub(crate) fn leave(&self) {
        self.modes.restore();
        if self.is_interactive() && !self.is_dumb() {
            // The line editor has pasted text bracketed, and shows a placeholder to the right of its prompt.
            let _ = write_to(&self.err, "\u{1b}[?2004l\u{1b}[J\n");
        }
    }

    /// Shows a bar for work on a number of bytes.
    pub(crate) fn progress(&self, label: &str, total_bytes: u64) -> Progress {
        let width = self.width(Stream::Err).unwrap_or(WIDTH_DEFAULT);
        Progress::bar(self.animates(), width, &neutralise_line(label), total_bytes)
    }

    /// Shows a spinner for work of unknown size.
    pub(crate) fn spinner(&self, label: &str) -> Progress {
        Progress::spinner(self.animates(), &neutralise_line(label))
    }

    fn animates(&self) -> bool {
        self.is_terminal[2] && !self.is_dumb() && !self.settings.quiet
    }
}

fn write_to(stream: &Mutex<Box<dyn Write + Send>>, text: &str) -> io::Result<()> {
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

/// Writes an error as a person reads it: what, why, and below a blank line what to do.
pub(crate) fn report(error: &dyn Error, hint: Option<&str>, styles: Styles) -> String {
    let mut message = error.to_string();
    let mut text = format!("{} {}\n", paint(styles.error, "error:"), neutralise(&message));
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(error) = cause else { break };
        let next = error.to_string();
        // A wrapper that shows its source as its own message has nothing to add.
        if !message.ends_with(&next) {
            text.push_str(&format!("  {} {}\n", paint(styles.dim, "because:"), neutralise(&next)));
        }
        message = next;
        cause = error.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\n{} {}\n", paint(styles.good, "hint:"), neutralise(hint)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no test panics with it").clone()).expect("we print text")
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn captured(settings: TerminalSettings) -> (Terminal, Captured, Captured) {
        let (out, err) = (Captured::default(), Captured::default());
        let terminal = Terminal::over(settings, Box::new(out.clone()), Box::new(err.clone()), [false; 3]);
        (terminal, out, err)
    }

    #[test]
    fn data_and_talk_go_apart() {
        let (terminal, out, err) = captured(TerminalSettings::default());
        terminal.out("data\x1b\n").expect("memory takes it");
        terminal.say("talk");
        terminal.warn("watch\x1b[2J out");
        assert_eq!(out.text(), "data\x1b\n");
        assert_eq!(err.text(), "talk\nwarning: watch␛[2J out\n");
        assert_eq!((terminal.width(Stream::Out), terminal.is_interactive()), (None, false));

        let (terminal, _, err) = captured(TerminalSettings { quiet: true, ..Default::default() });
        terminal.say("talk");
        terminal.warn("loud");
        assert_eq!(err.text(), "warning: loud\n");
    }

    #[test]
    fn a_reader_that_went_away_ends_quietly() {
        let terminal = Terminal::over(TerminalSettings::default(), Box::new(Gone), Box::new(Gone), [false; 3]);
        assert!(matches!(terminal.out("x"), Err(TerminalError::Closed)));
        terminal.say("nobody hears it");
    }

    #[test]
    fn nobody_is_asked_without_a_terminal_and_the_flag_is_named() {
        let (terminal, out, err) = captured(TerminalSettings::default());
        let error = terminal.ask_hidden("Passphrase: ", "--passphrase-file").expect_err("there is nobody");
        assert_eq!(error.to_string(), "can't ask `Passphrase` without a terminal");
        let hint = error.hint().expect("it has a hint");
        assert_eq!(hint, "give `--passphrase-file`, or run it in a terminal without `--no-input`");
        assert!(terminal.confirm("Delete?", "--yes").is_err());
        assert_eq!((out.text(), err.text()), (String::new(), String::new()));
    }

    #[test]
    fn errors_say_what_why_and_what_to_do() {
        #[derive(Debug, thiserror::Error)]
        #[error("can't open the bundle")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("`/mnt/\x1b]0;x\x07` is damaged")]
        struct Inner;
        let text = report(&Outer(Inner), Some("run `tiles bundle repair`"), Styles::new(false));
        assert_eq!(
            text,
            "error: can't open the bundle\n  because: `/mnt/␛]0;x␇` is damaged\n\nhint: run `tiles bundle repair`\n"
        );
        assert_eq!(report(&Inner, None, Styles::new(true)), "\x1b[1m\x1b[31merror:\x1b[0m `/mnt/␛]0;x␇` is damaged\n");
    }
}
