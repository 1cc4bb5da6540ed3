//! From the passphrase to the open store, and the first run that makes them.

use std::path::Path;

use serde_json::json;
use tilekit::bundle::{Bundle, LastExit, Verified};
use tilekit::disk;
use tilekit::identity::{
    Identity, KeyError, KeyFile, KeyStore as _, Passphrase, RecoveryWords, Unlocked, strength, suggest_passphrase,
};
use tilekit::library::Library;
use tilekit::store::{Access, Store};

use crate::app::App;
use crate::args::OnboardingArguments;
use crate::commands::account::check_nickname;
use crate::failure::{Code, Failure};
use crate::opening::{AtExit, Unexpected};
use crate::terminal::escape::neutralise_line;

/// The longest passphrase file that is read.
const PASSPHRASE_BYTES_MAX: u64 = 4_096;
/// How often a passphrase may be tried at the prompt.
const TRIES_MAX: usize = 3;
/// How long a wrong passphrase takes, so that nobody tries them by hand quickly.
const WRONG_DELAY: std::time::Duration = std::time::Duration::from_secs(1);
/// The setting that holds what to call the person.
pub(crate) const NICKNAME: &str = "nickname";

/// An unlocked bundle.
pub(crate) struct Open {
    pub(crate) identity: Identity,
    pub(crate) store: Store,
    /// Backs up what was changed.
    pub(crate) at_exit: AtExit,
    /// Keeps the bundle ours; the last to go.
    _lock: tilekit::bundle::BundleLock,
}

impl Open {
    /// The models, with those that the person added.
    pub(crate) fn library(&self, bundle: &Bundle<Verified>) -> Result<Library, Failure> {
        let key = self.identity.models_key();
        let shipped = &bundle.manifest().files;
        Ok(Library::open(&bundle.models(), shipped, &bundle.added_models(), Some(&key))?)
    }

    /// Puts everything on the drive.
    pub(crate) fn close(self) -> Result<(), Failure> {
        self.at_exit.back_up(&self.store, &self.identity);
        Ok(self.store.close()?)
    }
}

impl App {
    /// Unlocks the bundle: asks for the passphrase, or does the first run.
    pub(crate) fn unlock(&self, bundle: &Bundle<Verified>, first: &OnboardingArguments) -> Result<Open, Failure> {
        self.unlock_with(bundle, first, Unexpected::Ask)
    }

    /// As [`App::unlock`]; `unexpected` says what to do where the database isn't the one that the drive had last.
    pub(crate) fn unlock_with(
        &self,
        bundle: &Bundle<Verified>,
        first: &OnboardingArguments,
        unexpected: Unexpected,
    ) -> Result<Open, Failure> {
        let lock = self.lock(bundle)?;
        let key_file = KeyFile::new(&bundle.key_folder());
        let mut nickname = first.nickname.clone();
        let mut header = None;
        let identity = if key_file.exists()? {
            let unlocked = self.open_key_file(&key_file)?;
            header = unlocked.header;
            unlocked.identity
        } else if bundle.is_read_only() {
            let hint = "write once to the drive: run `tiles account create` where it isn't write-protected";
            return Err(Failure::new(Code::Locked, "this drive has no identity yet, and is write-protected", hint));
        } else {
            self.onboard(bundle, &key_file, first, &mut nickname)?
        };
        let access = if lock.is_held() { Access::ReadWrite } else { Access::ReadOnly };
        let store = self.open_database(bundle, &identity, header, access, unexpected)?;
        if access == Access::ReadOnly {
            self.terminal.warn("the drive is write-protected: nothing of this conversation is saved");
        }
        if store.opening().unfinished_ignored {
            self.terminal.warn("the last messages may be missing until the drive is opened where it can be written");
        }
        if store.opening().recovered || matches!(lock.last_exit(), LastExit::Unclean(_)) && !store.opening().created {
            self.terminal
                .say("The drive was not closed properly last time; everything stored was checked and is there.");
        }
        if let (Some(nickname), Access::ReadWrite) = (&nickname, access)
            && store.setting(NICKNAME)?.is_none()
        {
            store.set_setting(NICKNAME, nickname)?;
        }
        Ok(Open { identity, store, at_exit: self.at_exit(bundle), _lock: lock })
    }

