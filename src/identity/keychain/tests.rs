//! The Keychain's logic, over a keychain in memory that refuses in every way the Mac's can.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use crate::identity::{KeyStore as _, Passphrase, WorkFactor};
use crate::test_folder::TestFolder;
use crate::time::Timestamp;

/// What a keychain in memory holds, what it refuses, and how often it was written.
#[derive(Default)]
struct State {
    items: BTreeMap<String, Vec<u8>>,
    refuses: [Option<i32>; 3],
    writes: usize,
    forgets_writes: bool,
}

#[derive(Clone, Default)]
struct MemoryKeychain(Rc<RefCell<State>>);

const READ: usize = 0;
const ADD: usize = 1;
const REMOVE: usize = 2;

impl MemoryKeychain {
    fn refuse(&self, what: usize, status: Option<i32>) {
        self.0.borrow_mut().refuses[what] = status;
    }

    fn check(&self, what: usize) -> Result<(), Refusal> {
        match self.0.borrow().refuses[what] {
            Some(status) => Err(Refusal { status, message: "no".into() }),
            None => Ok(()),
        }
    }

    fn items(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.borrow().items.clone()
    }
}

impl SecretItems for MemoryKeychain {
    fn read(&self, account: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        self.check(READ)?;
        Ok(self.0.borrow().items.get(account).cloned().map(Zeroizing::new))
    }

    fn add(&self, account: &str, secret: &[u8]) -> Result<(), Refusal> {
        self.check(ADD)?;
        let mut state = self.0.borrow_mut();
        if state.items.contains_key(account) {
            return Err(Refusal { status: Refusal::DUPLICATE, message: "there is one".into() });
        }
        state.writes += 1;
        if !state.forgets_writes {
            state.items.insert(account.into(), secret.into());
        }
        Ok(())
    }

    fn remove(&self, account: &str) -> Result<(), Refusal> {
        self.check(REMOVE)?;
        self.0.borrow_mut().items.remove(account);
        Ok(())
    }
}

/// Every way in which a Mac refuses, "not found" not among them.
const REFUSALS: [i32; 6] =
    [Refusal::CANCELED, Refusal::AUTH_FAILED, Refusal::INTERACTION_NOT_ALLOWED, -34018, -61, i32::MIN];

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.into()).expect("it isn't empty")
}

struct Home {
    folder: TestFolder,
    memory: MemoryKeychain,
    keychain: Keychain,
    key_file: KeyFile,
    identity: Identity,
}

impl Home {
    fn new() -> Self {
        let folder = TestFolder::new();
        let memory = MemoryKeychain::default();
        let keychain = Keychain::new(Box::new(memory.clone()), folder.path());
        let key_file = KeyFile::with_work_factor(folder.path(), WorkFactor::MIN);
        let identity = Identity::generate(Timestamp::from_ms(0)).expect("there is randomness");
        key_file.create(&identity, &passphrase("first"), None).expect("nothing is there");
        Self { folder, memory, keychain, key_file, identity }
    }

    fn header(&self) -> SlotHeader {
        self.key_file.report().expect("it can be read").newest().expect("it is whole")
    }

    fn keep(&self) {
        self.keychain.keep(&self.identity, self.header()).expect("nothing refuses");
    }

    fn open(&self) -> Result<&'static str, KeyError> {
        self.keychain.open(&self.key_file).map(|kept| match kept {
            Kept::Off => "off",
            Kept::Gone => "gone",
            Kept::Outdated => "outdated",
            Kept::Open(unlocked) => {
                assert_eq!(unlocked.identity.did(), self.identity.did());
                if unlocked.header == Some(self.header()) { "open" } else { "alone" }
            }
        })
    }
}

#[test]
fn what_is_kept_opens_until_the_key_file_changes() {
    let home = Home::new();
    assert_eq!(home.open().expect("nothing refuses"), "off");
    assert!(!home.keychain.is_on() && home.memory.items().is_empty(), "asking makes nothing");
    home.keep();
    assert_eq!(home.open().expect("nothing refuses"), "open");
    home.keep();
    assert_eq!(home.memory.0.borrow().writes, 1, "what is there already isn't written again");
    home.key_file.change_passphrase(&passphrase("first"), &passphrase("second")).expect("it is right");
    assert_eq!(home.open().expect("nothing refuses"), "outdated");
    home.keep();
    assert_eq!(home.open().expect("nothing refuses"), "open");
    assert_eq!(home.memory.items().len(), 1);
    home.keychain.forget().expect("nothing refuses");
    assert_eq!((home.open().expect("nothing refuses"), home.memory.items().len()), ("off", 0));
    home.keychain.forget().expect("none is fine");
}

