//! The integration tests, in one binary: each module is one promise of the program.

mod gguf;
mod goldens;
mod launcher;
mod model;
mod modelfile;
mod scripted;
mod tidy;
mod tokenizer;
