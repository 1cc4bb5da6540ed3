//! Reads what the person says: from the line editor on a terminal, or line by line from anything else.

pub(crate) mod line;
pub(crate) mod prompt;

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use tilekit::disk::DiskError;
use tilekit::hint::Hint;

use self::line::{Assembled, Assembly};

/// The longest input that is read; a model's context is far smaller.
pub(crate) const INPUT_BYTES_MAX: usize = 4 << 20;
/// The prompt of the second and later lines of a block.
pub(crate) const CONTINUATION: &str = "... ";

/// What the person entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Something typed: a command, or a message, perhaps of several lines.
    Text(String),
    /// What stood between `"""`: a message, whatever it begins with.
    Block(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    Eof,
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditorError {
    /// The terminal or the input failed.
    #[error("can't read the input")]
    Read(#[source] io::Error),
    /// There was no end to it.
    #[error("the input is longer than {INPUT_BYTES_MAX} bytes")]
    TooLong,
    /// The scratch file of the person's editor could not be written or read.
    #[error("can't use the editor's scratch file")]
    Scratch(#[source] DiskError),
    /// The person's editor could not be run, or reported a failure.
    #[error("the editor `{command}` failed")]
    Editor {
        /// The command in `EDITOR`.
        command: String,
        /// Why it did not run, if it did not.
        #[source]
        source: Option<io::Error>,
    },
}

impl Hint for EditorError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read(_) => None,
            Self::TooLong => Some("send it in parts".to_owned()),
            Self::Scratch(error) => error.hint(),
            Self::Editor { .. } => Some("set `EDITOR` to an editor that is installed, such as `nano`".to_owned()),
        }
    }
}

/// The person's own editor and the file it works on, which is inside the bundle.
#[derive(Clone, Debug)]
pub(crate) struct ExternalEditor {
    /// The value of `VISUAL` or `EDITOR`, run by the shell as git does.
    pub command: String,
    /// The scratch file; it is removed as soon as the editor ends.
    pub scratch: PathBuf,
}

impl ExternalEditor {
    /// Lets the person change a text in their editor.
    ///
    /// # Errors
    /// `Scratch` and `Editor`; the scratch file is removed also then.
    pub(crate) fn edit(&self, text: &str) -> Result<String, EditorError> {
        tilekit::disk::write(&self.scratch, text.as_bytes()).map_err(EditorError::Scratch)?;
        let edited = self.run();
        tilekit::disk::remove(&self.scratch).map_err(EditorError::Scratch)?;
        // Editors end the last line; the person did not.
        edited.map(|text| text.strip_suffix('\n').map_or(text.clone(), str::to_owned))
    }

    fn run(&self) -> Result<String, EditorError> {
        let failed = |source| EditorError::Editor { command: self.command.clone(), source };
        let script = format!("{} \"$@\"", self.command);
        let mut shell = std::process::Command::new("sh");
        let status = shell.args(["-c", &script, &self.command]).arg(&self.scratch).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(_) => return Err(failed(None)),
            Err(error) => return Err(failed(Some(error))),
        }
        tilekit::disk::read_text(&self.scratch, INPUT_BYTES_MAX as u64).map_err(EditorError::Scratch)
    }
}

/// Where the person's lines come from: the line editor of a terminal, or a pipe, a script, a dumb terminal.
pub(crate) trait LineReader {
    /// Reads one input, which may be several lines.
    ///
    /// # Errors
    /// See `EditorError`. The reader can be used again afterwards.
    fn read_line(&mut self, prompt: &str) -> Result<Line, EditorError>;

    /// Adds an input to what can be recalled and searched in this run; the store keeps it for the next.
    fn add_history(&mut self, text: &str);
}

/// Reads lines from a pipe, a script in a test, or a terminal that can't move its cursor.
pub(crate) struct PlainReader<R, W> {
    input: R,
    /// Where prompts are shown, if there is somebody to read them.
    prompts: Option<W>,
}

impl<R: BufRead, W: Write> PlainReader<R, W> {
    /// Reads from `input` and shows prompts on `prompts`.
    pub(crate) fn new(input: R, prompts: Option<W>) -> Self {
        Self { input, prompts }
    }

