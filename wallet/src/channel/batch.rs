//! Ending many channels in one transaction: a batch.
//!
//! A payer's signature covers its own input and, where change is left, the output at that input's
//! index. So the inputs of channels that return change come first, each opposite its change; those
//! that were paid out whole follow, and the payee's payout is the last output. The payee signs
//! every input over the whole (`SIGHASH_DEFAULT`), so nobody can take a channel out or add one.
//!
//! A channel costs 150.75 vB this way (107.75 if nothing is left to return), and the rest of the
//! transaction 53.5 vB once; alone a close costs 205 vB.

use std::collections::BTreeSet;

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::Keypair;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, FeeRate, Script, Transaction, TxOut, taproot};
use thiserror::Error;

use super::SECP;
use super::tranche::Tranche;
use super::tx::{self, BuildError};
use super::voucher::{Legal, Voucher};

/// Most channels that one transaction ends: 9,099 of the 10,000 virtual bytes that version 3
/// allows, which leaves room for a payout script of any kind.
pub const MAX_CHANNELS: usize = 60;

/// Weight of a channel that returns change: 150.75 vB.
pub const PART_WEIGHT: u64 = 603;
/// Weight of a channel that is paid out whole: 107.75 vB.
pub const FULL_WEIGHT: u64 = 431;

/// One channel to end: what the payee needs to sign for it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The funded output. Its funding must be confirmed: version 3 allows a child of unconfirmed
    /// funding 1,000 vB and one such parent.
    pub tranche: &'a Tranche,
    /// The payee's best voucher.
    pub voucher: &'a Voucher,
    /// The payee's channel key.
    pub payee: &'a Keypair,
}

/// Why no such transaction is made. Nothing was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// None, or more than [`MAX_CHANNELS`].
    #[error("{got} channels, wanted 1 to {MAX_CHANNELS}")]
    Count {
        /// How many there were.
        got: usize,
    },
    /// Two members spend the same output.
    #[error("channel {index} is there twice")]
    Twice {
        /// Its place among the members.
        index: usize,
    },
    /// A member's voucher does not belong to its tranche, or its signature is invalid.
    #[error("the voucher of channel {index} is not valid for its tranche")]
    Voucher {
        /// Its place among the members.
        index: usize,
    },
    /// A member would have to pay more for its place than it brings; it does better outside.
    #[error("channel {index} holds {total} and would cost {share}")]
    Worthless {
        /// Its place among the members.
        index: usize,
        /// What its voucher pays.
        total: Amount,
        /// Its share of the fee.
        share: Amount,
    },
    /// The transaction cannot be made at this fee rate.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The transaction with which the payee ends all `members` at once: to `payout` goes what their
