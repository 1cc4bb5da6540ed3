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
    /// The network is needed, and nobody allowed it.
    Network = 7,
    /// Another drive said no.
    Peer = 8,
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
    /// The error's type, for the log.
    pub(crate) kind: &'static str,
    /// The error; its sources are the causes.
    pub(crate) error: Box<dyn Error + Send + Sync>,
    /// What the person can do.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Makes a failure out of a sentence of our own.
    pub(crate) fn new(code: Code, error: impl Into<Box<dyn Error + Send + Sync>>, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self { code, kind: "Failure", error: error.into(), hint: (!hint.is_empty()).then_some(hint) }
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
        let kind = std::any::type_name::<E>().rsplit("::").next().unwrap_or("Failure");
        Self { code: code_of(&error), kind, hint: error.hint(), error: Box::new(error) }
    }
}

/// The exit code of an error, by its kind; wrappers are looked through.
fn code_of(error: &(dyn Error + 'static)) -> Code {
    use tilekit::bundle::build::BuildError;
    use tilekit::bundle::moving::MoveError;
    use tilekit::bundle::remembered::SealChanged;
    use tilekit::bundle::repair::RepairError;
    use tilekit::bundle::{BundleError, PreferenceError};
    use tilekit::chat::ChatError;
    use tilekit::engine::EngineError;
    use tilekit::engine::checkpoint::CheckpointError;
    use tilekit::engine::grammar::GrammarError;
    use tilekit::engine::models::ForwardError;
    use tilekit::engine::template::TemplateError;
    use tilekit::engine::tokenizer::TokenizerError;
    use tilekit::hub::HubError;
    use tilekit::identity::KeyError;
    use tilekit::library::{AddedError, LibraryError};
    use tilekit::peer::PeerError;
    use tilekit::store::StoreError;
    use tilekit::sync::SyncError;
    use tilekit::verified::IntegrityError;

    if let Some(error) = error.downcast_ref::<ChatError>() {
        return match error {
            ChatError::Engine(error) => code_of(error),
            ChatError::Store(error) => code_of(error),
            ChatError::Nothing => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return match error {
            EngineError::Load(error) => code_of(&**error),
            EngineError::Checkpoint(error) => code_of(error),
            EngineError::Forward(ForwardError::Backend(_)) => Code::Host,
            EngineError::TooLong { .. } | EngineError::Grammar(GrammarError::Unusable { .. }) => Code::Usage,
            EngineError::Tokenizer(
                TokenizerError::Read(error) | TokenizerError::Config(TemplateError::Read(error)),
            )
            | EngineError::Template(TemplateError::Read(error)) => code_of(error),
            EngineError::Tokenizer(_)
            | EngineError::Template(_)
            | EngineError::EmptyPrompt
            | EngineError::NotHarmony => Code::Model,
            // Only a defect ends the engine's thread while somebody waits for it.
            EngineError::Stopped => Code::Defect,
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<CheckpointError>() {
        return match error {
            CheckpointError::Integrity(error) => code_of(error),
            CheckpointError::Cancelled => Code::Interrupted,
            CheckpointError::Device { .. } => Code::Host,
            _ => Code::Model,
        };
    }
    if let Some(error) = error.downcast_ref::<KeyError>() {
        return match error {
            KeyError::WrongPassphrase
            | KeyError::WrongWords
            | KeyError::NoRecovery
            | KeyError::Missing { .. }
            | KeyError::Words(_)
            | KeyError::EmptyPassphrase
            | KeyError::LongPassphrase
            | KeyError::PassphraseNotText
            | KeyError::Keychain { .. } => Code::Locked,
            KeyError::Damaged { .. } | KeyError::RefusedWork { .. } => Code::Integrity,
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<BundleError>() {
        return match error {
            BundleError::Manifest { .. }
            | BundleError::ForeignSeal { .. }
            | BundleError::LostMarker { .. }
            | BundleError::Missing { .. }
            | BundleError::Unlisted { .. }
            | BundleError::WrongKind { .. }
            | BundleError::Damaged { .. } => Code::Integrity,
            BundleError::Integrity(error) => code_of(error),
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<MoveError>() {
        return match error {
            MoveError::Archive { .. }
            | MoveError::NotKept { .. }
            | MoveError::OtherSeal { .. }
            | MoveError::Older { .. } => Code::Integrity,
            MoveError::Bundle(error) => code_of(error),
            MoveError::Integrity(error) => code_of(error),
            MoveError::Data(error) => code_of(&**error),
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<BuildError>() {
        return match error {
            BuildError::OtherSeal { .. } => Code::Integrity,
            BuildError::Bundle(error) => code_of(error),
            BuildError::ReadBack(error) => code_of(error),
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<RepairError>() {
        return match error {
            RepairError::NoDonor { .. } | RepairError::Itself => Code::Usage,
            RepairError::ListLost { .. } => Code::Integrity,
            RepairError::Archive(error) => code_of(error),
            RepairError::Bundle(error) => code_of(error),
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<PeerError>() {
        return match error {
            PeerError::Refused(_) => Code::Peer,
            PeerError::Code | PeerError::Ticket { .. } | PeerError::Relay { .. } | PeerError::NotLinked { .. } => {
                Code::Usage
            }
            PeerError::Ambiguous { .. } => Code::Usage,
            PeerError::Interrupted => Code::Interrupted,
            PeerError::List => Code::Integrity,
            PeerError::Store(error) => code_of(error),
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<SyncError>() {
        return match error {
            SyncError::NotLinked | SyncError::Declined => Code::Peer,
            SyncError::Interrupted => Code::Interrupted,
            SyncError::Store(error) => code_of(error),
            SyncError::Peer(error) => code_of(error),
            _ => Code::Failure,
        };
    }
    if error.is::<SealChanged>() {
        return Code::Integrity;
    }
    if let Some(error) = error.downcast_ref::<LibraryError>() {
        return match error {
            LibraryError::NotFound { .. } | LibraryError::Unlisted { .. } => Code::Model,
            LibraryError::Hub(error) => code_of(error),
            LibraryError::Pulled { .. } => Code::Integrity,
            LibraryError::Locked => Code::Locked,
            LibraryError::Added(
                AddedError::Forged { .. } | AddedError::Unreadable { .. } | AddedError::NotKept { .. },
            ) => Code::Integrity,
            LibraryError::Integrity(error) => code_of(error),
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return match error {
            StoreError::Mark(error) => code_of(&**error),
            StoreError::Interrupted => Code::Interrupted,
            error if error.is_integrity() => Code::Integrity,
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<IntegrityError>() {
        return if matches!(error, IntegrityError::Disk(_)) { Code::Failure } else { Code::Integrity };
    }
    if let Some(error) = error.downcast_ref::<HubError>() {
        return match error {
            HubError::Endpoint { .. } | HubError::Name { .. } => Code::Usage,
            HubError::NotFound { .. } | HubError::Refused { .. } => Code::Model,
            _ => Code::Failure,
        };
    }
    if let Some(error) = error.downcast_ref::<PreferenceError>() {
        return match error {
            PreferenceError::Unknown { .. } | PreferenceError::Value { .. } => Code::Usage,
            _ => Code::Failure,
        };
    }
    if error.is::<tilekit::host::HostError>() || error.is::<tilekit::engine::backend::BackendError>() {
        return Code::Host;
    }
    if error.is::<tilekit::mir::ResolveMirError>() {
        return Code::Model;
    }
    if error.is::<tilekit::mir::ParseMirError>()
        || error.is::<tilekit::modelfile::Diagnostics>()
        || error.is::<tilekit::sampling::ParameterError>()
    {
        return Code::Usage;
    }
    if error.is::<crate::terminal::TerminalError>() {
        return Code::Usage;
    }
    Code::Failure
}
