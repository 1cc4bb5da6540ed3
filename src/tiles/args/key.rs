//! `tiles key …`: what can be typed after it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with the keys of this drive.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Show where the keys are kept and how both copies are; needs no passphrase
    Status,
    /// Change the passphrase
    #[command(
        before_help = "Examples:\n  tiles key passphrase\n  tiles key passphrase --no-input --passphrase-file old \
                             --new-passphrase-file new"
    )]
    Passphrase {
        #[command(flatten)]
        new: NewPassphrase,
    },
    /// Make new recovery words; the former ones open this drive no more
    Recovery {
        /// Write the words to this new file instead of showing them; `-` is standard output
        #[arg(long, value_name = "FILE")]
        recovery_file: Option<PathBuf>,
    },
    /// Set a new passphrase with the 24 recovery words
    Restore {
        /// Read the words from this file instead of asking for them; `-` is standard input
        #[arg(long, value_name = "FILE")]
        recovery_file: Option<PathBuf>,
        #[command(flatten)]
        new: NewPassphrase,
    },
    /// Write the keys in a form that other programs open
    #[command(
        before_help = "Examples:\n  tiles key export key.age\n  tiles key export --age-scrypt keys.age && age -d \
                             keys.age\n  tiles key export --recovery-identity recovery.txt && age -d -i recovery.txt key.a"
    )]
    Export(ExportArguments),
    /// Keep the keys of an installed Tiles in this Mac's Keychain too, so that the passphrase isn't asked for; or take them out
    #[command(before_help = "Examples:\n  tiles key keychain on\n  tiles key keychain off")]
    Keychain {
        /// Whether the Keychain has them
        #[arg(value_enum)]
        state: KeychainState,
    },
    /// Encrypt the database anew, with a new key
    RotateDb {
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Whether the Keychain has the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeychainState {
    /// It gets them; the passphrase is asked for once
    On,
    /// They are taken out of it
    Off,
}

/// Where a new passphrase is read from, instead of asking for it.
#[derive(Debug, Default, Args)]
pub(crate) struct NewPassphrase {
    /// Read the new passphrase from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_fd")]
    pub(crate) new_passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from the first line of this open file descriptor
    #[arg(long, value_name = "N")]
    pub(crate) new_passphrase_fd: Option<u32>,
}

/// In which form the keys are written.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct ExportArguments {
    /// A copy of the key file: the passphrase opens it in Tiles, the recovery words with stock `age`; `-` is standard output
    #[arg(value_name = "FILE", conflicts_with_all = ["age_scrypt", "recovery_identity", "raw_database_key"])]
    pub(crate) file: Option<PathBuf>,
    /// An age file that stock `age -d` opens with the passphrase alone; easier to guess than the key file itself
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recovery_identity", "raw_database_key"])]
    pub(crate) age_scrypt: Option<PathBuf>,
    /// The recovery words as the identity file that `age -d -i FILE key.a` takes; asks for the words
    #[arg(long, value_name = "FILE", conflicts_with = "raw_database_key")]
    pub(crate) recovery_identity: Option<PathBuf>,
    /// With --recovery-identity: read the words from this file instead of asking for them; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "recovery_identity")]
    pub(crate) recovery_file: Option<PathBuf>,
    /// Print the key of the database, unencrypted, for SQLCipher's shell: whoever has it reads every conversation
    #[arg(long)]
    pub(crate) raw_database_key: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}
