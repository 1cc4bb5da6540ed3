//! `Identity`: the secret keys of a bundle, what is derived from them, and where they are kept.
//!
//! The identity belongs to the bundle: carrying the drive carries it. Its Ed25519 key signs and is the [`Did`]; a raw key
//! opens the database; the bundle key is the root of what is authenticated inside. Nothing else sees secret bytes: keys
//! are given out boxed and overwritten on drop, or derived for one purpose by HKDF-SHA256 with a label.

use std::sync::Mutex;

use ed25519_dalek::{Signer as _, SigningKey};
use secrecy::{ExposeSecret as _, SecretBox};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::did::Did;
use crate::time::Timestamp;

mod argon2id;
mod condition;
mod error;
mod key_file;
mod keychain;
mod passphrase;
mod payload;
mod recovery;
mod secret;
mod slot;

pub use argon2id::WorkFactor;
pub use condition::{KeyFileReport, SlotFlaw, SlotReport, SlotState};
pub use error::KeyError;
pub use key_file::KeyFile;
pub use keychain::{KEYCHAIN_SERVICE, Kept, Keychain, Refusal, SecretItems, system_keychain};
pub use passphrase::{PASSPHRASE_BYTES_MAX, Passphrase, SUGGESTED_WORDS, Strength, strength, suggest_passphrase};
pub(crate) use recovery::age_identity;
pub use recovery::{RECOVERY_TEXT_BYTES_MAX, RECOVERY_WORDS, RecoveryWords, WordsError};
pub use secret::DerivedKey;
pub use slot::{SLOT_BYTES, SLOT_BYTES_MAX, SlotHeader};

/// How many previous database keys are kept, for a database that a cut left under an old one.
pub const PREVIOUS_KEYS_MAX: usize = 8;

/// The secret keys of a bundle.
///
/// # Security
/// Has no `Debug`, is no serde type, is overwritten when dropped, and is kept from being swapped out where the system
/// allows it. The pages are locked as a best effort: the limit for locked memory may be zero.
pub struct Identity {
    created_at: Timestamp,
    generation: u64,
    identity_seed: SecretBox<[u8; 32]>,
    database_key: SecretBox<[u8; 32]>,
    bundle_key: SecretBox<[u8; 32]>,
    previous_database_keys: Vec<SecretBox<[u8; 32]>>,
}

impl Identity {
    /// Draws new keys.
    ///
    /// # Errors
    /// [`KeyError::Random`] where the operating system gives no random bytes.
    pub fn generate(now: Timestamp) -> Result<Self, KeyError> {
        Ok(Self::from_keys(now, 1, [random_key()?, random_key()?, random_key()?], Vec::new()))
    }

    /// Puts together identity seed, database key and bundle key.
    fn from_keys(
        created_at: Timestamp,
        generation: u64,
        [identity_seed, database_key, bundle_key]: [SecretBox<[u8; 32]>; 3],
        previous_database_keys: Vec<SecretBox<[u8; 32]>>,
    ) -> Self {
        [&identity_seed, &database_key, &bundle_key]
            .into_iter()
            .chain(&previous_database_keys)
            .for_each(|key| secret::keep_in_memory(key.expose_secret()));
        Self { created_at, generation, identity_seed, database_key, bundle_key, previous_database_keys }
    }

    /// Draws a new database key; the one in force until now becomes the first of the previous ones, and of more than
    /// [`PREVIOUS_KEYS_MAX`] the oldest is forgotten.
    fn draw_database_key(&mut self) -> Result<(), KeyError> {
        let drawn = random_key()?;
        secret::keep_in_memory(drawn.expose_secret());
        self.generation = self.generation.checked_add(1).ok_or(KeyError::TooLarge)?;
        self.previous_database_keys.insert(0, std::mem::replace(&mut self.database_key, drawn));
        self.previous_database_keys.truncate(PREVIOUS_KEYS_MAX);
        Ok(())
    }

    /// Who this is to others.
    pub fn did(&self) -> Did {
        let public_key = self.signing_key().verifying_key().to_bytes();
        Did::from_public_key(public_key).expect("the public half of an Ed25519 key is a point of the curve")
    }

