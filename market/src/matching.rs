//! Which asks to try for a bid, best first.
//!
//! Deterministic: the same book, bid and request give the same ranking on every machine (integers
//! only). A seller's rank, lower is better, is
//!
//! ```text
//! log2(price) − log2(max(success, 1/32)) + (1/β)·log2(−log2(h))      h = SHA-256(rfq id ‖ seller)
//! ```
//!
//! The last term is the logarithm of a race: asks win with probability proportional to
//! `(success/price)^β`. Without it every buyer asks the same cheapest seller first, and a market
//! with many visible sellers collapses onto one.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::book::{Ask, Bid, Listing, Misfit, OrderBook};
use crate::identity::NodeId;
use crate::quote::RfqId;
use crate::time::UnixTime;
use crate::units::Price;

mod fixed_point;

use fixed_point::{ONE, log2};

/// Asks that are ranked: the cheapest that satisfy the bid. Bounds the work of a match. With β = 8
/// an ask at 1.5 times the lowest price wins 1 race in 26 against one at the lowest; 128 of them
/// spread buyers over more sellers than the 24 at which the spread was measured.
pub const MAX_CANDIDATES: usize = 128;

/// β: how sharply buyers prefer cheaper asks.
const SHARPNESS: i64 = 8;

/// How likely a seller is to deliver, as this node judges it.
///
/// The mean of a Beta distribution with the prior that a newcomer gets: one success in four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Success {
    delivered: u32,
    failed: u32,
}

impl Success {
    /// Nothing is known of the seller.
    pub const NEWCOMER: Self = Self::of(0, 0);

    /// A seller with so many leases delivered and failed.
    #[must_use]
    pub const fn of(delivered: u32, failed: u32) -> Self {
        Self { delivered, failed }
    }

    /// −log2 of the probability in 1/65536, at most 5 (1/32): a bad name is a handicap, not a ban.
    fn handicap(self) -> i64 {
        const LARGEST: i64 = 5 * ONE;
        let good = u64::from(self.delivered) + 1;
        let all = u64::from(self.delivered) + u64::from(self.failed) + 4;
        (log2(all) - log2(good)).min(LARGEST)
    }
}

/// An ask that satisfies a bid, with its rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The ask as it was when it was ranked.
    pub ask: Arc<Ask>,
    /// Lower is better; in 1/65536 of a doubling of the price.
    pub rank: i64,
}

/// The asks to try for one bid, best first, each from another seller. Never empty.
///
/// The negotiation asks the first few for a quote at once
/// ([`ASKED_PER_ROUND`](crate::negotiation::buyer::ASKED_PER_ROUND)); the others are what it falls
/// back to, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    matches: Vec<Match>,
}

impl Ranking {
    /// All of them, best first.
    #[must_use]
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// Takes the matches, best first.
    #[must_use]
    pub fn into_matches(self) -> Vec<Match> {
        self.matches
    }
}

/// No ask satisfies the bid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no matching offer")]
pub struct NoMatchError {
    /// The lowest price at which something would have matched; `None` if nothing fits at any.
    pub cheapest: Option<Price>,
    /// Asks of others there are in all.
    pub asks: usize,
}

/// Ranks the asks of `book` for `bid`.
///
/// `rfq`, random for each request, makes this buyer's choice differ from others' and this time's
/// from the last. `success` says what this node thinks of a seller.
///
/// Of one seller only its best ask is ranked, and all its slots share one draw: more offers do not
/// win more races.
///
/// # Errors
///
/// [`NoMatchError`], with what the cheapest ask that fits otherwise would cost.
pub fn rank(
    book: &OrderBook,
    bid: &Bid,
    rfq: RfqId,
    success: impl Fn(NodeId) -> Success,
    now: UnixTime,
) -> Result<Ranking, NoMatchError> {
    let mut search = Search {
        bid,
        own: book.own(),
        now,
        sellers: BTreeSet::new(),
        found: Vec::new(),
        cheapest: None,
    };
    match bid.seller {
        Some(seller) => search.run(book.listings_of(&seller)),
        None => search.run(book.listings()),
    }
    if search.found.is_empty() {
        return Err(NoMatchError {
            cheapest: search.cheapest,
            asks: book.len() - book.asks_of(&book.own()).count(),
        });
    }
    let mut matches: Vec<_> = search
        .found
        .into_iter()
        .map(|ask| {
            let price = log2(ask.terms().price.msat_per_gb());
            let rank = price + success(ask.seller()).handicap() + jitter(rfq, ask.seller());
            Match { ask, rank }
        })
        .collect();
    matches.sort_unstable_by_key(|m| (m.rank, m.ask.terms().price, m.ask.id()));
    Ok(Ranking { matches })
}

/// A walk over asks, cheapest first, that stops as soon as it can.
struct Search<'a> {
    bid: &'a Bid,
    own: NodeId,
    now: UnixTime,
    /// The sellers of what was found.
    sellers: BTreeSet<NodeId>,
    found: Vec<Arc<Ask>>,
    /// The first price at which something would have been found.
    cheapest: Option<Price>,
}

impl Search<'_> {
    fn run<'a>(&mut self, listings: impl Iterator<Item = Listing<'a>>) {
        for listing in listings {
            let is_dearer = listing.price > self.bid.max_price;
            let is_enough = self.found.len() == MAX_CANDIDATES;
            if is_enough || (is_dearer && !self.found.is_empty()) {
                return;
            }
            if listing.seller == self.own {
                continue;
            }
            match listing.check(self.bid, self.now) {
                // A seller's cheapest ask comes first, and its others cannot rank above it.
                Ok(()) if self.sellers.insert(listing.seller) => {
                    self.found.push(Arc::clone(listing.ask));
                }
                Ok(()) => {}
                Err(Misfit::Price) => {
                    self.cheapest = Some(listing.price);
                    return;
                }
                Err(_) => {}
            }
        }
    }
}

/// `(1/β)·log2(−log2(h))` with `h` uniform in (0, 1), drawn from request and seller.
fn jitter(rfq: RfqId, seller: NodeId) -> i64 {
    let digest = Sha256::new()
        .chain_update(rfq.as_bytes())
        .chain_update(seller.as_bytes())
        .finalize();
    let mut first = [0; 4];
    first.copy_from_slice(digest.get(..4).unwrap_or(&[0; 4]));
    fixed_point::gumbel(u32::from_be_bytes(first)).div_euclid(SHARPNESS)
}

#[cfg(test)]
mod tests;
