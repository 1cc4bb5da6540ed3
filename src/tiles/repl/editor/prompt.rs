//! The line editor of a terminal: rustyline with our prompt, history, completion and keys.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{
    Behavior, Cmd, ColorMode, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext,
    EventHandler, Helper, KeyEvent, RepeatCount,
};

use super::line::{Assembled, Assembly};
use super::{CONTINUATION, EditorError, ExternalEditor, INPUT_BYTES_MAX, Line, LineReader};
use crate::repl::slash::{self, Argument};
use crate::terminal::mode::has_typed_line;
use crate::terminal::style::{Styles, paint};
use crate::terminal::{Stream, Terminal};

/// How many inputs can be recalled.
pub(crate) const HISTORY_LINES_MAX: usize = 1000;
/// What stands at an empty prompt, from wide to narrow.
const PLACEHOLDERS: [&str; 2] = ["Send a message (/help for help)", "/help for help"];

/// Gives the names of sessions, models and parameters for completion.
pub(crate) type Values = Box<dyn Fn(Argument) -> Vec<String>>;

/// The line editor of a terminal.
pub(crate) struct PromptReader {
    editor: Editor<Assistant, MemHistory>,
    external: Option<ExternalEditor>,
    external_wanted: Arc<AtomicBool>,
    /// Whether a `"""` block stands in the terminal's own buffer, read before the editor started.
    block: Assembly,
}

impl PromptReader {
    /// Starts the editor with the inputs of earlier runs, oldest first. Without an external editor Ctrl-G does nothing.
    ///
    /// # Errors
    /// `Read` if the terminal can't be used.
    pub(crate) fn new(
        terminal: &Terminal,
        history: &[String],
        values: Values,
        external: Option<ExternalEditor>,
    ) -> Result<Self, EditorError> {
        let color = terminal.has_color(Stream::Err);
        // Where stdout goes into a file, the prompt still belongs on the screen.
        let behavior = if terminal.is_terminal(Stream::Out) { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder()
            .max_history_size(HISTORY_LINES_MAX)
            .map_err(read_error)?
            .completion_type(CompletionType::List)
            .color_mode(if color { ColorMode::Forced } else { ColorMode::Disabled })
            .behavior(behavior)
            .bracketed_paste(true)
            .build();
        let memory = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, memory).map_err(read_error)?;
        editor.set_helper(Some(Assistant::new(Styles::new(color), terminal.width(Stream::Err), values)));
        editor.bind_sequence(KeyEvent::ctrl('J'), EventHandler::Simple(Cmd::Newline));
        let external_wanted = Arc::new(AtomicBool::new(false));
        if external.is_some() {
            let wanted = OpenEditor { wanted: Arc::clone(&external_wanted) };
            editor.bind_sequence(KeyEvent::ctrl('G'), EventHandler::Conditional(Box::new(wanted)));
        }
        let mut reader = Self { editor, external, external_wanted, block: Assembly::default() };
        history.iter().for_each(|text| reader.add_history(text));
        Ok(reader)
    }

    /// Reads one line: what was typed ahead before the editor started, or what is typed now.
    fn next_line(&mut self, prompt: &str) -> Result<String, ReadlineError> {
        if has_typed_line() {
            return typed_line(prompt);
        }
        let mut text = String::new();
        loop {
            text = self.editor.readline_with_initial(prompt, (&text, ""))?;
            if !self.external_wanted.swap(false, Ordering::Relaxed) {
                return Ok(text);
            }
            let Some(external) = &self.external else { return Ok(text) };
            match external.edit(&text) {
                Ok(edited) => text = edited,
                Err(error) => return Err(ReadlineError::Io(io::Error::other(error))),
            }
        }
    }
}

impl LineReader for PromptReader {
    fn read_line(&mut self, prompt: &str) -> Result<Line, EditorError> {
        self.block = Assembly::default();
        let mut prompt = prompt;
        loop {
            match self.next_line(prompt) {
                Ok(text) if text.len() > INPUT_BYTES_MAX => return Err(EditorError::TooLong),
                Ok(text) => match self.push(&text)? {
                    Assembled::Whole(line) => return Ok(line),
                    Assembled::Open => prompt = CONTINUATION,
                },
                Err(ReadlineError::Interrupted) => return Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => return Ok(self.block.finish().unwrap_or(Line::Eof)),
                Err(error) => return Err(read_error(error)),
            }
            if let Some(helper) = self.editor.helper_mut() {
                helper.continues = prompt == CONTINUATION;
            }
        }
    }

