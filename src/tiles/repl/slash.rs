//! The slash commands: their table, how a typed line becomes one, their help and their completion.

use tilekit::hint::Hint;

use crate::terminal::style::{Styles, paint};

pub(crate) use tilekit::engine::Think;

/// What `/show` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The Modelfile.
    Modelfile,
    /// The sampling parameters, and where each came from.
    Parameters,
    /// The chat template.
    Template,
}

/// A slash command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slash {
    /// Lists the commands.
    Help,
    /// Leaves.
    Bye,
    /// Forgets all keys and asks for the passphrase again.
    Lock,
    /// Starts a new session.
    New,
    /// Lists the sessions.
    Sessions,
    /// Goes on with a session, named by a prefix of its identifier.
    Resume(String),
    /// Searches all sessions.
    Search(String),
    /// Names this session.
    Rename(String),
    /// Changes the model; `None` shows which one it is.
    Model(Option<String>),
    /// Changes the system prompt; `None` shows it.
    System(Option<String>),
    /// Changes a parameter.
    Set(String, String),
    /// Shows what the model is run with.
    Show(Shown),
    /// Changes how hard the model thinks; the word that was typed.
    Think(Think, &'static str),
    /// Shows what the model thought before its last reply; or folds coming thoughts, or no longer.
    Thoughts(Option<bool>),
    /// Takes back the last message and its reply.
    Undo,
    /// Answers the last message again.
    Regenerate,
    /// Changes the last message in the editor and sends it again.
    Edit,
    /// Shows what of the session is in the context window.
    Context,
    /// Shows the statistics line or hides it.
    Stats,
    /// Writes this session to a file.
    Export(String),
    /// Turns memory mode on or off.
    Memory,
    /// Stops saving this session.
    Private,
    /// Shows bundle, model, session and engine.
    Status,
    /// Forgets the conversation so far and wipes the screen.
    Clear,
}

/// What an argument names; decides what completes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// None.
    Nothing,
    /// A session's identifier.
    Session,
    /// A model's name.
    Model,
    /// A parameter's name and its value.
    Parameter,
    /// Any text to the end of the input.
    Text,
    /// A file's path.
    File,
    /// One of a few words.
    Words(&'static [&'static str]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The name with its slash.
    pub name: &'static str,
    /// Other names that do the same.
    pub aliases: &'static [&'static str],
    /// The arguments as help shows them.
    pub usage: &'static str,
    /// What the argument names.
    pub argument: Argument,
    /// What it does.
    pub help: &'static str,
}

const fn row(name: &'static str, usage: &'static str, argument: Argument, help: &'static str) -> Row {
    Row { name, aliases: &[], usage, argument, help }
}

/// What `/show` takes.
const SHOWN: &[&str] = &["modelfile", "parameters", "template"];
/// What `/think` takes.
const THINK: &[&str] = &["on", "off", "low", "medium", "high"];
/// What `/thoughts` takes.
const THOUGHTS: &[&str] = &["fold", "show"];

/// How hard a model shall think, by the word for it.
pub(crate) fn think(word: &str) -> Option<Think> {
    Some(match word {
        "on" => Think::On,
        "off" => Think::Off,
        "low" => Think::Low,
        "medium" => Think::Medium,
        "high" => Think::High,
        _ => return None,
    })
}

/// Every command, in the order of help.
pub(crate) const TABLE: &[Row] = &[
    Row { aliases: &["/?"], ..row("/help", "", Argument::Nothing, "List these commands") },
    Row { aliases: &["/exit", "/quit"], ..row("/bye", "", Argument::Nothing, "Leave (also Ctrl-D)") },
    row("/lock", "", Argument::Nothing, "Forget the keys and everything said, until the passphrase is typed again"),
    row("/new", "", Argument::Nothing, "Start a new session"),
    row("/sessions", "", Argument::Nothing, "List the sessions"),
    row("/resume", "ID", Argument::Session, "Go on with a session"),
    row("/search", "TEXT", Argument::Text, "Search all sessions"),
    row("/rename", "NAME", Argument::Text, "Name this session"),
    row("/model", "[NAME]", Argument::Model, "Show or change the model"),
    row("/system", "[TEXT]", Argument::Text, "Show or change the system prompt"),
    row("/set", "NAME VALUE", Argument::Parameter, "Change a parameter, such as temperature"),
    row("/show", "[modelfile|parameters|template]", Argument::Words(SHOWN), "Show what the model runs with"),
    row("/think", "on|off|low|medium|high", Argument::Words(THINK), "Change how hard the model thinks"),
    row("/thoughts", "[fold|show]", Argument::Words(THOUGHTS), "Show the last thoughts, or fold coming ones"),
    row("/undo", "", Argument::Nothing, "Take back the last message and its reply"),
    row("/regenerate", "", Argument::Nothing, "Answer the last message again"),
    row("/edit", "", Argument::Nothing, "Change the last message and send it again"),
    row("/context", "", Argument::Nothing, "Show what is in the context window"),
    row("/stats", "", Argument::Nothing, "Show or hide the statistics line"),
    row("/export", "FILE", Argument::File, "Write this session to a file"),
    row("/memory", "", Argument::Nothing, "Turn memory mode on or off"),
    row("/private", "", Argument::Nothing, "Stop saving this session"),
    row("/status", "", Argument::Nothing, "Show bundle, model and session"),
    row("/clear", "", Argument::Nothing, "Forget the conversation so far and wipe the screen"),
];

