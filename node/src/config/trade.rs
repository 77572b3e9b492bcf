//! `[sell]` and `[buy]`: what this node trades, and on which terms.

use std::net::SocketAddr;

use bitmesh_market::offer::{Cell, MAX_PRICE, MAX_QUOTA, MAX_RATE, MAX_TERM, MIN_TERM, Region};
use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use serde::{Deserialize, Serialize};

use super::{ConfigError, text};

/// Smallest rate worth a lease: below it a page takes minutes and every timer misfires.
const MIN_RATE: u64 = 8 * 1024;

/// What is wrong with a cell.
const NO_CELL: &str =
    "a cell is the beginning of a geohash, one to six characters, for example u33d";

/// What this node sells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sell {
    /// Whether the node offers bandwidth when it starts.
    pub enabled: bool,
    /// The price, for example `"120 sat/GB"`.
    #[serde(with = "text")]
    pub price: Price,
    /// Rate of one lease, both directions together, for example `"20 Mbit/s"`.
    #[serde(with = "text")]
    pub rate: BytesPerSecond,
    /// Rate of all leases together. Shared fairly among them.
    #[serde(with = "text")]
    pub total_rate: BytesPerSecond,
    /// Leases served at once.
    pub max_leases: u16,
    /// Most bytes one lease may carry, for example `"100 GB"`.
    #[serde(with = "text")]
    pub max_quota: Bytes,
    /// Longest term of one lease, in seconds.
    pub max_term_s: u64,
    /// Whether buyers may pay after use, up to the credit window of the lease.
    pub postpaid: bool,
    /// Geohash cell of the seller, one to six characters; coarse on purpose. Empty means: not said.
    pub cell: String,
    /// Region in which traffic leaves, for example `EU`. Empty means: not said.
    pub region: String,
}

/// How this node buys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Buy {
    /// Loopback address of the SOCKS5 and HTTP CONNECT proxy. If its port is taken, a free one is.
    pub proxy: SocketAddr,
    /// Highest price paid when the command line names none, for example `"1000 sat/GB"`.
    #[serde(with = "text")]
    pub max_price: Price,
    /// Geohash cell to look in. Empty means: anywhere.
    pub cell: String,
}

impl Default for Sell {
    fn default() -> Self {
        Self {
            enabled: false,
            // 120 sat/GB: the market's starting price where no neighbour has asked yet.
            price: Price::from_msat_per_gb(120_000),
            rate: BytesPerSecond::new(2_500_000),
            total_rate: BytesPerSecond::new(12_500_000),
            max_leases: 8,
            max_quota: Bytes::new(100_000_000_000),
            max_term_s: 24 * 3_600,
            postpaid: true,
            cell: String::new(),
            region: String::new(),
        }
    }
}

impl Default for Buy {
    fn default() -> Self {
        Self {
            proxy: SocketAddr::from(([127, 0, 0, 1], 1080)),
            max_price: Price::from_msat_per_gb(1_000_000),
            cell: String::new(),
        }
    }
}

impl Sell {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason: String| Err(ConfigError::Value { key, reason });
        if self.rate.get() < MIN_RATE {
            return refuse(
                "sell.rate",
                format!("{} is below {MIN_RATE} bytes/s", self.rate.get()),
            );
        }
        if self.total_rate < self.rate {
            return refuse(
                "sell.total_rate",
                "is below sell.rate, the rate of one lease".to_owned(),
            );
        }
        if self.total_rate > MAX_RATE {
            return refuse(
                "sell.total_rate",
                format!("no line carries more than {} bytes/s", MAX_RATE.get()),
            );
        }
        if self.price > MAX_PRICE {
            return refuse(
                "sell.price",
                format!("nobody looks at a price above {MAX_PRICE}"),
            );
        }
        if self.max_quota.is_zero() || self.max_quota > MAX_QUOTA {
            return refuse(
                "sell.max_quota",
                format!("a lease carries something, and at most {MAX_QUOTA}"),
            );
        }
        let terms = u64::from(MIN_TERM.secs())..=u64::from(MAX_TERM.secs());
        if !terms.contains(&self.max_term_s) {
            return refuse(
                "sell.max_term_s",
                format!("a lease lasts from {} to {} s", terms.start(), terms.end()),
            );
        }
        if self.max_leases == 0 {
            return refuse(
                "sell.max_leases",
                "a seller serves at least one lease".to_owned(),
            );
        }
        if !self.cell.is_empty() && self.cell.parse::<Cell>().is_err() {
            return refuse("sell.cell", NO_CELL.to_owned());
        }
        if !self.region.is_empty() && self.region.parse::<Region>().is_err() {
            return refuse(
                "sell.region",
                "a region has two capital letters, for example DE or EU".to_owned(),
            );
        }
        Ok(())
    }
}

impl Buy {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !self.proxy.ip().is_loopback() {
            return Err(ConfigError::Value {
                key: "buy.proxy",
                reason: format!(
                    "{} is not a loopback address: anyone there could spend this node's money",
                    self.proxy
                ),
            });
        }
        if !self.cell.is_empty() && self.cell.parse::<Cell>().is_err() {
            return Err(ConfigError::Value {
                key: "buy.cell",
                reason: NO_CELL.to_owned(),
            });
        }
        Ok(())
    }
}
