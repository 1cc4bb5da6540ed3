//! `tiles key restore`: a new passphrase, with the 24 recovery words.

use std::path::Path;

use tilekit::bundle::{Bundle, Verified};
use tilekit::hint::Hint as _;
use tilekit::identity::{RECOVERY_TEXT_BYTES_MAX, RECOVERY_WORDS, RecoveryWords};
use zeroize::Zeroizing;

use super::{changed, for_change, new_passphrase, tell_old_copies};
use crate::app::App;
use crate::args::key::NewPassphrase;
use crate::failure::{Code, Failure};
use crate::terminal::TerminalError;

/// How often somebody may mistype before it ends: far more than anybody does, and not forever.
const ANSWERS_MAX: usize = 240;

/// Runs it.
pub(super) fn run(
    app: &App,
    bundle: &Bundle<Verified>,
    file: Option<&Path>,
    new: &NewPassphrase,
) -> Result<(), Failure> {
    let (key_file, _lock) = for_change(app, bundle)?;
    let words = words(app, file)?;
    key_file.check_words(&words)?;
    app.terminal.say("These are the right words.");
    let new = new_passphrase(app, new)?;
    let spinner = app.terminal.spinner("Sealing both copies of the key file");
    key_file.restore(&words, &new)?;
    drop(spinner);
    app.terminal.say("The new passphrase opens everything now; the words stay valid.");
    tell_old_copies(app, "passphrase");
    changed(app, &key_file)
}

/// The recovery words: from a file, or typed.
pub(super) fn words(app: &App, file: Option<&Path>) -> Result<RecoveryWords, Failure> {
    let bytes_max = RECOVERY_TEXT_BYTES_MAX as u64;
    let content = match file {
        Some(path) if path == Path::new("-") => app.read_input(bytes_max)?,
        Some(path) => tilekit::disk::read_stream(path, bytes_max)?,
        None => return ask(app),
    };
    let content = Zeroizing::new(content);
    let not_text =
        || Failure::new(Code::Locked, "the recovery words aren't UTF-8 text", "give the file with the 24 words");
    let text = std::str::from_utf8(&content).map_err(|_| not_text())?;
    let words = RecoveryWords::parse(text).map_err(tilekit::identity::KeyError::from)?;
    Ok(words)
}

/// Asks for the words one after the other, or several at once.
///
/// They are seen while they are typed: nobody types 24 words unseen without a mistake, each is checked at once, and they
/// lie open on paper beside the keyboard. So that they don't stay on the screen or in its scrollback, a line of them is
/// taken away when it is complete.
fn ask(app: &App) -> Result<RecoveryWords, Failure> {
    let terminal = &app.terminal;
    if terminal.is_interactive() {
        terminal.say("Type the 24 words, one by one or several at once; the first four letters are enough.");
        terminal.say("Return alone takes the last word back. Ctrl-C leaves, and nothing is changed.");
    }
    let mut words: Vec<&'static str> = Vec::with_capacity(RECOVERY_WORDS);
    for _ in 0..ANSWERS_MAX {
        let prompt = format!("Word {} of {RECOVERY_WORDS}: ", words.len() + 1);
        let typed = terminal.ask_fleeting(&prompt, "--recovery-file")?;
        if typed.trim().is_empty() {
            words.pop();
        }
        for word in RecoveryWords::split(&typed) {
            if words.len() == RECOVERY_WORDS {
                break;
            }
            match RecoveryWords::known_word(words.len() + 1, word) {
                Ok(known) => words.push(known),
                Err(error) => {
                    let hint = error.hint().map_or(String::new(), |hint| format!("; {hint}"));
                    terminal.say(&format!("{error}{hint}"));
                    break;
                }
            }
        }
        if words.len() == RECOVERY_WORDS {
            let phrase = Zeroizing::new(words.join(" "));
            return Ok(RecoveryWords::parse(&phrase).map_err(tilekit::identity::KeyError::from)?);
        }
    }
    Err(TerminalError::AnswerTooLong.into())
}
