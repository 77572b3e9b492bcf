//! Spending: payments, the funding of channels, and taking back what has not confirmed.

use bdk_wallet::coin_selection::{
    BranchAndBoundCoinSelection, InsufficientFunds, LargestFirstCoinSelection,
};
use bdk_wallet::error::CreateTxError;
use bdk_wallet::{KeychainKind, SignOptions};
use bitcoin::hashes::{Hash, sha256};
use bitcoin::psbt::Psbt;
use bitcoin::script::Script;
use bitcoin::transaction::Version;
use bitcoin::{
    Address, Amount, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid,
    Weight, absolute,
};
use thiserror::Error;

use super::changes::ChangesError;
use super::{Flush, Wallet, is_foreign_pending};
use crate::channel::params::Contract;
use crate::keys::SignError;

/// What bitcoind calls TRUC (BIP-431): replaceable always, pinned never.
const VERSION_3: i32 = 3;

/// A version 3 transaction is not relayed if it is larger.
const MAX_VERSION_3_VBYTES: u64 = 10_000;

/// Weight of a signed key-path input: 41 bytes that count four times, 66 of witness.
const P2TR_INPUT: Weight = Weight::from_wu(41 * 4 + 66);

/// No transaction of more than this is relayed.
const MAX_VBYTES: u64 = 100_000;

/// Size of a P2TR output: what change costs, for the search of a selection without change.
const P2TR_OUTPUT_BYTES: u64 = 43;

/// What a replacement pays on top of what it replaces, in sat for each of its virtual bytes
/// (BIP-125 rule 4 at the default incremental relay fee).
const REPLACEMENT_SAT_PER_VBYTE: u64 = 1;

/// The highest bid that is taken for meant, in sat/vB: bitcoind refuses more by default.
const MAX_SAT_PER_VBYTE: u32 = 10_000;

/// How much to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The recipient receives exactly this; the fee comes on top.
    Exact(Amount),
    /// Every spendable coin goes into it that is worth more than it costs to spend; the recipient
    /// receives what the fee leaves.
    Everything,
}

/// A payment to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Who is paid.
    pub to: Address,
    /// How much.
    pub value: Value,
    /// What to bid. Less than one sat/vB is raised to that.
    pub feerate: FeeRate,
}

/// What a payment does, to be shown before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preview {
    /// What the recipient receives.
    pub value: Amount,
    /// What it costs on top.
    pub fee: Amount,
    /// What returns to us, if anything.
    pub change: Option<Amount>,
    /// How many coins are spent.
    pub inputs: usize,
    /// The size of the signed transaction.
    pub vbytes: u64,
}

