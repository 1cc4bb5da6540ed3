//! `tiles key keychain`: the keys of an installed Tiles in this Mac's Keychain too, or no more.

use serde_json::json;
use tilekit::bundle::{Bundle, Verified};
use tilekit::identity::{Kept, KeyFile};

use super::{for_change, new_passphrase};
use crate::app::App;
use crate::args::key::{KeychainState, NewPassphrase};
use crate::failure::{Code, Failure};

/// Runs it.
pub(super) fn run(app: &App, bundle: &Bundle<Verified>, state: KeychainState) -> Result<(), Failure> {
    let Some(keychain) = app.keychain(bundle) else {
        let (why, hint) = match bundle.is_installed() {
            false => (
                "the keys of a drive stay on the drive, in its key file",
                "type the passphrase, or use `--passphrase-file`",
            ),
            true => (
                "this system has no Keychain: the passphrase protects the key file",
                "type it, or use `--passphrase-file`",
            ),
        };
        return Err(Failure::new(Code::Usage, why, hint));
    };
    let (key_file, _lock) = for_change(app, bundle)?;
    match state {
        KeychainState::On => {
            let (_, unlocked) = app.open_key_file(&key_file)?;
            if let Some(header) = unlocked.header {
                keychain.keep(&unlocked.identity, header)?;
            }
            app.terminal
                .say("The Keychain of this Mac has the keys too. The passphrase and the recovery words stay valid.");
        }
        KeychainState::Off => {
            // Were it the last place that has them, all would be lost.
            if key_file.report()?.newest().is_none() {
                let hint = "run `tiles key passphrase` first: it writes the key file anew";
                return Err(Failure::new(
                    Code::Integrity,
                    "no copy of the key file is whole, so the Keychain alone has the keys",
                    hint,
                ));
            }
            keychain.forget()?;
            app.terminal.say("The keys were taken out of the Keychain. From now on the passphrase is asked for.");
        }
    }
    app.print(&json!({ "keychain": self::state(app, bundle) }), String::new)
}

/// How it stands with the Keychain; `None` where there is none, or none for this bundle.
pub(super) fn state(app: &App, bundle: &Bundle<Verified>) -> Option<&'static str> {
    let keychain = app.keychain(bundle)?;
    Some(if keychain.is_on() { "has the keys too, so that the passphrase isn't asked for" } else { "isn't used" })
}

/// Writes the key file anew out of the Keychain, where no copy of it is whole; `false` where there is no need.
pub(super) fn renew_key_file(
    app: &App,
    bundle: &Bundle<Verified>,
    key_file: &KeyFile,
    new: &NewPassphrase,
) -> Result<bool, Failure> {
    let Some(keychain) =
        app.keychain(bundle).filter(|_| key_file.report().is_ok_and(|report| report.newest().is_none()))
    else {
        return Ok(false);
    };
    let Kept::Open(unlocked) = keychain.open(key_file)? else { return Ok(false) };
    app.terminal.say("No copy of the key file is whole. It is written anew, with the keys that the Keychain has.");
    let new = new_passphrase(app, new)?;
    key_file.renew(&unlocked.identity, &new)?;
    app.terminal.say(
        "Both copies are written. Make recovery words with `tiles key recovery`: the former ones open them no more.",
    );
    Ok(true)
}
