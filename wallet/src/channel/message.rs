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

use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::{Amount, BlockHash, ScriptBuf, Transaction, consensus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};
use thiserror::Error;

use super::deadline::BlockHeight;
use super::exposure::{ExposureTable, Step};
use super::voucher::Voucher;
use super::{ChannelId, PartyId, ProposalId, TrancheIndex, tagged_hash};

/// Version of the rules of this module and of [`super::script`]. Another version is refused.
pub const VERSION: u8 = 1;

/// Largest funding transaction in bytes. Version 3 caps it at 10,000 virtual bytes, which is at
/// most four times as many bytes.
pub const MAX_FUNDING_BYTES: usize = 40_000;

/// Largest message in bytes: [`Funding`] with its largest transaction and its fields.
pub const MAX_MESSAGE_BYTES: usize = MAX_FUNDING_BYTES + 64;

/// Largest message of every kind but [`Funding`]. The largest is an [`Open`] of 212 bytes.
pub const MAX_SMALL_MESSAGE_BYTES: usize = 256;

/// Nesting a message may have: array, exposure table, step, and one to spare.
const MAX_DEPTH: usize = 4;

/// First element of a message. The numbers from 7 on are kept for top-ups and closing together.
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
            _ => return None,
        })
    }

    /// Largest encoding of a message of this kind.
    pub const fn max_bytes(self) -> usize {
        match self {
            Self::Funding => MAX_MESSAGE_BYTES,
            Self::Open | Self::Accept | Self::Depth | Self::Voucher | Self::Refused => {
                MAX_SMALL_MESSAGE_BYTES
            }
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

/// Payee → payer: no, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Id of the proposal or channel that was refused, whichever the refused message named.
    pub subject: [u8; 32],
    /// The reason.
    pub code: RefusalCode,
}

/// Why a payee refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// Malformed, another version, or another chain.
    Unsupported,
    /// The capacity is outside what the payee accepts.
    Capacity,
    /// The expiry is outside what the payee accepts.
    Expiry,
    /// The payee takes no channels now.
    Busy,
    /// The payee knows no such channel.
    Unknown,
    /// The funding does not pay what was agreed.
    Funding,
    /// The voucher is invalid.
    Voucher,
    /// The channel is ending; nothing further is accepted.
    Closing,
    /// A code of a later version.
    Other(u8),
}

impl RefusalCode {
    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Unsupported => 1,
            Self::Capacity => 2,
            Self::Expiry => 3,
            Self::Busy => 4,
            Self::Unknown => 5,
            Self::Funding => 6,
            Self::Voucher => 7,
            Self::Closing => 8,
            Self::Other(code) => code,
        }
    }

    /// From the number on the wire.
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Unsupported,
            2 => Self::Capacity,
            3 => Self::Expiry,
            4 => Self::Busy,
            5 => Self::Unknown,
            6 => Self::Funding,
            7 => Self::Voucher,
            8 => Self::Closing,
            other => Self::Other(other),
        }
    }
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

impl Open {
    /// The bytes as they go over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(&OpenWire(
            Kind::Open as u8,
            VERSION,
            ByteArray::new(self.nonce),
            ByteArray::new(self.chain.to_byte_array()),
            ByteArray::new(*self.payer.as_bytes()),
            ByteArray::new(*self.payee.as_bytes()),
            ByteArray::new(self.payer_key.serialize()),
            self.capacity.to_sat(),
            self.expiry.get(),
            ByteBuf::from(self.change_script.to_bytes()),
        ))
    }

    /// The id under which this proposal's records are filed.
    pub fn proposal(&self) -> ProposalId {
        ProposalId::from_bytes(tagged_hash(
            "bitmesh/channel/open",
            &[&digest(&self.to_bytes())],
        ))
    }
}

impl Accept {
    /// The bytes as they go over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(&AcceptWire(
            Kind::Accept as u8,
            ByteArray::new(*self.proposal.as_bytes()),
            ByteArray::new(self.payee_key.serialize()),
            self.min_first.to_sat(),
            self.exposure
                .steps()
                .iter()
                .map(|s| (s.confirmations, s.limit.to_sat()))
                .collect(),
        ))
    }

    /// The id of the channel that `open` and this answer to it make.
    pub fn channel(&self, open: &Open) -> ChannelId {
        ChannelId::from_bytes(tagged_hash(
            "bitmesh/channel",
            &[&digest(&open.to_bytes()), &digest(&self.to_bytes())],
        ))
    }
}

