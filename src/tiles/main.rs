//! The program `tiles`.
#![allow(dead_code)]

mod terminal;
mod repl;

fn main() {}
