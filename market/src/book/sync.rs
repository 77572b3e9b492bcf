//! The book as signed bytes: for a store, and for a neighbour that has just come.

use std::ops::Bound;
use std::sync::Arc;

use super::place::{Held, Place};
use super::{AskId, OrderBook};
use crate::identity::NodeId;
use crate::time::UnixTime;

/// A part of the book for a neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Signed offers and withdrawals, as received.
    pub statements: Vec<Arc<[u8]>>,
    /// Where the next page starts; `None` if this was the last.
    pub next: Option<AskId>,
}

impl OrderBook {
    /// Every statement in force with its place, in the order of places: what a store keeps.
    ///
    /// Read back, each goes through [`VerifiedOffer::verify`](crate::offer::VerifiedOffer::verify)
    /// and [`insert`](Self::insert) like one from a stranger: a damaged store loses offers, never
    /// invents any.
    pub fn statements(&self, now: UnixTime) -> impl Iterator<Item = (AskId, &Arc<[u8]>)> {
        self.statements_after(None, now)
    }

    /// The statements after `after` in the order of places, up to `max_bytes` of them in all.
    ///
    /// A page has at least one statement unless there is none left, so that a neighbour gets on
    /// even with a small limit; statements have at most
    /// [`MAX_OFFER_BYTES`](crate::offer::MAX_OFFER_BYTES). The cursor may come from a neighbour: it
    /// need not name a place that exists. What is put in behind the cursor meanwhile is missed
    /// here, and comes by gossip.
    #[must_use]
    pub fn page(&self, after: Option<AskId>, max_bytes: usize, now: UnixTime) -> Page {
        let mut page = Page::default();
        let mut last = None;
        let mut left = max_bytes;
        for (id, bytes) in self.statements_after(after, now) {
            match left.checked_sub(bytes.len()) {
                Some(rest) => left = rest,
                None if page.statements.is_empty() => left = 0,
                None => {
                    page.next = last;
                    return page;
                }
            }
            page.statements.push(Arc::clone(bytes));
            last = Some(id);
        }
        page
    }

    fn statements_after(
        &self,
        after: Option<AskId>,
        now: UnixTime,
    ) -> impl Iterator<Item = (AskId, &Arc<[u8]>)> {
        let first = after.map_or(Bound::Unbounded, |id| Bound::Included(id.seller()));
        self.sellers
            .range((first, Bound::Unbounded))
            .flat_map(|(seller, record)| sorted(*seller, &record.places))
            .filter(move |(id, _)| after.is_none_or(|after| *id > after))
            .filter(move |(_, held)| held.expiry().is_some_and(|expiry| now < expiry))
            .filter_map(|(id, held)| Some((id, held.bytes()?)))
    }
}

/// The places of one seller by slot.
fn sorted(seller: NodeId, places: &[Place]) -> impl Iterator<Item = (AskId, &Held)> {
    let mut places: Vec<_> = places
        .iter()
        .map(|place| (AskId::new(seller, place.slot), &place.held))
        .collect();
    places.sort_unstable_by_key(|(id, _)| *id);
    places.into_iter()
}
