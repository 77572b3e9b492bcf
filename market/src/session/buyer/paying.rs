//! What a buyer pays and signs while the session runs.

use std::time::Instant;

use super::super::message::Body;
use super::super::meter::Reading;
use super::super::record::Fact;
use super::super::{Output, PauseReason, Receipt};
use super::{Buyer, Payment};
use crate::units::{Bytes, Msat};

impl Buyer {
    pub(super) fn pay_if_due(&mut self) {
        if self.payment != Payment::Idle {
            return;
        }
        let used = self.reading.total();
        let asked_for = match self.held {
            Some(PauseReason::Unpaid) => self.credit.top_up(used),
            _ => None,
        };
        if let Some(total) = self.credit.due(used).or(asked_for) {
            self.pay(total);
        }
    }

    pub(super) fn pay(&mut self, total: Msat) {
        self.payment = Payment::Asked { total };
        self.outputs.push_back(Output::Pay { total });
    }

    pub(super) fn next_receipt_at(&self) -> Bytes {
        let signed = self
            .receipts
            .signed()
            .map_or(Bytes::ZERO, |receipt| receipt.reading.total());
        signed.saturating_add(self.credit.receipt_step())
    }

    pub(super) fn sign_if_due(&mut self, now: Instant) {
        let total = self.reading.total();
        let is_stopped =
            total >= self.credit.buyer_limit() || self.held == Some(PauseReason::AwaitingReceipt);
        let has_news = self
            .receipts
            .signed()
            .is_none_or(|receipt| receipt.reading != self.payable());
        let is_due = total >= self.next_receipt_at() || (is_stopped && has_news);
        if is_due && has_news && self.receipts.has_room() {
            let receipt = self.sign();
            self.receipts.on_sent(receipt, now, self.patience);
            self.send(Body::Receipt(receipt));
        }
    }

    /// What this side signs for: its meter, and never more than the quota.
    pub(super) fn payable(&self) -> Reading {
        self.reading.capped(self.credit.quota())
    }

    /// The receipt for this moment; a new one, durable, if the last one does not say the same.
    pub(super) fn sign(&mut self) -> Receipt {
        let reading = self.payable();
        let paid = self.credit.paid();
        let last = self.receipts.signed();
        if let Some(last) = last
            && last.reading == reading
            && last.paid == paid
        {
            return last;
        }
        let receipt = Receipt {
            // At a receipt per byte the number would last longer than the largest quota.
            seq: last.map_or(0, |last| last.seq).saturating_add(1),
            reading,
            billed: self
                .credit
                .cost(reading.total())
                .expect("a quote is only taken up if its whole quota has a cost"),
            paid,
        };
        self.persist(Fact::Signed(receipt));
        self.receipts.note_signed(receipt);
        receipt
    }
}
