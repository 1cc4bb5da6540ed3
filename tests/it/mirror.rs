//! A small server on loopback that speaks the Hub's API, and interrupts and lies as a test tells it to.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The commit of everything.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a request meets.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    None,
    /// The connection ends after so many bytes.
    Cut(usize),
    /// The connection stays open, silent, after so many bytes.
    Hang(usize),
    /// All of the file, whatever range is asked for.
    NoRanges,
    /// Another range than the one that is asked for.
    WrongRange,
    /// The right length, one bit wrong.
    Flip,
    /// No end.
    Endless,
    Status(u16),
    Redirect(String),
}

type Faults = Box<dyn Fn(&str, usize) -> Fault + Send + Sync>;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    listing: Value,
    faults: Mutex<Faults>,
    /// Path, first byte asked for, and how many bytes of content were sent.
    log: Mutex<Vec<(String, u64, usize)>>,
}

/// The server; its thread ends with the test's process.
pub(crate) struct Mirror {
    state: Arc<State>,
    pub(crate) endpoint: String,
}

impl Mirror {
    /// Serves the files of `folder` as the repository `org/tiny`.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).expect("it is there") {
            let path = entry.expect("it is there").path();
            let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
            files.insert(name, std::fs::read(&path).expect("it is there"));
        }
        files.insert("README.md".into(), b"nobody asks for it".to_vec());
        let siblings: Vec<Value> = files.iter().map(|(name, bytes)| sibling(name, bytes)).collect();
        let listing = json!({"sha": COMMIT, "cardData": {"license": "mit"}, "siblings": siblings});
        Self::serving(files, listing)
    }

    /// Serves `files` with a listing of one's own.
    pub(crate) fn serving(files: BTreeMap<String, Vec<u8>>, listing: Value) -> Self {
        let faults: Faults = Box::new(|_, _| Fault::None);
        let state = Arc::new(State { files, listing, faults: Mutex::new(faults), log: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || answer(&state, stream));
            }
        });
        Self { state, endpoint }
    }

    /// Decides by path and how many requests it had what each request meets.
    pub(crate) fn faults(&self, faults: impl Fn(&str, usize) -> Fault + Send + Sync + 'static) {
        *self.state.faults.lock().expect("no test panics in it") = Box::new(faults);
    }

    /// What was asked for since this was last asked.
    pub(crate) fn take_log(&self) -> Vec<(String, u64, usize)> {
        std::mem::take(&mut self.state.log.lock().expect("no test panics in it"))
    }
}

fn sibling(name: &str, bytes: &[u8]) -> Value {
    if name.ends_with(".safetensors") {
        let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        return json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": sha256, "size": bytes.len()}});
    }
    let mut blob = sha1::Sha1::new();
    blob.update(format!("blob {}\0", bytes.len()));
    blob.update(bytes);
    let sha1: String = blob.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"rfilename": name, "size": bytes.len(), "blobId": sha1})
}

/// Answers one request; a client that went away is no failure.
fn answer(state: &State, stream: TcpStream) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)) else { return };
    let mut start = None;
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let line = line.to_ascii_lowercase();
        assert!(!line.starts_with("authorization") && !line.starts_with("cookie"), "{line}");
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.split_once('-').and_then(|(a, b)| Some((a.parse::<usize>().ok()?, b.parse::<usize>().ok()?)));
        }
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let nth = state.log.lock().expect("no test panics in it").iter().filter(|(seen, ..)| *seen == name).count();
    let fault = (state.faults.lock().expect("no test panics in it"))(&path, nth);
    let is_listing = path.starts_with("/api/models/org/tiny/revision/");
    let listing = state.listing.to_string().into_bytes();
    let content = if is_listing { Some(&listing) } else { state.files.get(&name) };
    let (head, body) = respond(&fault, content, start);
    let sent = match fault {
        Fault::Cut(bytes) | Fault::Hang(bytes) => bytes.min(body.len()),
        _ => body.len(),
    };
    state.log.lock().expect("no test panics in it").push((name, start.map_or(0, |(a, _)| a as u64), sent));
    let mut out = &stream;
    let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(&body[..sent]));
    match fault {
        Fault::Endless => while out.write_all(&[b' '; 65536]).is_ok() {},
        // Until the client gives up.
        Fault::Hang(_) => drop(lines.next()),
        _ => {}
    }
}

fn respond(fault: &Fault, content: Option<&Vec<u8>>, range: Option<(usize, usize)>) -> (String, Vec<u8>) {
    let plain = |status: u16, extra: &str| {
        (format!("HTTP/1.1 {status} X\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n"), Vec::new())
    };
    let Some(content) = content else { return plain(404, "") };
    let (mut status, mut extra, mut body) = (200, String::new(), content.clone());
    match (fault, range) {
        (Fault::Status(status), _) => return plain(*status, "Retry-After: 0\r\n"),
        (Fault::Redirect(target), _) => return plain(302, &format!("Location: {target}\r\n")),
        (Fault::Endless, _) => return ("HTTP/1.1 200 X\r\nConnection: close\r\n\r\n".into(), Vec::new()),
        (Fault::NoRanges, _) | (_, None) => {}
        (_, Some((first, last))) => {
            let shown = if matches!(fault, Fault::WrongRange) { first + 1 } else { first };
            (status, extra) = (206, format!("Content-Range: bytes {shown}-{last}/{}\r\n", content.len()));
            body = content[first..=last].to_vec();
        }
    }
    if let (Fault::Flip, Some(byte)) = (fault, body.last_mut()) {
        *byte ^= 1;
    }
    (format!("HTTP/1.1 {status} X\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()), body)
}
