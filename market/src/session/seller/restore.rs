//! A seller's session, rebuilt from what it wrote down.

use std::time::Instant;

use super::super::message::{Body, SignedMessage};
use super::super::record::{Fact, Receipted, Record, RestoreError};
use super::super::{Ending, Patience, deadline};
use super::{Held, Phase, Seller};
use crate::envelope::Signed;
use crate::lease::Lease;
use crate::time::UnixTime;

impl Seller {
    /// Takes a session up again from its records, in the order they were written. It stands where it
    /// stood, detached: what was delivered after the last receipt, at most a window, is given up
    /// unless the buyer signs for it.
    ///
    /// Tell it what is paid: that is in the channel's journal, not in these records.
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`] if the records are not this lease's or do not hold.
    pub fn restore(
        lease: Lease,
        records: impl IntoIterator<Item = Record>,
        patience: Patience,
        at: UnixTime,
        now: Instant,
    ) -> Result<Self, RestoreError> {
        let mut seller = Self::open(lease, patience, at, now);
        let (mut closing, mut last) = (None, None);
        for record in records {
            if record.lease != seller.lease.id() {
                return Err(RestoreError::WrongLease(record.lease));
            }
            match record.fact {
                Fact::Receipted(Receipted { message, own }) => {
                    seller.own = seller.own.later(own);
                    last = Some(message);
                }
                Fact::Extended(bytes) => {
                    if let Body::Extend(extension) = seller.stored(&bytes)?.content().body {
                        seller.grant(extension);
                    }
                }
                Fact::Closing(reason) => closing = Some(reason),
                Fact::Closed(closed) => {
                    seller.phase = Phase::Closed(Ending {
                        reason: closed.reason,
                        receipt: closed.receipt,
                        signatures: closed.signatures,
                    });
                }
                Fact::Signed(_) | Fact::Countersigned(_) | Fact::ExtensionAsked(_) => {
                    return Err(RestoreError::WrongRole);
                }
            }
        }
        // Only the last one counts, and there may be thousands.
        if let Some(message) = last {
            let message = seller.stored(&message)?;
            seller.held = message
                .content()
                .body
                .buyer_receipt()
                .copied()
                .map(|receipt| Held { receipt, message });
        }
        if let (Phase::Open, Some(reason)) = (seller.phase, closing) {
            seller.phase = Phase::Leaving {
                reason,
                until: deadline(now, patience.close),
            };
        }
        Ok(seller)
    }

    /// A message of the buyer from the journal.
    fn stored(&self, bytes: &[u8]) -> Result<SignedMessage, RestoreError> {
        let message: SignedMessage = Signed::verify(bytes, self.lease.network())
            .map_err(|error| RestoreError::BadMessage(error.to_string()))?;
        if message.signer() != self.lease.buyer() || message.content().lease != self.lease.id() {
            return Err(RestoreError::BadMessage("not the buyer's word".to_owned()));
        }
        Ok(message)
    }
}
