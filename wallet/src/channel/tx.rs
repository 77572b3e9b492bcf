//! The transactions that spend a tranche, and what they weigh.
//!
//! All are version 3, so that whoever is paid by an output cannot pin the transaction with a large
//! child, and all signal replacement with sequence `0xFFFFFFFD`.

use bitcoin::absolute::LockTime;
use bitcoin::psbt::{self, Psbt};
use bitcoin::secp256k1::Keypair;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::{self, LeafVersion};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Weight,
    Witness,
};
use thiserror::Error;

use super::SECP;
use super::deadline::BlockHeight;
use super::script::Leaf;
use super::settlement::{End, Settlement};
use super::tranche::Tranche;
use super::voucher::{Legal, Voucher};

/// Version of every transaction of a channel, the funding included: BIP-431 "TRUC". A version 3
/// transaction may only spend unconfirmed outputs of version 3 transactions.
pub const VERSION: Version = Version(3);

/// Sequence of the one input: replaceable, and not final, so that lock times bind.
pub const SEQUENCE: Sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;

/// Most a version 3 transaction may weigh to be relayed: 10,000 virtual bytes.
pub const MAX_WEIGHT: Weight = Weight::from_wu(40_000);

/// Least value of a pay-to-taproot output that nodes relay.
pub const DUST_P2TR: Amount = Amount::from_sat(330);

/// Virtual bytes of a funding transaction with one input and change. Measured.
pub const FUNDING_VBYTES: u64 = 154;
/// Virtual bytes of a unilateral close that returns change to the payer. Measured.
pub const CLOSE_VBYTES: u64 = 205;
/// Virtual bytes of a unilateral close of a tranche that is paid out fully. Measured.
pub const CLOSE_FULL_VBYTES: u64 = 162;
/// Virtual bytes of a refund. Measured.
pub const REFUND_VBYTES: u64 = 138;
/// Virtual bytes of a close together that pays both. Measured.
pub const SPLIT_VBYTES: u64 = 154;
/// Virtual bytes of a close together with one output: nothing or everything is paid. Measured.
pub const SPLIT_ONE_VBYTES: u64 = 111;
/// Virtual bytes of a rollover that carries over less than the rest, and returns change. Measured. One
/// that carries over everything has [`SPLIT_VBYTES`].
pub const ROLLOVER_CHANGE_VBYTES: u64 = 197;

/// Why a transaction cannot be made. Nothing was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    /// The fee rate times the weight does not fit, or the rate is beyond any use.
    #[error("fee rate {} sat/kwu is out of range", rate.to_sat_per_kwu())]
    FeeRate {
        /// The fee rate asked for.
        rate: FeeRate,
    },
    /// What remains after the fee is dust: the transaction is not worth making at this fee rate.
    #[error("{value} less the fee of {fee} leaves less than {dust}")]
    Dust {
        /// What was to be paid out.
        value: Amount,
        /// What the transaction costs at the fee rate asked for.
        fee: Amount,
        /// The least the output may hold.
        dust: Amount,
    },
    /// The voucher does not belong to this tranche, or its signature is invalid.
    #[error("the voucher is not valid for this tranche")]
    Voucher,
}

/// The part of a commitment the payer signs: one input, and its change unless nothing is left.
/// Both sides build it from the same facts, so it is never sent.
pub fn template(tranche: &Tranche, legal: Legal) -> Transaction {
    let output = match legal {
        Legal::Part { change } => {
            vec![TxOut {
                value: change,
                script_pubkey: tranche.change_script().to_owned(),
            }]
        }
        Legal::Full => Vec::new(),
    };
    spend(tranche.outpoint(), LockTime::ZERO, output)
}

/// The transaction with which the payee ends the channel alone: pays out `voucher`, less the fee
/// at `feerate`, to `payout`, and the rest of the capacity to the payer. Fully signed.
///
/// The payer's signature covers only its own change, so the payee may ask for any fee, any payout
/// script, and may make several versions that replace one another.
///
/// # Errors
///
/// Returns [`BuildError`] if the voucher is not of this tranche, or if it is worth less than its
/// own fee and dust at `feerate`.
pub fn commitment(
    tranche: &Tranche,
    voucher: &Voucher,
    payee: &Keypair,
    payout: &Script,
    feerate: FeeRate,
) -> Result<Transaction, BuildError> {
    let (mut tx, payer_signature) = unsigned_commitment(tranche, voucher, payout, feerate)?;
    let leaf = tranche.scripts().update();
    let payee_signature = sign(&tx, tranche, leaf, payee);
    tx.input[0].witness = update_witness(leaf, &payer_signature, &payee_signature);
    Ok(tx)
}

