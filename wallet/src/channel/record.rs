//! Durable facts, from which a machine is rebuilt.
//!
//! A machine puts every fact it must not forget into an [`Output::Persist`](super::payer::Output)
//! ahead of the message or transaction that relies on it. Feed all records of one proposal, in
//! the order they were written, to [`Payer::restore`](super::payer::Payer::restore) or
//! [`Payee::restore`](super::payee::Payee::restore).
//!
//! On disk a record is one canonical CBOR array, `[proposal, kind, …]`, inside a journal entry of
//! kind [`JOURNAL_KIND`].

use std::collections::BTreeSet;

use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::{Amount, ScriptBuf, Transaction, TxOut, Txid, consensus, hashes::Hash};
use serde_bytes::{ByteArray, ByteBuf};

use super::deadline::BlockHeight;
use super::message::{Accept, DecodeError, Message, Open, amount, decode, encode, signature};
use super::{ProposalId, TrancheIndex};

pub use super::settlement::{End, Settlement};

/// Kind of the journal entries that hold channel records. Kinds below 16 belong to the wallet.
pub const JOURNAL_KIND: u8 = 1;

/// Where the kind stands: after the array's head, the id's head (two bytes), and the id.
const KIND_OFFSET: usize = 35;

/// One durable fact about one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The channel, by the proposal it came from.
    pub proposal: ProposalId,
    /// What happened.
    pub fact: Fact,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Payer: proposed a channel.
    Proposed {
        /// The proposal.
        open: Open,
        /// Derivation index of the payer's channel key, to find the key again.
        key_index: u32,
        /// The largest first payment the payer agreed to.
        max_min_first: Amount,
        /// The channel that this one is to be funded from, by a rollover and by nothing else.
        from: Option<ProposalId>,
    },
    /// Payer: the payee accepted, and the payer is to fund it.
    Accepted {
        /// The answer.
        accept: Accept,
    },
    /// Payee: accepted a proposal.
    Agreed {
        /// The proposal.
        open: Open,
        /// The answer.
        accept: Accept,
        /// Derivation index of the payee's channel key, to find the key again.
        key_index: u32,
        /// The channel that this one is to be funded from, whose payee's key it shares.
        from: Option<ProposalId>,
    },
    /// Both: the transaction that funds a tranche.
    Funded {
        /// The tranche.
        tranche: TrancheIndex,
        /// The transaction, fully signed.
        tx: Box<Transaction>,
        /// Which of its outputs is the tranche.
        vout: u32,
        /// What the payer paid for it; the payee does not know and records zero.
        fee: Amount,
    },
    /// Payer: about to sign for this running total.
    Promised {
        /// The tranche.
        tranche: TrancheIndex,
        /// The running total.
        total: Amount,
    },
    /// Payee: holds this voucher, the best so far.
    Held {
        /// The tranche.
        tranche: TrancheIndex,
        /// The running total.
        total: Amount,
        /// The payer's signature.
        signature: Signature,
    },
    /// Payer: about to give away its half of the signature on a split. From here on the payee can end
    /// the channel by it, at any time.
    Splitting {
        /// The tranche.
        tranche: TrancheIndex,
        /// The running total it pays out.
        total: Amount,
        /// The output of the next channel, if the rest is carried over into one.
        next: Option<TxOut>,
    },
    /// Both: about to broadcast this close. The payer has one only if both signed it.
    Closing {
        /// The close, fully signed.
        tx: Box<Transaction>,
    },
    /// Payer: about to broadcast this refund.
    Refunding {
        /// The refund, fully signed.
        tx: Box<Transaction>,
    },
    /// Both: the funding output was spent, and that is buried.
    Settled(Settlement),
    /// Both: it came to nothing; no money is in it.
    Abandoned,
}

