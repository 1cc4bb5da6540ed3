//! Whether a stream has colour, and the few styles we use.

use anstyle::{AnsiColor, Style};

/// What the person asked for with `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ColorChoice {
    /// Colour where the stream is a terminal that can show it.
    #[default]
    Auto,
    /// Colour even into a file.
    Always,
    /// No colour.
    Never,
}

/// The values of the environment that decide about colour and width, as they were found; `app` reads them.
#[derive(Clone, Debug, Default)]
pub(crate) struct TerminalEnv {
    /// `NO_COLOR`: any value but an empty one turns colour off (no-color.org).
    pub no_color: Option<String>,
    /// `TERM`: `dumb`, or nothing, is a terminal without colour and cursor movement.
    pub term: Option<String>,
    /// `CLICOLOR`: `0` turns colour off (bixense.com/clicolors).
    pub clicolor: Option<String>,
    /// `CLICOLOR_FORCE`: any value but `0` or an empty one turns colour on, even into a file.
    pub clicolor_force: Option<String>,
    /// `COLUMNS`: the width to use instead of the terminal's own.
    pub columns: Option<String>,
}

impl TerminalEnv {
    /// Says whether the terminal can't move its cursor: no bars, no line editor.
    pub(crate) fn is_dumb(&self) -> bool {
        self.term.as_deref().is_none_or(|term| term.is_empty() || term == "dumb")
    }

    /// Decides about colour for one stream: the flag, then the environment, then what the stream is.
    pub(crate) fn color(&self, choice: ColorChoice, is_terminal: bool) -> bool {
        let set = |value: &Option<String>| value.as_deref().is_some_and(|text| !text.is_empty());
        match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto if set(&self.no_color) => false,
            ColorChoice::Auto if set(&self.clicolor_force) && self.clicolor_force.as_deref() != Some("0") => true,
            ColorChoice::Auto if self.clicolor.as_deref() == Some("0") => false,
            ColorChoice::Auto => is_terminal && !self.is_dumb(),
        }
    }

    /// The width in `COLUMNS`, where it is a sensible number.
    pub(crate) fn width(&self) -> Option<usize> {
        self.columns.as_deref()?.parse().ok().filter(|columns| (1..=WIDTH_MAX).contains(columns))
    }
}

/// The widest terminal that is believed.
const WIDTH_MAX: usize = 10_000;

/// The styles of one stream; all of them are plain where it has no colour, so that they can be used without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Styles {
    /// Names and headings.
    pub bold: Style,
    /// What is less important than the text around it: reasoning, statistics, hints.
    pub dim: Style,
    /// Emphasis inside a text.
    pub italic: Style,
    /// Code inside a text, and what can be typed.
    pub code: Style,
    /// The address of a link.
    pub link: Style,
    /// Done, undamaged.
    pub good: Style,
    /// The word `warning`.
    pub warning: Style,
    /// The word `error`.
    pub error: Style,
}

impl Styles {
    /// Gives the styles of a stream with or without colour.
    pub(crate) fn new(color: bool) -> Self {
        if !color {
            return Self::default();
        }
        Self {
            bold: Style::new().bold(),
            dim: Style::new().dimmed(),
            italic: Style::new().italic(),
            code: AnsiColor::Cyan.on_default(),
            link: AnsiColor::Blue.on_default(),
            good: AnsiColor::Green.on_default(),
            warning: AnsiColor::Yellow.on_default().bold(),
            error: AnsiColor::Red.on_default().bold(),
        }
    }
}

/// Puts a style around a text; a plain style adds nothing.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(choice: ColorChoice, values: [&str; 4], is_terminal: bool, expected: bool) {
        let [no_color, term, clicolor, clicolor_force] =
            values.map(|value| (value != "unset").then(|| value.to_owned()));
        let env = TerminalEnv { no_color, term, clicolor, clicolor_force, columns: None };
        assert_eq!(env.color(choice, is_terminal), expected, "{choice:?} {env:?} {is_terminal}");
    }

    #[test]
    fn the_flag_beats_the_environment_beats_the_stream() {
        use ColorChoice::{Always, Auto, Never};
        check(Auto, ["unset", "xterm", "unset", "unset"], true, true);
        check(Auto, ["unset", "xterm", "unset", "unset"], false, false);
        check(Auto, ["1", "xterm", "unset", "unset"], true, false);
        check(Auto, ["", "xterm", "unset", "unset"], true, true);
        check(Auto, ["unset", "dumb", "unset", "unset"], true, false);
        check(Auto, ["unset", "unset", "unset", "unset"], true, false);
        check(Auto, ["unset", "xterm", "0", "unset"], true, false);
        check(Auto, ["unset", "dumb", "unset", "1"], false, true);
        check(Auto, ["unset", "xterm", "unset", "0"], false, false);
        check(Auto, ["1", "xterm", "unset", "1"], true, false);
        check(Always, ["1", "dumb", "0", "unset"], false, true);
        check(Never, ["unset", "xterm", "unset", "1"], true, false);
    }

    #[test]
    fn plain_styles_add_nothing() {
        assert_eq!(paint(Styles::new(false).error, "error"), "error");
        assert_eq!(paint(Styles::new(true).bold, "x"), "\x1b[1mx\x1b[0m");
    }
}
