//! What payer and payee say to each other, byte for byte.
//!
//! Every message is one canonical CBOR array whose first element is its [`Kind`]. Decoding caps
//! the size first, then requires that re-encoding gives the same bytes, so a message has one
//! encoding and nothing trails it. [`Open`] and [`Accept`] are hashed into the channel's id
//! exactly as they were received.
//!
//! Messages are not signed here: they travel on an authenticated connection, and who wants to
//! keep one as evidence seals its bytes. [`Open`] names both parties, so bytes sealed or sent by
//! anyone else are refused by the machines.

mod wire;

use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::{Amount, BlockHash, ScriptBuf, Transaction};
use thiserror::Error;

use super::deadline::BlockHeight;
use super::exposure::ExposureTable;
use super::musig::{PartialSignature, PublicNonce};
use super::split::Split;
use super::voucher::Voucher;
use super::{AttemptId, ChannelId, PartyId, ProposalId, TrancheIndex, tagged_hash};

pub use super::refusal::RefusalCode;

pub(crate) use self::wire::{amount, decode, encode, signature};

/// Version of the rules of this module and of [`super::script`]. Another version is refused.
pub const VERSION: u8 = 1;

/// Largest funding transaction in bytes. Version 3 caps it at 10,000 virtual bytes, which is at
/// most four times as many bytes.
pub const MAX_FUNDING_BYTES: usize = 40_000;

/// Largest message in bytes: [`Funding`] with its largest transaction and its fields.
pub const MAX_MESSAGE_BYTES: usize = MAX_FUNDING_BYTES + 64;

/// Largest message of every kind but [`Funding`]. The largest is a [`Renew`], with 244 bytes.
pub const MAX_SMALL_MESSAGE_BYTES: usize = 256;

/// Nesting a message may have: array, exposure table, step, and one to spare.
const MAX_DEPTH: usize = 4;

/// First element of a message. The numbers from 12 to 15 are kept for top-ups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Open`]
    Open = 1,
    /// [`Accept`]
    Accept = 2,
    /// [`Funding`]
    Funding = 3,
    /// [`Depth`]
    Depth = 4,
    /// [`Voucher`]
    Voucher = 5,
    /// [`Refused`]
    Refused = 6,
    /// [`CloseAsk`]
    CloseAsk = 7,
    /// [`Close`]
    Close = 8,
    /// [`CloseAck`]
    CloseAck = 9,
    /// [`ClosePartial`]
    ClosePartial = 10,
    /// [`CloseDone`]
    CloseDone = 11,
    /// [`Renew`]
    Renew = 16,
    /// [`Close`] that names a next channel
    Roll = 17,
}

impl Kind {
    const fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Open,
            2 => Self::Accept,
            3 => Self::Funding,
            4 => Self::Depth,
            5 => Self::Voucher,
            6 => Self::Refused,
            7 => Self::CloseAsk,
            8 => Self::Close,
            9 => Self::CloseAck,
            10 => Self::ClosePartial,
            11 => Self::CloseDone,
            16 => Self::Renew,
            17 => Self::Roll,
            _ => return None,
        })
    }

    /// Largest encoding of a message of this kind.
    pub const fn max_bytes(self) -> usize {
        match self {
            Self::Funding => MAX_MESSAGE_BYTES,
            Self::Open
            | Self::Accept
            | Self::Depth
            | Self::Voucher
            | Self::Refused
            | Self::CloseAsk
            | Self::Close
            | Self::CloseAck
            | Self::ClosePartial
            | Self::CloseDone
            | Self::Renew
            | Self::Roll => MAX_SMALL_MESSAGE_BYTES,
        }
    }
}

/// Payer → payee: the channel the payer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Random; makes the proposal unique even where everything else repeats.
    pub nonce: [u8; 16],
    /// Hash of the genesis block of the chain the funding will be on.
    pub chain: BlockHash,
    /// Identity of the payer.
    pub payer: PartyId,
    /// Identity of the payee.
    pub payee: PartyId,
    /// The payer's channel key, `B`.
    pub payer_key: XOnlyPublicKey,
    /// What the funding output will hold.
    pub capacity: Amount,
    /// From this height on the payer can take everything back, `T`.
    pub expiry: BlockHeight,
    /// Where the unpaid part goes at the close. Pay-to-taproot only.
    pub change_script: ScriptBuf,
}

/// Payer → payee: the channel the payer wants next, to be funded with what is left of one that both
/// have. Answered by [`Accept`] like an [`Open`], with the payee's key of the channel before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renew {
    /// Id of the [`Open`] of the channel that is to be carried over.
    pub from: ProposalId,
    /// The proposal.
    pub open: Open,
}

