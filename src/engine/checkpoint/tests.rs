//! Damaged checkpoints and the errors they get.
