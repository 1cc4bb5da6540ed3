//! Messages in, text out.

pub mod gguf;