/// The commitment as a PSBT that lacks only the payee's signature, for a signer elsewhere. It
/// finalises to the same transaction as [`commitment`].
///
/// # Errors
///
/// As [`commitment`].
pub fn commitment_psbt(
    tranche: &Tranche,
    voucher: &Voucher,
    payout: &Script,
    feerate: FeeRate,
) -> Result<Psbt, BuildError> {
    let (tx, payer_signature) = unsigned_commitment(tranche, voucher, payout, feerate)?;
    let leaf = tranche.scripts().update();
    let mut psbt = psbt(tx, tranche, leaf);
    psbt.inputs[0]
        .tap_script_sigs
        .insert((tranche.payer_key(), leaf.hash), payer_signature);
    Ok(psbt)
}

/// The transaction with which the payer takes everything back. Valid in the first block above the
/// expiry height, so nodes accept it once their tip is at the expiry height. Fully signed; pays to
/// `payout`.
///
/// # Errors
///
/// Returns [`BuildError`] if the capacity does not cover fee and dust at `feerate`.
pub fn refund(
    tranche: &Tranche,
    payer: &Keypair,
    payout: &Script,
    feerate: FeeRate,
) -> Result<Transaction, BuildError> {
    let mut tx = unsigned_refund(tranche, payout, feerate)?;
    let leaf = tranche.scripts().refund();
    let signature = sign(&tx, tranche, leaf, payer);
    tx.input[0].witness = refund_witness(leaf, &signature);
    Ok(tx)
}

/// The refund as a PSBT that lacks only the payer's signature, for a signer elsewhere.
///
/// # Errors
///
/// As [`refund`].
pub fn refund_psbt(
    tranche: &Tranche,
    payout: &Script,
    feerate: FeeRate,
) -> Result<Psbt, BuildError> {
    let tx = unsigned_refund(tranche, payout, feerate)?;
    Ok(psbt(tx, tranche, tranche.scripts().refund()))
}

impl Tranche {
    /// What a transaction that spends this tranche makes of it; `None` if it does not spend it.
    /// `height` is the height of its block, if it is in one.
    ///
    /// Where a commitment closes several channels at once, its fee is not split, since one tranche
    /// does not say what the others hold: the whole payment counts as received. Who knows that
    /// splits it with [`Settlement::bear`](super::record::Settlement::bear).
    pub fn settlement(&self, tx: &Transaction, height: Option<BlockHeight>) -> Option<Settlement> {
        let index = tx
            .input
            .iter()
            .position(|i| i.previous_output == self.outpoint())?;
        let leaf = tx.input[index].witness.taproot_leaf_script();
        let is_refund = leaf.is_some_and(|leaf| *leaf.script == *self.scripts().refund().script);
        // A key path spend shows one signature, and a commitment four things.
        let is_key_spend = tx.input[index].witness.len() == 1;
        let end = match (is_refund, is_key_spend) {
            (true, _) => End::Refund,
            (false, true) => End::Together,
            (false, false) => End::Commitment,
        };
        let outputs = tx
            .output
            .iter()
            .try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value))?;
        let returned = match end {
            End::Refund => outputs,
            // Both signed it, so that it is a split: the payout is the last of several outputs.
            End::Together if tx.input.len() == 1 && tx.output.len() > 1 => {
                let payout = tx.output.last().map_or(Amount::ZERO, |it| it.value);
                outputs.checked_sub(payout)?
            }
            End::Commitment | End::Together => tx
                .output
                .get(index)
                .filter(|output| output.script_pubkey == *self.change_script())
                .map_or(Amount::ZERO, |output| output.value),
        };
        let rest = self.capacity().checked_sub(returned)?;
        let (received, fee) = match (end, tx.input.len()) {
            (End::Refund, _) => (Amount::ZERO, rest),
            (End::Commitment | End::Together, 1) => (
                outputs.checked_sub(returned)?,
                self.capacity().checked_sub(outputs)?,
            ),
            (End::Commitment | End::Together, _) => (rest, Amount::ZERO),
        };
        let height = height.unwrap_or_default();
        Some(Settlement {
            end,
            txid: tx.compute_txid(),
            height,
            returned,
            received,
            fee,
        })
    }
}

