<<<<<<< HEAD
//! The integration tests, in one binary: each module is one promise of the program.

mod goldens;
mod model;
mod scripted;
mod tidy;
mod tokenizer;
=======
//! Integration tests.
<<<<<<< HEAD

mod launcher;
>>>>>>> bundle
=======
mod gguf;
>>>>>>> library
