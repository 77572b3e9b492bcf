//! What the two sides of a session say to each other on its control stream.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{CloseReason, PauseReason, Receipt};
use crate::envelope::{Content, Signed};
use crate::lease::LeaseId;
use crate::units::{Bytes, Msat};
use crate::wire::cbor_map;

cbor_map! {
    /// One message of the control stream. Every one is signed by its sender and names its lease, so
    /// none can be turned against another lease or reflected to its sender.
    ///
    /// All are idempotent: totals and numbers only grow, and one that says nothing new changes nothing.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Message {
        /// The lease it belongs to.
        1 => pub lease: LeaseId,
        /// What is said.
        2 => pub body: Body,
    }
}

impl Content for Message {
    const KIND: &'static str = "session";
    /// The longest is [`Body::Attached`], which carries one other message in it.
    const MAX_BYTES: usize = 768;
}

/// What a [`Message`] says. PROTOCOL gives the order they come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Buyer: first on every control stream. Takes the session up (again), from this receipt.
    Attach(Receipt),
    /// Seller: the answer. What the seller knows, so that the buyer can repeat what was lost.
    Attached(Standing),
    /// Buyer: running totals, every quarter of a window and when it pauses.
    Receipt(Receipt),
    /// Seller: the same totals, countersigned, with what the seller has been paid.
    Countersigned(Receipt),
    /// Buyer: asks for a higher quota.
    Extend(Extension),
    /// Seller: grants it.
    Extended(Extension),
    /// Seller: does not grant it.
    ExtendRefused(Extension),
    /// Seller: nothing is forwarded any more, and why.
    Pause(PauseReason),
    /// Seller: forwarding goes on.
    Resume,
    /// Seller: wants to end the session and asks for the final receipt.
    Leave(CloseReason),
    /// Buyer: ends the session with its final receipt.
    Close(Final),
    /// Seller: the session has ended; the last receipt it holds, countersigned.
    Closed(Final),
}

cbor_map! {
    /// Where a session stands, by the seller's books.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Standing {
        /// The last extension granted; number 0 and the lease's own quota if there is none.
        1 => pub extension: Extension,
        /// What the seller has been paid, carried credit included.
        2 => pub paid: Msat,
        ;
        /// The buyer's own latest message with a receipt, as signed: proof for a buyer whose disk is
        /// older than its word.
        3 => pub latest: ByteBuf,
    }
}

cbor_map! {
    /// A higher quota for a running lease.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Extension {
        /// Counts the extensions of this lease from 1; the higher number holds.
        1 => pub seq: u32,
        /// The new quota as a running total of the lease, not an increment.
        2 => pub quota: Bytes,
    }
}

cbor_map! {
    /// The last word on a session.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Final {
        /// Why it ends.
        1 => pub reason: CloseReason,
        ;
        /// The final receipt; left out if the buyer never signed one.
        2 => pub receipt: Receipt,
    }
}

impl Body {
    /// The buyer's receipt in this message, if it carries one.
    #[must_use]
    pub fn buyer_receipt(&self) -> Option<&Receipt> {
        match self {
            Self::Attach(receipt) | Self::Receipt(receipt) => Some(receipt),
            Self::Close(end) => end.receipt.as_ref(),
            Self::Attached(_)
            | Self::Countersigned(_)
            | Self::Extend(_)
            | Self::Extended(_)
            | Self::ExtendRefused(_)
            | Self::Pause(_)
            | Self::Resume
            | Self::Leave(_)
            | Self::Closed(_) => None,
        }
    }
}

/// A message as it came from the other side: verified, with the bytes that were signed.
pub type SignedMessage = Signed<Message>;
