//! `tiles privacy`: what is stored where, and what the operating system records by itself.

use serde_json::json;

use crate::app::App;
use crate::failure::Failure;

/// What Tiles itself does.
const OURS: [&str; 14] = [
    "Everything you say and every answer is in `data/db/tiles.db`, encrypted with a key that only your passphrase opens.",
    "The last two backups of it are in `data/backup/`, encrypted with the same key. They hold what was deleted since: `tiles data backup --replace` makes a new one and removes them.",
    "What the model computed of your last conversations is in `data/cache/`, encrypted too; deleting it costs only time.",
    "The identity and all keys are in `data/key.a` and `data/key.b`, twice the same, sealed with your passphrase.",
    "Added models are in `models/`, their list in `data/models.toml`. Neither is encrypted: they say which models you use.",
    "`data/run.a`, `data/run.b` and `data/lock` say when the drive was used and on which machine last. `data/logs/` says when and how Tiles ended, never what was said. They aren't encrypted.",
    "`data/settings.toml` holds the settings of `tiles config`, not encrypted.",
    "Nothing is written outside the bundle's folder, and the network is used by four commands alone: `tiles model pull --allow-network`, for its endpoint (huggingface.co) and where that redirects; `tiles link enable`; `tiles sync`; and `tiles model send` with `tiles model receive` and `tiles model list --peers`.",
    "`tiles link enable` announces on the local network, while it waits, that a Tiles is there: two letters of its code, an address, and a key made for that link. Not your name, your identity or the machine's name; nothing is sent beyond the local network. Only who proved to know the code is told your nickname and your DID, and only who you said yes to is linked.",
    "`tiles sync` and `tiles model send` announce on the local network, while they run, that a Tiles is there: an address, and a name that only linked drives recognise and that is another one each day. Who isn't linked is refused before anything is said; who connects to that address all the same can learn the DID, as the key that the connection is encrypted with. Linked drives get all sessions. Nothing is sent beyond the local network.",
    "With `tiles config set relay URL` linking and syncing connect to that relay too, which then knows the addresses of both machines and when they talk, and nothing of what they say. There is none by default.",
    "Linked drives are kept in `data/db/tiles.db`, with their nicknames and when they last synced. What you delete is deleted on all of them with their next sync; a drive that you unlink keeps what it has.",
    "`tiles --installed` keeps the same in a folder of your home instead of a drive, which `tiles data path` names; on a Mac the Keychain has the keys too (item `Tiles`), until `tiles key keychain off`. Moved away, it leaves `data.retired`, sealed as before.",
    "`--no-save` and `/private` keep nothing of a conversation.",
];

/// What any machine may record, whatever Tiles does. Not a promise that the list is complete.
const ANYWHERE: [&str; 5] = [
    "The shell's history keeps what you type after `tiles`, such as `-p \"…\"`. The prompt inside Tiles isn't seen by it.",
    "The operating system notes that a drive was plugged in, its name, and that a program was started from it.",
    "Swap and hibernation files may hold parts of a conversation while it goes on. Keys are locked in memory where allowed.",
    "A terminal keeps its scrollback, some of them on disk.",
    "Administrators of the machine, and what they installed, can see the screen, the keyboard and the memory.",
];

/// What a Mac records beside that.
const MACOS: [&str; 5] = [
    "Gatekeeper and XProtect keep that they checked the program, with its path and signature.",
    "The unified log keeps the program's start, its name and its process for days.",
    "Spotlight may index the drive's file names; `.metadata_never_index` in the bundle asks it not to.",
    "Metal keeps compiled shaders in a cache of its own: they say that a model was run, not what was said.",
    "The Finder remembers the drive's name and window, and recent folders.",
];

/// What Linux records beside that.
const LINUX: [&str; 4] = [
    "The journal (`journalctl`) keeps the drive's maker, model, serial number and when it was mounted.",
    "The desktop remembers recent files and folders (`recently-used.xbel`), and thumbnails of pictures you open.",
    "Where process accounting or auditing is on, each program's start is kept with its arguments.",
    "A crash handler such as `systemd-coredump` is told of crashes; Tiles switches the dump of its memory off.",
];

/// What this machine's system may record.
pub(crate) fn system() -> Vec<&'static str> {
    let own: &[&str] = if cfg!(target_os = "macos") { &MACOS } else { &LINUX };
    ANYWHERE.iter().chain(own).copied().collect()
}

/// Runs it.
pub(crate) fn run(app: &App) -> Result<(), Failure> {
    let (here, elsewhere) = if cfg!(target_os = "macos") { ("macOS", "Linux") } else { ("Linux", "macOS") };
    let other: &[&str] = if cfg!(target_os = "macos") { &LINUX } else { &MACOS };
    app.print(&json!({ "tiles": OURS, "operating_system": system(), "elsewhere": other }), || {
        let list = |lines: &[&str]| lines.iter().map(|line| format!("  - {line}\n")).collect::<String>();
        format!(
            "What Tiles keeps:\n{}\nWhat this machine ({here}) may keep, which Tiles can't prevent:\n{}\nWhat {elsewhere} \
             keeps instead of the last {}:\n{}\n`tiles doctor --traces` looks. Deleting the bundle's folder removes everything \
             that Tiles keeps.",
            list(&OURS),
            list(&system()),
            system().len() - ANYWHERE.len(),
            list(other)
        )
    })
}
