//! A model folder as a checkpoint: its configuration, and its safetensors verified while they are streamed.
//!
//! Format: the safetensors README (huggingface/safetensors): 8 bytes of header length, a JSON header, the tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::mpsc;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::hint::Hint;
use crate::verified::{IntegrityError, VerifiedFile, VerifiedFolder};

pub mod adapter;
mod config;
mod text_part;

pub use self::adapter::{Adapter, AdapterError, AdapterFiles, AdapterLayout};
pub use self::config::{
    Gemma3Config, GptOssConfig, Mode, ModelConfig, ModelType, Particular, Quantisation, RopeScaling,
};

/// The largest `config.json` that is read: 1 MiB.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The longest safetensors header that is read: 16 MiB, some 100,000 tensors.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;
/// The most weight files of a checkpoint.
pub const SHARDS_MAX: usize = 1_000;

/// A checkpoint can't be used, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is damaged or can't be read.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// A file that every checkpoint has isn't there.
    #[error("the model has no `{file}`")]
    Missing {
        /// Which.
        file: &'static str,
    },
    /// A file isn't what its name says.
    #[error("`{file}` isn't valid: {why}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// The adapter can't be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An architecture that isn't known here.
    #[error("the architecture `{model_type}` isn't supported (supported: {})", ModelType::ALL.map(ModelType::name).join(", "))]
    UnknownArchitecture {
        /// Its name.
        model_type: String,
    },
    /// Something that is known and can't be done.
    #[error("the model needs {what}, which isn't supported")]
    Unsupported {
        /// What.
        what: String,
    },
    /// A tensor doesn't fit.
    #[error("tensor `{name}`: {why}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// What shall compute can't run here, or doesn't take the weights.
    #[error("the engine can't compute: {why}")]
    Device {
        /// What it says itself.
        why: String,
    },
    /// Loading was cancelled.
    #[error("loading was cancelled")]
    Cancelled,
}

impl CheckpointError {
    /// A tensor that no layer took.
    pub(super) fn no_such_part(name: String) -> Self {
        let why = "this architecture has no such part".into();
        match name.ends_with(".lora_a") || name.ends_with(".lora_b") {
            true => AdapterError::Misfit { name, why }.into(),
            false => Self::Tensor { name, why },
        }
    }
}

impl Hint for CheckpointError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Integrity(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            Self::UnknownArchitecture { .. } | Self::Unsupported { .. } => {
                Some("choose another model; `tiles model list` shows those on this drive".into())
            }
            Self::Missing { .. } | Self::Malformed { .. } | Self::Tensor { .. } => {
                Some("import the model again from its source".into())
            }
            Self::Device { .. } => Some("close other programs, or use `--engine cpu`".into()),
            Self::Cancelled => None,
        }
    }
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes read and verified.
    pub bytes_read: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// The types of tensors that models are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Dtype {
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a float32.
    BF16,
    /// IEEE 754 single precision.
    F32,
    /// Packed codes.
    U32,
    /// Bytes: the scales of MXFP4.
    U8,
}

impl Dtype {
    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::U8 => 1,
        }
    }

    /// Whether elements are floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32)
    }

    /// Floats in this type, little-endian; what isn't exact in it is rounded. Nothing for types that are no floats.
    pub fn narrowed(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U32 | Self::U8 => Vec::new(),
        }
    }

    /// The little-endian float at the beginning of `bytes`, which hold at least one; 0 for types that are no floats.
    pub fn float_at(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::U32 | Self::U8 => 0.0,
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape, one or more dimensions, none of them 0.
    pub shape: Vec<usize>,
    /// Its first byte, from the beginning of its file.
    start: u64,
    /// Its length in bytes.
    bytes: u64,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    file: VerifiedFile,
    /// Indices into the tensors, in the order of their bytes.
    tensors: Vec<usize>,
}

/// A checkpoint whose headers were read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    tensors: Vec<TensorInfo>,
    shards: Vec<Shard>,
    by_name: BTreeMap<String, usize>,
    adapter: Option<Adapter>,
}

