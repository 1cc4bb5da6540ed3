//! Keeps secrets out of swap, and gives derived keys a place of their own that is overwritten.

use std::ops::Deref;

use secrecy::{ExposeSecret as _, SecretBox};

/// Asks the system never to write the pages of `secret` to a swap file. Best effort: the limit for locked memory may be
/// zero.
///
/// The system doesn't count locks: unlocking one secret's page would unlock its neighbours on it as well. So a page that
/// was locked stays so until the process ends; they are few.
pub(super) fn keep_in_memory(secret: &[u8]) {
    if let Ok(guard) = region::lock(secret.as_ptr(), secret.len().max(1)) {
        std::mem::forget(guard);
    }
}

/// A key that was derived for one purpose; used as the `[u8; 32]` that it is.
///
/// # Security
/// Boxed, so that moving it leaves no copy; overwritten when dropped; kept from being swapped out where that is allowed.
pub struct DerivedKey(SecretBox<[u8; 32]>);

impl DerivedKey {
    /// Takes a key that `fill` writes in place.
    pub fn init(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let key = SecretBox::init_with_mut(fill);
        keep_in_memory(key.expose_secret());
        Self(key)
    }
}

impl Deref for DerivedKey {
    type Target = [u8; 32];

    fn deref(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}
