//! The corpora of the fuzz targets, replayed: `good-…` is read, `bad-…` is refused, each within a bound of time, and
//! nothing panics. The corpora of gguf, key slots, manifests, Modelfiles and safetensors are replayed beside their parsers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use minijinja::Value;
use secrecy::SecretBox;
use tilekit::engine::checkpoint::adapter::AdapterConfig;
use tilekit::engine::models::ModelConfig;
use tilekit::engine::template::{ChatTemplate, Rendering};
use tilekit::engine::tokenizer::Tokenizer;
use tilekit::hub::Listing;
use tilekit::oplog::{Body, CheckedRun, Run, Vector};
use tilekit::peer::link::{Channel, join, kind, parse_card, read_frame, read_keys, receive};
use tilekit::peer::{LinkCode, PeerError, Ticket};
use tilekit::store::{Access, Store};
use tilekit::sync::{Frame, Hint, ModelOffer, read_chunk};
use tilekit::time::Timestamp;
use tilekit::transcript;
use tilekit::verified::VerifiedFolder;

/// The longest that a hostile file of a few kilobytes may hold the program up, in a debug build on a busy machine.
const BOUND: Duration = Duration::from_secs(5);

/// Reads each file of a corpus; `read` says whether it was accepted.
fn replay(corpus: &str, files_min: usize, read: &dyn Fn(&[u8]) -> Result<(), String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(corpus);
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is there") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).expect("it can be read");
        let began = Instant::now();
        let outcome = read(&bytes);
        assert!(began.elapsed() < BOUND, "{corpus}/{name} took {:?}", began.elapsed());
        match name.split('-').next() {
            Some("good") => assert_eq!(outcome, Ok(()), "{corpus}/{name}"),
            Some("bad") => assert!(outcome.is_err(), "{corpus}/{name} was accepted"),
            _ => {}
        }
        if let Err(text) = outcome {
            assert!(!text.is_empty() && text.len() < 2_000, "{corpus}/{name}: {text}");
        }
        files += 1;
    }
    assert!(files >= files_min, "{corpus} has {files} files");
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("target can be written");
    folder
}

#[test]
fn tokenizers() {
    let folder = scratch("corpus-tokenizer");
    replay("tokenizer", 19, &|bytes| {
        std::fs::write(folder.join("tokenizer.json"), bytes).expect("target can be written");
        let loaded = Tokenizer::load(&VerifiedFolder::unlisted(&folder), "<think>", 320);
        let mut tokenizer = loaded.map_err(|error| error.to_string())?;
        let tokens = tokenizer.encode(&format!("Aé <|im_end|>\n{}", "a".repeat(60))).map_err(|e| e.to_string())?;
        assert!(tokens.iter().all(|&token| token < 320));
        assert!(!tokens.contains(&257), "text spoke a control token");
        tokenizer.decode(&tokens).map(drop).map_err(|error| error.to_string())
    });
}

#[test]
fn templates() {
    replay("template", 18, &|bytes| {
        let source = std::str::from_utf8(bytes).expect("this corpus is text");
        let template = ChatTemplate::from_source(source).map_err(|error| error.to_string())?;
        let message = Value::from_pairs([("role", Value::from("user")), ("content", Value::from("a <b>"))]);
        let rendered = template.render(&Rendering {
            messages: vec![message],
            add_generation_prompt: true,
            think: None,
            variables: Vec::new(),
            now: Timestamp::from_ms(1_769_860_800_000),
        });
        rendered.map(|text| assert!(text.len() < 400 << 20)).map_err(|error| error.to_string())
    });
}

#[test]
fn configurations() {
    replay("config", 15, &|bytes| ModelConfig::parse(bytes).map(drop).map_err(|error| error.to_string()));
}

#[test]
fn adapter_configurations() {
    replay("adapter_config", 19, &|bytes| AdapterConfig::parse(bytes).map(drop).map_err(|error| error.to_string()));
}