/// Why a line is not a command.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SlashError {
    /// No command has this name.
    #[error("unknown command `{typed}`")]
    Unknown {
        /// What was typed.
        typed: String,
        /// The command that was probably meant.
        near: Option<&'static str>,
    },
    /// The argument is missing or is none of the allowed words.
    #[error("`{name}` needs {usage}")]
    NeedsArgument {
        /// The command.
        name: &'static str,
        /// Its arguments.
        usage: &'static str,
    },
    /// The command takes no argument.
    #[error("`{name}` takes no argument")]
    NoArgument {
        /// The command.
        name: &'static str,
    },
}

impl Hint for SlashError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { typed, near: Some(near) } if !is_path(typed) => {
                format!("type `{near}`, or `/{typed}` to send it as a message")
            }
            Self::Unknown { typed, .. } => {
                format!("type `/{typed}` to send it as a message, or `/help` to list the commands")
            }
            Self::NeedsArgument { name, usage } => format!("type `{name} {usage}`"),
            Self::NoArgument { name } => format!("type `{name}` alone"),
        })
    }
}

/// What a typed line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// A message to the model; a line that began with `//` has lost one slash.
    Message(String),
    /// A command.
    Command(Slash),
}

/// Reads a typed line.
///
/// # Errors
/// A `SlashError` for a line that begins with one slash and is no complete command; such a line is never sent.
pub(crate) fn parse(line: &str) -> Result<Typed, SlashError> {
    let trimmed = line.trim_start();
    if let Some(literal) = trimmed.strip_prefix("//") {
        return Ok(Typed::Message(format!("/{literal}")));
    }
    if !trimmed.starts_with('/') {
        return Ok(Typed::Message(line.to_owned()));
    }
    let (name, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
    let Some(row) = find(name) else {
        return Err(SlashError::Unknown { typed: name.to_owned(), near: near(name) });
    };
    command(row, rest.trim()).map(Typed::Command)
}

fn find(name: &str) -> Option<&'static Row> {
    let name = name.to_lowercase();
    TABLE.iter().find(|row| row.name == name || row.aliases.contains(&name.as_str()))
}

fn is_path(name: &str) -> bool {
    name.get(1..).is_some_and(|rest| rest.contains('/'))
}

/// The name that is most like what was typed.
fn near(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    let names = TABLE.iter().flat_map(|row| std::iter::once(&row.name).chain(row.aliases));
    let likeness = |known: &str| strsim::jaro_winkler(name.trim_start_matches('/'), known.trim_start_matches('/'));
    let scored = names.map(|known| (*known, likeness(known))).filter(|(_, score)| *score > 0.75);
    scored.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(known, _)| known)
}

