//! Any bytes as the Hub's listing of a repository: an error or a value, never a panic.

#![no_main]

use tilekit::hub::Listing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(listing) = Listing::parse(bytes) {
        assert!(listing.files.iter().all(|file| !file.path.contains(['/', '\\', '\0'])));
    }
});
