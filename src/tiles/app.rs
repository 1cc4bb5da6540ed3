//! Builds each thing once, top to bottom, and hands it down. Only this file reads the environment.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use tilekit::bundle::moving::RETIRED;
use tilekit::bundle::{Bundle, BundleError, BundleLock, Found, Holder, LastExit, Preferences, Trust, Verified};
use tilekit::disk::{self, DiskError};
use tilekit::host::{Host, SystemClock};
use tilekit::identity::{KeyFile, KeyStore as _};
use tilekit::logbook::{Event, Logbook};
use tilekit::manifest::signature::SealPublicKey;
use tilekit::message::SessionId;
use tilekit::time::Clock;

use crate::args::{Arguments, ColorChoice, Global};
use crate::commands;
use crate::failure::{Code, Failure};
use crate::opening::AtExit;
use crate::presence::{LastWord, watch};
use crate::terminal::style::{ColorChoice as Color, TerminalEnv};
use crate::terminal::{Terminal, TerminalError, TerminalSettings};

/// The largest program that is read into memory at the start: many times ours.
const PROGRAM_BYTES_MAX: u64 = 512 << 20;

/// Says to the program that takes this one's place what it goes on with.
const AFTER_LOCK: &str = "--after-lock";

/// The file in the system's folder that names another one, where `tiles data set-path` moved the installation there.
const LOCATION_NAME: &str = "location";
/// The longest path that is read from it.
const LOCATION_BYTES_MAX: u64 = 4096;

/// What the environment says, read once.
pub(crate) struct Environment {
    /// The running program.
    pub(crate) executable: PathBuf,
    /// The person's editor: `VISUAL`, then `EDITOR`.
    pub(crate) editor: Option<String>,
    /// Whether standard input is a terminal.
    pub(crate) stdin_is_terminal: bool,
    /// Where an installed Tiles keeps what is the person's; `None` where the environment names no home.
    pub(crate) installed_root: Option<PathBuf>,
    /// Whether a variable says when to use colour.
    pub(crate) names_color: bool,
    /// The home folder and the temporary ones, in which nothing of ours may be left.
    pub(crate) watched: Vec<PathBuf>,
}

/// What every command gets.
pub(crate) struct App {
    pub(crate) global: Global,
    pub(crate) environment: Environment,
    pub(crate) terminal: Arc<Terminal>,
    pub(crate) clock: Arc<dyn Clock>,
    interrupted: Arc<AtomicBool>,
    log: Arc<Mutex<Option<Logbook>>>,
    left_unclean: AtomicBool,
    last_word: LastWord,
}

/// Clears the line by which the launcher said that the program is starting.
fn clear_starting() {
    use std::io::Write as _;
    if std::env::var_os("TILES_STARTING").is_some_and(|said| said == "1") {
        // Who can't be told this can't be told more.
        let _ = std::io::stderr().write_all(b"\r\x1b[K");
    }
}

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    harden();
    clear_starting();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let error = match error.get(ContextKind::InvalidSubcommand) {
                Some(ContextValue::String(word)) if error.get(ContextKind::SuggestedSubcommand).is_none() => {
                    commands::unknown(word)
                }
                _ => error,
            };
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked { 0 } else { Code::Usage as u8 });
        }
    };
    let (app, command, run) = match App::new(arguments) {
        Ok(parts) => parts,
        Err(code) => return code,
    };
    app.watch_for_defects();
    match std::panic::catch_unwind(AssertUnwindSafe(|| commands::dispatch(&app, command, run))) {
        Ok(result) => app.report(result),
        Err(_) => app.report_defect(),
    }
}

/// Keeps secrets out of core dumps and away from other processes of the same user. Best effort: it is a second wall.
fn harden() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// `~/Library/Application Support/Tiles` on a Mac; `$XDG_DATA_HOME/tiles`, which is `~/.local/share/tiles`, elsewhere. As the
/// XDG Base Directory Specification says, a relative path doesn't count.
fn installed_root(xdg_data_home: Option<String>, home: Option<String>) -> Option<PathBuf> {
    let absolute = |path: Option<String>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    if cfg!(target_os = "macos") {
        return Some(absolute(home)?.join("Library/Application Support/Tiles"));
    }
    let data = absolute(xdg_data_home).or_else(|| Some(absolute(home)?.join(".local/share")));
    Some(data?.join("tiles"))
}

/// When the bundle's settings want colour. Whatever is wrong with the bundle is told by the command that uses it.
fn preferred_color(global: &Global) -> Option<String> {
    let executable = std::env::current_exe().ok()?;
    let bundle = Bundle::<Found>::find(global.bundle.as_deref(), &executable).ok()?;
    Preferences::read(&bundle.preferences()).ok()?.color
}

