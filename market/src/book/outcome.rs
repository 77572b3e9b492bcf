//! What became of an offer that was put into the book.

use thiserror::Error;

use super::{AskId, BidId};
use crate::offer::Verdict;
use crate::time::UnixTime;

/// What an insertion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The place it was put in.
    pub id: AskId,
    /// What changed there.
    pub change: Change,
    /// Places that had to go for it, to be erased from any store.
    pub evicted: Vec<AskId>,
    /// Standing bids that the new ask satisfies, oldest first.
    pub woken: Vec<BidId>,
}

/// What changed in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// An ask where there was none.
    Listed,
    /// An ask in place of an earlier one.
    Replaced,
    /// No ask any more, or none to come from earlier statements.
    Withdrawn,
}

/// Why a verified offer was not put in the book. The book is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RefusedError {
    /// It has expired since it was verified.
    #[error("expired at {expiry}")]
    Expired {
        /// When it stopped holding.
        expiry: UnixTime,
    },
    /// A statement with this or a higher number is known.
    #[error("number {got} is not above {have}, which is known")]
    Stale {
        /// The offer's number.
        got: u64,
        /// The highest number known for its slot.
        have: u64,
    },
    /// The seller changes its offers too often.
    #[error("the seller's next change is due at {retry_at}")]
    TooOften {
        /// When a change would be taken.
        retry_at: UnixTime,
    },
    /// The book is full of sellers with better lots.
    #[error("the order book is full")]
    Full,
}

impl RefusedError {
    /// What gossip does with such an offer. None of this is the fault of whoever passed it on.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Expired { .. } | Self::Stale { .. } | Self::TooOften { .. } => Verdict::Ignore,
            // Good, only not for us: others keep other sellers.
            Self::Full => Verdict::Accept,
        }
    }
}
