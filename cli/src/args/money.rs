//! Arguments of the commands about coins and channels.

use clap::{Args, Subcommand};

use super::{Feerate, Span, WholeSat};

/// Arguments of `wallet`.
#[derive(Debug, Args)]
pub struct WalletArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: WalletCommand,
}

/// What to do with the wallet.
#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Show what the wallet holds
    #[command(after_help = "Example:
  bitmesh wallet balance --json | jq .confirmed_sat")]
    Balance,
    /// Show a fresh address
    #[command(after_help = "Examples:
  bitmesh wallet receive
  qrencode -t ansiutf8 \"$(bitmesh wallet receive --json | jq -r .uri)\"")]
    Receive,
    /// Send coins on chain
    #[command(after_help = "Examples:
  bitmesh wallet send bc1q… 50000sat --dry-run
  bitmesh wallet send bc1q… 50000sat --feerate 2.5
  bitmesh wallet send bc1q… --all

It says what it costs and asks before it sends; --yes accepts.")]
    Send(SendArgs),
    /// List transactions of the wallet, newest first
    #[command(after_help = "Example:
  bitmesh wallet history --limit 10")]
    History {
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show the twelve words that restore this node's name and on-chain coins
    #[command(after_help = "Example:
  bitmesh wallet backup

Whoever sees the words has the coins. Write them on paper; never photograph or paste them.
To restore: bitmesh init --words-file -

They do not restore channels, leases and credit: what is in channels is lost with the journal of
the data directory (\"bitmesh config path journal\"). Keep that file; to copy it, stop the node first,
and never run two nodes on copies of it.")]
    Backup,
}

/// Arguments of `wallet send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Where to
    pub address: String,
    /// How much arrives, like 50000sat
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub amount: Option<WholeSat>,
    /// Everything that is confirmed; the fee is taken from it
    #[arg(long)]
    pub all: bool,
    /// Fee rate in sat/vB [default: the present estimate for 6 blocks]
    #[arg(long, value_name = "RATE")]
    pub feerate: Option<Feerate>,
    /// Show what it would cost; send nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `channels`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ChannelsArgs {
    /// What to do; lists if nothing is said.
    #[command(subcommand)]
    pub command: Option<ChannelsCommand>,
    /// Closed ones too
    #[arg(long, short)]
    pub all: bool,
}

/// What to do with channels.
#[derive(Debug, Subcommand)]
pub enum ChannelsCommand {
    /// List channels
    #[command(after_help = "Example:
  bitmesh channels list --all --json | jq '.channels[].capacity_sat'")]
    List {
        /// Closed ones too
        #[arg(long, short)]
        all: bool,
    },
    /// Show all there is to know of one channel, and what will happen to it at which height
    #[command(after_help = "Examples:
  bitmesh channels show 90bc
  bitmesh channels show 90bc --json | jq '.steps[0]'")]
    Show {
        /// Channel id, or a beginning of it that fits no other
        channel: String,
    },
    /// Close a channel, or all that this node is paid on
    #[command(after_help = "Examples:
  bitmesh channels close 90bc --dry-run
  bitmesh channels close 90bc --feerate 2
  bitmesh channels close --all

A seller takes what it was paid. A buyer gets what it did not pay when the seller closes, or all of
it after the channel has expired; \"bitmesh channels\" shows when that is.

With --all, a seller closes every channel that is worth it, up to 60 in one transaction, which costs
each about three quarters of what it costs alone. Channels of which that would take more than half
stay open. Leases on channels that are closed end; --dry-run shows which.

A seller need not close anything: channels that are about to expire are closed by themselves, those
of the same block together, and more is bid until a block takes them up.")]
    Close(ChannelCloseArgs),
    /// Take back what a channel holds, once it has expired
    #[command(after_help = "Examples:
  bitmesh channels refund 90bc --dry-run
  bitmesh channels refund 90bc

This happens by itself, too, with the first block from the expiry on. Before that the command says
at which height it becomes possible. The seller can close the channel at any time until a block has
taken the refund up; then you get back what you did not pay.")]
    Refund(ChannelRefundArgs),
}

/// Arguments of `channels close`.
#[derive(Debug, Args)]
pub struct ChannelCloseArgs {
    /// Channel id, or a beginning of it that fits no other
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub channel: Option<String>,
    /// Every channel that this node is paid on and that is worth it
    #[arg(long)]
    pub all: bool,
    /// Fee rate in sat/vB [default: the present estimate for 6 blocks]
    #[arg(long, value_name = "RATE")]
    pub feerate: Option<Feerate>,
    /// Show what would come of it; broadcast nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `channels refund`.
#[derive(Debug, Args)]
pub struct ChannelRefundArgs {
    /// Channel id, or a beginning of it that fits no other
    pub channel: String,
    /// Fee rate in sat/vB [default: the present estimate for 6 blocks]
    #[arg(long, value_name = "RATE")]
    pub feerate: Option<Feerate>,
    /// Show what would come of it; broadcast nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `earnings`.
#[derive(Debug, Args)]
pub struct EarningsArgs {
    /// List only leases that were opened within this span; totals and channels are of all time
    #[arg(long, value_name = "SPAN")]
    pub since: Option<Span>,
}
