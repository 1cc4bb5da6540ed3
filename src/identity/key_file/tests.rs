//! The key file under damage, power cuts, changes of the passphrase, and stock age.

use std::fs;
use std::io::Read as _;
use std::str::FromStr as _;
use std::time::Instant;

use secrecy::ExposeSecret as _;

use super::*;
use crate::hint::Hint as _;
use crate::test_folder::TestFolder;
use crate::time::Timestamp;

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.into()).expect("it isn't empty")
}

fn store(folder: &TestFolder) -> KeyFile {
    KeyFile::with_work_factor(folder.path(), WorkFactor::MIN)
}

/// A key file with passphrase `old`, its recovery words and its identity.
fn created(folder: &TestFolder) -> (KeyFile, RecoveryWords, Identity) {
    let store = store(folder);
    let identity = Identity::generate(Timestamp::from_ms(1_795_688_340_123)).expect("random bytes are there");
    let words = RecoveryWords::generate().expect("random bytes are there");
    store.create(&identity, &passphrase("old"), Some(&words)).expect("the folder is empty");
    (store, words, identity)
}

fn slots(store: &KeyFile) -> [Vec<u8>; 2] {
    Slot::BOTH.map(|slot| fs::read(store.path(slot)).expect("it is there"))
}

fn put(store: &KeyFile, [a, b]: [&[u8]; 2]) {
    fs::write(store.path(Slot::A), a).expect("the folder can be written");
    fs::write(store.path(Slot::B), b).expect("the folder can be written");
}

fn error<T>(result: Result<T, KeyError>) -> KeyError {
    result.err().expect("it must not open")
}

#[test]
fn keys_come_back_as_they_were_kept() {
    let folder = TestFolder::new();
    assert!(!store(&folder).exists().expect("it can be asked"));
    assert!(matches!(error(store(&folder).unlock(&passphrase("old"))), KeyError::Missing { .. }));
    let (store, _, identity) = created(&folder);
    assert!(store.exists().expect("it can be asked"));
    let unlocked = store.open(&passphrase("old")).expect("it is right");
    assert_eq!((unlocked.flaw, unlocked.header.map(|header| header.generation)), (None, Some(1)));
    let opened = unlocked.identity;
    let text = |identity| payload::write(identity, None).expect("the date is possible");
    assert_eq!(*text(&opened), *text(&identity));
    assert_eq!((opened.did(), opened.created_at()), (identity.did(), identity.created_at()));
    let [a, b] = slots(&store);
    assert!(a == b && a.len() == SLOT_BYTES);
    assert!(matches!(error(store.unlock(&passphrase("Old"))), KeyError::WrongPassphrase));
    assert!(matches!(error(store.create(&identity, &passphrase("x"), None)), KeyError::Exists { .. }));
    assert_eq!(slots(&store), [a, b]);
}

#[test]
fn stock_age_opens_a_slot_with_the_recovery_key() {
    let folder = TestFolder::new();
    let (store, words, identity) = created(&folder);
    let recovery = x25519::Identity::from_str(words.to_age_key().expose_secret()).expect("it is an age key");
    for slot in slots(&store) {
        let text = age::decrypt(&recovery, &slot).expect("age opens it");
        let text = String::from_utf8(text).expect("it is text");
        let seed: String = identity.identity_seed.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(text.contains(&format!("identity_seed = \"{seed}\"")) && text.ends_with(" \n"));
    }
    let other = x25519::Identity::generate();
    assert!(matches!(age::decrypt(&other, &slots(&store)[0]), Err(age::DecryptError::NoMatchingKeys)));
}

#[test]
fn the_passphrase_is_normalised() {
    let folder = TestFolder::new();
    let store = store(&folder);
    let identity = Identity::generate(Timestamp::from_ms(0)).expect("random bytes are there");
    store.create(&identity, &passphrase("caf\u{e9}"), None).expect("the folder is empty");
    assert!(store.unlock(&passphrase("cafe\u{301}")).is_ok());
}

