//! The weights of a checkpoint on their way from the file into the layers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::adapter::LowRank;
use super::matrix::{Form, Matrix};
use super::memory::Arena;
use crate::engine::checkpoint::{Adapter, Checkpoint, CheckpointError, Dtype, LoadProgress, Mode, TensorInfo};

/// Weights that were read and that no layer has taken yet.
#[derive(Debug, Default)]
pub struct Weights {
    matrices: BTreeMap<String, Matrix>,
    /// Vectors, and the matrices of the adapter as they lie in its file.
    vectors: BTreeMap<String, Vec<f32>>,
    adapter: Option<Adapter>,
    lanes: usize,
    arena: Arena,
}

/// Where the bytes of a tensor go.
enum Target {
    Codes {
        module: String,
        bits: usize,
    },
    Part {
        module: String,
        part: usize,
    },
    /// The scales of MXFP4.
    Exponents {
        module: String,
    },
    Floats {
        module: String,
    },
    Vector {
        name: String,
        dtype: Dtype,
    },
}

impl Weights {
    /// Reads all tensors: each is repacked while it is read, and no copy of the file is kept.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        lanes: usize,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, CheckpointError> {
        let mut weights = Self { adapter: checkpoint.adapter().copied(), lanes, ..Self::default() };
        let mut targets = Vec::new();
        for (idx, tensor) in checkpoint.tensors().iter().enumerate() {
            let is_adapter = weights.adapter.is_some_and(|adapter| adapter.has(idx));
            targets.push(match is_adapter {
                true => weights.plan_vector(tensor.name.clone(), tensor),
                false => weights.plan(checkpoint, tensor, lanes)?,
            });
        }
        checkpoint.stream(progress, &mut |tensor_idx, first_row, bytes| {
            weights.take(&targets[tensor_idx], first_row, bytes);
        })?;
        Ok(weights)
    }

    /// Decides where `tensor` goes and makes room for it.
    fn plan(&mut self, checkpoint: &Checkpoint, tensor: &TensorInfo, lanes: usize) -> Result<Target, CheckpointError> {
        let refuse = |why: &str| CheckpointError::Tensor { name: tensor.name.clone(), why: why.into() };
        let (module, kind) = tensor.name.rsplit_once('.').ok_or_else(|| refuse("its name has no `.`"))?;
        let module = module.to_owned();
        match (kind, tensor.shape.as_slice()) {
            ("scales", _) if tensor.dtype == Dtype::U8 => Ok(Target::Exponents { module }),
            ("scales", _) => Ok(Target::Part { module, part: 0 }),
            ("biases", _) => Ok(Target::Part { module, part: 1 }),
            // The experts' matrices lie one above the other.
            ("weight", &[.., rows, words]) if tensor.dtype == Dtype::U32 && tensor.shape.len() <= 3 => {
                let experts = &tensor.shape[..tensor.shape.len() - 2];
                let form = quantised(checkpoint, &module, experts, rows, words).map_err(|why| refuse(&why))?;
                let rows = stacked(experts, rows).map_err(refuse)?;
                self.matrices
                    .insert(module.clone(), Matrix::zeros(rows, form.columns, form.form, lanes, &mut self.arena));
                Ok(Target::Codes { module, bits: form.bits })
            }
            ("weight", &[.., rows, columns]) if tensor.dtype.is_float() && tensor.shape.len() <= 3 => {
                let rows = stacked(&tensor.shape[..tensor.shape.len() - 2], rows).map_err(refuse)?;
                self.matrices.insert(
                    module.clone(),
                    Matrix::zeros(rows, columns, Form::Dense(tensor.dtype), lanes, &mut self.arena),
                );
                Ok(Target::Floats { module })
            }
            ("bias", [_, _]) if tensor.dtype.is_float() => Ok(self.plan_vector(tensor.name.clone(), tensor)),
            (_, [_]) if tensor.dtype.is_float() => {
                Ok(self.plan_vector(if kind == "weight" { module } else { tensor.name.clone() }, tensor))
            }
            _ => Err(refuse("its type and shape fit no part of a model")),
        }
    }

    /// Makes room for a tensor that is kept as floats in the order of its file.
    fn plan_vector(&mut self, name: String, tensor: &TensorInfo) -> Target {
        self.vectors.insert(name.clone(), Vec::with_capacity(tensor.shape.iter().product()));
        Target::Vector { name, dtype: tensor.dtype }
    }

    fn take(&mut self, target: &Target, first_row: usize, bytes: &[u8]) {
        match target {
            Target::Codes { module, bits } => {
                if let Some(matrix) = self.matrices.get_mut(module) {
                    matrix.set_codes(first_row, bytes, *bits);
                }
            }
            Target::Part { module, part } => {
                if let Some(matrix) = self.matrices.get_mut(module) {
                    matrix.set_parts(first_row, bytes, *part);
                }
            }
            Target::Exponents { module } => {
                if let Some(matrix) = self.matrices.get_mut(module) {
                    matrix.set_exponents(first_row, bytes);
                }
            }
            Target::Floats { module } => {
                if let Some(matrix) = self.matrices.get_mut(module) {
                    matrix.set_floats(first_row, bytes);
                }
            }
            Target::Vector { name, dtype } => {
                if let Some(vector) = self.vectors.get_mut(name) {
                    vector.extend(bytes.chunks_exact(dtype.size()).map(|value| dtype.float_at(value)));
                }
            }
        }
    }

    pub(super) fn take_matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, CheckpointError> {
        let refuse = |why: String| CheckpointError::Tensor { name: format!("{name}.weight"), why };
        let matrix = self.matrices.remove(name).ok_or_else(|| refuse("it is missing".into()))?;
        if (matrix.rows, matrix.columns) != (rows, columns) {
            let found = format!("[{}, {}]", matrix.rows, matrix.columns);
            return Err(refuse(format!("its shape is {found} where `config.json` asks for [{rows}, {columns}]")));
        }
        Ok(matrix)
    }

    /// Whether there is a weight of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.matrices.contains_key(name) || self.vectors.contains_key(name)
    }

    pub(super) fn take_bias(&mut self, name: &str, rows: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        let name = format!("{name}.bias");
        if self.vectors.contains_key(&name) { self.take_vector(&name, rows).map(Some) } else { Ok(None) }
    }

    /// Takes what the adapter adds to the matrix `name`, if it does: the checkpoint checked that the shapes fit.
    pub(super) fn take_adapter(&mut self, name: &str) -> Option<LowRank> {
        let adapter = self.adapter?;
        let [a, b] = ["lora_a", "lora_b"].map(|side| self.vectors.remove(&format!("{name}.{side}")));
        Some(LowRank::new(&adapter, &a?, &b?, self.lanes, &mut self.arena))
    }

    pub(super) fn take_vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        let refuse = |why: String| CheckpointError::Tensor { name: name.into(), why };
        let vector = self.vectors.remove(name).ok_or_else(|| refuse("it is missing".into()))?;
        if vector.len() != len {
            return Err(refuse(format!("it has {} elements where `config.json` asks for {len}", vector.len())));
        }
        Ok(vector)
    }

    /// Refuses a tensor that no layer took, except those that every loader ignores.
    pub(super) fn finish(self) -> Result<(), CheckpointError> {
        let mut left = self.matrices.into_keys().chain(self.vectors.into_keys());
        match left.find(|name| !name.ends_with("rotary_emb.inv_freq") && name != "lm_head") {
            Some(name) => Err(CheckpointError::no_such_part(name)),
            None => Ok(()),
        }
    }
}

