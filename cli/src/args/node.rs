//! Arguments of the commands about the node itself.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Restore name and on-chain coins from the twelve words in this file; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub words_file: Option<PathBuf>,
    /// Keep the words under a passphrase, which is asked for twice
    #[arg(long, conflicts_with = "passphrase_file")]
    pub passphrase: bool,
    /// Keep the words under the passphrase in this file; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Block from which a restored wallet looks for its coins [default: the first]
    #[arg(long, value_name = "HEIGHT", requires = "words_file")]
    pub birth_height: Option<u32>,
    /// Write this setting into the new configuration; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// Where the passphrase of the words is found.
#[derive(Debug, Args)]
pub struct UnlockArgs {
    /// Read the passphrase of the words from this file; `-` reads standard input
    #[arg(
        long,
        global = true,
        env = "BITMESH_PASSPHRASE_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub passphrase_file: Option<PathBuf>,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// How the words of this node are opened.
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: BackupCommand,
}

/// What to do with backups.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Write journal and configuration into one sealed file
    #[command(after_help = "Examples:
  bitmesh backup create /mnt/usb/bitmesh-monday
  bitmesh backup create ~/bitmesh.backup --json | jq .open_channels

The daemon may run. The file opens with the twelve words of this node and nothing else, and does not
hold them. It is as good as it is new: make one after each new channel, or each day.")]
    Create {
        /// New file; one that exists is not overwritten
        file: PathBuf,
    },
    /// Check that a backup is whole and opens, and say what it holds
    #[command(after_help = "Examples:
  bitmesh backup verify /mnt/usb/bitmesh-monday
  bitmesh backup verify /mnt/usb/bitmesh-monday --words-file -

Nothing is written.")]
    Verify {
        /// The backup
        file: PathBuf,
        /// The twelve words of the node that made it [default: those of this node]; `-` reads standard input
        #[arg(long, value_name = "FILE")]
        words_file: Option<PathBuf>,
    },
    /// Make a node out of a backup and its twelve words
    #[command(after_help = "Example:
  bitmesh backup restore /mnt/usb/bitmesh-monday --words-file - && bitmesh up

Never run a restored node beside the one that made the backup. Nothing is overwritten: the data
directory must have no journal. A buyer loses nothing by an old backup: channels opened since are
found on the chain, and a seller shows the last voucher that it holds. A seller loses what buyers
paid since and do not say again when they meet, and channels that were opened since.")]
    Restore {
        /// The backup
        file: PathBuf,
        /// The twelve words of the node that made it [default: those in the data directory]; `-` reads standard input
        #[arg(long, value_name = "FILE")]
        words_file: Option<PathBuf>,
    },
}

/// Arguments of `journal`.
#[derive(Debug, Args)]
pub struct JournalArgs {
    /// How the words of this node are opened.
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: JournalCommand,
}

/// What to do with the journal.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum JournalCommand {
    /// Say whether the journal is damaged, what is missing, and what that means
    #[command(after_help = "Examples:
  bitmesh journal check
  bitmesh journal check --json | jq .missing

Nothing is written, and the daemon may run. It exits with 1 if the journal is damaged. Records are
tried as the node does at its start, with the keys of its words.")]
    Check,
    /// Go on with what can be read of a damaged journal
    #[command(after_help = "Examples:
  bitmesh journal repair && bitmesh up
  bitmesh journal repair --yes --json | jq -r .kept_at

A node does not start on a journal that is damaged in its middle, and never repairs it by itself.
This keeps the damaged file as it is under another name beside it, and writes one of every record
that can be used. It shows what is missing and asks first. The daemon has to be down.

A copy of the journal that is as new as the damaged one is better: put that in its place instead. An
older one is not, unless an agreement with a buyer is lost that it still has.

What is lost costs little where the other side is honest: each channel goes by running totals that
both know, so a buyer says its last voucher again and a seller shows the last one it holds. An old
total never pays or claims more. Key indexes that may have been used are passed over, channels that
may have been funded are not funded again, and the chain is read anew for both.")]
    Repair,
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// How long to wait for the daemon to be ready
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    pub wait: super::Span,
    /// How the words of this node are opened.
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

/// Arguments of `daemon`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Form of the log
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        env = "BITMESH_LOG_FORMAT",
        hide_env_values = true
    )]
    pub log_format: LogFormat,
    /// What to log: a level, or a list like `info,bitmesh_node::mesh=debug`
    #[arg(
        long,
        value_name = "FILTER",
        env = "BITMESH_LOG",
        hide_env_values = true
    )]
    pub log: Option<String>,
    /// How the words of this node are opened.
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// Leave the terminal that started it
    #[arg(long, hide = true)]
    pub background: bool,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Exit with 10 if something is wrong
    #[arg(long)]
    pub check: bool,
    /// Show it again every second, until Ctrl-C
    #[arg(long, short, conflicts_with = "check")]
    pub watch: bool,
}

/// Arguments of `peers`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// What to do; lists if nothing is said.
    #[command(subcommand)]
    pub command: Option<PeersCommand>,
}

/// What to do with peers.
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// List connected peers
    #[command(after_help = "Example:
  bitmesh peers list --json | jq '.peers | length'")]
    List,
    /// Connect to a peer
    #[command(after_help = "Example:
  bitmesh peers add /ip4/192.0.2.7/udp/6366/quic-v1/p2p/12D3KooWExample

\"bitmesh id\" on the other node prints its addresses.")]
    Add {
        /// Multiaddr with the peer's id at its end
        address: String,
    },
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show settings and where each comes from
    #[command(after_help = "Examples:
  bitmesh config get
  bitmesh config get sell
  bitmesh config get sell.price")]
    Get {
        /// A setting or a section [default: all]
        key: Option<String>,
    },
    /// Change a setting in the configuration file
    #[command(after_help = "Examples:
  bitmesh config set sell.price \"90 sat/GB\"
  bitmesh config set sell.max_leases 4

A running daemon takes the change at once where it can; the answer says if it needs a restart.
Comments in the file stay.")]
    Set {
        /// Dotted name
        key: String,
        /// New value; text needs no quotes of its own
        value: String,
    },
    /// Check the configuration file
    #[command(after_help = "Example:
  bitmesh config check && bitmesh down && bitmesh up")]
    Check,
    /// Show where things are
    #[command(after_help = "Examples:
  bitmesh config path
  bitmesh config path socket
  bitmesh config path --json")]
    Path {
        /// Only this one
        #[arg(value_enum)]
        name: Option<PathName>,
    },
}

/// One of the places where a node keeps things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PathName {
    /// The configuration file
    Config,
    /// The data directory
    Datadir,
    /// The control socket
    Socket,
    /// The log of a daemon in the background
    Log,
    /// The twelve words
    Words,
    /// The journal: what a seller was paid, leases and credit, which the words do not restore
    Journal,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only events of these types [default: all]
    #[arg(value_name = "TYPE")]
    pub types: Vec<String>,
}

/// Arguments of `api`.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// GET, POST or PUT
    pub method: String,
    /// Path, with its query
    pub path: String,
    /// Body, JSON
    pub body: Option<String>,
}

/// Arguments of `help`.
#[derive(Debug, Args)]
pub struct HelpArgs {
    /// The command, as it is typed: `wallet send` [default: bitmesh itself]
    pub command: Vec<String>,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command, as it is typed: `wallet send` [default: bitmesh itself]
    #[arg(conflicts_with = "all")]
    pub command: Vec<String>,
    /// Write every page into this folder
    #[arg(long, value_name = "DIR")]
    pub all: Option<PathBuf>,
}
