//! Engine states kept between runs: what a resumed conversation takes up instead of computing its history again.

use std::cell::RefCell;

use tilekit::bundle::{Bundle, Verified};
use tilekit::chat::ChatSession;
use tilekit::digest::Sha256Digest;
use tilekit::engine::worker::{LoadState, Worker};
use tilekit::prefix_cache::{CACHE_BYTES_MAX, PrefixCache};
use tilekit::store::Access;

use crate::app::App;
use crate::unlock::Open;

/// Fewer tokens than this are computed faster than they are read from a slow drive.
const TOKENS_MIN: usize = 64;

/// The states of the open bundle; nothing is kept where the drive or the person doesn't want it.
pub(crate) struct KeptState<'a> {
    app: &'a App,
    cache: Option<PrefixCache>,
    /// What conversations begin with, where it is long and isn't kept yet.
    opening: RefCell<Option<(Sha256Digest, Vec<u32>)>>,
}

impl Open {
    /// The engine states of this bundle.
    pub(crate) fn prefix_cache(&self, bundle: &Bundle<Verified>) -> PrefixCache {
        PrefixCache::new(&bundle.prefix_cache(), self.identity.derive("prefix-cache"), CACHE_BYTES_MAX)
    }
}

impl<'a> KeptState<'a> {
    /// For a conversation; without an open bundle that can be written, nothing is kept.
    pub(crate) fn new(app: &'a App, bundle: &Bundle<Verified>, open: Option<&Open>) -> Self {
        let open = open.filter(|open| open.store.access() == Access::ReadWrite);
        Self { app, cache: open.map(|open| open.prefix_cache(bundle)), opening: RefCell::new(None) }
    }

    /// The cache, once the engine has loaded: asking it before would wait for a load that Ctrl-C was to end.
    fn cache(&self, worker: &Worker) -> Option<&PrefixCache> {
        self.cache.as_ref().filter(|_| worker.load_progress().state == LoadState::Ready)
    }

    /// Before the first answer: takes up the session's state, or that of the instructions.
    pub(crate) fn take_up(&self, worker: &Worker, chat: &ChatSession) {
        let Some(cache) = self.cache(worker) else { return };
        if let Some(state) = chat.session().and_then(|id| cache.session(id)) {
            return worker.take_up(state);
        }
        // What fails here fails again, and is told, when the first question is asked.
        let Ok(Some((origin, tokens))) = worker.opening(chat.request()) else { return };
        if tokens.len() < TOKENS_MIN {
            return;
        }
        match cache.opening(&origin, &tokens) {
            Some(state) => worker.take_up(state),
            None => drop(self.opening.replace(Some((origin, tokens)))),
        }
    }

    /// After the last answer of a session: keeps its state, and that of its instructions. Nothing depends on it, so what
    /// fails is only told to whoever wants to hear more.
    pub(crate) fn keep(&self, worker: &Worker, chat: &ChatSession) {
        let (Some(cache), Some(id)) = (self.cache(worker), chat.session()) else { return };
        let Ok(Some(state)) = worker.state(chat.request()) else { return };
        let opening = self.opening.take().filter(|(_, tokens)| state.tokens.starts_with(tokens));
        // What was taken back is in no state any more, however short the rest is.
        let kept = match state.tokens.len() {
            TOKENS_MIN.. => cache.keep_session(id, &state),
            _ => cache.forget_session(id),
        };
        let kept = kept.and_then(|()| match opening.and_then(|(_, tokens)| state.truncated(tokens.len())) {
            Some(opening) => cache.keep_opening(&opening),
            None => Ok(()),
        });
        if let Err(error) = kept
            && self.app.global.verbose
        {
            self.app.terminal.warn(&format!("the conversation's state isn't kept: {error}"));
        }
    }
}