/// How many rows the matrices of all experts have together. Each begins a block of its own.
fn stacked(experts: &[usize], rows: usize) -> Result<usize, &'static str> {
    match experts {
        [] => Ok(rows),
        [experts] if rows.is_multiple_of(16) => experts.checked_mul(rows).ok_or("it is too large"),
        _ => Err("the rows of an expert aren't a multiple of 16"),
    }
}

/// How a quantised matrix is kept.
struct Quantised {
    form: Form,
    columns: usize,
    /// How many bits a code has in the file.
    bits: usize,
}

/// The form of the quantised matrix `module` of `[experts.., rows, words]` u32 words.
fn quantised(
    checkpoint: &Checkpoint,
    module: &str,
    experts: &[usize],
    rows: usize,
    words: usize,
) -> Result<Quantised, String> {
    let quantisation = checkpoint.config().quantisation_of(module).ok_or("`config.json` has no `quantization`")?;
    let (bits, group_size) = (quantisation.bits, quantisation.group_size);
    let scales = checkpoint.tensor(&format!("{module}.scales")).ok_or("its `scales` are missing")?;
    let columns = words.checked_mul(32).ok_or("it is too wide")? / bits;
    let expected = [experts, &[rows, columns / group_size]].concat();
    let is_whole = columns % group_size == 0 && words * 32 == columns * bits && scales.shape == expected;
    let misfit = || format!("its shape doesn't fit {bits} bits in groups of {group_size}");
    if quantisation.mode == Mode::Mxfp4 {
        if scales.dtype != Dtype::U8 {
            return Err("its `scales` must be bytes".into());
        }
        let form = Quantised { form: Form::Mxfp4, columns, bits };
        return if is_whole { Ok(form) } else { Err(misfit()) };
    }
    let biases = checkpoint.tensor(&format!("{module}.biases")).ok_or("its `biases` are missing")?;
    if !is_whole || biases.shape != expected {
        return Err(misfit());
    }
    if scales.dtype != biases.dtype || !scales.dtype.is_float() {
        return Err("its `scales` and `biases` must be floats of one type".into());
    }
    let kept = if bits == 4 { 4 } else { 8 };
    Ok(Quantised { form: Form::Affine { bits: kept, group_size, parts: scales.dtype }, columns, bits })
}
