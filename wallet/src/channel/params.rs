//! What each role insists on, and what both agreed.

use std::time::Duration;

use bitcoin::{Amount, BlockHash, Network, OutPoint, Transaction, TxOut, Weight, constants};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::deadline::{BlockHeight, Margins};
use super::exposure::ExposureTable;
use super::message::{Accept, Open};
use super::refusal::RefusalCode;
use super::script::Scripts;
use super::tx;
use super::{ChannelId, PartyId, ProposalId, TrancheIndex};

pub use super::split::{CLOSE_PATIENCE, CLOSE_RESPITE};
pub use super::tranche::Tranche;

/// Default life of a channel in blocks: 30 days.
pub const DEFAULT_TERM: u32 = 4_320;
/// Shortest life a payee accepts by default: 7 days, of which the last two serve to close.
pub const MIN_TERM: u32 = 1_008;
/// Longest life a payee accepts by default: 90 days. Bounds how long a vanished payee can lock the
/// payer's money.
pub const MAX_TERM: u32 = 12_960;
/// Depth at which the end of a channel is final.
pub const FINAL_DEPTH: u32 = 6;

/// The two parties of a channel, as the caller authenticated them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parties {
    /// Who pays.
    pub payer: PartyId,
    /// Who is paid.
    pub payee: PartyId,
}

/// What a payee insists on. The defaults are those of the design.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PayeePolicy {
    /// Smallest capacity accepted, in sat.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub min_capacity: Amount,
    /// Largest capacity accepted, in sat. Bounds what one key guards.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub max_capacity: Amount,
    /// Shortest life accepted, in blocks from the tip.
    pub min_term: u32,
    /// Longest life accepted, in blocks from the tip.
    pub max_term: u32,
    /// What is credited at which depth. Remove the step for depth 0 to serve only on confirmed
    /// funding, as a node without a mempool must.
    pub exposure: ExposureTable,
    /// How long unconfirmed funding must have been in the mempool before it counts: long enough
    /// for a conflicting transaction to show itself.
    pub min_mempool_age: Duration,
    /// When what is due before the expiry.
    pub margins: Margins,
}

impl Default for PayeePolicy {
    fn default() -> Self {
        Self {
            min_capacity: Amount::from_sat(20_000),
            max_capacity: Amount::from_sat(10_000_000),
            min_term: MIN_TERM,
            max_term: MAX_TERM,
            exposure: ExposureTable::default(),
            min_mempool_age: Duration::from_secs(10),
            margins: Margins::default(),
        }
    }
}

/// Why a payee does not take a proposed channel. Nothing was written down or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The proposal is for another block chain.
    #[error("the proposal is for the chain {got}")]
    Chain {
        /// Hash of that chain's genesis block.
        got: BlockHash,
    },
    /// The proposal names other parties than those who speak.
    #[error("the proposal names other parties")]
    Parties,
    /// Both channel keys are the same.
    #[error("both channel keys are the same")]
    SameKey,
    /// The change script is not pay-to-taproot.
    #[error("the change script is not pay-to-taproot")]
    ChangeScript,
    /// The capacity is outside the policy.
    #[error("capacity {got} is outside {min} to {max}")]
    Capacity {
        /// What was proposed.
        got: Amount,
        /// Least accepted.
        min: Amount,
        /// Most accepted.
        max: Amount,
    },
    /// The first payment does not fit into the capacity.
    #[error("a first payment of {min_first} does not fit into a capacity of {capacity}")]
    MinFirst {
        /// The least first payment.
        min_first: Amount,
        /// What was proposed.
        capacity: Amount,
    },
    /// The expiry is outside the policy.
    #[error("expiry in {got} blocks is outside {min} to {max}")]
    Expiry {
        /// Blocks from the tip to the proposed expiry.
        got: u32,
        /// Least accepted.
        min: u32,
        /// Most accepted.
        max: u32,
    },
}

