//! The program `tiles`.
fn main() {}
