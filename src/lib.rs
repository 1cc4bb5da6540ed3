//! Tiles: a private AI assistant that lives on a flash drive. This crate is its library; `src/tiles/` is the program.
//!
//! The modules stand in dependency order: each uses only modules listed above it. `tests/it/tidy.rs` checks that.

// ── floor 0 · values: no I/O, clock, randomness, threads
pub mod hint;
mod excerpt;
pub mod time;
pub mod digest;
pub mod did;
pub mod mir;
pub mod message;
pub mod sampling;
pub mod modelfile;
pub mod transcript;
pub mod oplog;
pub mod manifest;

// ── floor 1 · the machine
pub mod disk;
pub mod verified;
pub mod hub;
pub mod host;
pub mod bundle;
pub mod identity;
pub mod store;
pub mod model_folder;
pub mod logbook;

// ── floor 2 · the engine: messages in, text out; synchronous
pub mod engine;
pub mod library;
pub mod prefix_cache;

// ── floor 3 · services
pub mod chat;
pub mod peer;
pub mod sync;

#[cfg(test)]
mod test_folder;
