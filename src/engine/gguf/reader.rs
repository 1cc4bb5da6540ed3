//! The header of a GGUF file: metadata and the list of tensors, each number checked before it is believed.
//!
//! Source: ggml's `docs/gguf.md`. All numbers are little-endian.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::GgufError;
use super::quantised::TensorType;
use crate::disk;

/// The most metadata pairs a file may have; published ones have some dozens.
pub const PAIRS_MAX: u64 = 4096;
/// The most tensors a file may have.
pub const TENSORS_MAX: u64 = 65_536;
/// The longest key, in bytes (the format's own limit).
pub const KEY_BYTES_MAX: u64 = 65_535;
/// The longest tensor name, in bytes.
pub const TENSOR_NAME_BYTES_MAX: u64 = 256;
/// The longest text, in bytes. Chat templates are the longest, some with 20 KB.
pub const TEXT_BYTES_MAX: u64 = 1024 * 1024;
/// The most items an array may have; the largest vocabularies have 262,144.
pub const ARRAY_ITEMS_MAX: u64 = 4 * 1024 * 1024;
/// How deep arrays may lie in arrays.
pub const ARRAY_DEPTH_MAX: u32 = 4;
/// The longest header, in bytes.
pub const HEADER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The largest alignment of tensor data, in bytes.
pub const ALIGNMENT_MAX: u64 = 65_536;
/// The most dimensions of a tensor (ggml's own limit).
pub const DIMENSIONS_MAX: u32 = 4;

/// How much of the header is read at once, in bytes.
const WINDOW_BYTES: usize = 1024 * 1024;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Integer(i128),
    /// A number of either width; the flag says whether it was written with 32 bits.
    Float(f64, bool),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of 32-bit whole numbers.
    Integers(Vec<i64>),
    /// An array of 32-bit floats.
    Floats(Vec<f32>),
    /// An array of something that no import needs; checked, not kept.
    OtherArray,
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// How its numbers are stored.
    pub kind: TensorType,
    /// Its shape as MLX writes it, the fastest dimension last.
    pub shape: Vec<u64>,
    /// Where its bytes begin, from the start of the file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// An open GGUF file whose header has been read and checked.
#[derive(Debug)]
pub struct Gguf {
    file: File,
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorHeader>,
}

impl Gguf {
    /// Opens the file at `path` and reads its header.
    ///
    /// # Errors
    /// What reading can meet, and everything in the header that isn't as the format says.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (file, size) = disk::open(path)?;
        let mut cursor = Cursor { file: &file, path, size, at: 0, window: Vec::new(), window_at: 0 };
        let (tensor_count, pair_count) = cursor.preamble()?;
        let metadata = cursor.metadata(pair_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Integer(n)) if n > 0 && n <= i128::from(ALIGNMENT_MAX) && (n as u64).is_power_of_two() => {
                n as u64
            }
            Some(_) => {
                return Err(cursor.damaged(
                    "key `general.alignment`",
                    format!("it isn't a power of two of at most {ALIGNMENT_MAX}"),
                ));
            }
        };
        let mut tensors = cursor.tensors(tensor_count)?;
        let data_at = cursor.at.div_ceil(alignment) * alignment;
        place(&cursor, &mut tensors, data_at, alignment)?;
        Ok(Self { path: path.into(), metadata, tensors, file })
    }

    /// Where the file is, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata value of that key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The text of that key, where it is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The tensors in the order of the file's list.
    pub fn tensors(&self) -> &[TensorHeader] {
        &self.tensors
    }

    /// Reads `buffer.len()` bytes of a tensor from byte `start` of it.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn read(&self, tensor: &TensorHeader, start: u64, buffer: &mut [u8]) -> Result<(), GgufError> {
        debug_assert!(start + buffer.len() as u64 <= tensor.bytes, "callers stay inside the tensor");
        Ok(disk::read_at(&self.file, &self.path, tensor.offset + start, buffer)?)
    }

    /// Says that a tensor's content can't be right.
    pub(super) fn damaged(&self, tensor: &TensorHeader, start: u64, what: impl Into<String>) -> GgufError {
        GgufError::Damaged {
            path: self.path.clone(),
            offset: tensor.offset + start,
            place: format!("tensor `{}`", tensor.name),
            what: what.into(),
        }
    }
}