impl Record {
    /// The record as it is written to the journal.
    pub fn to_bytes(&self) -> Vec<u8> {
        let id = ByteArray::new(*self.proposal.as_bytes());
        match &self.fact {
            Fact::Proposed {
                open,
                key_index,
                max_min_first,
                from,
            } => {
                let (open, max) = (ByteBuf::from(open.to_bytes()), max_min_first.to_sat());
                match from {
                    None => encode(&(id, 1u8, open, *key_index, max)),
                    Some(from) => encode(&(
                        id,
                        16u8,
                        open,
                        *key_index,
                        max,
                        ByteArray::new(*from.as_bytes()),
                    )),
                }
            }
            Fact::Accepted { accept } => encode(&(id, 2u8, ByteBuf::from(accept.to_bytes()))),
            Fact::Agreed {
                open,
                accept,
                key_index,
                from,
            } => {
                let open = ByteBuf::from(open.to_bytes());
                let accept = ByteBuf::from(accept.to_bytes());
                match from {
                    None => encode(&(id, 3u8, open, accept, *key_index)),
                    Some(from) => encode(&(
                        id,
                        17u8,
                        open,
                        accept,
                        *key_index,
                        ByteArray::new(*from.as_bytes()),
                    )),
                }
            }
            Fact::Funded {
                tranche,
                tx,
                vout,
                fee,
            } => encode(&(id, 4u8, tranche.index(), raw(tx), *vout, fee.to_sat())),
            Fact::Promised { tranche, total } => {
                encode(&(id, 5u8, tranche.index(), total.to_sat()))
            }
            Fact::Held {
                tranche,
                total,
                signature,
            } => encode(&(
                id,
                6u8,
                tranche.index(),
                total.to_sat(),
                ByteArray::new(signature.serialize()),
            )),
            Fact::Closing { tx } => encode(&(id, 7u8, raw(tx))),
            Fact::Refunding { tx } => encode(&(id, 8u8, raw(tx))),
            Fact::Settled(settlement) => encode(&(
                id,
                9u8,
                match settlement.end {
                    End::Commitment => 0u8,
                    End::Refund => 1,
                    End::Together => 2,
                },
                ByteArray::new(settlement.txid.to_byte_array()),
                settlement.height.get(),
                settlement.returned.to_sat(),
                settlement.received.to_sat(),
                settlement.fee.to_sat(),
            )),
            Fact::Abandoned => encode(&(id, 10u8)),
            Fact::Splitting {
                tranche,
                total,
                next: None,
            } => encode(&(id, 11u8, tranche.index(), total.to_sat())),
            Fact::Splitting {
                tranche,
                total,
                next: Some(next),
            } => encode(&(
                id,
                18u8,
                tranche.index(),
                total.to_sat(),
                next.value.to_sat(),
                ByteBuf::from(next.script_pubkey.to_bytes()),
            )),
        }
    }

    /// Reads a record back.
    ///
    /// # Errors
    ///
    /// Returns [`DecodeError`] if the bytes are not the canonical encoding of a record. The
    /// journal's checksum already passed, so this means a later version wrote it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        type Id = ByteArray<32>;
        let kind = bytes.get(KIND_OFFSET).ok_or(DecodeError::UnknownKind)?;
        let (id, fact) = match kind {
            1 => {
                let (id, _, open, key_index, max): (Id, u8, ByteBuf, u32, u64) = decode(bytes)?;
                let (open, max_min_first) = (open_from(&open)?, amount(max, "max_min_first")?);
                (
                    id,
                    Fact::Proposed {
                        open,
                        key_index,
                        max_min_first,
                        from: None,
                    },
                )
            }
            2 => {
                let (id, _, accept): (Id, u8, ByteBuf) = decode(bytes)?;
                (
                    id,
                    Fact::Accepted {
                        accept: accept_from(&accept)?,
                    },
                )
            }
            3 => {
                let (id, _, open, accept, key_index): (Id, u8, ByteBuf, ByteBuf, u32) =
                    decode(bytes)?;
                let (open, accept) = (open_from(&open)?, accept_from(&accept)?);
                (
                    id,
                    Fact::Agreed {
                        open,
                        accept,
                        key_index,
                        from: None,
                    },
                )
            }
            4 => {
                let (id, _, tranche, tx, vout, fee): (Id, u8, u8, ByteBuf, u32, u64) =
                    decode(bytes)?;
                let (tranche, tx) = (TrancheIndex::new(tranche), tx_from(&tx)?);
                (
                    id,
                    Fact::Funded {
                        tranche,
                        tx,
                        vout,
                        fee: amount(fee, "fee")?,
                    },
                )
            }
            5 => {
                let (id, _, tranche, total): (Id, u8, u8, u64) = decode(bytes)?;
                let (tranche, total) = (TrancheIndex::new(tranche), amount(total, "total")?);
                (id, Fact::Promised { tranche, total })
            }
            6 => {
                let (id, _, tranche, total, proof): (Id, u8, u8, u64, ByteArray<64>) =
                    decode(bytes)?;
                let (tranche, total) = (TrancheIndex::new(tranche), amount(total, "total")?);
                (
                    id,
                    Fact::Held {
                        tranche,
                        total,
                        signature: signature(&proof[..])?,
                    },
                )
            }
            7 => {
                let (id, _, tx): (Id, u8, ByteBuf) = decode(bytes)?;
                (id, Fact::Closing { tx: tx_from(&tx)? })
            }
            8 => {
                let (id, _, tx): (Id, u8, ByteBuf) = decode(bytes)?;
                (id, Fact::Refunding { tx: tx_from(&tx)? })
            }
            9 => {
                type Wire = (Id, u8, u8, Id, u32, u64, u64, u64);
                let (id, _, end, txid, height, returned, received, fee): Wire = decode(bytes)?;
                let end = match end {
                    0 => End::Commitment,
                    1 => End::Refund,
                    2 => End::Together,
                    _ => return Err(DecodeError::Field("end")),
                };
                let settlement = Settlement {
                    end,
                    txid: Txid::from_byte_array(txid.into_array()),
                    height: BlockHeight::new(height),
                    returned: amount(returned, "returned")?,
                    received: amount(received, "received")?,
                    fee: amount(fee, "fee")?,
                };
                (id, Fact::Settled(settlement))
            }
            10 => {
                let (id, _): (Id, u8) = decode(bytes)?;
                (id, Fact::Abandoned)
            }
            11 => {
                let (id, _, tranche, total): (Id, u8, u8, u64) = decode(bytes)?;
                let (tranche, total) = (TrancheIndex::new(tranche), amount(total, "total")?);
                let next = None;
                let fact = Fact::Splitting {
                    tranche,
                    total,
                    next,
                };
                (id, fact)
            }
            16 => {
                type Wire = (Id, u8, ByteBuf, u32, u64, Id);
                let (id, _, open, key_index, max, from): Wire = decode(bytes)?;
                let fact = Fact::Proposed {
                    open: open_from(&open)?,
                    key_index,
                    max_min_first: amount(max, "max_min_first")?,
                    from: Some(ProposalId::from_bytes(from.into_array())),
                };
                (id, fact)
            }
            17 => {
                type Wire = (Id, u8, ByteBuf, ByteBuf, u32, Id);
                let (id, _, open, accept, key_index, from): Wire = decode(bytes)?;
                let fact = Fact::Agreed {
                    open: open_from(&open)?,
                    accept: accept_from(&accept)?,
                    key_index,
                    from: Some(ProposalId::from_bytes(from.into_array())),
                };
                (id, fact)
            }
            18 => {
                type Wire = (Id, u8, u8, u64, u64, ByteBuf);
                let (id, _, tranche, total, value, script): Wire = decode(bytes)?;
                let fact = Fact::Splitting {
                    tranche: TrancheIndex::new(tranche),
                    total: amount(total, "total")?,
                    next: Some(TxOut {
                        value: amount(value, "value")?,
                        script_pubkey: ScriptBuf::from_bytes(script.into_vec()),
                    }),
                };
                (id, fact)
            }
            _ => return Err(DecodeError::UnknownKind),
        };
        let record = Self {
            proposal: ProposalId::from_bytes(id.into_array()),
            fact,
        };
        if record.to_bytes() != bytes {
            return Err(DecodeError::NotCanonical);
        }
        Ok(record)
    }

    /// Derivation index of our channel key, where this record holds it: the first record of a
    /// channel does.
    pub const fn key_index(&self) -> Option<u32> {
        match &self.fact {
            Fact::Proposed { key_index, .. } | Fact::Agreed { key_index, .. } => Some(*key_index),
            _ => None,
        }
    }
}

