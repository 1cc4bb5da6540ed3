//! Any bytes as what a linked drive says while it syncs: each kind of frame, a chunk of runs, an offer of a model, and a hint.

#![no_main]

use tilekit::sync::{Frame, Hint, ModelOffer, read_chunk};
use tilekit::time::Timestamp;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let now = Timestamp::from_ms(1_795_688_340_000);
    let Some((&kind, content)) = bytes.split_first() else { return };
    if let Ok(Frame::Chunk(compressed)) = Frame::from_wire(kind, content.to_vec()) {
        let _ = read_chunk(&compressed, now);
    }
    if let Ok(offer) = ModelOffer::from_bytes(content) {
        assert_eq!(ModelOffer::from_bytes(&offer.to_bytes()).ok(), Some(offer));
    }
    let _ = Hint::from_bytes(content, &[0; 32], now);
});
