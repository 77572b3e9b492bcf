//! What may be typed.

mod amount;
mod groups;
mod market;
mod money;
mod node;
mod testnet;

use std::{ffi::OsString, path::PathBuf, str::FromStr};

use bitmesh_market::envelope::Network;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub use self::{
    amount::{Feerate, Money, Quantity, Span, WholeSat},
    market::{
        BuyArgs, LeaseArgs, LeaseCommand, LeasesArgs, LimitArgs, ModeArg, OffersArgs, OrderArg,
        RoleArg, SellArgs, SellCommand, SellPriceArgs, SellStartArgs, UsageArgs,
    },
    money::{
        ChannelCloseArgs, ChannelOpenArgs, ChannelRefundArgs, ChannelRolloverArgs,
        ChannelTopUpArgs, ChannelsArgs, ChannelsCommand, EarningsArgs, OpeningArgs, PassphraseArgs,
        PassphraseCommand, PeerOrAmount, SendArgs, WalletArgs, WalletCommand,
    },
    node::{
        ApiArgs, BackupArgs, BackupCommand, ConfigArgs, ConfigCommand, DaemonArgs, EventsArgs,
        HelpArgs, InitArgs, JournalArgs, JournalCommand, LogFormat, ManArgs, PathName, PeersArgs,
        PeersCommand, StatusArgs, UnlockArgs, UpArgs,
    },
    testnet::{
        ExecArgs, FaucetArgs, LogsArgs, MineArgs, TestnetArgs, TestnetCommand, TestnetName,
        TestnetUpArgs,
    },
};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "bitmesh",
    version,
    about = "Earn bitcoin by sharing your bandwidth; buy bandwidth by the byte.",
    after_help = "Examples:
  bitmesh testnet demo                       see all of it work on this machine, with play money
  bitmesh init && bitmesh up                 make a node and start it
  bitmesh sell start --price 120sat/GB       earn
  bitmesh buy 2GB --max-price 200sat/GB      go online",
    bin_name = "bitmesh",
    disable_help_flag = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// mainnet, signet, testnet4 or regtest [default: as configured, else mainnet]
    #[arg(
        long,
        global = true,
        env = "BITMESH_NETWORK",
        value_name = "NETWORK",
        hide_env_values = true
    )]
    pub network: Option<Network>,
    /// Keep everything of this node in one folder
    #[arg(
        long,
        global = true,
        env = "BITMESH_DATADIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub datadir: Option<PathBuf>,
    /// Read this configuration file
    #[arg(
        long,
        global = true,
        env = "BITMESH_CONFIG",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Speak with the daemon on this socket
    #[arg(
        long,
        global = true,
        env = "BITMESH_API",
        value_name = "SOCKET",
        hide_env_values = true
    )]
    pub api: Option<SocketArg>,
    /// Print one JSON object (one per line where a command goes on)
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but the answer
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// Fail instead of asking a question
    #[arg(long, global = true)]
    pub no_input: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Print help
    #[arg(short, long, global = true, action = clap::ArgAction::HelpShort)]
    pub help: Option<bool>,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Path of a control socket, with or without `unix:` before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketArg(pub PathBuf);

impl FromStr for SocketArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err(
                "the path of a Unix socket is meant, like unix:/run/bitmesh/bitmesh.sock".into(),
            );
        }
        Ok(Self(PathBuf::from(OsString::from(path))))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a node: identity, wallet, configuration
    #[command(after_help = "Examples:
  bitmesh init
  bitmesh init --network signet --set sell.price='\"90 sat/GB\"'
  bitmesh init --passphrase                  keep the words under a passphrase, asked for here
  bitmesh init --words-file -                restore from twelve words on standard input

The network is --network, else the one a configuration names, else mainnet; it stands in the new
configuration. The twelve words are written to words.txt in the data directory, readable by you
alone: copy them to paper. Whoever has them has the coins. Under a passphrase the file alone does not
give them; the node then needs the passphrase at each start. They restore the node's name, its coins
on chain, and what a buyer's channels still hold, after their expiry. What a seller has earned and
not claimed, and leases and credit, are in the file \"journal\" of the data directory: keep that
with \"bitmesh backup create\".")]
    Init(InitArgs),
    /// Start the daemon in the background and wait until it is ready
    #[command(after_help = "Example:
  bitmesh up && bitmesh status")]
    Up(UpArgs),
    /// Stop the daemon
    #[command(after_help = "Example:
  bitmesh down

Offers are withdrawn and open leases closed with a receipt first. Nothing is lost if the daemon is
killed instead: it goes on where it stood.")]
    Down,
    /// Run the daemon in the foreground
    #[command(after_help = "Examples:
  bitmesh daemon
  bitmesh daemon --log-format json 2>bitmesh.log
  BITMESH_PASSPHRASE_FILE=/run/keys/bitmesh bitmesh daemon

