//! The chain, as the wallet and the channels see it: a stream of events and a few questions.
//!
//! # The contract between a source and who listens to it
//!
//! One thread owns the [`ChainSource`] and calls [`ChainSource::poll`]. Every event it returns is
//! given to every listener ([`Wallet::apply`](crate::onchain::Wallet::apply) and
//! [`Watcher::apply`](watch::Watcher::apply)), in order, before the next call. A call returns at
//! most one block, so that the first sync of years of chain needs the memory of one block. An
//! empty answer means there is nothing more to tell now: wait a little and ask again.
//!
//! A source guarantees:
//!
//! 1. **Order.** `Connected` heights rise by one; each block's parent is the block before it.
//!    When blocks leave the best chain, a `Disconnected` for each that the source remembers comes
//!    first, highest first; then `Connected` goes on above the highest block still shared, which
//!    may tell some blocks again.
//! 2. **No gaps.** A source resumes above the highest block of its [`Start::locator`] that is
//!    still in the best chain, and not below [`Start::floor`]. Blocks of the locator that left the
//!    chain while nobody looked are reported as `Disconnected`.
//! 3. **Mempool only at the tip.** `Mempool` events come only when every block has been told. A
//!    transaction is `seen` once for as long as it stays in the mempool. It is `evicted` when it
//!    leaves without being confirmed. A transaction that is confirmed is not evicted.
//! 4. **Failure changes nothing.** After an error, the next call goes on where the last good one
//!    stopped; no event is lost or told twice within one source.
//!
//! A listener guarantees:
//!
//! 1. **Idempotence.** An event that it knows already changes nothing. So one source can serve
//!    listeners that stopped at different heights: start it from the lowest.
//! 2. **Rewind.** `Disconnected { height, .. }` drops everything learned from blocks at that height
//!    *and above*. So does `Connected` with another block than the one known at its height.

use std::sync::Arc;

use bitcoin::{Amount, Block, BlockHash, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use thiserror::Error;

pub use bdk_wallet::chain::BlockId;

pub mod bitcoind;
pub mod watch;

/// What happened on the chain. See the [module](self) for order and guarantees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEvent {
    /// A block joined the best chain.
    Connected {
        /// Its height.
        height: u32,
        /// The whole block.
        block: Arc<Block>,
    },
    /// A block, and with it every block above, left the best chain.
    Disconnected {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
    },
    /// The mempool changed.
    Mempool {
        /// When this was observed, in seconds of Unix time, as given to [`ChainSource::poll`].
        at: u64,
        /// Transactions that were not there before; parents before children is not promised.
        seen: Vec<Arc<Transaction>>,
        /// Transactions that left without being confirmed.
        evicted: Vec<Txid>,
    },
}

/// From where a source tells the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Blocks the listeners know, highest first. May be sparse, may be empty.
    pub locator: Vec<BlockId>,
    /// The lowest height of interest: blocks below are not told. The birthday of the oldest
    /// listener.
    pub floor: u32,
    /// Unconfirmed transactions the listeners believe in. Those that are not in the mempool when
    /// the source has caught up are reported as evicted.
    pub unconfirmed: Vec<Txid>,
}

impl Start {
    /// A start that serves the listeners of both: from the lower of the two.
    pub fn join(self, other: Self) -> Self {
        let height = |start: &Self| start.locator.iter().map(|block| block.height).max();
        let (lower, higher) = if height(&self) <= height(&other) {
            (self, other)
        } else {
            (other, self)
        };
        let mut unconfirmed = lower.unconfirmed;
        unconfirmed.extend(higher.unconfirmed);
        unconfirmed.sort_unstable();
        unconfirmed.dedup();
        Self {
            locator: lower.locator,
            floor: lower.floor.min(higher.floor),
            unconfirmed,
        }
    }
}

/// The end of the best chain, as far as the source knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// The highest block.
    pub block: BlockId,
    /// The highest header known. Above `block.height` while the source itself still syncs.
    pub headers: u32,
    /// Whether the source is still far behind the network. Neither confirmations nor balances
    /// are to be relied on then.
    pub syncing: bool,
}

/// An unspent output in the confirmed chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmedOutput {
    /// Its value.
    pub value: Amount,
    /// Its script.
    pub script: ScriptBuf,
    /// How deep it is; at least one.
    pub confirmations: u32,
}

/// What became of a transaction that was handed to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the mempool. It may have been there before.
    InMempool,
    /// It is in the chain already.
    InChain,
}

