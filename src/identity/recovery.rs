//! `RecoveryWords`: 24 words on paper that open the key file when the passphrase is lost.
//!
//! 32 random bytes are the 24 words (BIP-39, English). HKDF-SHA256 makes an X25519 age identity of them, so that stock
//! `age -d -i recovery.txt key.a` opens the key file wherever Tiles isn't at hand.

use std::str::FromStr as _;

use age::x25519;
use bip39::{Language, Mnemonic};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::KeyError;

/// The number of recovery words.
pub const RECOVERY_WORDS: usize = 24;

/// The longest text that is looked at in bytes; 24 words have at most 215.
pub const RECOVERY_TEXT_BYTES_MAX: usize = 1024;

const LABEL: &[u8] = b"tiles/v1/recovery-x25519";

/// The 32 bytes behind the 24 words.
///
/// # Security
/// Whoever has the words has the identity and everything said. Has no `Debug`, and is overwritten when dropped.
pub struct RecoveryWords(SecretBox<[u8; 32]>);

/// What is wrong with words that were typed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WordsError {
    /// There are too few or too many.
    #[error("the recovery words are {RECOVERY_WORDS}, here are {count}")]
    Count {
        /// How many there are.
        count: usize,
    },
    /// One isn't in the list. The word itself is left out, because it is most of a secret.
    #[error("word {position} isn't one of the recovery words")]
    Unknown {
        /// Which, counted from one.
        position: usize,
        /// The words of the list that are most like it, at most three.
        near: Vec<&'static str>,
    },
    /// All are in the list, and at least one isn't where it belongs.
    #[error("the words are known, but one is wrong or two have changed places")]
    Checksum,
}

impl RecoveryWords {
    /// Draws new words.
    ///
    /// # Errors
    /// [`KeyError::Random`] where the operating system gives no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut entropy = Box::new([0; 32]);
        getrandom::fill(&mut entropy[..])?;
        Ok(Self(SecretBox::new(entropy)))
    }

    /// The words, to be shown once and written on paper.
    pub fn words(&self) -> [&'static str; RECOVERY_WORDS] {
        let mnemonic = Mnemonic::from_entropy_in(Language::English, self.0.expose_secret());
        let mut mnemonic = mnemonic.expect("32 bytes are 24 words");
        let mut words = [""; RECOVERY_WORDS];
        words.iter_mut().zip(mnemonic.words()).for_each(|(word, known)| *word = known);
        mnemonic.zeroize();
        words
    }

    /// Reads words as a person types them: any case, any white space, numbered or not.
    ///
    /// # Errors
    /// [`WordsError`], by what to correct.
    pub fn parse(text: &str) -> Result<Self, WordsError> {
        let count = Self::split(text).count();
        if count != RECOVERY_WORDS || text.len() > RECOVERY_TEXT_BYTES_MAX {
            return Err(WordsError::Count { count });
        }
        let mut words = [""; RECOVERY_WORDS];
        for (index, (word, typed)) in words.iter_mut().zip(Self::split(text)).enumerate() {
            *word = Self::known_word(index + 1, typed)?;
        }
        let phrase = Zeroizing::new(words.join(" "));
        let mut mnemonic =
            Mnemonic::parse_in_normalized(Language::English, &phrase).map_err(|_| WordsError::Checksum)?;
        let (mut entropy, _) = mnemonic.to_entropy_array();
        mnemonic.zeroize();
        let boxed = SecretBox::init_with_mut(|bytes: &mut [u8; 32]| bytes.copy_from_slice(&entropy[..32]));
        entropy.zeroize();
        Ok(Self(boxed))
    }

    /// The recovery word that was typed at `position`, counted from one: any case, its first four letters or more.
    ///
    /// # Errors
    /// [`WordsError::Unknown`] with the words that are like it.
    pub fn known_word(position: usize, typed: &str) -> Result<&'static str, WordsError> {
        let lower = Zeroizing::new(typed.to_lowercase());
        known_word(&lower).ok_or_else(|| WordsError::Unknown { position, near: near_words(&lower) })
    }

    /// Splits typed text into what should be words: white space and the numbers of a list don't count.
    pub fn split(text: &str) -> impl Iterator<Item = &str> {
        text.split_whitespace().filter(|word| !is_number(word))
    }

    /// Whether `typed` is the word at `position`, counted from one: what is asked back after showing them.
    pub fn is_word(&self, position: usize, typed: &str) -> bool {
        let words = self.words();
        position
            .checked_sub(1)
            .and_then(|index| words.get(index))
            .is_some_and(|word| typed.trim().to_lowercase() == *word)
    }

    /// The line for `recovery.txt`, with which stock `age` opens a slot: `AGE-SECRET-KEY-1…`.
    pub fn to_age_key(&self) -> SecretString {
        self.to_age_identity().to_string()
    }

    /// The X25519 identity that is made of the words.
    pub(super) fn to_age_identity(&self) -> x25519::Identity {
        let mut key = Zeroizing::new([0; 32]);
        let derived = hkdf::Hkdf::<Sha256>::new(None, self.0.expose_secret()).expand(LABEL, &mut key[..]);
        derived.expect("32 bytes are within what HKDF-SHA256 gives");
        age_identity(&key)
    }
}

