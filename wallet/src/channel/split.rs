//! What a close together pays to whom, and the transaction that does it.
//!
//! One version 3 transaction spends the output by its key path, with one signature that both sides
//! made ([`super::musig`], sighash `DEFAULT`: it covers everything). The payee chooses payout and
//! fee, since it pays that fee out of its payout, as in a close alone. Only where it is owed nothing
//! does it get no output, and the payer pays.
//!
//! | | payee alone | together |
//! |---|---|---|
//! | total 0 | cannot | capacity − fee to the payer |
//! | total `n` | `n` − fee to the payee, rest to the payer | the same, for three quarters of the fee |
//!
//! A **rollover** is a split whose rest goes on: it pays the output of the pair's next channel, and so
//! funds it ([`Tranche::carried_into`]). The rest is what the next channel holds, to the sat, or
//! leaves change that is no dust. The payout is always the last output.

use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::Message as Digest;
use bitcoin::secp256k1::schnorr::Signature;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, FeeRate, Script, ScriptBuf, Transaction, TxOut, Witness};
use thiserror::Error;

use super::SECP;
use super::refusal::RefusalCode;
use super::tranche::Tranche;
use super::tx::{self, BuildError, DUST_P2TR};
use super::voucher::{Legal, TotalError};

pub use super::tx::{SPLIT_ONE_VBYTES, SPLIT_VBYTES};

/// How long one attempt to close together may take. Its three messages need a second at most; whoever
/// waits at the other end, a person, does not wait longer.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(15);
/// Least time between two attempts that a payer begins: each costs the payee a nonce.
pub const CLOSE_RESPITE: Duration = Duration::from_secs(1);

/// How far the payee's fee rate may be from the payer's own estimate: below a fourth of it the
/// transaction might not be mined for long, and where the payer pays, above four times of it is waste.
/// Estimates of honest nodes differ by less than that, except in a spike, when waiting is cheaper.
pub const FEERATE_FACTOR: u64 = 4;

/// Who gets what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The running total that is paid out.
    pub total: Amount,
    /// Where the payee's part goes, pay-to-taproot; empty where the total is zero.
    pub payout: ScriptBuf,
    /// What the miners get: out of the payee's part, or out of the payer's where the total is zero.
    pub fee: Amount,
}

/// Why a split is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SplitError {
    /// The total is none that can be paid out.
    #[error(transparent)]
    Total(#[from] TotalError),
    /// It pays more than was promised.
    #[error("it pays out {total}, promised were {promised}")]
    OverPromised {
        /// What it pays out.
        total: Amount,
        /// What was promised.
        promised: Amount,
    },
    /// The payout is not pay-to-taproot, is the payer's own, or is there although nothing is paid.
    #[error("the payout script is not acceptable")]
    Payout,
    /// What was not paid does not make up the next channel: it is less, or leaves dust, or nothing was
    /// paid at all.
    #[error("a rest of {rest} does not make up a next channel of {capacity}")]
    Next {
        /// What was not paid.
        rest: Amount,
        /// What the next channel holds.
        capacity: Amount,
    },
    /// What remains for an output after the fee is dust.
    #[error("less a fee of {fee} it leaves dust")]
    Dust {
        /// The fee.
        fee: Amount,
    },
    /// The fee is outside of what the payer goes along with.
    #[error("its fee is {fee}, outside {min} to {max}")]
    Fee {
        /// The fee.
        fee: Amount,
        /// Least accepted.
        min: Amount,
        /// Most accepted.
        max: Amount,
    },
}

/// Why an attempt to close together came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CloseFailure {
    /// The other side did not answer in time.
    #[error("the other side did not answer within {} s", CLOSE_PATIENCE.as_secs())]
    Silent,
    /// There is no connection to the other side.
    #[error("the other side cannot be reached")]
    Unreachable,
    /// The other side does not want to, or not like this.
    #[error("the other side refused: {0}")]
    Refused(RefusalCode),
    /// Payer: what the payee offered is not acceptable.
    #[error("the other side's offer is not acceptable: {0}")]
    Split(SplitError),
    /// Payee: it is not worth it at our own fee rate.
    #[error("a fee of {fee} is more than half of the {total} it would pay out")]
    NotWorthIt {
        /// The fee.
        fee: Amount,
        /// What would be paid out.
        total: Amount,
    },
    /// Payee: there is no such transaction at our own fee rate.
    #[error(transparent)]
    Build(BuildError),
    /// Payee: the other side wants to carry over into a channel that was not agreed on.
    #[error("there is no next channel to carry over into")]
    NoNext,
}

