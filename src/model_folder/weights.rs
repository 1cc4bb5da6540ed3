//! Safetensors files: their headers read with bounds, and laid out anew in shards.
//!
//! Source: the format as the `safetensors` crate describes it, and MLX's `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{ModelFolderError, ModelFolderWriter};
use crate::disk::{self, FAT32_FILE_BYTES_MAX};

/// The longest header that is read, in bytes (half of what the `safetensors` crate allows itself).
pub const HEADER_BYTES_MAX: u64 = 50 * 1024 * 1024;
/// The most tensors in a model.
pub const TENSORS_MAX: usize = 1_000_000;
/// The longest tensor name, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 512;

/// The name of the index of several shards.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// One tensor to be laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, the fastest dimension last.
    pub shape: Vec<u64>,
    /// How many bytes it has.
    pub bytes: u64,
}

/// One file of weights to be written: its header, then its tensors' bytes in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The file's name.
    pub name: String,
    /// The length and text of the header.
    pub header: Vec<u8>,
    /// Which of the tensors it holds.
    pub tensors: Range<usize>,
    /// The size of the whole file in bytes.
    pub bytes: u64,
}

/// Lays `tensors` out in files of at most `shard_bytes_max` bytes each, without splitting a tensor.
///
/// # Errors
/// [`ModelFolderError::TooLarge`] where one tensor alone is too large for FAT32.
pub fn shards(tensors: &[TensorLayout], shard_bytes_max: u64) -> Result<Vec<Shard>, ModelFolderError> {
    // What a tensor's entry in the header can take, generously.
    let header_bytes = |tensor: &TensorLayout| 200 + tensor.name.len() as u64 * 6;
    let mut ranges = vec![Range { start: 0, end: 0 }];
    let mut bytes = 0u64;
    for (tensor_idx, tensor) in tensors.iter().enumerate() {
        let more = tensor.bytes.saturating_add(header_bytes(tensor));
        if more > FAT32_FILE_BYTES_MAX - 1024 {
            return Err(ModelFolderError::TooLarge { name: tensor.name.clone(), bytes: tensor.bytes });
        }
        let last = ranges.last_mut().expect("it begins with one");
        if last.start == last.end || bytes.saturating_add(more) <= shard_bytes_max {
            last.end = tensor_idx + 1;
            bytes = bytes.saturating_add(more);
        } else {
            ranges.push(tensor_idx..tensor_idx + 1);
            bytes = more;
        }
    }
    let count = ranges.len();
    let name = |idx: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", idx + 1),
    };
    Ok(ranges.into_iter().enumerate().map(|(idx, range)| shard(name(idx), &tensors[range.clone()], range)).collect())
}

fn shard(name: String, tensors: &[TensorLayout], range: Range<usize>) -> Shard {
    let mut object = serde_json::Map::new();
    object.insert("__metadata__".into(), serde_json::json!({"format": "mlx"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes;
        let entry = serde_json::json!({
            "dtype": dtype_name(tensor.dtype),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        object.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    let bytes = header.len() as u64 + offset;
    Shard { name, header, tensors: range, bytes }
}

fn dtype_name(dtype: Dtype) -> serde_json::Value {
    serde_json::to_value(dtype).expect("a dtype is a plain name")
}

/// The text of the index of `shards`; `None` for one shard, which needs none.
pub fn index(tensors: &[TensorLayout], shards: &[Shard]) -> Option<String> {
    if shards.len() < 2 {
        return None;
    }
    let mut weight_map = BTreeMap::new();
    for shard in shards {
        for tensor in &tensors[shard.tensors.clone()] {
            weight_map.insert(tensor.name.as_str(), shard.name.as_str());
        }
    }
    let total_size: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    let index = serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    Some(format!("{index:#}\n"))
}

/// A safetensors file that lies somewhere, its header read and checked.
#[derive(Debug)]
pub struct WeightsFile {
    file: std::fs::File,
    path: std::path::PathBuf,
    /// Its tensors in the order in which they lie.
    pub tensors: Vec<TensorLayout>,
    data_at: u64,
    size: u64,
}

impl WeightsFile {
    /// Opens the file at `path` and checks its header against its size: no tensor reaches outside, none overlap.
    ///
    /// # Errors
    /// [`ModelFolderError::Weights`], and what reading can meet.
    pub fn open(path: &Path) -> Result<Self, ModelFolderError> {
        let wrong = |what: String| ModelFolderError::Weights { path: path.into(), what };
        let (file, size) = disk::open(path)?;
        let mut length = [0; 8];
        if size < 8 {
            return Err(wrong(format!("it has only {size} bytes")));
        }
        disk::read_at(&file, path, 0, &mut length)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX.min(size - 8) {
            return Err(wrong(format!("its header would have {header_bytes} bytes")));
        }
        let mut header = vec![0; header_bytes as usize];
        disk::read_at(&file, path, 8, &mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| wrong(format!("its header: {e}")))?;
        let mut tensors = Vec::new();
        let mut data_bytes = 0u64;
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
            if name.len() > TENSOR_NAME_BYTES_MAX || name.chars().any(char::is_control) {
                return Err(wrong("a tensor's name is too long or has control characters".into()));
            }
            data_bytes += bytes;
            let shape = info.shape.iter().map(|&n| n as u64).collect();
            tensors.push(TensorLayout { name, dtype: info.dtype, shape, bytes });
        }
        if tensors.len() > TENSORS_MAX {
            return Err(wrong(format!("it has more than {TENSORS_MAX} tensors")));
        }
        let data_at = 8 + header_bytes;
        if data_at.checked_add(data_bytes) != Some(size) {
            return Err(wrong(format!("its tensors have {data_bytes} bytes, the file {} for them", size - data_at)));
        }
        Ok(Self { file, path: path.into(), tensors, data_at, size })
    }

    /// The size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `buffer.len()` bytes of the tensors' data from byte `start` of it.
    ///
    /// # Errors
    /// What reading can meet.
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> Result<(), ModelFolderError> {
        Ok(disk::read_at(&self.file, &self.path, self.data_at + start, buffer)?)
    }
}

/// Begins the files of weights where their first tensors come.
#[derive(Debug)]
pub struct ShardSequence<'a> {
    shards: &'a [Shard],
    tensor_idx: usize,
}

impl<'a> ShardSequence<'a> {
    /// Starts before the first tensor of `shards`.
    pub fn new(shards: &'a [Shard]) -> Self {
        Self { shards, tensor_idx: 0 }
    }

    /// Says that the next tensor's bytes follow: begins its file if it is the first one there.
    ///
    /// # Errors
    /// What writing can meet.
    pub fn next_tensor(&mut self, writer: &mut ModelFolderWriter) -> Result<(), ModelFolderError> {
        if let Some(shard) = self.shards.iter().find(|shard| shard.tensors.start == self.tensor_idx) {
            writer.begin(&shard.name)?;
            writer.write(&shard.header)?;
        }
        self.tensor_idx += 1;
        Ok(())
    }
}
