//! Stop strings: text is held back while it may still become one, across any borders of tokens.

/// Looks for stop strings in text that arrives in pieces.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// What arrived and was not given out: the beginning of a stop string, perhaps.
    held: String,
}

impl StopStrings {
    /// Makes the search for `stops`; empty ones are never found.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece: gives the text that can go out, and whether a stop string was met. What follows a stop
    /// string is dropped.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(start) = found {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Gives what is still held back: no more text comes, so it becomes no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`, but not the whole.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&len| stop.as_bytes()[..len] == text.as_bytes()[text.len() - len..]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut search = StopStrings::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, is_stopped) = search.push(piece);
            out.push(text);
            if is_stopped {
                return (out, true);
            }
        }
        out.push(search.finish());
        (out, false)
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], bool);
        let table: &[Row] = &[
            (&[], &["a", "b"], &["a", "b", ""], false),
            (&[""], &["a"], &["a", ""], false),
            (&["END"], &["one EN", "D two"], &["one ", ""], true),
            (&["END"], &["E", "N", "x"], &["", "", "ENx", ""], false),
            (&["END"], &["E", "N"], &["", "", "EN"], false),
            (&["END"], &["EEN", "D"], &["E", ""], true),
            (&["aab"], &["aa", "a", "b"], &["", "a", ""], true),
            (&["\n\n", "User:"], &["hi\nUs", "er: x"], &["hi\n", ""], true),
            (&["bc", "abcd"], &["xabc"], &["xa"], true),
            (&["é"], &["caf", "é!"], &["caf", ""], true),
            (&["éa"], &["è", "éb"], &["è", "éb", ""], false),
        ];
        for (stops, pieces, expected, is_stopped) in table {
            let (found, found_stopped) = run(stops, pieces);
            assert_eq!(
                (found.iter().map(String::as_str).collect::<Vec<_>>(), found_stopped),
                (expected.to_vec(), *is_stopped)
            );
        }
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(text in "[abé]{0,30}", stops in prop::collection::vec("[abé]{1,4}", 0..3), cut in 1usize..5) {
            let chars: Vec<char> = text.chars().collect();
            let pieces: Vec<String> = chars.chunks(cut).map(|piece| piece.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (found, is_stopped) = run(&stops, &pieces);
            // The stop string that is complete first ends the text; of those, the one that began first.
            let ended = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]).find_map(|start| {
                stops.iter().filter(|stop| start.ends_with(**stop)).map(|stop| start.len() - stop.len()).min()
            });
            if cut == 1 {
                prop_assert_eq!(found.concat(), &text[..ended.unwrap_or(text.len())]);
            }
            prop_assert_eq!(is_stopped, ended.is_some());
            if !is_stopped {
                prop_assert_eq!(found.concat(), text);
            }
        }
    }
}
