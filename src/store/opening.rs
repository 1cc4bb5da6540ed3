//! Opening the database: settings in their order, what the file is, recovery after an unclean exit.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};
use secrecy::{ExposeSecret, SecretBox};
use zeroize::Zeroizing;

use super::error::{StoreError, Trouble};
use super::{backup, schema};
use crate::disk;

/// The size of a page of the file in bytes: SQLCipher's default, the same on every host.
const PAGE_BYTES: u64 = 4096;
/// How many findings of a check an error tells.
const FINDINGS_MAX: usize = 3;
/// What a file begins with that SQLite wrote without encryption.
const PLAIN_HEADER: &[u8] = b"SQLite format 3\0";

/// What may be done with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write. The file belongs to this store alone until it is closed.
    ReadWrite,
    /// Read only, without any lock: for a medium that can't be written.
    ReadOnly,
}

/// What was found when the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The database is new.
    pub created: bool,
    /// The last exit was unclean; what it left was taken in, and the whole file was checked and is sound.
    pub recovered: bool,
    /// The medium can't be written and the last exit was unclean: the newest messages may be missing until the
    /// bundle is opened where it can be written.
    pub unfinished_ignored: bool,
    /// The schema the file had, where it was older.
    pub migrated_from: Option<i64>,
    /// The database was under a previous key, because encrypting it anew was cut, and this was finished now.
    pub rekeyed: bool,
    /// The database is under a previous key, because it can't be written or there is no room to encrypt it anew.
    pub previous_key: bool,
    /// There was no space for a backup before the schema was changed; the change itself is one transaction a step.
    pub backup_put_off: bool,
}

/// What opening is at, for a person who waits: on a slow drive the checks take a second for every few megabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What an unclean exit left beside the file is taken into it.
    TakingIn,
    /// The authentication code of every page is checked, of a file of so many bytes.
    CheckingPages(u64),
    /// The tables and indexes are checked.
    CheckingTables,
    /// The database is backed up before it gets a newer schema.
    BackingUp,
    /// It gets a newer schema.
    Migrating,
    /// It is made.
    Making,
}

/// What goes along with opening.
pub struct Along<'a> {
    /// Told of each step.
    pub on_step: &'a mut dyn FnMut(Step),
    /// Whether the last exit is known to have been unclean: then every page is checked, with something to take in or not.
    pub was_unclean: bool,
    /// Where a backup is made before the schema changes; none where there is no folder.
    pub backups: Option<&'a Path>,
}

/// Opens the database at `path`; see [`super::Store::open`].
pub(super) fn open(
    path: &Path,
    key: &SecretBox<[u8; 32]>,
    access: Access,
    along: &mut Along<'_>,
) -> Result<(Connection, Opening), StoreError> {
    let unfinished = disk::size_unopened(&wal_path(path))?.is_some_and(|bytes| bytes > 0);
    let created = disk::size_unopened(path)?.is_none_or(|bytes| bytes == 0) && !unfinished;
    let connection = readable(path, key, access)?;
    let mut opening = Opening { created, ..Opening::default() };
    match access {
        Access::ReadWrite => {
            if unfinished {
                (along.on_step)(Step::TakingIn);
                // First, or torn pages that were written again since would be reported.
                checkpoint(&connection).map_err(|trouble| trouble.at(path))?;
            }
            if unfinished || along.was_unclean && !created {
                check_pages(&connection, path, along.on_step)?;
            }
            opening.recovered = unfinished;
            let found = schema::version(&connection, path)?;
            if found < schema::VERSION {
                if let (Some(folder), true) = (along.backups, found > 0) {
                    (along.on_step)(Step::BackingUp);
                    opening.backup_put_off = put_off(backup::make(&connection, path, folder, key))?;
                }
                (along.on_step)(if found > 0 { Step::Migrating } else { Step::Making });
                start_journal(&connection, path)?;
                schema::migrate(&connection, found, schema::VERSION).map_err(|trouble| trouble.at(path))?;
                // So that the file has all its tables even where its `-wal` is left behind.
                checkpoint(&connection).map_err(|trouble| trouble.at(path))?;
                opening.migrated_from = (found > 0).then_some(found);
            }
            start_journal(&connection, path)?;
        }
        Access::ReadOnly => {
            opening.unfinished_ignored = unfinished;
            if schema::version(&connection, path)? < schema::VERSION {
                return Err(StoreError::Outdated { path: path.into() });
            }
        }
    }
    schema::check(&connection, path)?;
    Ok((connection, opening))
}