/// Why a transaction was not made. Nothing has changed.
#[derive(Debug, Error)]
pub enum SpendError {
    /// There is not enough. `needed - available` is what is missing, to the sat.
    #[error(
        "{} sat are needed, {} sat are available: {} sat are missing{}",
        needed.to_sat(), available.to_sat(), self.missing().to_sat(), pending_hint(*pending)
    )]
    InsufficientFunds {
        /// The value and the fee of spending every available coin.
        needed: Amount,
        /// The coins that may be spent and are worth more than it costs to spend them.
        available: Amount,
        /// Coins that only have to confirm before they may be spent.
        pending: Amount,
    },
    /// So little cannot be sent: nodes do not relay outputs that cost more to spend than they hold.
    #[error("{} sat are too little; the least is {} sat", asked.to_sat(), least.to_sat())]
    BelowDust {
        /// What was asked for.
        asked: Amount,
        /// The least that can be sent to that address.
        least: Amount,
    },
    /// More than all the bitcoin there will ever be.
    #[error("{} sat are more than there will ever be", asked.to_sat())]
    AboveSupply {
        /// What was asked for.
        asked: Amount,
    },
    /// A feerate that cannot be meant.
    #[error(
        "{asked} sat/vB are more than the {MAX_SAT_PER_VBYTE} sat/vB that nodes take for meant"
    )]
    FeerateTooHigh {
        /// The feerate, rounded down to whole sat/vB.
        asked: u64,
    },
    /// The address is for another network.
    #[error("the address is for another network")]
    WrongNetwork,
    /// The coins are so many and small that no node would relay the transaction. Send to an
    /// address of our own first, in parts.
    #[error(
        "it would take {vbytes} vbytes, more than the {limit} that are relayed: too many small coins"
    )]
    TooLarge {
        /// The size it would have.
        vbytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The transaction could not be built. A defect of ours, not of the caller.
    #[error("the transaction could not be built: {detail}")]
    Build {
        /// What the library said.
        detail: String,
    },
    /// The transaction could not be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It could not be written down, and so must not be broadcast.
    #[error(transparent)]
    Changes(#[from] ChangesError),
}

impl SpendError {
    /// What is missing, if that is what is wrong; zero otherwise.
    pub fn missing(&self) -> Amount {
        match self {
            Self::InsufficientFunds {
                needed, available, ..
            } => needed.checked_sub(*available).unwrap_or(Amount::ZERO),
            _ => Amount::ZERO,
        }
    }
}

fn pending_hint(pending: Amount) -> String {
    match pending.to_sat() {
        0 => String::new(),
        sat => format!(" ({sat} sat are waiting for a confirmation)"),
    }
}

/// Why a transaction cannot be taken back. Nothing has changed.
#[derive(Debug, Error)]
pub enum CancelError {
    /// The wallet knows no such transaction of its own.
    #[error("{txid} is not a transaction of this wallet")]
    Unknown {
        /// The transaction.
        txid: Txid,
    },
    /// It is in a block.
    #[error("{txid} is confirmed and cannot be taken back")]
    Confirmed {
        /// The transaction.
        txid: Txid,
    },
    /// A later transaction of ours spends its change. That one has to be taken back first.
    #[error("{txid} is spent by {child}; cancel that one first")]
    HasChild {
        /// The transaction.
        txid: Txid,
        /// The one that spends it.
        child: Txid,
    },
    /// Replacing it would cost more than comes back.
    #[error("taking it back costs {} sat and returns {} sat", fee.to_sat(), value.to_sat())]
    NotWorthIt {
        /// What the replacement costs.
        fee: Amount,
        /// What its inputs hold.
        value: Amount,
    },
    /// The replacement could not be made.
    #[error(transparent)]
    Spend(#[from] SpendError),
}

/// Which rules a transaction follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Version 2; may spend our own unconfirmed change.
    Payment,
    /// Version 3; confirmed inputs only.
    Funding,
    /// The same, and if there are so many coins, an input for each output but the change.
    Channels,
}

/// What a transaction pays, apart from change.
#[derive(Clone, Copy)]
enum Pays<'a> {
    /// These amounts to these scripts; the fee comes on top.
    Exact(&'a [(ScriptBuf, Amount)]),
    /// What all coins hold less the fee.
    Everything(&'a Script),
}

/// Which coins to spend, and where the change goes.
#[derive(Clone, Copy)]
struct Selection<'a> {
    excluded: &'a [OutPoint],
    included: &'a [OutPoint],
    change: &'a Script,
}

/// One transaction that funds channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelFunding {
    /// Fully signed, and not to be broadcast before the channels' records are durable.
    pub transaction: Transaction,
    /// What it costs.
    pub preview: Preview,
    /// Of each channel, in the order in which they were given, whether the words alone find it again.
    pub traced: Vec<bool>,
}

/// A signed transaction that is not yet part of the wallet.
struct Built {
    transaction: Transaction,
    preview: Preview,
    change_index: Option<u32>,
}

impl Wallet {
    /// What [`send`](Self::send) would do now. Changes nothing.
    ///
    /// # Errors
    ///
    /// Returns what `send` would return.
    pub fn preview_send(&mut self, payment: &Payment) -> Result<Preview, SpendError> {
        Ok(self.build_payment(payment)?.preview)
    }

    /// Makes and records a payment; the caller broadcasts it. It is spent from here on: if the
    /// process ends before the broadcast, [`outgoing`](Self::outgoing) holds it at the next start.
    ///
    /// `now` is Unix time in seconds.
    ///
    /// # Errors
    ///
    /// Returns [`SpendError`]; then nothing was spent.
    pub fn send(
        &mut self,
        payment: &Payment,
        now: u64,
    ) -> Result<(Transaction, Preview), SpendError> {
        let built = self.build_payment(payment)?;
        self.reveal_change(built.change_index);
        self.record(&built.transaction, now)?;
        Ok((built.transaction, built.preview))
    }

