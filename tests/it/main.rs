//! The integration tests, in one binary: each module is one promise of the program.

mod model;
mod modelfile;
mod scripted;
mod tidy;
mod tokenizer;
