//! A client of the Hugging Face Hub's HTTP API: which files a repository has, and their bytes from any place on.
//!
//! The only module that can open a connection (`tests/it/tidy.rs` holds it to that); nothing is opened before a call here.
//! The server is taken to be hostile: each answer is bounded in bytes and time, redirects lead to `https` only (`http`
//! only from loopback to loopback), names are plain, and what a file must be is decided by digests. Proxy variables and
//! `HF_ENDPOINT` aren't obeyed, no credentials are sent. `ETag` isn't needed: files are asked for by commit.

use std::io::Read as _;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ureq::http::{Response, Uri};

use crate::digest::CHUNK_BYTES;
use crate::hint::Hint;

pub mod listing;

pub use listing::{Listing, RemoteDigest, RemoteFile};

/// The Hub itself.
pub const HUB_ENDPOINT: &str = "https://huggingface.co";
/// The longest listing that is read, in bytes.
pub const LISTING_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The most redirects that are followed for one request.
pub const REDIRECTS_MAX: usize = 5;
/// The longest wait that a server can ask for, in seconds.
pub const RETRY_AFTER_S_MAX: u64 = 60;
/// How many bytes are taken from the connection at once.
const PIECE_BYTES: usize = 128 * 1024;
/// How often a wait looks whether it was interrupted.
const TICK: Duration = Duration::from_millis(50);

/// How patient the client is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest wait for any answer or piece of one.
    pub stall: Duration,
    /// The longest time that 4 MiB may take.
    pub chunk: Duration,
    /// The wait before the first retry; each later one doubles it.
    pub backoff: Duration,
    /// How often a request is made without a whole chunk coming of it.
    pub attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let (stall, chunk) = (Duration::from_secs(30), Duration::from_secs(600));
        Self { stall, chunk, backoff: Duration::from_millis(200), attempts: 5 }
    }
}

/// What goes wrong with the network, by what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The endpoint can't be used.
    #[error("`{endpoint}` can't be an endpoint: {what}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// Why not.
        what: &'static str,
    },
    /// A name that no repository or revision has.
    #[error("`{name}` can't be a repository or revision")]
    Name {
        /// What was given.
        name: String,
    },
    /// The server has no such repository, revision or file.
    #[error("`{host}` has no `{what}`")]
    NotFound {
        /// Which server.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The server wants to know who asks.
    #[error("`{host}` gives `{what}` only to people with an account (status {status})")]
    Refused {
        /// Which server.
        host: String,
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
    },
    /// The server is there and doesn't serve; a later try may help.
    #[error("`{host}` answered with status {status}")]
    Status {
        /// Which server.
        host: String,
        /// The status.
        status: u16,
        /// How long it asks to wait.
        retry_after_s: Option<u64>,
    },
    /// The connection failed or was cut.
    #[error("the connection to `{host}` failed: {what}")]
    Connection {
        /// Which server.
        host: String,
        /// In words.
        what: String,
    },
    /// The answer can't be believed.
    #[error("`{host}` gave an answer that can't be used: {what}")]
    Answer {
        /// Which server.
        host: String,
        /// What is wrong with it.
        what: String,
    },
    /// Whoever takes the bytes said to stop.
    #[error("it was stopped before it was complete")]
    Stopped,
}

impl HubError {
    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Connection { .. } | Self::Status { status: 408 | 429 | 500 | 502..=504, .. })
    }
}

impl Hint for HubError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Endpoint { .. } => "give `https://` and a host, or `http://` and a loopback address".into(),
            Self::Name { .. } => "write a repository as `org/name`, as its page on the Hub is called".into(),
            Self::NotFound { .. } => {
                "compare the name with the page on the Hub; `--revision` names a branch or commit".into()
            }
            Self::Refused { .. } => {
                "Tiles sends no credentials: download it with a program of theirs, then run `tiles model import`".into()
            }
            Self::Status { .. } | Self::Connection { .. } | Self::Stopped => {
                "run the same command again: what was fetched is kept".into()
            }
            Self::Answer { .. } => "use another server, or import the model from a file".into(),
        })
    }
}

/// One server that speaks the Hub's API.
#[derive(Debug)]
pub struct Hub {
    endpoint: String,
    host: String,
    is_loopback: bool,
    agent: ureq::Agent,
    limits: Limits,
}