/// Whether a backup had no space, which is no reason not to open.
fn put_off<T>(backup: Result<T, StoreError>) -> Result<bool, StoreError> {
    match backup {
        Ok(_) => Ok(false),
        Err(StoreError::Disk(disk::DiskError::Full { .. })) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the connection, without touching the file's content.
pub(super) fn connect(path: &Path, access: Access) -> Result<Connection, StoreError> {
    let sqlite = |error| StoreError::from_sqlite(path, error);
    let (mode, query) = match access {
        Access::ReadWrite => (OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE, ""),
        // A WAL database opens on a read-only medium only as `immutable`, which ignores an unfinished `-wal`.
        Access::ReadOnly => (OpenFlags::SQLITE_OPEN_READ_ONLY, "?immutable=1"),
    };
    let flags = mode | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file_uri(path) + query, flags).map_err(sqlite)?;
    // A second opening is refused at once.
    connection.busy_timeout(Duration::ZERO).map_err(sqlite)?;
    // SQLite opens for reading what it can't open for writing, and says nothing.
    if access == Access::ReadWrite && connection.is_readonly(MAIN_DB).map_err(sqlite)? {
        return Err(StoreError::ReadOnly { path: path.into() });
    }
    Ok(connection)
}

/// `path` as a URI that SQLite takes literally, whatever characters it has.
pub(super) fn file_uri(path: &Path) -> String {
    let mut uri = String::from(if path.is_absolute() { "file://" } else { "file:" });
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

/// Gives the connection its key, before anything else is asked of it.
fn set_key(connection: &Connection, key: &SecretBox<[u8; 32]>) -> Result<(), Trouble> {
    let cipher: Option<String> = connection.query_row("PRAGMA cipher_version", (), |row| row.get(0)).ok();
    if cipher.is_none_or(|version| version.is_empty()) {
        return Err(StoreError::NoCipher.into());
    }
    // SQLCipher would tell its errors on stderr; locking and wiping every page made it 2 to 13 times slower.
    connection.execute_batch("PRAGMA cipher_log_level = NONE; PRAGMA cipher_memory_security = OFF;")?;
    connection.key(None::<&str>, raw_key(key).as_slice(), false)?;
    Ok(())
}

/// Gives the connection its settings; that the file belongs to it alone comes first, before any access to the file.
pub(super) fn configure(connection: &Connection, access: Access) -> rusqlite::Result<()> {
    for (config, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true),
    ] {
        connection.set_db_config(config, on)?;
    }
    // There are more than the usual 16 that are used again and again.
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA synchronous = FULL;
         PRAGMA fullfsync = ON;
         PRAGMA checkpoint_fullfsync = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA mmap_size = 0;
         PRAGMA cache_size = -32768;
         PRAGMA wal_autocheckpoint = 200;
         PRAGMA secure_delete = ON;
         PRAGMA cell_size_check = ON;",
    )?;
    if access == Access::ReadOnly {
        connection.execute_batch("PRAGMA query_only = ON;")?;
    }
    Ok(())
}

/// The key in SQLCipher's form for raw keys: `x'…'` with 64 hexadecimal digits. It is never part of an SQL text.
pub(super) fn raw_key(key: &SecretBox<[u8; 32]>) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Zeroizing::new(Vec::with_capacity(67));
    text.extend_from_slice(b"x'");
    for byte in key.expose_secret() {
        text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    text.push(b'\'');
    text
}

/// Turns the write-ahead log on.
pub(super) fn start_journal(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))
        .map_err(|error| StoreError::from_sqlite(path, error))?;
    match mode.as_str() {
        "wal" => Ok(()),
        // What SQLite answers when another connection holds the file.
        _ => Err(StoreError::InUse { path: path.into() }),
    }
}

/// Takes the write-ahead log into the file and empties it.
pub(super) fn checkpoint(connection: &Connection) -> Result<(), Trouble> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
    Ok(())
}

/// Checks every page's authentication code and the structure of all tables and indexes.
pub(super) fn check_pages(
    connection: &Connection,
    path: &Path,
    on_step: &mut dyn FnMut(Step),
) -> Result<(), StoreError> {
    on_step(Step::CheckingPages(disk::size_unopened(path)?.unwrap_or(0)));
    let (count, mut findings) = integrity_findings(connection, "PRAGMA cipher_integrity_check", path)?;
    if count == 0 {
        on_step(Step::CheckingTables);
        let limit = format!("PRAGMA quick_check({FINDINGS_MAX})");
        findings = integrity_findings(connection, &limit, path)?.1;
        findings.retain(|finding| finding != "ok");
    }
    match findings.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Damaged { path: path.into(), what: findings.join("; ") }),
    }
}

