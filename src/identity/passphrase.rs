//! `Passphrase`: what a person types to unlock their keys; how strong it is; one to suggest.

use std::fmt::Write as _;

use bip39::Language;
use secrecy::{ExposeSecret as _, SecretString};
use unicode_normalization::UnicodeNormalization as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::error::KeyError;
use super::secret::keep_in_memory;

/// The longest passphrase in bytes, before and after normalisation.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;

/// The number of words in a suggested passphrase. Each is one of 2048, so four have 44 bits.
pub const SUGGESTED_WORDS: u32 = 4;

/// A passphrase in Unicode normalisation form C, so that `é` is the same from every keyboard.
///
/// # Security
/// Has no `Debug` and no `Display`, and is overwritten when dropped.
pub struct Passphrase(SecretString);

impl Passphrase {
    /// Takes what a person typed, and overwrites it.
    ///
    /// # Errors
    /// [`KeyError::EmptyPassphrase`], and [`KeyError::LongPassphrase`] above [`PASSPHRASE_BYTES_MAX`].
    pub fn new(mut typed: String) -> Result<Self, KeyError> {
        let normalised = Self::from_text(&typed);
        typed.zeroize();
        normalised
    }

    /// Takes what `--passphrase-file` or `--passphrase-fd` gave: UTF-8, of which one line end is not part of it.
    ///
    /// # Errors
    /// As [`Passphrase::new`], and [`KeyError::PassphraseNotText`].
    pub fn from_file_content(content: Vec<u8>) -> Result<Self, KeyError> {
        let content = Zeroizing::new(content);
        let text = str::from_utf8(&content).map_err(|_| KeyError::PassphraseNotText)?;
        let line = text.strip_suffix('\n').unwrap_or(text);
        Self::from_text(line.strip_suffix('\r').filter(|_| line.len() < text.len()).unwrap_or(line))
    }

