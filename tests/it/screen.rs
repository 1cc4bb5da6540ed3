//! A terminal for one test: the real program in a pty, typed into key by key, and what a person would see of it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rexpect::process::PtyProcess;

/// What stands in the last line when the program waits for a message.
pub(crate) const READY: &str = ">>> Send a message (/help for help)";
/// Longer than anything a test waits for, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// So high that nothing scrolls away.
const ROWS: NonZero<u16> = NonZero::new(200).expect("it is no zero");
const COLUMNS: NonZero<u16> = NonZero::new(80).expect("it is no zero");

/// Runs the program as a shell does, and says how it ended and whether the terminal is as it was.
const SHELL: &str = r#"trap : INT
stty sane rows "$ROWS" cols "$COLUMNS"
before=$(stty -g)
"$@"
code=$?
[ "$(stty -g)" = "$before" ] && modes=same || modes=changed
echo "exit=$code modes=$modes""#;

/// A terminal with the program in it.
pub(crate) struct Screen {
    /// Ends the program when the test is over.
    _process: PtyProcess,
    keyboard: File,
    output: Receiver<Vec<u8>>,
    parser: vt100::Parser,
    /// Every byte that the terminal was sent.
    pub(crate) raw: Vec<u8>,
}

impl Screen {
    /// Starts a command in a terminal of its own; its environment is kept, and `TERM` must be in it.
    pub(crate) fn start(program: &Command) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SHELL, "sh"]).arg(program.get_program()).args(program.get_args()).env_clear();
        shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("PATH", "/usr/bin:/bin").env("ROWS", ROWS.to_string()).env("COLUMNS", COLUMNS.to_string());
        if let Some(folder) = program.get_current_dir() {
            shell.current_dir(folder);
        }
        let process = PtyProcess::new(shell).expect("a terminal can be made");
        let keyboard = process.get_file_handle().expect("the terminal is open");
        let mut reader = keyboard.try_clone().expect("the terminal is open");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            // The terminal's end is an error on Linux.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let parser = vt100::Parser::new(ROWS, COLUMNS, 0);
        Self { _process: process, keyboard, output, parser, raw: Vec::new() }
    }

    /// What is on the screen, without what is to the right and below.
    pub(crate) fn text(&self) -> String {
        let rows: Vec<String> =
            self.parser.screen().rows(0, COLUMNS.get()).map(|row| row.trim_end().to_owned()).collect();
        rows.join("\n").trim_end().to_owned()
    }

    /// Waits until the screen is as a test wants it.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_met(self) {
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => {
                    self.parser.process(&bytes);
                    self.raw.extend(bytes);
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what:?} on the screen:\n{}", self.text()),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended without {what:?}:\n{}", self.text()),
            }
        }
    }

    /// Waits until the screen is as a test wants it, or the program has ended: then false. That it hangs is a failure.
    #[track_caller]
    pub(crate) fn wait_or_end(&mut self, is_met: impl Fn(&Self) -> bool) -> bool {
        self.wait_until("end", |screen| is_met(screen) || screen.text().contains("modes="));
        !self.text().contains("modes=")
    }

    /// Says a line; true if the answer `answer` came and then the next prompt, false if the program ended instead or told
    /// of an error.
    #[track_caller]
    pub(crate) fn say(&mut self, line: &str, answer: &str) -> bool {
        let prompts = self.prompts();
        self.keys(&format!("{line}\r"));
        let goes_on = self.wait_or_end(|screen| screen.prompts() > prompts && screen.text().ends_with(READY));
        let text = self.text();
        goes_on && !text.contains("error: ") && text.rsplit_once(line).is_some_and(|(_, shown)| shown.contains(answer))
    }

    /// Waits for a text; spaces at the end of a line don't show.
    #[track_caller]
    pub(crate) fn wait(&mut self, text: &str) {
        self.wait_until(text, |screen| screen.text().contains(text.trim_end()));
    }

    /// Waits until the program asks for a message.
    #[track_caller]
    pub(crate) fn ready(&mut self) {
        self.wait_until("prompt", |screen| screen.text().ends_with(READY));
    }

    /// Presses keys.
    pub(crate) fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Enters a line at the prompt, waits for the next prompt, and gives what was shown in between.
    #[track_caller]
    pub(crate) fn enter(&mut self, line: &str) -> String {
        let prompts = self.prompts();
        self.keys(&format!("{line}\r"));
        self.wait_until("next prompt", |screen| screen.prompts() > prompts && screen.text().ends_with(READY));
        let text = self.text();
        let shown = text.strip_suffix(READY).expect("it ends with the prompt");
        let shown = shown.rsplit_once(">>> ").map_or(shown, |(_, shown)| shown);
        shown.split_once('\n').map_or("", |(_, shown)| shown).trim_end().to_owned()
    }

    /// The recovery words that are listed.
    fn words(&self) -> Vec<String> {
        let text = self.text();
        let fields: Vec<&str> = text.split_whitespace().collect();
        let listed = (1..=24).filter_map(|number| {
            let at = fields.iter().position(|field| *field == format!("{number}."))?;
            fields.get(at + 1).map(|word| (*word).to_owned())
        });
        listed.collect()
    }

    /// Waits for the recovery words and types those that are asked back, the first one wrong at first.
    #[track_caller]
    pub(crate) fn answer_words(&mut self) -> Vec<String> {
        let asked = |screen: &Self| -> Option<usize> {
            let text = screen.text();
            text.lines().last()?.strip_prefix("Word ")?.strip_suffix(':')?.parse().ok()
        };
        let mut last = 0;
        for round in 0..3 {
            self.wait_until("question", |screen| asked(screen).is_some_and(|position| position > last));
            let words = self.words();
            assert_eq!(words.len(), 24, "{}", self.text());
            last = asked(self).expect("it was waited for");
            if round == 0 {
                self.keys("wrong\r");
                let told = format!("`wrong` isn't word {last}.");
                self.wait_until("the same question", |screen| {
                    screen.text().contains(&told) && asked(screen) == Some(last)
                });
            }
            self.keys(&format!("{}\r", words[last - 1]));
        }
        self.words()
    }

    fn prompts(&self) -> usize {
        self.text().lines().filter(|line| line.starts_with(">>> ")).count()
    }

    /// Waits for the program's end and gives its exit code; the terminal must be as it was before.
    #[track_caller]
    pub(crate) fn end(&mut self) -> i32 {
        self.wait("modes=");
        let text = self.text();
        let (_, end) = text.rsplit_once("exit=").expect("the shell says it");
        let (code, modes) = end.split_once(" modes=").expect("the shell says it");
        self.wait_until("whole line", |screen| screen.text().ends_with("same") || screen.text().ends_with("changed"));
        assert!(self.text().ends_with("modes=same"), "the terminal was left changed ({modes}):\n{text}");
        code.parse().expect("it is a number")
    }
}
