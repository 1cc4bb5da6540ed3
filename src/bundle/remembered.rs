//! Which seal a bundle had when it was last unlocked, so that another seal or an older state doesn't pass unnoticed.
//!
//! Where no key is compiled in, anybody's seal is accepted; then only a memory that whoever swaps the list can't write
//! tells a swap. It belongs where a key of the identity authenticates it, as in the encrypted database.

use std::fmt;

use crate::hint::Hint;
use crate::manifest::signature::SealPublicKey;

/// Which seal a bundle has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealMark {
    /// Whose key sealed it.
    pub key: SealPublicKey,
    /// The generation of the list.
    pub generation: u64,
}

impl fmt::Display for SealMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.generation, self.key)
    }
}

/// What the remembered seal says about the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// None was remembered: this is the one to remember.
    First,
    /// The same as before.
    Same,
    /// Sealed again by the same key, as a renewed bundle is: this is the one to remember.
    Renewed,
}

/// The seal isn't the one that was remembered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealChanged {
    /// Somebody else sealed it.
    #[error("the bundle was sealed by {remembered} when it was last unlocked, and now by {found}")]
    Key {
        /// The short form of the key that is remembered.
        remembered: String,
        /// The short form of the key that sealed it now.
        found: String,
    },
    /// It is an older state of the bundle.
    #[error("the bundle is older than when it was last unlocked: generation {found} instead of {remembered}")]
    Older {
        /// The generation that is remembered.
        remembered: u64,
        /// The generation that is there.
        found: u64,
    },
    /// What is remembered isn't a seal.
    #[error("what is remembered of the bundle's seal can't be read")]
    Unreadable,
}

impl Hint for SealChanged {
    fn hint(&self) -> Option<String> {
        Some("if you renewed or replaced the bundle yourself, run `tiles bundle accept`; if not, don't use it: somebody may have swapped its programs".into())
    }
}

impl SealMark {
    /// Reads what [`SealMark`]'s `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (generation, key) = text.split_once(' ')?;
        Some(Self { key: SealPublicKey::from_hex(key)?, generation: generation.parse().ok()? })
    }

    /// Compares the seal with `remembered`, what was kept of the last one.
    ///
    /// # Errors
    /// [`SealChanged`]: another key, or a lower generation.
    pub fn compare(&self, remembered: Option<&str>) -> Result<Standing, SealChanged> {
        let Some(text) = remembered else { return Ok(Standing::First) };
        let before = Self::parse(text).ok_or(SealChanged::Unreadable)?;
        if before.key != self.key {
            return Err(SealChanged::Key { remembered: before.key.short(), found: self.key.short() });
        }
        match self.generation.cmp(&before.generation) {
            std::cmp::Ordering::Less => {
                Err(SealChanged::Older { remembered: before.generation, found: self.generation })
            }
            std::cmp::Ordering::Equal => Ok(Standing::Same),
            std::cmp::Ordering::Greater => Ok(Standing::Renewed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_bundle_passes_and_a_swapped_or_older_one_does_not() {
        let mark = |key: u8, generation| SealMark { key: SealPublicKey([key; 32]), generation };
        let now = mark(7, 4);
        assert_eq!(SealMark::parse(&now.to_string()), Some(now));
        for (remembered, expected) in [
            (None, Ok(Standing::First)),
            (Some(now.to_string()), Ok(Standing::Same)),
            (Some(mark(7, 3).to_string()), Ok(Standing::Renewed)),
            (Some(mark(7, 5).to_string()), Err(SealChanged::Older { remembered: 5, found: 4 })),
            (Some(mark(8, 4).to_string()), Err(SealChanged::Key { remembered: "08".repeat(8), found: "07".repeat(8) })),
            (Some(String::new()), Err(SealChanged::Unreadable)),
            (Some("4 07".into()), Err(SealChanged::Unreadable)),
        ] {
            assert_eq!(now.compare(remembered.as_deref()), expected);
        }
    }
}
