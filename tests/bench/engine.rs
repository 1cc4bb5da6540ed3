//! Speed and memory of the engine: `cargo bench --bench engine -- MODEL [--threads N] [--runs N] [--instructions NAME]`, one JSON line each.
//!
//! `MODEL` is a model folder. `--convert GGUF MODEL` makes one; `--first-token MODEL` stops after the first token of a
//! prompt of 37, so that the time from the process's start is measured from outside; `--decode-at TOKENS MODEL` measures
//! decoding alone, after so many tokens; `--bandwidth` how fast memory is read. `--agreement MODEL` counts how often the most likely token of 1,000 is that of
//! float32 activations.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tilekit::engine::backend::cpu::{Activations, InstructionSet};
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
    instruction_set: InstructionSet,
    runs: usize,
    convert: bool,
    first_token: bool,
    agreement: bool,
    bandwidth: bool,
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
            "--instructions" => {
                let name = arguments.next().ok_or("a name is missing")?;
                let known = InstructionSet::all();
                let found = known.iter().find(|set| set.name() == name);
                asked.instruction_set = *found.ok_or_else(|| format!("not of this processor: {name:?} ({known:?})"))?;
            }
            "--runs" => asked.runs = number()?.max(1),
            "--convert" => asked.convert = true,
            "--agreement" => asked.agreement = true,
            "--bandwidth" => asked.bandwidth = true,
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
            let mut model = load(folder, &asked, NUM_CTX)?;
            let token = greedy(model.forward(&prompt(37, model_vocabulary(&model)), &|| false)?);
            println!("{}", json!({ "token": token, "peak_bytes": peak_bytes()? }));
            Ok(())
        }
        [folder] if asked.agreement => agreement(folder, &asked),
        [folder] => match asked.decode_at {
            Some(before) => {
                let mut model = load(folder, &asked, before as usize + NUM_CTX)?;
                let speed = decode_speed(&mut model, before, 64)?;
                println!("{}", json!({ "decode_tokens": 64, "after": before, "tokens_per_second": speed }));
                Ok(())
            }
            None => measure(folder, &asked),
        },
        [] if asked.bandwidth => {
            println!("{}", json!({ "read_bytes_per_second": read_bandwidth(threads(&asked)) }));
            Ok(())
        }
        // `cargo test --benches` gives no folder: that it starts is all that is asked.
        [] => Ok(()),
        _ => Err("one model folder is expected".into()),
    }
}

fn load(folder: &Path, asked: &Asked, num_ctx: usize) -> Outcome<Model> {
    let &Asked { threads, instruction_set, .. } = asked;
    let options = LoadOptions { num_ctx, threads, instruction_set, ..LoadOptions::default() };
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
    let mut model = load(folder, asked, NUM_CTX)?;
    println!("{}", json!({ "load_ms": began.elapsed().as_secs_f64() * 1e3, "engine": model.engine() }));
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..asked.runs {
        prefill.push(prompt_speed(&mut model, 512)?);
        decode.push(decode_speed(&mut model, 32, 128)?);
    }
    println!("{}", json!({ "prompt_tokens": 512, "tokens_per_second": median(prefill) }));
    let decode_tokens_per_second = median(decode);
    println!("{}", json!({ "decode_tokens": 128, "tokens_per_second": decode_tokens_per_second }));
    // Before the headers are read once more, which takes a chunk of 4 MiB.
    let peak = peak_bytes()?;
    // The cache grows with its use: the longest of the two measurements fills 512 positions.
    let options = LoadOptions { num_ctx: 512, ..LoadOptions::default() };
    let needed = Model::memory_bytes(&VerifiedFolder::unlisted(folder), &options)?;
    println!("{}", json!({ "peak_bytes": peak, "weights_and_cache_bytes": needed }));
    let weights = Model::memory_bytes(&VerifiedFolder::unlisted(folder), &LoadOptions { num_ctx: 1, ..options })?;
    println!("{}", json!({ "decode_bytes_per_second": decode_tokens_per_second * weights as f64 }));
    Ok(())
}

fn threads(asked: &Asked) -> usize {
    asked.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into))
}

/// How many bytes a second `threads` threads read together from memory that no cache holds: the best of ten passes.
fn read_bandwidth(threads: usize) -> f64 {
    let words = vec![1_u64; 64 << 20];
    let pass = |read: fn(&[u64]) -> u64| {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(words.len().div_ceil(threads)) {
                scope.spawn(move || std::hint::black_box(read(part)));
            }
        });
        (words.len() * 8) as f64 / began.elapsed().as_secs_f64()
    };
    // Some processors look far enough ahead by themselves, others read twice as fast when they are asked.
    let ways: [fn(&[u64]) -> u64; 2] = [read, read_ahead];
    ways.into_iter().flat_map(|way| [way; 5]).map(pass).fold(0.0, f64::max)
}

fn read(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum ^ word)
}

/// The same, asking for each cache line a page before it is read.
fn read_ahead(words: &[u64]) -> u64 {
    words.chunks(8).fold(0, |sum, line| {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the instruction has no safe form")]
        // SAFETY: it is part of the architecture and reads nothing.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(512).cast());
        }
        sum ^ read(line)
    })
}

/// Continuations that float32 activations choose, 40 tokens after each of 25 beginnings: does the default agree?
fn agreement(folder: &Path, asked: &Asked) -> Outcome<()> {
    let &Asked { threads, instruction_set, .. } = asked;
    let load = |activations| {
        let options = LoadOptions { num_ctx: NUM_CTX, threads, activations, instruction_set, ..LoadOptions::default() };
        Model::load(&VerifiedFolder::unlisted(folder), &options, &mut |_| ControlFlow::Continue(()))
    };
    let (mut exact, mut default) = (load(Activations::Float32)?, load(LoadOptions::default().activations)?);
    let (mut compared, mut clear, mut agreed, mut clear_agreed, mut furthest) = (0, 0, 0, 0, 0.0_f32);
    for beginning in 0..25 {
        exact.truncate(0);
        default.truncate(0);
        let all = prompt(10 * (beginning + 1), model_vocabulary(&exact));
        let mut next = all[all.len() - 10..].to_vec();
        for _ in 0..40 {
            let expected = exact.forward(&next, &|| false)?;
            let found = default.forward(&next, &|| false)?;
            let best = greedy(expected);
            let second = expected.iter().enumerate().filter(|(idx, _)| *idx != best as usize);
            let gap = expected[best as usize] - second.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
            let same = usize::from(greedy(found) == best);
            (compared, agreed) = (compared + 1, agreed + same);
            if gap > 0.05 {
                (clear, clear_agreed) = (clear + 1, clear_agreed + same);
            }
            furthest = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(furthest, f32::max);
            next = vec![best];
        }
    }
    let counts =
        json!({ "compared": compared, "agreed": agreed, "gap_above_0.05": clear, "of_these_agreed": clear_agreed });
    println!("{}", json!({ "agreement": counts, "largest_difference": furthest }));
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
