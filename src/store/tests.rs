//! The store as a caller sees it: sessions and turns, settings, backups, and that what is deleted is gone.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::hint::Hint as _;
use crate::message::{Message, MessageId, Role};
use crate::test_folder::TestFolder;
use crate::time::Timestamp;
use crate::transcript::{FinishReason, MESSAGE_BYTES_MAX, StoredMessage, TITLE_BYTES_MAX, TokenCount};

mod hostile;
mod log;
mod opening;
mod recovery;
mod rekey;
mod text_index;

const NOW: Timestamp = Timestamp::from_ms(1_795_688_340_123);

fn later(ms: i64) -> Timestamp {
    Timestamp::from_ms(NOW.as_ms() + ms)
}

fn key() -> SecretBox<[u8; 32]> {
    SecretBox::new(Box::new([7; 32]))
}

fn database(folder: &TestFolder) -> PathBuf {
    folder.path().join("tiles.db")
}

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, &key(), Access::ReadWrite)
}

fn opened(folder: &TestFolder) -> Store {
    open(&database(folder)).expect("the store opens")
}

fn user(content: &str) -> NewMessage {
    Message::new(Role::User, content).into()
}

fn answer(content: &str) -> NewMessage {
    NewMessage {
        role: Role::Assistant,
        content: content.into(),
        reasoning: Some("let me think".into()),
        finish_reason: Some(FinishReason::Stop),
        model: Some("small".into()),
        usage: Some(TokenCount { input_tokens: 12, output_tokens: 34 }),
    }
}

/// A session with one turn: `question`, and an answer.
fn talk(store: &Store, title: &str, question: &str) -> SessionId {
    let id = store.create(NOW, Some(title), "small").expect("it is a title");
    store.append_turn(id, &[user(question), answer("An answer.")], NOW).expect("it is stored");
    id
}

fn contents(store: &Store, id: SessionId) -> Vec<String> {
    store.messages(id).expect("it can be read").into_iter().map(|message| message.content).collect()
}

#[test]
fn what_was_said_is_there_after_reopening() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    assert!(store.opening().created);
    let id = talk(&store, "First", "grüße\0 日本語 🦀");
    let ids = store.append_turn(id, &[user("again"), answer("yes")], later(5)).expect("it is stored");
    let before = store.messages(id).expect("it can be read");
    store.close().expect("it closes");
    let mut files: Vec<_> =
        fs::read_dir(folder.path()).expect("it is there").map(|e| e.expect("it is").file_name()).collect();
    files.sort();
    assert_eq!(files, ["tiles.db"], "a clean exit leaves one file");

    let store = opened(&folder);
    assert_eq!(*store.opening(), Opening::default());
    assert_eq!(store.messages(id).expect("it can be read"), before);
    assert_eq!(before[2..].iter().map(|message| message.id).collect::<Vec<_>>(), ids);
    assert_eq!(
        before[3],
        StoredMessage {
            id: ids[1],
            role: Role::Assistant,
            content: "yes".into(),
            reasoning: Some("let me think".into()),
            created_at: later(5),
            finish_reason: Some(FinishReason::Stop),
            model: Some("small".into()),
            usage: Some(TokenCount { input_tokens: 12, output_tokens: 34 }),
        }
    );
    let summary = store.summary(id).expect("it is there");
    assert_eq!(store.list().expect("it can be read"), std::slice::from_ref(&summary));
    let expected = SessionSummary {
        id,
        title: Some("First".into()),
        model: "small".into(),
        created_at: NOW,
        updated_at: later(5),
        messages: 4,
    };
    assert_eq!(summary, expected);
}