    /// Signs `message` with the identity's Ed25519 key.
    ///
    /// # Security
    /// A signature is for one purpose: `message` starts with a text that names it, or another one could be passed off.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing_key().sign(message).to_bytes()
    }

    /// When the keys were drawn.
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// Counts the changes of the keys themselves; a new passphrase isn't one.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The raw key of the database.
    pub const fn database_key(&self) -> &SecretBox<[u8; 32]> {
        &self.database_key
    }

    /// The keys that the database had before, the latest first.
    pub fn previous_database_keys(&self) -> &[SecretBox<[u8; 32]>] {
        &self.previous_database_keys
    }

    /// The key of the HMAC over `data/models.toml`.
    pub fn models_key(&self) -> DerivedKey {
        self.derive("models-list")
    }

    /// Derives a key for one purpose from the bundle key: HKDF-SHA256 with the label `tiles/v1/PURPOSE`.
    pub fn derive(&self, purpose: &'static str) -> DerivedKey {
        let hkdf = hkdf::Hkdf::<Sha256>::new(None, self.bundle_key.expose_secret());
        DerivedKey::init(|key| {
            let derived = hkdf.expand_multi_info(&[b"tiles/v1/", purpose.as_bytes()], &mut key[..]);
            derived.expect("32 bytes are within what HKDF-SHA256 gives");
        })
    }

    /// The secret key of the endpoint that linked drives connect to, which is the identity's own: the DID is the endpoint id.
    ///
    /// # Security
    /// It is the one key that a library of the network must have as it is, to prove the DID in TLS. For `peer` alone.
    pub fn endpoint_secret(&self) -> DerivedKey {
        DerivedKey::init(|key| key.copy_from_slice(self.identity_seed.expose_secret()))
    }

    fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(self.identity_seed.expose_secret())
    }
}

fn random_key() -> Result<SecretBox<[u8; 32]>, KeyError> {
    let mut key = Box::new([0; 32]);
    getrandom::fill(&mut key[..])?;
    Ok(SecretBox::new(key))
}

/// Keys that were opened, and what to tell about where they were kept.
pub struct Unlocked {
    /// The keys.
    pub identity: Identity,
    /// Generation and run id of what was opened, to be compared with the database's; `None` where there are no slots.
    pub header: Option<SlotHeader>,
    /// What is wrong with the slot that wasn't opened; [`KeyStore::mend`] puts it right.
    pub flaw: Option<SlotFlaw>,
}

/// Where the keys of a bundle are kept.
pub trait KeyStore {
    /// Whether anything is kept there, damaged or not.
    ///
    /// # Errors
    /// What looking can meet. An error is never taken for "no", or new keys would replace good ones.
    fn exists(&self) -> Result<bool, KeyError>;

    /// Opens the keys with the passphrase, and says what is wrong with the store although it could be opened.
    ///
    /// # Errors
    /// [`KeyError::WrongPassphrase`], [`KeyError::Damaged`], [`KeyError::Newer`], [`KeyError::Missing`] and others.
    fn open(&self, passphrase: &Passphrase) -> Result<Unlocked, KeyError>;

    /// Opens the keys with the passphrase.
    ///
    /// # Errors
    /// As [`KeyStore::open`].
    fn unlock(&self, passphrase: &Passphrase) -> Result<Identity, KeyError> {
        self.open(passphrase).map(|unlocked| unlocked.identity)
    }

    /// Keeps new keys under a passphrase, and under recovery words where there are some.
    ///
    /// # Errors
    /// [`KeyError::Exists`] where there are keys already, and what writing can meet.
    fn create(
        &self,
        identity: &Identity,
        passphrase: &Passphrase,
        words: Option<&RecoveryWords>,
    ) -> Result<(), KeyError>;

    /// Puts right what [`KeyStore::open`] found wrong, and says whether there was something that it could put right.
    ///
    /// # Errors
    /// As [`KeyStore::open`], and what writing can meet.
    fn mend(&self, passphrase: &Passphrase) -> Result<bool, KeyError>;
}

/// Keys that are kept in memory only, for tests and for programs that keep nothing.
#[derive(Default)]
pub struct MemoryKeyStore(Mutex<Option<(Passphrase, Zeroizing<String>)>>);

