//! What the book remembers of a seller and its slots.

use std::sync::Arc;

use super::bucket::Bucket;
use super::{Ask, AskId, Lot};
use crate::offer::Offer;
use crate::time::UnixTime;

/// A seller with its places in the book.
#[derive(Clone, Debug)]
pub(super) struct Seller {
    pub(super) lot: Lot,
    pub(super) bucket: Bucket,
    /// At most [`SLOTS`], in no order.
    pub(super) places: Vec<Place>,
}

/// What is known of one slot of one seller.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) slot: u8,
    /// Statements up to this number are old.
    pub(super) seq: u64,
    /// Until when an older statement could still be in force.
    pub(super) kept_until: UnixTime,
    pub(super) held: Held,
}

#[derive(Clone, Debug)]
pub(super) enum Held {
    Ask(Arc<Ask>),
    Withdrawal {
        expiry: UnixTime,
        bytes: Arc<[u8]>,
    },
    /// What was stated has expired; only the number is remembered.
    Nothing,
}

impl Place {
    /// When this place has to be looked at next.
    pub(super) fn due(&self) -> UnixTime {
        self.held.expiry().unwrap_or(self.kept_until)
    }
}

impl Held {
    pub(super) fn expiry(&self) -> Option<UnixTime> {
        match self {
            Self::Ask(ask) => Some(ask.expiry()),
            Self::Withdrawal { expiry, .. } => Some(*expiry),
            Self::Nothing => None,
        }
    }

    pub(super) fn bytes(&self) -> Option<&Arc<[u8]>> {
        match self {
            Self::Ask(ask) => Some(ask.shared_bytes()),
            Self::Withdrawal { bytes, .. } => Some(bytes),
            Self::Nothing => None,
        }
    }
}

impl Seller {
    pub(super) fn place(&self, slot: u8) -> Option<&Place> {
        self.places.iter().find(|place| place.slot == slot)
    }
}

impl Held {
    /// What a statement puts in the place `id`.
    pub(super) fn of(id: AskId, offer: Offer, bytes: Arc<[u8]>) -> Self {
        let expiry = offer.expiry();
        match offer.terms {
            Some(terms) => Self::Ask(Arc::new(Ask::new(id, offer.seq, expiry, terms, bytes))),
            None => Self::Withdrawal { expiry, bytes },
        }
    }
}