#[test]
fn a_session_without_a_turn_isnt_on_the_drive() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = store.create(NOW, None, "small").expect("it begins");
    store.rename(id, "Named before it was", NOW).expect("it is a title");
    assert_eq!(store.messages(id).expect("it exists"), []);
    assert_eq!(store.summary(id).expect("it exists").title.as_deref(), Some("Named before it was"));
    assert_eq!(store.list().expect("it can be read"), []);
    assert!(matches!(store.undo_last_turn(id), Err(StoreError::Nothing { .. })));
    assert_eq!(store.append_turn(id, &[], NOW).expect("nothing is fine"), []);
    assert_eq!(store.list().expect("it can be read"), []);

    store.append_turn(id, &[user("hello")], NOW).expect("it is stored");
    assert_eq!(store.list().expect("it can be read")[0].title.as_deref(), Some("Named before it was"));
    // Taken back to nothing, it is again as it was, and can be said again.
    assert_eq!(store.undo_last_turn(id).expect("there is one")[0].content, "hello");
    assert_eq!(store.list().expect("it can be read"), []);
    store.append_turn(id, &[user("hello again")], NOW).expect("it is stored");
    assert_eq!(contents(&store, id), ["hello again"]);

    let unsaid = store.create(NOW, None, "small").expect("it begins");
    store.delete(unsaid).expect("it exists");
    let gone = store.append_turn(unsaid, &[user("x")], NOW).expect_err("it is gone");
    assert!(matches!(gone, StoreError::NotFound { .. }));
}

#[test]
fn turns_are_taken_back_and_answers_replaced() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", "one");
    // A clock that was set back doesn't reorder.
    store.append_turn(id, &[user("two"), answer("2"), answer("2 more")], Timestamp::from_ms(5)).expect("stored");
    assert_eq!(contents(&store, id), ["one", "An answer.", "two", "2", "2 more"]);
    assert_eq!(store.summary(id).expect("it is there").updated_at, NOW);

    store.replace_last_answer(id, &answer("zwei"), NOW).expect("there is one");
    assert_eq!(contents(&store, id), ["one", "An answer.", "two", "zwei"]);
    let taken = store.undo_last_turn(id).expect("there is one");
    assert_eq!(taken.iter().map(|message| message.content.as_str()).collect::<Vec<_>>(), ["two", "zwei"]);
    // A turn without an answer gets one.
    store.append_turn(id, &[user("three")], NOW).expect("stored");
    store.replace_last_answer(id, &answer("3"), NOW).expect("there is a place for it");
    assert_eq!(contents(&store, id), ["one", "An answer.", "three", "3"]);

    let messages = store.messages(id).expect("it can be read");
    assert_eq!(store.truncate_after(id, messages[0].id).expect("it is there").len(), 3);
    assert_eq!(contents(&store, id), ["one"]);
    let other = talk(&store, "Other", "x");
    let elsewhere = store.truncate_after(other, messages[0].id).expect_err("it belongs to the first");
    assert!(matches!(elsewhere, StoreError::Nothing { .. }), "{elsewhere}");
    let system = store.create(NOW, None, "m").expect("it begins");
    store.append_turn(system, &[Message::new(Role::System, "be").into()], NOW).expect("stored");
    assert!(matches!(store.undo_last_turn(system), Err(StoreError::Nothing { .. })));
    assert!(matches!(store.replace_last_answer(system, &answer("x"), NOW), Err(StoreError::Nothing { .. })));
}

