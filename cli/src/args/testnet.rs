//! Arguments of `testnet`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::WholeSat;

/// Arguments of `testnet`.
#[derive(Debug, Args)]
pub struct TestnetArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TestnetCommand,
}

/// What to do with a network on this machine.
#[derive(Debug, Subcommand)]
pub enum TestnetCommand {
    /// Start a network
    #[command(after_help = "Examples:
  bitmesh testnet up --nodes 5
  sudo bitmesh testnet up --nodes 5 --netns  each node in a network namespace of its own

Needs no root (except --netns) and no Docker. It runs in the background until \"bitmesh testnet
down\"; everything is in one temporary folder and goes with it, however it ends.")]
    Up(TestnetUpArgs),
    /// End a network
    #[command(after_help = "Example:
  bitmesh testnet down")]
    Down(TestnetName),
    /// Show a running network: each node's price and balance now, and whether it answers
    #[command(after_help = "Example:
  bitmesh testnet status --json | jq -r '.nodes[].name'")]
    Status(TestnetName),
    /// Buy, carry, pay, settle and check the books, all of it real, in about a minute
    #[command(after_help = "Examples:
  bitmesh testnet demo
  bitmesh testnet demo --json | tail -n 1 | jq .books_balance

Three sellers, one buyer and a bitcoind. Exits with 1 if the books do not add up to the satoshi.")]
    Demo,
    /// Run a command as one of the nodes
    #[command(after_help = "Examples:
  bitmesh testnet exec bob -- bitmesh buy 50MB
  bitmesh testnet exec bob -- bitmesh leases --json")]
    Exec(ExecArgs),
    /// Print shell lines that make this shell speak to a node
    #[command(after_help = "Example:
  eval \"$(bitmesh testnet env bob)\" && bitmesh status")]
    Env {
        /// The node
        node: String,
        /// Which network.
        #[command(flatten)]
        network: TestnetName,
    },
    /// Give a node coins, and wait until it counts them as confirmed
    #[command(after_help = "Example:
  bitmesh testnet faucet bob 500000sat")]
    Faucet(FaucetArgs),
    /// Mine blocks
    #[command(after_help = "Example:
  bitmesh testnet mine 6")]
    Mine(MineArgs),
    /// Show the log of a node
    #[command(after_help = "Examples:
  bitmesh testnet logs alice
  bitmesh testnet logs alice --follow")]
    Logs(LogsArgs),
    /// Find or fetch a bitcoind, so that the next start does not have to
    #[command(after_help = "Example:
  bitmesh testnet fetch-bitcoind

It looks at BITCOIND_EXE, the PATH and its cache, then takes a package of the distribution, then
builds Bitcoin Core from source.")]
    FetchBitcoind,
}

/// Which network.
#[derive(Clone, Debug, Args)]
pub struct TestnetName {
    /// Name of the network, where several run
    #[arg(long, default_value = bitmesh_testnet::network::DEFAULT_NAME)]
    pub name: String,
}

/// Arguments of `testnet up`.
#[derive(Debug, Args)]
pub struct TestnetUpArgs {
    /// How many nodes, 1 to 100: they sell and buy in turn, so alice sells, bob buys, carol sells
    #[arg(long, short, default_value_t = 4, value_name = "N", value_parser = size())]
    pub nodes: u32,
    /// Put each node into a network namespace of its own; needs root
    #[arg(long)]
    pub netns: bool,
    /// Stay in the foreground: Ctrl-C ends the network
    #[arg(long)]
    pub hold: bool,
    /// Be the network that another process waits for
    #[arg(long, hide = true)]
    pub background: bool,
    /// Which network.
    #[command(flatten)]
    pub network: TestnetName,
}

/// As many nodes as a network may have.
fn size() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=bitmesh_testnet::network::MOST_NODES as i64)
}

/// Arguments of `testnet exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The node
    pub node: String,
    /// Which network.
    #[command(flatten)]
    pub network: TestnetName,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `testnet faucet`.
#[derive(Debug, Args)]
pub struct FaucetArgs {
    /// The node
    pub node: String,
    /// How much
    pub amount: WholeSat,
    /// Which network.
    #[command(flatten)]
    pub network: TestnetName,
}

/// Arguments of `testnet mine`.
#[derive(Debug, Args)]
pub struct MineArgs {
    /// How many blocks
    #[arg(default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub blocks: u32,
    /// Which network.
    #[command(flatten)]
    pub network: TestnetName,
}

/// Arguments of `testnet logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The node
    pub node: String,
    /// Go on until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// Which network.
    #[command(flatten)]
    pub network: TestnetName,
}
