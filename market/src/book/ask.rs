//! An offer's place in the order book.

use std::fmt;
use std::sync::Arc;

use crate::identity::{KEY_BYTES, NodeId, NodeIdError};
use crate::offer::Terms;
use crate::time::UnixTime;

/// Names a place in the book: one slot of one seller. Ordered by seller, then slot.
///
/// [`Display`](fmt::Display) writes `12D3KooW…/0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId {
    seller: NodeId,
    slot: u8,
}

/// Bytes of an [`AskId`] as the key of a store or a cursor on the wire.
pub const ASK_ID_BYTES: usize = KEY_BYTES + 1;

impl AskId {
    /// Names a slot of a seller.
    #[must_use]
    pub const fn new(seller: NodeId, slot: u8) -> Self {
        Self { seller, slot }
    }

    /// Whose place it is.
    #[must_use]
    pub const fn seller(&self) -> NodeId {
        self.seller
    }

    /// Which of the seller's slots.
    #[must_use]
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    /// The key of the seller, then the slot: sorts as the id does.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ASK_ID_BYTES] {
        let mut bytes = [self.slot; ASK_ID_BYTES];
        let (seller, _) = bytes.split_at_mut(KEY_BYTES);
        seller.copy_from_slice(self.seller.as_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. The slot may be any.
    ///
    /// # Errors
    ///
    /// [`NodeIdError`] if the first 32 bytes are no node's key.
    pub fn from_bytes(bytes: &[u8; ASK_ID_BYTES]) -> Result<Self, NodeIdError> {
        let [seller @ .., slot] = bytes;
        Ok(Self::new(NodeId::from_bytes(seller)?, *slot))
    }
}

impl fmt::Display for AskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.seller, self.slot)
    }
}

/// An offer in the order book: terms, their seller, and the bytes that prove both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    id: AskId,
    seq: u64,
    expiry: UnixTime,
    terms: Terms,
    bytes: Arc<[u8]>,
}

impl Ask {
    pub(super) const fn new(
        id: AskId,
        seq: u64,
        expiry: UnixTime,
        terms: Terms,
        bytes: Arc<[u8]>,
    ) -> Self {
        Self {
            id,
            seq,
            expiry,
            terms,
            bytes,
        }
    }

    /// Its place in the book.
    #[must_use]
    pub const fn id(&self) -> AskId {
        self.id
    }

    /// Who offers.
    #[must_use]
    pub const fn seller(&self) -> NodeId {
        self.id.seller
    }

    /// The number of the statement it comes from.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// When it stops holding.
    #[must_use]
    pub const fn expiry(&self) -> UnixTime {
        self.expiry
    }

    /// Whether it still holds.
    #[must_use]
    pub fn is_live(&self, now: UnixTime) -> bool {
        now < self.expiry
    }

    /// What is offered.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The signed offer as it was received.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) const fn shared_bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }
}
