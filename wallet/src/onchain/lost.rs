//! Channels that this wallet funded and whose records are lost: found again from words and chain.
//!
//! A funding's signatures carry the payees' keys (`keys/trace.rs`): that of its first input the key of the
//! first channel among its outputs, and so on. The payer's key has an index
//! near those of other channels, and the expiry is a height within [`MAX_TERM`] of the one
//! the funding was made at, which is its lock time. What fits together is proved by the output's
//! script, so nothing is found that is not there.

use bdk_wallet::KeychainKind;
use bdk_wallet::chain::ChainPosition;
use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Witness};
use bitcoin::{key::TapTweak, taproot};

use super::Wallet;
use crate::channel::SECP;
use crate::channel::deadline::BlockHeight;
use crate::channel::params::{Contract, DEFAULT_TERM, MAX_TERM};
use crate::channel::script::{Scripts, aggregate};
use crate::channel::tx;
use crate::keys::{Keys, Role};

/// How many key indexes beyond the last known one are tried. An index is used up by every proposal,
/// funded or not; a run of so many that came to nothing is not a person's doing.
const INDEX_GAP: u32 = 100;

/// How many indexes before and after the next one are tried with every expiry there can be, where none of the usual ones fits.
const NEAR_GAP: u32 = 8;

/// How many blocks may have come between a proposal, which chose the expiry, and its funding.
const NEGOTIATION_BLOCKS: u32 = 16;

/// An output that this wallet funded as a channel. Everything but the change script is proved by the
/// output itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostFunding {
    /// The transaction.
    pub transaction: Transaction,
    /// Which of its outputs is the channel.
    pub vout: u32,
    /// The channel's share of what it paid to the miners.
    pub fee: Amount,
    /// Derivation index of the payer's channel key.
    pub key_index: u32,
    /// The payer's channel key, `B`.
    pub payer_key: XOnlyPublicKey,
    /// The payee's channel key, `S`.
    pub payee_key: XOnlyPublicKey,
    /// From this height on everything can be taken back, `T`.
    pub expiry: BlockHeight,
    /// A script of this wallet for the refund. It is most likely, and not surely, the one that was agreed for the change
    /// of a close; a close pays to this wallet either way.
    pub change_script: ScriptBuf,
}

impl LostFunding {
    /// The funding output.
    pub fn outpoint(&self) -> OutPoint {
        OutPoint::new(self.transaction.compute_txid(), self.vout)
    }

    /// What it holds.
    pub fn capacity(&self) -> Amount {
        usize::try_from(self.vout)
            .ok()
            .and_then(|vout| self.transaction.output.get(vout))
            .map_or(Amount::ZERO, |output| output.value)
    }
}

/// One payer key with one guess at the payee's, and what follows from both.
struct Candidate {
    key_index: u32,
    payer_key: XOnlyPublicKey,
    payee_key: XOnlyPublicKey,
    internal_key: XOnlyPublicKey,
}

impl Wallet {
    /// Looks through the transactions that have come since the last call for channels that this
    /// wallet funded and `is_known` does not know. Every payer key below `next_index`, and some
    /// beyond, is tried; `term` is the usual life of a channel in blocks. Each transaction is looked
    /// at once in a run.
    ///
    /// An unusual expiry takes seconds to find.
    pub fn lost_fundings(
        &mut self,
        is_known: impl Fn(&OutPoint) -> bool,
        next_index: u32,
        term: u32,
    ) -> Vec<LostFunding> {
        let new: Vec<_> = self
            .coins
            .transactions()
            .filter(|tx| !self.examined.contains(&tx.tx_node.txid))
            .map(|tx| {
                let height = match &tx.chain_position {
                    ChainPosition::Confirmed { anchor, .. } => anchor.block_id.height,
                    ChainPosition::Unconfirmed { .. } => self.tip().height,
                };
                (tx.tx_node.txid, tx.tx_node.tx.clone(), height)
            })
            .collect();
        let mut found = Vec::new();
        for (txid, transaction, height) in new {
            self.examined.insert(txid);
            let made_at = match transaction.lock_time {
                LockTime::Blocks(at) if at.to_consensus_u32() > 0 => at.to_consensus_u32(),
                LockTime::Blocks(_) | LockTime::Seconds(_) => height,
            };
            // The signature of the first input speaks of the first of these outputs, and so on.
            let others = (0..).zip(&transaction.output).filter(|(_, output)| {
                output.script_pubkey.is_p2tr() && !self.is_mine(&output.script_pubkey)
            });
            let others: Vec<u32> = others.map(|(vout, _)| vout).collect();
            let fee = self.coins.calculate_fee(&transaction);
            let fees = tx::shares(fee.unwrap_or(Amount::ZERO), others.len());
            let outputs: Vec<_> = others
                .into_iter()
                .zip(fees)
                .enumerate()
                .filter(|(_, (vout, _))| !is_known(&OutPoint::new(txid, *vout)))
                .collect();
            if transaction.version != tx::VERSION {
                continue;
            }
            for (input, (vout, fee)) in outputs {
                let Some(notes) = self.read_trace(&transaction, input) else {
                    continue;
                };
                let script = &transaction.output[vout as usize].script_pubkey;
                let fits = search(&self.keys, script, &notes, next_index, made_at, term);
                let Some((candidate, expiry)) = fits else {
                    continue;
                };
                found.push(LostFunding {
                    vout,
                    fee,
                    key_index: candidate.key_index,
                    payer_key: candidate.payer_key,
                    payee_key: candidate.payee_key,
                    expiry,
                    change_script: self.likely_change(&transaction),
                    transaction: transaction.as_ref().clone(),
                });
            }
        }
        found
    }