#[test]
fn a_new_database_key_is_never_opened_with_the_old_item() {
    let mut home = Home::new();
    home.keep();
    home.identity = home.key_file.rotate_database_key(&passphrase("first")).expect("it is right");
    assert_eq!(home.open().expect("nothing refuses"), "outdated");
}

#[test]
fn a_refusal_is_an_error_and_nothing_is_written() {
    let home = Home::new();
    home.keep();
    let before = home.memory.items();
    home.key_file.change_passphrase(&passphrase("first"), &passphrase("second")).expect("it is right");
    for status in REFUSALS {
        home.memory.refuse(READ, Some(status));
        let is_it = |error: &KeyError| matches!(error, KeyError::Keychain { refusal, .. } if refusal.status == status);
        assert!(home.keychain.open(&home.key_file).err().as_ref().is_some_and(is_it), "{status}");
        let kept = home.keychain.keep(&home.identity, home.header());
        assert!(kept.err().as_ref().is_some_and(is_it), "{status}: what can't be read isn't overwritten");
        home.memory.refuse(READ, None);
        for what in [ADD, REMOVE] {
            home.memory.refuse(what, Some(status));
            assert!(home.keychain.keep(&home.identity, home.header()).is_err(), "{status}");
            home.memory.refuse(what, None);
            // A refused write may leave no item: the key file opens as before, and the next one puts it back.
            home.memory.0.borrow_mut().items.clone_from(&before);
        }
        home.memory.refuse(REMOVE, Some(status));
        assert!(home.keychain.forget().is_err() && home.keychain.is_on(), "{status}");
        home.memory.refuse(REMOVE, None);
    }
    assert_eq!(home.memory.items(), before);
    assert!(home.key_file.unlock(&passphrase("second")).is_ok(), "the key file wasn't touched");
}

#[test]
fn an_item_that_is_gone_is_told_apart_and_one_that_was_not_kept_is_noticed() {
    let home = Home::new();
    home.keep();
    home.memory.0.borrow_mut().items.clear();
    assert_eq!(home.open().expect("nothing refuses"), "gone");
    home.memory.0.borrow_mut().forgets_writes = true;
    assert!(matches!(home.keychain.keep(&home.identity, home.header()), Err(KeyError::NotKept { .. })));
}

#[test]
fn another_identity_is_neither_used_nor_overwritten() {
    let [home, other] = [Home::new(), Home::new()];
    home.keep();
    let before = home.memory.items();
    assert!(matches!(home.keychain.keep(&other.identity, other.header()), Err(KeyError::Exists { .. })));
    assert_eq!(home.memory.items(), before);
    // The folder of another identity with this one's account: the key file that is there counts.
    assert!(matches!(home.keychain.open(&other.key_file), Ok(Kept::Outdated)));
}

#[test]
fn without_a_whole_key_file_the_item_is_all_there_is() {
    let home = Home::new();
    home.keep();
    for name in ["key.a", "key.b"] {
        std::fs::write(home.folder.path().join(name), b"rotten").expect("it can be written");
    }
    let Ok(Kept::Open(kept)) = home.keychain.open(&home.key_file) else { panic!("it opens") };
    assert!(kept.header.is_none() && kept.identity.did() == home.identity.did());
    home.key_file.renew(&kept.identity, &passphrase("third")).expect("it can be written");
    assert_eq!(home.key_file.unlock(&passphrase("third")).expect("it is right").did(), home.identity.did());
    // A whole key file isn't written over.
    let refused = home.key_file.renew(&kept.identity, &passphrase("fourth"));
    assert!(matches!(refused, Err(KeyError::Exists { .. })));
}

#[test]
fn damage_and_later_forms_are_told() {
    let home = Home::new();
    home.keep();
    let (account, good) = home.memory.items().pop_first().expect("there is one");
    let good = String::from_utf8(good).expect("it is text");
    for (from, to, is_newer) in [
        ("tiles-keychain 1", "tiles-keychain 2", true),
        ("version = 1", "version = 9", true),
        ("tiles-keychain", "other", false),
        ("tiles-keychain 1 1", "tiles-keychain 1 x", false),
        ("\n", " ", false),
        ("db_key", "key", false),
    ] {
        let bad = good.replacen(from, to, if from == "\n" { usize::MAX } else { 1 });
        home.memory.0.borrow_mut().items.insert(account.clone(), bad.into_bytes());
        let error = home.open().expect_err("it is damaged");
        assert_eq!(matches!(error, KeyError::Newer { .. }), is_newer, "{from}: {error}");
        assert!(home.keychain.keep(&home.identity, home.header()).is_err(), "{from}: it isn't overwritten");
    }
    for torn in ["", "12", &"x".repeat(32)] {
        std::fs::write(home.folder.path().join(ACCOUNT_NAME), torn).expect("it can be written");
        assert_eq!(home.open().expect("a torn account is none"), "off", "{torn:?}");
    }
}
