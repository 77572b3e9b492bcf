//! How far delivery may run ahead of payment, and payment ahead of delivery.
//!
//! All of it is a function of running totals: what has been paid, what has been used, what the buyer
//! has signed for. Nothing here remembers an increment, so nothing can be counted twice.

use crate::lease::Lease;
use crate::quote::Mode;
use crate::units::{Bytes, Msat, Price};

/// The arithmetic of one lease's money.
///
/// Invariants, for whatever the other side does:
/// - a seller that never delivers more than [`seller_limit`](Self::seller_limit) has at most one
///   window unpaid (none if prepaid), and at most one window that the buyer has not signed for;
/// - a buyer that never pays more than [`due`](Self::due) or [`top_up`](Self::top_up) asks has paid at
///   most the first payment, or the cost of one window more than it has used.
#[derive(Clone, Debug)]
pub(super) struct Credit {
    price: Price,
    mode: Mode,
    window: Bytes,
    quota: Bytes,
    /// What the first payment brings the total to, at least.
    first: Msat,
    paid: Msat,
    /// Nothing more can be paid, so nothing more is owed: only what is paid for is used.
    has_ended: bool,
}

impl Credit {
    pub(super) fn new(lease: &Lease) -> Self {
        let carried = lease.carried();
        Self {
            price: lease.price(),
            mode: lease.mode(),
            window: lease.window(),
            quota: lease.quota(),
            first: carried.saturating_add(lease.min_first()),
            paid: carried,
            has_ended: false,
        }
    }

    pub(super) fn quota(&self) -> Bytes {
        self.quota
    }

    pub(super) fn paid(&self) -> Msat {
        self.paid
    }

    /// Follows an extension that both have signed. The caller has checked it against the lease.
    pub(super) fn extend(&mut self, quota: Bytes) {
        self.quota = self.quota.max(quota);
    }

    /// Nothing more can be paid: a buyer uses no more than it has paid for from here on.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
    }

    /// Takes note of a running total. An older one changes nothing.
    pub(super) fn on_paid(&mut self, total: Msat) {
        self.paid = self.paid.max(total);
    }

    /// What `total` bytes cost; `None` if that is more money than can be written down.
    pub(super) fn cost(&self, total: Bytes) -> Option<Msat> {
        self.price.cost_of(total)
    }

    fn paid_for(&self) -> Bytes {
        self.price.bytes_for(self.paid)
    }

    /// How far the buyer's meter may run: what is paid for, and a window more if it pays afterwards.
    pub(super) fn buyer_limit(&self) -> Bytes {
        let credit = match self.mode {
            Mode::Postpaid if !self.has_ended => self.paid_for().saturating_add(self.window),
            Mode::Prepaid | Mode::Postpaid => self.paid_for(),
        };
        credit.min(self.quota)
    }

    /// How far the seller's meter may run, the buyer having signed for `signed` bytes.
    pub(super) fn seller_limit(&self, signed: Bytes) -> Bytes {
        self.buyer_limit().min(self.signed_limit(signed))
    }

    /// How far the seller goes ahead of the buyer's signature, for the whole of the lease.
    pub(super) fn signed_limit(&self, signed: Bytes) -> Bytes {
        signed.saturating_add(self.window)
    }

    /// The running total the buyer may have paid once it has used `used` bytes, if that is more than
    /// has been paid. Paying it is safe at any time, also when the seller asks for no good reason.
    pub(super) fn top_up(&self, used: Bytes) -> Option<Msat> {
        self.owed(match self.mode {
            Mode::Prepaid => used.saturating_add(self.window),
            Mode::Postpaid => used,
        })
    }

    /// The running total that settles `used` bytes, if that is more than has been paid.
    pub(super) fn owed(&self, used: Bytes) -> Option<Msat> {
        let total = self.cost(used.min(self.quota))?;
        (total > self.paid).then(|| total.max(self.first))
    }

    /// The running total that should be paid at `used` bytes, if a payment is due.
    ///
    /// Prepaid: when less than half a window of what is paid is left. Postpaid: when half a window is
    /// unpaid, or the quota is used up.
    pub(super) fn due(&self, used: Bytes) -> Option<Msat> {
        let at = self.next_payment_at()?;
        if used < at {
            return None;
        }
        self.top_up(used)
    }

    /// The reading at which the next payment falls due; `None` if the whole quota is paid for.
    pub(super) fn next_payment_at(&self) -> Option<Bytes> {
        let paid_for = self.paid_for();
        if paid_for >= self.quota {
            return None;
        }
        let half = Bytes::new(self.window.get() / 2);
        Some(match self.mode {
            Mode::Prepaid => paid_for.saturating_sub(half),
            Mode::Postpaid => paid_for.saturating_add(half).min(self.quota),
        })
    }

    /// Bytes between two receipts: a quarter of a window, so that the seller hears of delivery well
    /// before a window of it is unsigned.
    pub(super) fn receipt_step(&self) -> Bytes {
        Bytes::new((self.window.get() / 4).max(1))
    }
}

#[cfg(test)]
mod tests;
