//! Puts the lines of a `"""` block together, as Ollama does.

use super::{EditorError, INPUT_BYTES_MAX, Line};

/// What begins and ends a block.
const QUOTES: &str = "\"\"\"";
/// The command whose text may be a block.
const SYSTEM: &str = "/system ";

/// Whether the input is whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assembled {
    /// It is.
    Whole(Line),
    /// A block is open: the next line belongs to it.
    Open,
}

/// An input that is being put together.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    block: Option<Block>,
}

#[derive(Debug)]
struct Block {
    /// Stands before the block's text, such as `/system `.
    command: &'static str,
    text: String,
}

impl Assembly {
    /// Says whether a line opens a block.
    pub(crate) fn opens(line: &str) -> bool {
        opening(line).is_some()
    }

    /// Says whether the next line belongs to a block.
    pub(crate) fn is_open(&self) -> bool {
        self.block.is_some()
    }

    /// Takes the next line.
    ///
    /// A block begins with `"""` at the start of a line, or of the text of `/system`, and ends with `"""` at the end of
    /// a line, also of the same one.
    ///
    /// # Errors
    /// `TooLong` for a block that goes on and on.
    pub(crate) fn push(&mut self, line: &str) -> Result<Assembled, EditorError> {
        let content = match &mut self.block {
            Some(block) => {
                block.text.push('\n');
                line
            }
            None => {
                let Some((command, content)) = opening(line) else {
                    return Ok(Assembled::Whole(Line::Text(line.to_owned())));
                };
                self.block = Some(Block { command, text: String::new() });
                content
            }
        };
        let closed = content.trim_end().strip_suffix(QUOTES);
        if let Some(block) = &mut self.block {
            block.text.push_str(closed.unwrap_or(content));
            if block.text.len() > INPUT_BYTES_MAX {
                return Err(EditorError::TooLong);
            }
        }
        match closed.and_then(|_| self.finish()) {
            Some(line) => Ok(Assembled::Whole(line)),
            None => Ok(Assembled::Open),
        }
    }

    /// Gives what there is when no more lines come: the end of the input closes a block.
    pub(crate) fn finish(&mut self) -> Option<Line> {
        let block = self.block.take()?;
        // Quotes on lines of their own are marks, and so are the newlines beside them.
        let text = block.text.strip_prefix('\n').unwrap_or(&block.text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        Some(match block.command {
            "" => Line::Block(text.to_owned()),
            command => Line::Text(format!("{command}{text}")),
        })
    }
}

/// Splits a line that opens a block into the command before the quotes and the text behind them.
fn opening(line: &str) -> Option<(&'static str, &str)> {
    let (command, rest) = line.strip_prefix(SYSTEM).map_or(("", line), |rest| (SYSTEM, rest.trim_start()));
    Some((command, rest.strip_prefix(QUOTES)?))
}