impl Checkpoint {
    /// Reads configuration and headers, and those of an adapter where there is one; no weights yet.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(folder: &VerifiedFolder, adapter: Option<&AdapterFiles>) -> Result<Self, CheckpointError> {
        let config = folder.read("config.json", CONFIG_BYTES_MAX)?;
        let config = ModelConfig::parse(&config.ok_or(CheckpointError::Missing { file: "config.json" })?)?;
        let mut names = folder.names().map_err(IntegrityError::from)?;
        names.retain(|name| name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/'));
        if names.is_empty() {
            return Err(CheckpointError::Missing { file: "model.safetensors" });
        }
        if names.len() > SHARDS_MAX {
            let why = format!("{} weight files, more than {SHARDS_MAX}", names.len());
            return Err(CheckpointError::Malformed { file: names.swap_remove(0), why });
        }
        let by_name = BTreeMap::new();
        let mut checkpoint = Self { config, tensors: Vec::new(), shards: Vec::new(), by_name, adapter: None };
        for name in names {
            let file = folder.open(&name)?;
            let has_other_parts = checkpoint.config.has_other_parts;
            checkpoint.add_shard(&name, file, &|name| match has_other_parts {
                true => Ok(text_part::text_name(name).map(Cow::into_owned)),
                false => Ok(Some(name.into())),
            })?;
        }
        if let Some(files) = adapter {
            checkpoint.add_adapter(files)?;
        }
        Ok(checkpoint)
    }