/// The folders in which a program that leaves traces would leave them.
fn watched(variable: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = ["HOME", "TMPDIR", "XDG_RUNTIME_DIR"].into_iter().filter_map(variable).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = named.chain(["/tmp", "/var/tmp"].map(PathBuf::from)).collect();
    folders.retain(|folder| folder.is_absolute() && folder != Path::new("/"));
    folders.sort();
    // One within another is looked at with it.
    folders.dedup_by(|next, folder| next.starts_with(&*folder));
    folders
}

/// What was typed after `tiles`, without what would unlock it again or name another session.
fn locked_arguments(typed: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const FLAGS: [&str; 3] = ["--passphrase-file", "--passphrase-fd", "--session"];
    let mut kept = Vec::new();
    let mut is_value = false;
    for argument in typed {
        let text = argument.to_string_lossy();
        if std::mem::take(&mut is_value) {
            continue;
        }
        is_value = FLAGS.contains(&&*text);
        let has_value = |flag: &str| text.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='));
        if !is_value && text != AFTER_LOCK && !FLAGS.iter().any(|flag| has_value(flag)) {
            kept.push(argument);
        }
    }
    kept
}

impl App {
    fn new(arguments: Arguments) -> Result<(Self, Option<crate::args::Command>, crate::args::RunArguments), ExitCode> {
        let variable = |name: &str| std::env::var(name).ok();
        let Arguments { global, run, command } = arguments;
        let named = ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"].into_iter().any(|name| variable(name).is_some());
        let preferred = if named || global.color != ColorChoice::Auto { None } else { preferred_color(&global) };
        let settings = TerminalSettings {
            color: match global.color {
                ColorChoice::Auto if preferred.as_deref() == Some("always") => Color::Always,
                ColorChoice::Auto if preferred.as_deref() == Some("never") => Color::Never,
                ColorChoice::Auto => Color::Auto,
                ColorChoice::Always => Color::Always,
                ColorChoice::Never => Color::Never,
            },
            env: TerminalEnv {
                no_color: variable("NO_COLOR"),
                term: variable("TERM"),
                clicolor: variable("CLICOLOR"),
                clicolor_force: variable("CLICOLOR_FORCE"),
                columns: variable("COLUMNS"),
            },
            quiet: global.quiet,
            no_input: global.no_input,
        };
        let terminal = Arc::new(Terminal::new(settings));
        let executable = std::env::current_exe().map_err(|error| {
            terminal.error(&error, None);
            ExitCode::from(Code::Failure as u8)
        })?;
        let environment = Environment {
            executable,
            editor: variable("VISUAL").or_else(|| variable("EDITOR")).filter(|editor| !editor.trim().is_empty()),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            installed_root: installed_root(variable("XDG_DATA_HOME"), variable("HOME")),
            names_color: named,
            watched: watched(&variable),
        };
        let interrupted = Arc::new(AtomicBool::new(false));
        // Where no handler can be set, Ctrl-C ends the program, and the store survives that too.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&interrupted));
        Ok((
            Self {
                global,
                environment,
                terminal,
                clock: Arc::new(SystemClock),
                interrupted,
                log: Arc::default(),
                left_unclean: AtomicBool::new(false),
                last_word: LastWord::default(),
            },
            command,
            run,
        ))
    }

    /// Says how a command ended: its error on stderr, its code to the shell.
    fn report(&self, result: Result<(), Failure>) -> ExitCode {
        // Until the program is gone.
        std::mem::forget(self.last_word.take());
        self.terminal.restore();
        self.log(match &result {
            Err(Failure { code, kind, .. }) if *code != Code::Interrupted => Event::Failed { code: *code as u8, kind },
            ended => Event::Ended { code: ended.as_ref().err().map_or(0, |failure| failure.code as u8) },
        });
        let Err(failure) = result else { return ExitCode::SUCCESS };
        match failure.error.downcast_ref::<TerminalError>() {
            // `| head -1` has what it wanted.
            Some(TerminalError::Closed) => return ExitCode::SUCCESS,
            Some(TerminalError::Interrupted) => return ExitCode::from(Code::Interrupted as u8),
            _ => {}
        }
        if failure.code != Code::Interrupted {
            self.terminal.error(&*failure.error, failure.hint.as_deref());
        }
        ExitCode::from(failure.code as u8)
    }

