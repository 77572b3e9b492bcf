//! What the node itself writes into the journal, beside the wallet's own records.

use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::Lease;
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::keys::Role;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

/// Kinds of the node's records. Below 16 are the wallet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A [`LeaseRecord`].
    Lease = 16,
    /// A record of `market::session`.
    Session = 17,
    /// An [`OpenedRecord`].
    Opened = 18,
    /// A [`WrittenOffRecord`].
    WrittenOff = 19,
    /// A [`MomentRecord`].
    Moment = 20,
    /// A [`RestoredRecord`].
    Restored = 21,
    /// A [`RepairedRecord`].
    Repaired = 22,
}

impl Kind {
    /// The node's kind of that number, if there is one.
    pub(crate) fn of(number: u8) -> Option<Self> {
        [
            Self::Lease,
            Self::Session,
            Self::Opened,
            Self::WrittenOff,
            Self::Moment,
            Self::Restored,
            Self::Repaired,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// How a record is written down: CBOR.
pub(crate) trait Codec: Serialize + DeserializeOwned {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("a Vec takes any number of bytes");
        bytes
    }

    /// Reads a record back. `None` if the bytes are none; the journal's checksums make that a bug
    /// or a later version, not damage.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        ciborium::from_reader(bytes).ok()
    }
}

impl Codec for LeaseRecord {}
impl Codec for OpenedRecord {}
impl Codec for WrittenOffRecord {}
impl Codec for MomentRecord {}
impl Codec for RestoredRecord {}
impl Codec for RepairedRecord {}

/// A lease was signed by both: from here on its session exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    role: u8,
    lease: ByteBuf,
}

impl LeaseRecord {
    pub(crate) fn new(role: Role, lease: &Lease) -> Self {
        let role = match role {
            Role::Payer => 0,
            Role::Payee => 1,
        };
        Self {
            role,
            lease: ByteBuf::from(lease.as_bytes().to_vec()),
        }
    }

    /// Which side this node is.
    pub(crate) fn role(&self) -> Option<Role> {
        match self.role {
            0 => Some(Role::Payer),
            1 => Some(Role::Payee),
            _ => None,
        }
    }

    /// The signed lease, exactly as it was made.
    pub(crate) fn lease(&self) -> &[u8] {
        &self.lease
    }
}

/// When a channel was proposed, for people: nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenedRecord {
    channel: ByteArray<32>,
    at: u64,
}

impl OpenedRecord {
    pub(crate) fn new(channel: ProposalId, at: UnixTime) -> Self {
        Self {
            channel: ByteArray::new(*channel.as_bytes()),
            at: at.secs(),
        }
    }

    pub(crate) fn channel(&self) -> ProposalId {
        ProposalId::from_bytes(*self.channel)
    }

    pub(crate) fn at(&self) -> UnixTime {
        UnixTime::from_secs(self.at)
    }
}

/// Credit that this node believes to have with a seller and the seller does not recognise. The last
/// one counts for each seller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenOffRecord {
    seller: ByteArray<32>,
    /// A running total, in msat.
    total: u64,
}

impl WrittenOffRecord {
    pub(crate) fn new(seller: NodeId, total: Msat) -> Self {
        Self {
            seller: ByteArray::new(*seller.as_bytes()),
            total: total.msat(),
        }
    }

    /// `None` if the bytes of the seller are no node's.
    pub(crate) fn seller(&self) -> Option<NodeId> {
        NodeId::from_bytes(&self.seller).ok()
    }

    pub(crate) fn total(&self) -> Msat {
        Msat::from_msat(self.total)
    }
}

/// What follows was written at this time or soon after, up to the next of these. For people and their
/// books: nothing is decided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MomentRecord {
    at: u64,
}

impl MomentRecord {
    pub(crate) const fn new(at: UnixTime) -> Self {
        Self { at: at.secs() }
    }

    pub(crate) const fn at(&self) -> UnixTime {
        UnixTime::from_secs(self.at)
    }
}

/// The journal was restored from a backup: what came after that is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoredRecord {
    at: u64,
    /// Where the indexes of channel keys go on, as payer and as payee: those between were perhaps used.
    next_payer_key: u32,
    next_payee_key: u32,
}

impl RestoredRecord {
    pub(crate) fn new(at: UnixTime, (next_payer_key, next_payee_key): (u32, u32)) -> Self {
        Self {
            at: at.secs(),
            next_payer_key,
            next_payee_key,
        }
    }

    /// The first unused index as payer, and as payee.
    pub(crate) fn next_indexes(&self) -> (u32, u32) {
        (self.next_payer_key, self.next_payee_key)
    }
}

/// Records were lost by damage, and the journal was put right without them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepairedRecord {
    at: u64,
    /// Bytes that could not be read.
    missing: u64,
    /// Records that could be read and not be used.
    set_aside: u64,
    /// Where the indexes of channel keys go on, as payer and as payee: those between were perhaps used.
    next_payer_key: u32,
    next_payee_key: u32,
}

impl RepairedRecord {
    pub(crate) fn new(
        at: UnixTime,
        missing: u64,
        set_aside: usize,
        (next_payer_key, next_payee_key): (u32, u32),
    ) -> Self {
        Self {
            at: at.secs(),
            missing,
            set_aside: set_aside as u64,
            next_payer_key,
            next_payee_key,
        }
    }

    pub(crate) const fn at(&self) -> UnixTime {
        UnixTime::from_secs(self.at)
    }

    /// Bytes that could not be read, and records that could not be used.
    pub(crate) const fn lost(&self) -> (u64, u64) {
        (self.missing, self.set_aside)
    }

    /// The first unused index as payer, and as payee.
    pub(crate) const fn next_indexes(&self) -> (u32, u32) {
        (self.next_payer_key, self.next_payee_key)
    }
}
