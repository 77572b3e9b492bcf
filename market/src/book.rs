//! One node's view of what is on offer.
//!
//! The book takes verified offers only, and holds at most one ask per `(seller, slot)`. Everything
//! in it is bounded, whatever peers send: places in all by its capacity, places of one seller by
//! [`SLOTS`], changes of one seller by a token bucket. Its order and its
//! choices depend on the offers, the salt and the times passed in, never on the order of arrival
//! of offers that fit.
//!
//! A place outlives its ask until no earlier statement of that slot can still be in force, so that
//! an old offer replayed after its withdrawal does not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::identity::NodeId;
use crate::offer::{SLOTS, VerifiedOffer};
use crate::time::UnixTime;
use crate::units::Price;

pub mod ask;
pub mod bid;
mod bucket;
mod outcome;
mod place;
mod sync;

pub use ask::{Ask, AskId};
pub use bid::{Bid, BidId, Misfit, TooManyBidsError, Where};
pub use outcome::{Change, Inserted, RefusedError};
pub use sync::Page;

use ask::Facts;
pub(crate) use ask::Listing;
use bid::StandingBids;
use bucket::Bucket;
use place::{Held, Place, Seller};

/// Places a book holds unless told otherwise: ten times the sellers a busy cell has, in 10 MB.
pub const DEFAULT_CAPACITY: usize = 10_000;

/// Fewest places a book can have: this node's own and one stranger's.
pub const MIN_CAPACITY: usize = 2 * SLOTS as usize;

/// How often one seller may change its offers in the long run. Sellers restate every 5 minutes and
/// move a price at most once a minute.
pub const CHANGE_INTERVAL: Duration = Duration::from_secs(60);

/// Changes of one seller that may come at once: each of its slots.
pub const CHANGE_BURST: u8 = SLOTS;

/// What a book is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node: its own offers are neither limited nor evicted, nor matched by its own bids.
    pub own: NodeId,
    /// Places in all; raised to [`MIN_CAPACITY`].
    pub capacity: usize,
    /// Secret of this node. Decides which strangers stay when the book is full, and the order of
    /// equal prices, so that nobody can choose an identity that does well in every book.
    pub salt: [u8; 32],
}

/// Asks and standing bids of one node.
#[derive(Clone, Debug)]
pub struct OrderBook {
    own: NodeId,
    own_changes: Bucket,
    capacity: usize,
    salt: [u8; 32],
    sellers: BTreeMap<NodeId, Seller>,
    /// Number of places over all sellers.
    places: usize,
    /// Live asks, cheapest first.
    by_price: BTreeMap<PriceKey, (Facts, Arc<Ask>)>,
    /// When each place has to be looked at next.
    due: BTreeSet<(UnixTime, AskId)>,
    /// Strangers by how soon they are evicted: the last goes first.
    by_lot: BTreeSet<(Lot, NodeId)>,
    bids: StandingBids,
}

/// A seller's lot in this book: a salted hash of its identity. High lots are evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lot(u64);

/// Order of asks in the book: by price; equal prices by lot, so that buyers spread over sellers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PriceKey {
    price: Price,
    lot: Lot,
    id: AskId,
}

