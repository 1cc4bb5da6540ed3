//! Paths that mean the same on every drive and every system: the only ones a list may have.

/// The longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 200;
/// The longest name between two `/`, in bytes.
pub const PATH_NAME_BYTES_MAX: usize = 100;
/// The most names in a path.
pub const PATH_DEPTH_MAX: usize = 8;

/// Names that Windows gives to devices, with any extension.
const DEVICES: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// Why a path can't be in a list.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    /// There is nothing in it.
    #[error("a path is empty")]
    Empty,
    /// It is too long, or has too many names.
    #[error(
        "a path has more than {PATH_BYTES_MAX} bytes, {PATH_DEPTH_MAX} names, or {PATH_NAME_BYTES_MAX} bytes in a name"
    )]
    TooLong,
    /// It leads out of the bundle, or somewhere that depends on the system.
    #[error("`{path}` isn't a plain path below the bundle")]
    NotBelow {
        /// The path.
        path: String,
    },
    /// A character in it isn't allowed.
    #[error("`{path}` has a character other than letters, digits and `._+-`")]
    Character {
        /// The path, with those characters replaced.
        path: String,
    },
    /// A name in it has a meaning of its own somewhere.
    #[error("`{path}` has a reserved name")]
    Reserved {
        /// The path.
        path: String,
    },
    /// It is in the folder that belongs to the person.
    #[error("`{path}` is in `data`, which belongs to the person")]
    Personal {
        /// The path.
        path: String,
    },
}

/// Checks a path for the list of a bundle's files.
///
/// # Errors
/// Everything that [`check_below`] refuses; and the list itself, its signature, and what is below `data/`.
pub fn check(path: &str) -> Result<(), PathError> {
    check_below(path)?;
    let lower = path.to_ascii_lowercase();
    if lower == "data" || lower.starts_with("data/") {
        return Err(PathError::Personal { path: path.into() });
    }
    if lower == "manifest.toml" || lower == "manifest.sig" {
        return Err(PathError::Reserved { path: path.into() });
    }
    Ok(())
}

/// Checks a path for any list: relative, without `..`, with names that exFAT, FAT32, macOS, Linux and Windows agree on.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_below(path: &str) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.len() > PATH_BYTES_MAX || path.split('/').count() > PATH_DEPTH_MAX {
        return Err(PathError::TooLong);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-/".contains(c);
    if !path.chars().all(allowed) {
        let path = path.chars().map(|c| if allowed(c) { c } else { '?' }).collect();
        return Err(PathError::Character { path });
    }
    for name in path.split('/') {
        if name.len() > PATH_NAME_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        if matches!(name, "" | "." | "..") {
            return Err(PathError::NotBelow { path: path.into() });
        }
        if is_reserved(name) {
            return Err(PathError::Reserved { path: path.into() });
        }
    }
    Ok(())
}

/// Whether a name is a device on Windows, loses its last dot there, or is one that Tiles or a system gives to files beside
/// the listed ones.
fn is_reserved(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let stem = lower.split('.').next().unwrap_or_default();
    DEVICES.contains(&stem)
        || lower.ends_with('.')
        || lower.ends_with(".chunks")
        || lower.ends_with(".partial")
        || lower.starts_with("._")
        || lower.starts_with(".spotlight-v")
        || matches!(lower.as_str(), ".ds_store" | ".metadata_never_index" | ".trashes" | ".fseventsd")
}
