//! Journeys through a library.
