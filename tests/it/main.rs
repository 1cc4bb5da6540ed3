//! Integration tests.
mod gguf;
