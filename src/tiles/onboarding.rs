//! The first run: nickname, passphrase, recovery words, identity; and the questions that changing keys asks as well.

use std::path::Path;

use serde_json::json;
use tilekit::bundle::{Bundle, Verified};
use tilekit::disk;
use tilekit::identity::{
    Identity, KeyFile, KeyStore as _, Passphrase, RECOVERY_WORDS, RecoveryWords, strength, suggest_passphrase,
};

use crate::app::App;
use crate::args::OnboardingArguments;
use crate::commands::account::check_nickname;
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;
use crate::unlock::causes;

/// How many of the recovery words are asked back.
const ASKED_BACK: usize = 3;

impl App {
    /// The first run: nickname, passphrase, recovery words, identity.
    pub(crate) fn onboard(
        &self,
        bundle: &Bundle<Verified>,
        key_file: &KeyFile,
        first: &OnboardingArguments,
        nickname: &mut Option<String>,
    ) -> Result<Identity, Failure> {
        let terminal = &self.terminal;
        let given = self.given_passphrase()?;
        if !terminal.is_interactive() {
            let missing = match (&given, first.no_recovery || first.recovery_file.is_some()) {
                (None, _) => Some("--passphrase-file"),
                (_, false) => Some("--no-recovery` or `--recovery-file"),
                _ => None,
            };
            if let Some(flag) = missing {
                let hint = format!("run `tiles account create` in a terminal, or add `{flag}`");
                return Err(Failure::new(Code::Locked, format!("{} has no identity yet", bundle.noun()), hint));
            }
        }
        terminal.say(&format!(
            "{} has no identity yet. It will live in {}.",
            bundle.noun_first(),
            bundle.data().display()
        ));
        if terminal.is_interactive() {
            terminal.say("Nothing is sent anywhere, and nothing is written outside that folder.\n");
        }
        match nickname {
            Some(nickname) => check_nickname(nickname)?,
            None if terminal.is_interactive() => *nickname = self.ask_nickname()?,
            None => {}
        }
        let passphrase = match given {
            Some(passphrase) => passphrase,
            None => {
                terminal.say("Choose a passphrase. It can't be recovered without the 24 words that come next.");
                self.choose_passphrase("--passphrase-file")?
            }
        };
        let words = if first.no_recovery {
            let place = if bundle.is_installed() { "in this installation" } else { "on this drive" };
            terminal.warn(&format!("no recovery words: who forgets the passphrase has lost everything {place}"));
            None
        } else {
            Some(RecoveryWords::generate()?)
        };
        if let Some(words) = &words {
            self.hand_over(words, first.recovery_file.as_deref())?;
        }
        let identity = Identity::generate(self.clock.now())?;
        disk::create_folder(&bundle.data())?;
        let spinner = self.terminal.spinner("Sealing the keys");
        key_file.create(&identity, &passphrase, words.as_ref())?;
        drop(spinner);
        terminal.say(&format!("{} is now {}.", bundle.noun_first(), identity.did()));
        if let (Some(keychain), Some(header)) = (self.keychain(bundle), key_file.report()?.newest()) {
            match keychain.keep(&identity, header) {
                Ok(()) => terminal.say(
                    "The Keychain of this Mac has the keys too, so that the passphrase isn't asked for here. `tiles key \
                     keychain off` takes them out.",
                ),
                Err(error) => terminal.warn(&format!("{}; the passphrase will be asked for", causes(&error))),
            }
        }
        Ok(identity)
    }

    fn ask_nickname(&self) -> Result<Option<String>, Failure> {
        loop {
            let typed = self.terminal.ask_line("What shall I call you? (Return for no name) ", "--nickname")?;
            match typed.trim() {
                "" => return Ok(None),
                nickname => match check_nickname(nickname) {
                    Ok(()) => return Ok(Some(nickname.to_owned())),
                    Err(failure) => self.terminal.say(&failure.error.to_string()),
                },
            }
        }
    }