/// What the mempool would say to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would be accepted.
    Allowed {
        /// Its virtual size.
        vbytes: u64,
        /// Its fee.
        fee: Amount,
    },
    /// It is in the mempool or the chain already.
    Known,
    /// It would be refused.
    Rejected(Rejection),
}

/// A transaction was refused: the node's own words, sorted by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("transaction refused: {detail}")]
pub struct Rejection {
    /// What can be done about it.
    pub reason: RejectReason,
    /// The node's own words.
    pub detail: String,
}

/// Why a transaction was refused, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// An input does not exist or was spent in the chain. If its parent was never broadcast,
    /// broadcast that first; else the transaction is dead.
    MissingInputs,
    /// It conflicts with a transaction in the mempool and does not pay enough to replace it.
    Conflict,
    /// It pays less than the mempool asks now. Pay more, send it as a package, or wait.
    FeeTooLow,
    /// Its lock time has not come. Try again at that height.
    NotFinal,
    /// A rule of relay forbids it: size, dust, version 3 topology, and the like.
    Policy,
    /// It can never be valid.
    Invalid,
}

/// Why the chain could not be asked, sorted by what to do next.
#[derive(Debug, Error)]
pub enum ChainError {
    /// It will pass: the node is down, restarting, warming up or busy. Ask again later.
    #[error("{node} cannot be reached: {detail}")]
    Unavailable {
        /// The node, by its address.
        node: String,
        /// What went wrong.
        detail: String,
    },
    /// The node does not let us in. The operator has to correct the credentials.
    #[error("{node} refused our credentials; check the cookie file, or the user and password")]
    Unauthorized {
        /// The node, by its address.
        node: String,
    },
    /// The node serves another network than the one configured.
    #[error("{node} is on {found}, not on {expected}")]
    WrongNetwork {
        /// The node, by its address.
        node: String,
        /// The network wanted.
        expected: bitcoin::Network,
        /// The network it says it is on.
        found: String,
    },
    /// The node deleted the block we need. It has to be told to keep more, or the wallet has to
    /// start later.
    #[error("{node} has pruned block {height}; use a node that keeps blocks from there on")]
    Pruned {
        /// The node, by its address.
        node: String,
        /// The height of the block.
        height: u32,
    },
    /// There is no fee estimate yet. It comes with time; until then the operator may set a rate.
    #[error("{node} has no fee estimate yet")]
    NoEstimate {
        /// The node, by its address.
        node: String,
    },
    /// The node said something we do not understand. A version problem, or not a bitcoin node.
    #[error("{node} gave an unexpected answer to {call}: {detail}")]
    Protocol {
        /// The node, by its address.
        node: String,
        /// The call it answered.
        call: String,
        /// What is wrong with the answer.
        detail: String,
    },
}

impl ChainError {
    /// Whether the same call may succeed later without anyone doing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::NoEstimate { .. } => true,
            Self::Unauthorized { .. }
            | Self::WrongNetwork { .. }
            | Self::Pruned { .. }
            | Self::Protocol { .. } => false,
        }
    }
}

/// Why a transaction did not get to the network.
#[derive(Debug, Error)]
pub enum BroadcastError {
    /// The node refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The node could not be asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// What is to be known of a funding transaction before it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FundingFacts {
    /// Whether every input is a confirmed output, unspent by any block. If not, the transaction
    /// can fall with a parent, and nothing of version 3 can be put on top of it.
    pub has_confirmed_inputs: bool,
    /// What it pays, rounded down. Zero if an input is unknown.
    pub feerate: FeeRate,
}

/// Looks the inputs of `funding` up. Only of use while `funding` is unconfirmed: afterwards its
/// inputs are spent.
///
/// # Errors
///
/// Returns an error only if the node could not be asked.
pub fn funding_facts(
    source: &dyn ChainSource,
    funding: &Transaction,
) -> Result<FundingFacts, ChainError> {
    let unknown = FundingFacts {
        has_confirmed_inputs: false,
        feerate: FeeRate::ZERO,
    };
    if funding.input.len() > watch::MAX_FUNDING_INPUTS {
        return Ok(unknown);
    }
    let mut spent = Amount::ZERO;
    for input in &funding.input {
        match source.confirmed_output(&input.previous_output)? {
            Some(output) => spent = spent.checked_add(output.value).unwrap_or(Amount::ZERO),
            None => return Ok(unknown),
        }
    }
    let paid = funding
        .output
        .iter()
        .try_fold(Amount::ZERO, |paid, output| paid.checked_add(output.value));
    let fee = paid
        .and_then(|paid| spent.checked_sub(paid))
        .unwrap_or(Amount::ZERO);
    Ok(FundingFacts {
        has_confirmed_inputs: true,
        feerate: fee / funding.weight(),
    })
}

