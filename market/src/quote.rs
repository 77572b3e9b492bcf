//! A firm price: what a buyer asks for and what one seller answers, binding for seconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::envelope::Content;
use crate::id::byte_id;
use crate::identity::NodeId;
use crate::offer::{Egress, MAX_PRICE, MAX_QUOTA, MAX_RATE, Modes, Rails, Tunnels};
use crate::time::UnixTime;
use crate::units::{Bytes, BytesPerSecond, Msat, Price};
use crate::wire::{self, WireError, cbor_map};

byte_id! {
    /// Names one request for quotes: random, made by the buyer, the same for all sellers it asks.
    pub struct RfqId([u8; 16]);
}

byte_id! {
    /// Names one quote: random, made by the seller. A quote becomes at most one lease.
    pub struct QuoteId([u8; 16]);
}

/// How long a quote stays firm. Long enough for two round trips over a relay and a slow choice; short
/// enough that a slot held for it is soon free.
pub const QUOTE_TTL: Duration = Duration::from_secs(10);

/// The smallest window: what is at stake on the slowest line. A smaller one would stop a line of
/// 20 Mbit/s at every round trip of 100 ms.
pub const MIN_WINDOW: Bytes = Bytes::new(256 * 1024);

/// The window of a line: one second of its rate, and at least [`MIN_WINDOW`]. It is what either side
/// has at stake.
#[must_use]
pub fn window_for(rate: BytesPerSecond) -> Bytes {
    rate.over(Duration::from_secs(1)).max(MIN_WINDOW)
}

/// Who goes first, the money or the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The buyer pays up to a window ahead.
    Prepaid,
    /// The seller delivers up to a window ahead.
    Postpaid,
}

impl Mode {
    /// This mode as a set of one, to look for in an offer's.
    #[must_use]
    pub const fn as_set(self) -> Modes {
        match self {
            Self::Prepaid => Modes::PREPAID,
            Self::Postpaid => Modes::POSTPAID,
        }
    }
}

cbor_map! {
    /// A request for a quote. It says what is needed and never what the buyer would pay.
    ///
    /// Not signed: it travels on a connection whose other end is known, and binds nobody.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub open struct Rfq {
        /// Names the request.
        1 => pub id: RfqId,
        /// Bytes wanted, both directions summed.
        2 => pub quota: Bytes,
        /// The rate wanted. A quote is never above it, since the rate decides what is at stake.
        3 => pub rate: BytesPerSecond,
        /// The lowest rate that is of use.
        4 => pub min_rate: BytesPerSecond,
        /// Who is to go first.
        5 => pub mode: Mode,
        /// When the lease would end. A quote may end it sooner.
        6 => pub until: UnixTime,
        /// Ways the buyer can pay; the quote picks one.
        7 => pub rails: Rails,
        /// Ways the bytes can travel; the quote picks one.
        8 => pub tunnels: Tunnels,
    }
}

impl Rfq {
    /// Longest request that is looked at.
    pub const MAX_BYTES: usize = 256;

    /// Encodes for the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads a request as it was received.
    ///
    /// # Errors
    ///
    /// Returns [`WireError`] if the bytes are too long or not exactly one request. Whether it makes
    /// sense is the negotiation's question.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(bytes, Self::MAX_BYTES)
    }
}

cbor_map! {
    /// A seller's firm price to one buyer. Signed, it binds the seller until it expires or capacity
    /// that was not held for it is gone; see [`negotiation::seller`](crate::negotiation::seller).
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub open struct Quote {
        /// Names the quote.
        1 => pub id: QuoteId,
        /// The request it answers.
        2 => pub rfq: RfqId,
        /// For whom. Nobody else can take it.
        3 => pub buyer: NodeId,
        /// Per GB, both directions summed.
        4 => pub price: Price,
        /// The most that is carried in a second, both directions summed: enforced, and what decides
        /// how much is at stake. Others may share the line; see `assured`.
        5 => pub rate: BytesPerSecond,
        /// The most the lease may carry, extensions included.
        6 => pub max_quota: Bytes,
        /// What is at stake: [`window_for`] the rate.
        7 => pub window: Bytes,
        /// Who may go first.
        8 => pub modes: Modes,
        /// The first payment is at least this much (on top of `carried`): what makes a new channel
        /// worth closing. Credit, not a fee. Zero where a channel is open.
        9 => pub min_first: Msat,
        /// What the seller still owes the buyer from earlier sessions; counts as paid in this one.
        10 => pub carried: Msat,
        /// The latest moment the lease may end.
        11 => pub until: UnixTime,
        /// When this quote stops being firm.
        12 => pub expires: UnixTime,
        /// How it is paid: a set of one.
        13 => pub rail: Rails,
        /// How the bytes travel: a set of one.
        14 => pub tunnel: Tunnels,
        /// What the seller's egress lets through.
        15 => pub egress: Egress,
        /// What is there for this lease however many others share the seller's line: the lowest rate
        /// that the buyer had use for.
        16 => pub assured: BytesPerSecond,
    }
}

