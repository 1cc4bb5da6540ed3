//! The conversion: planned from the header, then written tensor by tensor, with what it changes measured.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value as Json, json};

use super::GgufError;
use super::architecture::{Architecture, Place, ROPE_FACTORS, check_shape, shown};
use super::quantised::{self, BLOCK_ELEMENTS_MAX, GROUP, Group, TensorType};
use super::reader::{Gguf, TensorHeader};
use super::tokenizer::{self, TokenizerFiles};
use crate::model_folder::weights::{self, Shard, ShardSequence, TensorLayout};
use crate::model_folder::{ModelFolderError, ModelFolderWriter, Progress, ProgressSink, Step};

/// How many bytes of a tensor are read at once, apart from single rows that are longer.
const STRIDE_BYTES: u64 = 4 * 1024 * 1024;

/// What a tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Numbers of this type.
    Plain(Dtype),
    /// Codes of so many bits in groups of 32, with scales and biases of this type.
    Affine(u32, Dtype),
}

/// One tensor of the plan.
#[derive(Clone, Debug)]
struct TensorPlan {
    header: TensorHeader,
    place: Place,
    form: Form,
}

/// What became of one tensor: how far its numbers are from what the GGUF file says exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorLoss {
    /// The tensor's name in the file.
    pub name: String,
    /// How it is stored there.
    pub kind: TensorType,
    /// How it is stored now, such as `4-bit, f16 scales`.
    pub form: String,
    /// The largest difference of any element; 0 is lossless.
    pub error_max: f64,
    /// The largest magnitude of any element, to compare the difference with.
    pub element_max: f64,
}

/// A conversion that can be carried out: everything but the numbers is known.
#[derive(Debug)]
pub struct Conversion {
    gguf: Gguf,
    architecture: Architecture,
    tensors: Vec<TensorPlan>,
    layouts: Vec<TensorLayout>,
    shards: Vec<Shard>,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Conversion {
    /// Plans the conversion of `gguf`, with files of weights of at most `shard_bytes_max` bytes.
    ///
    /// Tensors whose best type depends on their numbers are read once here.
    ///
    /// # Errors
    /// Everything in the file that can't be converted, by name.
    pub fn plan(gguf: Gguf, shard_bytes_max: u64, sink: ProgressSink) -> Result<Self, GgufError> {
        let architecture = Architecture::read(&gguf)?;
        let tokenizer = tokenizer::read(&gguf, architecture.context)?;
        let placed = placed_tensors(&gguf, &architecture)?;
        let vocab_size = vocab_size(&gguf, &placed, &tokenizer)?;
        let total_bytes = placed.iter().filter(|(header, _)| needs_look(header.kind)).map(|(h, _)| h.bytes).sum();
        let mut done_bytes = 0;
        let mut look = |bytes: u64| {
            done_bytes += bytes;
            match sink(Progress { step: Step::Examining, done_bytes, total_bytes }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(GgufError::from(ModelFolderError::Stopped)),
            }
        };
        let mut tensors = Vec::new();
        for (header, place) in placed {
            let form = form_of(&gguf, header, &mut look)?;
            if matches!(form, Form::Affine(..)) && (header.shape.len() != 2 || place.is_bias) {
                let what = format!("tensor `{}` is quantised, which a vector can't be", header.name);
                return Err(GgufError::unsupported(gguf.path(), what));
            }
            tensors.push(TensorPlan { header: header.clone(), place, form });
        }
        let layouts: Vec<TensorLayout> = tensors.iter().flat_map(layouts_of).collect();
        let shards = weights::shards(&layouts, shard_bytes_max)?;
        let config = config(&architecture, &tensors, &tokenizer, vocab_size);
        let files = files(config, &tokenizer, weights::index(&layouts, &shards));
        Ok(Self { gguf, architecture, tensors, layouts, shards, files })
    }

    /// The licence that the file states.
    pub fn licence(&self) -> Option<&str> {
        self.gguf.text("general.license")
    }

    /// The architecture's name, as in `config.json`.
    pub fn architecture(&self) -> &'static str {
        self.architecture.name
    }

