//! What a person can type after `tiles data` and `tiles doctor`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with the person's own data.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Print where it is
    Path,
    /// Move what an installed Tiles keeps to another folder of the computer; a drive's data stays on the drive
    #[command(before_help = "Example:\n  tiles data set-path /home/ada/big-disk/tiles")]
    SetPath {
        /// The new folder: one that is empty, or isn't there yet
        path: PathBuf,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Carry identity, conversations and models from another Tiles into this one, which has no identity yet
    ///
    /// From a drive onto this computer, or from an installed Tiles onto this drive. Everything is read back and opened
    /// before it counts; an identity that is here already is never overwritten.
    #[command(
        before_help = "Examples:\n  tiles --installed data adopt /media/stick/Tiles --move   # the drive goes out of use\n  \
                             tiles --installed data adopt /media/stick/Tiles --copy   # both go on, separately\n  \
                             /media/stick/Tiles/tiles data adopt ~/.local/share/tiles --move"
    )]
    Adopt {
        /// The folder of the other Tiles: a bundle, or where one is installed
        from: PathBuf,
        #[command(flatten)]
        carry: Carry,
    },
    /// Back the database up now, encrypted: into the bundle, or into a file of your own
    Backup {
        /// A new file, such as one on another drive; into `data/backup` if not given
        file: Option<PathBuf>,
        /// Remove all older backups in `data/backup`: they still hold what was deleted since
        #[arg(long, conflicts_with = "file")]
        replace: bool,
    },
    /// Save what a damaged or lost database still gives, with the newest good backup for the rest
    Recover {
        /// Take the content of this backup alone
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Don't ask before a sound database is replaced
        #[arg(long)]
        yes: bool,
    },
    /// Go on with a database that is older than this drive, from another copy of it, or begins anew
    Accept {
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
}

/// What becomes of the Tiles that something is carried from.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Carry {
    /// The other one goes out of use once everything was read back here and opened: its data is set aside, not removed
    #[arg(long = "move", conflicts_with = "copy")]
    pub(crate) is_move: bool,
    /// Both stay in use, with the same identity: what is said on one from then on isn't on the other
    #[arg(long)]
    pub(crate) copy: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What the doctor shall do beside looking.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DoctorArguments {
    /// Recover a damaged database, as `tiles data recover` does
    #[arg(long, conflicts_with_all = ["clean", "offline", "traces"])]
    pub(crate) recover: bool,
    /// Remove what cut commands left: partial files, unfinished pulls and imports
    #[arg(long, conflicts_with_all = ["offline", "traces"])]
    pub(crate) clean: bool,
    /// With --clean: say what would be removed, and remove nothing; with --recover likewise
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --clean: don't ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Prove that a program without any network answers
    #[arg(long)]
    pub(crate) offline: bool,
    /// Compare the home and temporary folders before and after an answer, and list what this system records
    #[arg(long)]
    pub(crate) traces: bool,
}
