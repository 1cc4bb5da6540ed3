//! The integration tests, in one binary: each module is one promise of the program.

mod tidy;