    /// The longest context in tokens.
    pub fn context(&self) -> u64 {
        self.architecture.context
    }

    /// How many numbers the model has.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.header.shape.iter().product::<u64>()).sum()
    }

    /// The quantisation in words, such as `4-bit and 8-bit affine, groups of 32`.
    pub fn quantisation(&self) -> String {
        let bits: BTreeSet<u32> = self.tensors.iter().filter_map(|tensor| bits_of(tensor.form)).collect();
        let bits: Vec<String> = bits.into_iter().map(|bits| format!("{bits}-bit")).collect();
        if bits.is_empty() {
            return "none".into();
        }
        format!("{} affine, groups of {GROUP}", bits.join(" and "))
    }

    /// How many bytes will be written, without sidecars.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum::<u64>()
            + self.files.iter().map(|(_, content)| content.len() as u64).sum::<u64>()
    }

    /// The names and sizes of the files that will be written.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        let small = self.files.iter().map(|(name, content)| (*name, content.len() as u64));
        small.chain(self.shards.iter().map(|shard| (shard.name.as_str(), shard.bytes)))
    }

    /// The tensors as they will be laid out.
    pub fn layouts(&self) -> &[TensorLayout] {
        &self.layouts
    }

    /// Writes all files, and tells for each tensor what was lost.
    ///
    /// # Errors
    /// What reading and writing can meet, and numbers that aren't finite.
    pub fn write(&self, writer: &mut ModelFolderWriter) -> Result<Vec<TensorLoss>, GgufError> {
        for (name, content) in &self.files {
            writer.write_file(name, content)?;
        }
        let mut sequence = ShardSequence::new(&self.shards);
        let mut losses = Vec::new();
        for tensor in &self.tensors {
            sequence.next_tensor(writer)?;
            let mut written = Written::new(&self.gguf, tensor);
            written.write_weight(writer)?;
            if bits_of(tensor.form).is_some() {
                for part in [&written.scales, &written.biases] {
                    sequence.next_tensor(writer)?;
                    for piece in part.chunks(STRIDE_BYTES as usize) {
                        writer.write(piece)?;
                    }
                }
            }
            losses.push(written.loss);
        }
        writer.end()?;
        Ok(losses)
    }
}

fn bits_of(form: Form) -> Option<u32> {
    match form {
        Form::Plain(_) => None,
        Form::Affine(bits, _) => Some(bits),
    }
}

/// The file's tensors with their places: none unknown, none missing, none of another shape.
fn placed_tensors<'a>(
    gguf: &'a Gguf,
    architecture: &Architecture,
) -> Result<Vec<(&'a TensorHeader, Place)>, GgufError> {
    let mut placed = Vec::new();
    let mut names = BTreeSet::new();
    // The factors have become part of the configuration.
    for header in gguf.tensors().iter().filter(|header| header.name != ROPE_FACTORS) {
        let Some(place) = architecture.place_of(&header.name) else {
            let what = format!("`{}` has no tensor `{}`", architecture.name, shown(&header.name));
            return Err(GgufError::unsupported(gguf.path(), what));
        };
        check_shape(gguf.path(), &header.name, &header.shape, &place)?;
        names.insert(header.name.as_str());
        placed.push((header, place));
    }
    if let Some(missing) = architecture.required_tensors().find(|name| !names.contains(name.as_str())) {
        return Err(GgufError::unsupported(gguf.path(), format!("it has no tensor `{missing}`")));
    }
    Ok(placed)
}

