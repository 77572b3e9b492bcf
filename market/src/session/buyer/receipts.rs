//! The receipts a buyer has signed, and which of them the seller has countersigned.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::{Patience, Receipt, deadline};

/// Receipts under way at once. Four windows of bytes: a round trip that takes longer than that has
/// long stopped the seller.
const MAX_PENDING: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Receipts {
    signed: Option<Receipt>,
    countersigned: Option<Receipt>,
    /// Sent and not countersigned, oldest first.
    pending: VecDeque<Receipt>,
    /// When patience with the seller's countersignature ends.
    until: Option<Instant>,
}

/// What a countersignature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Countersigned {
    /// Under a receipt that had none.
    News,
    /// Under an earlier one.
    Old,
    /// Under something this side never signed.
    Unknown,
}

impl Receipts {
    pub(super) const fn signed(&self) -> Option<Receipt> {
        self.signed
    }

    pub(super) const fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING
    }

    /// Whether this side is known to have signed the delivery that `receipt` states.
    pub(super) fn has_signed(&self, receipt: &Receipt) -> bool {
        let known = self.pending.iter().chain(&self.signed);
        known
            .chain(&self.countersigned)
            .any(|ours| ours.agrees_with(receipt))
    }

    /// Remembers the last one signed. An older one changes nothing.
    pub(super) fn note_signed(&mut self, receipt: Receipt) {
        if self.signed.is_none_or(|last| last.seq < receipt.seq) {
            self.signed = Some(receipt);
        }
    }

    /// Remembers the last one countersigned. An older one changes nothing.
    pub(super) fn note_countersigned(&mut self, receipt: Receipt) {
        if self.countersigned.is_none_or(|last| last.seq < receipt.seq) {
            self.countersigned = Some(receipt);
        }
    }

    /// Waits for the countersignature under a receipt that is on its way.
    pub(super) fn on_sent(&mut self, receipt: Receipt, now: Instant, patience: Patience) {
        self.until
            .get_or_insert_with(|| deadline(now, patience.countersignature));
        self.pending.push_back(receipt);
    }

    /// The same on a new connection, where all that was sent before is lost or superseded.
    pub(super) fn on_sent_anew(&mut self, receipt: Receipt, now: Instant, patience: Patience) {
        self.pending.clear();
        self.until = None;
        self.on_sent(receipt, now, patience);
    }

    pub(super) fn on_countersigned(
        &mut self,
        receipt: &Receipt,
        now: Instant,
        patience: Patience,
    ) -> Countersigned {
        let ours = self
            .pending
            .iter()
            .position(|ours| ours.agrees_with(receipt));
        if let Some(position) = ours {
            self.pending.drain(..=position);
            self.until =
                (!self.pending.is_empty()).then(|| deadline(now, patience.countersignature));
            self.note_countersigned(*receipt);
            return Countersigned::News;
        }
        let is_old = self
            .countersigned
            .is_some_and(|last| receipt.seq < last.seq || last.agrees_with(receipt));
        if is_old {
            Countersigned::Old
        } else {
            Countersigned::Unknown
        }
    }
}