    /// Reads one line without its end; `None` at the end of the input.
    fn next_line(&mut self, prompt: &str) -> Result<Option<String>, EditorError> {
        if let Some(prompts) = &mut self.prompts {
            let shown = prompts.write_all(prompt.as_bytes()).and_then(|()| prompts.flush());
            shown.map_err(EditorError::Read)?;
        }
        let mut bytes = Vec::new();
        let limit = INPUT_BYTES_MAX as u64 + 1;
        let read = self.input.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(EditorError::Read)?;
        if read > INPUT_BYTES_MAX {
            return Err(EditorError::TooLong);
        }
        if read == 0 {
            return Ok(None);
        }
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Ok(Some(String::from_utf8_lossy(line).into_owned()))
    }
}

impl<R: BufRead, W: Write> LineReader for PlainReader<R, W> {
    fn read_line(&mut self, prompt: &str) -> Result<Line, EditorError> {
        let mut assembly = Assembly::default();
        let mut prompt = prompt;
        loop {
            match self.next_line(prompt) {
                Ok(Some(line)) => match assembly.push(&line)? {
                    Assembled::Whole(line) => return Ok(line),
                    Assembled::Open => prompt = CONTINUATION,
                },
                Ok(None) => return Ok(assembly.finish().unwrap_or(Line::Eof)),
                Err(EditorError::Read(error)) if error.kind() == io::ErrorKind::Interrupted => {
                    return Ok(Line::Interrupted);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn add_history(&mut self, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &[Line], prompts: &str) {
        let mut shown = Vec::new();
        let mut reader = PlainReader::new(input.as_bytes(), Some(&mut shown));
        let mut lines = Vec::new();
        loop {
            match reader.read_line(">>> ").expect("text can be read") {
                Line::Eof => break,
                line => lines.push(line),
            }
        }
        assert_eq!((lines.as_slice(), String::from_utf8_lossy(&shown).as_ref()), (expected, prompts));
    }

    fn text(text: &str) -> Line {
        Line::Text(text.to_owned())
    }

    fn block(text: &str) -> Line {
        Line::Block(text.to_owned())
    }

    #[test]
    fn lines_and_blocks() {
        check("", &[], ">>> ");
        check("one\r\n\ntwo", &[text("one"), text(""), text("two")], ">>> >>> >>> >>> ");
        check("\"\"\"a\n/b\nc\"\"\"\nd", &[block("a\n/b\nc"), text("d")], ">>> ... ... >>> >>> ");
        check("\"\"\"one\"\"\"\n", &[block("one")], ">>> >>> ");
        check("\"\"\"\n\"\"\"\n", &[block("")], ">>> ... >>> ");
        check("\"\"\"open\nend", &[block("open\nend")], ">>> ... ... >>> ");
        check("/system \"\"\"Be\nbrief\"\"\"\nx", &[text("/system Be\nbrief"), text("x")], ">>> ... >>> >>> ");
        check("say \"\"\" here", &[text("say \"\"\" here")], ">>> >>> ");
    }

    #[test]
    fn endless_input_is_refused() {
        let mut reader = PlainReader::new(io::BufReader::new(io::repeat(b'x')), None::<io::Sink>);
        assert!(matches!(reader.read_line(""), Err(EditorError::TooLong)));
        let endless = io::BufReader::new("\"\"\"\n".as_bytes().chain(io::repeat(b'\n')));
        assert!(matches!(PlainReader::new(endless, None::<io::Sink>).read_line(""), Err(EditorError::TooLong)));
    }

    #[test]
    fn the_persons_editor_changes_a_text_and_leaves_no_file() {
        let folder = std::env::current_exe().expect("a test has a path");
        let scratch = folder.with_file_name(format!("scratch {}.md", std::process::id()));
        let editor = |command: &str| ExternalEditor { command: command.to_owned(), scratch: scratch.clone() };
        let append = editor("sed -i -e 's/one/two/' -e '$a\\three'");
        assert_eq!(append.edit("one\n").expect("sed is installed"), "two\nthree");
        let error = editor("false").edit("x").expect_err("it fails");
        assert_eq!(error.to_string(), "the editor `false` failed");
        assert!(!scratch.exists());
    }
}