/// The rows of the embedding; a head must have as many, the tokenizer no more.
fn vocab_size(gguf: &Gguf, placed: &[(&TensorHeader, Place)], tokenizer: &TokenizerFiles) -> Result<u64, GgufError> {
    let rows: Vec<u64> = placed
        .iter()
        .filter(|(_, place)| place.shape.first() == Some(&None))
        .map(|(header, _)| header.shape[0])
        .collect();
    let size = rows.first().copied().unwrap_or_default();
    if rows.iter().any(|&other| other != size) || tokenizer.tokens > size {
        let what = format!("embedding and head have {rows:?} rows for {} tokens", tokenizer.tokens);
        return Err(GgufError::unsupported(gguf.path(), what));
    }
    Ok(size)
}

/// Whether the numbers of a tensor of that type decide what it becomes.
fn needs_look(kind: TensorType) -> bool {
    !matches!(kind, TensorType::F16 | TensorType::BF16 | TensorType::Q4_1 | TensorType::Q5_1)
        && !kind.needs_f32_scales()
}

/// What a tensor becomes: the shortest type that holds its numbers exactly, and 32 bits where none does.
fn form_of(
    gguf: &Gguf,
    header: &TensorHeader,
    look: &mut dyn FnMut(u64) -> Result<(), GgufError>,
) -> Result<Form, GgufError> {
    let affine = |bits: u32, half: bool| Form::Affine(bits, if half { Dtype::F16 } else { Dtype::F32 });
    match (header.kind, header.kind.mlx_bits()) {
        (TensorType::F16, _) => return Ok(Form::Plain(Dtype::F16)),
        (TensorType::BF16, _) => return Ok(Form::Plain(Dtype::BF16)),
        (kind, Some(bits)) if !needs_look(kind) => return Ok(affine(bits, !kind.needs_f32_scales())),
        _ => {}
    }
    let (mut half, mut brain) = (true, true);
    let block_bytes = header.kind.block_bytes();
    let stride = STRIDE_BYTES / block_bytes * block_bytes;
    let mut bytes = Vec::new();
    let mut start = 0;
    while start < header.bytes {
        bytes.resize(stride.min(header.bytes - start) as usize, 0);
        gguf.read(header, start, &mut bytes)?;
        start += bytes.len() as u64;
        look(bytes.len() as u64)?;
        for block in bytes.chunks_exact(block_bytes as usize) {
            if header.kind == TensorType::F32 {
                let value = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                half &= f16::from_f32(value).to_f32() == value;
                brain &= bf16::from_f32(value).to_f32() == value;
            } else {
                half &= quantised::fits_half(header.kind, block);
            }
        }
    }
    Ok(match header.kind.mlx_bits() {
        Some(bits) => affine(bits, half),
        None if half => Form::Plain(Dtype::F16),
        None if brain => Form::Plain(Dtype::BF16),
        None => Form::Plain(Dtype::F32),
    })
}

/// The tensors in MLX that one of the file becomes.
fn layouts_of(tensor: &TensorPlan) -> Vec<TensorLayout> {
    let shape = &tensor.header.shape;
    let elements: u64 = shape.iter().product();
    let name = |part: &str| format!("{}.{part}", tensor.place.module);
    match tensor.form {
        Form::Plain(dtype) => vec![TensorLayout {
            name: name(if tensor.place.is_bias { "bias" } else { "weight" }),
            dtype,
            shape: shape.clone(),
            bytes: elements * bytes_of(dtype),
        }],
        Form::Affine(bits, dtype) => {
            let groups = elements / GROUP as u64;
            let part = |part: &str| TensorLayout {
                name: name(part),
                dtype,
                shape: vec![shape[0], shape[1] / GROUP as u64],
                bytes: groups * bytes_of(dtype),
            };
            let weight = TensorLayout {
                name: name("weight"),
                dtype: Dtype::U32,
                shape: vec![shape[0], shape[1] / GROUP as u64 * u64::from(bits)],
                bytes: groups * u64::from(bits) * 4,
            };
            vec![weight, part("scales"), part("biases")]
        }
    }
}

