//! What a session writes down, so that it can be taken up after a crash.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use thiserror::Error;

use super::message::Extension;
use super::{CloseReason, Reading, Receipt, Signatures};
use crate::lease::LeaseId;
use crate::wire::{self, WireError, cbor_map};

cbor_map! {
    /// One durable fact of a session. Facts replace older ones of their kind, so a journal may keep
    /// only the last of each, and replaying one twice changes nothing.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Record {
        /// The lease it belongs to.
        1 => pub lease: LeaseId,
        /// What happened.
        2 => pub fact: Fact,
    }
}

/// What a [`Record`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// Buyer: is about to sign this receipt.
    Signed(Receipt),
    /// Buyer: holds this message of the seller with its countersignature. Evidence; nothing waits for
    /// it, so it may be written lazily.
    Countersigned(ByteBuf),
    /// Seller: holds a receipt of the buyer.
    Receipted(Receipted),
    /// Buyer: is about to ask for this.
    ExtensionAsked(Extension),
    /// Both have signed a higher quota.
    Extended(ByteBuf),
    /// Is closing; nothing is forwarded any more.
    Closing(CloseReason),
    /// Has closed.
    Closed(Closed),
}

cbor_map! {
    /// A receipt the seller holds, and how much it had delivered by then.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Receipted {
        /// The buyer's message as received.
        1 => pub message: ByteBuf,
        /// The seller's own meter at that moment.
        2 => pub own: Reading,
    }
}

cbor_map! {
    /// How a session closed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Closed {
        /// Why.
        1 => pub reason: CloseReason,
        /// Whether the final receipt bears both signatures.
        2 => pub signatures: Signatures,
        ;
        /// The final receipt; left out if there is none.
        3 => pub receipt: Receipt,
    }
}

impl Record {
    /// Longest encoding: a message and a few words.
    pub const MAX_BYTES: usize = 1_024;

    /// Encodes for the journal.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads a record back from the journal.
    ///
    /// # Errors
    ///
    /// Returns [`WireError`] if the bytes are not exactly one record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(bytes, Self::MAX_BYTES)
    }
}

/// Why a session cannot be rebuilt from its records: the journal is not this lease's, or damaged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// A record belongs to another lease.
    #[error("record of lease {0} among those of another")]
    WrongLease(LeaseId),
    /// A stored message does not verify, or does not say what its record says it does.
    #[error("stored message of the other side does not hold: {0}")]
    BadMessage(String),
    /// A fact that this side never writes.
    #[error("record of the other role")]
    WrongRole,
}