impl MemoryKeyStore {
    /// Makes one without keys.
    pub fn new() -> Self {
        Self::default()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<(Passphrase, Zeroizing<String>)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl KeyStore for MemoryKeyStore {
    fn exists(&self) -> Result<bool, KeyError> {
        Ok(self.kept().is_some())
    }

    fn open(&self, passphrase: &Passphrase) -> Result<Unlocked, KeyError> {
        let kept = self.kept();
        let (right, text) = kept.as_ref().ok_or_else(|| KeyError::Missing { path: "memory".into() })?;
        if !right.matches(passphrase) {
            return Err(KeyError::WrongPassphrase);
        }
        let damaged =
            |_| KeyError::Damaged { path: "memory".into(), reason: "its keys aren't written as they should be" };
        let payload = payload::read(text.as_bytes()).map_err(damaged)?;
        Ok(Unlocked { identity: payload.identity, header: None, flaw: None })
    }

    fn create(
        &self,
        identity: &Identity,
        passphrase: &Passphrase,
        words: Option<&RecoveryWords>,
    ) -> Result<(), KeyError> {
        let mut kept = self.kept();
        if kept.is_some() {
            return Err(KeyError::Exists { path: "memory".into() });
        }
        let recovery = words.map(|words| words.to_age_identity().to_public());
        *kept = Some((passphrase.copy(), payload::write(identity, recovery.as_ref())?));
        Ok(())
    }

    fn mend(&self, passphrase: &Passphrase) -> Result<bool, KeyError> {
        self.open(passphrase).map(|_| false)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The same keys once more.
    pub(crate) fn same(identity: &Identity) -> Identity {
        let (store, passphrase) = (MemoryKeyStore::new(), || Passphrase::new("for a copy".into()).expect("it is one"));
        store.create(identity, &passphrase(), None).expect("memory takes it");
        store.unlock(&passphrase()).expect("it is right")
    }

    fn identity() -> Identity {
        let keys = [1, 2, 3].map(|byte| SecretBox::new(Box::new([byte; 32])));
        Identity::from_keys(Timestamp::from_ms(0), 1, keys, Vec::new())
    }

    #[test]
    fn the_identity_signs_as_its_did() {
        let identity = identity();
        let signature = identity.sign(b"tiles/v1/test: message");
        assert!(identity.did().verifies(b"tiles/v1/test: message", &signature));
        assert!(!identity.did().verifies(b"tiles/v1/test: another", &signature));
    }

    #[test]
    fn each_purpose_has_its_own_key() {
        let identity = identity();
        assert_eq!(*identity.models_key(), *identity.derive("models-list"));
        let keys = [*identity.derive("a"), *identity.derive("b"), *identity.models_key()];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        // HKDF-SHA256 computed with Python's hmac and hashlib.
        let models: String = keys[2].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(models, "970b8b9f6ba10b8ca332aa456fa73219a6024fa2a6f99ecf42d86e319c28b038");
    }

    #[test]
    fn a_new_database_key_keeps_the_former_ones() {
        let mut identity = identity();
        let (did, mut former) = (identity.did(), Vec::new());
        for round in 1..=PREVIOUS_KEYS_MAX + 2 {
            former.insert(0, *identity.database_key().expose_secret());
            identity.draw_database_key().expect("random bytes are there");
            let previous: Vec<_> = identity.previous_database_keys().iter().map(|key| *key.expose_secret()).collect();
            assert_eq!(previous, former[..round.min(PREVIOUS_KEYS_MAX)]);
            assert!(!previous.contains(identity.database_key().expose_secret()));
        }
        assert_eq!((identity.did(), identity.generation()), (did, PREVIOUS_KEYS_MAX as u64 + 3));
    }

    #[test]
    fn generated_keys_differ() {
        let [first, second] =
            [0; 2].map(|_| Identity::generate(Timestamp::from_ms(0)).expect("random bytes are there"));
        assert_ne!(first.did(), second.did());
        let keys = |identity: &Identity| {
            [
                *identity.database_key.expose_secret(),
                *identity.bundle_key.expose_secret(),
                *identity.identity_seed.expose_secret(),
            ]
        };
        let mut all = [keys(&first), keys(&second)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn the_memory_store_keeps_keys() {
        let store = MemoryKeyStore::new();
        let passphrase = Passphrase::new("words".into()).expect("it isn't empty");
        assert!(!store.exists().expect("it can be asked"));
        assert!(matches!(store.unlock(&passphrase), Err(KeyError::Missing { .. })));
        let identity = identity();
        store.create(&identity, &passphrase, None).expect("nothing is there");
        assert!(matches!(store.create(&identity, &passphrase, None), Err(KeyError::Exists { .. })));
        assert_eq!(store.unlock(&passphrase).expect("it is right").did(), identity.did());
        let wrong = Passphrase::new("word".into()).expect("it isn't empty");
        assert!(matches!(store.unlock(&wrong), Err(KeyError::WrongPassphrase)));
    }
}