/// Where the chain is learned from, and how transactions get to it.
///
/// Every call blocks; a node gives the source its own thread. See the [module](self) for what is
/// guaranteed and expected.
pub trait ChainSource: Send {
    /// Returns what happened next: at most one block, or a bounded part of the mempool.
    ///
    /// `now` is Unix time in seconds and becomes [`ChainEvent::Mempool::at`]. Empty when there is
    /// nothing more to tell now.
    ///
    /// # Errors
    ///
    /// Nothing is lost: the next call goes on from the same place.
    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError>;

    /// Starts over from `start`, for instance when a listener with an older height joins.
    fn restart(&mut self, start: Start);

    /// Tells again, as `seen`, whichever of these transactions, and of the transactions that spend
    /// these outputs, are in the mempool: for a listener that was not listening for them when they
    /// were told. What is not there is not told, and no error.
    ///
    /// # Errors
    ///
    /// Returns an error if the node could not be asked; nothing changed then.
    fn look_again(&mut self, txids: &[Txid], spent: &[OutPoint]) -> Result<(), ChainError>;

    /// Hands a transaction to the network. Idempotent: a transaction that is in the mempool or in
    /// the chain already is a success.
    ///
    /// # Errors
    ///
    /// Returns [`BroadcastError::Rejected`] if the node will not relay it; nothing was sent then.
    fn broadcast(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError>;

    /// Hands a child to the network together with its unconfirmed parents, parents first, so that
    /// the child's fee counts for all. Idempotent like [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    ///
    /// Returns the first rejection. Parents that stand on their own may have been accepted.
    fn broadcast_package(&self, package: &[Transaction]) -> Result<(), BroadcastError>;

    /// Asks what the mempool would say, without handing the transaction out.
    ///
    /// # Errors
    ///
    /// Returns an error only if the node could not be asked; a refusal is an answer.
    fn test_accept(&self, transaction: &Transaction) -> Result<Verdict, ChainError>;

    /// The feerate expected to confirm within `target_blocks`, never below what the node's mempool
    /// asks nor below one sat/vB.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::NoEstimate`] if there is none. On regtest there is always one.
    fn feerate(&self, target_blocks: u16) -> Result<FeeRate, ChainError>;

    /// The end of the best chain.
    ///
    /// # Errors
    ///
    /// Returns an error only if the node could not be asked.
    fn tip(&self) -> Result<Tip, ChainError>;

    /// The block at `height`, for a wallet that is to start there. `None` above the tip.
    ///
    /// # Errors
    ///
    /// Returns an error only if the node could not be asked.
    fn block_at(&self, height: u32) -> Result<Option<BlockId>, ChainError>;

    /// An output that is confirmed and not spent by any block. `None` if it does not exist, is
    /// unconfirmed, or is spent; a spend that is only in the mempool does not count.
    ///
    /// # Errors
    ///
    /// Returns an error only if the node could not be asked.
    fn confirmed_output(&self, outpoint: &OutPoint) -> Result<Option<ConfirmedOutput>, ChainError>;
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash;

    use super::*;

    fn start(heights: &[u32], floor: u32, unconfirmed: &[u8]) -> Start {
        Start {
            locator: heights
                .iter()
                .map(|height| BlockId {
                    height: *height,
                    hash: BlockHash::all_zeros(),
                })
                .collect(),
            floor,
            unconfirmed: unconfirmed
                .iter()
                .map(|byte| Txid::from_byte_array([*byte; 32]))
                .collect(),
        }
    }

    #[test]
    fn a_start_for_two_listeners_serves_the_one_that_is_behind() {
        let ahead = start(&[90, 80], 50, &[1, 2]);
        let behind = start(&[70, 60], 60, &[2, 3]);
        let joined = start(&[70, 60], 50, &[1, 2, 3]);
        assert_eq!(ahead.clone().join(behind.clone()), joined);
        assert_eq!(behind.join(ahead.clone()), joined);

        let fresh = start(&[], 10, &[]);
        assert_eq!(ahead.join(fresh).locator, []);
    }
}
