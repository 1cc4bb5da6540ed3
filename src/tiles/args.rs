//! What a person can type after `tiles`: the commands and their flags, as clap reads them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod bundle;
pub(crate) mod data;
pub(crate) mod key;
pub(crate) mod link;
pub(crate) mod sync;

use crate::changes::Changes;
pub(crate) use bundle::{BundleCommand, Landing};
use data::{DataCommand, DoctorArguments};
use key::KeyCommand;
use link::LinkCommand;
use sync::{SyncArguments, SyncTarget};

/// A private AI assistant that lives on a flash drive.
///
/// Without a command: asks for the passphrase and opens a conversation. The first time, it sets the drive up.
#[derive(Debug, Parser)]
#[command(
    name = "tiles",
    version,
    propagate_version = true,
    before_help = "Examples:\n  tiles                                     talk\n  tiles -p \"What is the capital of France?\"  \
                   one answer\n  cat notes.txt | tiles -p \"Summarise this.\"\n  tiles session search paris\n  tiles doctor",
    subcommand_negates_reqs = true,
    disable_help_subcommand = false
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(flatten)]
    pub(crate) run: RunArguments,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags that every command takes, before or after its name.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global flags")]
pub(crate) struct Global {
    /// Use the bundle in this folder instead of the one around the program
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,
    /// Set Tiles up on this computer, for this user; only where no bundle is around the program
    #[arg(long, global = true, conflicts_with = "bundle")]
    pub(crate) installed: bool,
    /// Print one JSON value on standard output, and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say only what was asked for, and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more about what is being done
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Never ask: fail and name the flag that answers
    #[arg(long, global = true)]
    pub(crate) no_input: bool,
    /// When to use colour
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorChoice,
    /// Read the passphrase from the first line of this file
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "passphrase_fd")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Read the passphrase from the first line of this open file descriptor
    #[arg(long, global = true, value_name = "N")]
    pub(crate) passphrase_fd: Option<u32>,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal that has it, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Talk to a model, or ask it one thing
    #[command(before_help = "Examples:\n  tiles run\n  tiles run -p \"Why is the sky blue?\" --set temperature=0\n  \
                             tiles run ./Modelfile -p -  < question.txt")]
    Run {
        /// A model's name, or the path of a Modelfile
        model: Option<String>,
        #[command(flatten)]
        arguments: RunArguments,
    },
    /// Show or set up the identity of this drive
    #[command(before_help = "Examples:\n  tiles account\n  tiles account create Ada\n  tiles account set-nickname Ada")]
    Account {
        #[command(subcommand)]
        command: Option<AccountCommand>,
    },
    /// Show and change the keys of this drive: passphrase, recovery words, database key
    #[command(before_help = "Examples:\n  tiles key status\n  tiles key passphrase\n  tiles key restore")]
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// List, show, add and remove models
    #[command(before_help = "Examples:\n  tiles model list\n  tiles model import ~/Downloads/model.gguf --name mine")]
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Check, format and explain Modelfiles
    #[command(before_help = "Examples:\n  tiles modelfile check Modelfile\n  tiles modelfile explain Modelfile")]
    Modelfile {
        #[command(subcommand)]
        command: ModelfileCommand,
    },
    /// List, search, rename, delete and export conversations
    #[command(before_help = "Examples:\n  tiles session list\n  tiles session export 3f2a --format md > talk.md")]
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Show, verify and repair the bundle; make another one, copy it, and move it as one file
    #[command(
        before_help = "Examples:\n  tiles bundle verify --full\n  tiles bundle repair --from /media/other/Tiles\n  \
                             tiles bundle copy /media/new/Tiles\n  tiles bundle export Tiles.tar.zst"
    )]
    Bundle {
        #[command(subcommand)]
        command: BundleCommand,
    },
    /// Check this drive and this machine
    #[command(
        visible_alias = "health",
        before_help = "Examples:\n  tiles doctor\n  tiles doctor --offline\n  tiles doctor --traces\n  tiles doctor --clean --dry-run"
    )]
    Doctor(DoctorArguments),
    /// Say where your data is and what it holds; back it up, recover it
    #[command(
        before_help = "Examples:\n  tiles data\n  tiles data backup\n  tiles data backup /media/other/tiles-backup.db\n  tiles data recover --dry-run"
    )]
    Data {
        #[command(subcommand)]
        command: Option<DataCommand>,
    },
    /// Link other drives of yours, list them, and link them no more; it uses the local network
    #[command(before_help = "Examples:\n  tiles link enable\n  tiles link enable 4K-7QM-2XD\n  tiles link list-peers")]
    Link {
        #[command(subcommand)]
        command: LinkCommand,
    },
    /// Exchange sessions with linked drives that are in the same network, until all have the same
    #[command(
        before_help = "Examples:\n  tiles sync            on both machines at once\n  tiles sync laptop     only with that \
                       drive\n  tiles sync --watch    until Ctrl-C"
    )]
    Sync(SyncArguments),
    /// Say what is stored where, and what the operating system itself records
    #[command(before_help = "Example:\n  tiles privacy")]
    Privacy,
    /// Show the settings in force and where each came from; change those of the bundle
    #[command(
        before_help = "Examples:\n  tiles config show\n  tiles config set model smollm2\n  tiles config unset model"
    )]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script for a shell
    #[command(before_help = "Example:\n  source <(tiles completions bash)")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// What to run and how.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct RunArguments {
    /// A model's name, or the path of a Modelfile; only `tiles run` takes it, so that no mistyped command becomes one.
    #[arg(skip)]
    pub(crate) model: Option<String>,
    /// What was changed since.
    #[arg(skip)]
    pub(crate) changes: Box<Changes>,
    /// Go on with what was changed before `/lock`
    #[arg(long, hide = true)]
    pub(crate) after_lock: bool,
    /// Ask this, print the answer and end; `-` reads it from standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Set a PARAMETER of the Modelfile, such as `temperature=0`
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// The seed of the random choice of tokens
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// The system message, instead of the Modelfile's
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Which engine computes
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) engine: EngineChoice,
    /// Answer with JSON of the schema in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) schema: Option<PathBuf>,
    /// Keep nothing of this conversation
    #[arg(long)]
    pub(crate) no_save: bool,
    /// Go on with this session: its id, or the beginning of it
    #[arg(long, value_name = "ID", conflicts_with = "no_save")]
    pub(crate) session: Option<String>,
    /// Print statistics after each answer
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) onboarding: OnboardingArguments,
}

