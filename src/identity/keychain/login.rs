//! The login keychain of the person at this Mac.
//!
//! It is the file-based one: the newer data protection keychain takes only programs that are signed with an entitlement
//! (Apple, TN3137), and ours is signed ad hoc; asked for it, the system answers `errSecMissingEntitlement`. Items in the
//! login keychain can be read while the person is logged in and it is unlocked, by the program that made them or after a
//! dialogue, and it is never synchronised to iCloud. `kSecAttrAccessible` has no meaning for it.

use core_foundation::data::CFData;
use security_framework::base::Error;
use security_framework::item::{ItemAddOptions, ItemAddValue, ItemClass, Location};
use security_framework::passwords::{self, PasswordOptions};
use zeroize::Zeroizing;

use super::{KEYCHAIN_SERVICE, Refusal, SecretItems};

/// Items with the service [`KEYCHAIN_SERVICE`] in it.
pub(super) struct LoginKeychain;

fn options(account: &str) -> PasswordOptions {
    PasswordOptions::new_generic_password(KEYCHAIN_SERVICE, account)
}

fn refusal(error: Error) -> Refusal {
    Refusal { status: error.code(), message: error.message().unwrap_or_else(|| "the Keychain refused".to_owned()) }
}

impl SecretItems for LoginKeychain {
    fn read(&self, account: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        match passwords::generic_password(options(account)) {
            Ok(secret) => Ok(Some(Zeroizing::new(secret))),
            Err(error) if error.code() == Refusal::NOT_FOUND => Ok(None),
            Err(error) => Err(refusal(error)),
        }
    }

    fn add(&self, account: &str, secret: &[u8]) -> Result<(), Refusal> {
        let data = CFData::from_buffer(secret);
        let mut item = ItemAddOptions::new(ItemAddValue::Data { class: ItemClass::generic_password(), data });
        item.set_location(Location::DefaultFileKeychain)
            .set_service(KEYCHAIN_SERVICE)
            .set_account_name(account)
            .set_label("Tiles: keys of this installation");
        item.add().map_err(refusal)
    }

    fn remove(&self, account: &str) -> Result<(), Refusal> {
        match passwords::delete_generic_password_options(options(account)) {
            Err(error) if error.code() != Refusal::NOT_FOUND => Err(refusal(error)),
            _ => Ok(()),
        }
    }
}