fn command(row: &'static Row, rest: &str) -> Result<Slash, SlashError> {
    if row.argument == Argument::Nothing && !rest.is_empty() {
        return Err(SlashError::NoArgument { name: row.name });
    }
    let missing = || SlashError::NeedsArgument { name: row.name, usage: row.usage };
    let text = || if rest.is_empty() { Err(missing()) } else { Ok(rest.to_owned()) };
    let optional = || (!rest.is_empty()).then(|| rest.to_owned());
    Ok(match row.name {
        "/help" => Slash::Help,
        "/bye" => Slash::Bye,
        "/lock" => Slash::Lock,
        "/new" => Slash::New,
        "/sessions" => Slash::Sessions,
        "/resume" => Slash::Resume(text()?),
        "/search" => Slash::Search(text()?),
        "/rename" => Slash::Rename(text()?),
        "/model" => Slash::Model(optional()),
        "/system" => Slash::System(optional()),
        "/set" => {
            let (name, value) = rest.split_once(char::is_whitespace).ok_or_else(missing)?;
            Slash::Set(name.to_owned(), value.trim_start().to_owned())
        }
        "/show" => Slash::Show(match rest {
            "" | "modelfile" => Shown::Modelfile,
            "parameters" => Shown::Parameters,
            "template" => Shown::Template,
            _ => return Err(missing()),
        }),
        "/think" => {
            let word = THINK.iter().find(|word| **word == rest).ok_or_else(missing)?;
            Slash::Think(think(word).ok_or_else(missing)?, word)
        }
        "/thoughts" => Slash::Thoughts(match rest {
            "" => None,
            "fold" => Some(true),
            "show" => Some(false),
            _ => return Err(missing()),
        }),
        "/undo" => Slash::Undo,
        "/regenerate" => Slash::Regenerate,
        "/edit" => Slash::Edit,
        "/context" => Slash::Context,
        "/stats" => Slash::Stats,
        "/export" => Slash::Export(text()?),
        "/memory" => Slash::Memory,
        "/private" => Slash::Private,
        "/status" => Slash::Status,
        "/clear" => Slash::Clear,
        // A row without an arm fails the test that reads every row.
        _ => return Err(SlashError::Unknown { typed: row.name.to_owned(), near: None }),
    })
}

/// Writes the help text for a width; `None` is as wide as it likes.
pub(crate) fn help(styles: Styles, width: Option<usize>) -> String {
    let column =
        TABLE.iter().map(|row| row.name.len() + row.usage.len() + 1).filter(|len| *len <= 32).max().unwrap_or(0);
    let mut text = String::new();
    for row in TABLE {
        let typed = format!("{} {}", row.name, row.usage).trim_end().to_owned();
        let painted = paint(styles.code, &typed);
        let wide = width.is_none_or(|width| width > column + 40) && typed.len() <= column;
        match wide {
            true => text.push_str(&format!("  {painted}{:pad$}{}\n", "", row.help, pad = column - typed.len() + 2)),
            false => text.push_str(&format!("  {painted}\n    {}\n", row.help)),
        }
    }
    text.push_str(concat!(
        "\n  \"\"\" begins and ends a message of several lines; Ctrl-J starts a new line.\n",
        "  Ctrl-R searches what you typed, Ctrl-G opens your editor, Ctrl-C stops a reply.\n",
        "  // sends a message that begins with a slash.\n",
    ));
    text
}