/// Whether it is a list number: `7`, `7.`, `7)`, `7:`.
fn is_number(word: &str) -> bool {
    let digits = word.trim_end_matches(['.', ')', ':']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The word of the list, or the only one that starts with these four letters or more (BIP-39: four tell them apart).
fn known_word(typed: &str) -> Option<&'static str> {
    let list = Language::English.word_list();
    if let Ok(index) = list.binary_search(&typed) {
        return Some(list[index]);
    }
    let mut starting = list.iter().filter(|word| typed.len() >= 4 && word.starts_with(typed));
    starting.next().copied().filter(|_| starting.next().is_none())
}

/// At most three words of the list that are like the typed one, the most alike first.
fn near_words(typed: &str) -> Vec<&'static str> {
    let short: String = typed.chars().take(16).collect();
    let mut near: Vec<_> = Language::English
        .word_list()
        .iter()
        .map(|word| (strsim::osa_distance(&short, word), *word))
        .filter(|(distance, _)| *distance <= 2)
        .collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, word)| word).collect()
}

/// The age identity of an X25519 key.
pub(crate) fn age_identity(key: &[u8; 32]) -> x25519::Identity {
    let prefix = bech32::Hrp::parse("age-secret-key-").expect("the prefix is age's own");
    let text = bech32::encode_upper::<bech32::Bech32>(prefix, key).map(Zeroizing::new);
    let text = text.expect("32 bytes fit a bech32 text");
    x25519::Identity::from_str(&text).expect("any 32 bytes are an X25519 key")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(entropy: [u8; 32]) -> RecoveryWords {
        RecoveryWords(SecretBox::new(Box::new(entropy)))
    }

    /// From the test vectors of BIP-39 (trezor/python-mnemonic, vectors.json).
    #[test]
    fn the_known_vectors_are_met() {
        for (entropy, phrase) in [
            ([0; 32], format!("{}art", "abandon ".repeat(23))),
            ([0xff; 32], format!("{}vote", "zoo ".repeat(23))),
            (
                [0x7f; 32],
                "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth useful \
                 legal winner thank year wave sausage worth title"
                    .into(),
            ),
        ] {
            assert_eq!(of(entropy).words().join(" "), phrase);
            let parsed = RecoveryWords::parse(&phrase).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed.0.expose_secret(), &entropy);
        }
    }

    #[test]
    fn the_age_key_is_hkdf_of_the_entropy() {
        // HKDF-SHA256 and bech32 computed with Python's hmac and hashlib, and the reference bech32.
        let key = of([0; 32]).to_age_key();
        assert_eq!(key.expose_secret(), AGE_KEY_OF_ZEROS);
        assert_ne!(of([1; 32]).to_age_key().expose_secret(), AGE_KEY_OF_ZEROS);
    }
    const AGE_KEY_OF_ZEROS: &str = "AGE-SECRET-KEY-1MHHJNTF62E7ERWQ7GCZ7S5TXPYYQ8F6MPHZGPMQR9QZ4LHFM3F5QHL8QKF";

    #[test]
    fn words_are_read_as_people_type_them() {
        let abandon = "abandon ".repeat(23);
        let numbered: String = (1..24).map(|number| format!("{number}. Abandon\n")).collect();
        for good in [format!("{abandon}art"), format!("{numbered}24) ART\n"), format!("{}art", "aban\t".repeat(23))] {
            assert_eq!(RecoveryWords::parse(&good).map(|words| *words.0.expose_secret()), Ok([0; 32]));
        }
        let error = |text: &str| RecoveryWords::parse(text).map(drop).expect_err("it isn't right");
        assert_eq!(error(""), WordsError::Count { count: 0 });
        assert_eq!(error(&abandon), WordsError::Count { count: 23 });
        assert_eq!(error(&"abandon ".repeat(100_000)), WordsError::Count { count: 100_000 });
        assert_eq!(error(&format!("{abandon}abandon")), WordsError::Checksum);
        let near = |typed: &str| match error(&format!("{abandon}{typed}")) {
            WordsError::Unknown { position: 24, near } => near,
            other => panic!("{other}"),
        };
        assert_eq!(near("abandn"), ["abandon"]);
        assert_eq!(near("trumpte"), ["trumpet"]);
        assert_eq!(near("xqzzzzzz"), [""; 0]);
        assert!(near("ar").len() == 3);
        assert!(near(&"é".repeat(300)).is_empty());
    }

    #[test]
    fn single_words_are_asked_back() {
        let words = of([0; 32]);
        assert!(words.is_word(1, " Abandon ") && words.is_word(24, "art"));
        assert!(!words.is_word(24, "abandon") && !words.is_word(0, "art") && !words.is_word(25, "art"));
    }

    proptest! {
        #[test]
        fn words_and_entropy_are_inverse(entropy: [u8; 32]) {
            let words = of(entropy).words().join(" ");
            let parsed = RecoveryWords::parse(&words).map(|words| *words.0.expose_secret());
            prop_assert_eq!(parsed, Ok(entropy));
        }

        #[test]
        fn no_text_makes_it_panic(text in "([a-z]{0,9}[ 0-9.é]){0,30}") {
            let _ = RecoveryWords::parse(&text);
        }
    }
}
