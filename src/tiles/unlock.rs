//! From the passphrase to the open store.

use std::path::Path;

use tilekit::bundle::{Bundle, LastExit, Verified};
use tilekit::disk;
use tilekit::disk::two_slot::Slot;
use tilekit::identity::{
    Identity, Kept, KeyError, KeyFile, KeyStore as _, Keychain, Passphrase, SlotFlaw, SlotState, Unlocked,
    system_keychain,
};
use tilekit::library::{Library, added};
use tilekit::store::{Access, Store};

use crate::app::App;
use crate::args::OnboardingArguments;
use crate::failure::{Code, Failure};
use crate::opening::{AtExit, Unexpected};
use crate::seal_memory::check_seal;

/// The longest passphrase file that is read.
const PASSPHRASE_BYTES_MAX: u64 = 4_096;
/// How often a passphrase may be tried at the prompt.
const TRIES_MAX: usize = 3;
/// How long a wrong passphrase takes, so that nobody tries them by hand quickly.
const WRONG_DELAY: std::time::Duration = std::time::Duration::from_secs(1);
pub(crate) use tilekit::store::NICKNAME;

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
    /// Unlocks the bundle: asks for the passphrase, or does the first run. Refuses another seal than it had before.
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
        let open = self.unlock_unchecked(bundle, first, unexpected)?;
        match check_seal(bundle, &open.store) {
            Ok(()) => Ok(open),
            Err(changed) => open.close().and(Err(changed)),
        }
    }

    /// Unlocks the bundle whoever sealed it.
    pub(crate) fn unlock_any_seal(
        &self,
        bundle: &Bundle<Verified>,
        first: &OnboardingArguments,
    ) -> Result<Open, Failure> {
        self.unlock_unchecked(bundle, first, Unexpected::Ask)
    }

    fn unlock_unchecked(
        &self,
        bundle: &Bundle<Verified>,
        first: &OnboardingArguments,
        unexpected: Unexpected,
    ) -> Result<Open, Failure> {
        let mut lock = self.lock(bundle)?;
        let key_file = KeyFile::new(&bundle.key_folder());
        let mut nickname = first.nickname.clone();
        let mut header = None;
        let identity = if key_file.exists()? {
            let unlocked = self.open_keys(bundle, &key_file)?;
            header = unlocked.header;
            unlocked.identity
        } else if let Some(unlocked) = self.keychain_alone(bundle, &key_file)? {
            unlocked.identity
        } else if disk::exists(&bundle.database()) {
            // New keys would never open it, and would hide that the right ones are missing.
            let why = format!("`{}` is there, and the key file that opens it isn't", bundle.database().display());
            let hint = "copy `data/key.a` or `data/key.b` back from a backup or another copy of `data`";
            return Err(Failure::new(Code::Integrity, why, hint));
        } else if bundle.is_read_only() {
            let hint = "write once to it: run `tiles account create` where it isn't write-protected";
            let why = format!("{} has no identity yet, and is write-protected", bundle.noun());
            return Err(Failure::new(Code::Locked, why, hint));
        } else {
            self.onboard(bundle, &key_file, first, &mut nickname)?
        };
        let access = if lock.is_held() { Access::ReadWrite } else { Access::ReadOnly };
        let store = self.open_database(bundle, &identity, header, access, unexpected)?;
        lock.settle();
        self.mend_model_list(bundle, &identity, access);
        if access == Access::ReadOnly {
            self.terminal.warn("the drive is write-protected: nothing of this conversation is saved");
        }
        if store.opening().unfinished_ignored {
            self.terminal.warn("the last messages may be missing until the drive is opened where it can be written");
        }
        if store.opening().recovered || matches!(lock.last_exit(), LastExit::Unclean(_)) && !store.opening().created {
            self.terminal.say("Tiles was not closed properly last time; everything stored was checked and is there.");
        }
        if let (Some(nickname), Access::ReadWrite) = (&nickname, access)
            && store.setting(NICKNAME)?.is_none()
        {
            store.set_nickname(nickname, self.clock.now())?;
        }
        Ok(Open { identity, store, at_exit: self.at_exit(bundle), _lock: lock })
    }

    /// Says where one of the two copies of the list of added models is damaged, and puts it right. Where none is whole,
    /// what needs the list says so.
    fn mend_model_list(&self, bundle: &Bundle<Verified>, identity: &Identity, access: Access) {
        let is_writable = access == Access::ReadWrite;
        let mended = added::mend(&bundle.added_models(), &identity.models_key(), is_writable);
        if let Ok(Some(copy)) = mended {
            let name = copy.file_name().unwrap_or_default().to_string_lossy();
            self.terminal.warn(&format!("of the two copies of the list of added models, `{name}` is damaged"));
            if is_writable {
                self.terminal.say("It was written anew from the good copy; nothing is lost.");
            }
        }
    }

    /// The Keychain of this Mac, for a Tiles that is installed on it; a drive's keys never go there.
    pub(crate) fn keychain(&self, bundle: &Bundle<Verified>) -> Option<Keychain> {
        let items = system_keychain().filter(|_| bundle.is_installed())?;
        Some(Keychain::new(items, &bundle.key_folder()))
    }

    /// Opens the keys: with what the Mac's Keychain has of them, where it was given them, else with the passphrase. A
    /// passphrase that a flag gives is used, whatever the Keychain has.
    pub(crate) fn open_keys(&self, bundle: &Bundle<Verified>, key_file: &KeyFile) -> Result<Unlocked, Failure> {
        let is_given = self.global.passphrase_file.is_some() || self.global.passphrase_fd.is_some();
        let Some(keychain) = self.keychain(bundle).filter(|keychain| !is_given && keychain.is_on()) else {
            return Ok(self.open_key_file(key_file)?.1);
        };
        let is_renewed = match keychain.open(key_file) {
            Ok(Kept::Open(unlocked)) => {
                if unlocked.header.is_none() {
                    self.warn_of_lost_key_file();
                }
                return Ok(*unlocked);
            }
            Ok(Kept::Off) => false,
            Ok(Kept::Gone) => {
                self.terminal
                    .say("The Keychain hasn't the keys any more. The passphrase opens them and puts them back there.");
                true
            }
            Ok(Kept::Outdated) => {
                self.terminal
                    .say("The keys were changed since the Keychain got them. The passphrase renews them there.");
                true
            }
            // Nothing is written where it can't be read.
            Err(error) => {
                self.terminal.warn(&format!("{}; the passphrase opens them too", causes(&error)));
                false
            }
        };
        let unlocked = self.open_key_file(key_file)?.1;
        if let (true, Some(header)) = (is_renewed, unlocked.header) {
            match keychain.keep(&unlocked.identity, header) {
                Ok(()) => self.terminal.say("The Keychain has the keys again."),
                Err(error) => self.terminal.warn(&causes(&error)),
            }
        }
        Ok(unlocked)
    }

    /// The keys out of the Keychain where there is no key file any more.
    fn keychain_alone(&self, bundle: &Bundle<Verified>, key_file: &KeyFile) -> Result<Option<Unlocked>, Failure> {
        let Some(keychain) = self.keychain(bundle) else { return Ok(None) };
        let Kept::Open(unlocked) = keychain.open(key_file)? else { return Ok(None) };
        self.warn_of_lost_key_file();
        Ok(Some(*unlocked))
    }

    fn warn_of_lost_key_file(&self) {
        self.terminal.warn(
            "the key file is lost or damaged: the Keychain alone has the keys; `tiles key passphrase` writes it anew",
        );
    }

    /// Opens the key file, with the passphrase that a flag gives or that is asked for, and tells what is wrong with it.
    pub(crate) fn open_key_file(&self, key_file: &KeyFile) -> Result<(Passphrase, Unlocked), Failure> {
        let given = self.given_passphrase()?;
        let is_given = given.is_some();
        let mut next = given;
        for attempt in 1.. {
            let passphrase = match next.take() {
                Some(passphrase) => passphrase,
                None => {
                    let typed = self.terminal.ask_hidden("Passphrase: ", "--passphrase-file");
                    Passphrase::new(typed.map_err(|error| Failure::from(error).with_code(Code::Locked))?.to_string())?
                }
            };
            let spinner = self.terminal.spinner("Unlocking");
            let began = std::time::Instant::now();
            let opened = key_file.open(&passphrase);
            drop(spinner);
            if self.global.verbose {
                self.terminal.say(&format!("key derived in {} ms", began.elapsed().as_millis()));
            }
            match opened {
                Ok(unlocked) => {
                    if let Some(flaw) = unlocked.flaw {
                        self.tell_flaw(key_file, flaw, &passphrase);
                    }
                    return Ok((passphrase, unlocked));
                }
                Err(KeyError::WrongPassphrase) if !is_given && attempt < TRIES_MAX => {
                    std::thread::sleep(WRONG_DELAY);
                    self.terminal.say("That isn't the passphrase. Try again, or press Ctrl-C.");
                }
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Says what is wrong with one of the two slots, and puts it right where nothing can be lost by that. The keys are
    /// open, so a drive that doesn't take the repair (full, write-protected, worn out) is no reason to stop.
    fn tell_flaw(&self, key_file: &KeyFile, flaw: SlotFlaw, passphrase: &Passphrase) {
        let SlotFlaw { slot, state } = flaw;
        let name = if slot == Slot::A { "key.a" } else { "key.b" };
        self.terminal.warn(&format!("of the two copies of the key file, `{name}` {state}"));
        match key_file.mend(passphrase) {
            Ok(true) => self.terminal.say("It was written anew from the good copy; nothing is lost."),
            Ok(false) => self.terminal.say(match state {
                SlotState::Ahead => {
                    "You used the passphrase before the change. Run `tiles key passphrase` to finish it, in both copies."
                }
                SlotState::Foreign => "It is left as it is. `tiles key passphrase` makes both copies alike, as this one is.",
                SlotState::Newer(_) => "It is left as it is. Use that Tiles, or a later one.",
                _ => "It is left as it is.",
            }),
            Err(error) => self.terminal.warn(&format!("it can't be written anew now: {error}")),
        }
    }

    /// The passphrase of `--passphrase-file` or `--passphrase-fd`.
    pub(crate) fn given_passphrase(&self) -> Result<Option<Passphrase>, Failure> {
        self.read_passphrase(self.global.passphrase_file.as_deref(), self.global.passphrase_fd)
    }

    /// The passphrase in a file or an open descriptor, where one of them is given.
    pub(crate) fn read_passphrase(&self, file: Option<&Path>, fd: Option<u32>) -> Result<Option<Passphrase>, Failure> {
        let content = match (file, fd) {
            (Some(path), _) if path.as_os_str() == "-" => self.read_input(PASSPHRASE_BYTES_MAX)?,
            (Some(path), _) => disk::read_stream(path, PASSPHRASE_BYTES_MAX)?,
            (None, Some(0)) => self.read_input(PASSPHRASE_BYTES_MAX)?,
            (None, Some(number)) => disk::read_stream(Path::new(&format!("/dev/fd/{number}")), PASSPHRASE_BYTES_MAX)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Passphrase::from_file_content(content)?))
    }
}

/// An error with what caused it, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
