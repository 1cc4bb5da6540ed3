//! The models of a bundle.
