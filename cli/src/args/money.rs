//! Arguments of the commands about coins and channels.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Feerate, Money, Span, UnlockArgs, WholeSat};

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
Where they are under a passphrase it is asked for first, and the daemon need not run.

They restore coins on chain and, after its expiry, what a channel of this buyer still holds. What a
seller was paid and has not claimed, leases and credit are in the journal: keep that with
\"bitmesh backup create\", and never run two nodes on copies of it.")]
    Backup(UnlockArgs),
    /// Keep the words of this node under a passphrase: set, change, remove
    #[command(after_help = "Examples:
  bitmesh down && bitmesh wallet passphrase set && bitmesh up
  bitmesh wallet passphrase change --new-passphrase-file /run/keys/bitmesh

The daemon has to be down. Only the file with the words is sealed: without the passphrase it gives
neither coins nor name. The words on paper open everything as before. \"bitmesh up\" and \"bitmesh
daemon\" ask for the passphrase on a terminal, or read the file that BITMESH_PASSPHRASE_FILE names.")]
    Passphrase(PassphraseArgs),
}

/// Arguments of `wallet passphrase`.
#[derive(Debug, Args)]
pub struct PassphraseArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PassphraseCommand,
}

/// What to do with the passphrase.
#[derive(Debug, Subcommand)]
pub enum PassphraseCommand {
    /// Put the words under a passphrase
    #[command(after_help = "Examples:
  bitmesh wallet passphrase set
  bitmesh wallet passphrase set --passphrase-file /run/keys/bitmesh

It is asked for twice. If it is forgotten, only the words on paper bring the node back: look at them
before with \"bitmesh wallet backup\".")]
    Set {
        /// Read the passphrase from this file; `-` reads standard input
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Put the words under another passphrase
    #[command(after_help = "Examples:
  bitmesh wallet passphrase change
  bitmesh wallet passphrase change --passphrase-file old --new-passphrase-file new

The file is replaced at once: whatever happens, one of the two passphrases opens it.")]
    Change {
        /// Read the passphrase until now from this file; `-` reads standard input
        #[arg(
            long,
            env = "BITMESH_PASSPHRASE_FILE",
            value_name = "FILE",
            hide_env_values = true
        )]
        passphrase_file: Option<PathBuf>,
        /// Read the new passphrase from this file
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Keep the words under no passphrase
    #[command(after_help = "Example:
  bitmesh wallet passphrase remove")]
    Remove {
        /// Read the passphrase from this file; `-` reads standard input
        #[arg(
            long,
            env = "BITMESH_PASSPHRASE_FILE",
            value_name = "FILE",
            hide_env_values = true
        )]
        passphrase_file: Option<PathBuf>,
    },
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
    /// Open channels ahead of any lease, with one funding transaction for all
    #[command(after_help = "Examples:
  bitmesh channels open 12D3KooWAbCd 30000sat --dry-run
  bitmesh channels open 12D3KooWAbCd
  bitmesh channels open 12D3KooWAbCd 12D3KooWEfGh 12D3KooWIjKl 20000sat

The sellers are asked first, for 15 s at most. One transaction then funds the channels with those
that agreed; one that refuses or does not answer is left out, and said so. Each further channel
takes 43 vB instead of 154. The amount is what each channel holds; what is not paid comes back when
the channel is closed. Nothing is paid until a lease uses it: then its first payment makes it worth
closing, and is used up like any other.

The twelve words alone find as many of the channels as the funding has inputs, so a coin is spent
for each if there are so many; the others need their records: make a backup.")]
    Open(ChannelOpenArgs),
    /// Add to what can be paid to a seller, without closing the channel there is
    #[command(
        name = "topup",
        after_help = "Examples:
  bitmesh channels topup 12D3KooWAbCd 30000sat --dry-run
  bitmesh channels topup 12D3KooWAbCd 30000sat

A further channel with the same seller is opened and is used when the one there is is used up. A
lease that runs goes on, and pays on through it without a break. A purchase of more than one channel
may hold (payments.max_capacity_sat) does the same by itself, within what it costs."
    )]
    TopUp(ChannelTopUpArgs),
    /// Close a channel, or all that this node is paid on
    #[command(after_help = "Examples:
  bitmesh channels close 90bc --dry-run
  bitmesh channels close 90bc --feerate 2
  bitmesh channels close 90bc --force
  bitmesh channels close --all

Either side can ask. If the other is there, both sign one transaction: the seller gets what it was
paid, the buyer the rest. The seller pays the fee, out of what it gets, and chooses the rate; only
if nothing was paid does the buyer. A lease that is still paid from the channel ends.

If the other does not answer within 15 s nothing is lost. A seller then closes alone, with one
signature of the buyer that it holds already, for a third more of a fee. A buyer gets what it did
not pay when the seller closes, or all of it after the channel has expired; \"bitmesh channels\" shows
when that is.

With --all, a seller closes at once every channel that is worth it, up to 60 in one transaction, and
asks no buyer. That takes 150.75 vB a channel and 53.5 vB once; a close together takes 154 vB. So up
to 16 channels are cheaper closed one by one, if their buyers are there. Channels of which the fee
would take more than half stay open. Leases on channels that are closed end; --dry-run shows which.

