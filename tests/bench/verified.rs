//! What verification costs: a model's load with every chunk verified against one that verifies nothing, in the same run.
//!
//! `cargo bench --bench verified -- MODEL [--runs N]`: the two take turns, each from the medium and not from the system's
//! memory. `tools/verified-load` runs it on a drive of 100 MB/s.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tilekit::disk;
use tilekit::engine::models::{LoadOptions, Model};
use tilekit::library::entries_of;
use tilekit::verified::VerifiedFolder;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let (mut folder, mut runs) = (None, 5);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--runs" => runs = arguments.next().ok_or("a number is missing")?.parse::<usize>()?.max(1),
            // Cargo says this to every benchmark.
            "--bench" => {}
            path => folder = Some(PathBuf::from(path)),
        }
    }
    // `cargo test --benches` gives no folder: that it starts is all that is asked.
    folder.map_or(Ok(()), |folder| measure(&folder, runs))
}

fn measure(path: &Path, runs: usize) -> Outcome<()> {
    let entries = entries_of(path, &mut |_| ControlFlow::Continue(()))?;
    let bytes: u64 = entries.iter().map(|entry| entry.size).sum();
    let verified = VerifiedFolder::listed(path, entries);
    let unverified = VerifiedFolder::unlisted(path);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // Who goes first takes turns too: what the first leaves behind in the drive may help the second.
        if run % 2 == 0 {
            with.push(load(path, &verified)?);
        }
        without.push(load(path, &unverified)?);
        if run % 2 == 1 {
            with.push(load(path, &verified)?);
        }
    }
    let (with, without) = (median(with), median(without));
    let line = json!({
        "bytes": bytes, "runs": runs, "verified_ms": with, "unverified_ms": without, "ratio": with / without,
        "unverified_bytes_per_second": bytes as f64 / without * 1e3,
    });
    println!("{line}");
    Ok(())
}

/// How long a load takes in milliseconds, when nothing of it is in the system's memory.
fn load(path: &Path, folder: &VerifiedFolder) -> Outcome<f64> {
    for name in disk::list(path)? {
        disk::forget_cached(&path.join(name))?;
    }
    disk::forget_blocks(path);
    let began = Instant::now();
    let options = LoadOptions { num_ctx: 512, ..LoadOptions::default() };
    let model = Model::load(folder, &options, &mut |_| ControlFlow::Continue(()))?;
    let taken = began.elapsed().as_secs_f64() * 1e3;
    drop(model);
    Ok(taken)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
