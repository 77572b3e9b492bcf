//! What a seller says in public: its terms, signed, good for minutes.
//!
//! An offer is restated every few minutes and gossiped. `(seller, slot)` names it and `seq`
//! replaces it: of two offers in one slot the higher `seq` holds. An offer **without terms**
//! withdraws what the slot held; it is replaced, expires and travels like any other.

use std::time::Duration;

use thiserror::Error;

use crate::envelope::{Content, EnvelopeError, Network, Signed};
use crate::identity::{NodeId, Signer};
use crate::time::{Ttl, UnixTime};
use crate::units::{Bytes, BytesPerSecond, Price};
use crate::wire::cbor_map;

mod flags;
mod place;
pub mod verify;

pub use flags::{Egress, Modes, Rails, Services, Tunnels};
pub use place::{
    Address, BadAddressError, BadCellError, BadRegionError, Cell, MAX_ADDRESS_BYTES,
    MAX_CELL_CHARS, Region,
};
pub use verify::{Verdict, VerifiedOffer, VerifyError};

/// Longest offer on the wire, envelope included. The largest offer of this version takes 431; the
/// rest is room for fields of later versions. 500 sellers at 400 B every 5 minutes over 8 mesh
/// links are 43 kbit/s.
pub const MAX_OFFER_BYTES: usize = 512;

/// Longest life of an offer. Refreshed every 5 minutes, it survives two lost refreshes.
pub const MAX_TTL: Ttl = Ttl::from_secs(15 * 60);

/// Shortest life of an offer: less would expire on its way through the mesh.
pub const MIN_TTL: Ttl = Ttl::from_secs(30);

/// How far in the future an offer may be dated: clocks of honest nodes differ by less.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Offers one seller may have at once, in slots `0..SLOTS`: one per kind of service, with room.
pub const SLOTS: u8 = 4;

/// Highest price that is believed: 1 BTC per GB. Keeps costs of any quota within 64 bits of msat.
pub const MAX_PRICE: Price = Price::from_msat_per_gb(100_000_000_000);

/// Lowest rate worth a tunnel: 64 kbit/s.
pub const MIN_RATE: BytesPerSecond = BytesPerSecond::new(8_000);

/// Highest rate that is believed: 1 Tbit/s.
pub const MAX_RATE: BytesPerSecond = BytesPerSecond::new(125_000_000_000);

/// Largest quota of one lease: 100 TB, at [`MAX_PRICE`] still 10^16 msat.
pub const MAX_QUOTA: Bytes = Bytes::new(100_000_000_000_000);

/// Shortest longest lease: a minute.
pub const MIN_TERM: Ttl = Ttl::from_secs(60);

/// Longest lease: a day. A buyer who wants more renews.
pub const MAX_TERM: Ttl = Ttl::from_secs(24 * 60 * 60);

/// Addresses an offer may name.
pub const MAX_ADDRESSES: usize = 3;

/// Highest value of [`Terms::free`].
pub const MAX_FREE: u8 = 15;

cbor_map! {
    /// A public statement about one slot of a seller: terms, or that there are none.
    ///
    /// Who states it is not a field: it is the signer of the envelope.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub open struct Offer {
        /// Which of the seller's offers this is, below [`SLOTS`].
        1 => pub slot: u8,
        /// Replaces every offer in the slot with a lower number.
        2 => pub seq: u64,
        /// When it was stated.
        3 => pub issued: UnixTime,
        /// How long it holds from then on; [`MIN_TTL`] to [`MAX_TTL`].
        4 => pub ttl: Ttl,
        ;
        /// What is offered; `None` withdraws.
        5 => pub terms: Terms,
    }
}

cbor_map! {
    /// Price and limits that a seller offers.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub open struct Terms {
        /// Price per GB carried, both directions summed.
        1 => pub price: Price,
        /// Rate a lease gets at most, both directions summed.
        2 => pub rate: BytesPerSecond,
        /// Smallest quota a lease may have.
        3 => pub min_quota: Bytes,
        /// Largest quota a lease may have.
        4 => pub max_quota: Bytes,
        /// Longest a lease may last.
        5 => pub max_term: Ttl,
        /// What is sold.
        6 => pub services: Services,
        /// Ways of paying that are taken.
        7 => pub rails: Rails,
        /// Whether payment comes before or after carrying.
        8 => pub modes: Modes,
        /// Kinds of tunnel that are spoken.
        9 => pub tunnels: Tunnels,
        /// What the egress lets through, in short; the quote has the whole policy.
        10 => pub egress: Egress,
        /// Share of capacity that is free, in fifteenths, up to [`MAX_FREE`]. A hint for people: ranking
        /// does not read it, a firm quote tells.
        11 => pub free: u8,
        ;
        /// Country of the egress.
        24 => pub region: Region,
        /// Where the seller is, as coarse as it likes.
        25 => pub cell: Cell,
        /// Where the seller can be dialled; absent rather than empty.
        26 => pub addresses: Vec<Address>,
    }
}

impl Content for Offer {
    const KIND: &'static str = "offer";
    const MAX_BYTES: usize = MAX_OFFER_BYTES;
}

/// A field of an offer that no honest seller sends. Whoever passes it on is at fault too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{field} is out of bounds")]
pub struct LimitError {
    /// The field.
    pub field: &'static str,
}

impl Offer {
    /// When it stops holding. Saturates, so that it is defined for any bytes a peer sends.
    #[must_use]
    pub const fn expiry(&self) -> UnixTime {
        self.issued.saturating_add(self.ttl.as_duration())
    }

    /// Checks everything that does not depend on the time. A seller calls this on what its
    /// operator configured; [`verify`] does on what peers send.
    ///
    /// # Errors
    ///
    /// The first field that is out of bounds.
    pub fn check_limits(&self) -> Result<(), LimitError> {
        require("slot", self.slot < SLOTS)?;
        require("ttl", (MIN_TTL..=MAX_TTL).contains(&self.ttl))?;
        match &self.terms {
            Some(terms) => terms.check_limits(),
            None => Ok(()),
        }
    }
}

impl Terms {
    /// Checks every field against the bounds named in this module. The bounds belong to the version
    /// of the offer: nodes that disagree about them would punish each other.
    ///
    /// # Errors
    ///
    /// The first field that is out of bounds.
    pub fn check_limits(&self) -> Result<(), LimitError> {
        require("price", self.price <= MAX_PRICE)?;
        require("rate", (MIN_RATE..=MAX_RATE).contains(&self.rate))?;
        require("min_quota", self.min_quota <= self.max_quota)?;
        require(
            "max_quota",
            (Bytes::new(1)..=MAX_QUOTA).contains(&self.max_quota),
        )?;
        require("max_term", (MIN_TERM..=MAX_TERM).contains(&self.max_term))?;
        require("services", !self.services.is_empty())?;
        require("rails", !self.rails.is_empty())?;
        require("modes", !self.modes.is_empty())?;
        require("tunnels", !self.tunnels.is_empty())?;
        require("free", self.free <= MAX_FREE)?;
        let addresses = self.addresses.as_deref();
        require(
            "addresses",
            addresses.is_none_or(|some| (1..=MAX_ADDRESSES).contains(&some.len())),
        )
    }
}

fn require(field: &'static str, holds: bool) -> Result<(), LimitError> {
    if holds {
        Ok(())
    } else {
        Err(LimitError { field })
    }
}

#[cfg(test)]
pub(crate) mod tests;