/// Opens the copy at `path` as a medium that can't be written would be, and checks it. It may have an older schema.
pub(super) fn check_copy(path: &Path, key: &SecretBox<[u8; 32]>) -> Result<(), StoreError> {
    let copy = read_only(path, key)?;
    schema::version(&copy, path)?;
    check_pages(&copy, path, &mut |_| ())
}

/// Opens the database at `path` as on a medium that can't be written, whatever its schema is.
pub(super) fn read_only(path: &Path, key: &SecretBox<[u8; 32]>) -> Result<Connection, StoreError> {
    readable(path, key, Access::ReadOnly)
}

/// Opens the database at `path` with what an unclean exit left beside it, whatever its schema is. For that SQLite must
/// be allowed to write, though it isn't asked to: what lies beside the file stays there.
pub(super) fn read_all(path: &Path, key: &SecretBox<[u8; 32]>) -> Result<Connection, StoreError> {
    let is_empty = |path: &Path| disk::size_unopened(path).map(|bytes| bytes.is_none_or(|bytes| bytes == 0));
    if is_empty(path)? && is_empty(&wal_path(path))? {
        // SQLite would make one.
        return Err(disk::DiskError::NotFound { path: path.into() }.into());
    }
    let connection = readable(path, key, Access::ReadWrite)?;
    let sqlite = |error| StoreError::from_sqlite(path, error);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
    Ok(connection)
}

/// Makes the connection and reads the first page.
fn readable(path: &Path, key: &SecretBox<[u8; 32]>, access: Access) -> Result<Connection, StoreError> {
    let connection = connect(path, access)?;
    set_key(&connection, key).map_err(|trouble| trouble.at(path))?;
    // Some settings read the file already, so a wrong key can come up in either.
    let first_read = configure(&connection, access)
        .and_then(|()| connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(())));
    match first_read {
        Ok(()) => Ok(connection),
        Err(error) => Err(explain_unreadable(connection, path, error)),
    }
}

/// How many rows a checking pragma answers, and the first of them.
fn integrity_findings(connection: &Connection, pragma: &str, path: &Path) -> Result<(u64, Vec<String>), StoreError> {
    let run = || -> rusqlite::Result<(u64, Vec<String>)> {
        let mut statement = connection.prepare(pragma)?;
        let mut rows = statement.query(())?;
        let (mut count, mut findings) = (0, Vec::new());
        while let Some(row) = rows.next()? {
            count += 1;
            if findings.len() < FINDINGS_MAX {
                let finding = row.get_ref(0)?.as_bytes().map_err(rusqlite::Error::from)?;
                findings.push(String::from_utf8_lossy(finding).into_owned());
            }
        }
        Ok((count, findings))
    };
    run().map_err(|error| StoreError::from_sqlite(path, error))
}

/// Why the first page can't be read: another key, damage, or no encrypted database at all.
fn explain_unreadable(connection: Connection, path: &Path, error: rusqlite::Error) -> StoreError {
    if error.sqlite_error_code() != Some(ErrorCode::NotADatabase) {
        return StoreError::from_sqlite(path, error);
    }
    let findings = integrity_findings(&connection, "PRAGMA cipher_integrity_check", path);
    // The file is opened only after SQLite has closed it: closing it would drop SQLite's locks.
    drop(connection);
    let path = path.to_path_buf();
    let (bytes, is_plain) = match header(&path) {
        Ok(found) => found,
        Err(error) => return StoreError::Disk(error),
    };
    let (wrong_pages, findings) = match findings {
        Ok(found) => found,
        Err(error) => return error,
    };
    match bytes / PAGE_BYTES {
        _ if is_plain => StoreError::Plain { path },
        // Some pages are right under this key, so the others are damaged.
        pages if wrong_pages < pages => StoreError::Damaged { path, what: findings.join("; ") },
        _ if bytes % PAGE_BYTES != 0 => StoreError::NotADatabase { path },
        _ => StoreError::WrongKey { path },
    }
}

/// The size of the file in bytes, and whether it begins like a database without encryption.
fn header(path: &Path) -> Result<(u64, bool), disk::DiskError> {
    let (file, bytes) = disk::open(path)?;
    let mut start = [0; PLAIN_HEADER.len()];
    if bytes < start.len() as u64 {
        return Ok((bytes, false));
    }
    disk::read_at(&file, path, 0, &mut start)?;
    Ok((bytes, start == PLAIN_HEADER))
}

/// Where SQLite keeps the write-ahead log of the database at `path`.
pub(super) fn wal_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    PathBuf::from(name)
}
