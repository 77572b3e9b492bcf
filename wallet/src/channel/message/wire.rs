//! The CBOR of the messages.

use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::{Amount, BlockHash, ScriptBuf, consensus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use super::{
    Accept, Close, CloseAck, CloseAsk, CloseDone, ClosePartial, DecodeError, Depth, Funding, Kind,
    MAX_DEPTH, MAX_FUNDING_BYTES, Message, Open, RefusalCode, Refused, Renew, VERSION,
};
use crate::channel::deadline::BlockHeight;
use crate::channel::exposure::{ExposureTable, Step};
use crate::channel::musig::{NONCE_BYTES, PARTIAL_BYTES, PartialSignature, PublicNonce};
use crate::channel::split::Split;
use crate::channel::voucher::Voucher;
use crate::channel::{AttemptId, ChannelId, PartyId, ProposalId, TrancheIndex, tagged_hash};

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
                let (held, proof) = claim(depth.held.as_ref());
                encode(&DepthWire(
                    Kind::Depth as u8,
                    ByteArray::new(*depth.channel.as_bytes()),
                    depth.tranche.index(),
                    depth.confirmations,
                    depth.limit.to_sat(),
                    held,
                    proof,
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
            Self::CloseAsk(ask) => encode(&CloseAskWire(
                Kind::CloseAsk as u8,
                ByteArray::new(*ask.channel.as_bytes()),
                ask.tranche.index(),
            )),
            Self::Close(close) => {
                let (total, proof) = claim(close.promised.as_ref());
                let (kind, channel) =
                    (self.kind() as u8, ByteArray::new(*close.channel.as_bytes()));
                let (tranche, nonce) = (
                    close.tranche.index(),
                    ByteArray::new(close.nonce.serialize()),
                );
                match &close.next {
                    None => encode(&CloseWire(kind, channel, tranche, nonce, total, proof)),
                    Some(next) => encode(&RollWire(
                        kind,
                        channel,
                        tranche,
                        nonce,
                        total,
                        proof,
                        ByteArray::new(*next.as_bytes()),
                    )),
                }
            }
            Self::CloseAck(ack) => encode(&CloseAckWire(
                Kind::CloseAck as u8,
                ByteArray::new(*ack.channel.as_bytes()),
                ack.tranche.index(),
                ByteArray::new(*ack.attempt.as_bytes()),
                ByteArray::new(ack.nonce.serialize()),
                ack.split.total.to_sat(),
                ByteBuf::from(ack.split.payout.to_bytes()),
                ack.split.fee.to_sat(),
            )),
            Self::ClosePartial(half) => encode(&ClosePartialWire(
                Kind::ClosePartial as u8,
                ByteArray::new(*half.channel.as_bytes()),
                half.tranche.index(),
                ByteArray::new(*half.attempt.as_bytes()),
                ByteArray::new(half.partial.serialize()),
            )),
            Self::CloseDone(done) => encode(&CloseDoneWire(
                Kind::CloseDone as u8,
                ByteArray::new(*done.channel.as_bytes()),
                done.tranche.index(),
                done.split.total.to_sat(),
                ByteBuf::from(done.split.payout.to_bytes()),
                done.split.fee.to_sat(),
                ByteArray::new(done.signature.serialize()),
            )),
            Self::Renew(renew) => encode(&RenewWire(
                Kind::Renew as u8,
                ByteArray::new(*renew.from.as_bytes()),
                ByteBuf::from(renew.open.to_bytes()),
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
            Kind::CloseAsk => {
                let CloseAskWire(_, channel, tranche) = decode(bytes)?;
                Self::CloseAsk(CloseAsk {
                    channel: ChannelId::from_bytes(channel.into_array()),
                    tranche: TrancheIndex::new(tranche),
                })
            }
            Kind::Close => Self::Close(Box::new(decode::<CloseWire>(bytes)?.try_into()?)),
            Kind::CloseAck => Self::CloseAck(Box::new(decode::<CloseAckWire>(bytes)?.try_into()?)),
            Kind::ClosePartial => {
                Self::ClosePartial(decode::<ClosePartialWire>(bytes)?.try_into()?)
            }
            Kind::CloseDone => Self::CloseDone(decode::<CloseDoneWire>(bytes)?.try_into()?),
            Kind::Renew => {
                let RenewWire(_, from, open) = decode(bytes)?;
                match Self::from_bytes(&open)? {
                    Self::Open(open) => Self::Renew(Box::new(Renew {
                        from: ProposalId::from_bytes(from.into_array()),
                        open,
                    })),
                    _ => return Err(DecodeError::Field("open")),
                }
            }
            Kind::Roll => Self::Close(Box::new(decode::<RollWire>(bytes)?.try_into()?)),
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
            Self::CloseAsk(_) => Kind::CloseAsk,
            Self::Close(close) if close.next.is_some() => Kind::Roll,
            Self::Close(_) => Kind::Close,
            Self::Renew(_) => Kind::Renew,
            Self::CloseAck(_) => Kind::CloseAck,
            Self::ClosePartial(_) => Kind::ClosePartial,
            Self::CloseDone(_) => Kind::CloseDone,
        }
    }

    /// The id the message names: that of a channel, or of a proposal for [`Open`] and [`Renew`] (its
    /// own), [`Accept`] and some [`Refused`]. Enough to find the machine it is for.
    pub fn subject(&self) -> [u8; 32] {
        match self {
            Self::Open(open) => *open.proposal().as_bytes(),
            Self::Accept(accept) => *accept.proposal.as_bytes(),
            Self::Funding(funding) => *funding.channel.as_bytes(),
            Self::Depth(depth) => *depth.channel.as_bytes(),
            Self::Voucher(voucher) => *voucher.channel.as_bytes(),
            Self::Refused(refused) => refused.subject,
            Self::CloseAsk(ask) => *ask.channel.as_bytes(),
            Self::Close(close) => *close.channel.as_bytes(),
            Self::CloseAck(ack) => *ack.channel.as_bytes(),
            Self::ClosePartial(half) => *half.channel.as_bytes(),
            Self::CloseDone(done) => *done.channel.as_bytes(),
            Self::Renew(renew) => *renew.open.proposal().as_bytes(),
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

/// A total with its proof, as two fields; zero and empty for none.
fn claim(claim: Option<&(Amount, Signature)>) -> (u64, ByteBuf) {
    match claim {
        Some((total, proof)) => (total.to_sat(), ByteBuf::from(proof.serialize().to_vec())),
        None => (0, ByteBuf::new()),
    }
}

fn claim_from(
    total: u64,
    proof: &[u8],
    field: &'static str,
) -> Result<Option<(Amount, Signature)>, DecodeError> {
    match (total, proof.is_empty()) {
        (0, true) => Ok(None),
        _ => Ok(Some((amount(total, field)?, signature(proof)?))),
    }
}

fn nonce(bytes: &ByteArray<NONCE_BYTES>) -> Result<PublicNonce, DecodeError> {
    PublicNonce::from_byte_array(bytes).map_err(|_| DecodeError::Field("nonce"))
}

fn split(total: u64, payout: ByteBuf, fee: u64) -> Result<Split, DecodeError> {
    Ok(Split {
        total: amount(total, "total")?,
        payout: ScriptBuf::from_bytes(payout.into_vec()),
        fee: amount(fee, "fee")?,
    })
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

#[derive(Serialize, Deserialize)]
struct CloseAskWire(u8, Bytes32, u8);

#[derive(Serialize, Deserialize)]
struct CloseWire(u8, Bytes32, u8, ByteArray<NONCE_BYTES>, u64, ByteBuf);

#[derive(Serialize, Deserialize)]
struct RollWire(
    u8,
    Bytes32,
    u8,
    ByteArray<NONCE_BYTES>,
    u64,
    ByteBuf,
    Bytes32,
);

#[derive(Serialize, Deserialize)]
struct RenewWire(u8, Bytes32, ByteBuf);

#[derive(Serialize, Deserialize)]
struct CloseAckWire(
    u8,
    Bytes32,
    u8,
    Bytes32,
    ByteArray<NONCE_BYTES>,
    u64,
    ByteBuf,
    u64,
);

#[derive(Serialize, Deserialize)]
struct ClosePartialWire(u8, Bytes32, u8, Bytes32, ByteArray<PARTIAL_BYTES>);

#[derive(Serialize, Deserialize)]
struct CloseDoneWire(u8, Bytes32, u8, u64, ByteBuf, u64, ByteArray<64>);

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
        let held = claim_from(held, &proof, "held")?;
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

impl TryFrom<CloseWire> for Close {
    type Error = DecodeError;

    fn try_from(wire: CloseWire) -> Result<Self, DecodeError> {
        let CloseWire(_, channel, tranche, public, total, proof) = wire;
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            nonce: nonce(&public)?,
            promised: claim_from(total, &proof, "promised")?,
            next: None,
        })
    }
}

impl TryFrom<RollWire> for Close {
    type Error = DecodeError;

    fn try_from(wire: RollWire) -> Result<Self, DecodeError> {
        let RollWire(kind, channel, tranche, nonce, total, proof, next) = wire;
        let close = Self::try_from(CloseWire(kind, channel, tranche, nonce, total, proof))?;
        Ok(Self {
            next: Some(ChannelId::from_bytes(next.into_array())),
            ..close
        })
    }
}

impl TryFrom<CloseAckWire> for CloseAck {
    type Error = DecodeError;

    fn try_from(wire: CloseAckWire) -> Result<Self, DecodeError> {
        let CloseAckWire(_, channel, tranche, attempt, public, total, payout, fee) = wire;
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            attempt: AttemptId::from_bytes(attempt.into_array()),
            nonce: nonce(&public)?,
            split: split(total, payout, fee)?,
        })
    }
}

impl TryFrom<ClosePartialWire> for ClosePartial {
    type Error = DecodeError;

    fn try_from(wire: ClosePartialWire) -> Result<Self, DecodeError> {
        let ClosePartialWire(_, channel, tranche, attempt, partial) = wire;
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            attempt: AttemptId::from_bytes(attempt.into_array()),
            partial: PartialSignature::from_byte_array(&partial)
                .map_err(|_| DecodeError::Field("partial"))?,
        })
    }
}

impl TryFrom<CloseDoneWire> for CloseDone {
    type Error = DecodeError;

    fn try_from(wire: CloseDoneWire) -> Result<Self, DecodeError> {
        let CloseDoneWire(_, channel, tranche, total, payout, fee, proof) = wire;
        Ok(Self {
            channel: ChannelId::from_bytes(channel.into_array()),
            tranche: TrancheIndex::new(tranche),
            split: split(total, payout, fee)?,
            signature: signature(&proof[..])?,
        })
    }
}
