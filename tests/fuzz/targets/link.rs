//! Any bytes as what the other side of a link sends: before the code is confirmed, and the frames that come after it.

#![no_main]

use tilekit::peer::LinkCode;
use tilekit::peer::link::{Channel, join, kind, parse_card, read_frame, read_keys, receive};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("there are timers");
    let code: LinkCode = "4K-7QM-2XD".parse().expect("it is one");
    let channel = Channel { exporter: [9; 32], listener: [1; 32], joiner: [2; 32] };
    runtime.block_on(async {
        let stream = || tokio::io::join(bytes, tokio::io::sink());
        assert!(receive(stream(), channel.clone(), &code).await.is_err(), "nobody guesses a MAC");
        assert!(join(stream(), channel, &code).await.is_err(), "nobody guesses a MAC");
        let mut rest = bytes;
        while let Ok((kind, content)) = read_frame(&mut rest).await {
            let _ = match kind {
                kind::CARD => parse_card(&content).map(drop),
                kind::SHARE => read_keys(&content).map(drop),
                _ => Ok(()),
            };
        }
    });
});