impl Hub {
    /// Prepares a client of `endpoint`; no connection is opened.
    ///
    /// # Errors
    /// [`HubError::Endpoint`].
    pub fn new(endpoint: &str, limits: Limits) -> Result<Self, HubError> {
        let refused = |what| HubError::Endpoint { endpoint: endpoint.into(), what };
        let uri: Uri = endpoint.parse().map_err(|_| refused("it isn't a URL"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| refused("it has no host"))?.to_owned();
        let is_loopback = uri.scheme_str() == Some("http") && is_loopback(&host);
        if uri.scheme_str() != Some("https") && !is_loopback {
            return Err(refused("only `https` is used, or `http` to a loopback address"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || uri.query().is_some() {
            return Err(refused("it has a user or a query"));
        }
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("tiles/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(limits.stall))
            .timeout_connect(Some(limits.stall))
            .timeout_send_request(Some(limits.stall))
            .timeout_recv_response(Some(limits.stall))
            .timeout_per_read(Some(limits.stall))
            .build();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { endpoint, host, is_loopback, agent: config.new_agent(), limits })
    }

    /// The server's name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How patient it is.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Asks which files `repo` has at `revision`, and which commit that is. `tick` is asked whether to go on.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn listing(
        &self,
        repo: &str,
        revision: &str,
        tick: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Listing, HubError> {
        if !listing::is_repo(repo) || !listing::is_revision(revision) {
            return Err(HubError::Name { name: if listing::is_repo(repo) { revision } else { repo }.into() });
        }
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{repo}/revision/{revision}?blobs=true", self.endpoint);
        let (mut text, mut attempt) = (Vec::new(), 0);
        loop {
            text.clear();
            let pieces = self.stream(&url, None, repo);
            let taken = self.take(&pieces, &mut |piece| {
                text.extend_from_slice(piece);
                tick()
            });
            match taken {
                Err(error) if error.is_passing() && attempt + 1 < self.limits.attempts => {
                    self.wait(&error, attempt, tick)?;
                    attempt += 1;
                }
                taken => break taken?,
            }
        }
        Listing::parse(&text).map_err(|what| HubError::Answer { host: self.host.clone(), what })
    }

    /// Fetches bytes `range` of `file`, in order; `take` gets pieces, empty ones while it waits, and says whether to go on.
    /// The connection isn't made again where it is cut.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn fetch(
        &self,
        repo: &str,
        commit: &str,
        file: &RemoteFile,
        range: Range<u64>,
        take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, file.path.replace('+', "%2B"));
        let pieces = self.stream(&url, Some((range, file.size)), &file.path);
        self.take(&pieces, take)
    }

    /// Waits before the try after `attempt`, as long as the server asks for, within bounds.
    ///
    /// # Errors
    /// [`HubError::Stopped`].
    pub fn wait(
        &self,
        error: &HubError,
        attempt: u32,
        tick: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        let asked = match error {
            HubError::Status { retry_after_s: Some(seconds), .. } => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        };
        let until = Instant::now() + asked.max(self.limits.backoff * 2u32.pow(attempt.min(8)));
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if tick().is_break() {
                return Err(HubError::Stopped);
            }
            std::thread::park_timeout(left.min(TICK));
        }
        Ok(())
    }

    /// Hands the pieces on, in the caller's thread, which can thus stop at any time.
    fn take(
        &self,
        pieces: &Receiver<Result<Vec<u8>, HubError>>,
        take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        let (mut since, mut bytes) = (Instant::now(), 0);
        loop {
            let piece = match pieces.recv_timeout(TICK) {
                Ok(piece) => piece?,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            if take(&piece).is_break() {
                return Err(HubError::Stopped);
            }
            bytes += piece.len();
            if bytes >= CHUNK_BYTES as usize {
                (since, bytes) = (Instant::now(), 0);
            } else if since.elapsed() > self.limits.chunk {
                let what = "it is too slow".into();
                return Err(HubError::Connection { host: self.host.clone(), what });
            }
        }
    }

    /// Requests in a thread of its own, which ends with the answer, or soon after nobody takes the pieces any more.
    fn stream(&self, url: &str, range: Option<(Range<u64>, u64)>, what: &str) -> Receiver<Result<Vec<u8>, HubError>> {
        let (sender, receiver) = sync_channel(16);
        let request = Request {
            agent: self.agent.clone(),
            host: self.host.clone(),
            is_loopback: self.is_loopback,
            what: what.to_owned(),
        };
        let url = url.to_owned();
        std::thread::spawn(move || {
            let mut give = |piece: &[u8]| sender.send(Ok(piece.to_vec())).is_ok();
            if let Err(error) = request.run(&url, range, &mut give) {
                // Nobody listens where it was stopped.
                let _ = sender.send(Err(error));
            }
        });
        receiver
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// One request, redirects included.
struct Request {
    agent: ureq::Agent,
    host: String,
    is_loopback: bool,
    what: String,
}

impl Request {
    fn answer(&self, what: impl Into<String>) -> HubError {
        HubError::Answer { host: self.host.clone(), what: what.into() }
    }

    fn connection(&self, what: impl ToString) -> HubError {
        HubError::Connection { host: self.host.clone(), what: what.to_string() }
    }

    fn run(
        &self,
        url: &str,
        range: Option<(Range<u64>, u64)>,
        give: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), HubError> {
        let response = self.follow(url, range.as_ref().map(|(range, _)| range))?;
        let status = response.status().as_u16();
        let length = response.body().content_length();
        let (mut skip, mut left) = match &range {
            None if status == 200 => (0, None),
            Some((range, size)) if status == 206 => {
                let expected = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let found = header(&response, "content-range").unwrap_or_default();
                if found != expected {
                    return Err(self.answer(format!("asked for `{expected}` of `{}`, got another range", self.what)));
                }
                (0, Some(range.end - range.start))
            }
            // A server that knows no ranges sends all of it: what is there already is passed over.
            Some((range, size)) if status == 200 => {
                if length.is_some_and(|length| length != *size) {
                    return Err(self.answer(format!("`{}` has another size than the listing says", self.what)));
                }
                (range.start, Some(range.end - range.start))
            }
            _ => return Err(self.refusal(&response)),
        };
        let mut read = 0;
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE_BYTES];
        while left != Some(0) {
            let want = left.map_or(piece.len() as u64, |left| left + skip).min(piece.len() as u64) as usize;
            let now = body.read(&mut piece[..want]).map_err(|e| self.connection(e))?;
            if now == 0 {
                return if left.is_none() { Ok(()) } else { Err(self.connection("it was cut")) };
            }
            read += now as u64;
            if left.is_none() && read > LISTING_BYTES_MAX {
                return Err(self.answer(format!("its listing has more than {LISTING_BYTES_MAX} bytes")));
            }
            let passed = skip.min(now as u64);
            skip -= passed;
            left = left.map(|left| left - (now as u64 - passed));
            if !give(&piece[passed as usize..now]) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn follow(&self, url: &str, range: Option<&Range<u64>>) -> Result<Response<ureq::Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(&url);
            if let Some(range) = range {
                request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
            }
            let response = request.call().map_err(|error| self.connection(error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let target = header(&response, "location").ok_or_else(|| self.answer("a redirect leads nowhere"))?;
            url = self.target(&url, target)?;
        }
        Err(self.answer(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Where a redirect leads, if it may lead there.
    fn target(&self, from: &str, target: &str) -> Result<String, HubError> {
        if target.starts_with('/') && !target.starts_with("//") {
            let authority = from.find("://").map_or(0, |at| at + 3);
            let end = from[authority..].find('/').map_or(from.len(), |at| authority + at);
            return Ok(format!("{}{target}", &from[..end]));
        }
        let uri: Option<Uri> = target.parse().ok();
        let (scheme, host) = uri.as_ref().map_or((None, None), |uri| (uri.scheme_str(), uri.host()));
        match (scheme, host) {
            (Some("https"), Some(_)) => Ok(target.into()),
            (Some("http"), Some(host)) if self.is_loopback && is_loopback(host) => Ok(target.into()),
            _ => Err(self.answer("a redirect leads to something other than `https`")),
        }
    }

    fn refusal(&self, response: &Response<ureq::Body>) -> HubError {
        let (host, what) = (self.host.clone(), self.what.clone());
        match response.status().as_u16() {
            404 => HubError::NotFound { host, what },
            status @ (401 | 403) => HubError::Refused { host, what, status },
            status => {
                let wait = header(response, "retry-after").and_then(|text| text.parse().ok());
                HubError::Status { host, status, retry_after_s: wait.map(|s: u64| s.min(RETRY_AFTER_S_MAX)) }
            }
        }
    }
}

fn header<'a>(response: &'a Response<ureq::Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
