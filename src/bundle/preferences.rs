//! The settings of a bundle that are needed before it is unlocked: `data/settings.toml`, plain text.
//!
//! Nobody vouches for the file, so it holds only what can do no harm: the name of a model, which is verified by itself,
//! when to use colour, and a relay, which sees who talks with whom and when, and nothing of what is said. A Modelfile isn't
//! among it: its SYSTEM text would be anybody's who had the drive. Its last line is a digest of the others: rot, which would
//! quietly name another model or relay, is noticed; who changes it on purpose isn't.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Sha256Digest;
use crate::disk::{self, DiskError};
use crate::hint::Hint;

/// The largest file of settings.
const SETTINGS_BYTES_MAX: u64 = 4_096;
/// How the address of a relay begins.
const RELAY_SCHEME: &str = "https://";
/// The longest address of a relay, in bytes: what a ticket has room for, and the digest of a certificate.
const RELAY_BYTES_MAX: usize = 272;
/// How the line with the digest of those before it begins. A file without one is from before there was one, or by hand.
const DIGEST_KEY: &str = "sha256 = ";
/// The longest value, in bytes.
const VALUE_BYTES_MAX: usize = 256;

/// What can be set, by name, with the values that it can have; any plain name where there are none.
pub const PREFERENCES: [(&str, &[&str]); 3] = [("color", &["auto", "always", "never"]), ("model", &[]), ("relay", &[])];

/// Why a setting can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PreferenceError {
    /// There is no such setting.
    #[error("there is no setting `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It can't have that value.
    #[error("`{value}` isn't a value of `{name}`")]
    Value {
        /// Which setting.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// The file isn't one of settings.
    #[error("`{}` isn't a file of settings, or isn't as it was written", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Hint for PreferenceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { .. } => "set `color`, `model` or `relay`; `tiles config show` shows them".into(),
            Self::Value { name: "color", .. } => "choose `auto`, `always` or `never`".into(),
            Self::Value { name: "relay", .. } => "give the address of a relay of yours, `https://…`, with `#sha256=` and its certificate's digest where it has no public one".into(),
            Self::Value { .. } => "give the name of a model, as `tiles model list` shows it".into(),
            Self::Unreadable { .. } => "remove it, and set anew with `tiles config set` what you had set".into(),
            Self::Disk(error) => return error.hint(),
        })
    }
}

/// The settings of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// When to use colour.
    pub color: Option<String>,
    /// The model that answers where none is named.
    pub model: Option<String>,
    /// The person's own relay, for drives that share no network.
    pub relay: Option<String>,
}

/// What the file has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    color: Option<String>,
    model: Option<String>,
    relay: Option<String>,
    sha256: Option<String>,
}

impl Preferences {
    /// Reads the file at `path`; none is as an empty one.
    ///
    /// # Errors
    /// [`PreferenceError::Unreadable`], and what reading can meet.
    pub fn read(path: &Path) -> Result<Self, PreferenceError> {
        let text = match disk::read_text(path, SETTINGS_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Ok(Self::default()),
            Err(DiskError::NotText { .. } | DiskError::TooLarge { .. }) => {
                return Err(PreferenceError::Unreadable { path: path.into() });
            }
            Err(error) => return Err(error.into()),
        };
        let unreadable = || PreferenceError::Unreadable { path: path.into() };
        let Wire { color, model, relay, sha256 } = toml::from_str(&text).map_err(|_| unreadable())?;
        let lines = text.rfind(DIGEST_KEY).map_or("", |end| &text[..end]);
        if sha256.is_some_and(|digest| digest != Sha256Digest::of(lines.as_bytes()).to_string()) {
            return Err(unreadable());
        }
        let read = Self { color, model, relay };
        let is_good =
            PREFERENCES.iter().all(|(name, values)| read.value(name).is_none_or(|value| fits(name, values, value)));
        if is_good { Ok(read) } else { Err(unreadable()) }
    }

    /// The value of a setting.
    pub fn value(&self, name: &str) -> Option<&str> {
        match name {
            "color" => self.color.as_deref(),
            "model" => self.model.as_deref(),
            "relay" => self.relay.as_deref(),
            _ => None,
        }
    }

