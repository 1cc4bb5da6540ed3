//! The duty of every error that a person can see: to say what they can do about it.

/// An error that can reach a person.
///
/// The binary prints the error, its causes, and below them the hint. A hint is one imperative sentence without a
/// period, such as ``run `tiles bundle repair --from PATH` with an undamaged copy``.
pub trait Hint: std::error::Error {
    /// Says what the person can do, or `None` where there is nothing they could do.
    fn hint(&self) -> Option<String>;
}
