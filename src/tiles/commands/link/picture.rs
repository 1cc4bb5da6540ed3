//! A ticket as a QR code, in half blocks.

use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};

use crate::terminal::{Stream, Terminal};

/// Black on white, whatever the terminal's own colours are.
const BLACK_ON_WHITE: &str = "\x1b[30;107m";
const RESET: &str = "\x1b[0m";

/// The picture of `text`, where the terminal can show it whole.
pub(super) fn of(text: &str, terminal: &Terminal) -> Option<String> {
    let columns = terminal.width(Stream::Err)?;
    if terminal.is_dumb() {
        return None;
    }
    let drawn = drawn(text, terminal.has_color(Stream::Err))?;
    let width = drawn.lines().next()?.chars().filter(|c| !c.is_ascii() || *c == ' ').count();
    (width <= columns).then_some(drawn)
}

fn drawn(text: &str, has_color: bool) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let mut renderer = code.render::<Dense1x2>();
    if has_color {
        let rows = renderer.build();
        return Some(rows.lines().map(|row| format!("{BLACK_ON_WHITE}{row}{RESET}\n")).collect());
    }
    // Most terminals are dark: there the letters are the light modules.
    Some(renderer.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The modules of a drawn code, row by row; `true` is dark.
    fn modules(drawn: &str, block_is_dark: bool) -> Vec<Vec<bool>> {
        let mut rows = Vec::new();
        for line in drawn.lines() {
            let line = line.trim_start_matches(BLACK_ON_WHITE).trim_end_matches(RESET);
            let halves = |upper: bool| {
                let is_block = move |c: char| matches!((c, upper), ('█', _) | ('▀', true) | ('▄', false));
                line.chars().map(move |c| is_block(c) == block_is_dark).collect::<Vec<_>>()
            };
            rows.extend([halves(true), halves(false)]);
        }
        rows
    }

    #[test]
    fn both_ways_of_drawing_show_the_same_code_with_its_quiet_zone() {
        let text = format!("TILES1:{}", "ABCDEFGH234567".repeat(9));
        let code = QrCode::with_error_correction_level(&text, EcLevel::L).expect("it fits");
        let [colored, plain] = [true, false].map(|has_color| drawn(&text, has_color).expect("it fits"));
        let [colored, plain] = [modules(&colored, true), modules(&plain, false)];
        for drawn in [&colored, &plain] {
            assert_eq!(drawn[0].len(), code.width() + 8);
            for (y, row) in drawn.iter().enumerate().take(code.width() + 8) {
                for (x, dark) in row.iter().enumerate() {
                    let inside = (4..code.width() + 4).contains(&x) && (4..code.width() + 4).contains(&y);
                    let expected = inside && code[(x - 4, y - 4)] == qrcode::Color::Dark;
                    assert_eq!(*dark, expected, "{x} {y}");
                }
            }
        }
        assert!(drawn(&"x".repeat(4_000), true).is_none());
    }
}
