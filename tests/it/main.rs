//! Integration tests.
mod gguf;
mod library;
