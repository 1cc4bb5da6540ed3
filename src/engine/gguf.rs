//! GGUF files (versions 2 and 3, as written by llama.cpp) turned into a model folder in MLX's form.
//!
//! The file may come from anywhere: everything in it is checked against the file's own size before it is used. The
//! conversion goes tensor by tensor, keeps the codes of the quantised blocks where MLX has a form for them, and measures
//! what it changes ([`convert::TensorLoss`]). What it doesn't know it refuses by name.

use std::path::{Path, PathBuf};

use crate::disk::DiskError;
use crate::hint::Hint;
use crate::model_folder::ModelFolderError;

pub mod architecture;
pub mod convert;
pub mod quantised;
pub mod reader;
pub mod tokenizer;

#[cfg(test)]
pub(crate) mod test_file;
#[cfg(test)]
mod tests;

pub use convert::{Conversion, TensorLoss};
pub use reader::Gguf;

/// Why a GGUF file can't be imported, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file can't be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It isn't a GGUF file.
    #[error("`{}` isn't a GGUF file", path.display())]
    NotGguf {
        /// Which file.
        path: PathBuf,
    },
    /// It is damaged, or was never right.
    #[error("`{}` is damaged at byte {offset}, in {place}: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it, in bytes from its start.
        offset: u64,
        /// Which part, such as a key or a tensor.
        place: String,
        /// What is wrong there.
        what: String,
    },
    /// It is whole, but has something that can't be converted without changing the model's answers.
    #[error("`{}` can't be imported: {what}", path.display())]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// What it has.
        what: String,
    },
    /// The converted model can't be written.
    #[error(transparent)]
    Write(#[from] ModelFolderError),
}

impl GgufError {
    fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), what: what.into() }
    }
}

impl Hint for GgufError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Disk(error) => return error.hint(),
            Self::Write(error) => return error.hint(),
            Self::NotGguf { .. } => "check the path; a GGUF file begins with the letters `GGUF`".into(),
            Self::Damaged { .. } => "download the file again and compare its SHA-256 with the published one".into(),
            Self::Unsupported { .. } => "import the model in MLX's form instead, such as one of `mlx-community`".into(),
        })
    }
}