    fn from_text(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::EmptyPassphrase);
        }
        if text.len() > PASSPHRASE_BYTES_MAX {
            return Err(KeyError::LongPassphrase);
        }
        // Normalisation grows a text threefold at most, so that nothing is left behind by a reallocation.
        let mut normalised = Zeroizing::new(String::with_capacity(3 * text.len()));
        normalised.extend(text.nfc());
        if normalised.len() > PASSPHRASE_BYTES_MAX {
            return Err(KeyError::LongPassphrase);
        }
        let kept = SecretString::from(normalised.as_str());
        keep_in_memory(kept.expose_secret().as_bytes());
        Ok(Self(kept))
    }

    /// The normalised text.
    pub(super) fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// A second one, for a store that keeps it.
    pub(super) fn copy(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether both are the same, as asked when one is typed twice.
    pub fn matches(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

/// How hard a passphrase is to guess, as zxcvbn estimates it (Wheeler, USENIX Security 2016).
#[derive(Clone, Debug, PartialEq)]
pub struct Strength {
    /// From 0, guessed at once, to 4, out of reach of a thief with many machines.
    pub score: u8,
    /// The number of guesses, as its decimal logarithm.
    pub guesses_log10: f64,
    /// What is weak and what would help, as sentences, where there is something to say.
    pub advice: Option<String>,
}

/// Estimates how hard `passphrase` is to guess. Only its first 100 characters count.
pub fn strength(passphrase: &Passphrase) -> Strength {
    let entropy = zxcvbn::zxcvbn(passphrase.expose(), &["tiles", "flash", "drive", "passphrase"]);
    let advice = entropy.feedback().map(|feedback| {
        let mut advice = String::new();
        if let Some(warning) = feedback.warning() {
            let _ = write!(advice, "{warning}");
        }
        for suggestion in feedback.suggestions() {
            let _ = write!(advice, "{}{suggestion}", if advice.is_empty() { "" } else { " " });
        }
        advice
    });
    Strength {
        score: u8::from(entropy.score()),
        guesses_log10: entropy.guesses_log10(),
        advice: advice.filter(|advice| !advice.is_empty()),
    }
}

/// Suggests four words of the English BIP-39 list, drawn evenly: 44 bits.
///
/// # Security
/// 44 bits behind [`super::WorkFactor::DEFAULT`] at 0.7 s of a core a guess are some 200 000 core years for half of all
/// guesses: enough for a lost drive, not against a state. Who wants more adds words, 11 bits each.
///
/// # Errors
/// [`KeyError::Random`] where the operating system gives no random bytes.
pub fn suggest_passphrase() -> Result<Zeroizing<String>, KeyError> {
    let words = Language::English.word_list();
    let mut suggestion = Zeroizing::new(String::with_capacity(64));
    for position in 0..SUGGESTED_WORDS {
        let mut random = [0; 2];
        getrandom::fill(&mut random)?;
        // 2^16 is a multiple of 2048: the remainder is even.
        let word = words[usize::from(u16::from_le_bytes(random)) % words.len()];
        if position > 0 {
            suggestion.push(' ');
        }
        suggestion.push_str(word);
    }
    Ok(suggestion)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_and_piped_passphrases_are_normalised() {
        let typed = |text: &str| Passphrase::new(text.into()).map(|p| p.expose().to_owned()).map_err(|e| e.to_string());
        let piped = |text: &[u8]| {
            Passphrase::from_file_content(text.into()).map(|p| p.expose().to_owned()).map_err(|e| e.to_string())
        };
        assert_eq!(typed("cafe\u{301}"), Ok("caf\u{e9}".into()));
        assert_eq!(typed(" two  spaces \n"), Ok(" two  spaces \n".into()));
        assert_eq!(typed(""), Err("the passphrase is empty".into()));
        let long = Err(format!("the passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes"));
        assert_eq!(typed(&"x".repeat(PASSPHRASE_BYTES_MAX + 1)), long);
        // U+1D160 becomes three characters of four bytes each.
        assert_eq!(typed(&"\u{1d160}".repeat(PASSPHRASE_BYTES_MAX / 4)), long);
        assert!(typed(&"x".repeat(PASSPHRASE_BYTES_MAX)).is_ok());
        for (content, expected) in [
            (&b"words"[..], "words"),
            (b"words\n", "words"),
            (b"words\r\n", "words"),
            (b"words\n\n", "words\n"),
            (b"words\r", "words\r"),
            ("cafe\u{301}\n".as_bytes(), "caf\u{e9}"),
        ] {
            assert_eq!(piped(content), Ok(expected.into()));
        }
        assert_eq!(piped(b"\n"), Err("the passphrase is empty".into()));
        assert_eq!(piped(b"\xff\n"), Err("the passphrase isn't UTF-8 text".into()));
    }

    #[test]
    fn strength_tells_weak_from_strong() {
        let of = |text: &str| strength(&Passphrase::new(text.into()).expect("it isn't empty"));
        let weak = of("password1");
        assert!(weak.score <= 1 && weak.advice.is_some(), "{weak:?}");
        assert!(of("tiles").score == 0);
        let strong = of("obvious marble canyon trumpet velvet");
        assert!(strong.score == 4 && strong.guesses_log10 > 12.0, "{strong:?}");
    }

    #[test]
    fn suggestions_are_four_words_and_never_the_same() {
        let [first, second] = [0; 2].map(|_| suggest_passphrase().expect("random bytes are there"));
        assert_ne!(*first, *second);
        for suggestion in [first, second] {
            let words: Vec<_> = suggestion.split(' ').collect();
            assert_eq!(words.len(), SUGGESTED_WORDS as usize);
            assert!(words.iter().all(|word| Language::English.find_word(word).is_some()));
            assert!(strength(&Passphrase::new(suggestion.to_string()).expect("it isn't empty")).score >= 3);
        }
    }
}