#[test]
fn wrong_damaged_and_newer_are_three_messages() {
    let folder = TestFolder::new();
    let (store, ..) = created(&folder);
    let wrong = error(store.unlock(&passphrase("wrong")));
    let [whole, _] = slots(&store);
    let mut torn = whole.clone();
    torn[4000] ^= 1;
    put(&store, [&torn, &torn]);
    let damaged = error(store.unlock(&passphrase("old")));
    let newer = {
        let newer = with_slot_line(&whole, "2 1 00 what may come");
        put(&store, [&newer, &torn]);
        error(store.unlock(&passphrase("old")))
    };
    assert_eq!(wrong.to_string(), "the passphrase is wrong");
    assert!(damaged.to_string().ends_with("key.a` is damaged: its content isn't what was written"), "{damaged}");
    assert!(newer.to_string().ends_with("key.a` has format 2, which this Tiles doesn't know"), "{newer}");
    let hints = [&wrong, &damaged, &newer].map(|error| error.hint().expect("each has one"));
    assert!(hints[0].contains("tiles key restore") && hints[1].contains("backup") && hints[2].contains("later one"));
    assert!(store.exists().expect("it can be asked"), "damaged keys are keys: none may take their place");
}

/// The slot with another first line, and a digest that fits: what a later Tiles or a forger writes.
fn with_slot_line(whole: &[u8], line: &str) -> Vec<u8> {
    let start = b"age-encryption.org/v1\n-> tiles-slot ".len();
    let end = start + whole[start..].iter().position(|byte| *byte == b'\n').expect("it has a line");
    slot::with_right_digest([&whole[..start], line.as_bytes(), &whole[end..]].concat())
}

#[test]
fn each_flipped_bit_is_damage_and_the_other_slot_opens() {
    let folder = TestFolder::new();
    let (store, ..) = created(&folder);
    let [whole, _] = slots(&store);
    let mac = slot::mac_field(&whole);
    let mut found_after_deriving = 0;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match slot::inspect(&flipped) {
            Err(Flaw::Damaged(_)) => {}
            Err(Flaw::Newer(_)) => panic!("bit {bit} is taken for a newer format"),
            // Only the header's MAC isn't covered. One derivation a digit is enough, and most are refused before it.
            Ok(_) => {
                assert!(mac.contains(&(bit / 8)), "bit {bit} isn't covered");
                if bit % 8 == 0 && bit / 8 % 8 == 0 {
                    put(&store, [&flipped, &flipped]);
                    let error = error(store.unlock(&passphrase("old")));
                    assert!(matches!(error, KeyError::Damaged { .. }), "bit {bit}: {error}");
                    put(&store, [&flipped, &whole]);
                    let unlocked = store.open(&passphrase("old")).expect("the other slot is whole");
                    let flaw = unlocked.flaw.expect("one slot is damaged");
                    assert!(flaw.slot == Slot::A && matches!(flaw.state, SlotState::Damaged(_)), "{flaw:?}");
                    found_after_deriving += 1;
                }
            }
        }
    }
    assert!(found_after_deriving >= 5);
}

#[test]
fn each_torn_mix_of_two_versions_is_damage() {
    let [first, second] = [TestFolder::new(), TestFolder::new()];
    let (store, ..) = created(&first);
    let [old, _] = slots(&store);
    store.change_passphrase(&passphrase("old"), &passphrase("new")).expect("it is right");
    let [new, _] = slots(&store);
    let [foreign, _] = slots(&created(&second).0);
    let zeros = vec![0; SLOT_BYTES];
    let mut count = 0;
    for (x, y) in [(&old, &new), (&new, &old), (&new, &foreign), (&new, &zeros), (&zeros, &new)] {
        for border in (64..SLOT_BYTES).step_by(64) {
            let torn = [&x[..border], &y[border..]].concat();
            // One sector in the middle that wasn't written, as well.
            let mut holed = x.clone();
            holed[border - 64..border].copy_from_slice(&y[border - 64..border]);
            for torn in [torn, holed] {
                if torn != *x && torn != *y {
                    assert!(matches!(slot::inspect(&torn), Err(Flaw::Damaged(_))), "border {border}");
                    count += 1;
                }
            }
        }
    }
    for length in (0..SLOT_BYTES).step_by(64) {
        assert!(matches!(slot::inspect(&new[..length]), Err(Flaw::Damaged(_))), "length {length}");
    }
    assert!(count > 500, "{count}");
    assert!(slot::inspect(&new).is_ok() && slot::inspect(&old).is_ok());
}

