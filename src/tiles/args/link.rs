//! `tiles link …`: what can be typed after it.

use clap::Subcommand;

/// What to do with other drives.
#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Link another drive: show a code and wait, or come with the code or ticket that the other drive shows
    #[command(
        before_help = "Examples:\n  tiles link enable                on the one drive: shows a code, and asks before anything is linked\n  tiles \
                             link enable 4K-7QM-2XD     on the other one"
    )]
    Enable {
        /// The code or the ticket that the other drive shows
        #[arg(value_name = "CODE|TICKET")]
        target: Option<String>,
    },
    /// List the linked drives, when each was last there and when it last synced
    #[command(visible_alias = "ls")]
    ListPeers,
    /// Link a drive no more: from then on it gets nothing
    Disable {
        /// Its DID, the beginning of that, or its name
        drive: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Call a linked drive something else, on this one
    Rename {
        /// Its DID, the beginning of that, or its name
        drive: String,
        /// The new name; an empty one is what its own person calls it
        name: String,
    },
}
