//! Integration tests.

mod launcher;
