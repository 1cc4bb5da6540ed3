//! `LinkCode`: what one person reads out and the other types: eight symbols of Crockford's base 32.
//!
//! The first two are the nameplate: public, it says which of the drives in the room is meant. The other six are 30 secret
//! bits. They are enough because a guess costs a whole exchange with somebody who waits (SPAKE2), and three wrong ones end
//! the code.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroize;

use super::error::PeerError;

/// The symbols of a code.
pub const CODE_SYMBOLS: usize = 8;
/// Those of them that are its nameplate.
pub const NAMEPLATE_SYMBOLS: usize = 2;
/// The longest text that is looked at: a code with whatever separates its symbols.
pub const CODE_TEXT_BYTES_MAX: usize = 32;

/// Crockford's alphabet: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A code that links two drives once.
///
/// # Security
/// Has no `Debug`, and is overwritten when dropped; only [`LinkCode::to_text`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct LinkCode([u8; CODE_SYMBOLS]);

impl LinkCode {
    /// Draws a new one.
    ///
    /// # Errors
    /// [`PeerError::Random`] where the operating system gives no random bytes.
    pub fn draw() -> Result<Self, PeerError> {
        let mut bytes = [0; CODE_SYMBOLS];
        getrandom::fill(&mut bytes).map_err(|_| PeerError::Random)?;
        // 256 is a multiple of 32, so each symbol is as likely as the others.
        Ok(Self(bytes.map(|byte| byte % 32)))
    }

    /// The code as it is shown: `4K-7QM-2XD`.
    pub fn to_text(&self) -> String {
        let symbols: String = self.symbols().collect();
        format!("{}-{}-{}", &symbols[..2], &symbols[2..5], &symbols[5..])
    }

    /// The public part, in capitals.
    pub fn nameplate(&self) -> String {
        self.symbols().take(NAMEPLATE_SYMBOLS).collect()
    }

    /// The code as the password of the exchange, and in a ticket: 40 bits.
    pub(super) fn to_bytes(&self) -> [u8; 5] {
        let bits = self.0.iter().fold(0_u64, |bits, symbol| bits << 5 | u64::from(*symbol));
        let [_, _, _, bytes @ ..] = bits.to_be_bytes();
        bytes
    }

    /// The code of a ticket; any 40 bits are one.
    pub(super) fn from_bytes(bytes: [u8; 5]) -> Self {
        let bits = bytes.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        let mut symbols = [0; CODE_SYMBOLS];
        for (idx, symbol) in symbols.iter_mut().rev().enumerate() {
            *symbol = (bits >> (5 * idx) & 31) as u8;
        }
        Self(symbols)
    }

    fn symbols(&self) -> impl Iterator<Item = char> {
        self.0.iter().map(|symbol| char::from(ALPHABET[usize::from(*symbol)]))
    }
}

impl Drop for LinkCode {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkCode({}-…)", self.nameplate())
    }
}

/// Reads a code as people type it: small letters, spaces and dashes, and the letters that look like a digit.
impl FromStr for LinkCode {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        if text.len() > CODE_TEXT_BYTES_MAX {
            return Err(PeerError::Code);
        }
        let mut code = Self([0; CODE_SYMBOLS]);
        let mut count = 0;
        for letter in text.chars().filter(|letter| !matches!(letter, ' ' | '-')) {
            let letter = match letter.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                letter => letter,
            };
            let value = ALPHABET.iter().position(|symbol| char::from(*symbol) == letter).ok_or(PeerError::Code)?;
            *code.0.get_mut(count).ok_or(PeerError::Code)? = value as u8;
            count += 1;
        }
        if count == CODE_SYMBOLS { Ok(code) } else { Err(PeerError::Code) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_are_read_as_people_type_them() {
        for (typed, expected) in [
            ("4K-7QM-2XD", Some("4K-7QM-2XD")),
            ("4k7qm2xd", Some("4K-7QM-2XD")),
            (" 4k 7qm 2xd ", Some("4K-7QM-2XD")),
            ("oi-lOI-L00", Some("01-101-100")),
            ("4K-7QM-2X", None),
            ("4K-7QM-2XDD", None),
            ("4K-7QM-2XU", None),
            ("4K_7QM_2XD", None),
            ("4K-7QM-2Xé", None),
            ("", None),
            (&"-".repeat(40), None),
        ] {
            let read = typed.parse::<LinkCode>().ok().map(|code| code.to_text());
            assert_eq!(read.as_deref(), expected, "{typed:?}");
        }
    }

    #[test]
    fn drawn_codes_differ_and_debug_keeps_the_secret() {
        let [first, second] = [0; 2].map(|_| LinkCode::draw().expect("there is randomness"));
        assert_ne!(first, second);
        assert_eq!(format!("{first:?}"), format!("LinkCode({}-…)", first.nameplate()));
        assert_eq!(first.to_text()[..2], first.nameplate());
    }

    proptest! {
        #[test]
        fn text_and_bytes_come_back(bytes: [u8; 5], text in ".{0,40}") {
            let code = LinkCode::from_bytes(bytes);
            prop_assert_eq!(code.to_bytes(), bytes);
            prop_assert_eq!(code.to_text().parse::<LinkCode>().ok(), Some(code));
            let _ = text.parse::<LinkCode>();
        }
    }
}