    /// Makes the funding transaction of a channel: version 3, confirmed inputs only, exactly
    /// `capacity` to `script`, change to ourselves. Fully signed, and *not* to be broadcast before
    /// the channel's record is durable; see the [module](super). Its coins are reserved until
    /// [`record`](Self::record), [`release`](Self::release), or a restart.
    ///
    /// # Errors
    ///
    /// Returns [`SpendError`]; then nothing is reserved.
    pub fn fund(
        &mut self,
        script: &Script,
        capacity: Amount,
        feerate: FeeRate,
    ) -> Result<(Transaction, Preview), SpendError> {
        let outputs = [(script.to_owned(), capacity)];
        let built = self.build(Pays::Exact(&outputs), feerate, Kind::Funding)?;
        self.hold_back(built)
    }

    /// Does the same for the channels of all `contracts`, in one transaction, so that the words alone
    /// find them again: one signature for each carries its payee's key; see
    /// [`lost_fundings`](Self::lost_fundings). As many coins are spent as there are channels, if there
    /// are so many worth spending; the channels that no signature is left for are found by their
    /// records alone.
    ///
    /// # Errors
    ///
    /// As [`fund`](Self::fund). Too many channels are [`SpendError::TooLarge`].
    pub fn fund_channels(
        &mut self,
        contracts: &[&Contract],
        feerate: FeeRate,
    ) -> Result<ChannelFunding, SpendError> {
        let outputs: Vec<_> = contracts
            .iter()
            .map(|it| (it.scripts().output().clone(), it.open().capacity))
            .collect();
        let mut built = self.build(Pays::Exact(&outputs), feerate, Kind::Channels)?;
        let traced = self.leave_traces(&mut built.transaction, contracts);
        let (transaction, preview) = self.hold_back(built)?;
        Ok(ChannelFunding {
            transaction,
            preview,
            traced,
        })
    }

    fn hold_back(&mut self, built: Built) -> Result<(Transaction, Preview), SpendError> {
        self.reveal_change(built.change_index);
        self.write(Flush::Now)?;
        self.reserve(&built.transaction);
        Ok((built.transaction, built.preview))
    }

    /// What [`fund`](Self::fund) would cost now. Changes nothing.
    ///
    /// # Errors
    ///
    /// Returns what `fund` would return.
    pub fn preview_fund(
        &mut self,
        script: &Script,
        capacity: Amount,
        feerate: FeeRate,
    ) -> Result<Preview, SpendError> {
        let outputs = [(script.to_owned(), capacity)];
        Ok(self
            .build(Pays::Exact(&outputs), feerate, Kind::Funding)?
            .preview)
    }

    /// What [`fund_channels`](Self::fund_channels) would cost now, for channels of these capacities.
    /// Changes nothing.
    ///
    /// # Errors
    ///
    /// Returns what `fund_channels` would return.
    pub fn preview_channels(
        &mut self,
        capacities: &[Amount],
        feerate: FeeRate,
    ) -> Result<Preview, SpendError> {
        // Any scripts of the kind and size that channels have, each another.
        let script = |index: usize| {
            let program = sha256::Hash::hash(&index.to_be_bytes()).to_byte_array();
            ScriptBuf::from_bytes([&[0x51, 0x20][..], &program].concat())
        };
        let outputs: Vec<_> = capacities
            .iter()
            .enumerate()
            .map(|(index, capacity)| (script(index), *capacity))
            .collect();
        let built = self.build(Pays::Exact(&outputs), feerate, Kind::Channels)?;
        Ok(built.preview)
    }

    /// What `transaction` pays to the miners; `None` unless it spends this wallet's coins alone.
    pub fn fee_of(&self, transaction: &Transaction) -> Option<Amount> {
        self.coins.calculate_fee(transaction).ok()
    }

    /// Takes an unconfirmed transaction of ours back: makes and records a replacement that returns
    /// all its coins to us, and pays enough to be relayed in its place. The caller broadcasts it.
    /// The original may still win if a miner has it already.
    ///
    /// # Errors
    ///
    /// Returns [`CancelError`]; then the original stands.
    pub fn cancel(
        &mut self,
        txid: Txid,
        feerate: FeeRate,
        now: u64,
    ) -> Result<Transaction, CancelError> {
        let original = self.cancellable(txid)?;
        let feerate = bid(feerate)?;
        let old_fee = self
            .coins
            .calculate_fee(&original)
            .map_err(|error| SpendError::Build {
                detail: error.to_string(),
            })?;
        let value = self.coins.sent_and_received(&original).0;
        let index = self.coins.next_derivation_index(KeychainKind::Internal);
        let script = self
            .coins
            .peek_address(KeychainKind::Internal, index)
            .script_pubkey();

        // The size does not depend on the value, so signing once with a placeholder measures it.
        let measured = self.sign_replacement(&original, script.clone(), value)?;
        let vbytes = measured.vsize() as u64;
        let fee = feerate
            .fee_vb(vbytes)
            .unwrap_or(Amount::MAX_MONEY)
            .max(old_fee + Amount::from_sat(vbytes * REPLACEMENT_SAT_PER_VBYTE));
        let rest = value
            .checked_sub(fee)
            .filter(|rest| *rest >= script.minimal_non_dust())
            .ok_or(CancelError::NotWorthIt { fee, value })?;
        let replacement = self.sign_replacement(&original, script, rest)?;

        self.reveal_change(Some(index));
        self.record(&replacement, now).map_err(SpendError::from)?;
        Ok(replacement)
    }