fn bytes_of(dtype: Dtype) -> u64 {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// `config.json`.
fn config(architecture: &Architecture, tensors: &[TensorPlan], tokenizer: &TokenizerFiles, vocab_size: u64) -> Json {
    let has = |test: &dyn Fn(&TensorPlan) -> bool| tensors.iter().any(test);
    let has_head = has(&|tensor| tensor.place.module == "lm_head");
    let has_attention_bias = has(&|tensor| tensor.place.is_bias);
    let mut config = architecture.config(vocab_size, has_head, has_attention_bias);
    if let Some(bos) = tokenizer.bos {
        config.insert("bos_token_id".into(), json!(bos));
    }
    if let Some(eos) = one_or_all(&tokenizer.eos) {
        config.insert("eos_token_id".into(), eos);
    }
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    tensors.iter().filter_map(|tensor| bits_of(tensor.form)).for_each(|bits| *counts.entry(bits).or_default() += 1);
    if let Some((&usual, _)) = counts.iter().max_by_key(|&(_, count)| count) {
        let affine = |bits: u32| json!({"group_size": GROUP, "bits": bits, "mode": "affine"});
        let mut quantization = affine(usual);
        for tensor in tensors {
            if let Some(bits) = bits_of(tensor.form).filter(|&bits| bits != usual) {
                quantization[&tensor.place.module] = affine(bits);
            }
        }
        config.insert("quantization".into(), quantization);
    }
    Json::Object(config)
}

fn one_or_all(ids: &[u64]) -> Option<Json> {
    match ids {
        [] => None,
        [one] => Some(json!(one)),
        all => Some(json!(all)),
    }
}

fn files(config: Json, tokenizer: &TokenizerFiles, index: Option<String>) -> Vec<(&'static str, Vec<u8>)> {
    let text = |json: &Json| format!("{json:#}\n").into_bytes();
    let mut generation = json!({});
    if let Some(bos) = tokenizer.bos {
        generation["bos_token_id"] = json!(bos);
    }
    if let Some(eos) = one_or_all(&tokenizer.eos) {
        generation["eos_token_id"] = eos;
    }
    let mut files = vec![
        ("config.json", text(&config)),
        ("generation_config.json", text(&generation)),
        ("tokenizer.json", tokenizer.tokenizer.to_string().into_bytes()),
        ("tokenizer_config.json", text(&tokenizer.config)),
    ];
    files.extend(index.map(|index| (weights::INDEX_NAME, index.into_bytes())));
    files
}

/// One tensor on its way.
struct Written<'a> {
    gguf: &'a Gguf,
    tensor: &'a TensorPlan,
    scales: Vec<u8>,
    biases: Vec<u8>,
    loss: TensorLoss,
}

impl<'a> Written<'a> {
    fn new(gguf: &'a Gguf, tensor: &'a TensorPlan) -> Self {
        let form = match tensor.form {
            Form::Plain(dtype) => dtype.to_string().to_ascii_lowercase(),
            Form::Affine(bits, dtype) => {
                format!("{bits}-bit in groups of {GROUP}, {} scales", dtype.to_string().to_ascii_lowercase())
            }
        };
        let (name, kind) = (tensor.header.name.clone(), tensor.header.kind);
        let loss = TensorLoss { name, kind, form, error_max: 0.0, element_max: 0.0 };
        Self { gguf, tensor, scales: Vec::new(), biases: Vec::new(), loss }
    }

