//! Speed and memory of the engine: `cargo bench --bench engine -- MODEL [--threads N] [--runs N]`, one JSON line each.
//!
//! `MODEL` is a model folder. `--convert GGUF MODEL` makes one; `--first-token MODEL` stops after the first token of a
//! prompt of 37, so that the time from the process's start is measured from outside; `--decode-at TOKENS MODEL` measures
//! decoding alone, after so many tokens.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tilekit::engine::gguf::{Conversion, Gguf};
use tilekit::engine::models::{LoadOptions, Model};
use tilekit::model_folder::ModelFolderWriter;
use tilekit::verified::VerifiedFolder;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The context that both engines are given.
const NUM_CTX: usize = 2_048;

#[derive(Default)]
struct Asked {
    folders: Vec<PathBuf>,
    threads: Option<usize>,
    runs: usize,
    convert: bool,
    first_token: bool,
    /// Measure decoding alone, after so many tokens.
    decode_at: Option<u32>,
}

fn asked() -> Outcome<Asked> {
    let mut asked = Asked { runs: 7, ..Asked::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Outcome<usize> { Ok(arguments.next().ok_or("a number is missing")?.parse()?) };
        match argument.as_str() {
            "--threads" => asked.threads = Some(number()?),
            "--runs" => asked.runs = number()?.max(1),
            "--convert" => asked.convert = true,
            "--first-token" => asked.first_token = true,
            "--decode-at" => asked.decode_at = Some(u32::try_from(number()?)?),
            // Cargo says this to every benchmark.
            "--bench" => {}
            other if other.starts_with('-') => return Err(format!("unknown option `{other}`").into()),
            folder => asked.folders.push(folder.into()),
        }
    }
    Ok(asked)
}

fn main() -> Outcome<()> {
    let asked = asked()?;
    match asked.folders.as_slice() {
        [gguf, folder] if asked.convert => convert(gguf, folder),
        [folder] if asked.first_token => {
            let mut model = load(folder, asked.threads, NUM_CTX)?;
            let token = greedy(model.forward(&prompt(37, model_vocabulary(&model)), &|| false)?);
            println!("{}", json!({ "token": token, "peak_bytes": peak_bytes()? }));
            Ok(())
        }
        [folder] => match asked.decode_at {
            Some(before) => {
                let mut model = load(folder, asked.threads, before as usize + NUM_CTX)?;
                let speed = decode_speed(&mut model, before, 64)?;
                println!("{}", json!({ "decode_tokens": 64, "after": before, "tokens_per_second": speed }));
                Ok(())
            }
            None => measure(folder, &asked),
        },
        // `cargo test --benches` gives no folder: that it starts is all that is asked.
        [] => Ok(()),
        _ => Err("one model folder is expected".into()),
    }
}

fn load(folder: &Path, threads: Option<usize>, num_ctx: usize) -> Outcome<Model> {
    let options = LoadOptions { num_ctx, threads, ..LoadOptions::default() };
    Ok(Model::load(&VerifiedFolder::unlisted(folder), &options, &mut |_| ControlFlow::Continue(()))?)
}

fn convert(gguf: &Path, folder: &Path) -> Outcome<()> {
    let mut sink = |_| ControlFlow::Continue(());
    let conversion = Conversion::plan(Gguf::open(gguf)?, 1 << 31, &mut sink)?;
    let mut writer = ModelFolderWriter::create(folder, conversion.bytes(), &mut sink)?;
    conversion.write(&mut writer)?;
    writer.finish()?;
    Ok(())
}

fn model_vocabulary(model: &Model) -> u32 {
    model.config().vocab_size as u32
}

/// The same tokens for every engine; their meaning doesn't change the work.
fn prompt(tokens: u32, vocabulary: u32) -> Vec<u32> {
    (0..tokens).map(|idx| (idx * 7_919 + 101) % (vocabulary - 100) + 50).collect()
}

fn greedy(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, idx| if logits[idx] > logits[best] { idx } else { best }) as u32
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The most memory that this process ever held.
fn peak_bytes() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("there is no `VmHWM`")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

fn measure(folder: &Path, asked: &Asked) -> Outcome<()> {
    let began = Instant::now();
    let mut model = load(folder, asked.threads, NUM_CTX)?;
    println!("{}", json!({ "load_ms": began.elapsed().as_secs_f64() * 1e3, "engine": model.engine() }));
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..asked.runs {
        prefill.push(prompt_speed(&mut model, 512)?);
        decode.push(decode_speed(&mut model, 32, 128)?);
    }
    println!("{}", json!({ "prompt_tokens": 512, "tokens_per_second": median(prefill) }));
    println!("{}", json!({ "decode_tokens": 128, "tokens_per_second": median(decode) }));
    // The cache grows with its use: the longest of the two measurements fills 512 positions.
    let options = LoadOptions { num_ctx: 512, ..LoadOptions::default() };
    let needed = Model::memory_bytes(&VerifiedFolder::unlisted(folder), &options)?;
    println!("{}", json!({ "peak_bytes": peak_bytes()?, "weights_and_cache_bytes": needed }));
    Ok(())
}

fn prompt_speed(model: &mut Model, tokens: u32) -> Outcome<f64> {
    model.truncate(0);
    let prompt = prompt(tokens, model_vocabulary(model));
    let began = Instant::now();
    model.forward(&prompt, &|| false)?;
    Ok(f64::from(tokens) / began.elapsed().as_secs_f64())
}

fn decode_speed(model: &mut Model, before: u32, tokens: u32) -> Outcome<f64> {
    model.truncate(0);
    let mut token = greedy(model.forward(&prompt(before, model_vocabulary(model)), &|| false)?);
    let began = Instant::now();
    for _ in 0..tokens {
        token = greedy(model.forward(&[token], &|| false)?);
    }
    Ok(f64::from(tokens) / began.elapsed().as_secs_f64())
}