/// Gives each tensor its place in the file and checks that it lies inside, aligned, and over no other.
fn place(cursor: &Cursor, tensors: &mut [TensorHeader], data_at: u64, alignment: u64) -> Result<(), GgufError> {
    for tensor in tensors.iter_mut() {
        let place = || format!("tensor `{}`", tensor.name);
        if tensor.offset % alignment != 0 {
            return Err(
                cursor.damaged(&place(), format!("its offset {} isn't a multiple of {alignment}", tensor.offset))
            );
        }
        let end = data_at.checked_add(tensor.offset).and_then(|start| start.checked_add(tensor.bytes));
        if end.is_none_or(|end| end > cursor.size) {
            let what = format!(
                "its {} bytes at {} of the data reach past the file's {} bytes",
                tensor.bytes, tensor.offset, cursor.size
            );
            return Err(cursor.damaged(&place(), what));
        }
        tensor.offset += data_at;
    }
    let mut by_place: Vec<&TensorHeader> = tensors.iter().collect();
    by_place.sort_by_key(|tensor| tensor.offset);
    for pair in by_place.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let what = format!("it overlaps `{}`", pair[0].name);
            return Err(cursor.damaged(&format!("tensor `{}`", pair[1].name), what));
        }
    }
    Ok(())
}

/// Reads the header front to back, one window at a time.
struct Cursor<'a> {
    file: &'a File,
    path: &'a Path,
    size: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Cursor<'_> {
    fn damaged(&self, place: &str, what: impl Into<String>) -> GgufError {
        GgufError::Damaged { path: self.path.into(), offset: self.at, place: place.into(), what: what.into() }
    }

    /// How many bytes are left, of the file or of what a header may have.
    fn left(&self) -> u64 {
        self.size.min(HEADER_BYTES_MAX).saturating_sub(self.at)
    }

    /// Takes the next `count` bytes, at most [`WINDOW_BYTES`].
    fn take(&mut self, count: usize, place: &str) -> Result<&[u8], GgufError> {
        if count as u64 > self.left() {
            let what = match self.size > HEADER_BYTES_MAX {
                true => format!("the header is longer than {HEADER_BYTES_MAX} bytes"),
                false => format!("the file ends at byte {}", self.size),
            };
            return Err(self.damaged(place, what));
        }
        let mut start = (self.at - self.window_at) as usize;
        if start + count > self.window.len() {
            let bytes = WINDOW_BYTES.max(count).min((self.size - self.at) as usize);
            self.window.resize(bytes, 0);
            disk::read_at(self.file, self.path, self.at, &mut self.window)?;
            self.window_at = self.at;
            start = 0;
        }
        self.at += count as u64;
        Ok(&self.window[start..start + count])
    }

    fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N, place)?;
        Ok(bytes.try_into().expect("`take` gives as many bytes as it was asked for"))
    }

    fn u32(&mut self, place: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(place)?))
    }

    fn text(&mut self, bytes_max: u64, place: &str) -> Result<String, GgufError> {
        let bytes = self.u64(place)?;
        if bytes > bytes_max {
            return Err(self.damaged(place, format!("a text has {bytes} bytes, more than the {bytes_max} allowed")));
        }
        let taken = self.take(bytes as usize, place)?;
        let text = std::str::from_utf8(taken).map(str::to_owned);
        text.map_err(|_| self.damaged(place, "a text isn't UTF-8"))
    }

    /// The magic and version; then how many tensors and pairs there are.
    fn preamble(&mut self) -> Result<(u64, u64), GgufError> {
        let path = self.path;
        if self.size < 4 || self.array::<4>("the first bytes")? != *b"GGUF" {
            return Err(GgufError::NotGguf { path: path.into() });
        }
        match self.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() < 16 => {
                return Err(GgufError::unsupported(path, "it is in big-endian byte order"));
            }
            version => {
                let what = format!("it has version {version} of the format; 2 and 3 are known");
                return Err(GgufError::unsupported(path, what));
            }
        }
        let (tensors, pairs) = (self.u64("the count of tensors")?, self.u64("the count of keys")?);
        // A tensor takes at least 24 bytes of the header and a pair 13.
        for (place, count, count_max, each) in
            [("the count of tensors", tensors, TENSORS_MAX, 24), ("the count of keys", pairs, PAIRS_MAX, 13)]
        {
            if count > count_max || count > self.left() / each {
                let what = format!("{count} are more than the {count_max} allowed, or than fit the file");
                return Err(self.damaged(place, what));
            }
        }
        Ok((tensors, pairs))
    }

    fn metadata(&mut self, pairs: u64) -> Result<BTreeMap<String, Value>, GgufError> {
        let mut metadata = BTreeMap::new();
        for pair_idx in 0..pairs {
            let key = self.text(KEY_BYTES_MAX, &format!("key {pair_idx}"))?;
            let place = format!("key `{}`", printable(&key));
            let kind = self.u32(&place)?;
            let value = self.value(kind, &place)?;
            if metadata.insert(key, value).is_some() {
                return Err(self.damaged(&place, "it is there twice"));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32, place: &str) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(self.array::<1>(place)?[0].into()),
            1 => Value::Integer(i8::from_le_bytes(self.array(place)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array(place)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array(place)?).into()),
            4 => Value::Integer(self.u32(place)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array(place)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(place)?).into(), true),
            7 => Value::Bool(self.bool(place)?),
            8 => Value::Text(self.text(TEXT_BYTES_MAX, place)?),
            9 => return self.array_value(place, 0),
            10 => Value::Integer(self.u64(place)?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array(place)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(place)?), false),
            other => return Err(self.damaged(place, format!("its type {other} isn't one of 0 to 12"))),
        })
    }

    fn bool(&mut self, place: &str) -> Result<bool, GgufError> {
        match self.array::<1>(place)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.damaged(place, format!("{other} is neither true nor false"))),
        }
    }

    fn array_value(&mut self, place: &str, depth: u32) -> Result<Value, GgufError> {
        let (kind, count) = (self.u32(place)?, self.u64(place)?);
        let item_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 if depth < ARRAY_DEPTH_MAX => 12,
            9 => return Err(self.damaged(place, format!("arrays lie more than {ARRAY_DEPTH_MAX} deep"))),
            other => return Err(self.damaged(place, format!("its item type {other} isn't one of 0 to 12"))),
        };
        if count > ARRAY_ITEMS_MAX || count > self.left() / item_bytes {
            let what = format!("{count} items are more than the {ARRAY_ITEMS_MAX} allowed, or than fit the file");
            return Err(self.damaged(place, what));
        }
        Ok(match kind {
            4 => Value::Integers(self.items(count, |c| Ok(i64::from(c.u32(place)?)))?),
            5 => Value::Integers(self.items(count, |c| Ok(i32::from_le_bytes(c.array(place)?).into()))?),
            6 => Value::Floats(self.items(count, |c| Ok(f32::from_le_bytes(c.array(place)?)))?),
            8 => Value::Texts(self.items(count, |c| c.text(TEXT_BYTES_MAX, place))?),
            9 => {
                for _ in 0..count {
                    self.array_value(place, depth + 1)?;
                }
                Value::OtherArray
            }
            _ => {
                for _ in 0..count {
                    self.take(item_bytes as usize, place)?;
                }
                Value::OtherArray
            }
        })
    }

    fn items<T>(&mut self, count: u64, item: impl Fn(&mut Self) -> Result<T, GgufError>) -> Result<Vec<T>, GgufError> {
        (0..count).map(|_| item(self)).collect()
    }

    /// The list of tensors; `offset` is still relative to the data.
    fn tensors(&mut self, count: u64) -> Result<Vec<TensorHeader>, GgufError> {
        let mut names = BTreeSet::new();
        let mut tensors = Vec::new();
        for tensor_idx in 0..count {
            let name = self.text(TENSOR_NAME_BYTES_MAX, &format!("tensor {tensor_idx}"))?;
            let place = format!("tensor `{}`", printable(&name));
            let tensor = self.tensor(name, &place)?;
            if tensor.name.chars().any(char::is_control) {
                return Err(self.damaged(&place, "its name has a control character"));
            }
            if !names.insert(tensor.name.clone()) {
                return Err(self.damaged(&place, "it is there twice"));
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: String, place: &str) -> Result<TensorHeader, GgufError> {
        let dimensions = self.u32(place)?;
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(self.damaged(place, format!("it has {dimensions} dimensions instead of 1 to {DIMENSIONS_MAX}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64(place)?);
        }
        shape.reverse();
        let number = self.u32(place)?;
        let offset = self.u64(place)?;
        let Some(kind) = TensorType::from_number(number) else {
            let what =
                format!("{place} has type {}; known are {}", TensorType::name_of(number), TensorType::known_names());
            return Err(GgufError::unsupported(self.path, what));
        };
        let elements = shape.iter().try_fold(1u64, |product, &dimension| product.checked_mul(dimension));
        let row = shape.last().copied().unwrap_or_default();
        let blocks = elements.filter(|&n| n > 0 && row % kind.block_elements() == 0).map(|n| n / kind.block_elements());
        match blocks.and_then(|blocks| blocks.checked_mul(kind.block_bytes())) {
            Some(bytes) => Ok(TensorHeader { name, kind, shape, offset, bytes }),
            None => {
                let what = format!("its shape {shape:?} has no, too many, or no whole blocks of elements");
                Err(self.damaged(place, what))
            }
        }
    }
}

/// A name from a file for a message: nothing that a terminal could act on, and not endless.
fn printable(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}