Words under a passphrase: it is read from the file that is named, else asked for on a terminal.
The log goes to stderr. SIGTERM and Ctrl-C stop it in order; killing it loses nothing.")]
    Daemon(DaemonArgs),
    /// Show how the node is doing, on one screen
    #[command(after_help = "Examples:
  bitmesh status
  bitmesh status --check && echo all is well")]
    Status(StatusArgs),
    /// Show who this node is and where it can be reached
    #[command(after_help = "Examples:
  bitmesh id
  bitmesh id --json | jq -r '.addresses[0]'")]
    Id,
    /// List connected peers, or connect to one
    #[command(after_help = "Examples:
  bitmesh peers
  bitmesh peers add /ip4/192.0.2.7/udp/6366/quic-v1/p2p/12D3KooWExample")]
    Peers(PeersArgs),
    /// Offer bandwidth, set its price and limits
    #[command(after_help = "Examples:
  bitmesh sell start --price 120sat/GB --rate 20Mbit/s
  bitmesh sell pause
  bitmesh earnings")]
    Sell(SellArgs),
    /// List what others offer
    #[command(after_help = "Examples:
  bitmesh offers
  bitmesh offers --max-price 150sat/GB --min-rate 10Mbit/s
  bitmesh offers --json | jq '.offers[].price_msat_per_gb'")]
    Offers(OffersArgs),
    /// Buy bandwidth: find the best offer, pay as it is carried, open the proxy
    #[command(after_help = "Examples:
  bitmesh buy 2GB --max-price 200sat/GB --dry-run       what would it cost?
  bitmesh buy 2GB --max-price 200sat/GB
  bitmesh buy 500sat --for 1h                           spend at most 500 sat, for at most an hour
  bitmesh buy 10GB --from 12D3KooWAbCd                  of a seller that \"bitmesh offers\" lists
  bitmesh buy 10GB --min-rate 8Mbit/s --wait 5m         wait for an offer that fits

The first lease with a seller opens a channel. On a terminal, what that costs is shown and asked
about first; --yes goes on without. The rate of a lease is \"up to\": sellers share their line evenly
among those who use it, and only what --min-rate asks for is assured.

While the lease is open, point programs at the proxy it names (SOCKS5 and HTTP):
  curl --proxy socks5h://127.0.0.1:1080 https://example.org")]
    Buy(BuyArgs),
    /// List leases, bought and sold
    #[command(after_help = "Examples:
  bitmesh leases
  bitmesh leases --all --role seller --json")]
    Leases(LeasesArgs),
    /// Show, extend or close one lease
    #[command(after_help = "Examples:
  bitmesh lease show 7f3a
  bitmesh lease extend 7f3a 1GB
  bitmesh lease close 7f3a")]
    Lease(LeaseArgs),
    /// Show what open leases have carried and cost
    #[command(after_help = "Examples:
  bitmesh usage
  bitmesh usage --watch
  bitmesh usage --watch --json | jq .billed_msat")]
    Usage(UsageArgs),
    /// Show and move the coins of this node
    #[command(after_help = "Examples:
  bitmesh wallet balance
  bitmesh wallet receive
  bitmesh wallet send bcrt1q… 50000sat --dry-run")]
    Wallet(WalletArgs),
    /// List payment channels, show one, open, top up, carry over, close or refund
    #[command(after_help = "Examples:
  bitmesh channels
  bitmesh channels show 90bc
  bitmesh channels open 12D3KooWAbCd 30000sat
  bitmesh channels close --all")]
    Channels(ChannelsArgs),
    /// Show what was earned and spent: by lease, by channel, and on chain
    #[command(after_help = "Examples:
  bitmesh earnings
  bitmesh earnings --since 7d --json | jq .selling.received_sat
  bitmesh earnings --audit
  bitmesh earnings --csv --since 365d > year.csv

--audit compares everybody who knows: the journal's records, the leases' receipts, the vouchers, the
meters, and the chain. It says which figures disagree and by how much, and exits with 1 if any do.

--csv prints the entries of the books, one movement a line: what leaves one account is in the other.
Movements of one kind within a minute are one line. The accounts are outside, coins, locked, claims,
credit, unclaimed, earned, spent, written_off, fees and lost.")]
    Earnings(EarningsArgs),
    /// Keep what the twelve words do not bring back: create, verify, restore
    #[command(after_help = "Examples:
  bitmesh backup create /mnt/usb/bitmesh-monday
  bitmesh backup verify /mnt/usb/bitmesh-monday")]
    Backup(BackupArgs),
    /// Say what damage to the journal has cost, and go on without it: check, repair
    #[command(after_help = "Examples:
  bitmesh journal check
  bitmesh journal repair")]
    Journal(JournalArgs),
    /// Show, change and check the configuration
    #[command(after_help = "Examples:
  bitmesh config get
  bitmesh config set sell.price \"90 sat/GB\"
  bitmesh config path")]
    Config(ConfigArgs),
    /// Run a whole network on this machine: real bitcoind (regtest), real nodes, play money
    #[command(after_help = "Examples:
  bitmesh testnet demo                       buy, carry, pay, settle and check the books
  bitmesh testnet up --nodes 5
  eval \"$(bitmesh testnet env bob)\" && bitmesh buy 50MB
  bitmesh testnet down")]
    Testnet(TestnetArgs),
    /// Print what happens in the node, as it happens
    #[command(after_help = "Examples:
  bitmesh events
  bitmesh events lease_opened lease_closed payment --json")]
    Events(EventsArgs),
    /// Make one call to the control API, as it stands
    #[command(after_help = "Examples:
  bitmesh api GET /v1/status
  bitmesh api POST /v1/buy '{\"bytes\":1000000,\"dry_run\":true}'
  bitmesh api GET /openapi.json              every call and every field")]
    Api(ApiArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  bitmesh completions bash > ~/.local/share/bash-completion/completions/bitmesh
  bitmesh completions fish > ~/.config/fish/completions/bitmesh.fish")]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Show the manual of a command
    #[command(after_help = "Examples:
  bitmesh man | man -l -
  bitmesh man buy | man -l -
  bitmesh man --all ./man                    write every page into a folder")]
    Man(ManArgs),
    /// Show the help of a command
    #[command(after_help = "Examples:
  bitmesh help
  bitmesh help wallet send")]
    Help(HelpArgs),
}

/// Returns the whole command line, its help in groups.
pub fn command() -> clap::Command {
    groups::apply(Cli::command())
}