impl OrderBook {
    /// Makes an empty book.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            own: config.own,
            own_changes: Bucket::default(),
            capacity: config.capacity.max(MIN_CAPACITY),
            salt: config.salt,
            sellers: BTreeMap::new(),
            places: 0,
            by_price: BTreeMap::new(),
            due: BTreeSet::new(),
            by_lot: BTreeSet::new(),
            bids: StandingBids::default(),
        }
    }

    /// Puts a statement in its place: lists, replaces or withdraws.
    ///
    /// Offers read back from a store or a neighbour go the same way as those from gossip. This
    /// node's own pass without the limits on strangers.
    ///
    /// # Errors
    ///
    /// [`RefusedError`] says why not; the book is unchanged then.
    pub fn insert(
        &mut self,
        offer: VerifiedOffer,
        now: UnixTime,
    ) -> Result<Inserted, RefusedError> {
        let (offer, seller_id, bytes) = offer.into_signed().into_parts();
        let id = AskId::new(seller_id, offer.slot);
        let expiry = offer.expiry();
        if expiry <= now {
            return Err(RefusedError::Expired { expiry });
        }
        let is_own = seller_id == self.own;
        let seller = self.sellers.get(&seller_id);
        let place = seller.and_then(|seller| seller.place(id.slot()));
        if let Some(place) = place
            && offer.seq <= place.seq
        {
            return Err(RefusedError::Stale {
                got: offer.seq,
                have: place.seq,
            });
        }
        let had_ask = place.is_some_and(|place| matches!(place.held, Held::Ask(_)));
        let mut bucket = seller.map_or_else(Bucket::default, |seller| seller.bucket);
        // Taking an ask back is always heard: listing it has paid for that.
        let is_free = had_ask && offer.terms.is_none();
        if !is_own && !is_free {
            bucket
                .take(now)
                .map_err(|retry_at| RefusedError::TooOften { retry_at })?;
        }
        let lot = seller.map_or_else(|| self.lot_of(&seller_id), |seller| seller.lot);
        let kept_until = place
            .map_or(expiry, |place| place.kept_until.max(expiry))
            // Not before the bucket is full again, or a seller could empty it by expiring.
            .max(bucket.full_at());
        let evicted = match place {
            Some(_) => Vec::new(),
            None => self.make_room(is_own, lot, seller_id)?,
        };

        self.remove(id);
        let seq = offer.seq;
        let held = Held::of(id, offer, bytes);
        let change = match (&held, had_ask) {
            (Held::Ask(_), true) => Change::Replaced,
            (Held::Ask(_), false) => Change::Listed,
            (Held::Withdrawal { .. } | Held::Nothing, _) => Change::Withdrawn,
        };
        let woken = match &held {
            Held::Ask(ask) if !is_own => self.bids.woken_by(ask, now),
            Held::Ask(_) | Held::Withdrawal { .. } | Held::Nothing => Vec::new(),
        };
        let place = Place {
            slot: id.slot(),
            seq,
            kept_until,
            held,
        };
        self.add(id, lot, bucket, place);
        Ok(Inserted {
            id,
            change,
            evicted,
            woken,
        })
    }

    /// Drops what has expired by `now` and returns the places whose statement went, in the order of
    /// their expiry. They are to be erased from any store.
    pub fn expire(&mut self, now: UnixTime) -> Vec<AskId> {
        let mut expired = Vec::new();
        while let Some((due, id)) = self.due.first().copied() {
            if due > now {
                break;
            }
            let Some((lot, bucket, mut place)) = self.remove(id) else {
                // Cannot be: every due place exists. Dropping the entry keeps the loop finite.
                self.due.pop_first();
                continue;
            };
            if place.held.expiry().is_some() {
                expired.push(id);
                place.held = Held::Nothing;
            }
            if place.kept_until > now {
                self.add(id, lot, bucket, place);
            }
        }
        self.bids.expire(now);
        expired
    }

    /// When [`expire`](Self::expire) has something to do next.
    #[must_use]
    pub fn next_expiry(&self) -> Option<UnixTime> {
        let place = self.due.first().map(|(due, _)| *due);
        let bid = self.bids.next_expiry();
        place.into_iter().chain(bid).min()
    }

    /// Counts a change of this node's own offers as others will, who hold every seller to
    /// [`CHANGE_BURST`] and [`CHANGE_INTERVAL`].
    ///
    /// # Errors
    ///
    /// Returns when it can be made: others would not listen before, and it is not counted.
    pub fn count_own_change(&mut self, now: UnixTime) -> Result<(), UnixTime> {
        self.own_changes.take(now)
    }

    /// The number for this node's next statement about `slot`: above all it has made or that others
    /// still remember, and, after a restart without memory, above those of the past.
    #[must_use]
    pub fn next_own_seq(&self, slot: u8, now: UnixTime) -> u64 {
        let have = self
            .sellers
            .get(&self.own)
            .and_then(|seller| seller.place(slot))
            .map_or(0, |place| place.seq);
        have.saturating_add(1).max(now.secs())
    }

    /// Live and expired-but-not-yet-dropped asks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_price.len()
    }

    /// Whether there is no ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_price.is_empty()
    }

    /// Places held: asks, withdrawals and remembered numbers. Never above the capacity.
    #[must_use]
    pub const fn places(&self) -> usize {
        self.places
    }

    /// This node.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// The ask in a place.
    #[must_use]
    pub fn ask(&self, id: AskId) -> Option<&Arc<Ask>> {
        match &self.sellers.get(&id.seller())?.place(id.slot())?.held {
            Held::Ask(ask) => Some(ask),
            Held::Withdrawal { .. } | Held::Nothing => None,
        }
    }

    /// The asks of one seller, by slot.
    pub fn asks_of(&self, seller: &NodeId) -> impl Iterator<Item = &Arc<Ask>> {
        let seller = *seller;
        (0..SLOTS).filter_map(move |slot| self.ask(AskId::new(seller, slot)))
    }

    /// All asks, cheapest first; equal prices in an order of this node's own. May hold some that
    /// have expired since [`expire`](Self::expire) was called.
    pub fn asks(&self) -> impl Iterator<Item = &Arc<Ask>> {
        self.by_price.values().map(|(_, ask)| ask)
    }

    /// As [`asks`](Self::asks), for a search that looks at many and takes few.
    pub(crate) fn listings(&self) -> impl Iterator<Item = Listing<'_>> {
        self.by_price.iter().map(|(key, (facts, ask))| Listing {
            seller: key.id.seller(),
            price: key.price,
            facts: *facts,
            ask,
        })
    }

    /// The asks of one seller, cheapest first, for a search.
    pub(crate) fn listings_of(&self, seller: &NodeId) -> impl Iterator<Item = Listing<'_>> {
        let mut listings: Vec<_> = self.asks_of(seller).map(Listing::of).collect();
        listings.sort_unstable_by_key(|listing| (listing.price, listing.ask.id()));
        listings.into_iter()
    }

    /// Leaves a bid standing until `until`; insertions report when an ask satisfies it.
    ///
    /// It is not matched against the asks already there: rank those first.
    ///
    /// # Errors
    ///
    /// [`TooManyBidsError`] if [`bid::MAX_STANDING`] bids stand already.
    pub fn place_bid(&mut self, bid: Bid, until: UnixTime) -> Result<BidId, TooManyBidsError> {
        self.bids.place(bid, until)
    }

    /// Takes a standing bid back; returns it if it stood.
    pub fn cancel_bid(&mut self, id: BidId) -> Option<Bid> {
        self.bids.cancel(id)
    }

    /// The standing bids, oldest first, with the time until which they stand.
    pub fn bids(&self) -> impl Iterator<Item = (BidId, &Bid, UnixTime)> {
        self.bids.iter()
    }

    fn lot_of(&self, seller: &NodeId) -> Lot {
        if *seller == self.own {
            return Lot(0);
        }
        let digest = Sha256::new()
            .chain_update(self.salt)
            .chain_update(seller.as_bytes())
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(digest.get(..8).unwrap_or(&[0; 8]));
        Lot(u64::from_be_bytes(first))
    }

    /// Evicts until one more place fits, whole sellers at a time, the worst lot first.
    fn make_room(
        &mut self,
        is_own: bool,
        lot: Lot,
        seller: NodeId,
    ) -> Result<Vec<AskId>, RefusedError> {
        let mut evicted = Vec::new();
        while self.places >= self.capacity {
            let Some((worst_lot, worst)) = self.by_lot.last().copied() else {
                return Err(RefusedError::Full);
            };
            if !is_own && (worst_lot, worst) <= (lot, seller) {
                return Err(RefusedError::Full);
            }
            for slot in 0..SLOTS {
                let id = AskId::new(worst, slot);
                if self.remove(id).is_some() {
                    evicted.push(id);
                }
            }
        }
        Ok(evicted)
    }

    /// Takes a place out of every index; its seller goes with its last place.
    fn remove(&mut self, id: AskId) -> Option<(Lot, Bucket, Place)> {
        let seller = self.sellers.get_mut(&id.seller())?;
        let at = seller.places.iter().position(|p| p.slot == id.slot())?;
        let place = seller.places.swap_remove(at);
        let (lot, bucket) = (seller.lot, seller.bucket);
        if seller.places.is_empty() {
            self.sellers.remove(&id.seller());
            self.by_lot.remove(&(lot, id.seller()));
        }
        self.places -= 1;
        self.due.remove(&(place.due(), id));
        if let Held::Ask(ask) = &place.held {
            self.by_price.remove(&PriceKey::of(ask, lot));
        }
        Some((lot, bucket, place))
    }

    /// Puts a place into every index. The slot must be free.
    fn add(&mut self, id: AskId, lot: Lot, bucket: Bucket, place: Place) {
        self.places += 1;
        self.due.insert((place.due(), id));
        if let Held::Ask(ask) = &place.held {
            self.by_price
                .insert(PriceKey::of(ask, lot), (Facts::of(ask), Arc::clone(ask)));
        }
        if id.seller() != self.own {
            self.by_lot.insert((lot, id.seller()));
        }
        let seller = self.sellers.entry(id.seller()).or_insert_with(|| Seller {
            lot,
            bucket,
            places: Vec::with_capacity(1),
        });
        seller.bucket = bucket;
        seller.places.push(place);
    }
}

impl PriceKey {
    fn of(ask: &Ask, lot: Lot) -> Self {
        Self {
            price: ask.terms().price,
            lot,
            id: ask.id(),
        }
    }
}

#[cfg(test)]
mod tests;
