//! An offer's place in the order book.

use std::fmt;
use std::sync::Arc;

use super::{Bid, Misfit};
use crate::identity::{KEY_BYTES, NodeId, NodeIdError};
use crate::offer::{Cell, Egress, Modes, Rails, Region, Services, Terms, Tunnels};
use crate::time::{Ttl, UnixTime};
use crate::units::{Bytes, BytesPerSecond, Price};

/// Names a place in the book: one slot of one seller. Ordered by seller, then slot.
///
/// [`Display`](fmt::Display) writes `12D3KooW…/0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId {
    seller: NodeId,
    slot: u8,
}

/// Bytes of an [`AskId`] as the key of a store or a cursor on the wire.
pub const ASK_ID_BYTES: usize = KEY_BYTES + 1;

impl AskId {
    /// Names a slot of a seller.
    #[must_use]
    pub const fn new(seller: NodeId, slot: u8) -> Self {
        Self { seller, slot }
    }

    /// Whose place it is.
    #[must_use]
    pub const fn seller(&self) -> NodeId {
        self.seller
    }

    /// Which of the seller's slots.
    #[must_use]
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    /// The key of the seller, then the slot: sorts as the id does.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ASK_ID_BYTES] {
        let mut bytes = [self.slot; ASK_ID_BYTES];
        let (seller, _) = bytes.split_at_mut(KEY_BYTES);
        seller.copy_from_slice(self.seller.as_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. The slot may be any.
    ///
    /// # Errors
    ///
    /// [`NodeIdError`] if the first 32 bytes are no node's key.
    pub fn from_bytes(bytes: &[u8; ASK_ID_BYTES]) -> Result<Self, NodeIdError> {
        let [seller @ .., slot] = bytes;
        Ok(Self::new(NodeId::from_bytes(seller)?, *slot))
    }
}

impl fmt::Display for AskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.seller, self.slot))
    }
}

/// An offer in the order book: terms, their seller, and the bytes that prove both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    id: AskId,
    seq: u64,
    expiry: UnixTime,
    terms: Terms,
    bytes: Arc<[u8]>,
}

impl Ask {
    pub(super) const fn new(
        id: AskId,
        seq: u64,
        expiry: UnixTime,
        terms: Terms,
        bytes: Arc<[u8]>,
    ) -> Self {
        Self {
            id,
            seq,
            expiry,
            terms,
            bytes,
        }
    }

    /// Its place in the book.
    #[must_use]
    pub const fn id(&self) -> AskId {
        self.id
    }

    /// Who offers.
    #[must_use]
    pub const fn seller(&self) -> NodeId {
        self.id.seller
    }

    /// The number of the statement it comes from.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// When it stops holding.
    #[must_use]
    pub const fn expiry(&self) -> UnixTime {
        self.expiry
    }

    /// Whether it still holds.
    #[must_use]
    pub fn is_live(&self, now: UnixTime) -> bool {
        now < self.expiry
    }

    /// What is offered.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The signed offer as it was received.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) const fn shared_bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }
}

/// What decides whether an ask satisfies a bid, besides its seller and price. Kept in the price
/// index, so that a search reads memory in order instead of visiting each ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    expiry: UnixTime,
    rate: BytesPerSecond,
    min_quota: Bytes,
    max_quota: Bytes,
    max_term: Ttl,
    services: Services,
    rails: Rails,
    modes: Modes,
    tunnels: Tunnels,
    egress: Egress,
    region: Option<Region>,
    cell: Option<Cell>,
}

impl Facts {
    pub(super) const fn of(ask: &Ask) -> Self {
        let terms = &ask.terms;
        Self {
            expiry: ask.expiry,
            rate: terms.rate,
            min_quota: terms.min_quota,
            max_quota: terms.max_quota,
            max_term: terms.max_term,
            services: terms.services,
            rails: terms.rails,
            modes: terms.modes,
            tunnels: terms.tunnels,
            egress: terms.egress,
            region: terms.region,
            cell: terms.cell,
        }
    }
}

/// An ask as a search meets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listing<'a> {
    pub(crate) seller: NodeId,
    pub(crate) price: Price,
    pub(super) facts: Facts,
    pub(crate) ask: &'a Arc<Ask>,
}

impl<'a> Listing<'a> {
    pub(super) fn of(ask: &'a Arc<Ask>) -> Self {
        Self {
            seller: ask.seller(),
            price: ask.terms.price,
            facts: Facts::of(ask),
            ask,
        }
    }

    /// The first reason why this ask does not satisfy `bid` at `now`, price last.
    #[inline]
    pub(crate) fn check(&self, bid: &Bid, now: UnixTime) -> Result<(), Misfit> {
        let facts = &self.facts;
        if now >= facts.expiry {
            Err(Misfit::Expired)
        } else if facts.rate < bid.min_rate {
            Err(Misfit::Rate)
        } else if !(facts.min_quota..=facts.max_quota).contains(&bid.quota) {
            Err(Misfit::Quota)
        } else if bid.term.is_some_and(|term| term > facts.max_term) {
            Err(Misfit::Term)
        } else if !facts.services.contains(bid.services) {
            Err(Misfit::Services)
        } else if !facts.rails.intersects(bid.rails) {
            Err(Misfit::Rails)
        } else if !facts.modes.intersects(bid.modes) {
            Err(Misfit::Modes)
        } else if !facts.tunnels.intersects(bid.tunnels) {
            Err(Misfit::Tunnels)
        } else if !facts.egress.contains(bid.egress) {
            Err(Misfit::Egress)
        } else if !bid.place.admits(facts.region, facts.cell) {
            Err(Misfit::Place)
        } else if !bid.admits(&self.seller) {
            Err(Misfit::Seller)
        } else if self.price > bid.max_price {
            Err(Misfit::Price)
        } else {
            Ok(())
        }
    }
}
