//! The end of a session, from the buyer's side: stop, settle, sign for the last time.

use std::time::Instant;

use super::super::message::{Body, Final};
use super::super::record::{Closed, Fact};
use super::super::{CloseReason, Ending, Event, Link, Output, Receipt, Signatures, deadline};
use super::{Buyer, Payment, Phase, Step};

impl Buyer {
    pub(super) fn begin_close(&mut self, reason: CloseReason, now: Instant) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        self.told = None;
        self.phase = Phase::Closing {
            reason,
            step: Step::Stopping,
            until: deadline(now, self.patience.close),
        };
        self.persist(Fact::Closing(reason));
        self.outputs.push_back(Output::Stop);
    }

    pub(super) fn advance_close(&mut self, now: Instant) {
        let Phase::Closing {
            reason,
            step,
            until,
        } = self.phase
        else {
            return;
        };
        let is_reachable = !matches!(self.link, Link::Detached { .. });
        let step = match step {
            Step::Stopping | Step::Confirmed => return,
            Step::Settling => {
                if is_reachable && self.has_to_settle() {
                    return;
                }
                Step::Confirming
            }
            Step::Confirming => Step::Confirming,
        };
        let (step, until) = if is_reachable {
            let receipt = self.sign();
            self.send(Body::Close(Final {
                reason,
                receipt: Some(receipt),
            }));
            (Step::Confirmed, deadline(now, self.patience.close))
        } else {
            (step, until)
        };
        self.phase = Phase::Closing {
            reason,
            step,
            until,
        };
    }

    /// Whether a payment is under way; starts the one that is owed.
    fn has_to_settle(&mut self) -> bool {
        match self.payment {
            Payment::Asked { .. } => true,
            Payment::Failed { .. } | Payment::Spent => false,
            Payment::Idle => match self.credit.owed(self.payable().total()) {
                Some(total) => {
                    self.pay(total);
                    true
                }
                None => false,
            },
        }
    }

    pub(super) fn finish(
        &mut self,
        reason: CloseReason,
        receipt: Option<Receipt>,
        signatures: Signatures,
    ) {
        let ending = Ending {
            reason,
            receipt,
            signatures,
        };
        self.told = None;
        self.phase = Phase::Closed(ending);
        self.persist(Fact::Closed(Closed {
            reason,
            signatures,
            receipt,
        }));
        self.notify(Event::Closed(ending));
    }

    /// The seller has ended it, by our final receipt or by the last one it holds.
    pub(super) fn on_closed(&mut self, end: &Final) {
        let reason = match self.phase {
            Phase::Open => {
                self.outputs.push_back(Output::Stop);
                end.reason
            }
            Phase::Closing { reason, .. } => reason,
            Phase::Closed(_) => return,
        };
        match end
            .receipt
            .filter(|receipt| self.receipts.has_signed(receipt))
        {
            Some(receipt) => self.finish(reason, Some(receipt), Signatures::Both),
            None => {
                let receipt = self.receipts.signed();
                self.finish(reason, receipt, Signatures::OneSided);
            }
        }
    }
}
