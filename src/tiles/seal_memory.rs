//! The seal that the bundle had when it was last unlocked, kept in the database, whose key authenticates it.

use tilekit::bundle::remembered::Standing;
use tilekit::bundle::{Bundle, Verified};
use tilekit::store::{Access, Store};

use crate::failure::Failure;

/// The setting that holds it.
const SEAL: &str = "bundle.seal";

/// Refuses another seal, or a lower generation, than was remembered; remembers the first one and a renewed one.
pub(crate) fn check_seal(bundle: &Bundle<Verified>, store: &Store) -> Result<(), Failure> {
    if bundle.is_installed() {
        return Ok(());
    }
    let standing = bundle.seal_mark().compare(store.setting(SEAL)?.as_deref())?;
    match (standing, store.access()) {
        (Standing::First | Standing::Renewed, Access::ReadWrite) => remember_seal(bundle, store),
        _ => Ok(()),
    }
}

/// Remembers the seal that the bundle has now.
pub(crate) fn remember_seal(bundle: &Bundle<Verified>, store: &Store) -> Result<(), Failure> {
    Ok(store.set_setting(SEAL, &bundle.seal_mark().to_string())?)
}