    /// Looks whether `transaction`, by which both sides ended a channel with `payee_key` of this wallet's,
    /// carried it over into another, whose records are lost. A rollover spends no coin of the wallet, so
    /// that it carries no trace; but the payee has one key in both channels, and the rest is searched for
    /// as in [`lost_fundings`](Self::lost_fundings). `height` is that of its block, or of the tip.
    ///
    /// An unusual expiry takes seconds to find.
    pub fn lost_next(
        &mut self,
        transaction: &Transaction,
        payee_key: XOnlyPublicKey,
        height: u32,
        next_index: u32,
        term: u32,
    ) -> Option<LostFunding> {
        let output = transaction.output.first()?;
        let may_be = transaction.version == tx::VERSION
            && transaction.output.len() > 1
            && output.script_pubkey.is_p2tr()
            && !self.is_mine(&output.script_pubkey);
        if !may_be {
            return None;
        }
        let notes = [payee_key];
        let script = &output.script_pubkey;
        let (found, expiry) = search(&self.keys, script, &notes, next_index, height, term)?;
        Some(LostFunding {
            vout: 0,
            // The payee paid it.
            fee: Amount::ZERO,
            key_index: found.key_index,
            payer_key: found.payer_key,
            payee_key: found.payee_key,
            expiry,
            change_script: self.likely_change(transaction),
            transaction: transaction.clone(),
        })
    }

    /// Signs inputs anew, so that the signature of the first carries the payee's key of the first
    /// channel among the outputs, and so on. A channel that no input is left for, or whose key cannot be
    /// carried, is found by its records alone. Says of each contract, in their order, whether its key is
    /// carried.
    pub(super) fn leave_traces(
        &self,
        transaction: &mut Transaction,
        contracts: &[&Contract],
    ) -> Vec<bool> {
        let place = |contract: &&Contract| {
            let script = contract.scripts().output();
            let mut outputs = transaction.output.iter();
            outputs.position(|output| output.script_pubkey == *script)
        };
        let places: Vec<_> = contracts.iter().map(place).collect();
        let mut traced = vec![false; contracts.len()];
        let mut in_order: Vec<usize> = (0..contracts.len()).collect();
        in_order.sort_by_key(|index| places.get(*index));
        for (input, index) in in_order.into_iter().enumerate() {
            let (Some(contract), Some(traced)) = (contracts.get(index), traced.get_mut(index))
            else {
                continue;
            };
            *traced = self
                .leave_trace(transaction, input, contract.accept().payee_key)
                .is_some();
        }
        traced
    }

    /// Signs one input anew, so that its signature carries `note`. `None` if that cannot be: the
    /// transaction is as it was.
    fn leave_trace(
        &self,
        transaction: &mut Transaction,
        input: usize,
        note: XOnlyPublicKey,
    ) -> Option<()> {
        let (digest, coin) = self.signed_by(transaction, input)?;
        let signature = taproot::Signature {
            signature: self.keys.sign_with_trace(digest, coin, note)?,
            sighash_type: TapSighashType::Default,
        };
        transaction.input.get_mut(input)?.witness = Witness::p2tr_key_spend(&signature);
        Some(())
    }