    /// The settings with another value for `name`; none takes it away.
    ///
    /// # Errors
    /// [`PreferenceError::Unknown`] and [`PreferenceError::Value`].
    pub fn with(mut self, name: &str, value: Option<&str>) -> Result<Self, PreferenceError> {
        let Some((name, values)) = PREFERENCES.into_iter().find(|(known, _)| *known == name) else {
            return Err(PreferenceError::Unknown { name: name.into() });
        };
        if let Some(value) = value.filter(|value| !fits(name, values, value)) {
            return Err(PreferenceError::Value { name, value: value.into() });
        }
        let value = value.map(Into::into);
        match name {
            "color" => self.color = value,
            "relay" => self.relay = value,
            _ => self.model = value,
        }
        Ok(self)
    }

    /// Writes the file at `path`. It can be made again, so it may be lost by a cut.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn write(&self, path: &Path) -> Result<(), PreferenceError> {
        let lines = PREFERENCES.iter().filter_map(|(name, _)| Some(format!("{name} = \"{}\"\n", self.value(name)?)));
        let lines: String = lines.collect();
        let digest = Sha256Digest::of(lines.as_bytes());
        Ok(disk::write(path, format!("{lines}{DIGEST_KEY}\"{digest}\"\n").as_bytes())?)
    }
}

/// Whether a setting can have a value: one of `values`, the address of a relay, or a plain name; none needs escapes.
fn fits(name: &str, values: &[&str], value: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    match values {
        [] if name == "relay" => value.strip_prefix(RELAY_SCHEME).is_some_and(|rest| {
            // The address, and the digest of its certificate where no authority vouches for that.
            let (rest, is_digest) = match rest.split_once("#sha256=") {
                Some((rest, digest)) => (rest, digest.parse::<Sha256Digest>().is_ok()),
                None => (rest, true),
            };
            let is_address = |byte: u8| is_plain(byte) || b":/[]".contains(&byte);
            !rest.is_empty() && is_digest && value.len() <= RELAY_BYTES_MAX && rest.bytes().all(is_address)
        }),
        // `tiles run` takes a name that ends so for the path of a file.
        [] if value.to_ascii_lowercase().ends_with("modelfile") => false,
        [] => (1..=VALUE_BYTES_MAX).contains(&value.len()) && value.bytes().all(is_plain),
        values => values.contains(&value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_folder::TestFolder;

    #[test]
    fn what_is_set_is_read_back_and_nothing_else_is_taken() {
        let folder = TestFolder::new();
        let path = folder.path().join("settings.toml");
        let none = Preferences::read(&path).expect("none is fine");
        assert_eq!(none, Preferences::default());
        let set = none.with("model", Some("small-1.5")).and_then(|set| set.with("color", Some("never")));
        let pinned = format!("https://10.0.0.1:8443#sha256={}", Sha256Digest::of(b"a certificate"));
        let set = set.and_then(|set| set.with("relay", Some(&pinned)));
        let set = set.and_then(|set| set.with("relay", Some("https://relay.example.org:8443")));
        let set = set.expect("each can be set");
        set.write(&path).expect("it can be written");
        assert_eq!(Preferences::read(&path).expect("it is there"), set);
        // Another model by one flipped bit; and a file from before there was a digest.
        let written = std::fs::read_to_string(&path).expect("it is there");
        std::fs::write(&path, written.replace("small-1.5", "small-1.4")).expect("it can be written");
        assert!(matches!(Preferences::read(&path), Err(PreferenceError::Unreadable { .. })));
        let lines = written.lines().filter(|line| !line.starts_with(DIGEST_KEY));
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).expect("it can be written");
        assert_eq!(Preferences::read(&path).expect("it is there"), set);
        assert_eq!(set.clone().with("color", None).expect("it can be taken away").color, None);
        for (name, value) in [
            ("model", ""),
            ("model", "../x"),
            ("model", "a\nb"),
            ("model", "Modelfile"),
            ("color", "red"),
            ("relay", "relay.example.org"),
            ("relay", "http://relay.example.org"),
            ("relay", "https://"),
            ("relay", "https://a b"),
            ("relay", "https://a\"\nmodel = \"b"),
            ("relay", &format!("https://{}", "a".repeat(300))),
            ("relay", "https://10.0.0.1#sha256=00"),
            ("relay", "https://10.0.0.1#other"),
            ("system", "x"),
        ] {
            assert!(set.clone().with(name, Some(value)).is_err(), "{name} {value:?}");
        }
        for text in ["model = 1", "other = \"x\"", "color = \"red\"", "model = \"a/b\"", "\u{0}", &"#".repeat(5000)] {
            std::fs::write(&path, text).expect("it can be written");
            assert!(matches!(Preferences::read(&path), Err(PreferenceError::Unreadable { .. })), "{text:?}");
        }
    }
}