#[test]
fn telling_damage_takes_no_derivation() {
    let folder = TestFolder::new();
    let store = KeyFile::new(folder.path());
    let identity = Identity::generate(Timestamp::from_ms(0)).expect("random bytes are there");
    store.create(&identity, &passphrase("old"), None).expect("the folder is empty");
    let started = Instant::now();
    assert!(matches!(error(store.unlock(&passphrase("wrong"))), KeyError::WrongPassphrase));
    let one_derivation = started.elapsed();
    let [mut torn, _] = slots(&store);
    torn[3000] ^= 1;
    put(&store, [&torn, &torn]);
    let started = Instant::now();
    for _ in 0..20 {
        assert!(matches!(error(store.unlock(&passphrase("old"))), KeyError::Damaged { .. }));
    }
    assert!(started.elapsed() < one_derivation * 5, "{:?}, {one_derivation:?}", started.elapsed());
}

#[test]
fn a_cut_at_any_point_of_a_change_leaves_keys_that_open() {
    let folder = TestFolder::new();
    let (store, _, identity) = created(&folder);
    let [old, _] = slots(&store);
    store.change_passphrase(&passphrase("old"), &passphrase("new")).expect("it is right");
    let [new, also_new] = slots(&store);
    assert!(new == also_new && new != old);
    let torn = |border: usize| [&new[..border], &old[border..]].concat();
    // The slots as a cut can leave them, what opens them, and the other slot's flaw.
    let behind = Some(SlotState::Behind);
    for (a, b, opens, flaw) in [
        (old.clone(), torn(1024), "old", None),
        (old.clone(), new.clone(), "old", Some(SlotState::Ahead)),
        (old.clone(), new.clone(), "new", behind),
        (torn(2048), new.clone(), "new", None),
        (new.clone(), new.clone(), "new", None),
    ] {
        put(&store, [&a, &b]);
        let unlocked = store.open(&passphrase(opens)).expect("one slot opens");
        assert_eq!(unlocked.identity.did(), identity.did());
        match (flaw, unlocked.flaw.map(|flaw| flaw.state)) {
            (None, None | Some(SlotState::Damaged(_))) => {}
            (expected, found) => assert_eq!(expected, found),
        }
        // Mending makes both alike, unless the other slot is newer than the passphrase.
        let mended = store.mend(&passphrase(opens)).expect("it is right");
        assert_eq!(mended, a != b && flaw != Some(SlotState::Ahead));
        let [mended_a, mended_b] = slots(&store);
        assert_eq!(mended_a == mended_b, flaw != Some(SlotState::Ahead));
        // And the change can be done again from whatever is there.
        store.change_passphrase(&passphrase(opens), &passphrase("third")).expect("it is right");
        assert!(matches!(error(store.unlock(&passphrase(opens))), KeyError::WrongPassphrase));
        assert_eq!(store.open(&passphrase("third")).expect("it is right").flaw, None);
    }
}

