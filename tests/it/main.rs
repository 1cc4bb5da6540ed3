//! The integration tests, in one binary: each module is one promise of the program.

mod adapter;
mod commands;
mod corpora;
mod damage;
mod drive;
mod every_command;
mod faults;
mod gguf;
mod goldens;
mod launcher;
mod library;
mod mirror;
mod model;
mod modelfile;
mod moved;
mod powercut;
mod pty;
mod pull;
mod screen;
mod schema;
mod scripted;
mod stick;
mod tidy;
mod tokenizer;
mod untouched;
