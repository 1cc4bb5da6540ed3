//! From a file's bytes to text and back: UTF-8, or UTF-16 that says so with a byte order mark.

use super::MODELFILE_BYTES_MAX;
use super::diagnostic::{Diagnostic, Flaw};

/// How a file writes characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    Utf8,
    /// UTF-16, low byte first.
    Utf16Le,
    /// UTF-16, high byte first.
    Utf16Be,
}

impl Encoding {
    /// The bytes of `text` in this encoding. A byte order mark is written if the text begins with one.
    pub fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::Utf8 => text.as_bytes().to_vec(),
            Self::Utf16Le => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            Self::Utf16Be => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

/// Decodes a file. The byte order mark stays in the text, so that encoding it again gives the same bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<(String, Encoding), Box<Diagnostic>> {
    if bytes.len() > MODELFILE_BYTES_MAX {
        return Err(Box::new(too_long(bytes.len())));
    }
    match bytes {
        [0xff, 0xfe, ..] => decode_utf16(bytes, u16::from_le_bytes, Encoding::Utf16Le),
        [0xfe, 0xff, ..] => decode_utf16(bytes, u16::from_be_bytes, Encoding::Utf16Be),
        _ => match str::from_utf8(bytes) {
            Ok(text) => Ok((text.to_owned(), Encoding::Utf8)),
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                let text = str::from_utf8(good).expect("the text is valid up to there");
                let found = bad.first().map_or_else(String::new, |byte| format!("the byte 0x{byte:02x}"));
                Err(no_text(text, "UTF-8 text", &found))
            }
        },
    }
}

fn decode_utf16(
    bytes: &[u8],
    unit: fn([u8; 2]) -> u16,
    encoding: Encoding,
) -> Result<(String, Encoding), Box<Diagnostic>> {
    let (units, odd) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len());
    for char in char::decode_utf16(units.iter().map(|pair| unit(*pair))) {
        match char {
            Ok(char) => text.push(char),
            Err(error) => {
                let found = format!("half of a surrogate pair, 0x{:04x}", error.unpaired_surrogate());
                return Err(no_text(&text, "UTF-16 text", &found));
            }
        }
    }
    match odd {
        [] => Ok((text, encoding)),
        _ => Err(no_text(&text, "UTF-16 text", "half of a character at the end of the file")),
    }
}

/// The diagnostic for a text that is longer than may be.
pub(super) fn too_long(bytes: usize) -> Diagnostic {
    let message = format!("the file has {bytes} bytes, but a Modelfile has at most {MODELFILE_BYTES_MAX}");
    let hint = "give the path of a Modelfile, not of a model".to_owned();
    Flaw { message: Some(message), hint: Some(hint), ..Flaw::at(0..0, "a Modelfile") }.locate("")
}

fn no_text(good: &str, expected: &str, found: &str) -> Box<Diagnostic> {
    let message = format!("expected {expected}, found {found}");
    let hint = "save the file as UTF-8; a model's weights are no Modelfile".to_owned();
    let flaw = Flaw { message: Some(message), hint: Some(hint), ..Flaw::at(good.len()..good.len(), expected) };
    Box::new(flaw.locate(good))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_the_same_bytes() {
        for text in ["", "FROM a\r\n", "\u{feff}FROM 你好👋"] {
            assert_eq!(decode(text.as_bytes()).expect("it is UTF-8"), (text.to_owned(), Encoding::Utf8));
            assert_eq!(Encoding::Utf8.encode(text), text.as_bytes());
        }
        for encoding in [Encoding::Utf16Le, Encoding::Utf16Be] {
            let text = "\u{feff}FROM 你好👋\n";
            assert_eq!(decode(&encoding.encode(text)).expect("it is UTF-16"), (text.to_owned(), encoding));
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_where_they_are() {
        #[track_caller]
        fn check(bytes: &[u8], line: usize, column: usize, message: &str) {
            let error = decode(bytes).expect_err(message);
            assert_eq!((error.line, error.column, error.message()), (line, column, message));
        }
        check(b"FROM a\nSYSTEM \xff\xfe", 2, 8, "expected UTF-8 text, found the byte 0xff");
        check(b"GGUF\x03\0\0\0\xe2\x28\xa1", 1, 9, "expected UTF-8 text, found the byte 0xe2");
        check(b"\xff\xfeF\0\0\xd8 \0", 1, 2, "expected UTF-16 text, found half of a surrogate pair, 0xd800");
        check(b"\xfe\xff\0F\0", 1, 2, "expected UTF-16 text, found half of a character at the end of the file");
        let long = vec![b'\n'; MODELFILE_BYTES_MAX + 1];
        check(&long, 1, 1, "the file has 1048577 bytes, but a Modelfile has at most 1048576");
        assert!(decode(&long[1..]).is_ok());
    }
}