impl Content for Quote {
    const KIND: &'static str = "quote";
    const MAX_BYTES: usize = 512;
}

/// What makes a quote meaningless, whoever signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuoteError {
    /// The window is not the one that belongs to the rate.
    #[error("a window of {} bytes does not belong to {} bytes/s", window.get(), rate.get())]
    Window {
        /// As quoted.
        window: Bytes,
        /// As quoted.
        rate: BytesPerSecond,
    },
    /// The quota is zero or above [`MAX_QUOTA`].
    #[error("a quota of {} bytes is out of range", .0.get())]
    Quota(Bytes),
    /// The rate is zero or above [`MAX_RATE`].
    #[error("a rate of {} bytes/s is out of range", .0.get())]
    Rate(BytesPerSecond),
    /// More is assured than is ever carried.
    #[error("{} bytes/s are assured of at most {}", assured.get(), rate.get())]
    Assured {
        /// As quoted.
        assured: BytesPerSecond,
        /// As quoted.
        rate: BytesPerSecond,
    },
    /// The price is above [`MAX_PRICE`].
    #[error("a price of {} msat/GB is out of range", .0.msat_per_gb())]
    Price(Price),
    /// The first payment or the carried credit is more than all bitcoin.
    #[error("more money than there is")]
    Money,
    /// There is not exactly one way to pay, or one way to travel.
    #[error("not exactly one rail and one tunnel")]
    Choice,
    /// The quote is firm for longer than the lease could run.
    #[error("the quote outlives its lease")]
    Term,
}

/// All bitcoin there will ever be, in millisatoshi. No honest sum is above it.
const ALL_MONEY: Msat = Msat::from_msat(21_000_000 * 100_000_000 * 1_000);

impl Quote {
    /// Checks that the fields make sense together. Signed or not, a quote that fails is not acted upon.
    ///
    /// # Errors
    ///
    /// Returns the first [`QuoteError`] found.
    pub fn check(&self) -> Result<(), QuoteError> {
        if self.rate == BytesPerSecond::default() || self.rate > MAX_RATE {
            return Err(QuoteError::Rate(self.rate));
        }
        if self.assured > self.rate {
            return Err(QuoteError::Assured {
                assured: self.assured,
                rate: self.rate,
            });
        }
        if self.window != window_for(self.rate) {
            return Err(QuoteError::Window {
                window: self.window,
                rate: self.rate,
            });
        }
        if self.max_quota.is_zero() || self.max_quota > MAX_QUOTA {
            return Err(QuoteError::Quota(self.max_quota));
        }
        // With the bound on the quota: no cost of this lease comes near the end of the range.
        if self.price > MAX_PRICE {
            return Err(QuoteError::Price(self.price));
        }
        if self.min_first > ALL_MONEY || self.carried > ALL_MONEY {
            return Err(QuoteError::Money);
        }
        if self.rail.bits().count_ones() != 1 || self.tunnel.bits().count_ones() != 1 {
            return Err(QuoteError::Choice);
        }
        if self.expires > self.until {
            return Err(QuoteError::Term);
        }
        Ok(())
    }

    /// What the buyer would pay anew for `quota` bytes: the cost less the credit it already has, and
    /// at least the first payment if anything must be paid at all. What quotes are compared by.
    ///
    /// `None` if the cost is more money than can be written down.
    #[must_use]
    pub fn effective_cost(&self, quota: Bytes) -> Option<Msat> {
        let fresh = self.price.cost_of(quota)?.saturating_sub(self.carried);
        Some(if fresh.is_zero() {
            fresh
        } else {
            fresh.max(self.min_first)
        })
    }
}