#[test]
fn hub_listings() {
    replay("hub_listing", 26, &|bytes| Listing::parse(bytes).map(drop));
}

#[test]
fn transcripts() {
    replay("transcript", 12, &|bytes| {
        let text = std::str::from_utf8(bytes).expect("this corpus is text");
        transcript::parse_json(text).map(drop).map_err(|error| error.to_string())
    });
}

#[test]
fn tickets() {
    replay("ticket", 25, &|bytes| {
        let text = std::str::from_utf8(bytes).expect("this corpus is text");
        let ticket: Ticket = text.parse().map_err(|error: PeerError| error.to_string())?;
        assert!(ticket.to_text().parse::<Ticket>().ok() == Some(ticket));
        Ok(())
    });
}

/// When the corpora of operations were written.
const WRITTEN: Timestamp = Timestamp::from_ms(1_795_688_340_000);

#[test]
fn operations() {
    replay("oplog", 20, &|bytes| {
        let (kind, content) = bytes.split_first().ok_or("nothing says what it is")?;
        match kind {
            0 => {
                let run = Run::from_bytes(content).map_err(|error| error.to_string())?;
                CheckedRun::new(run, WRITTEN).map(drop).map_err(|error| error.to_string())
            }
            1 => {
                let body = Body::from_bytes(content).map_err(|error| error.to_string())?;
                assert_eq!(body.to_bytes(), content);
                Ok(())
            }
            _ => Vector::from_bytes(content).map(drop).map_err(|error| error.to_string()),
        }
    });
}

#[test]
fn sync_frames() {
    replay("sync", 20, &|bytes| {
        let (&kind, content) = bytes.split_first().ok_or("nothing says what it is")?;
        if kind == 0 {
            return Hint::from_bytes(content, &[0; 32], WRITTEN).map(drop).ok_or("no hint".into());
        }
        if kind == 128 {
            return ModelOffer::from_bytes(content).map(drop).map_err(|error| error.to_string());
        }
        match Frame::from_wire(kind, content.to_vec()).map_err(|error| error.to_string())? {
            Frame::Chunk(compressed) => {
                let runs = read_chunk(&compressed, WRITTEN).map_err(|error| error.to_string())?;
                runs.into_iter().try_for_each(|run| run.map(drop)).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        }
    });
}

#[test]
fn link_frames() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("there are timers");
    let code: LinkCode = "4K-7QM-2XD".parse().expect("it is one");
    let channel = Channel { exporter: [9; 32], listener: [1; 32], joiner: [2; 32] };
    replay("link", 20, &|bytes| {
        runtime.block_on(async {
            let stream = || tokio::io::join(bytes, tokio::io::sink());
            assert!(receive(stream(), channel.clone(), &code).await.is_err(), "nobody guesses a MAC");
            assert!(join(stream(), channel.clone(), &code).await.is_err(), "nobody guesses a MAC");
            let mut rest = bytes;
            while !rest.is_empty() {
                let (kind, content) = read_frame(&mut rest).await.map_err(|error| error.to_string())?;
                let read = match kind {
                    kind::CARD => parse_card(&content).map(drop),
                    kind::SHARE => read_keys(&content).map(drop),
                    _ => Ok(()),
                };
                read.map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    });
}

#[test]
fn databases() {
    let folder = scratch("corpus-database");
    replay("database", 7, &|bytes| {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("target can be written");
        std::fs::write(folder.join("tiles.db"), bytes).expect("target can be written");
        let opened = Store::open(&folder.join("tiles.db"), &SecretBox::new(Box::new([7; 32])), Access::ReadWrite);
        // One byte too: SQLite itself leaves that on FAT when a Mac makes a new one.
        assert_eq!(opened.is_ok(), bytes.len() <= 1, "only an empty file is a new database");
        opened.map(drop).map_err(|error| error.to_string())
    });
}