    /// Writes the numbers or codes; scales and biases, a small part of it, are kept for what follows.
    fn write_weight(&mut self, writer: &mut ModelFolderWriter) -> Result<(), GgufError> {
        let header = &self.tensor.header;
        let rows = header.shape[0];
        let row_bytes = header.bytes / rows;
        let head_rows = self.tensor.place.interleaved_heads.map_or(1, |heads| rows / heads);
        let rows_at_once = (STRIDE_BYTES / row_bytes / head_rows).max(1) * head_rows;
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        let mut row = 0;
        while row < rows {
            let count = rows_at_once.min(rows - row);
            bytes.resize((count * row_bytes) as usize, 0);
            self.gguf.read(header, row * row_bytes, &mut bytes)?;
            out.clear();
            for out_row in 0..count {
                let from = source_row(out_row, head_rows);
                let start = (from * row_bytes) as usize;
                let content = &bytes[start..start + row_bytes as usize];
                let done = match self.tensor.form {
                    Form::Plain(dtype) => self.plain_row(content, dtype, &mut out),
                    Form::Affine(bits, dtype) => self.affine_row(content, bits, dtype, &mut out),
                };
                if done.is_none() {
                    return Err(self.gguf.damaged(header, (row + from) * row_bytes, "a number isn't finite"));
                }
            }
            writer.write(&out)?;
            row += count;
        }
        Ok(())
    }

    /// Appends a row of numbers; `None` where one isn't finite.
    fn plain_row(&mut self, row: &[u8], dtype: Dtype, out: &mut Vec<u8>) -> Option<()> {
        let mut exact = [0.0; BLOCK_ELEMENTS_MAX];
        for block in row.chunks_exact(self.loss.kind.block_bytes() as usize) {
            quantised::dequantise(self.loss.kind, block, &mut exact);
            let written = push(exact[0] as f32, dtype, out);
            self.measure(exact[0], written.into())?;
        }
        Some(())
    }

    /// Appends a row's codes, and keeps its scales and biases; `None` where a number isn't finite.
    fn affine_row(&mut self, row: &[u8], bits: u32, dtype: Dtype, out: &mut Vec<u8>) -> Option<()> {
        let kind = self.loss.kind;
        let mut exact = [0.0; BLOCK_ELEMENTS_MAX];
        let mut groups: Vec<Group> = Vec::with_capacity(BLOCK_ELEMENTS_MAX / GROUP);
        for block in row.chunks_exact(kind.block_bytes() as usize) {
            quantised::dequantise(kind, block, &mut exact);
            let exact = &exact[..kind.block_elements() as usize];
            groups.clear();
            if quantised::groups(kind, block, &mut groups).is_none() {
                groups.extend(exact.chunks_exact(GROUP).map(|group| quantised::regroup(group, dtype == Dtype::F16)));
            }
            for (group, exact) in groups.iter().zip(exact.chunks_exact(GROUP)) {
                quantised::pack(&group.codes, bits, out);
                let scale: f64 = push(group.scale, dtype, &mut self.scales).into();
                let bias: f64 = push(group.bias, dtype, &mut self.biases).into();
                for (&code, &exact) in group.codes.iter().zip(exact) {
                    self.measure(exact, f64::from(code) * scale + bias)?;
                }
            }
        }
        Some(())
    }

    fn measure(&mut self, exact: f64, written: f64) -> Option<()> {
        let error = (exact - written).abs();
        self.loss.error_max = self.loss.error_max.max(error);
        self.loss.element_max = self.loss.element_max.max(exact.abs());
        error.is_finite().then_some(())
    }
}

/// The row of a head in the file that belongs at `row` in MLX: pairs of neighbours become two halves.
///
/// With one row a head (nothing interleaved) rows stay.
fn source_row(row: u64, head_rows: u64) -> u64 {
    if head_rows < 2 {
        return row;
    }
    let (head, within, half) = (row / head_rows, row % head_rows, head_rows / 2);
    head * head_rows + if within < half { 2 * within } else { 2 * (within - half) + 1 }
}

/// Appends a number as `dtype` and tells what it became.
fn push(value: f32, dtype: Dtype, out: &mut Vec<u8>) -> f32 {
    match dtype {
        Dtype::F16 => {
            let half = f16::from_f32(value);
            out.extend(half.to_le_bytes());
            half.to_f32()
        }
        Dtype::BF16 => {
            let brain = bf16::from_f32(value);
            out.extend(brain.to_le_bytes());
            brain.to_f32()
        }
        _ => {
            out.extend(value.to_le_bytes());
            value
        }
    }
}