fn unsigned_commitment(
    tranche: &Tranche,
    voucher: &Voucher,
    payout: &Script,
    feerate: FeeRate,
) -> Result<(Transaction, taproot::Signature), BuildError> {
    tranche.verify(voucher).map_err(|_| BuildError::Voucher)?;
    let legal = tranche
        .legal(voucher.total)
        .map_err(|_| BuildError::Voucher)?;
    let payer_signature = taproot::Signature {
        signature: voucher.signature,
        sighash_type: legal.sighash_type(),
    };
    let mut tx = template(tranche, legal);
    tx.output.push(TxOut {
        value: Amount::ZERO,
        script_pubkey: payout.to_owned(),
    });
    let leaf = tranche.scripts().update();
    let placeholder = taproot::Signature {
        signature: voucher.signature,
        sighash_type: TapSighashType::Default,
    };
    let weight = weight_with(&tx, update_witness(leaf, &payer_signature, &placeholder));
    let value = less_fee(voucher.total, weight, payout, feerate)?;
    tx.output
        .last_mut()
        .expect("the payout was just added")
        .value = value;
    Ok((tx, payer_signature))
}

fn unsigned_refund(
    tranche: &Tranche,
    payout: &Script,
    feerate: FeeRate,
) -> Result<Transaction, BuildError> {
    let lock = LockTime::from_height(tranche.expiry().get())
        .expect("an agreed expiry is below the lock time threshold");
    let output = vec![TxOut {
        value: Amount::ZERO,
        script_pubkey: payout.to_owned(),
    }];
    let mut tx = spend(tranche.outpoint(), lock, output);
    let leaf = tranche.scripts().refund();
    let mut witness = Witness::new();
    witness.push([0; 64]);
    witness.push(leaf.script.as_bytes());
    witness.push(leaf.control.serialize());
    let weight = weight_with(&tx, witness);
    tx.output[0].value = less_fee(tranche.capacity(), weight, payout, feerate)?;
    Ok(tx)
}

pub(super) fn spend(outpoint: OutPoint, lock_time: LockTime, output: Vec<TxOut>) -> Transaction {
    let input = vec![TxIn {
        previous_output: outpoint,
        script_sig: ScriptBuf::new(),
        sequence: SEQUENCE,
        witness: Witness::new(),
    }];
    Transaction {
        version: VERSION,
        lock_time,
        input,
        output,
    }
}

/// Weight of `tx` once its one input carries `witness`.
pub(super) fn weight_with(tx: &Transaction, witness: Witness) -> Weight {
    let mut tx = tx.clone();
    tx.input[0].witness = witness;
    tx.weight()
}

/// What is left of `value` after the fee for `weight`.
///
/// # Errors
///
/// Returns [`BuildError`] if that is less than dust.
pub(super) fn less_fee(
    value: Amount,
    weight: Weight,
    payout: &Script,
    feerate: FeeRate,
) -> Result<Amount, BuildError> {
    let fee = fee_for(weight, feerate)?;
    let dust = payout.minimal_non_dust();
    match value.checked_sub(fee) {
        Some(rest) if rest >= dust => Ok(rest),
        Some(_) | None => Err(BuildError::Dust { value, fee, dust }),
    }
}

/// The fee for `weight` at `feerate`, never below the rate times the virtual size nodes count.
pub(super) fn fee_for(weight: Weight, feerate: FeeRate) -> Result<Amount, BuildError> {
    let vsize =
        Weight::from_vb(weight.to_vbytes_ceil()).ok_or(BuildError::FeeRate { rate: feerate })?;
    feerate
        .fee_wu(vsize)
        .ok_or(BuildError::FeeRate { rate: feerate })
}

