//! Arguments of the commands about selling and buying.

use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use bitmesh_node::control::api;
use clap::{Args, Subcommand, ValueEnum};

use super::{Money, Quantity, Span};

/// Arguments of `sell`.
#[derive(Debug, Args)]
pub struct SellArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SellCommand,
}

/// What to do about selling.
#[derive(Debug, Subcommand)]
pub enum SellCommand {
    /// Begin offering
    #[command(after_help = "Examples:
  bitmesh sell start
  bitmesh sell start --price 120sat/GB --rate 20Mbit/s --leases 8

Selling goes on after a restart. Traffic of your buyers leaves from your address: the egress policy
keeps them off your own network, mail ports and other private places.")]
    Start(SellStartArgs),
    /// Withdraw the offer and close the leases that are being served
    #[command(after_help = "Example:
  bitmesh sell stop

To let the present buyers finish first: bitmesh sell pause")]
    Stop,
    /// Withdraw the offer and serve the present leases to their end
    #[command(after_help = "Example:
  bitmesh sell pause")]
    Pause,
    /// Show or set the price
    #[command(after_help = "Examples:
  bitmesh sell price                         show it
  bitmesh sell price 120sat/GB               set it

Leases keep the price they were made at.")]
    Price(SellPriceArgs),
    /// Show or set how much may be sold
    #[command(after_help = "Examples:
  bitmesh sell limits                        show them
  bitmesh sell limits --rate 20Mbit/s --leases 8")]
    Limits(LimitArgs),
}

/// Arguments of `sell start`.
#[derive(Debug, Args)]
pub struct SellStartArgs {
    /// Price, like 120sat/GB [default: as configured]
    #[arg(long, value_name = "PRICE")]
    pub price: Option<Price>,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Arguments of `sell price`.
#[derive(Debug, Args)]
pub struct SellPriceArgs {
    /// Price, like 120sat/GB [default: show it]
    #[arg(value_name = "PRICE")]
    pub price: Option<Price>,
}

/// Limits on what is sold.
#[derive(Debug, Default, Args)]
pub struct LimitArgs {
    /// Rate of all buyers together, both directions summed
    #[arg(long, value_name = "RATE")]
    pub rate: Option<BytesPerSecond>,
    /// Rate of one lease, both directions summed
    #[arg(long, value_name = "RATE")]
    pub lease_rate: Option<BytesPerSecond>,
    /// How many leases are served at once
    #[arg(long, value_name = "N")]
    pub leases: Option<u32>,
    /// Largest quota of one lease
    #[arg(long, value_name = "SIZE")]
    pub lease_size: Option<Bytes>,
    /// Whether buyers may pay after the bytes, within one window of credit
    #[arg(long, value_name = "BOOL")]
    pub postpaid: Option<bool>,
}

impl From<&LimitArgs> for api::SellLimits {
    fn from(args: &LimitArgs) -> Self {
        Self {
            rate_bytes_per_s: args.rate.map(BytesPerSecond::get),
            lease_rate_bytes_per_s: args.lease_rate.map(BytesPerSecond::get),
            leases: args.leases,
            lease_bytes: args.lease_size.map(Bytes::get),
            postpaid: args.postpaid,
        }
    }
}

/// When to pay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Ahead of the bytes, one window at a time
    #[default]
    Prepaid,
    /// After the bytes, within the credit that the seller gives
    Postpaid,
}

impl From<ModeArg> for api::Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Prepaid => Self::Prepaid,
            ModeArg::Postpaid => Self::Postpaid,
        }
    }
}

/// Order of offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OrderArg {
    /// Cheapest first
    #[default]
    Price,
    /// Fastest first
    Rate,
    /// Most recently seen first
    Seen,
}

impl From<OrderArg> for api::OfferOrder {
    fn from(order: OrderArg) -> Self {
        match order {
            OrderArg::Price => Self::Price,
            OrderArg::Rate => Self::Rate,
            OrderArg::Seen => Self::Seen,
        }
    }
}