#[test]
fn sessions_are_found_by_what_a_person_types() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let bread = talk(&store, "Baking bread", "x");
    let rust = talk(&store, "Rust lifetimes", "x");
    let twin_a = talk(&store, "Twins", "x");
    let twin_b = talk(&store, "Twins", "x");
    for (text, expected) in [("Baking bread", bread), (" Rust lifetimes ", rust)] {
        assert_eq!(store.find(text).expect(text), expected);
    }
    for id in [bread, rust, twin_a, twin_b] {
        assert_eq!(store.find(&id.to_string()).expect("an identifier"), id);
        assert_eq!(store.find(&id.to_string().to_uppercase()[..20]).expect("a prefix"), id);
    }
    let ambiguous = store.find("Twins").expect_err("there are two");
    assert!(ambiguous.to_string().starts_with("`Twins` names 2 sessions: `"), "{ambiguous}");
    assert!(ambiguous.hint().is_some_and(|hint| hint.contains("digits")));
    for (text, near) in [("baking", "Baking bread"), ("Rust livetimes", "Rust lifetimes"), ("twins", "Twins")] {
        let error = store.find(text).expect_err("it isn't exact").to_string();
        assert!(error.starts_with(&format!("no session is called `{text}`; near it are `")), "{error}");
        assert!(error.contains(near), "{error}");
    }
    for text in ["", "zzzz", "\u{1b}[2J", &"ä".repeat(5000)] {
        let error = store.find(text).expect_err("there is none");
        assert!(matches!(&error, StoreError::NotFound { near, .. } if near.is_empty()), "{error}");
        assert!(!error.to_string().contains('\u{1b}') && error.to_string().len() < 300);
    }
    store.rename(rust, "Borrowing", later(9)).expect("it is a title");
    assert_eq!(store.find("Borrowing").expect("it was renamed"), rust);
    assert_eq!(store.list().expect("it can be read")[0].id, rust, "it was touched last");
}

#[test]
fn names_and_texts_have_limits() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", "x");
    let long_title = "t".repeat(TITLE_BYTES_MAX + 1);
    for title in ["", "  ", "two\nlines", "bell\u{7}", &long_title] {
        let error = store.rename(id, title, NOW).expect_err(title);
        assert!(matches!(error, StoreError::BadName { .. } | StoreError::TooLarge { .. }), "{error}");
        assert!(store.create(NOW, Some(title), "m").is_err());
    }
    assert!(store.create(NOW, None, "line\nline").is_err());
    let long = "m".repeat(MESSAGE_BYTES_MAX + 1);
    let error = store.append_turn(id, &[user("kept?"), user(&long)], NOW).expect_err("it is too long");
    assert_eq!(error.to_string(), "the message has 4194305 bytes, more than the 4194304 that are kept");
    assert_eq!(contents(&store, id), ["x", "An answer."], "all or nothing");
    store.append_turn(id, &[user(&long[1..])], NOW).expect("it is as long as may be");
    let many = vec![user("x"); TURN_MESSAGES_MAX + 1];
    assert!(matches!(store.append_turn(id, &many, NOW), Err(StoreError::TooLarge { unit: "messages", .. })));
    let missing = SessionId([9; 16]);
    for error in [
        store.rename(missing, "x", NOW).err(),
        store.delete(missing).err(),
        store.messages(missing).err(),
        store.export(missing).err(),
        store.undo_last_turn(missing).err(),
        store.append_turn(missing, &[user("x")], NOW).err(),
    ] {
        assert!(matches!(error, Some(StoreError::NotFound { .. })), "{error:?}");
    }
}

#[test]
fn settings_and_prompt_lines_are_kept() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    assert_eq!(store.setting("nickname").expect("it can be read"), None);
    store.set_setting("nickname", "ada").expect("it is a key");
    store.set_setting("nickname", "Ada 🦀").expect("it is a key");
    store.set_setting("theme", "").expect("it is a key");
    assert_eq!(store.setting("nickname").expect("it can be read").as_deref(), Some("Ada 🦀"));
    let all = [("nickname".to_owned(), "Ada 🦀".to_owned()), ("theme".to_owned(), String::new())];
    assert_eq!(store.settings().expect("they can be read"), all);
    store.remove_setting("theme").expect("it is set");
    store.remove_setting("theme").expect("it isn't, which is fine");
    for key in ["", "Nick", "a b", "ä"] {
        assert!(matches!(store.set_setting(key, "x"), Err(StoreError::BadName { .. })), "{key}");
    }
    assert!(matches!(store.set_setting("k", &"v".repeat(SETTING_BYTES_MAX + 1)), Err(StoreError::TooLarge { .. })));

    for line in ["one", "two", "two", "", "  ", "three\nlines\n"] {
        store.history_append(line).expect("it is a line");
    }
    assert_eq!(store.history(2).expect("they can be read"), ["two", "three\nlines\n"]);
    assert_eq!(store.history(usize::MAX).expect("they can be read").len(), 3);
    store
        .connection
        .execute("UPDATE sqlite_sequence SET seq = ?1", [HISTORY_LINES_MAX as i64 + 1])
        .expect("it counts on");
    store.history_append("four").expect("it is a line");
    assert_eq!(store.history(9).expect("they can be read"), ["three\nlines\n", "four"], "the oldest are forgotten");
    store.history_clear().expect("it can be written");
    assert_eq!(store.history(9).expect("they can be read"), Vec::<String>::new());
}

