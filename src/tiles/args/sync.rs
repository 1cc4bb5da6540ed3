//! `tiles sync …`: what can be typed after it.

use std::net::SocketAddr;

use clap::Args;

/// With whom to sync, and for how long.
#[derive(Debug, Args)]
pub(crate) struct SyncArguments {
    #[command(flatten)]
    pub(crate) with: SyncTarget,
    /// Stay, and sync again whenever there is something new, until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Which linked drive is meant, and how it is found.
#[derive(Debug, Args)]
pub(crate) struct SyncTarget {
    /// Only with this drive: its DID, the beginning of that, or its name
    #[arg(value_name = "DRIVE")]
    pub(crate) drive: Option<String>,
    /// How long to wait for drives that aren't there yet
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) wait: u64,
    /// Where that drive waits, for a network that carries no announcements: its `tiles sync` says the port
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) at: Option<SocketAddr>,
}