    /// Notes where the program panics, in the log if it is open; what the panic says may quote the person, and isn't kept.
    fn watch_for_defects(&self) {
        let (log, clock) = (Arc::clone(&self.log), Arc::clone(&self.clock));
        std::panic::set_hook(Box::new(move |panic| {
            let event = panic.location().map(|place| Event::panicked(place.file(), place.line()));
            // A panic within the log itself mustn't wait for it.
            if let (Some(event), Ok(log)) = (event, log.try_lock())
                && let Some(log) = &*log
            {
                let _ = log.add(clock.now(), event);
            }
        }));
    }

    /// Says that the program met a defect of its own.
    fn report_defect(&self) -> ExitCode {
        // Until the program is gone.
        std::mem::forget(self.last_word.take());
        self.terminal.leave();
        let is_logged = self.log.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let place = if is_logged { ". `data/logs/tiles.log` says where it was, and no word of yours" } else { "" };
        let hint = format!("start Tiles again: everything it acknowledged is stored{place}");
        self.terminal.error(&*Failure::new(Code::Defect, "Tiles met a defect of its own", "").error, Some(&hint));
        ExitCode::from(Code::Defect as u8)
    }

    /// Whether a test wants a defect at `place`. A release build has nothing of it, not even the variable's name.
    pub(crate) fn shall_break(place: &str) -> bool {
        cfg!(debug_assertions) && std::env::var("TILES_DEFECT").is_ok_and(|named| named == place)
    }

    /// Whether who had the bundle before didn't give it back.
    pub(crate) fn was_left_unclean(&self) -> bool {
        self.left_unclean.load(Ordering::Relaxed)
    }