    /// Forgets an unconfirmed transaction of ours that no node will take, and what builds on it.
    /// Its coins are free again. Do not use it on one that was relayed: it can still confirm, and
    /// is then seen again.
    ///
    /// # Errors
    ///
    /// Returns [`CancelError::Unknown`] or [`CancelError::Confirmed`]; then nothing changed.
    pub fn abandon(&mut self, txid: Txid, now: u64) -> Result<(), CancelError> {
        match self.cancellable(txid) {
            Ok(_) | Err(CancelError::HasChild { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut gone = vec![txid];
        let mut next = 0;
        while let Some(parent) = gone.get(next).copied() {
            for child in self.children_of(parent) {
                if !gone.contains(&child) {
                    gone.push(child);
                }
            }
            next += 1;
        }
        let at = self.tick(now);
        self.coins
            .apply_evicted_txs(gone.into_iter().map(|txid| (txid, at)));
        self.write(Flush::Now).map_err(SpendError::from)?;
        Ok(())
    }

    fn build_payment(&mut self, payment: &Payment) -> Result<Built, SpendError> {
        if !payment
            .to
            .as_unchecked()
            .is_valid_for_network(self.network())
        {
            return Err(SpendError::WrongNetwork);
        }
        let script = payment.to.script_pubkey();
        match payment.value {
            Value::Exact(amount) => {
                let outputs = [(script, amount)];
                self.build(Pays::Exact(&outputs), payment.feerate, Kind::Payment)
            }
            Value::Everything => {
                self.build(Pays::Everything(&script), payment.feerate, Kind::Payment)
            }
        }
    }

    fn build(&mut self, pays: Pays<'_>, feerate: FeeRate, kind: Kind) -> Result<Built, SpendError> {
        check(pays)?;
        let feerate = bid(feerate)?;
        let (mut excluded, pending) = self.excluded(kind);
        if let Pays::Everything(_) = pays {
            // Strangers may have sent dust, which would only raise the fee.
            excluded.extend(self.dust(feerate));
        }
        let change_index = self.coins.next_derivation_index(KeychainKind::Internal);
        let change = self
            .coins
            .peek_address(KeychainKind::Internal, change_index)
            .script_pubkey();
        let least = Selection {
            excluded: &excluded,
            included: &[],
            change: &change,
        };
        let mut psbt = self
            .compose(pays, feerate, kind, least)
            .map_err(|error| sort(error, pending))?;
        if let (Kind::Channels, Pays::Exact(outputs)) = (kind, pays)
            && let Some(included) = self.coins_for(&psbt, outputs.len(), &excluded, feerate)
        {
            let more = Selection {
                included: &included,
                ..least
            };
            // Where that is not to be had, what was found before will do.
            psbt = self.compose(pays, feerate, kind, more).unwrap_or(psbt);
        }
        let fee = psbt.fee().map_err(|error| SpendError::Build {
            detail: error.to_string(),
        })?;
        let transaction = self.sign(&mut psbt)?;

        let vbytes = transaction.vsize() as u64;
        let limit = match kind {
            Kind::Payment => MAX_VBYTES,
            Kind::Funding | Kind::Channels => MAX_VERSION_3_VBYTES,
        };
        if vbytes > limit {
            return Err(SpendError::TooLarge { vbytes, limit });
        }
        let value_to = |wanted: &Script| {
            transaction
                .output
                .iter()
                .find(|output| output.script_pubkey.as_script() == wanted)
                .map(|output| output.value)
        };
        let change = value_to(&change);
        let value = match pays {
            Pays::Exact(outputs) => outputs.iter().map(|(_, amount)| *amount).sum(),
            Pays::Everything(script) => value_to(script).unwrap_or(Amount::ZERO),
        };
        let preview = Preview {
            value,
            fee,
            change,
            inputs: transaction.input.len(),
            vbytes,
        };
        Ok(Built {
            preview,
            change_index: change.map(|_| change_index),
            transaction,
        })
    }

    fn compose(
        &mut self,
        pays: Pays<'_>,
        feerate: FeeRate,
        kind: Kind,
        selection: Selection<'_>,
    ) -> Result<Psbt, CreateTxError> {
        let search = BranchAndBoundCoinSelection::new(P2TR_OUTPUT_BYTES, LargestFirstCoinSelection);
        let mut builder = self.coins.build_tx().coin_selection(search);
        builder
            .unspendable(selection.excluded.to_vec())
            .fee_rate(feerate);
        if builder.add_utxos(selection.included).is_err() {
            return Err(CreateTxError::NoUtxosSelected);
        }
        match pays {
            Pays::Exact(outputs) => {
                for (script, amount) in outputs {
                    builder.add_recipient(script.clone(), *amount);
                }
                builder.drain_to(selection.change.to_owned());
            }
            Pays::Everything(script) => {
                builder.drain_wallet().drain_to(script.to_owned());
            }
        }
        match kind {
            Kind::Payment => {}
            Kind::Funding | Kind::Channels => {
                builder.version(VERSION_3);
            }
        }
        builder.finish()
    }

    /// The coins of `psbt` and further ones, the smallest first, so that there are `wanted` in all;
    /// `None` if there are so many already, or none that is worth more than it costs to spend.
    fn coins_for(
        &self,
        psbt: &Psbt,
        wanted: usize,
        excluded: &[OutPoint],
        feerate: FeeRate,
    ) -> Option<Vec<OutPoint>> {
        let inputs = psbt.unsigned_tx.input.iter();
        let mut coins: Vec<_> = inputs.map(|input| input.previous_output).collect();
        let lacking = wanted.checked_sub(coins.len()).filter(|it| *it > 0)?;
        let dust = self.dust(feerate);
        let mut others: Vec<_> = self
            .coins
            .list_unspent()
            .filter(|coin| {
                let outpoint = &coin.outpoint;
                !coins.contains(outpoint)
                    && !excluded.contains(outpoint)
                    && !dust.contains(outpoint)
            })
            .collect();
        others.sort_by_key(|coin| (coin.txout.value, coin.outpoint));
        let others = others.into_iter().take(lacking);
        let before = coins.len();
        coins.extend(others.map(|coin| coin.outpoint));
        (coins.len() > before).then_some(coins)
    }

    /// Coins that cost more to spend than they hold.
    fn dust(&self, feerate: FeeRate) -> Vec<OutPoint> {
        let cost = feerate.fee_wu(P2TR_INPUT).unwrap_or(Amount::MAX_MONEY);
        let dust = self
            .coins
            .list_unspent()
            .filter(|coin| coin.txout.value <= cost);
        dust.map(|coin| coin.outpoint).collect()
    }

    /// Coins that must not be spent, and how much of them only has to confirm.
    fn excluded(&self, kind: Kind) -> (Vec<OutPoint>, Amount) {
        let mut excluded: Vec<OutPoint> = self.reserved.keys().copied().collect();
        let mut pending = Amount::ZERO;
        for coin in self.coins.list_unspent() {
            if self.reserved.contains_key(&coin.outpoint) || coin.chain_position.is_confirmed() {
                continue;
            }
            let is_version_3 = self
                .coins
                .tx_graph()
                .get_tx(coin.outpoint.txid)
                .is_some_and(|parent| parent.version == Version(VERSION_3));
            let waits = match kind {
                Kind::Funding | Kind::Channels => true,
                // A version 2 transaction on top of an unconfirmed version 3 one is not relayed.
                Kind::Payment => is_version_3 || is_foreign_pending(self, &coin),
            };
            if waits {
                pending += coin.txout.value;
                excluded.push(coin.outpoint);
            }
        }
        (excluded, pending)
    }

    fn sign(&self, psbt: &mut Psbt) -> Result<Transaction, SpendError> {
        let build = |detail: String| SpendError::Build { detail };
        self.keys.sign_psbt(psbt)?;
        let complete = self
            .coins
            .finalize_psbt(psbt, SignOptions::default())
            .map_err(|error| build(error.to_string()))?;
        if !complete {
            return Err(build("an input has no signature of ours".into()));
        }
        psbt.clone()
            .extract_tx()
            .map_err(|error| build(error.to_string()))
    }

    fn reveal_change(&mut self, index: Option<u32>) {
        if let Some(index) = index {
            for _ in self
                .coins
                .reveal_addresses_to(KeychainKind::Internal, index)
            {}
        }
    }

    /// The transaction, if it is ours alone, unconfirmed, and nothing of ours builds on it.
    fn cancellable(&self, txid: Txid) -> Result<Transaction, CancelError> {
        let known = self
            .coins
            .get_tx(txid)
            .ok_or(CancelError::Unknown { txid })?;
        let transaction = known.tx_node.tx.as_ref().clone();
        if !self.is_ours_alone(&transaction) {
            return Err(CancelError::Unknown { txid });
        }
        if known.chain_position.is_confirmed() {
            return Err(CancelError::Confirmed { txid });
        }
        match self.children_of(txid).first() {
            Some(child) => Err(CancelError::HasChild {
                txid,
                child: *child,
            }),
            None => Ok(transaction),
        }
    }

    fn children_of(&self, txid: Txid) -> Vec<Txid> {
        self.coins
            .transactions()
            .filter(|tx| {
                tx.tx_node
                    .tx
                    .input
                    .iter()
                    .any(|input| input.previous_output.txid == txid)
            })
            .map(|tx| tx.tx_node.txid)
            .collect()
    }

    fn sign_replacement(
        &self,
        original: &Transaction,
        script: ScriptBuf,
        value: Amount,
    ) -> Result<Transaction, SpendError> {
        let build = |detail: String| SpendError::Build { detail };
        let unsigned = Transaction {
            version: original.version,
            lock_time: absolute::LockTime::ZERO,
            input: original
                .input
                .iter()
                .map(|input| TxIn {
                    previous_output: input.previous_output,
                    sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                    ..TxIn::default()
                })
                .collect(),
            output: vec![TxOut {
                value,
                script_pubkey: script,
            }],
        };
        let mut psbt =
            Psbt::from_unsigned_tx(unsigned).map_err(|error| build(error.to_string()))?;
        for (input, txin) in psbt.inputs.iter_mut().zip(&original.input) {
            let coin = self
                .coins
                .list_output()
                .find(|coin| coin.outpoint == txin.previous_output)
                .ok_or_else(|| build("a coin of the original is unknown".into()))?;
            *input = self
                .coins
                .get_psbt_input(coin, None, true)
                .map_err(|error| build(error.to_string()))?;
        }
        self.sign(&mut psbt)
    }
}

/// Whether these amounts can be sent at all.
fn check(pays: Pays<'_>) -> Result<(), SpendError> {
    let Pays::Exact(outputs) = pays else {
        return Ok(());
    };
    let mut all = Amount::ZERO;
    for (script, asked) in outputs {
        let (asked, least) = (*asked, script.minimal_non_dust());
        if asked < least {
            return Err(SpendError::BelowDust { asked, least });
        }
        all = all.checked_add(asked).unwrap_or(Amount::MAX);
    }
    match all > Amount::MAX_MONEY {
        true => Err(SpendError::AboveSupply { asked: all }),
        false => Ok(()),
    }
}

/// A feerate within what makes sense: at least what every node relays.
fn bid(feerate: FeeRate) -> Result<FeeRate, SpendError> {
    if feerate > FeeRate::from_sat_per_vb_u32(MAX_SAT_PER_VBYTE) {
        return Err(SpendError::FeerateTooHigh {
            asked: feerate.to_sat_per_vb_floor(),
        });
    }
    Ok(feerate.max(FeeRate::BROADCAST_MIN))
}

fn sort(error: CreateTxError, pending: Amount) -> SpendError {
    match error {
        CreateTxError::CoinSelection(InsufficientFunds { needed, available }) => {
            SpendError::InsufficientFunds {
                needed,
                available,
                pending,
            }
        }
        // Draining a wallet that holds nothing to drain.
        CreateTxError::NoRecipients | CreateTxError::NoUtxosSelected => {
            SpendError::InsufficientFunds {
                needed: Amount::ONE_SAT,
                available: Amount::ZERO,
                pending,
            }
        }
        error => SpendError::Build {
            detail: error.to_string(),
        },
    }
}
