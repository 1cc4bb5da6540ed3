//! Versions of Tiles, as `REQUIRES` names them.

use std::fmt;
use std::str::FromStr;

/// A version: three numbers, compared from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes that break something.
    pub major: u32,
    /// Changes that add something.
    pub minor: u32,
    /// Corrections.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is no version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a version is one to three numbers, such as `0.1.0`")]
pub struct ParseVersionError;

impl FromStr for Version {
    type Err = ParseVersionError;

    /// Reads one to three numbers with an optional `v` before them; missing numbers are 0. Suffixes as in `1.0.0-rc.1`
    /// are refused: Tiles has none, and their order would be another rule to know.
    fn from_str(text: &str) -> Result<Self, ParseVersionError> {
        let mut numbers = [0; 3];
        let digits = text.strip_prefix('v').unwrap_or(text);
        let mut parts = digits.split('.');
        for (number, part) in numbers.iter_mut().zip(&mut parts) {
            let plain = part == "0" || !part.starts_with('0') && part.bytes().all(|byte| byte.is_ascii_digit());
            *number = part.parse().ok().filter(|_| plain).ok_or(ParseVersionError)?;
        }
        let [major, minor, patch] = numbers;
        parts.next().is_none().then_some(Self { major, minor, patch }).ok_or(ParseVersionError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_print_and_compare() {
        for (text, printed) in [("0.1.0", "0.1.0"), ("v1.2.3", "1.2.3"), ("1", "1.0.0"), ("0.14", "0.14.0")] {
            assert_eq!(text.parse::<Version>().map(|version| version.to_string()), Ok(printed.to_owned()));
        }
        let bad =
            ["", "v", ".", "1.", "1.2.3.4", "01.0.0", "1.0.0-rc.1", "1.+2.3", "-1", "4294967296.0.0", "a.b.c", "1 "];
        for text in bad {
            assert_eq!(text.parse::<Version>(), Err(ParseVersionError), "{text}");
        }
        let version = |text: &str| text.parse::<Version>().expect("it is one");
        assert!(version("0.9.9") < version("0.10.0") && version("0.10.0") < version("1.0.0"));
    }
}
