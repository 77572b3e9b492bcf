//! The chain, as the wallet and the channels see it: a stream of events and a few questions.
//!
//! Five sources keep one contract, and `wallet/tests/regtest/conformance.rs` holds each of them to
//! it, on one chain:
//!
//! | source | asks | [sees](Sight) | trusts |
//! |---|---|---|---|
//! | [`bitcoind`] | a bitcoind, by RPC | everything | that node |
//! | [`filters`] | any nodes of the network, by BIP-157 | blocks | proof of work; that not all its peers lie about filters |
//! | [`esplora`] | a server, by HTTP | blocks, the mempool where it touches what is watched | that server |
//! | [`electrum`] | a server, by JSON on a stream | both where they touch what is watched | that server |
//! | [`checked`] | one of those, and more to confirm each block | as the one that leads | that not all of them lie |
//!
//! # Who calls what, in which order
//!
//! One thread owns the [`ChainSource`]; every call blocks, and none waits longer than a minute or so
//! before it fails. Making a source does not connect; the first call does.
//!
//! 1. [`tip`](ChainSource::tip) and [`block_at`](ChainSource::block_at) may be asked at any time.
//!    A new wallet asks them where to [start](crate::onchain::Wallet::start_at).
//! 2. [`restart`](ChainSource::restart) says from where to tell, and which scripts matter.
//! 3. [`poll`](ChainSource::poll), over and over. Every event it returns is given to every listener
//!    ([`Wallet::apply`](crate::onchain::Wallet::apply) and
//!    [`Watcher::apply`](watch::Watcher::apply)), in order, before the next call. A call returns at
//!    most one block, so that the first sync of years of chain needs the memory of one block. An
//!    empty answer means there is nothing more to tell now: wait a little and ask again.
//! 4. [`watch`](ChainSource::watch) whenever a listener has a script that it had not at the start.
//!    The other questions may be asked between two polls, in any order.
//!
//! `restart`, `watch`, `look_again` and `broadcast` may be repeated; a repetition changes nothing.
//!
//! # What a source guarantees
//!
//! 1. **Order.** `Connected` heights rise by one; each block's parent is the block before it.
//!    When blocks leave the best chain, a `Disconnected` for each that the source remembers comes
//!    first, highest first; then `Connected` goes on above the highest block still shared, which
//!    may tell some blocks again.
//! 2. **No gaps.** A source resumes above the highest block of its [`Start::locator`] that is
//!    still in the best chain, and not below [`Start::floor`]. Blocks of the locator that left the
//!    chain while nobody looked are reported as `Disconnected`.
//! 3. **What is watched.** A block holds at least every transaction that pays to or spends from a
//!    script watched when it is told; it may hold others, or all. Which inputs a *foreign* funding
//!    spends is not known by script, so only a source that tells whole blocks tells a conflict with
//!    it for certain.
//! 4. **Mempool only at the tip, and only where it is seen.** `Mempool` events come only when every
//!    block has been told, and never from a source whose [`Sight`] is `Blocks`. A transaction is
//!    `seen` once for as long as it stays in the mempool. It is `evicted` when it leaves without
//!    being confirmed. A transaction that is confirmed is not evicted.
//! 5. **Failure changes nothing.** After an error, the next call goes on where the last good one
//!    stopped; no event is lost or told twice within one source. A source retries by being called
//!    again, so the caller's pace bounds the retries.
//!
//! # What a listener guarantees
//!
//! 1. **Idempotence.** An event that it knows already changes nothing. So one source can serve
//!    listeners that stopped at different heights: start it from the lowest. A block told again is
//!    searched again, because it may hold more than the first time.
//! 2. **Rewind.** `Disconnected { height, .. }` drops everything learned from blocks at that height
//!    *and above*. So does `Connected` with another block than the one known at its height.

use std::sync::Arc;

