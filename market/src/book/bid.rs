//! What a buyer needs, and bids that stand until an ask satisfies them.
//!
//! Bids never leave this node: a public highest price would be paid.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::Ask;
use super::ask::Listing;
use crate::identity::NodeId;
use crate::offer::{Cell, Egress, Modes, Rails, Region, Services, Tunnels};
use crate::time::{Ttl, UnixTime};
use crate::units::{Bytes, BytesPerSecond, Price};

/// Bids that may stand at once. Each is compared with every new ask.
pub const MAX_STANDING: usize = 64;

/// A buyer's need, with the highest price it pays.
///
/// Make one with [`Bid::new`] and narrow it. For [`services`](Self::services) and
/// [`egress`](Self::egress) an ask must have all that is named; of rails, modes and tunnels one in
/// common is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bid {
    /// Bytes wanted, both directions summed.
    pub quota: Bytes,
    /// Highest price that is paid.
    pub max_price: Price,
    /// Lowest rate that is of use.
    pub min_rate: BytesPerSecond,
    /// How long the lease should be able to last, if that matters.
    pub term: Option<Ttl>,
    /// What the seller must sell.
    pub services: Services,
    /// Ways this buyer can pay.
    pub rails: Rails,
    /// Modes this buyer accepts.
    pub modes: Modes,
    /// Kinds of tunnel this buyer speaks.
    pub tunnels: Tunnels,
    /// What the seller's egress must let through.
    pub egress: Egress,
    /// Where the seller must be.
    pub place: Where,
    /// The only seller to buy from, if there is one.
    pub seller: Option<NodeId>,
    /// Sellers not to buy from. The caller bounds it.
    pub banned: BTreeSet<NodeId>,
}

/// Where a seller must be, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Where {
    /// It does not matter.
    #[default]
    Anywhere,
    /// The egress is in this region.
    Region(Region),
    /// The seller is in this cell. A seller that names a coarser cell does not count.
    Cell(Cell),
}

/// Why an ask does not satisfy a bid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Misfit {
    /// The ask has expired.
    Expired,
    /// It is dearer than the bid pays.
    Price,
    /// It is too slow.
    Rate,
    /// The quota is outside what a lease may have.
    Quota,
    /// A lease cannot last that long.
    Term,
    /// The service is another.
    Services,
    /// There is no common way of paying.
    Rails,
    /// There is no common mode.
    Modes,
    /// There is no common tunnel.
    Tunnels,
    /// The egress does not let through what is needed.
    Egress,
    /// The seller is elsewhere, or does not say where.
    Place,
    /// The seller is banned, or not the one named.
    Seller,
}

impl Bid {
    /// A bid for so many bytes to the internet at no more than `max_price`, through the proxy
    /// tunnel, paid ahead on a channel, from anybody anywhere.
    #[must_use]
    pub const fn new(quota: Bytes, max_price: Price) -> Self {
        Self {
            quota,
            max_price,
            min_rate: BytesPerSecond::new(0),
            term: None,
            services: Services::EXIT,
            rails: Rails::CHANNEL,
            modes: Modes::PREPAID,
            tunnels: Tunnels::PROXY,
            egress: Egress::NONE,
            place: Where::Anywhere,
            seller: None,
            banned: BTreeSet::new(),
        }
    }

    /// Whether `ask` satisfies this bid at `now`.
    ///
    /// # Errors
    ///
    /// The first reason why not; price comes last, so [`Misfit::Price`] means that a higher price
    /// would do.
    pub fn check(&self, ask: &Arc<Ask>, now: UnixTime) -> Result<(), Misfit> {
        Listing::of(ask).check(self, now)
    }

    /// Whether this bid may be satisfied by `seller`.
    pub(super) fn admits(&self, seller: &NodeId) -> bool {
        self.seller.is_none_or(|sought| sought == *seller) && !self.banned.contains(seller)
    }
}

impl Where {
    pub(super) fn admits(self, region: Option<Region>, cell: Option<Cell>) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Region(wanted) => region == Some(wanted),
            Self::Cell(wanted) => cell.is_some_and(|cell| wanted.contains(&cell)),
        }
    }
}

/// Names a standing bid, for as long as this node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BidId(u64);

impl fmt::Display for BidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bid {}", self.0)
    }
}

/// As many bids stand as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{MAX_STANDING} bids stand already")]
pub struct TooManyBidsError;

/// Bids waiting for an ask.
#[derive(Clone, Debug, Default)]
pub(super) struct StandingBids {
    bids: BTreeMap<BidId, (Bid, UnixTime)>,
    next: u64,
}

impl StandingBids {
    pub(super) fn place(&mut self, bid: Bid, until: UnixTime) -> Result<BidId, TooManyBidsError> {
        if self.bids.len() >= MAX_STANDING {
            return Err(TooManyBidsError);
        }
        let id = BidId(self.next);
        self.next += 1;
        self.bids.insert(id, (bid, until));
        Ok(id)
    }

    pub(super) fn cancel(&mut self, id: BidId) -> Option<Bid> {
        self.bids.remove(&id).map(|(bid, _)| bid)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (BidId, &Bid, UnixTime)> {
        self.bids
            .iter()
            .map(|(id, (bid, until))| (*id, bid, *until))
    }

    pub(super) fn woken_by(&self, ask: &Arc<Ask>, now: UnixTime) -> Vec<BidId> {
        self.iter()
            .filter(|(_, bid, until)| now < *until && bid.check(ask, now).is_ok())
            .map(|(id, ..)| id)
            .collect()
    }

    pub(super) fn expire(&mut self, now: UnixTime) {
        self.bids.retain(|_, (_, until)| now < *until);
    }

    pub(super) fn next_expiry(&self) -> Option<UnixTime> {
        self.bids.values().map(|(_, until)| *until).min()
    }
}