/// 300 cuts: at each border the slot being written holds the new version up to there and the old one after it.
#[test]
fn three_hundred_power_cuts_leave_keys_that_open() {
    let folder = TestFolder::new();
    let (store, _, identity) = created(&folder);
    let [old, _] = slots(&store);
    store.change_passphrase(&passphrase("old"), &passphrase("new")).expect("it is right");
    let [new, _] = slots(&store);
    for cut in 0..300 {
        let border = (cut / 2 * SLOT_BYTES).div_ceil(149).min(SLOT_BYTES);
        let torn = [&new[..border], &old[border..]].concat();
        // The first slot written is `b`, because `a` was opened.
        let (content, opens) = if cut % 2 == 0 { ([&old, &torn], "old") } else { ([&torn, &new], "new") };
        put(&store, [content[0], content[1]]);
        let unlocked = store.open(&passphrase(opens)).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        assert_eq!(unlocked.identity.did(), identity.did());
        let whole = content[0] == content[1];
        assert_eq!(unlocked.flaw.is_none(), whole, "cut {cut}: {:?}", unlocked.flaw);
    }
}

#[test]
fn other_recovery_words_replace_the_old_ones() {
    let folder = TestFolder::new();
    let (store, words, identity) = created(&folder);
    let other = RecoveryWords::generate().expect("random bytes are there");
    store.change_recovery(&passphrase("old"), Some(&other)).expect("it is right");
    assert!(matches!(error(store.restore(&words, &passphrase("x"))), KeyError::WrongWords));
    store.restore(&other, &passphrase("new")).expect("these are right");
    assert_eq!(store.unlock(&passphrase("new")).expect("it is right").did(), identity.did());
    store.change_recovery(&passphrase("new"), None).expect("it is right");
    assert!(matches!(error(store.restore(&other, &passphrase("x"))), KeyError::NoRecovery));
}

#[test]
fn after_a_change_the_old_passphrase_opens_neither_slot() {
    let folder = TestFolder::new();
    let (store, words, identity) = created(&folder);
    store.change_passphrase(&passphrase("old"), &passphrase("new")).expect("it is right");
    let [whole, _] = slots(&store);
    for content in [[&whole[..], b""], [b"", &whole[..]]] {
        put(&store, content);
        assert!(matches!(error(store.unlock(&passphrase("old"))), KeyError::WrongPassphrase));
        assert_eq!(store.unlock(&passphrase("new")).expect("it is right").did(), identity.did());
    }
    let wrong = store.change_passphrase(&passphrase("old"), &passphrase("x"));
    assert!(matches!(error(wrong), KeyError::WrongPassphrase));
    let headers = store.headers().expect("they can be read");
    assert!(headers[1].is_ok_and(|header| header.generation == 2), "{headers:?}");
    store.restore(&words, &passphrase("third")).expect("the words stay valid over changes");
    assert_eq!(store.unlock(&passphrase("third")).expect("it is right").did(), identity.did());
}

#[test]
fn words_restore_and_other_words_do_not() {
    let folder = TestFolder::new();
    let (store, words, identity) = created(&folder);
    let before = slots(&store);
    let others = RecoveryWords::generate().expect("random bytes are there");
    assert!(matches!(error(store.restore(&others, &passphrase("x"))), KeyError::WrongWords));
    assert_eq!(slots(&store), before);
    fs::remove_file(store.path(Slot::A)).expect("it is there");
    let typed = RecoveryWords::parse(&words.words().join(" ")).unwrap_or_else(|error| panic!("{error}"));
    store.restore(&typed, &passphrase("new")).expect("the words are right");
    let unlocked = store.open(&passphrase("new")).expect("it is right");
    assert!(unlocked.identity.did() == identity.did() && unlocked.flaw.is_none());
    let bare = TestFolder::new();
    let store = self::store(&bare);
    store.create(&identity, &passphrase("old"), None).expect("the folder is empty");
    assert!(matches!(error(store.restore(&words, &passphrase("x"))), KeyError::NoRecovery));
}

