//! Reads an answer from the terminal, seen or unseen, key by key.
//!
//! It reads one byte at a time and nothing beyond the end of the line, so that what was typed ahead stays for the next
//! question or for the prompt. The line is edited here and not by the kernel, so that Return counts whether it was typed
//! before the question (`\r`) or while the terminal still edited lines (`\n`).

use std::io::{self, Write};
use std::os::fd::AsFd;

use unicode_width::UnicodeWidthChar;
use zeroize::Zeroizing;

use super::TerminalError;

/// The longest answer; room for it is made at once, so that a secret is never copied by growing.
pub(crate) const ANSWER_BYTES_MAX: usize = 4096;

/// What a key did to the answer.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The answer goes on; the text is to be shown where the answer is shown.
    More(String),
    Done,
    Interrupted,
    EndOfInput,
}

/// An answer that is being typed.
#[derive(Debug)]
struct Answer {
    bytes: Zeroizing<Vec<u8>>,
    /// Inside the escape sequence of a cursor key, which is no part of the answer.
    escape: Option<u8>,
}

impl Answer {
    fn new() -> Self {
        Self { bytes: Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX)), escape: None }
    }

    /// Takes one byte from the keyboard.
    fn key(&mut self, byte: u8) -> Result<Step, TerminalError> {
        if let Some(last) = self.escape {
            self.escape = match (last, byte) {
                (0x1b, b'[' | b'O') => Some(byte),
                (b'[', 0x20..=0x3f) => Some(b'['),
                _ => None,
            };
            return Ok(Step::More(String::new()));
        }
        let step = match byte {
            b'\r' | b'\n' => Step::Done,
            0x03 => Step::Interrupted,
            0x04 if self.bytes.is_empty() => Step::EndOfInput,
            0x08 | 0x7f => Step::More(self.take_char().map_or(String::new(), wipe)),
            0x15 => Step::More(self.take_all()),
            0x1b => {
                self.escape = Some(byte);
                Step::More(String::new())
            }
            0x00..=0x1f => Step::More(String::new()),
            _ if self.bytes.len() == ANSWER_BYTES_MAX => return Err(TerminalError::AnswerTooLong),
            _ => {
                self.bytes.push(byte);
                Step::More(self.last_char().map_or(String::new(), String::from))
            }
        };
        Ok(step)
    }

    /// The character that ends the answer, once all its bytes have come.
    fn last_char(&self) -> Option<char> {
        let start = self.last_char_start()?;
        std::str::from_utf8(self.bytes.get(start..)?).ok()?.chars().next()
    }

    fn last_char_start(&self) -> Option<usize> {
        self.bytes.iter().rposition(|byte| byte & 0xc0 != 0x80)
    }

    fn take_char(&mut self) -> Option<char> {
        let last = self.last_char();
        // Bytes that make no character go one by one.
        let length = self.last_char_start().unwrap_or(self.bytes.len().saturating_sub(1));
        self.bytes.truncate(length);
        last
    }

    fn take_all(&mut self) -> String {
        let mut wiped = String::new();
        while !self.bytes.is_empty() {
            wiped.push_str(&self.take_char().map_or(String::new(), wipe));
        }
        wiped
    }

    fn into_text(self) -> Result<Zeroizing<String>, TerminalError> {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(TerminalError::AnswerNotText),
        }
    }
}

/// What takes a character off the screen: also a dumb terminal knows backspace.
fn wipe(c: char) -> String {
    "\x08 \x08".repeat(c.width().unwrap_or(0))
}

/// Reads a line; shows it on `screen` where there is one.
pub(crate) fn read_answer(
    input: impl AsFd,
    mut screen: Option<&mut dyn Write>,
) -> Result<Zeroizing<String>, TerminalError> {
    let mut answer = Answer::new();
    loop {
        let mut byte = Zeroizing::new([0_u8]);
        let step = match rustix::io::read(&input, &mut byte[..]) {
            Ok(0) if answer.bytes.is_empty() => Step::EndOfInput,
            Ok(0) => Step::Done,
            Ok(_) => answer.key(byte[0])?,
            Err(rustix::io::Errno::INTR) => return Err(TerminalError::Interrupted),
            Err(error) => return Err(TerminalError::Read(io::Error::from(error))),
        };
        match step {
            Step::More(shown) => {
                if let Some(screen) = &mut screen {
                    screen.write_all(shown.as_bytes()).and_then(|()| screen.flush()).map_err(TerminalError::Write)?;
                }
            }
            Step::Done => return answer.into_text(),
            Step::Interrupted => return Err(TerminalError::Interrupted),
            Step::EndOfInput => return Err(TerminalError::EndOfInput),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends keys through a real pipe, and checks the answer, the screen, and what is left for the next reader.
    #[track_caller]
    fn check(keys: &[u8], expected: &str, screen: &str, left: &[u8]) {
        let (mut reader, mut writer) = io::pipe().expect("a pipe can be made");
        writer.write_all(keys).expect("a pipe holds these few bytes");
        drop(writer);
        let mut shown = Vec::new();
        let answer = match read_answer(&reader, Some(&mut shown)) {
            Ok(text) => text.to_string(),
            Err(error) => format!("{error}"),
        };
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut reader, &mut rest).expect("the writer is closed");
        assert_eq!(
            (answer.as_str(), String::from_utf8_lossy(&shown).as_ref(), rest.as_slice()),
            (expected, screen, left)
        );
    }

    #[test]
    fn answers_are_edited_and_typed_ahead_text_stays() {
        check(b"secret\rhello\r", "secret", "secret", b"hello\r");
        check(b"secret\nhello\n", "secret", "secret", b"hello\n");
        check(b"ab\x7fc\r", "ac", "ab\x08 \x08c", b"");
        check("漢é\x7f\x7fx\r".as_bytes(), "x", "漢é\x08 \x08\x08 \x08\x08 \x08x", b"");
        check(b"abc\x15d\r", "d", "abc\x08 \x08\x08 \x08\x08 \x08d", b"");
        check(b"a\x1b[A\x1b[3~\x1bOBb\t\r", "ab", "ab", b"");
        check(b"a\x03b\r", "interrupted", "a", b"b\r");
        check(b"\x04b\r", "the input ended before the answer", "", b"b\r");
        check(b"no newline", "no newline", "no newline", b"");
        check(b"", "the input ended before the answer", "", b"");
        check(b"\xff\xfe\r", "the answer isn't UTF-8 text", "", b"");
        check(b"\x7f\r", "", "", b"");
        let long = vec![b'x'; ANSWER_BYTES_MAX + 1];
        let (reader, mut writer) = io::pipe().expect("a pipe can be made");
        writer.write_all(&long).expect("a pipe holds these few bytes");
        assert!(matches!(read_answer(&reader, None), Err(TerminalError::AnswerTooLong)));
    }
}
