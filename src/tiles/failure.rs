//! How a command fails: an error with its causes, a hint, and the exit code that scripts rely on.

use std::error::Error;

use tilekit::hint::Hint;

/// The exit codes of `tiles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Something failed.
    Failure = 1,
    /// The command line, a Modelfile or a parameter is wrong.
    Usage = 2,
    /// No passphrase, or a wrong one.
    Locked = 3,
    /// The model is missing or can't be used.
    Model = 4,
    /// A digest, a signature or the key file is wrong.
    Integrity = 5,
    /// This machine can't run it.
    Host = 6,
    /// A defect of ours.
    Defect = 70,
    /// The person interrupted it.
    Interrupted = 130,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: Code,
    /// The error; its sources are the causes.
    pub(crate) error: Box<dyn Error + Send + Sync>,
    /// What the person can do.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Makes a failure out of a sentence of our own.
    pub(crate) fn new(code: Code, error: impl Into<Box<dyn Error + Send + Sync>>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self { code, error: error.into(), hint: (!hint.is_empty()).then_some(hint) }
    }

    /// The same failure with another exit code.
    pub(crate) fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }
}

/// An error of the library: its hint comes along, its kind gives the exit code.
///
/// `std::io::Error` has no hint, so a bare `?` on one doesn't compile in a command.
impl<E: Hint + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: code_of(&error), hint: error.hint(), error: Box::new(error) }
    }
}