/// Signs the whole transaction (`SIGHASH_DEFAULT`) for `leaf`.
fn sign(tx: &Transaction, tranche: &Tranche, leaf: &Leaf, keypair: &Keypair) -> taproot::Signature {
    let prevout = tranche.prevout();
    let digest = SighashCache::new(tx)
        .taproot_script_spend_signature_hash(
            0,
            &Prevouts::All(&[prevout]),
            leaf.hash,
            TapSighashType::Default,
        )
        .expect("one input with its one prevout has a digest");
    taproot::Signature {
        signature: SECP.sign_schnorr_no_aux_rand(&digest.into(), keypair),
        sighash_type: TapSighashType::Default,
    }
}

/// `<S> <B> script control`: the script checks the payer's signature first, so it is on top.
pub(super) fn update_witness(
    leaf: &Leaf,
    payer: &taproot::Signature,
    payee: &taproot::Signature,
) -> Witness {
    let mut witness = Witness::new();
    witness.push(payee.to_vec());
    witness.push(payer.to_vec());
    witness.push(leaf.script.as_bytes());
    witness.push(leaf.control.serialize());
    witness
}

fn refund_witness(leaf: &Leaf, payer: &taproot::Signature) -> Witness {
    let mut witness = Witness::new();
    witness.push(payer.to_vec());
    witness.push(leaf.script.as_bytes());
    witness.push(leaf.control.serialize());
    witness
}

fn psbt(tx: Transaction, tranche: &Tranche, leaf: &Leaf) -> Psbt {
    let mut psbt = Psbt::from_unsigned_tx(tx).expect("the transaction carries no witness yet");
    psbt.inputs[0] = psbt::Input {
        witness_utxo: Some(tranche.prevout()),
        tap_internal_key: Some(tranche.scripts().internal_key()),
        tap_merkle_root: Some(tranche.scripts().merkle_root()),
        tap_scripts: [(
            leaf.control.clone(),
            (leaf.script.clone(), LeafVersion::TapScript),
        )]
        .into(),
        ..psbt::Input::default()
    };
    psbt
}

/// What a channel costs on the chain, at one fee rate for opening and closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifeCycle {
    /// Paid by the payer for the funding transaction.
    pub open: Amount,
    /// Paid by the payee for its unilateral close.
    pub close: Amount,
    /// Paid by the payee for a close together that pays both.
    pub together: Amount,
    /// Paid by the payer for a close together of a channel on which nothing was paid.
    pub together_unpaid: Amount,
    /// Paid by the payer only if the payee vanishes.
    pub refund: Amount,
}

impl LifeCycle {
    /// Estimates the costs at `feerate`: one input to the funding, change at both ends. `None` if
    /// they do not fit.
    pub fn estimate(feerate: FeeRate) -> Option<Self> {
        Some(Self {
            open: feerate.fee_vb(FUNDING_VBYTES)?,
            close: feerate.fee_vb(CLOSE_VBYTES)?,
            together: feerate.fee_vb(SPLIT_VBYTES)?,
            together_unpaid: feerate.fee_vb(SPLIT_ONE_VBYTES)?,
            refund: feerate.fee_vb(REFUND_VBYTES)?,
        })
    }

    /// What opening and closing cost together, whoever pays. Above a tenth of what is to be
    /// spent, another rail is the better choice.
    pub fn total(&self) -> Option<Amount> {
        self.open.checked_add(self.close)
    }
}

/// A fee in even parts of whole sat, for channels that one transaction funds, in the order of their
/// outputs. The first bear what does not divide.
pub fn shares(fee: Amount, count: usize) -> impl Iterator<Item = Amount> {
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    let (share, over) = (fee.to_sat() / count, fee.to_sat() % count);
    (0..count).map(move |index| Amount::from_sat(share.saturating_add(u64::from(index < over))))
}

/// `R`: the least first payment that makes closing worth it twice over at `feerate`. Below the
/// fee of a close plus dust the payee's claim is worthless, so this much is paid at once; it is
/// credit for service, not a fee. `None` if it does not fit.
pub fn min_first_payment(feerate: FeeRate) -> Option<Amount> {
    feerate
        .fee_vb(CLOSE_VBYTES)?
        .checked_mul(2)?
        .checked_add(DUST_P2TR)
}