#[test]
fn missing_foreign_and_newer_slots_are_reported_and_only_safe_ones_mended() {
    let [first, second] = [TestFolder::new(), TestFolder::new()];
    let (store, ..) = created(&first);
    let [whole, _] = slots(&store);
    fs::remove_file(store.path(Slot::B)).expect("it is there");
    let flaw = store.open(&passphrase("old")).expect("one is enough").flaw;
    assert_eq!(flaw, Some(SlotFlaw { slot: Slot::B, state: SlotState::Missing }));
    assert!(store.mend(&passphrase("old")).expect("it is right"));
    assert_eq!(slots(&store), [whole.clone(), whole.clone()]);
    assert!(!store.mend(&passphrase("old")).expect("it is right"));
    let [foreign, _] = slots(&created(&second).0);
    let newer = with_slot_line(&whole, "7 1");
    for (other, state) in [(&foreign, SlotState::Foreign), (&newer, SlotState::Newer(7))] {
        put(&store, [&whole, other]);
        let flaw = store.open(&passphrase("old")).expect("one is enough").flaw;
        assert_eq!(flaw, Some(SlotFlaw { slot: Slot::B, state }));
        assert!(!store.mend(&passphrase("old")).expect("it is right"));
        assert_eq!(slots(&store), [whole.clone(), other.clone()]);
    }
    let change = store.change_passphrase(&passphrase("old"), &passphrase("new"));
    assert!(matches!(error(change), KeyError::Newer { version: 7, .. }), "a later Tiles' keys aren't overwritten");
}

#[test]
fn forged_slots_cost_no_work_outside_the_limits() {
    let folder = TestFolder::new();
    let (store, ..) = created(&folder);
    let [whole, _] = slots(&store);
    let line = b"-> tiles-argon2id ";
    let start = whole.windows(line.len()).position(|window| window == line).expect("it is there");
    let end = start + whole[start..].iter().position(|byte| *byte == b'\n').expect("it has a line");
    let stanza = String::from_utf8(whole[start..end].to_vec()).expect("it is text");
    let [head, tail] = [&whole[..start], &whole[end..]];
    let with = |line: &str| slot::with_right_digest([head, line.as_bytes(), tail].concat());
    let started = Instant::now();
    for (line, expected) in [
        (stanza.replace("19456 1 1", "4294967295 1 1"), "asks for 4294967295 KiB, 1 passes and 1 lanes"),
        (stanza.replace("19456 1 1", "1048576 17 8"), "asks for 1048576 KiB, 17 passes and 8 lanes"),
        (stanza.replace("19456 1 1", "19455 1 1"), "asks for 19455 KiB"),
        (stanza.replace("19456 1 1", "19456 1"), "is damaged: its header isn't that of a key file"),
        (stanza.replace("tiles-argon2id", "tiles-argon3id"), "is damaged: its header isn't that of a key file"),
        (format!("{stanza}\n{}\n{stanza}", "A".repeat(43)), "is damaged: its header isn't that of a key file"),
    ] {
        put(&store, [&with(&line), b""]);
        let error = error(store.unlock(&passphrase("old"))).to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(started.elapsed().as_millis() < 2000, "{:?}", started.elapsed());
}

#[test]
fn files_of_any_size_are_read_within_bounds() {
    let folder = TestFolder::new();
    let (store, ..) = created(&folder);
    let [whole, _] = slots(&store);
    let huge = fs::File::create(store.path(Slot::A)).expect("the folder can be written");
    huge.set_len(1 << 40).expect("it is sparse");
    let unlocked = store.open(&passphrase("old")).expect("the other slot is whole");
    assert!(matches!(unlocked.flaw, Some(SlotFlaw { slot: Slot::A, state: SlotState::Damaged(_) })));
    assert!(store.mend(&passphrase("old")).expect("it is right"));
    assert_eq!(slots(&store), [whole.clone(), whole]);
}

/// Each file in the corpus is read to the end without panic, quickly, and opened where it is named so.
#[test]
fn the_fuzz_corpus_of_the_slot_reader_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/key_slot");
    let mut count = 0;
    for entry in fs::read_dir(&corpus).expect("the corpus is in the repository") {
        let path = entry.expect("it can be listed").path();
        let mut bytes = Vec::new();
        fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("it can be read");
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let found = match slot::inspect(&bytes) {
            Err(Flaw::Damaged(_)) => "damaged",
            Err(Flaw::Newer(_)) => "newer",
            Ok(_) => match open(&path, &bytes, &Opener::Passphrase(&passphrase("old"))) {
                Ok(_) => "whole",
                Err(KeyError::WrongPassphrase) => "wrong",
                Err(KeyError::RefusedWork { .. }) => "refused",
                Err(KeyError::Damaged { .. }) => "forged",
                Err(other) => panic!("{name}: {other}"),
            },
        };
        assert!(name.starts_with(found), "{name} is {found}");
        count += 1;
    }
    assert!(count >= 12, "{count}");
}

