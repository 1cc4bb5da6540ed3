//! Any text as a ticket or a code: an error or a value that prints as what it was read from, never a panic.

#![no_main]

use tilekit::peer::{LinkCode, Ticket};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(code) = text.parse::<LinkCode>() {
            assert!(code.to_text().parse::<LinkCode>().ok() == Some(code));
        }
        if let Ok(ticket) = text.parse::<Ticket>() {
            assert!(ticket.to_text().parse::<Ticket>().ok() == Some(ticket));
        }
    }
});