/// Arguments of `offers`.
#[derive(Debug, Args)]
pub struct OffersArgs {
    /// At most this price
    #[arg(long, value_name = "PRICE")]
    pub max_price: Option<Price>,
    /// At least this rate
    #[arg(long, value_name = "RATE")]
    pub min_rate: Option<BytesPerSecond>,
    /// Leases of at least this size
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Bytes>,
    /// Takes this way of paying
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<ModeArg>,
    /// In this region
    #[arg(long)]
    pub region: Option<String>,
    /// From this seller: a peer id or the beginning of one
    #[arg(long, value_name = "PEER")]
    pub from: Option<String>,
    /// Order
    #[arg(long, value_enum, default_value_t, value_name = "ORDER")]
    pub sort: OrderArg,
    /// At most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

/// Arguments of `buy`.
#[derive(Debug, Args)]
pub struct BuyArgs {
    /// A size like 2GB, or money like 500sat
    #[arg(required_unless_present = "budget")]
    pub quantity: Option<Quantity>,
    /// Pay at most this for a GB [default: buy.max_price of the configuration]
    #[arg(long, value_name = "PRICE")]
    pub max_price: Option<Price>,
    /// Spend at most this on traffic; on-chain fees come on top
    #[arg(long, value_name = "AMOUNT")]
    pub budget: Option<Money>,
    /// Take no quote whose first payment, due where a channel is opened, is above this [default:
    /// what was shown and agreed to, or twice what this node's view of fees makes of it]
    #[arg(long, value_name = "AMOUNT")]
    pub max_first: Option<Money>,
    /// Close the lease after this long
    #[arg(long = "for", value_name = "SPAN")]
    pub term: Option<Span>,
    /// Have at least this rate assured, however many share the seller's line; without it a lease's
    /// rate is "up to"
    #[arg(long, value_name = "RATE")]
    pub min_rate: Option<BytesPerSecond>,
    /// When to pay
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub mode: ModeArg,
    /// Only sellers in this region
    #[arg(long)]
    pub region: Option<String>,
    /// Only this seller: a peer id, or the beginning of one that "bitmesh offers" lists
    #[arg(long, value_name = "PEER")]
    pub from: Option<String>,
    /// Show what it would cost; commit to nothing
    #[arg(long)]
    pub dry_run: bool,
    /// If no offer fits, wait this long for one
    #[arg(long, value_name = "SPAN")]
    pub wait: Option<Span>,
}

/// Arguments of `leases`.
#[derive(Debug, Args)]
pub struct LeasesArgs {
    /// Closed ones too
    #[arg(long, short)]
    pub all: bool,
    /// Only those where this node is the buyer, or the seller
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
}

/// Which side of a lease this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// This node pays
    Buyer,
    /// This node carries
    Seller,
}

impl From<RoleArg> for api::Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Buyer => Self::Buyer,
            RoleArg::Seller => Self::Seller,
        }
    }
}

/// Arguments of `lease`.
#[derive(Debug, Args)]
pub struct LeaseArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: LeaseCommand,
}

/// What to do with one lease.
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Show everything about a lease
    #[command(after_help = "Example:
  bitmesh lease show 7f3a")]
    Show {
        /// Lease id, or a beginning of it that fits no other
        lease: String,
    },
    /// Add quota to a bought lease, at the price it has
    #[command(after_help = "Example:
  bitmesh lease extend 7f3a 1GB

A lease that is paused because its quota is used up goes on without loss.")]
    Extend {
        /// Lease id, or a beginning of it that fits no other
        lease: String,
        /// How much to add
        size: Bytes,
    },
    /// Close a lease with a final receipt
    #[command(after_help = "Example:
  bitmesh lease close 7f3a

What was paid and not used stays as credit with the seller for the next lease.")]
    Close {
        /// Lease id, or a beginning of it that fits no other
        lease: String,
    },
}

/// Arguments of `usage`.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Only this lease
    pub lease: Option<String>,
    /// Go on until Ctrl-C, or until the lease is closed
    #[arg(long, short)]
    pub watch: bool,
}
