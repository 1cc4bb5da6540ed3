//! A database that opens with the right key, but wasn't written by Tiles: errors, never panics.

use super::*;

/// Opens a sound store with one session, spoils it by `sql` behind its back, and uses all of it.
fn use_spoilt(sql: &str) -> Result<(), StoreError> {
    let folder = TestFolder::new();
    let store = opened(&folder);
    let id = talk(&store, "T", "hello world");
    store.set_setting("a", "b").expect("it is a key");
    store.history_append("line").expect("it is a line");
    store
        .connection
        .set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)
        .expect("it can be set");
    let spoil =
        format!("PRAGMA ignore_check_constraints = ON; PRAGMA writable_schema = ON; PRAGMA foreign_keys = OFF; {sql}");
    store.connection.execute_batch(&spoil).unwrap_or_else(|error| panic!("{sql}: {error}"));
    store.close()?;

    let store = open(&database(&folder))?;
    let steps: [&dyn Fn() -> Result<(), StoreError>; 8] = [
        &|| store.list().map(drop),
        &|| store.messages(id).map(drop),
        &|| store.search("hello", 9).map(drop),
        &|| store.search("*", 9).map(drop),
        &|| store.setting("a").map(drop),
        &|| store.settings().map(drop),
        &|| store.history(9).map(drop),
        &|| store.append_turn(id, &[user("next")], NOW).map(drop),
    ];
    // Every step is taken, whatever the others say: none may panic.
    let failed = steps.iter().filter_map(|step| step().err()).collect::<Vec<_>>();
    match failed.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[test]
fn odd_rows_are_named_as_damage() {
    use_spoilt("SELECT 1").expect("unspoilt, everything works");
    // The tables keep their definitions, so a row can only be as odd as STRICT lets it, or as its definition was when
    // it came in: `loose` takes STRICT away for the time of one statement.
    let loose = |table: &str, statement: &str| {
        format!(
            "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = '{table}';
             PRAGMA schema_version = 900; {statement};
             UPDATE sqlite_schema SET sql = substr(sql, 1, length(sql)) || ' STRICT' WHERE name = '{table}';
             PRAGMA schema_version = 901;"
        )
    };
    for (what, sql) in [
        ("an identifier isn't 16 bytes", "UPDATE session SET id = x'00'".to_owned()),
        ("an identifier isn't 16 bytes", "UPDATE message SET id = zeroblob(100) WHERE role = 'user'".into()),
        ("a role that isn't known", "UPDATE message SET role = 'tool'".into()),
        ("a finish reason that isn't known", "UPDATE message SET finish_reason = 'tired'".into()),
        ("a count is negative", "UPDATE message SET input_tokens = -1".into()),
        ("a text isn't UTF-8", "UPDATE message SET content = CAST(x'ff00fe' AS TEXT)".into()),
        ("a text isn't UTF-8", "UPDATE session SET title = CAST(x'c328' AS TEXT)".into()),
        ("a text isn't UTF-8", "UPDATE setting SET value = CAST(x'c328' AS TEXT)".into()),
        ("a text isn't UTF-8", "UPDATE history SET line = CAST(x'c328' AS TEXT)".into()),
        ("longer than any that is kept", "UPDATE session SET title = printf('%.*c', 5000, 'x')".into()),
        ("longer than any that is kept", "UPDATE message SET content = printf('%.*c', 5000000, 'x')".into()),
        ("longer than any that is kept", "UPDATE message SET model = printf('%.*c', 5000000, 'x')".into()),
        ("longer than any that is kept", "UPDATE history SET line = printf('%.*c', 5000000, 'x')".into()),
        ("leaves none after it", "UPDATE message SET hlc = 9223372036854775807 WHERE role = 'user'".into()),
        ("is something else", loose("session", "UPDATE session SET created_at = 'never'")),
        ("is something else", loose("message", "UPDATE message SET content = x'0102'")),
    ] {
        let error = use_spoilt(&sql).expect_err(&sql);
        assert!(error.to_string().contains(what), "{sql}: {error}");
        assert!(error.is_integrity(), "{sql}: {error}");
    }
}

#[test]
fn odd_schemas_are_refused_when_opened() {
    for sql in [
        "DROP TABLE history",
        "DROP TABLE message_text",
        "DROP TRIGGER message_removed",
        "CREATE TRIGGER planted AFTER INSERT ON message BEGIN DELETE FROM session; END",
        "UPDATE sqlite_schema SET sql = replace(sql, 'title TEXT', 'title TEXT, x TEXT') WHERE name = 'session'",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = -1",
        "PRAGMA user_version = 0",
        "DELETE FROM sqlite_schema WHERE name = 'message_order'; PRAGMA schema_version = 900",
        "UPDATE sqlite_schema SET sql = 'not SQL' WHERE name = 'history'",
        "UPDATE sqlite_schema SET rootpage = 2000000000 WHERE name = 'session'",
        "UPDATE sqlite_schema SET sql = CAST(x'c328' AS TEXT) WHERE name = 'message_removed'",
    ] {
        let error = use_spoilt(sql).expect_err(sql);
        assert!(error.is_integrity(), "{sql}: {error:?}");
    }
}

#[test]
fn spoilt_parts_of_the_index_are_errors() {
    for sql in [
        "DELETE FROM message_text_data",
        "UPDATE message_text_data SET block = x'ffffffffffffffffffff'",
        "UPDATE message_text_data SET block = zeroblob(5000)",
        "UPDATE message_text_config SET v = 99999",
        "DELETE FROM message_text_config",
        "DELETE FROM message_text_docsize",
        "DROP TABLE message_text_idx",
        "DELETE FROM message",
        "UPDATE message SET session = 77",
    ] {
        // What counts: no panic, and an error is one of integrity.
        if let Err(error) = use_spoilt(sql) {
            assert!(error.is_integrity(), "{sql}: {error:?}");
        }
    }
}
