//! The end of a session, from the seller's side: stop, ask for the last receipt, countersign it.

use std::time::Instant;

use super::super::message::{Body, Final, SignedMessage};
use super::super::record::{Closed, Fact};
use super::super::{CloseReason, Ending, Event, Fault, Link, Output, Signatures, deadline};
use super::{Phase, Seller};

impl Seller {
    /// The buyer ends it. A final receipt that does not hold leaves the last one that did.
    pub(super) fn on_close(&mut self, end: &Final, message: SignedMessage) {
        let taken = match end.receipt {
            Some(receipt) => self.accept(receipt, message),
            None => Err(Fault::OutOfPlace),
        };
        if let Err(fault) = taken {
            self.fault(fault);
        }
        let reason = match self.phase {
            Phase::Open => {
                self.outputs.push_back(Output::Stop);
                end.reason
            }
            Phase::Leaving { reason, .. } => reason,
            Phase::Closed(_) => return,
        };
        let signatures = match taken {
            Ok(()) => Signatures::Both,
            Err(_) => Signatures::OneSided,
        };
        self.finish(reason, signatures);
    }

    pub(super) fn leave(&mut self, reason: CloseReason, now: Instant) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        self.told = None;
        self.awaits = None;
        self.outputs.push_back(Output::Stop);
        if let Link::Detached { .. } = self.link {
            return self.finish(reason, Signatures::OneSided);
        }
        self.persist(Fact::Closing(reason));
        self.phase = Phase::Leaving {
            reason,
            until: deadline(now, self.patience.close),
        };
        self.send(Body::Leave(reason));
    }

    pub(super) fn finish(&mut self, reason: CloseReason, signatures: Signatures) {
        let receipt = self.countersigned();
        let ending = Ending {
            reason,
            receipt,
            signatures,
        };
        self.told = None;
        self.awaits = None;
        self.phase = Phase::Closed(ending);
        self.persist(Fact::Closed(Closed {
            reason,
            signatures,
            receipt,
        }));
        self.say_closed(reason);
        self.notify(Event::Closed(ending));
    }

    pub(super) fn say_closed(&mut self, reason: CloseReason) {
        if let Link::Detached { .. } = self.link {
            return;
        }
        let receipt = match self.phase {
            Phase::Closed(ending) => ending.receipt,
            Phase::Open | Phase::Leaving { .. } => None,
        };
        self.send(Body::Closed(Final { reason, receipt }));
    }
}