impl Message {
    /// The one encoding of this message.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Open(open) => open.to_bytes(),
            Self::Accept(accept) => accept.to_bytes(),
            Self::Funding(funding) => encode(&FundingWire(
                Kind::Funding as u8,
                ByteArray::new(*funding.channel.as_bytes()),
                funding.tranche.index(),
                ByteBuf::from(consensus::serialize(&funding.tx)),
                funding.vout,
            )),
            Self::Depth(depth) => {
                let (held, proof) = match &depth.held {
                    Some((total, signature)) => (total.to_sat(), signature.serialize().to_vec()),
                    None => (0, Vec::new()),
                };
                encode(&DepthWire(
                    Kind::Depth as u8,
                    ByteArray::new(*depth.channel.as_bytes()),
                    depth.tranche.index(),
                    depth.confirmations,
                    depth.limit.to_sat(),
                    held,
                    ByteBuf::from(proof),
                ))
            }
            Self::Voucher(voucher) => encode(&VoucherWire(
                Kind::Voucher as u8,
                ByteArray::new(*voucher.channel.as_bytes()),
                voucher.tranche.index(),
                voucher.total.to_sat(),
                ByteArray::new(voucher.signature.serialize()),
            )),
            Self::Refused(refused) => encode(&RefusedWire(
                Kind::Refused as u8,
                ByteArray::new(refused.subject),
                refused.code.code(),
            )),
        }
    }

    /// Takes a message from bytes a peer sent.
    ///
    /// # Errors
    ///
    /// Returns [`DecodeError`] if the bytes are longer than allowed, are not the canonical
    /// encoding of a known message, or hold a key, amount or transaction that cannot be. Whether
    /// the message is *acceptable* is for the machines to say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind = kind(bytes)?;
        let message = match kind {
            Kind::Open => Self::Open(decode::<OpenWire>(bytes)?.try_into()?),
            Kind::Accept => Self::Accept(decode::<AcceptWire>(bytes)?.try_into()?),
            Kind::Funding => Self::Funding(Box::new(decode::<FundingWire>(bytes)?.try_into()?)),
            Kind::Depth => Self::Depth(decode::<DepthWire>(bytes)?.try_into()?),
            Kind::Voucher => Self::Voucher(decode::<VoucherWire>(bytes)?.try_into()?),
            Kind::Refused => {
                let RefusedWire(_, subject, code) = decode(bytes)?;
                let code = RefusalCode::from_code(code);
                Self::Refused(Refused {
                    subject: subject.into_array(),
                    code,
                })
            }
        };
        if message.to_bytes() != bytes {
            return Err(DecodeError::NotCanonical);
        }
        Ok(message)
    }

    /// Which kind of message this is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Open(_) => Kind::Open,
            Self::Accept(_) => Kind::Accept,
            Self::Funding(_) => Kind::Funding,
            Self::Depth(_) => Kind::Depth,
            Self::Voucher(_) => Kind::Voucher,
            Self::Refused(_) => Kind::Refused,
        }
    }

    /// The id the message names: that of a channel, or of a proposal for [`Open`] (its own),
    /// [`Accept`] and some [`Refused`]. Enough to find the machine it is for.
    pub fn subject(&self) -> [u8; 32] {
        match self {
            Self::Open(open) => *open.proposal().as_bytes(),
            Self::Accept(accept) => *accept.proposal.as_bytes(),
            Self::Funding(funding) => *funding.channel.as_bytes(),
            Self::Depth(depth) => *depth.channel.as_bytes(),
            Self::Voucher(voucher) => *voucher.channel.as_bytes(),
            Self::Refused(refused) => refused.subject,
        }
    }
}

/// Reads the kind and holds the size against its cap, before anything is parsed.
fn kind(bytes: &[u8]) -> Result<Kind, DecodeError> {
    /// Major type 4, "array", of fewer than 24 elements.
    const SHORT_ARRAY: std::ops::RangeInclusive<u8> = 0x80..=0x97;
    let [head, kind, ..] = bytes else {
        return Err(DecodeError::UnknownKind);
    };
    if !SHORT_ARRAY.contains(head) {
        return Err(DecodeError::UnknownKind);
    }
    let kind = Kind::from_u8(*kind).ok_or(DecodeError::UnknownKind)?;
    if bytes.len() > kind.max_bytes() {
        return Err(DecodeError::TooLong {
            got: bytes.len(),
            max: kind.max_bytes(),
        });
    }
    Ok(kind)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    sha256::Hash::hash(bytes).to_byte_array()
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing to memory does not fail");
    bytes
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    ciborium::de::from_reader_with_recursion_limit(bytes, MAX_DEPTH)
        .map_err(|error| DecodeError::Malformed(error.to_string()))
}

