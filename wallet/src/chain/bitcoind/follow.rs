//! Follows the best chain and the mempool of one bitcoind, one bounded step at a time.
//!
//! `bdk_bitcoind_rpc::Emitter` is not used: it does not say which blocks left the chain, it keeps
//! every transaction of the mempool in memory, and one checkpoint for every block it ever told.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bitcoin::{Block, BlockHash, Transaction, Txid, consensus::encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rpc::{CallError, Rpc};
use crate::chain::{BlockId, ChainError, ChainEvent, Start};

/// How many of the last blocks are remembered, to notice a reorganisation. Far deeper than any
/// that ever happened; 36 kB.
const REMEMBERED_BLOCKS: usize = 1_000;

/// How many transactions one step fetches at most. The first look at a full mempool takes several
/// hundred steps, and none of them holds up a block for long.
const TRANSACTIONS_PER_STEP: usize = 256;

/// How many transactions are asked for in one exchange; bounds the size of its answer.
const TRANSACTIONS_PER_BATCH: usize = 32;

/// When this much was fetched, the step ends early, so that large transactions do not add up.
const BYTES_PER_STEP: usize = 4_000_000;

/// How many transaction ids of the mempool one step can afford to compare: listing a mempool of
/// n ids is followed by n divided by this many steps without listing it.
const IDS_PER_STEP: usize = 10_000;

/// "Block height out of range."
const INVALID_PARAMETER: i32 = -8;
/// "Block not available (pruned data)", among others.
const MISC_ERROR: i32 = -1;
/// "No such mempool transaction", "Block not found".
const NOT_FOUND: i32 = -5;

/// Where we are in the chain and the mempool.
pub(super) struct Follower {
    /// Blocks told or known from the locator, lowest first.
    known: VecDeque<BlockId>,
    floor: u32,
    mempool: Mempool,
}

/// What is above the last known block.
enum Next {
    /// A block that connects to it.
    Block(ChainEvent),
    /// Nothing: every block from the floor on has been told.
    None,
    /// One that does not connect: the last known block is stale, or lies below the floor.
    Unconnected,
}

#[derive(Default)]
struct Mempool {
    /// Transactions told as seen and not since evicted or confirmed.
    told: HashSet<Txid>,
    /// Transactions the listeners believe in though this source never told them.
    believed: HashSet<Txid>,
    /// Listed and not yet fetched.
    unfetched: Vec<Txid>,
    /// Steps to let pass before the next listing.
    rest: usize,
}

#[derive(Deserialize)]
struct MempoolInfo {
    #[serde(default)]
    loaded: Option<bool>,
}

impl Follower {
    pub(super) fn new(start: Start) -> Self {
        let mut known: Vec<_> = start.locator;
        known.sort_unstable_by_key(|block| block.height);
        known.dedup_by_key(|block| block.height);
        Self {
            known: known.into(),
            floor: start.floor.max(1),
            mempool: Mempool {
                believed: start.unconfirmed.into_iter().collect(),
                ..Mempool::default()
            },
        }
    }

    /// Forgets that these transactions were told, so that they are told again if they are there.
    pub(super) fn look_again(&mut self, txids: &[Txid]) {
        for txid in txids {
            // If it is gone by now, that has to be told as well.
            if self.mempool.told.remove(txid) {
                self.mempool.believed.insert(*txid);
            }
        }
        self.mempool.rest = 0;
    }

    /// Takes one step: leave blocks that left the chain, or else take the next block, or else look
    /// at the mempool.
    pub(super) fn step(&mut self, rpc: &Rpc, now: u64) -> Result<Vec<ChainEvent>, ChainError> {
        let best = best_block(rpc)?;
        if self.known.back().is_some_and(|last| last.hash == best) {
            return self.step_mempool(rpc, best, now);
        }
        // A block that connects proves that the one below is still in the chain, which saves a
        // question for each block of a long catching up.
        let next = match self.next_block(rpc)? {
            Next::Block(event) => return Ok(vec![event]),
            next => next,
        };
        let left = self.leave_stale_blocks(rpc)?;
        match next {
            _ if !left.is_empty() => Ok(left),
            Next::None => self.step_mempool(rpc, best, now),
            Next::Unconnected | Next::Block(_) => self.start_at_floor(rpc),
        }
    }