A seller need not close anything. Before a channel expires its buyer is asked to close together; if
that comes to nothing it is closed in a batch with others of the same block, and more is bid until
a block takes it up.")]
    Close(ChannelCloseArgs),
    /// Carry a channel that you pay from over into a new one
    #[command(after_help = "Examples:
  bitmesh channels rollover 90bc --dry-run
  bitmesh channels rollover 90bc
  bitmesh channels rollover 12D3KooWQ3 --capacity 50000sat

One transaction pays the seller what you promised and funds the next channel with what is left. It
takes 154 vB, less than half of what closing and opening take, and the seller pays the fee, out of
what it gets. With --capacity the next channel holds less, and the rest comes back to your wallet.
It cannot hold more: that would take coins of yours.

While it is signed, for a second or so, nothing is paid; leases go on with the next channel. The
seller must be connected. If it does not answer within 15 s nothing is lost, and the channel is
used as before.

You need not do this. From three days before a channel expires this node does it by itself, every
hour until it works, as long as a lease with the seller is open or one began within a week.")]
    Rollover(ChannelRolloverArgs),
    /// Take back what a channel holds, once it has expired
    #[command(after_help = "Examples:
  bitmesh channels refund 90bc --dry-run
  bitmesh channels refund 90bc

This happens by itself, too, with the first block from the expiry on. Before that the command says
at which height it becomes possible. The seller can close the channel at any time until a block has
taken the refund up; then you get back what you did not pay.")]
    Refund(ChannelRefundArgs),
}

/// Arguments of `channels open`.
#[derive(Debug, Args)]
pub struct ChannelOpenArgs {
    /// Sellers, by peer ids or beginnings of ids that "bitmesh offers" lists, and last what each channel
    /// holds, like 30000sat [default: payments.capacity_sat of the configuration]
    #[arg(required = true, value_name = "PEER", num_args = 1..)]
    pub peers: Vec<PeerOrAmount>,
    /// Options of whoever opens channels.
    #[command(flatten)]
    pub options: OpeningArgs,
}

/// Arguments of `channels topup`.
#[derive(Debug, Args)]
pub struct ChannelTopUpArgs {
    /// The seller: a peer id, or the beginning of one
    pub peer: String,
    /// What the further channel holds, like 30000sat
    pub amount: WholeSat,
    /// Options of whoever opens channels.
    #[command(flatten)]
    pub options: OpeningArgs,
}

/// Options of whoever opens channels.
#[derive(Clone, Copy, Debug, Args)]
pub struct OpeningArgs {
    /// Leave out a seller whose first payment is above this [default: twice what this node's view of
    /// fees makes of it]
    #[arg(long, value_name = "AMOUNT")]
    pub max_first: Option<Money>,
    /// Fee rate in sat/vB [default: the present estimate for 6 blocks]
    #[arg(long, value_name = "RATE")]
    pub feerate: Option<Feerate>,
    /// Show what it would cost; ask nobody and sign nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A seller, or what a channel holds: an amount has a unit and begins with a digit, ids are base58.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerOrAmount {
    /// A peer id, or the beginning of one.
    Peer(String),
    /// What each channel holds.
    Amount(WholeSat),
}

impl std::str::FromStr for PeerOrAmount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = ["msat", "sat", "BTC", "btc"];
        let number = units.iter().find_map(|unit| text.trim().strip_suffix(unit));
        let is_number = |it: char| it.is_ascii_digit() || it == '.' || it == ' ';
        if number.is_some_and(|number| number.chars().all(is_number)) {
            return text.parse().map(Self::Amount);
        }
        match text.chars().all(|it| it.is_ascii_alphanumeric()) && !text.is_empty() {
            true => Ok(Self::Peer(text.to_owned())),
            false => Err("neither a peer id nor an amount like 30000sat".to_owned()),
        }
    }
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
    /// Do not ask the other side: what this side can do alone, at once
    #[arg(long, conflicts_with = "all")]
    pub force: bool,
    /// Show what would come of it; broadcast nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `channels rollover`.
#[derive(Debug, Args)]
pub struct ChannelRolloverArgs {
    /// Channel id, or peer id of the seller; or a beginning of either that fits no other
    #[arg(value_name = "CHANNEL|PEER")]
    pub channel: String,
    /// What the new channel is to hold [default: everything that was not paid]
    #[arg(long, value_name = "AMOUNT")]
    pub capacity: Option<WholeSat>,
    /// Fee rate in sat/vB that the seller's is held against [default: the present estimate]
    #[arg(long, value_name = "RATE")]
    pub feerate: Option<Feerate>,
    /// Show what would come of it; ask nobody
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
    /// Count only what moved within this span; what is open is as it stands now
    #[arg(long, value_name = "SPAN")]
    pub since: Option<Span>,
    /// Compare journal, leases, channels, meters, signatures and chain, and say what disagrees
    #[arg(long)]
    pub audit: bool,
    /// Print every movement of money as CSV
    #[arg(long, conflicts_with = "audit")]
    pub csv: bool,
}
