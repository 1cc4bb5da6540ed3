//! Any bytes as a run of operations, as the body of one, and as a version vector: what another device's log is made of.

#![no_main]

use tilekit::oplog::{Body, CheckedRun, Run, Vector};
use tilekit::time::Timestamp;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, content)) = bytes.split_first() else { return };
    match kind {
        0 => {
            if let Ok(run) = Run::from_bytes(content) {
                let again = Run::from_bytes(&run.to_bytes()).expect("what is printed can be read");
                assert!(again == run);
                let _ = CheckedRun::new(run, Timestamp::from_ms(1_795_688_340_000));
            }
        }
        1 => {
            if let Ok(body) = Body::from_bytes(content) {
                assert_eq!(body.to_bytes(), content, "one text a body");
            }
        }
        _ => {
            if let Ok(vector) = Vector::from_bytes(content) {
                assert_eq!(Vector::from_bytes(&vector.to_bytes()), Ok(vector));
            }
        }
    }
});