/// A store without encryption, and otherwise as any: what is left in its file can be seen.
fn readable_store(path: &Path) -> Store {
    let connection = super::opening::connect(path, Access::ReadWrite).expect("it opens");
    super::opening::configure(&connection, Access::ReadWrite).expect("it can be configured");
    super::opening::start_journal(&connection, path).expect("it can be written");
    schema::migrate(&connection, 0, schema::VERSION).expect("it migrates");
    let (access, opening) = (Access::ReadWrite, Opening::default());
    let (pending, run) = Default::default();
    Store { connection, path: path.into(), access, opening, pending, run }
}

/// Everything that is in the files: live pages, free pages, the unused space in between, and the log.
fn file_bytes(store: &Store) -> Vec<u8> {
    let mut bytes = fs::read(store.path()).expect("it is there");
    bytes.extend(fs::read(store.path().with_extension("db-wal")).unwrap_or_default());
    bytes
}

/// Whether any of the tables, the index's included, has the text.
fn holds(store: &Store, text: &str) -> bool {
    let mut names = store.connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").expect("it is SQL");
    let names: Vec<String> =
        names.query_map((), |row| row.get(0)).expect("it can be read").map(|name| name.expect("it is text")).collect();
    names.iter().filter(|name| name.as_str() != "message_text").any(|name| {
        let mut statement = store.connection.prepare(&format!("SELECT * FROM {name}")).expect("it is SQL");
        let columns = statement.column_count();
        let mut rows = statement.query(()).expect("it can be read");
        let mut found = false;
        while let Some(row) = rows.next().expect("it can be read") {
            found |= (0..columns).any(|idx| match row.get_ref(idx).expect("it is there") {
                rusqlite::types::ValueRef::Text(bytes) | rusqlite::types::ValueRef::Blob(bytes) => {
                    bytes.windows(text.len()).any(|window| window == text.as_bytes())
                }
                _ => false,
            });
        }
        found
    })
}

/// A way to remove what a session holds.
type Removal = fn(&Store, SessionId);

#[test]
fn deleted_text_leaves_the_file_and_the_index() {
    let folder = TestFolder::new();
    let store = readable_store(&database(&folder));
    let kept = talk(&store, "Kept", "ordinary words remain");
    // Words the index keeps whole, and one long enough for pages of its own.
    let long = "xylophonequartz ".repeat(3000);
    let actions: [(&str, Removal); 4] = [
        ("delete", |store, id| store.delete(id).expect("it is there")),
        ("undo", |store, id| drop(store.undo_last_turn(id).expect("there is a turn"))),
        ("replace", |store, id| {
            store.truncate_after(id, MessageId([0; 16])).expect_err("there is no such message");
            store.replace_last_answer(id, &answer("better"), NOW).expect("there is an answer");
            store.undo_last_turn(id).expect("there is a turn");
        }),
        ("truncate", |store, id| {
            let place = store.append_turn(id, &[user("harmless"), answer("xylophonequartz")], NOW).expect("stored");
            store.truncate_after(id, place[0]).expect("it is there");
            store.delete(id).expect("it is there");
        }),
    ];
    for (name, action) in actions {
        let id = store.create(NOW, None, "small").expect("it begins");
        store.append_turn(id, &[user(&long), answer(&long)], NOW).expect("stored");
        assert!(holds(&store, "xylophonequartz") && holds(&store, "xylophone"), "{name}: the check can fail");
        assert_eq!(store.search("xylophonequartz", 9).expect("it is text").len(), 2, "{name}");
        assert!(file_bytes(&store).windows(9).any(|window| window == b"xylophone"), "{name}: the check can fail");
        action(&store, id);
        assert!(!holds(&store, "xylophone"), "{name}");
        assert_eq!(store.search("xylophone", 9).expect("it is text"), [], "{name}");
        let pages = file_bytes(&store);
        assert!(pages.windows(13).any(|window| window == b"ordinary word"), "{name}: the rest stays");
        assert!(!pages.windows(9).any(|window| window == b"xylophone"), "{name}: it is in an unused part of the file");
        let checked = "INSERT INTO message_text (message_text, rank) VALUES ('integrity-check', 1)";
        store.connection.execute_batch(checked).expect("the index fits the messages");
    }
    assert_eq!(contents(&store, kept).len(), 2);
}

