//! Which asks to try for a bid, best first.
//!
//! Deterministic: the same book, bid and seed give the same ranking on every machine (integers
//! only). A seller's rank, lower is better, is
//!
//! ```text
//! log2(price) − log2(max(success, 1/32)) + (1/β)·log2(−log2(h))      h = SHA-256(seed ‖ seller)
//! ```
//!
//! The last term is the logarithm of a race: asks win with probability proportional to
//! `(success/price)^β`. Without it every buyer asks the same cheapest seller first, and a market
//! with many visible sellers collapses onto one.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::book::{Ask, Bid, Misfit, OrderBook};
use crate::identity::NodeId;
use crate::time::UnixTime;
use crate::units::Price;

mod fixed_point;

use fixed_point::{ONE, log2};

/// Sellers asked for a firm quote at once. In simulation fewer lose 7 to 33 points of efficiency,
/// more gain less than 1.
pub const ASKED_AT_ONCE: usize = 3;

/// Asks that are ranked: the cheapest that satisfy the bid. Bounds the work of a match. With β = 8
/// an ask at 1.5 times the lowest price wins 1 race in 26 against one at the lowest; 128 of them
/// spread buyers over more sellers than the 24 at which the spread was measured.
pub const MAX_CANDIDATES: usize = 128;

/// β: how sharply buyers prefer cheaper asks.
const SHARPNESS: i64 = 8;

/// How likely a seller is to deliver, as this node judges it.
///
/// The mean of a Beta distribution with the prior that a newcomer gets: one success in four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// The ones to ask first, at most [`ASKED_AT_ONCE`].
    #[must_use]
    pub fn best(&self) -> &[Match] {
        let asked = self.matches.len().min(ASKED_AT_ONCE);
        self.matches.get(..asked).unwrap_or_default()
    }

    /// The ones to ask when those before them have refused, in order.
    #[must_use]
    pub fn fallbacks(&self) -> &[Match] {
        self.matches.get(ASKED_AT_ONCE..).unwrap_or_default()
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
    /// Asks that were looked at: all there are.
    pub asks: usize,
}

/// Ranks the asks of `book` for `bid`.
///
/// `seed` makes this buyer's choice differ from others' and this time's from the last: 16 random
/// bytes, the id of the request. `success` says what this node thinks of a seller.
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
    seed: &[u8; 16],
    success: impl Fn(NodeId) -> Success,
    now: UnixTime,
) -> Result<Ranking, NoMatchError> {
    let mut candidates: Vec<Match> = Vec::new();
    let mut sellers = BTreeSet::new();
    let mut cheapest = None;
    for ask in fitting(book, bid) {
        let price = ask.terms().price;
        if price > bid.max_price && !candidates.is_empty() {
            break;
        }
        match bid.check(ask, now) {
            Ok(()) => {}
            Err(Misfit::Price) => {
                cheapest = Some(price);
                break;
            }
            Err(_) => continue,
        }
        // The cheapest ask of a seller comes first, and its others cannot rank above it.
        if sellers.insert(ask.seller()) {
            let standing = success(ask.seller()).handicap();
            let rank = log2(price.msat_per_gb().max(1)) + standing + jitter(seed, ask.seller());
            candidates.push(Match {
                ask: Arc::clone(ask),
                rank,
            });
            if candidates.len() == MAX_CANDIDATES {
                break;
            }
        }
    }
    if candidates.is_empty() {
        return Err(NoMatchError {
            cheapest,
            asks: book.len(),
        });
    }
    candidates.sort_unstable_by_key(|m| (m.rank, m.ask.terms().price, m.ask.id()));
    Ok(Ranking {
        matches: candidates,
    })
}

/// The asks worth checking, cheapest first: all but this node's own, or those of the one seller.
fn fitting<'a>(book: &'a OrderBook, bid: &Bid) -> Box<dyn Iterator<Item = &'a Arc<Ask>> + 'a> {
    let own = book.own();
    match bid.seller {
        Some(seller) if seller != own => {
            let mut asks: Vec<_> = book.asks_of(&seller).collect();
            asks.sort_unstable_by_key(|ask| (ask.terms().price, ask.id()));
            Box::new(asks.into_iter())
        }
        Some(_) => Box::new(std::iter::empty()),
        None => Box::new(book.asks().filter(move |ask| ask.seller() != own)),
    }
}

/// `(1/β)·log2(−log2(h))` with `h` uniform in (0, 1), drawn from seed and seller.
fn jitter(seed: &[u8; 16], seller: NodeId) -> i64 {
    let digest = Sha256::new()
        .chain_update(seed)
        .chain_update(seller.as_bytes())
        .finalize();
    let mut first = [0; 4];
    first.copy_from_slice(digest.get(..4).unwrap_or(&[0; 4]));
    fixed_point::gumbel(u32::from_be_bytes(first)).div_euclid(SHARPNESS)
}

#[cfg(test)]
mod tests;