    /// Forgets the blocks at the end that are not in the best chain, and says so.
    fn leave_stale_blocks(&mut self, rpc: &Rpc) -> Result<Vec<ChainEvent>, ChainError> {
        let mut left = Vec::new();
        while let Some(last) = self.known.back().copied() {
            match block_hash(rpc, last.height) {
                Ok(Some(hash)) if hash == last.hash => break,
                Ok(_) => {
                    self.known.pop_back();
                    left.push(ChainEvent::Disconnected {
                        height: last.height,
                        hash: last.hash,
                    });
                }
                // What was left is told now; the rest is found again by the next step.
                Err(_) if !left.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// The block above the last known one, if it connects to that.
    fn next_block(&mut self, rpc: &Rpc) -> Result<Next, ChainError> {
        let above = self
            .known
            .back()
            .map_or(0, |last| last.height.saturating_add(1));
        let height = above.max(self.floor);
        let Some(hash) = block_hash(rpc, height)? else {
            return Ok(Next::None);
        };
        if height > above && !self.known.is_empty() {
            return Ok(Next::Unconnected);
        }
        let block = fetch_block(rpc, hash, height)?;
        let connects = self
            .known
            .back()
            .is_none_or(|last| last.hash == block.header.prev_blockhash);
        if !connects {
            return Ok(Next::Unconnected);
        }
        Ok(Next::Block(self.tell(height, hash, block)))
    }

    /// Goes on at the floor, when that is above the last known block and nothing known is stale.
    fn start_at_floor(&mut self, rpc: &Rpc) -> Result<Vec<ChainEvent>, ChainError> {
        let is_below = self
            .known
            .back()
            .is_some_and(|last| last.height.saturating_add(1) < self.floor);
        if !is_below {
            // A reorganisation came between two questions; the next step sees it whole.
            return Ok(Vec::new());
        }
        let Some(hash) = block_hash(rpc, self.floor)? else {
            return Ok(Vec::new());
        };
        let block = fetch_block(rpc, hash, self.floor)?;
        Ok(vec![self.tell(self.floor, hash, block)])
    }

    fn tell(&mut self, height: u32, hash: BlockHash, block: Block) -> ChainEvent {
        self.known.push_back(BlockId { height, hash });
        while self.known.len() > REMEMBERED_BLOCKS {
            self.known.pop_front();
        }
        self.mempool.confirm(&block);
        ChainEvent::Connected {
            height,
            block: Arc::new(block),
        }
    }

    fn step_mempool(
        &mut self,
        rpc: &Rpc,
        tip: BlockHash,
        now: u64,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        let mut evicted = Vec::new();
        if self.mempool.unfetched.is_empty() {
            if let Some(rest) = self.mempool.rest.checked_sub(1) {
                self.mempool.rest = rest;
                return Ok(Vec::new());
            }
            if !is_mempool_loaded(rpc)? {
                return Ok(Vec::new());
            }
            let listed: HashSet<Txid> = ask(rpc, "getrawmempool", json!([]))?;
            if best_block(rpc)? != tip {
                // A block came between: what it confirmed is missing from the list, and would be
                // taken for evicted.
                return Ok(Vec::new());
            }
            evicted = self.mempool.compare(&listed);
        }
        let fetched = self.mempool.fetch(rpc);
        // Evictions are forgotten by now, so they are told even if fetching failed.
        match fetched {
            Err(error) if evicted.is_empty() => Err(error),
            Err(_) => Ok(vec![ChainEvent::Mempool {
                at: now,
                seen: Vec::new(),
                evicted,
            }]),
            Ok(seen) if seen.is_empty() && evicted.is_empty() => Ok(Vec::new()),
            Ok(seen) => Ok(vec![ChainEvent::Mempool {
                at: now,
                seen,
                evicted,
            }]),
        }
    }
}

impl Mempool {
    /// Compares what was told with what is there. Returns what is gone.
    fn compare(&mut self, listed: &HashSet<Txid>) -> Vec<Txid> {
        let evicted: Vec<Txid> = self
            .told
            .union(&self.believed)
            .filter(|txid| !listed.contains(*txid))
            .copied()
            .collect();
        self.told.retain(|txid| listed.contains(txid));
        self.believed.retain(|txid| listed.contains(txid));
        self.unfetched = listed.difference(&self.told).copied().collect();
        self.rest = listed.len() / IDS_PER_STEP;
        evicted
    }

    /// Fetches a bounded part of what was listed.
    fn fetch(&mut self, rpc: &Rpc) -> Result<Vec<Arc<Transaction>>, ChainError> {
        let mut seen = Vec::new();
        let mut bytes = 0;
        while !self.unfetched.is_empty()
            && seen.len() < TRANSACTIONS_PER_STEP
            && bytes < BYTES_PER_STEP
        {
            let from = self.unfetched.len().saturating_sub(TRANSACTIONS_PER_BATCH);
            let params: Vec<Value> = self.unfetched[from..]
                .iter()
                .map(|txid| json!([txid]))
                .collect();
            let answers = match rpc.batch::<String>("getrawtransaction", &params) {
                Ok(answers) => answers,
                Err(_) if !seen.is_empty() => break,
                Err(error) => return Err(error),
            };
            match decode(rpc, answers) {
                Ok(batch) => {
                    for (txid, transaction, size) in batch {
                        bytes += size;
                        self.believed.remove(&txid);
                        self.told.insert(txid);
                        seen.push(Arc::new(transaction));
                    }
                }
                Err(_) if !seen.is_empty() => break,
                Err(error) => return Err(error),
            }
            self.unfetched.truncate(from);
        }
        Ok(seen)
    }

    /// Takes note that the transactions of a block are confirmed, and so neither seen nor evicted.
    fn confirm(&mut self, block: &Block) {
        self.unfetched.clear();
        self.rest = 0;
        if self.told.is_empty() && self.believed.is_empty() {
            return;
        }
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            self.told.remove(&txid);
            self.believed.remove(&txid);
        }
    }
}

/// Decodes the answers of one batch. A transaction that left the mempool between the listing and
/// now is passed over: it was never told, so nothing is owed.
fn decode(
    rpc: &Rpc,
    answers: Vec<Result<String, CallError>>,
) -> Result<Vec<(Txid, Transaction, usize)>, ChainError> {
    const METHOD: &str = "getrawtransaction";
    let mut batch = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer {
            Ok(hex) => {
                let transaction: Transaction =
                    encode::deserialize_hex(&hex).map_err(|error| rpc.protocol(METHOD, error))?;
                batch.push((transaction.compute_txid(), transaction, hex.len() / 2));
            }
            Err(CallError::Answer {
                code: NOT_FOUND, ..
            }) => {}
            Err(error) => return Err(rpc.unexpected(METHOD, error)),
        }
    }
    Ok(batch)
}

/// Whether bitcoind has read its mempool back from disk after a start. Before that, everything
/// would look evicted.
fn is_mempool_loaded(rpc: &Rpc) -> Result<bool, ChainError> {
    let info: MempoolInfo = ask(rpc, "getmempoolinfo", json!([]))?;
    Ok(info.loaded.unwrap_or(true))
}

fn best_block(rpc: &Rpc) -> Result<BlockHash, ChainError> {
    ask(rpc, "getbestblockhash", json!([]))
}

/// The hash of the block at `height` in the best chain, `None` above the tip.
pub(super) fn block_hash(rpc: &Rpc, height: u32) -> Result<Option<BlockHash>, ChainError> {
    match rpc.call("getblockhash", &json!([height])) {
        Ok(hash) => Ok(Some(hash)),
        Err(CallError::Answer {
            code: INVALID_PARAMETER,
            ..
        }) => Ok(None),
        Err(error) => Err(rpc.unexpected("getblockhash", error)),
    }
}

fn fetch_block(rpc: &Rpc, hash: BlockHash, height: u32) -> Result<Block, ChainError> {
    let hex: String = match rpc.call("getblock", &json!([hash, 0])) {
        Ok(hex) => hex,
        Err(CallError::Answer {
            code: MISC_ERROR,
            message,
        }) if message.contains("prune") => {
            return Err(ChainError::Pruned {
                node: rpc.node().to_owned(),
                height,
            });
        }
        Err(error) => return Err(rpc.unexpected("getblock", error)),
    };
    let block: Block =
        encode::deserialize_hex(&hex).map_err(|error| rpc.protocol("getblock", error))?;
    if block.block_hash() != hash {
        return Err(rpc.protocol("getblock", "another block than the one asked for"));
    }
    Ok(block)
}

/// Makes a call that has no legitimate refusal.
pub(super) fn ask<T: serde::de::DeserializeOwned>(
    rpc: &Rpc,
    method: &'static str,
    params: Value,
) -> Result<T, ChainError> {
    rpc.call(method, &params)
        .map_err(|error| rpc.unexpected(method, error))
}
