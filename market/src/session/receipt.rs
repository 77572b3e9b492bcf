//! What both sides sign: bytes carried, money paid.

use super::Reading;
use crate::units::Msat;
use crate::wire::cbor_map;

cbor_map! {
    /// A statement of running totals. The buyer signs what it received, the seller what it was paid.
    ///
    /// **The buyer's count bills.** A receipt is cumulative, so only the last one matters: a lost,
    /// late or repeated one costs nothing. Signed by the buyer it says "I have received `reading`,
    /// which costs `billed`, and have paid `paid`"; the seller's countersignature repeats the first
    /// two and puts what it has been paid, by its own books, in the third.
    ///
    /// `paid` counts the credit carried over from earlier sessions of the pair, and whole satoshi: it
    /// may be above `billed`, and the difference is carried on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Receipt {
        /// Counts the buyer's receipts of this lease from 1; two of the same number are the same.
        1 => pub seq: u64,
        /// The buyer's meter.
        2 => pub reading: Reading,
        /// What the reading costs at the lease's price, rounded up once.
        3 => pub billed: Msat,
        /// What has been paid in this session, carried credit included, as the signer sees it.
        4 => pub paid: Msat,
    }
}

impl Receipt {
    /// Whether `other` states the same delivery: everything but `paid`, which each side signs for itself.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.seq == other.seq && self.reading == other.reading && self.billed == other.billed
    }
}