/// Answers to the questions of the first run.
#[derive(Clone, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "First run")]
pub(crate) struct OnboardingArguments {
    /// First run: what to call you
    #[arg(long, value_name = "NAME")]
    pub(crate) nickname: Option<String>,
    /// First run: make no recovery words; a forgotten passphrase then means that everything is lost
    #[arg(long)]
    pub(crate) no_recovery: bool,
    /// First run: write the recovery words to this new file instead of showing them; `-` is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "no_recovery")]
    pub(crate) recovery_file: Option<PathBuf>,
}

/// Which engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineChoice {
    /// The fastest one here
    #[default]
    Auto,
    /// Our own, on the processor
    Cpu,
    /// MLX, on Apple's GPUs
    Mlx,
}

/// What to do with the identity.
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Set this drive up: make its identity and key file
    Create {
        /// What to call you
        #[arg(id = "name", value_name = "NICKNAME")]
        nickname: Option<String>,
        #[command(flatten)]
        onboarding: OnboardingArguments,
    },
    /// Change what to call you
    SetNickname {
        /// The new name
        nickname: String,
    },
}

/// What to do with models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List the models on this drive
    #[command(visible_alias = "ls")]
    List {
        /// List models that can be pulled by a short name instead, and whether they fit here
        #[arg(long)]
        available: bool,
        /// List what linked drives give now with `tiles model send` instead, over the local network
        #[arg(long, conflicts_with = "available")]
        peers: bool,
        /// How long to look for them
        #[arg(long, value_name = "SECONDS", requires = "peers", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        wait: u64,
    },
    /// Show one model: where it comes from, its size, licence and files
    Show {
        /// Its name
        name: String,
    },
    /// Add a model: an MLX or Hugging Face folder, a .gguf, .safetensors, .tar or .tar.zst file
    Import {
        /// What to import
        path: PathBuf,
        /// What to call it; made from the file's name if not given
        #[arg(long)]
        name: Option<String>,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Fetch a model from the Hugging Face Hub: the one command that reaches beyond the local network, and only with --allow-network
    Pull(PullArguments),
    /// Give a model to a linked drive that runs `tiles model receive`, over the local network
    #[command(before_help = "Example:\n  tiles model send smollm2 laptop")]
    Send {
        /// Its name
        name: String,
        #[command(flatten)]
        with: SyncTarget,
    },
    /// Take the model that a linked drive gives with `tiles model send`
    #[command(before_help = "Example:\n  tiles model receive")]
    Receive {
        #[command(flatten)]
        with: SyncTarget,
        /// What to call it here; what it is called there if not given
        #[arg(long)]
        name: Option<String>,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Read a model, or all of them, in full and compare every byte with its digest
    Verify {
        /// Its name; all models if not given
        name: Option<String>,
    },
    /// Remove a model that was added
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name
        name: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Write a model into one .tar or .tar.zst file that `import` reads
    Export {
        /// Its name
        name: String,
        /// The file to make
        file: PathBuf,
    },
}

/// What to fetch and from where.
#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// The repository, as its page on the Hub is called: ORG/NAME; or a name of `tiles model list --available`
    pub(crate) repo: String,
    /// Let this command, and only this one, open connections
    #[arg(long)]
    pub(crate) allow_network: bool,
    /// The branch, tag or commit [default: main, or what an unfinished pull has begun]
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// What to call it; made from the repository's name if not given
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// List files and bytes, and fetch none of them
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Another server that speaks the Hub's API
    #[arg(long, value_name = "URL", default_value = tilekit::hub::HUB_ENDPOINT)]
    pub(crate) endpoint: String,
}

