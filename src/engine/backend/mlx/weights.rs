//! The weights of a checkpoint on their way from the verified file into MLX's arrays.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use mlx_rs::{Array, Dtype, error::Exception};

use super::raw::{Buffer, Packed, Packing};
use super::{Experts, Linear, LowRank, Matrix};
use crate::engine::checkpoint::{
    self, Adapter, AdapterLayout, Checkpoint, CheckpointError, LoadProgress, Mode, ModelConfig, TensorInfo,
};

/// Weights that were read and that no layer has taken yet, by their names in the file.
pub struct Weights {
    config: ModelConfig,
    arrays: BTreeMap<String, Array>,
    adapter: Option<Adapter>,
}

impl Weights {
    /// Reads all tensors, one after another: besides the arrays, only the tensor that is being read is in memory.
    /// Floats become float32 where `float32` asks for it, else the type that the embedding has.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        float32: bool,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self, CheckpointError> {
        let (config, adapter) = (checkpoint.config().clone(), checkpoint.adapter().copied());
        let mut weights = Self { config, arrays: BTreeMap::new(), adapter };
        let floats = if float32 { Dtype::Float32 } else { native(checkpoint) };
        let mut reading: Option<(usize, Buffer)> = None;
        let mut failure = None;
        checkpoint.stream(progress, &mut |tensor_idx, first_row, bytes| {
            let tensor = &checkpoint.tensors()[tensor_idx];
            if first_row == 0 {
                let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.size();
                reading = Some((tensor_idx, Buffer::new(bytes)));
            }
            if let Some((_, buffer)) = reading.as_mut().filter(|(idx, _)| *idx == tensor_idx)
                && buffer.push(bytes)
                && let Some((_, buffer)) = reading.take()
            {
                // As in mlx-lm, the adapter's own type decides how exactly its part is computed.
                let is_adapter = adapter.is_some_and(|adapter| adapter.has(tensor_idx));
                let floats = if is_adapter && !float32 { dtype(tensor.dtype) } else { floats };
                match array(tensor, &buffer, floats) {
                    Ok(array) => drop(weights.arrays.insert(tensor.name.clone(), array)),
                    Err(error) => drop(failure.get_or_insert(error)),
                }
            }
        })?;
        match failure {
            Some(error) => Err(device(&error)),
            None => Ok(weights),
        }
    }

    /// Whether there is `name.weight`, or what has just this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name) || self.arrays.contains_key(&format!("{name}.weight"))
    }

    /// Takes a matrix and its bias.
    pub(super) fn take_linear(&mut self, name: &str, rows: usize, columns: usize) -> Result<Linear, CheckpointError> {
        let matrix = self.take_matrix(name, &[], rows, columns)?;
        let bias_name = format!("{name}.bias");
        let has_bias = self.arrays.contains_key(&bias_name);
        let bias = if has_bias { Some(self.take_vector(&bias_name, rows)?) } else { None };
        let adapter = self.take_adapter(name).map_err(|error| device(&error))?;
        Ok(Linear { matrix, bias, adapter, rows, columns })
    }

    /// Takes what the adapter adds to the matrix `name`, if it does: the checkpoint checked that the shapes fit.
    fn take_adapter(&mut self, name: &str) -> Result<Option<LowRank>, Exception> {
        let [a, b] = ["lora_a", "lora_b"].map(|side| self.arrays.remove(&format!("{name}.{side}")));
        let (Some(adapter), Some(a), Some(b)) = (self.adapter, a, b) else { return Ok(None) };
        let (a, b) = match adapter.layout {
            AdapterLayout::Mlx => (a, b),
            AdapterLayout::Peft => (a.transpose()?, b.transpose()?),
        };
        Ok(Some(LowRank { a, b, scale: adapter.scale }))
    }

    /// Takes the matrices of all experts and their biases.
    pub(super) fn take_experts(
        &mut self,
        name: &str,
        count: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Experts, CheckpointError> {
        let matrix = self.take_matrix(name, &[count], rows, columns)?;
        let bias = self.arrays.remove(&format!("{name}.bias"));
        if let Some(found) = bias.as_ref().map(Array::shape).filter(|shape| *shape != [count as i32, rows as i32]) {
            let why = format!("its shape is {found:?} where `config.json` asks for [{count}, {rows}]");
            return Err(CheckpointError::Tensor { name: format!("{name}.bias"), why });
        }
        Ok(Experts { matrix, bias, rows })
    }

    /// Takes the matrix `[rows, columns]`, or where `stack` has a number, so many of them.
    fn take_matrix(
        &mut self,
        name: &str,
        stack: &[usize],
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, CheckpointError> {
        let refuse = |why: String| CheckpointError::Tensor { name: format!("{name}.weight"), why };
        let weight = self.arrays.remove(&format!("{name}.weight")).ok_or_else(|| refuse("it is missing".into()))?;
        let expect = |found: &[i32], columns: usize| {
            let mut expected = stack.to_vec();
            expected.extend([rows, columns]);
            let same = found.iter().map(|dim| usize::try_from(*dim).ok()).eq(expected.iter().map(|dim| Some(*dim)));
            let why = || format!("its shape is {found:?} where `config.json` asks for {expected:?}");
            if same { Ok(()) } else { Err(refuse(why())) }
        };
        if weight.dtype() != Dtype::Uint32 {
            expect(weight.shape(), columns)?;
            return Ok(Matrix::Dense(weight));
        }
        let quantisation = self.config.quantisation_of(name);
        let quantisation = quantisation.ok_or_else(|| refuse("`config.json` has no `quantization`".into()))?;
        let (bits, group_size) = (quantisation.bits, quantisation.group_size);
        let mut part = |kind: &str| {
            let array = self.arrays.remove(&format!("{name}.{kind}"));
            array.ok_or_else(|| refuse(format!("its `{kind}` are missing")))
        };
        let scales = part("scales")?;
        let biases = if quantisation.mode == Mode::Affine { Some(part("biases")?) } else { None };
        if !columns.is_multiple_of(group_size) || !(columns * bits).is_multiple_of(32) {
            return Err(refuse(format!("its shape doesn't fit {bits} bits in groups of {group_size}")));
        }
        expect(weight.shape(), columns * bits / 32)?;
        for part in [&scales].into_iter().chain(&biases) {
            expect(part.shape(), columns / group_size)?;
        }
        let mode = if quantisation.mode == Mode::Affine { c"affine" } else { c"mxfp4" };
        let packing = Packing { group_size: group_size as i32, bits: bits as i32, mode };
        Ok(Matrix::Packed(Packed { packing, weight, scales, biases }))
    }

    /// Takes a vector: `name.weight`, or what has just this name.
    pub(super) fn take_vector(&mut self, name: &str, len: usize) -> Result<Array, CheckpointError> {
        let refuse = |why: String| CheckpointError::Tensor { name: name.into(), why };
        let vector = self.arrays.remove(&format!("{name}.weight")).or_else(|| self.arrays.remove(name));
        let vector = vector.ok_or_else(|| refuse("it is missing".into()))?;
        if vector.ndim() != 1 || vector.size() != len {
            return Err(refuse(format!("it has {} elements where `config.json` asks for {len}", vector.size())));
        }
        Ok(vector)
    }

    /// Refuses a tensor that no layer took, except those that every loader ignores.
    pub(super) fn finish(self) -> Result<(), CheckpointError> {
        let mut left = self.arrays.into_keys();
        match left.find(|name| !name.ends_with("rotary_emb.inv_freq") && !is_ignored_head(name)) {
            Some(name) => {
                Err(CheckpointError::no_such_part(name.strip_suffix(".weight").map_or(name.clone(), Into::into)))
            }
            None => Ok(()),
        }
    }
}

/// Whether it is a part of a head that the embedding takes the place of.
fn is_ignored_head(name: &str) -> bool {
    name.starts_with("lm_head.") && !name.contains(".lora_")
}

/// The type that activations have: the embedding's own, or that of its scales.
fn native(checkpoint: &Checkpoint) -> Dtype {
    let of = |name: &str| checkpoint.tensor(name).map(|tensor| tensor.dtype).filter(|dtype| dtype.is_float());
    let stated = of("model.embed_tokens.scales").or_else(|| of("model.embed_tokens.weight"));
    dtype(stated.unwrap_or(checkpoint::Dtype::BF16))
}

fn dtype(dtype: checkpoint::Dtype) -> Dtype {
    match dtype {
        checkpoint::Dtype::F16 => Dtype::Float16,
        checkpoint::Dtype::BF16 => Dtype::Bfloat16,
        checkpoint::Dtype::F32 => Dtype::Float32,
        checkpoint::Dtype::U32 => Dtype::Uint32,
        checkpoint::Dtype::U8 => Dtype::Uint8,
    }
}

/// The array of a tensor that has been read, floats in the type `floats`.
fn array(tensor: &TensorInfo, buffer: &Buffer, floats: Dtype) -> Result<Array, Exception> {
    let shape: Option<Vec<i32>> = tensor.shape.iter().map(|dim| i32::try_from(*dim).ok()).collect();
    let shape = shape.ok_or_else(|| Exception::custom(format!("`{}` is too large", tensor.name)))?;
    let array = buffer.array(&shape, dtype(tensor.dtype))?;
    if !tensor.dtype.is_float() || array.dtype() == floats {
        return Ok(array);
    }
    let array = array.as_dtype(floats)?;
    // At once: otherwise both would be in memory until the first answer.
    array.eval()?;
    Ok(array)
}

/// What MLX says, as an error of loading.
pub(super) fn device(error: &Exception) -> CheckpointError {
    CheckpointError::Device { why: error.what().into() }
}