pub(crate) fn amount(sat: u64, field: &'static str) -> Result<Amount, DecodeError> {
    let amount = Amount::from_sat(sat);
    match amount <= Amount::MAX_MONEY {
        true => Ok(amount),
        false => Err(DecodeError::Field(field)),
    }
}

fn key(bytes: &ByteArray<32>, field: &'static str) -> Result<XOnlyPublicKey, DecodeError> {
    XOnlyPublicKey::from_slice(&bytes[..]).map_err(|_| DecodeError::Field(field))
}

pub(crate) fn signature(bytes: &[u8]) -> Result<Signature, DecodeError> {
    Signature::from_slice(bytes).map_err(|_| DecodeError::Field("signature"))
}

// Tuple structs: serde writes them as CBOR arrays.

type Bytes32 = ByteArray<32>;

#[derive(Serialize, Deserialize)]
struct OpenWire(
    u8,
    u8,
    ByteArray<16>,
    Bytes32,
    Bytes32,
    Bytes32,
    Bytes32,
    u64,
    u32,
    ByteBuf,
);

#[derive(Serialize, Deserialize)]
struct AcceptWire(u8, Bytes32, Bytes32, u64, Vec<(u32, u64)>);

#[derive(Serialize, Deserialize)]
struct FundingWire(u8, Bytes32, u8, ByteBuf, u32);

#[derive(Serialize, Deserialize)]
struct DepthWire(u8, Bytes32, u8, u32, u64, u64, ByteBuf);

#[derive(Serialize, Deserialize)]
struct VoucherWire(u8, Bytes32, u8, u64, ByteArray<64>);

#[derive(Serialize, Deserialize)]
struct RefusedWire(u8, Bytes32, u8);

impl TryFrom<OpenWire> for Open {
    type Error = DecodeError;

    fn try_from(wire: OpenWire) -> Result<Self, DecodeError> {
        let OpenWire(_, version, nonce, chain, payer, payee, payer_key, capacity, expiry, change) =
            wire;
        if version != VERSION {
            return Err(DecodeError::Version { got: version });
        }
        Ok(Self {
            nonce: nonce.into_array(),
            chain: BlockHash::from_byte_array(chain.into_array()),
            payer: PartyId::from_bytes(payer.into_array()),
            payee: PartyId::from_bytes(payee.into_array()),
            payer_key: key(&payer_key, "payer_key")?,
            capacity: amount(capacity, "capacity")?,
            expiry: BlockHeight::new(expiry),
            change_script: ScriptBuf::from_bytes(change.into_vec()),
        })
    }
}

impl TryFrom<AcceptWire> for Accept {
    type Error = DecodeError;

    fn try_from(wire: AcceptWire) -> Result<Self, DecodeError> {
        let AcceptWire(_, proposal, payee_key, min_first, steps) = wire;
        let steps = steps
            .into_iter()
            .map(|(confirmations, limit)| {
                Ok(Step {
                    confirmations,
                    limit: amount(limit, "exposure")?,
                })
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        Ok(Self {
            proposal: ProposalId::from_bytes(proposal.into_array()),
            payee_key: key(&payee_key, "payee_key")?,
            min_first: amount(min_first, "min_first")?,
            exposure: ExposureTable::new(steps).map_err(|_| DecodeError::Field("exposure"))?,
        })
    }
}

impl TryFrom<FundingWire> for Funding {
    type Error = DecodeError;

    fn try_from(wire: FundingWire) -> Result<Self, DecodeError> {
        let FundingWire(_, channel, tranche, tx, vout) = wire;
        if tx.len() > MAX_FUNDING_BYTES {
            return Err(DecodeError::TooLong {
                got: tx.len(),
                max: MAX_FUNDING_BYTES,
            });
        }
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            tx: consensus::deserialize(&tx).map_err(|_| DecodeError::Field("tx"))?,
            vout,
        })
    }
}

impl TryFrom<DepthWire> for Depth {
    type Error = DecodeError;

    fn try_from(wire: DepthWire) -> Result<Self, DecodeError> {
        let DepthWire(_, channel, tranche, confirmations, limit, held, proof) = wire;
        let held = match (held, proof.is_empty()) {
            (0, true) => None,
            _ => Some((amount(held, "held")?, signature(&proof)?)),
        };
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            confirmations,
            limit: amount(limit, "limit")?,
            held,
        })
    }
}

impl TryFrom<VoucherWire> for Voucher {
    type Error = DecodeError;

    fn try_from(wire: VoucherWire) -> Result<Self, DecodeError> {
        let VoucherWire(_, channel, tranche, total, proof) = wire;
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            total: amount(total, "total")?,
            signature: signature(&proof[..])?,
        })
    }
}