impl Split {
    /// Pays out `total` to `payout` at `feerate`. The payout is not used if the total is zero.
    ///
    /// # Errors
    ///
    /// Returns [`BuildError`] if what remains after the fee is dust, or the total is not legal.
    pub fn new(
        tranche: &Tranche,
        total: Amount,
        payout: &Script,
        feerate: FeeRate,
    ) -> Result<Self, BuildError> {
        let payout = match total {
            Amount::ZERO => ScriptBuf::new(),
            _ => payout.to_owned(),
        };
        let free = Self {
            total,
            payout,
            fee: Amount::ZERO,
        };
        let tx = free.transaction(tranche).map_err(|_| BuildError::Voucher)?;
        let fee = tx::fee_for(tx::weight_with(&tx, key_witness(&[0; 64])), feerate)?;
        let split = Self { fee, ..free };
        match split.transaction(tranche) {
            Ok(_) => Ok(split),
            Err(_) => Err(BuildError::Dust {
                value: split.payers_or_payees(tranche),
                fee,
                dust: DUST_P2TR,
            }),
        }
    }

    /// The transaction without its signature; the same on both sides, so it is never sent.
    ///
    /// # Errors
    ///
    /// Returns [`SplitError`] if there is no such transaction that nodes would relay.
    pub fn transaction(&self, tranche: &Tranche) -> Result<Transaction, SplitError> {
        let change = tranche.change_script();
        let less_fee = |value: Amount| {
            value
                .checked_sub(self.fee)
                .filter(|rest| *rest >= DUST_P2TR)
                .ok_or(SplitError::Dust { fee: self.fee })
        };
        let output = |value, script: &Script| TxOut {
            value,
            script_pubkey: script.to_owned(),
        };
        let next = tranche.next();
        let mismatch = |rest: Amount| SplitError::Next {
            rest,
            capacity: next.map_or(Amount::ZERO, |next| next.value),
        };
        let outputs = if self.total == Amount::ZERO {
            if !self.payout.is_empty() {
                return Err(SplitError::Payout);
            }
            if next.is_some() {
                return Err(mismatch(tranche.capacity()));
            }
            vec![output(less_fee(tranche.capacity())?, change)]
        } else {
            if !self.payout.is_p2tr() || *self.payout == *change {
                return Err(SplitError::Payout);
            }
            let payout = output(less_fee(self.total)?, &self.payout);
            match (tranche.legal(self.total)?, next) {
                (Legal::Part { change: rest }, None) => vec![output(rest, change), payout],
                (Legal::Full, None) => vec![payout],
                (Legal::Full, Some(_)) => return Err(mismatch(Amount::ZERO)),
                (Legal::Part { change: rest }, Some(next)) => {
                    if payout.script_pubkey == next.script_pubkey {
                        return Err(SplitError::Payout);
                    }
                    match rest.checked_sub(next.value) {
                        Some(Amount::ZERO) => vec![next.clone(), payout],
                        Some(left) if left >= DUST_P2TR => {
                            vec![next.clone(), output(left, change), payout]
                        }
                        Some(_) | None => return Err(mismatch(rest)),
                    }
                }
            }
        };
        Ok(tx::spend(tranche.outpoint(), LockTime::ZERO, outputs))
    }

    /// The 32 bytes both sign: sighash `DEFAULT` of the key path, BIP-341.
    ///
    /// # Errors
    ///
    /// As [`transaction`](Self::transaction).
    pub fn digest(&self, tranche: &Tranche) -> Result<[u8; 32], SplitError> {
        let tx = self.transaction(tranche)?;
        let prevout = tranche.prevout();
        let digest = SighashCache::new(&tx)
            .taproot_key_spend_signature_hash(
                0,
                &Prevouts::All(&[prevout]),
                TapSighashType::Default,
            )
            .expect("one input with its one prevout has a digest");
        Ok(*Digest::from(digest).as_ref())
    }