/// Completes the word before the cursor: gives where it starts and what could stand there.
///
/// `values` gives the names of sessions, models and parameters.
pub(crate) fn complete(line: &str, cursor: usize, values: &dyn Fn(Argument) -> Vec<String>) -> (usize, Vec<String>) {
    let Some(before) = line.get(..cursor).filter(|before| before.starts_with('/')) else { return (cursor, Vec::new()) };
    let Some((name, rest)) = before.split_once(' ') else {
        let names = TABLE.iter().filter(|row| row.name.starts_with(before));
        let space = |row: &Row| if row.argument == Argument::Nothing { "" } else { " " };
        return (0, names.map(|row| format!("{}{}", row.name, space(row))).collect());
    };
    // Only the first word of the arguments is completed; the value of a parameter is the person's own.
    let Some(row) = find(name).filter(|_| !rest.contains(' ')) else { return (cursor, Vec::new()) };
    let words = match row.argument {
        Argument::Nothing | Argument::Text | Argument::File => Vec::new(),
        Argument::Words(words) => words.iter().map(|word| (*word).to_owned()).collect(),
        named => values(named),
    };
    (cursor - rest.len(), words.into_iter().filter(|word| word.starts_with(rest)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Slash) {
        assert_eq!(parse(line), Ok(Typed::Command(expected)), "{line}");
    }

    #[track_caller]
    fn check_error(line: &str, message: &str, hint: &str) {
        let error = parse(line).expect_err("it is no command");
        assert_eq!((error.to_string().as_str(), error.hint().as_deref()), (message, Some(hint)));
    }

    #[test]
    fn lines_become_commands() {
        check("/help", Slash::Help);
        check("/?", Slash::Help);
        check("  /BYE  ", Slash::Bye);
        check("/exit", Slash::Bye);
        check("/quit", Slash::Bye);
        check("/resume 0a1b", Slash::Resume("0a1b".into()));
        check("/search two words", Slash::Search("two words".into()));
        check("/model", Slash::Model(None));
        check("/model qwen3", Slash::Model(Some("qwen3".into())));
        check("/system Be brief.\nAnd kind.", Slash::System(Some("Be brief.\nAnd kind.".into())));
        check("/set temperature 0.2", Slash::Set("temperature".into(), "0.2".into()));
        check("/set stop  <end> of it", Slash::Set("stop".into(), "<end> of it".into()));
        check("/show", Slash::Show(Shown::Modelfile));
        check("/show template", Slash::Show(Shown::Template));
        check("/think high", Slash::Think(Think::High, "high"));
        check("/thoughts", Slash::Thoughts(None));
        check("/thoughts fold", Slash::Thoughts(Some(true)));
        check("/export my file.md", Slash::Export("my file.md".into()));
    }

    #[test]
    fn every_row_is_read() {
        for row in TABLE {
            let argument = match row.argument {
                Argument::Nothing => "",
                Argument::Words(words) => words[0],
                Argument::Parameter => "seed 1",
                _ => "x",
            };
            for name in std::iter::once(&row.name).chain(row.aliases) {
                assert!(matches!(parse(&format!("{name} {argument}")), Ok(Typed::Command(_))), "{name}");
            }
            if let Argument::Words(words) = row.argument {
                words.iter().for_each(|word| assert!(parse(&format!("{} {word}", row.name)).is_ok(), "{word}"));
            }
        }
    }

    #[test]
    fn other_lines_are_messages() {
        for line in ["hello", "", " 1/2 cup", "why /help?"] {
            assert_eq!(parse(line), Ok(Typed::Message(line.into())));
        }
        assert_eq!(parse("//usr/bin is what?"), Ok(Typed::Message("/usr/bin is what?".into())));
        assert_eq!(parse("///"), Ok(Typed::Message("//".into())));
    }

    #[test]
    fn errors_suggest() {
        check_error("/hlep", "unknown command `/hlep`", "type `/help`, or `//hlep` to send it as a message");
        check_error(
            "/session",
            "unknown command `/session`",
            "type `/sessions`, or `//session` to send it as a message",
        );
        let hint = "type `//usr/bin` to send it as a message, or `/help` to list the commands";
        check_error("/usr/bin is where", "unknown command `/usr/bin`", hint);
        check_error("/", "unknown command `/`", "type `//` to send it as a message, or `/help` to list the commands");
        check_error("/resume", "`/resume` needs ID", "type `/resume ID`");
        check_error("/set seed", "`/set` needs NAME VALUE", "type `/set NAME VALUE`");
        check_error("/think hard", "`/think` needs on|off|low|medium|high", "type `/think on|off|low|medium|high`");
        check_error("/undo 2", "`/undo` takes no argument", "type `/undo` alone");
    }

    #[test]
    fn words_are_completed() {
        let values = |argument| match argument {
            Argument::Session => vec!["0a1b".to_owned(), "0c2d".to_owned()],
            Argument::Parameter => vec!["seed".to_owned(), "stop".to_owned()],
            _ => Vec::new(),
        };
        let check = |line: &str, start: usize, expected: &[&str]| {
            let (found, words) = complete(line, line.len(), &values);
            assert_eq!(
                (found, words.iter().map(String::as_str).collect::<Vec<_>>().as_slice()),
                (start, expected),
                "{line}"
            );
        };
        check("/st", 0, &["/stats", "/status"]);
        check("/res", 0, &["/resume "]);
        check("/resume 0", 8, &["0a1b", "0c2d"]);
        check("/resume 0a", 8, &["0a1b"]);
        check("/set s", 5, &["seed", "stop"]);
        check("/set seed 1", 11, &[]);
        check("/think ", 7, &["on", "off", "low", "medium", "high"]);
        check("hello /st", 9, &[]);
        check("/search hel", 8, &[]);
    }

    #[test]
    fn help_fits_and_names_everything() {
        for width in [Some(20), Some(40), Some(80), None] {
            let text = help(Styles::default(), width);
            TABLE.iter().for_each(|row| assert!(text.contains(row.name) && text.contains(row.help), "{}", row.name));
        }
        let first = help(Styles::default(), Some(80)).lines().next().map(str::to_owned);
        assert_eq!(first.as_deref(), Some("  /help                          List these commands"));
    }
}