    fn add_history(&mut self, text: &str) {
        // A history in memory can't fail.
        let _ = self.editor.add_history_entry(text);
    }
}

impl PromptReader {
    /// Takes what one Return sent; a paste may hold several lines, and a block may be pasted whole.
    fn push(&mut self, text: &str) -> Result<Assembled, EditorError> {
        if let Some(helper) = self.editor.helper_mut() {
            helper.continues = false;
        }
        if !self.block.is_open() && !Assembly::opens(text) {
            return Ok(Assembled::Whole(Line::Text(text.to_owned())));
        }
        let mut assembled = Assembled::Open;
        for line in text.split('\n') {
            assembled = match assembled {
                Assembled::Open => self.block.push(line)?,
                // Text after the end of a block still belongs to the same message.
                Assembled::Whole(Line::Block(block)) => Assembled::Whole(Line::Block(format!("{block}\n{line}"))),
                Assembled::Whole(Line::Text(block)) => Assembled::Whole(Line::Text(format!("{block}\n{line}"))),
                whole => whole,
            };
        }
        Ok(assembled)
    }
}

/// Reads a finished line from the terminal's own buffer, where it was echoed already.
fn typed_line(prompt: &str) -> Result<String, ReadlineError> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0_u8];
        match rustix::io::read(io::stdin(), &mut byte) {
            Ok(0) if line.is_empty() => return Err(ReadlineError::Eof),
            Ok(0) => break,
            // Return is `\r` where it was typed while `hold_typing` was in force.
            Ok(_) if matches!(byte[0], b'\n' | b'\r') => break,
            Ok(_) if line.len() > INPUT_BYTES_MAX => break,
            Ok(_) => line.push(byte[0]),
            Err(error) => return Err(ReadlineError::Io(error.into())),
        }
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    // Says which message is answered now.
    let mut screen = io::stderr();
    let _ = writeln!(screen, "{prompt}{}", crate::terminal::escape::neutralise(&text));
    Ok(text)
}

fn read_error(error: ReadlineError) -> EditorError {
    match error {
        ReadlineError::Io(error) => match error.downcast::<EditorError>() {
            Ok(ours) => ours,
            Err(error) => EditorError::Read(error),
        },
        error => EditorError::Read(io::Error::other(error)),
    }
}

/// Ends the line editor so that the person's editor can take over the terminal.
struct OpenEditor {
    wanted: Arc<AtomicBool>,
}

impl ConditionalEventHandler for OpenEditor {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, _: &EventContext) -> Option<Cmd> {
        self.wanted.store(true, Ordering::Relaxed);
        Some(Cmd::AcceptLine)
    }
}

/// What rustyline asks while a line is typed.
struct Assistant {
    styles: Styles,
    values: Values,
    placeholder: &'static str,
    /// The line continues a block: nothing is suggested.
    continues: bool,
}

impl Assistant {
    fn new(styles: Styles, width: Option<usize>, values: Values) -> Self {
        Self { styles, values, placeholder: placeholder(width), continues: false }
    }
}

/// The longest placeholder that fits beside the prompt: a line that wraps leaves litter when it is wiped.
fn placeholder(width: Option<usize>) -> &'static str {
    let room = width.unwrap_or(usize::MAX).saturating_sub(CONTINUATION.len() + 1);
    PLACEHOLDERS.into_iter().find(|text| text.len() <= room).unwrap_or("")
}

impl Helper for Assistant {}
impl Validator for Assistant {}

/// Text that is shown at an empty prompt and can't be taken over into the line.
struct Placeholder(&'static str);

impl rustyline::hint::Hint for Placeholder {
    fn display(&self) -> &str {
        self.0
    }
    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for Assistant {
    type Hint = Placeholder;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<Placeholder> {
        (line.is_empty() && !self.continues && !self.placeholder.is_empty()).then_some(Placeholder(self.placeholder))
    }
}

impl Highlighter for Assistant {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(paint(self.styles.dim, hint))
    }
}

impl Completer for Assistant {
    type Candidate = String;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(slash::complete(line, cursor, &self.values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_placeholder_fits() {
        assert_eq!(placeholder(Some(80)), PLACEHOLDERS[0]);
        assert_eq!(placeholder(Some(20)), PLACEHOLDERS[1]);
        assert_eq!(placeholder(Some(10)), "");
    }
}