/// What a record of these bytes tells of, in a word or two, for people. The bytes may be damaged: `None` if
/// they are too few, or the kind is none.
pub fn name_of(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes.get(KIND_OFFSET)? {
        1 => "proposal",
        2 => "acceptance",
        3 => "agreement",
        4 => "funding",
        5 => "promise",
        6 => "voucher",
        7 => "close",
        8 => "refund",
        9 => "settlement",
        10 => "end without money",
        11 => "split",
        _ => return None,
    })
}

/// Drops the records that later ones have made superfluous, keeping the order of the rest: all but
/// the last running total of each channel, all but the last split, close or refund, and those too once the
/// channel has ended. Machines and [`Ledger`](crate::ledger::Ledger) come out the same.
///
/// A channel writes one record for every voucher, so the journal grows with use; write back what
/// remains with [`Journal::replace`](crate::store::Journal::replace).
pub fn compact(records: Vec<Record>) -> Vec<Record> {
    let mut superseded = BTreeSet::new();
    let mut kept: Vec<Record> = records
        .into_iter()
        .rev()
        .filter(|record| {
            let id = record.proposal;
            match record.fact {
                Fact::Promised { tranche, .. } | Fact::Held { tranche, .. } => {
                    superseded.insert((id, Some(tranche)))
                }
                Fact::Splitting { .. } | Fact::Closing { .. } | Fact::Refunding { .. } => {
                    superseded.insert((id, None))
                }
                Fact::Settled(_) | Fact::Abandoned => {
                    superseded.insert((id, None));
                    true
                }
                Fact::Proposed { .. }
                | Fact::Accepted { .. }
                | Fact::Agreed { .. }
                | Fact::Funded { .. } => true,
            }
        })
        .collect();
    kept.reverse();
    kept
}

fn raw(tx: &Transaction) -> ByteBuf {
    ByteBuf::from(consensus::serialize(tx))
}

fn tx_from(bytes: &[u8]) -> Result<Box<Transaction>, DecodeError> {
    consensus::deserialize(bytes)
        .map(Box::new)
        .map_err(|_| DecodeError::Field("tx"))
}

fn open_from(bytes: &[u8]) -> Result<Open, DecodeError> {
    match Message::from_bytes(bytes)? {
        Message::Open(open) => Ok(open),
        _ => Err(DecodeError::Field("open")),
    }
}

fn accept_from(bytes: &[u8]) -> Result<Accept, DecodeError> {
    match Message::from_bytes(bytes)? {
        Message::Accept(accept) => Ok(accept),
        _ => Err(DecodeError::Field("accept")),
    }
}