/// Payee → payer: agreed, on these terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Id of the [`Open`] this answers.
    pub proposal: ProposalId,
    /// The payee's channel key, `S`.
    pub payee_key: XOnlyPublicKey,
    /// The least the first voucher must pay: below it, closing would cost the payee more than it
    /// gains. It is credit, not a fee.
    pub min_first: Amount,
    /// What the payee credits at which depth of the funding.
    pub exposure: ExposureTable,
}

/// Payer → payee: the transaction that funds a tranche.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Funding {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
    /// The fully signed transaction.
    pub tx: Transaction,
    /// Which of its outputs is the tranche.
    pub vout: u32,
}

/// Payee → payer: what the payee sees and holds. Answers [`Funding`] and every [`Voucher`], and is
/// sent when the limit changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
    /// Confirmations of the funding as the payee counts them; 0 is unconfirmed.
    pub confirmations: u32,
    /// The highest running total the payee credits at this depth.
    pub limit: Amount,
    /// The best voucher the payee holds, as proof: total and the payer's own signature. Lets a
    /// payer restored from an old backup catch up.
    pub held: Option<(Amount, Signature)>,
}

/// Payee → payer: I would like to close together; begin with a [`Close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseAsk {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
}

/// Payer → payee: let us close together. Begins an attempt, whoever wished for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
    /// The payer's public nonce, BIP-327; made for this attempt.
    pub nonce: PublicNonce,
    /// The payer's last voucher, total and signature, if it signed any: the close pays out this
    /// much even if the voucher was lost on its way.
    pub promised: Option<(Amount, Signature)>,
    /// Where the rest is carried over to: a channel that was agreed on by [`Renew`]. `None` to end.
    pub next: Option<ChannelId>,
}

impl Close {
    /// Names the attempt: everything that is said of it later shows this.
    pub fn attempt(&self) -> AttemptId {
        let nonce = self.nonce.serialize();
        let id = match &self.next {
            None => tagged_hash("bitmesh/channel/close", &[self.channel.as_bytes(), &nonce]),
            Some(next) => tagged_hash(
                "bitmesh/channel/roll",
                &[self.channel.as_bytes(), &nonce, next.as_bytes()],
            ),
        };
        AttemptId::from_bytes(id)
    }
}

/// Payee → payer: this split, if you agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseAck {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
    /// Which [`Close`] this answers.
    pub attempt: AttemptId,
    /// The payee's public nonce, BIP-327; made for this attempt.
    pub nonce: PublicNonce,
    /// Who gets what.
    pub split: Split,
}

/// Payer → payee: my half of the signature. From here on the payee can end the channel by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosePartial {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
    /// The attempt.
    pub attempt: AttemptId,
    /// The payer's partial signature, BIP-327.
    pub partial: PartialSignature,
}

/// Payee → payer: it is signed by both and on its way. Says everything that the transaction is made
/// of, so that the payer needs no memory of the attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseDone {
    /// The channel.
    pub channel: ChannelId,
    /// The tranche.
    pub tranche: TrancheIndex,
    /// Who gets what.
    pub split: Split,
    /// The signature of the output key, BIP-340.
    pub signature: Signature,
}

/// Payee → payer: no, and why. Payer → payee only while they close together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Id of the proposal or channel that was refused, whichever the refused message named.
    pub subject: [u8; 32],
    /// The reason.
    pub code: RefusalCode,
}

/// Any message of the channel protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Open`].
    Open(Open),
    /// See [`Accept`].
    Accept(Accept),
    /// See [`Funding`].
    Funding(Box<Funding>),
    /// See [`Depth`].
    Depth(Depth),
    /// See [`Voucher`].
    Voucher(Voucher),
    /// See [`Refused`].
    Refused(Refused),
    /// See [`CloseAsk`].
    CloseAsk(CloseAsk),
    /// See [`Close`].
    Close(Box<Close>),
    /// See [`CloseAck`].
    CloseAck(Box<CloseAck>),
    /// See [`ClosePartial`].
    ClosePartial(ClosePartial),
    /// See [`CloseDone`].
    CloseDone(CloseDone),
    /// See [`Renew`].
    Renew(Box<Renew>),
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Longer than its kind may be.
    #[error("{got} bytes, at most {max} allowed")]
    TooLong {
        /// How long it is.
        got: usize,
        /// How long it may be.
        max: usize,
    },
    /// No message of this protocol, or of a later version of it.
    #[error("not a channel message")]
    UnknownKind,
    /// An [`Open`] of another version.
    #[error("version {got}, only {VERSION} is understood")]
    Version {
        /// Its version.
        got: u8,
    },
    /// The CBOR does not hold what its kind needs.
    #[error("malformed: {0}")]
    Malformed(String),
    /// There is another, canonical, encoding of the same message, or something trails.
    #[error("not the canonical encoding")]
    NotCanonical,
    /// A field holds a value that cannot be.
    #[error("field {0} is out of range")]
    Field(&'static str),
}
