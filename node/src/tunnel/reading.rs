//! Running totals, until the market's session words are there to import.

use bitmesh_market::units::Bytes;

/// Running totals of the billed bytes of one session, one for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes from the buyer to the seller.
    pub up: Bytes,
    /// Bytes from the seller to the buyer.
    pub down: Bytes,
}

impl Reading {
    /// Both directions together; this is what is billed.
    #[must_use]
    pub fn total(self) -> Bytes {
        self.up.saturating_add(self.down)
    }
}
