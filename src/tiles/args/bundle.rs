//! What can be typed after `tiles bundle`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with the bundle.
#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Show where the bundle is, what it holds and who sealed it
    Info,
    /// Verify signature, sizes and small files; with --full every byte
    #[command(before_help = "Examples:\n  tiles bundle verify\n  tiles bundle verify --full\n  \
                             tiles --bundle /media/stick/Tiles bundle verify --full --shipped")]
    Verify {
        /// Read the weights too, those of added models included, and list all that is damaged
        #[arg(long)]
        full: bool,
        /// Leave out the models that were added, for which the passphrase is needed
        #[arg(long, requires = "full")]
        shipped: bool,
        /// Begin at the beginning, not where an interrupted verification stopped
        #[arg(long, requires = "full")]
        restart: bool,
    },
    /// Replace what is damaged out of another bundle or an archive, and nothing else
    #[command(before_help = "Examples:\n  tiles bundle repair --from /media/other/Tiles --dry-run\n  \
                             tiles bundle repair --from Tiles.tar.zst")]
    Repair {
        /// The folder of an undamaged bundle, or a file that `export` made; it needn't be trusted
        #[arg(long, value_name = "PATH")]
        from: PathBuf,
        /// Leave out the models that were added, for which the passphrase is needed
        #[arg(long)]
        shipped: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a new bundle out of this one: programs, models and texts, without your data
    #[command(before_help = "Examples:\n  tiles bundle create /media/new/Tiles\n  \
                             tiles bundle create /media/old/Tiles --replace\n  \
                             tiles bundle create /media/new/Tiles --from-installed --move")]
    Create {
        /// A new or empty folder
        dest: PathBuf,
        /// Then carry identity, conversations and models of the Tiles that is installed for this user into it; where no
        /// bundle is around the program, the new one has this program alone
        #[arg(long)]
        from_installed: bool,
        /// With --from-installed: the installed one goes out of use once everything was read back there and opened
        #[arg(long = "move", requires = "from_installed", conflicts_with = "copy")]
        is_move: bool,
        /// With --from-installed: both stay in use, with the same identity, and go separate ways
        #[arg(long, requires = "from_installed")]
        copy: bool,
        #[command(flatten)]
        landing: Landing,
    },
    /// Copy this bundle with everything: programs, models, your data and the models you added
    #[command(before_help = "Example:\n  tiles bundle copy /media/new/Tiles")]
    Copy {
        /// A new or empty folder
        dest: PathBuf,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Write programs, models and texts into one .tar.zst file, without your data
    #[command(
        before_help = "Examples:\n  tiles bundle export Tiles.tar.zst\n  tiles bundle export - | ssh host 'cat > t.tar.zst'"
    )]
    Export {
        /// The file to make; `-` is standard output
        file: PathBuf,
    },
    /// Make a bundle out of a file that `export` made
    #[command(before_help = "Example:\n  tiles bundle import Tiles.tar.zst /media/new/Tiles")]
    Import {
        /// The file
        file: PathBuf,
        /// A new or empty folder
        #[arg(default_value = "Tiles")]
        dest: PathBuf,
        #[command(flatten)]
        landing: Landing,
    },
    /// Accept that the bundle was sealed by another key or is older than before
    Accept {
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Build and seal a bundle out of a source tree (for developers)
    Build {
        /// The recipe: the MANIFEST.toml of a source tree
        recipe: PathBuf,
        /// The folder to make, or a bundle to renew
        dest: PathBuf,
        /// The program for this host; or for another, with what it loads beside it
        #[arg(long, value_name = "[HOST=]FILE", required = true)]
        program: Vec<String>,
        /// A model to put in: what to call it and what `tiles model import` would take
        #[arg(long, value_name = "NAME=PATH")]
        model: Vec<String>,
        /// The key that seals it; made where it is missing
        #[arg(long, value_name = "FILE")]
        seal_key: PathBuf,
    },
}

/// What may be in the folder already.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Landing {
    /// A bundle that is there gets these programs and models; its data is left as it is
    #[arg(long)]
    pub(crate) replace: bool,
    /// With --replace: also where the bundle that is there is newer
    #[arg(long, requires = "replace")]
    pub(crate) allow_older: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