    /// Reads the header of one file; `rename` says what a tensor is called here, and nothing of one that
    /// isn't used; its header is checked all the same.
    fn add_shard(
        &mut self,
        file_name: &str,
        file: VerifiedFile,
        rename: &dyn Fn(&str) -> Result<Option<String>, CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let malformed = |why: String| CheckpointError::Malformed { file: file_name.into(), why };
        let (header, data_start) = read_header(file_name, &file)?;
        let mut tensors = Vec::new();
        for (name, raw) in header.0 {
            let renamed = rename(&name)?;
            let shown = renamed.as_deref().unwrap_or(&name);
            let info = raw.check(shown, data_start, file.size()).map_err(&malformed)?;
            let Some(name) = renamed else { continue };
            if self.by_name.insert(name, self.tensors.len()).is_some() {
                return Err(malformed(format!("tensor `{}` is there twice", info.name)));
            }
            tensors.push(self.tensors.len());
            self.tensors.push(info);
        }
        tensors.sort_by_key(|idx| self.tensors[*idx].start);
        let mut end = data_start;
        for idx in &tensors {
            let tensor = &self.tensors[*idx];
            if tensor.start < end {
                return Err(malformed(format!("tensor `{}` overlaps another", tensor.name)));
            }
            end = tensor.start + tensor.bytes;
        }
        self.shards.push(Shard { file, tensors });
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All tensors.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|idx| &self.tensors[*idx])
    }

    /// The adapter, where the checkpoint was opened with one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// How many bytes all tensors take in memory: as many as in the file, but an adapter's become float32.
    pub fn weight_bytes(&self) -> u64 {
        let of = |(idx, tensor): (usize, &TensorInfo)| match self.adapter {
            Some(adapter) if adapter.has(idx) => tensor.bytes / tensor.dtype.size() as u64 * 4,
            _ => tensor.bytes,
        };
        self.tensors.iter().enumerate().map(of).sum()
    }

    /// Reads all files once, in order, and hands each tensor over in pieces of whole rows: its index, the first row of
    /// the piece, and the piece's bytes. A row runs along the last dimension; a tensor of one dimension is one row. Reading and hashing go on in another
    /// thread while a piece is taken.
    ///
    /// # Errors
    /// Damage, and [`CheckpointError::Cancelled`] where `progress` breaks.
    pub fn stream(
        &self,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
        take: &mut dyn FnMut(usize, usize, &[u8]),
    ) -> Result<(), CheckpointError> {
        let bytes_total = self.shards.iter().map(|shard| shard.file.size()).sum();
        let mut bytes_read = 0;
        for shard in &self.shards {
            let mut rows = RowCutter::new(&self.tensors, &shard.tensors);
            std::thread::scope(|scope| {
                // Two buffers go round: one is read into while the other is taken. Freed and allocated anew, or allocated
                // by the thread that reads, they would stay in the allocator's hands: 12 and 8 MB of 138 at the peak of the
                // default model.
                let (sender, receiver) = mpsc::sync_channel(1);
                let (empty_sender, empties) = mpsc::channel::<Vec<u8>>();
                for _ in 0..2 {
                    let _ = empty_sender.send(Vec::with_capacity(shard.file.chunk_len(0)));
                }
                scope.spawn(move || {
                    for chunk_idx in 0..shard.file.chunk_count() {
                        let Ok(mut chunk) = empties.recv() else { return };
                        chunk.resize(shard.file.chunk_len(chunk_idx), 0);
                        let read = shard.file.read_chunk(chunk_idx, &mut chunk).map(|()| chunk);
                        let failed = read.is_err();
                        if sender.send(read).is_err() || failed {
                            return;
                        }
                    }
                });
                for chunk in receiver {
                    let chunk = chunk?;
                    rows.feed(&chunk, take);
                    bytes_read += chunk.len() as u64;
                    if progress(LoadProgress { bytes_read, bytes_total }).is_break() {
                        return Err(CheckpointError::Cancelled);
                    }
                    // After the last chunk nobody takes it back.
                    let _ = empty_sender.send(chunk);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Cuts a file that arrives in chunks into rows of its tensors.
struct RowCutter<'a> {
    tensors: &'a [TensorInfo],
    order: &'a [usize],
    /// Where the next chunk begins in the file.
    at: u64,
    /// The beginning of a row whose end is in the next chunk.
    partial: Vec<u8>,
    /// The next row of the tensor `order[0]`.
    row: usize,
}

impl<'a> RowCutter<'a> {
    fn new(tensors: &'a [TensorInfo], order: &'a [usize]) -> Self {
        Self { tensors, order, at: 0, partial: Vec::new(), row: 0 }
    }

    fn feed(&mut self, chunk: &[u8], take: &mut dyn FnMut(usize, usize, &[u8])) {
        let chunk_end = self.at + chunk.len() as u64;
        while let Some((&idx, rest)) = self.order.split_first() {
            let tensor = &self.tensors[idx];
            let row_bytes = tensor.row_bytes();
            let done = tensor.start + (self.row * row_bytes + self.partial.len()) as u64;
            let end = tensor.start + tensor.bytes;
            if done >= chunk_end {
                break;
            }
            let mut piece = &chunk[(done - self.at) as usize..(end.min(chunk_end) - self.at) as usize];
            if !self.partial.is_empty() {
                let missing = (row_bytes - self.partial.len()).min(piece.len());
                self.partial.extend(&piece[..missing]);
                piece = &piece[missing..];
                if self.partial.len() == row_bytes {
                    take(idx, self.row, &self.partial);
                    self.row += 1;
                    self.partial.clear();
                }
            }
            let whole = piece.len() / row_bytes * row_bytes;
            if whole > 0 {
                take(idx, self.row, &piece[..whole]);
                self.row += whole / row_bytes;
            }
            self.partial.extend(&piece[whole..]);
            if end > chunk_end {
                break;
            }
            (self.order, self.row) = (rest, 0);
        }
        self.at = chunk_end;
    }
}

impl TensorInfo {
    /// Bytes of one row; a vector is one row.
    fn row_bytes(&self) -> usize {
        let rows: usize = self.shape[..self.shape.len() - 1].iter().product();
        self.bytes as usize / rows
    }
}

/// A header in the order of the file; serde's maps would let a second tensor of one name win.
struct Header(Vec<(String, RawTensor)>);

#[derive(Deserialize)]
struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl RawTensor {
    /// Checks that shape, type and offsets agree with each other and lie within the file.
    fn check(self, name: &str, data_start: u64, file_bytes: u64) -> Result<TensorInfo, String> {
        let elements = self.shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim as u64));
        let expected = elements.and_then(|n| n.checked_mul(self.dtype.size() as u64));
        let (from, to) = self.data_offsets;
        let bytes = to.checked_sub(from).ok_or_else(|| format!("tensor `{name}` ends before it begins"))?;
        if self.shape.is_empty() || self.shape.len() > 4 || bytes == 0 {
            return Err(format!("tensor `{name}` has the shape {:?}", self.shape));
        }
        if expected != Some(bytes) {
            return Err(format!("tensor `{name}` has {bytes} bytes, which its shape {:?} doesn't", self.shape));
        }
        match to.checked_add(data_start) {
            Some(end) if end <= file_bytes => Ok(TensorInfo {
                name: name.into(),
                dtype: self.dtype,
                shape: self.shape,
                start: data_start + from,
                bytes,
            }),
            _ => Err(format!("tensor `{name}` ends after the file")),
        }
    }
}

/// Reads the header of a safetensors file and tells where its data begins.
fn read_header(file_name: &str, file: &VerifiedFile) -> Result<(Header, u64), CheckpointError> {
    let malformed = |why: String| CheckpointError::Malformed { file: file_name.into(), why };
    let mut bytes = Vec::new();
    let mut needed = 8;
    for chunk_idx in 0..file.chunk_count() {
        let mut chunk = vec![0; file.chunk_len(chunk_idx)];
        file.read_chunk(chunk_idx, &mut chunk)?;
        bytes.extend(chunk);
        if let Some(length) = bytes.first_chunk::<8>() {
            let length = u64::from_le_bytes(*length);
            if length > HEADER_BYTES_MAX || length > file.size().saturating_sub(8) {
                return Err(malformed(format!("its header claims {length} bytes")));
            }
            needed = 8 + length as usize;
        }
        if bytes.len() >= needed {
            break;
        }
    }
    let header = bytes.get(8..needed).ok_or_else(|| malformed("it has no header".into()))?;
    let header = serde_json::from_slice(header).map_err(|error| malformed(format!("its header: {error}")))?;
    Ok((header, needed as u64))
}

#[cfg(test)]
mod tests;
