//! Any bytes as `adapter_config.json`: an error or a value, never a panic.

#![no_main]

use tilekit::engine::checkpoint::adapter::AdapterConfig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = AdapterConfig::parse(bytes);
});
