//! One run of candle's quantised Llama in this process: prints what one run of llama.cpp prints in tools/bench.py.
//!
//! `RAYON_NUM_THREADS=N bench-candle GGUF`

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The tokens that tests/bench/engine.rs and tools/bench.py take too.
fn prompt(tokens: usize, vocabulary: usize) -> Vec<u32> {
    (0..tokens).map(|idx| ((idx * 7919 + 101) % (vocabulary - 100) + 50) as u32).collect()
}

/// Computes tokens from a place on; gives the most likely token after them and the size of the vocabulary.
fn best(model: &mut ModelWeights, tokens: &[u32], from: usize) -> Fallible<(u32, usize)> {
    let logits = model.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, from)?.squeeze(0)?;
    let vocabulary = logits.dim(0)?;
    Ok((logits.argmax(0)?.to_scalar()?, vocabulary))
}

/// The most memory that this process ever held, in bytes.
fn peak_bytes() -> Fallible<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).ok_or("no value")?.parse::<f64>()? * 1024.0)
}

fn main() -> Fallible<()> {
    let path = std::env::args().nth(1).ok_or("bench-candle GGUF")?;
    let mut file = BufReader::new(File::open(path)?);
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    // A first computation touches the weights, as loading does for ours.
    let (_, vocabulary) = best(&mut model, &[1; 8], 0)?;

    let began = Instant::now();
    // From place 0 on, its cache begins anew.
    best(&mut model, &prompt(512, vocabulary), 0)?;
    let prefill = 512.0 / began.elapsed().as_secs_f64();

    let (mut token, _) = best(&mut model, &prompt(32, vocabulary), 0)?;
    let began = Instant::now();
    for step in 0..128 {
        (token, _) = best(&mut model, &[token], 32 + step)?;
    }
    let decode = 128.0 / began.elapsed().as_secs_f64();
    println!("{{\"prompt\": {prefill}, \"decode\": {decode}, \"peak_mb\": {}}}", peak_bytes()? / 1e6);
    Ok(())
}