impl OpenError {
    /// What to tell the payer.
    pub const fn refusal(&self) -> RefusalCode {
        match self {
            Self::Chain { .. } | Self::Parties | Self::SameKey | Self::ChangeScript => {
                RefusalCode::Unsupported
            }
            Self::Capacity { .. } | Self::MinFirst { .. } => RefusalCode::Capacity,
            Self::Expiry { .. } => RefusalCode::Expiry,
        }
    }
}

impl PayeePolicy {
    /// The policy for a channel that is carried over from another: it may be half as small. What makes a
    /// small channel not worth it is opening and closing, 359 vB; carrying over takes 154.
    #[must_use]
    pub fn for_next(&self) -> Self {
        Self {
            min_capacity: self.min_capacity / 2,
            ..self.clone()
        }
    }

    /// Says whether `open` can be accepted when the chain's tip is `tip` and the first voucher is
    /// to pay `min_first`.
    ///
    /// # Errors
    ///
    /// Returns the first [`OpenError`] found.
    pub fn check(
        &self,
        open: &Open,
        network: Network,
        parties: Parties,
        min_first: Amount,
        tip: BlockHeight,
    ) -> Result<(), OpenError> {
        if open.chain != genesis(network) {
            return Err(OpenError::Chain { got: open.chain });
        }
        if (Parties {
            payer: open.payer,
            payee: open.payee,
        }) != parties
        {
            return Err(OpenError::Parties);
        }
        if !open.change_script.is_p2tr() {
            return Err(OpenError::ChangeScript);
        }
        if open.capacity < self.min_capacity || open.capacity > self.max_capacity {
            let (min, max) = (self.min_capacity, self.max_capacity);
            return Err(OpenError::Capacity {
                got: open.capacity,
                min,
                max,
            });
        }
        if min_first > open.capacity {
            return Err(OpenError::MinFirst {
                min_first,
                capacity: open.capacity,
            });
        }
        let (got, min, max) = (tip.blocks_until(open.expiry), self.min_term, self.max_term);
        let is_height = bitcoin::absolute::Height::from_consensus(open.expiry.get()).is_ok();
        if !is_height || got < min || got > max || got <= self.margins.stop {
            return Err(OpenError::Expiry { got, min, max });
        }
        Ok(())
    }
}

/// Hash of the genesis block, which names the chain in [`Open`].
pub fn genesis(network: Network) -> BlockHash {
    constants::genesis_block(network).block_hash()
}

/// What a payer insists on. The defaults are those of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PayerPolicy {
    /// When to stop paying before the expiry; the same margins the payee uses.
    pub margins: Margins,
    /// How long an unanswered message waits before it is sent again; doubled each time, up to
    /// [`MAX_RESEND`](Self::MAX_RESEND). Every message is idempotent.
    pub resend: Duration,
}

impl PayerPolicy {
    /// Longest wait between two sendings of the same message.
    pub const MAX_RESEND: Duration = Duration::from_secs(60);
}

impl Default for PayerPolicy {
    fn default() -> Self {
        Self {
            margins: Margins::default(),
            resend: Duration::from_secs(2),
        }
    }
}

/// What both sides agreed: the two messages and all that follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    id: ChannelId,
    proposal: ProposalId,
    open: Open,
    accept: Accept,
    scripts: Scripts,
}

/// Why two messages do not make a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ContractError {
    /// The answer is to another proposal.
    #[error("the answer is to another proposal")]
    Elsewhere,
    /// Both channel keys are the same.
    #[error("both channel keys are the same")]
    SameKey,
    /// The first payment asked for does not fit into the capacity.
    #[error("a first payment of {min_first} does not fit into a capacity of {capacity}")]
    MinFirst {
        /// The least first payment asked for.
        min_first: Amount,
        /// What the channel would hold.
        capacity: Amount,
    },
}

