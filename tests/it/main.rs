//! Integration tests.
mod model;
mod tokenizer;