    /// The transaction with the signature of both. `None` if that is not valid.
    pub fn signed(&self, tranche: &Tranche, signature: &Signature) -> Option<Transaction> {
        let digest = Digest::from_digest(self.digest(tranche).ok()?);
        let key = tranche.scripts().output_key();
        SECP.verify_schnorr(signature, &digest, &key).ok()?;
        let mut tx = self.transaction(tranche).ok()?;
        for input in &mut tx.input {
            input.witness = key_witness(&signature.serialize());
        }
        Some(tx)
    }

    /// Reads a split and its signature back from the transaction that [`signed`](Self::signed) made,
    /// whether it carried the channel over or not. `None` if `tx` is another.
    pub fn read(tranche: &Tranche, tx: &Transaction) -> Option<(Self, Signature)> {
        let carried = || {
            let next = tx.output.first().filter(|_| tx.output.len() > 1)?;
            Self::read_from(&tranche.carried_into(next.clone()), tx)
        };
        Self::read_from(tranche, tx).or_else(carried)
    }

    fn read_from(tranche: &Tranche, tx: &Transaction) -> Option<(Self, Signature)> {
        let [input] = &tx.input[..] else { return None };
        let signature = (input.witness.len() == 1)
            .then(|| input.witness.nth(0))
            .flatten()?;
        let signature = Signature::from_slice(signature).ok()?;
        let out = tx
            .output
            .iter()
            .try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value))?;
        let fee = tranche.capacity().checked_sub(out)?;
        let last = tx.output.last()?;
        let split = if *last.script_pubkey == *tranche.change_script() {
            Self {
                total: Amount::ZERO,
                payout: ScriptBuf::new(),
                fee,
            }
        } else {
            Self {
                total: last.value.checked_add(fee)?,
                payout: last.script_pubkey.clone(),
                fee,
            }
        };
        let is_same = split.signed(tranche, &signature)? == *tx;
        is_same.then_some((split, signature))
    }

    /// Whether a payer that promised `promised`, and estimates `feerate` for the next six blocks,
    /// signs this: it gives the payee no more than that, and is neither so cheap that nobody mines it
    /// nor, where the payer pays for it, so dear that its money is burnt.
    ///
    /// # Errors
    ///
    /// Returns the first rule that it breaks.
    pub fn check_for_payer(
        &self,
        tranche: &Tranche,
        promised: Amount,
        feerate: FeeRate,
    ) -> Result<(), SplitError> {
        if self.total > promised {
            let (total, promised) = (self.total, promised);
            return Err(SplitError::OverPromised { total, promised });
        }
        let tx = self.transaction(tranche)?;
        let weight = tx::weight_with(&tx, key_witness(&[0; 64]));
        let at = |sat_per_kwu: u64| {
            let least = FeeRate::BROADCAST_MIN;
            let feerate = FeeRate::from_sat_per_kwu(sat_per_kwu).max(least);
            tx::fee_for(weight, feerate).unwrap_or(Amount::MAX_MONEY)
        };
        let estimate = feerate.to_sat_per_kwu();
        let min = at(estimate / FEERATE_FACTOR);
        let max = match self.total {
            Amount::ZERO => at(estimate.saturating_mul(FEERATE_FACTOR)),
            total => total,
        };
        match self.fee >= min && self.fee <= max {
            true => Ok(()),
            false => Err(SplitError::Fee {
                fee: self.fee,
                min,
                max,
            }),
        }
    }

    /// Whether a payee goes along with this split when the payer asks: the fee takes at most half of
    /// what it gets. It would not have closed for less by itself, and can wait for lower fees.
    pub fn is_worth_it_for_payee(&self) -> bool {
        self.total == Amount::ZERO
            || self
                .fee
                .checked_mul(2)
                .is_some_and(|twice| twice <= self.total)
    }

    /// Whose part the fee comes out of.
    fn payers_or_payees(&self, tranche: &Tranche) -> Amount {
        match self.total {
            Amount::ZERO => tranche.capacity(),
            total => total,
        }
    }
}

fn key_witness(signature: &[u8; 64]) -> Witness {
    Witness::from_slice(&[signature])
}