    /// What the signature of one input may carry, if the transaction is this wallet's own.
    fn read_trace(&self, transaction: &Transaction, input: usize) -> Option<Vec<XOnlyPublicKey>> {
        let (digest, coin) = self.signed_by(transaction, input)?;
        let witness = &transaction.input.get(input)?.witness;
        let signature = taproot::Signature::from_slice(witness.nth(0)?).ok()?;
        let is_ours = witness.len() == 1 && signature.sighash_type == TapSighashType::Default;
        is_ours.then(|| self.keys.read_trace(digest, coin, &signature.signature))
    }

    /// The digest that an input signs, and the address of the coin that it spends. `None` unless every
    /// input is a coin of this wallet.
    fn signed_by(
        &self,
        transaction: &Transaction,
        input: usize,
    ) -> Option<([u8; 32], (bool, u32))> {
        let coins = transaction
            .input
            .iter()
            .map(|input| self.coins.spk_index().txout(input.previous_output));
        let coins: Vec<_> = coins.collect::<Option<_>>()?;
        let ((keychain, index), _) = coins.get(input)?;
        let prevouts: Vec<&TxOut> = coins.iter().map(|(_, output)| *output).collect();
        let digest = SighashCache::new(transaction)
            .taproot_key_spend_signature_hash(
                input,
                &Prevouts::All(&prevouts),
                TapSighashType::Default,
            )
            .ok()?;
        Some((
            digest.to_byte_array(),
            (*keychain == KeychainKind::Internal, *index),
        ))
    }

    /// The change script that a channel was promised is revealed before its funding's own change.
    fn likely_change(&mut self, transaction: &Transaction) -> ScriptBuf {
        let change = transaction.output.iter().find_map(|output| {
            match self.coins.derivation_of_spk(output.script_pubkey.clone()) {
                Some((KeychainKind::Internal, index)) => index.checked_sub(1),
                Some((KeychainKind::External, _)) | None => None,
            }
        });
        let index =
            change.unwrap_or_else(|| self.coins.next_derivation_index(KeychainKind::Internal));
        for _ in self
            .coins
            .reveal_addresses_to(KeychainKind::Internal, index)
        {}
        self.coins
            .peek_address(KeychainKind::Internal, index)
            .script_pubkey()
    }
}

/// Finds the keys and the expiry that make `script`.
fn search(
    keys: &Keys,
    script: &ScriptBuf,
    notes: &[XOnlyPublicKey],
    next_index: u32,
    made_at: u32,
    term: u32,
) -> Option<(Candidate, BlockHeight)> {
    let candidates: Vec<Candidate> = (0..next_index.saturating_add(INDEX_GAP))
        .rev()
        .filter_map(|key_index| {
            let pair = keys.channel_keypair(Role::Payer, key_index).ok()?;
            Some((key_index, pair.x_only_public_key().0))
        })
        .flat_map(|(key_index, payer_key)| {
            notes
                .iter()
                .filter(move |note| **note != payer_key)
                .map(move |note| Candidate {
                    key_index,
                    payer_key,
                    payee_key: *note,
                    internal_key: aggregate(payer_key, *note),
                })
        })
        .collect();
    let next = next_index.saturating_sub(NEAR_GAP)..next_index.saturating_add(NEAR_GAP);
    let near = candidates.iter().filter(|it| next.contains(&it.key_index));
    let usual = [term, DEFAULT_TERM].into_iter().flat_map(|term| {
        let last = made_at.saturating_add(term);
        (last.saturating_sub(NEGOTIATION_BLOCKS)..=last).rev()
    });
    let any = made_at..=made_at.saturating_add(MAX_TERM);
    let fits =
        |candidate: &Candidate, expiry: u32| makes(candidate, BlockHeight::new(expiry), script);
    let (candidate, expiry) = usual
        .flat_map(|expiry| candidates.iter().map(move |it| (it, expiry)))
        .find(|(it, expiry)| fits(it, *expiry))
        .or_else(|| {
            any.flat_map(|expiry| near.clone().map(move |it| (it, expiry)))
                .find(|(it, expiry)| fits(it, *expiry))
        })?;
    let found = Candidate { ..*candidate };
    Some((found, BlockHeight::new(expiry)))
}

/// Whether the candidate's keys with this expiry make `script`. The aggregate, which costs most, is
/// the same for every expiry.
fn makes(candidate: &Candidate, expiry: BlockHeight, script: &ScriptBuf) -> bool {
    let (payer, payee) = (candidate.payer_key, candidate.payee_key);
    let root = Scripts::merkle_root_of(payer, payee, expiry);
    let (key, _) = candidate.internal_key.tap_tweak(&SECP, Some(root));
    *script == ScriptBuf::new_p2tr_tweaked(key)
}