use bitcoin::{Amount, Block, BlockHash, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use thiserror::Error;

pub use bdk_wallet::chain::BlockId;

pub mod bitcoind;
pub mod checked;
pub mod electrum;
pub mod esplora;
pub mod filters;
mod follow;
mod server;
pub mod watch;
mod wire;

/// What happened on the chain. See the [module](self) for order and guarantees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEvent {
    /// A block joined the best chain.
    Connected {
        /// Its height.
        height: u32,
        /// Its header, with those of its transactions that touch what is watched, and perhaps
        /// others. Its merkle root need not match them.
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
    /// The scripts that matter: the wallet's own, and those of the outputs watched. Others are
    /// added by [`ChainSource::watch`].
    pub scripts: Vec<ScriptBuf>,
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
        let mut scripts = lower.scripts;
        scripts.extend(higher.scripts);
        scripts.sort_unstable();
        scripts.dedup();
        Self {
            locator: lower.locator,
            floor: lower.floor.min(higher.floor),
            unconfirmed,
            scripts,
        }
    }
}

/// How much of the network a source sees, and so what may be risked on its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Blocks alone. Whether a transaction waits in a mempool, was refused or was replaced there is
    /// not known, and a transaction that was broadcast may have reached nobody.
    Blocks,
    /// Blocks, and the mempool where it touches what is watched. A transaction that conflicts with a
    /// foreign funding need not touch that.
    Watched,
    /// Blocks and the whole mempool.
    Everything,
}

impl Sight {
    /// Whether a funding that no block holds yet may count for anything. Only where every conflict
    /// with it would be seen; everywhere else the zero-conf limit is zero.
    pub fn bears_zero_conf(self) -> bool {
        match self {
            Self::Everything => true,
            Self::Blocks | Self::Watched => false,
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
    /// It was offered to peers whose mempool this source does not see. Its block will tell.
    Sent,
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
    /// This source cannot ask that: see what [`broadcast`](ChainSource::broadcast) says.
    Unknown,
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
    /// This kind of source cannot know that; see its [`Sight`].
    #[error("{node} cannot say {what}")]
    Blind {
        /// The source.
        node: String,
        /// What was asked.
        what: &'static str,
    },
    /// Two sources of one node name different blocks. Nothing above is told until they agree; if
    /// they never do, one of them is wrong and the operator has to find out which.
    #[error("at height {height} {one} has block {ones}, and {other} has {others}")]
    Disagreement {
        /// The height.
        height: u32,
        /// The source that leads.
        one: String,
        /// Its block.
        ones: BlockHash,
        /// The source that was to confirm it.
        other: String,
        /// Its block.
        others: BlockHash,
    },
}

impl ChainError {
    /// Whether the same call may succeed later without anyone doing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::NoEstimate { .. } | Self::Disagreement { .. } => true,
            Self::Blind { .. }
            | Self::Unauthorized { .. }
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
/// Every call blocks; a node gives the source its own thread. See the [module](self) for who calls
/// what, and what is guaranteed and expected.
pub trait ChainSource: Send {
    /// What it is and where, for people: `bitcoind at 127.0.0.1:8332`. Holds no secret.
    fn name(&self) -> String;

    /// How much it sees. Never changes.
    fn sight(&self) -> Sight;

    /// Returns what happened next: at most one block, or a bounded part of the mempool.
    ///
    /// `now` is Unix time in seconds and becomes [`ChainEvent::Mempool::at`]. Empty when there is
    /// nothing more to tell now.
    ///
    /// # Errors
    ///
    /// Nothing is lost: the next call goes on from the same place.
    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError>;

    /// Starts over from `start`, for instance when a listener with an older height joins. Asks
    /// nobody.
    fn restart(&mut self, start: Start);

    /// Watches these scripts too, from now on and in the blocks from `from` on that were told
    /// already: those that touch them are told again before others, and so are transactions in the
    /// mempool. Asks nobody.
    ///
    /// How far back a block can be told again is bounded, at 100 blocks or more; for older ones,
    /// [`restart`](Self::restart).
    fn watch(&mut self, from: u32, scripts: &[ScriptBuf]);

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
    /// Returns [`BroadcastError::Rejected`] if the node will not relay it; nothing was sent then. A
    /// source that sees only blocks is not told of refusals.
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
    /// Returns an error only if the node could not be asked; a refusal is an answer, and so is
    /// [`Verdict::Unknown`].
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

    /// The block at `height`, for a wallet that is to start there. `None` above the tip. A source
    /// that does not know the chain below some block answers with that block instead of one below
    /// it; nothing of a wallet with taproot outputs alone can lie there.
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
    /// Returns [`ChainError::Blind`] from a source that sees only blocks; else an error only if the
    /// node could not be asked.
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
            scripts: Vec::new(),
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
