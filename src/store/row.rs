//! Values of a row, checked: what is in the file was perhaps not written by Tiles.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::error::Trouble;
use crate::time::Timestamp;

/// The identifier in column `idx`.
pub(super) fn id(row: &Row<'_>, idx: usize) -> Result<[u8; 16], Trouble> {
    match row.get_ref(idx)? {
        ValueRef::Blob(bytes) => bytes.try_into().map_err(|_| Trouble::Row("an identifier isn't 16 bytes")),
        _ => Err(Trouble::Row("an identifier isn't 16 bytes")),
    }
}

/// The key or digest of 32 bytes in column `idx`, where there is one.
pub(super) fn optional_key(row: &Row<'_>, idx: usize) -> Result<Option<[u8; 32]>, Trouble> {
    let key = optional_bytes(row, idx, 32)?.map(<[u8; 32]>::try_from);
    key.transpose().map_err(|_| Trouble::Row("a key or digest isn't 32 bytes"))
}

/// The bytes in column `idx`, where there are some, at most `bytes_max` of them.
pub(super) fn optional_bytes<'a>(row: &'a Row<'_>, idx: usize, bytes_max: usize) -> Result<Option<&'a [u8]>, Trouble> {
    match row.get_ref(idx)? {
        ValueRef::Null => Ok(None),
        ValueRef::Blob(bytes) if bytes.len() <= bytes_max => Ok(Some(bytes)),
        _ => Err(Trouble::Row("bytes are something else, or more than are kept")),
    }
}

/// The text in column `idx`, where there is one, of at most `bytes_max` bytes.
pub(super) fn optional_text(row: &Row<'_>, idx: usize, bytes_max: usize) -> Result<Option<String>, Trouble> {
    match row.get_ref(idx)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) if bytes.len() > bytes_max => Err(Trouble::Row("a text is longer than any that is kept")),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(Trouble::Row("a text isn't UTF-8")),
        },
        _ => Err(Trouble::Row("a text is something else")),
    }
}

/// The text in column `idx`, of at most `bytes_max` bytes.
pub(super) fn text(row: &Row<'_>, idx: usize, bytes_max: usize) -> Result<String, Trouble> {
    optional_text(row, idx, bytes_max)?.ok_or(Trouble::Row("a text is missing"))
}

/// The whole number in column `idx`, where there is one.
pub(super) fn optional_number(row: &Row<'_>, idx: usize) -> Result<Option<i64>, Trouble> {
    match row.get_ref(idx)? {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(number) => Ok(Some(number)),
        _ => Err(Trouble::Row("a number is something else")),
    }
}

/// The whole number in column `idx`.
pub(super) fn number(row: &Row<'_>, idx: usize) -> Result<i64, Trouble> {
    optional_number(row, idx)?.ok_or(Trouble::Row("a number is missing"))
}

/// The count in column `idx`, where there is one.
pub(super) fn optional_count(row: &Row<'_>, idx: usize) -> Result<Option<u64>, Trouble> {
    match optional_number(row, idx)?.map(u64::try_from) {
        None => Ok(None),
        Some(Ok(count)) => Ok(Some(count)),
        Some(Err(_)) => Err(Trouble::Row("a count is negative")),
    }
}

/// The moment in column `idx`.
pub(super) fn moment(row: &Row<'_>, idx: usize) -> Result<Timestamp, Trouble> {
    number(row, idx).map(Timestamp::from_ms)
}