    /// Asks for a new passphrase, twice the same, and says how strong it is. `flag` is what gives it in a script.
    pub(crate) fn choose_passphrase(&self, flag: &'static str) -> Result<Passphrase, Failure> {
        let terminal = &self.terminal;
        terminal.say(&format!("For example, four words drawn by lot: {}", suggest_passphrase()?.as_str()));
        loop {
            let typed = terminal.ask_hidden("New passphrase: ", flag)?;
            let passphrase = match Passphrase::new(typed.to_string()) {
                Ok(passphrase) => passphrase,
                Err(error) => {
                    terminal.say(&error.to_string());
                    continue;
                }
            };
            let strength = strength(&passphrase);
            terminal.say(&format!(
                "  strength {} of 4{}",
                strength.score,
                match &strength.advice {
                    Some(advice) if strength.score < 3 => format!(": {advice}"),
                    _ => String::new(),
                }
            ));
            let again = terminal.ask_hidden("The same again: ", flag)?;
            match Passphrase::new(again.to_string()) {
                Ok(again) if again.matches(&passphrase) => return Ok(passphrase),
                _ => terminal.say("These were not the same."),
            }
        }
    }

    /// Shows the recovery words and asks three back, or writes them where a flag says.
    pub(crate) fn hand_over(&self, words: &RecoveryWords, file: Option<&Path>) -> Result<(), Failure> {
        let listed = words.words();
        match file {
            Some(path) if path == Path::new("-") => {
                return self.print(&json!({ "recovery_words": listed }), || listed.join(" "));
            }
            Some(path) => return Ok(disk::write_private(path, format!("{}\n", listed.join(" ")).as_bytes())?),
            None => {}
        }
        let terminal = &self.terminal;
        if !terminal.is_interactive() {
            let hint = "give `--recovery-file FILE`, or run it in a terminal without `--no-input`";
            return Err(Failure::new(Code::Usage, "there is nobody to show the recovery words to", hint));
        }
        terminal.say("\nThese 24 words open the keys if the passphrase is forgotten.");
        terminal.say("Write them on paper, in order: they are shown this once.\n");
        for (row, four) in listed.chunks(4).enumerate() {
            let cells = four.iter().enumerate().map(|(idx, word)| format!("{:>4}. {word:<10}", row * 4 + idx + 1));
            terminal.say(&cells.collect::<String>());
        }
        terminal.say("");
        for position in positions()? {
            loop {
                let typed = terminal.ask_line(&format!("Word {position}: "), "--recovery-file")?;
                if words.is_word(position, &typed) {
                    break;
                }
                terminal.say(&format!(
                    "`{}` isn't word {position}. Look at the list above.",
                    neutralise_line(typed.trim())
                ));
            }
        }
        Ok(())
    }
}

/// Which words are asked back: drawn anew each time, so that nobody learns to write down only those; in order.
fn positions() -> Result<Vec<usize>, Failure> {
    let mut drawn = Vec::with_capacity(ASKED_BACK);
    while drawn.len() < ASKED_BACK {
        let mut random = [0_u8];
        getrandom::fill(&mut random).map_err(tilekit::identity::KeyError::from)?;
        // What is left of 256 after the last whole round of 24 would make some positions likelier.
        let position = usize::from(random[0]) % RECOVERY_WORDS + 1;
        if usize::from(random[0]) < 240 && !drawn.contains(&position) {
            drawn.push(position);
        }
    }
    drawn.sort_unstable();
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_different_words_are_asked_back_and_every_word_may_be() {
        let mut asked = [false; RECOVERY_WORDS];
        // A word is missed by all of 2000 draws once in 10^115 runs.
        for _ in 0..2_000 {
            let drawn = positions().expect("random bytes are there");
            assert!(drawn.len() == ASKED_BACK && drawn.is_sorted_by(|a, b| a < b), "{drawn:?}");
            drawn.iter().for_each(|position| asked[position - 1] = true);
        }
        assert_eq!(asked, [true; RECOVERY_WORDS]);
    }
}
