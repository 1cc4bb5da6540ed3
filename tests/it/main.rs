//! The integration tests, in one binary: each module is one promise of the program.

mod adapter;
mod commands;
mod corpora;
mod damage;
mod drive;
mod durability;
mod gguf;
mod goldens;
mod keys;
mod launcher;
mod library;
mod memory;
mod mirror;
mod model;
mod modelfile;
mod moved;
mod moving;
mod pty;
mod pull;
mod rot;
mod screen;
mod schema;
mod scripted;
mod tidy;
mod tokenizer;
mod untouched;
