//! The payment channel: one funded output from which a payer pays a payee by vouchers.
//!
//! A channel is unidirectional and long-lived. The payer locks `capacity` in a taproot output
//! ([`script`]), then signs running totals ([`voucher`]): one Schnorr signature each, idempotent
//! and safe to replay, because only the payer signs and the payee keeps the best. The payee ends
//! the channel with the best voucher it holds, at a fee and to a script of its own choice; what
//! was not paid returns to the payer in the same transaction. While both are there they end it
//! together with one signature, which is cheaper and looks like any other spend ([`split`]). If the
//! payee vanishes, the payer takes everything back at the expiry height.
//!
//! [`payer::Payer`] and [`payee::Payee`] decide; they hold no socket, disk or clock. Feed them
//! inputs, then perform their outputs **in order**: a [`record::Record`] always stands before the
//! message or transaction that relies on it, so a crash between any two outputs loses nothing.
//!
//! | Room | Holds |
//! |---|---|
//! | [`message`] | what the two sides say, byte for byte, with caps |
//! | [`params`] | policies of both roles and what both agreed ([`params::Contract`]) |
//! | [`refusal`] | why one side says no to the other |
//! | [`script`], [`tx`] | the output, its leaves, the commitment and the refund, their sizes |
//! | [`tranche`], [`settlement`] | a funded output, and how it ended |
//! | [`batch`] | one transaction with which the payee closes many channels |
//! | [`split`], [`musig`] | closing together: who gets what, and one signature by two |
//! | [`voucher`] | digest, signature, verification; which totals are legal |
//! | [`exposure`] | how much unsettled funding is trusted, per channel and for the node |
//! | [`deadline`] | block heights by which something must have happened |
//! | [`closing`] | which channels are closed in this block, alone or in a batch, at which bid |
//! | [`record`] | durable facts, from which a machine is rebuilt |
//! | [`payer`], [`payee`] | the two machines |

mod aggregate;
pub mod batch;
pub mod closing;
pub mod deadline;
pub mod exposure;
pub mod message;
pub mod musig;
pub mod params;
pub mod payee;
pub mod payer;
pub mod record;
pub mod refusal;
pub mod script;
pub mod settlement;
pub mod split;
pub mod tranche;
pub mod tx;
pub mod voucher;

use std::fmt;
use std::sync::LazyLock;

use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::secp256k1::{All, Secp256k1};

/// One context for the process: creating one costs more than a signature.
pub(crate) static SECP: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// A BIP-340 tagged hash over `parts` in order. Every part has a fixed length, so no two lists of
/// parts collide.
pub(crate) fn tagged_hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let tag = sha256::Hash::hash(tag.as_bytes());
    let mut engine = sha256::Hash::engine();
    engine.input(tag.as_byte_array());
    engine.input(tag.as_byte_array());
    for part in parts {
        engine.input(part);
    }
    sha256::Hash::from_engine(engine).to_byte_array()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes 32 bytes as they are; nothing is checked.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(&self.0[..4]))
            }
        }
    };
}

id! {
    /// Names a channel both sides agreed on: a tagged hash over [`message::Open`] and
    /// [`message::Accept`], so it binds both parties' identities to both channel keys.
    ChannelId
}
id! {
    /// Names a channel from the payer's first word on: a tagged hash over the bytes of
    /// [`message::Open`]. Records are filed under it, because it exists before the payee answers.
    ProposalId
}
id! {
    /// Names one attempt to close together: a tagged hash over the payer's nonce for it.
    AttemptId
}
id! {
    /// The identity key of a party (its ed25519 public key). Opaque here: the caller authenticates
    /// the peer and states who it is; the machines only insist that it stays the same.
    PartyId
}

/// Index of a tranche: one funded output of a channel. A channel is born with tranche
/// [`FIRST`](Self::FIRST); no other index is accepted until top-ups exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrancheIndex(u8);

impl TrancheIndex {
    /// The tranche the channel is opened with.
    pub const FIRST: Self = Self(0);

    /// Takes an index as found on the wire or in a record.
    pub const fn new(index: u8) -> Self {
        Self(index)
    }

    /// The index as a number.
    pub const fn index(self) -> u8 {
        self.0
    }
}
