//! A buyer's session, rebuilt from what it wrote down.

use std::time::Instant;

use super::super::message::{Body, SignedMessage};
use super::super::meter::Reading;
use super::super::record::{Fact, Record, RestoreError};
use super::super::{Ending, Patience, deadline};
use super::{Buyer, Phase, Step};
use crate::envelope::Signed;
use crate::lease::Lease;
use crate::time::UnixTime;

impl Buyer {
    /// Takes a session up again from its records, in the order they were written. It stands where it
    /// stood, detached: what the meter counted after the last receipt is forgotten, within a window,
    /// in the buyer's favour.
    ///
    /// Tell it what is paid before `Attached`: that is in the channel's journal, not in these records.
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
        let mut buyer = Self::open(lease, patience, at, now);
        let (mut closing, mut countersigned) = (None, None);
        for record in records {
            if record.lease != buyer.lease.id() {
                return Err(RestoreError::WrongLease(record.lease));
            }
            match record.fact {
                Fact::Signed(receipt) => buyer.receipts.note_signed(receipt),
                Fact::Countersigned(bytes) => countersigned = Some(bytes),
                Fact::ExtensionAsked(extension) => buyer.wished = Some(extension),
                Fact::Extended(bytes) => {
                    if let Body::Extended(extension) = buyer.stored(&bytes)? {
                        buyer.agree(extension);
                    }
                }
                Fact::Closing(reason) => closing = Some(reason),
                Fact::Closed(closed) => {
                    buyer.phase = Phase::Closed(Ending {
                        reason: closed.reason,
                        receipt: closed.receipt,
                        signatures: closed.signatures,
                    });
                }
                Fact::Receipted(_) => return Err(RestoreError::WrongRole),
            }
        }
        // Only the last one counts, and there may be thousands.
        if let Some(bytes) = countersigned
            && let Body::Countersigned(receipt) = buyer.stored(&bytes)?
        {
            buyer.receipts.note_countersigned(receipt);
        }
        buyer.reading = buyer
            .receipts
            .signed()
            .map_or(Reading::ZERO, |receipt| receipt.reading);
        if let (Phase::Open, Some(reason)) = (buyer.phase, closing) {
            buyer.phase = Phase::Closing {
                reason,
                step: Step::Settling,
                until: deadline(now, patience.close),
            };
        }
        Ok(buyer)
    }

    /// A message of the seller from the journal.
    fn stored(&self, bytes: &[u8]) -> Result<Body, RestoreError> {
        let message: SignedMessage = Signed::verify(bytes, self.lease.network())
            .map_err(|error| RestoreError::BadMessage(error.to_string()))?;
        if message.signer() != self.lease.seller() || message.content().lease != self.lease.id() {
            return Err(RestoreError::BadMessage("not the seller's word".to_owned()));
        }
        Ok(message.into_content().body)
    }
}