#[test]
fn sessions_go_out_and_come_back() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let first = talk(&store, "First", "hello");
    store.append_turn(first, &[user("again"), answer("yes")], Timestamp::from_ms(5)).expect("stored");
    let second = talk(&store, "Second", "other");
    let transcripts = [store.export(first).expect("it is there"), store.export(second).expect("it is there")];
    let error = store.import(&transcripts).expect_err("they are here");
    assert_eq!(error.to_string(), format!("session {first} is here already"));

    let elsewhere = TestFolder::new();
    let other = opened(&elsewhere);
    let json = crate::transcript::to_json(&transcripts);
    let parsed = crate::transcript::parse_json(&json).expect("we wrote it");
    assert_eq!(parsed, transcripts);
    other.import(&parsed).expect("it is new there");
    for transcript in &transcripts {
        assert_eq!(other.export(transcript.id).expect("it came in"), *transcript);
    }
    assert_eq!(other.search("hello", 9).expect("it is text").len(), 1);
    // One identifier that is taken, and nothing comes in.
    let mut half = transcripts.to_vec();
    half[0].id = SessionId([1; 16]);
    half[0].messages.iter_mut().zip(0..).for_each(|(message, byte)| message.id = MessageId([byte; 16]));
    assert!(matches!(other.import(&half), Err(StoreError::Exists { session }) if session == second));
    assert_eq!(other.list().expect("it can be read").len(), 2);
    half.truncate(1);
    half[0].messages[1].id = transcripts[0].messages[0].id;
    assert!(matches!(other.import(&half), Err(StoreError::Exists { .. })), "a message of another session");
    assert_eq!(other.list().expect("it can be read").len(), 2);
}

#[test]
fn a_backup_is_a_whole_encrypted_copy() {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "First", "findable words in here");
    let copy = folder.path().join("a copy? #1%41.db");
    store.backup(&copy, &key()).expect("there is space");
    let again = store.backup(&copy, &key()).expect_err("it is there");
    assert!(again.to_string().contains("exists already"), "{again}");
    let bytes = fs::read(&copy).expect("it is there");
    assert!(!bytes.starts_with(b"SQLite") && !bytes.windows(8).any(|window| window == b"findable"));
    // The store goes on working, and still belongs to it alone.
    store.append_turn(id, &[user("after")], NOW).expect("stored");
    assert!(matches!(open(&database(&folder)), Err(StoreError::InUse { .. })));
    let restored = open(&copy).expect("it opens with the key");
    assert_eq!(contents(&restored, id), ["findable words in here", "An answer."]);
    assert_eq!(restored.search("findable", 3).expect("it is text").len(), 1);
    restored.append_turn(id, &[user("it can be written")], NOW).expect("stored");
    let wrong = folder.path().join("other.db");
    let error = store.backup(&wrong, &SecretBox::new(Box::new([8; 32]))).expect_err("it wouldn't open");
    assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
    assert!(!wrong.exists() && !folder.path().join("other.db.partial").exists());
}