/// vouchers pay, less the fee at `feerate`; the rest of each goes to its payer. Fully signed, and
/// the same bytes for the same arguments. Of one member it is [`tx::commitment`].
///
/// Asked again at a higher rate, also with other members, it replaces the one before: the payers'
/// signatures serve as often as wanted.
///
/// # Errors
///
/// Returns [`BatchError`], which names the member that is in the way where one is.
pub fn commitments(
    members: &[Member<'_>],
    payout: &Script,
    feerate: FeeRate,
) -> Result<Transaction, BatchError> {
    if members.is_empty() || members.len() > MAX_CHANNELS {
        return Err(BatchError::Count { got: members.len() });
    }
    let mut seen = BTreeSet::new();
    let (mut parts, mut fulls) = (Vec::new(), Vec::new());
    for (index, member) in members.iter().enumerate() {
        let invalid = BatchError::Voucher { index };
        if !seen.insert(member.tranche.outpoint()) {
            return Err(BatchError::Twice { index });
        }
        member.tranche.verify(member.voucher).map_err(|_| invalid)?;
        match member.tranche.legal(member.voucher.total) {
            Ok(legal @ Legal::Part { .. }) => parts.push((index, *member, legal)),
            Ok(legal @ Legal::Full) => fulls.push((index, *member, legal)),
            Err(_) => return Err(invalid),
        }
    }
    parts.append(&mut fulls);

    let mut spend = Transaction {
        version: tx::VERSION,
        lock_time: LockTime::ZERO,
        input: Vec::with_capacity(parts.len()),
        output: Vec::with_capacity(parts.len() + 1),
    };
    let (mut total, mut prevouts) = (Amount::ZERO, Vec::with_capacity(parts.len()));
    for (index, member, legal) in &parts {
        let mut template = tx::template(member.tranche, *legal);
        let placeholder = taproot::Signature {
            signature: member.voucher.signature,
            sighash_type: TapSighashType::Default,
        };
        for input in &mut template.input {
            input.witness = member.witness(*legal, &placeholder);
        }
        spend.input.append(&mut template.input);
        spend.output.append(&mut template.output);
        prevouts.push(member.tranche.prevout());
        total = total
            .checked_add(member.voucher.total)
            .ok_or(BatchError::Voucher { index: *index })?;
    }
    spend.output.push(TxOut {
        value: Amount::ZERO,
        script_pubkey: payout.to_owned(),
    });
    let value = tx::less_fee(total, spend.weight(), payout, feerate)?;
    if let Some(output) = spend.output.last_mut() {
        output.value = value;
    }
    let fee = total.checked_sub(value).unwrap_or(Amount::ZERO);
    for (place, (index, member, _)) in parts.iter().enumerate() {
        let share = split(&spend, place, fee);
        if share >= member.voucher.total {
            return Err(BatchError::Worthless {
                index: *index,
                total: member.voucher.total,
                share,
            });
        }
    }

    let mut cache = SighashCache::new(&spend);
    let mut witnesses = Vec::with_capacity(parts.len());
    for (place, (_, member, legal)) in parts.iter().enumerate() {
        let digest = cache
            .taproot_script_spend_signature_hash(
                place,
                &Prevouts::All(&prevouts),
                member.tranche.scripts().update().hash,
                TapSighashType::Default,
            )
            .expect("every input has its prevout");
        let signature = taproot::Signature {
            signature: SECP.sign_schnorr_no_aux_rand(&digest.into(), member.payee),
            sighash_type: TapSighashType::Default,
        };
        witnesses.push(member.witness(*legal, &signature));
    }
    for (input, witness) in spend.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
    Ok(spend)
}

impl Member<'_> {
    fn witness(&self, legal: Legal, payee: &taproot::Signature) -> bitcoin::Witness {
        let payer = taproot::Signature {
            signature: self.voucher.signature,
            sighash_type: legal.sighash_type(),
        };
        tx::update_witness(self.tranche.scripts().update(), &payer, payee)
    }
}

impl Tranche {
    /// What this channel bears of the fee of `tx`, a batch that it ends in and whose inputs hold
    /// `spent` in all. By weight, in whole sat; the first input bears what does not divide, so the
    /// shares of all inputs add up to the fee. Zero where `tx` does not spend it.
    pub fn fee_share(&self, tx: &Transaction, spent: Amount) -> Amount {
        let mut inputs = tx.input.iter();
        let place = inputs.position(|input| input.previous_output == self.outpoint());
        let mut outputs = tx.output.iter();
        let paid = outputs.try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value));
        let fee = paid.and_then(|paid| spent.checked_sub(paid));
        place
            .zip(fee)
            .map_or(Amount::ZERO, |(place, fee)| split(tx, place, fee))
    }
}

fn split(tx: &Transaction, index: usize, fee: Amount) -> Amount {
    // All outputs but the payout are change, each opposite its input.
    let changes = tx.output.len().saturating_sub(1);
    let weight = |place: usize| {
        u128::from(if place < changes {
            PART_WEIGHT
        } else {
            FULL_WEIGHT
        })
    };
    let whole: u128 = (0..tx.input.len()).map(weight).sum();
    let share = |place: usize| {
        let share = u128::from(fee.to_sat()) * weight(place) / whole.max(1);
        u64::try_from(share).unwrap_or(0)
    };
    if index >= tx.input.len() {
        return Amount::ZERO;
    }
    if index > 0 {
        return Amount::from_sat(share(index));
    }
    let others: u64 = (1..tx.input.len()).map(share).sum();
    Amount::from_sat(fee.to_sat().saturating_sub(others))
}