impl Contract {
    /// Joins a proposal and the answer to it.
    ///
    /// # Errors
    ///
    /// Returns [`ContractError`] if they do not belong together.
    pub fn new(open: Open, accept: Accept) -> Result<Self, ContractError> {
        let proposal = open.proposal();
        if accept.proposal != proposal {
            return Err(ContractError::Elsewhere);
        }
        if open.payer_key == accept.payee_key {
            return Err(ContractError::SameKey);
        }
        if accept.min_first > open.capacity {
            let (min_first, capacity) = (accept.min_first, open.capacity);
            return Err(ContractError::MinFirst {
                min_first,
                capacity,
            });
        }
        let id = accept.channel(&open);
        let scripts = Scripts::new(open.payer_key, accept.payee_key, open.expiry);
        Ok(Self {
            id,
            proposal,
            open,
            accept,
            scripts,
        })
    }

    /// The channel's id.
    pub const fn id(&self) -> ChannelId {
        self.id
    }

    /// The proposal it came from; records are filed under it.
    pub const fn proposal(&self) -> ProposalId {
        self.proposal
    }

    /// The payer's message.
    pub const fn open(&self) -> &Open {
        &self.open
    }

    /// The payee's message.
    pub const fn accept(&self) -> &Accept {
        &self.accept
    }

    /// Output script and leaves of the first tranche.
    pub const fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// The output that funds the first tranche, as a transaction has it.
    pub fn output(&self) -> TxOut {
        TxOut {
            value: self.open.capacity,
            script_pubkey: self.scripts.output().clone(),
        }
    }

    /// Checks that output `vout` of `tx` funds the first tranche, and returns that tranche.
    ///
    /// # Errors
    ///
    /// Returns [`FundingError`] if it does not, or if its id could still be changed by others.
    pub fn fund(&self, tx: &Transaction, vout: u32) -> Result<Tranche, FundingError> {
        if tx.version != tx::VERSION {
            return Err(FundingError::Version { got: tx.version.0 });
        }
        if tx.weight() > tx::MAX_WEIGHT {
            return Err(FundingError::TooHeavy { got: tx.weight() });
        }
        let is_signed = |input: &bitcoin::TxIn| !input.witness.is_empty();
        if tx.input.is_empty() || !tx.input.iter().all(is_signed) {
            return Err(FundingError::Unsigned);
        }
        let output = usize::try_from(vout)
            .ok()
            .and_then(|index| tx.output.get(index))
            .ok_or(FundingError::NoOutput { vout })?;
        if output.script_pubkey != *self.scripts.output() {
            return Err(FundingError::Script);
        }
        if output.value != self.open.capacity {
            let (got, want) = (output.value, self.open.capacity);
            return Err(FundingError::Value { got, want });
        }
        Ok(Tranche {
            channel: self.id,
            index: TrancheIndex::FIRST,
            outpoint: OutPoint::new(tx.compute_txid(), vout),
            prevout: output.clone(),
            payer_key: self.open.payer_key,
            expiry: self.open.expiry,
            change: self.open.change_script.clone(),
            scripts: self.scripts.clone(),
            next: None,
        })
    }
}

/// Why a transaction does not fund a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FundingError {
    /// Not version 3: an unconfirmed one could not be closed on top of.
    #[error("funding has version {got}, wanted 3")]
    Version {
        /// Its version.
        got: i32,
    },
    /// Heavier than a version 3 transaction may be.
    #[error("funding weighs {got}, at most {} is relayed", tx::MAX_WEIGHT)]
    TooHeavy {
        /// Its weight.
        got: Weight,
    },
    /// An input has no witness: unsigned, or of a kind whose signature others can change, and the
    /// transaction's id with it.
    #[error("funding has an input without a witness")]
    Unsigned,
    /// There is no such output.
    #[error("funding has no output {vout}")]
    NoOutput {
        /// The index given.
        vout: u32,
    },
    /// The output pays another script.
    #[error("funding pays another script")]
    Script,
    /// The output holds another amount than agreed.
    #[error("funding pays {got}, agreed were {want}")]
    Value {
        /// What it holds.
        got: Amount,
        /// What was agreed.
        want: Amount,
    },
}