    pub(crate) fn open_key_file(&self, key_file: &KeyFile) -> Result<Unlocked, Failure> {
        let given = self.given_passphrase()?;
        for attempt in 1.. {
            let passphrase = match &given {
                Some(passphrase) => passphrase,
                None => {
                    let typed = self.terminal.ask_hidden("Passphrase: ", "--passphrase-file");
                    &Passphrase::new(typed.map_err(|error| Failure::from(error).with_code(Code::Locked))?.to_string())?
                }
            };
            let spinner = self.terminal.spinner("Unlocking");
            let began = std::time::Instant::now();
            let opened = key_file.open(passphrase);
            drop(spinner);
            if self.global.verbose {
                self.terminal.say(&format!("key derived in {} ms", began.elapsed().as_millis()));
            }
            match opened {
                Ok(unlocked) => {
                    if let Some(flaw) = unlocked.flaw {
                        self.terminal
                            .warn(&format!("one of the two copies of the key file is no longer good ({flaw:?})"));
                        if key_file.mend(passphrase)? {
                            self.terminal.say("It was written anew from the good copy.");
                        }
                    }
                    return Ok(unlocked);
                }
                Err(KeyError::WrongPassphrase) if given.is_none() && attempt < TRIES_MAX => {
                    std::thread::sleep(WRONG_DELAY);
                    self.terminal.say("That isn't the passphrase of this drive. Try again, or press Ctrl-C.");
                }
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// The passphrase of `--passphrase-file` or `--passphrase-fd`.
    fn given_passphrase(&self) -> Result<Option<Passphrase>, Failure> {
        let content = match (&self.global.passphrase_file, self.global.passphrase_fd) {
            (Some(path), _) if path.as_os_str() == "-" => self.read_input(PASSPHRASE_BYTES_MAX)?,
            (Some(path), _) => disk::read_stream(path, PASSPHRASE_BYTES_MAX)?,
            (None, Some(0)) => self.read_input(PASSPHRASE_BYTES_MAX)?,
            (None, Some(number)) => disk::read_stream(Path::new(&format!("/dev/fd/{number}")), PASSPHRASE_BYTES_MAX)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Passphrase::from_file_content(content)?))
    }

    /// The first run: nickname, passphrase, recovery words, identity.
    fn onboard(
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
                return Err(Failure::new(Code::Locked, "this drive has no identity yet", hint));
            }
        }
        terminal.say(&format!("This drive has no identity yet. It will live in {}.", bundle.data().display()));
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
            None => self.choose_passphrase()?,
        };
        let words = if first.no_recovery {
            terminal.warn("no recovery words: who forgets the passphrase has lost everything on this drive");
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
        terminal.say(&format!("This drive is now {}.", identity.did()));
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

    fn choose_passphrase(&self) -> Result<Passphrase, Failure> {
        let terminal = &self.terminal;
        terminal.say("Choose a passphrase. It can't be recovered without the 24 words that come next.");
        terminal.say(&format!("For example, four words drawn by lot: {}", suggest_passphrase()?.as_str()));
        loop {
            let typed = terminal.ask_hidden("New passphrase: ", "--passphrase-file")?;
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
            let again = terminal.ask_hidden("The same again: ", "--passphrase-file")?;
            match Passphrase::new(again.to_string()) {
                Ok(again) if again.matches(&passphrase) => return Ok(passphrase),
                _ => terminal.say("These were not the same."),
            }
        }
    }

    /// Shows the recovery words and asks three back, or writes them where a flag says.
    fn hand_over(&self, words: &RecoveryWords, file: Option<&Path>) -> Result<(), Failure> {
        let listed = words.words();
        match file {
            Some(path) if path == Path::new("-") => {
                return self.print(&json!({ "recovery_words": listed }), || listed.join(" "));
            }
            Some(path) => return Ok(disk::write_private(path, format!("{}\n", listed.join(" ")).as_bytes())?),
            None => {}
        }
        let terminal = &self.terminal;
        terminal.say("\nThese 24 words open this drive if the passphrase is forgotten.");
        terminal.say("Write them on paper, in order: they are shown this once.\n");
        for (row, four) in listed.chunks(4).enumerate() {
            let cells = four.iter().enumerate().map(|(idx, word)| format!("{:>4}. {word:<10}", row * 4 + idx + 1));
            terminal.say(&cells.collect::<String>());
        }
        terminal.say("");
        for position in [3, 11, 20] {
            loop {
                let typed = terminal.ask_line(&format!("Word {position}: "), "--recovery-file")?;
                if listed.get(position - 1).is_some_and(|word| *word == typed.trim().to_lowercase()) {
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