/// Reads the test's own memory after the keys were dropped: neither their bytes nor their text may be left in it.
#[cfg(target_os = "linux")]
#[test]
fn dropped_keys_are_not_left_in_memory() {
    let folder = TestFolder::new();
    let (store, _, identity) = created(&folder);
    // Kept inverted, so that the needles themselves aren't found. Only the second half of each, because freeing a piece
    // of memory overwrites the first 16 bytes of what would be left behind.
    let inverted = |bytes: &[u8]| bytes[bytes.len() / 2..].iter().map(|byte| !byte).collect::<Vec<u8>>();
    let mut text = payload::write(&identity, None).expect("the date is possible");
    let hex_at = text.find("db_key = \"").expect("it is there") + 10;
    let needles = [
        ("the database key", inverted(identity.database_key.expose_secret())),
        ("the identity seed", inverted(identity.identity_seed.expose_secret())),
        ("the database key in hexadecimal", inverted(&text.as_bytes()[hex_at..hex_at + 64])),
    ];
    let left = || needles.iter().filter(|(_, needle)| in_memory(needle)).map(|(name, _)| *name).collect::<Vec<_>>();
    assert_eq!(left().len(), 3, "the search finds what is there");
    zeroize::Zeroize::zeroize(&mut *text);
    let _ = (identity.did(), identity.sign(b"message"));
    drop(identity);
    assert_eq!(left(), [""; 0], "left behind when they were made and sealed");
    let unlocked = store.unlock(&passphrase("old")).expect("it is right");
    assert_eq!(left(), [needles[0].0, needles[1].0], "the search finds what is there");
    drop(unlocked);
    assert_eq!(left(), [""; 0], "left behind when they were opened");
    store.change_passphrase(&passphrase("old"), &passphrase("new")).expect("it is right");
    assert_eq!(left(), [""; 0], "left behind when they were sealed again");
}

/// Whether the inverse of `inverted` is anywhere in this process's writable memory.
#[cfg(target_os = "linux")]
fn in_memory(inverted: &[u8]) -> bool {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string("/proc/self/maps").expect("a process sees its own memory");
    let memory = fs::File::open("/proc/self/mem").expect("a process sees its own memory");
    let mut buffer = vec![0; 1 << 20];
    let mut found = false;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range is first");
        let [mut at, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).expect("it is hexadecimal"));
        while at < end {
            let count = (end - at).min(buffer.len() as u64) as usize;
            // What is unmapped meanwhile by another test's thread isn't there to be found.
            if memory.read_exact_at(&mut buffer[..count], at).is_ok() {
                let first = !inverted[0];
                let is_here = |window: &[u8]| {
                    window[0] == first && window.iter().zip(inverted).all(|(byte, inverse)| *byte == !inverse)
                };
                found |= buffer[..count].windows(inverted.len()).any(is_here);
                buffer[..count].fill(0);
            }
            // Overlapping, for what lies across two pieces.
            at += if at + count as u64 == end { count as u64 } else { (count - inverted.len()) as u64 };
        }
    }
    found
}