/// What to do with Modelfiles.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelfileCommand {
    /// List everything that is wrong in a Modelfile
    Check {
        /// The Modelfile; `-` is standard input
        file: PathBuf,
    },
    /// Print a Modelfile in its canonical form
    Fmt {
        /// The Modelfile; `-` is standard input
        file: PathBuf,
        /// Write it back instead of printing it
        #[arg(long)]
        write: bool,
    },
    /// Show every value in force and where it comes from
    Explain {
        /// The Modelfile; `-` is standard input
        file: PathBuf,
    },
}

/// What to do with conversations.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List the sessions, the latest first
    #[command(visible_alias = "ls")]
    List,
    /// Print a session
    Show {
        /// Its id or the beginning of it, or its title
        id: String,
    },
    /// Find messages that contain these words
    Search {
        /// The words
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Give a session another title
    Rename {
        /// Its id or the beginning of it, or its title
        id: String,
        /// The new title
        title: String,
    },
    /// Delete a session and all its messages
    #[command(visible_alias = "rm")]
    Delete {
        /// Its id or the beginning of it, or its title
        id: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print one session, or all of them, for other programs
    Export {
        /// Its id or the beginning of it, or its title; all sessions if not given
        id: Option<String>,
        /// As what
        #[arg(long, value_enum, default_value = "md")]
        format: ExportFormat,
    },
    /// Add the sessions of a file that `export --format json` made
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// The form of exported sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Markdown
    Md,
    /// JSON, which `import` reads
    Json,
}

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// List the settings in force and where each came from
    Show,
    /// Set one for this bundle: `model` or `color`
    Set {
        /// Its name
        name: String,
        /// Its value
        value: String,
    },
    /// Take one back
    Unset {
        /// Its name
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_sound() {
        super::Arguments::command().debug_assert();
    }
}