    /// Adds to the log, where one is open. That it can't be written is no failure of what is being done.
    pub(crate) fn log(&self, event: Event) {
        if let Some(log) = &*self.log.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = log.add(self.clock.now(), event);
        }
    }

    /// What is done when the database is closed.
    pub(crate) fn at_exit(&self, bundle: &Bundle<Verified>) -> AtExit {
        let (terminal, clock, interrupted) =
            (Arc::clone(&self.terminal), Arc::clone(&self.clock), Arc::clone(&self.interrupted));
        AtExit { terminal, clock, interrupted, folder: bundle.backups() }
    }

    /// Whether Ctrl-C was pressed since this was last asked.
    pub(crate) fn take_interrupt(&self) -> bool {
        self.interrupted.swap(false, Ordering::Relaxed)
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// What Ctrl-C sets, for who waits elsewhere.
    pub(crate) fn interrupt_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// Whose seal this program accepts: its makers' where their key was compiled in, else anybody's, who is then named.
    pub(crate) fn trust() -> Trust {
        option_env!("TILES_RELEASE_KEY").and_then(SealPublicKey::from_hex).map_or(Trust::Any, Trust::Release)
    }

    /// Has the system read the program, and the libraries beside it, into memory: a drive that is pulled out later must
    /// not take away the code that says so.
    fn keep_program(&self) {
        let program = self.environment.executable.clone();
        // Where it can't be read it isn't kept; it runs all the same.
        std::thread::spawn(move || {
            let _ = disk::read_through(&program, PROGRAM_BYTES_MAX);
            let Some(folder) = program.parent() else { return };
            for name in disk::list(folder).unwrap_or_default() {
                if name.ends_with(".dylib") || name.ends_with(".so") {
                    let _ = disk::read_through(&folder.join(name), PROGRAM_BYTES_MAX);
                }
            }
        });
    }

    /// Ends the program when the drive of the bundle is pulled out. An installed Tiles is on no drive.
    pub(crate) fn watch_drive(&self, bundle: &Bundle<Verified>) {
        if !bundle.is_installed() {
            watch(bundle.marker(), Arc::clone(&self.terminal), self.last_word.clone());
        }
    }

    /// Finds and verifies the bundle; or, where no marker is around the program, the installed Tiles that was set up.
    pub(crate) fn bundle(&self) -> Result<Bundle<Verified>, Failure> {
        let found = match Bundle::<Found>::find(self.global.bundle.as_deref(), &self.environment.executable) {
            Err(error @ BundleError::NotFound { .. }) => return self.installed(error),
            Ok(_) if self.global.installed => {
                let hint = "leave `--installed` away, or use a program that isn't on a drive";
                return Err(Failure::new(Code::Usage, "this program is on a drive, whose bundle always wins", hint));
            }
            found => found?,
        };
        let bundle = found.verify(Self::trust())?;
        // Only now: FUSE forgets what it holds of a file when that is opened again, as verification does.
        self.keep_program();
        if self.global.verbose {
            self.terminal.say(&format!("bundle {}", bundle.root().display()));
            bundle
                .strangers()
                .iter()
                .for_each(|name| self.terminal.warn(&format!("`{name}` isn't part of the bundle")));
        }
        Ok(bundle)
    }

    /// The installed Tiles of this user. Where there is none yet, it is made only on `--installed` or when the person says so:
    /// a drive that lost its marker, or a program copied somewhere, must not leave an identity in the home of a stranger.
    fn installed(&self, not_found: BundleError) -> Result<Bundle<Verified>, Failure> {
        let Some(root) = &self.installed_root()? else { return Err(not_found.into()) };
        let data = root.join("data");
        if disk::exists(&root.join(RETIRED)) && !disk::exists(&data) {
            self.terminal.say(&format!(
                "What was in {} was moved away with `tiles data adopt` or `bundle create`.",
                root.display()
            ));
        }
        if !KeyFile::new(&data).exists()? {
            if !self.global.installed {
                if !self.terminal.is_interactive() {
                    return Err(not_found.into());
                }
                self.terminal.say("This program isn't on a drive: no bundle is around it.");
                self.terminal.say(&format!("Tiles can be set up on this computer instead, in {}.", root.display()));
                if !self.terminal.confirm("Set it up there?", "--installed")? {
                    return Err(not_found.into());
                }
            }
            disk::create_folder(&data)?;
        }
        let bundle = Bundle::installed(root)?;
        if self.global.verbose {
            self.terminal.say(&format!("installed in {}", bundle.root().display()));
        }
        Ok(bundle)
    }

    /// Where the Tiles of this user is installed: the system's folder for that, or the one that `tiles data set-path` names
    /// in it. That one must be there: where its disk isn't mounted, nothing is begun anew.
    pub(crate) fn installed_root(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(root) = &self.environment.installed_root else { return Ok(None) };
        let text = match disk::read_text(&root.join(LOCATION_NAME), LOCATION_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Ok(Some(root.clone())),
            Err(error) => return Err(error.into()),
        };
        let path = PathBuf::from(text.strip_suffix('\n').unwrap_or(&text));
        if !path.is_absolute() || !disk::is_folder(&path) {
            let why = format!("the data of this installation is in `{}`, and that folder isn't there", path.display());
            let hint = format!("mount its disk; or remove `{}` to begin anew", root.join(LOCATION_NAME).display());
            return Err(Failure::new(Code::Failure, why, hint));
        }
        Ok(Some(path))
    }

    /// Names another folder as the one where the Tiles of this user is.
    pub(crate) fn set_installed_path(&self, path: &Path) -> Result<(), Failure> {
        let Some(root) = &self.environment.installed_root else { return Ok(()) };
        let location = root.join(LOCATION_NAME);
        if path == root {
            return Ok(disk::remove(&location)?);
        }
        let Some(text) = path.to_str().filter(|text| !text.contains('\n')) else {
            let why = format!("`{}` can't be written down: its name isn't text", path.display());
            return Err(Failure::new(Code::Usage, why, "choose another folder"));
        };
        Ok(disk::write(&location, format!("{text}\n").as_bytes())?)
    }

    /// The bundle of a drive, for what an installed Tiles doesn't have.
    pub(crate) fn drive(&self) -> Result<Bundle<Verified>, Failure> {
        let bundle = self.bundle()?;
        if bundle.is_installed() {
            let why = "this Tiles is installed on the computer, and isn't a bundle that could be sealed or copied";
            return Err(Failure::new(Code::Usage, why, "name the drive's folder with `--bundle DIR`"));
        }
        Ok(bundle)
    }

    /// Whether the Tiles in use is installed on the computer. Asks nobody, and makes nothing.
    pub(crate) fn is_installed(&self) -> Result<bool, Failure> {
        match Bundle::<Found>::find(self.global.bundle.as_deref(), &self.environment.executable) {
            Err(BundleError::NotFound { .. }) => {
                let data = self.installed_root()?.map(|root| root.join("data"));
                Ok(data.map_or(Ok(false), |data| KeyFile::new(&data).exists())?)
            }
            _ => Ok(false),
        }
    }

    /// Why it is this bundle.
    pub(crate) fn found_by(&self, bundle: &Bundle<Verified>) -> &'static str {
        match bundle.is_installed() {
            true => "installed for this user: no marker is around the program",
            false if self.global.bundle.is_some() => "--bundle",
            false => "the folder around the program",
        }
    }

    /// Takes the bundle for this process; another that has it is named at once.
    pub(crate) fn lock<State>(&self, bundle: &Bundle<State>) -> Result<BundleLock, Failure> {
        let host = Host::probe()?;
        let lock = bundle.lock(Holder::new(self.clock.now(), &host, std::process::id()))?;
        if lock.is_held() {
            *self.log.lock().unwrap_or_else(PoisonError::into_inner) = Logbook::open(&bundle.logs()).ok();
            self.log(Event::Started { version: env!("CARGO_PKG_VERSION") });
            if matches!(lock.last_exit(), LastExit::Unclean(_)) {
                self.log(Event::Unclean);
                self.left_unclean.store(true, Ordering::Relaxed);
            }
        }
        Ok(lock)
    }

    /// Locks for good: puts a new program in this one's place, which asks for the passphrase and goes on with `session`.
    /// The system takes all memory of the old one: keys, and what SQLCipher, OpenSSL, the line editor and the engine hold
    /// of the conversation, which nobody could find and overwrite piece by piece.
    ///
    /// The store is closed already; `closed` says how that went. Returns only where nothing could be started.
    pub(crate) fn start_again(&self, session: Option<SessionId>, closed: Result<(), Failure>) -> Failure {
        if let Err(failure) = closed {
            self.terminal.error(&*failure.error, failure.hint.as_deref());
        }
        let mut arguments = locked_arguments(std::env::args_os().skip(1));
        arguments.push(AFTER_LOCK.into());
        arguments.extend(session.map(|session| OsString::from(format!("--session={session}"))));
        self.terminal.say(match session {
            Some(_) => "Locked: the keys and all that was said are out of memory. The conversation goes on with the passphrase.",
            None => "Locked: the keys and all that was said are out of memory.",
        });
        self.terminal.restore();
        let error = std::process::Command::new(&self.environment.executable).args(arguments).exec();
        let why = format!("the drive is locked, and Tiles can't be started again from it: {error}");
        Failure::new(Code::Failure, why, "plug the drive in and start Tiles again")
    }

    /// Reads standard input to its end. The open descriptor is read, not `/dev/stdin`: opening that asks again for the
    /// right to read, which the owner of a pipe or terminal may be somebody else to give.
    pub(crate) fn read_input(&self, bytes_max: u64) -> Result<Vec<u8>, Failure> {
        let name = Path::new("standard input");
        let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
        let descriptor = descriptor.map_err(|error| DiskError::new("read", name, error))?;
        Ok(disk::read_open(std::fs::File::from(descriptor), name, bytes_max)?)
    }

    /// Prints data: JSON with `--json`, else the text that `text` makes.
    pub(crate) fn print(&self, json: &serde_json::Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut printed = if self.global.json { format!("{json:#}") } else { text() };
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        Ok(self.terminal.out(&printed)?)
    }

    /// Asks before something that can't be taken back; `--yes` answers it.
    pub(crate) fn confirm(&self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes || self.terminal.confirm(question, "--yes")? {
            return Ok(());
        }
        Err(Failure::new(Code::Failure, "nothing was changed", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn an_installed_tiles_is_where_the_system_keeps_data() {
        let root = |xdg: Option<&str>, home: Option<&str>| {
            let root = installed_root(xdg.map(Into::into), home.map(Into::into));
            root.map(|root| root.display().to_string())
        };
        assert_eq!(root(Some("/x"), Some("/home/ada")).as_deref(), Some("/x/tiles"));
        assert_eq!(root(None, Some("/home/ada")).as_deref(), Some("/home/ada/.local/share/tiles"));
        assert_eq!(root(Some("relative"), Some("/home/ada")).as_deref(), Some("/home/ada/.local/share/tiles"));
        assert_eq!((root(None, None), root(Some(""), Some("x"))), (None, None));
    }

    #[test]
    fn what_starts_again_is_locked() {
        let check = |typed: &[&str], expected: &[&str]| {
            let kept = locked_arguments(typed.iter().map(Into::into));
            assert_eq!(kept, expected.iter().map(OsString::from).collect::<Vec<_>>(), "{typed:?}");
        };
        check(&[], &[]);
        check(&["--passphrase-file", "x"], &[]);
        check(&["run", "m", "--passphrase-file=x", "--seed", "1"], &["run", "m", "--seed", "1"]);
        check(&["--passphrase-fd", "3", "--session", "ab", "run"], &["run"]);
        check(&["run", "--after-lock"], &["run"]);
        check(&["--session=ab", "--passphrase-file", "--session", "--stats"], &["--stats"]);
        check(&["--system", "Be brief.", "--bundle", "/x"], &["--system", "Be brief.", "--bundle", "/x"]);
    }
}
