//! Follows the best chain and the mempool of one node, one bounded step at a time.
//!
//! The one place that keeps the promises of a source about order, gaps and the mempool. What
//! differs between sources is how a question is asked, and that is a [`Node`].
//!
//! `bdk_bitcoind_rpc::Emitter` is not used: it does not say which blocks left the chain, it keeps
//! every transaction of the mempool in memory, and one checkpoint for every block it ever told.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bitcoin::consensus::encode::serialize;
use bitcoin::{Block, BlockHash, Transaction, Txid};

use super::{BlockId, ChainError, ChainEvent, Start};

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

/// What a [`Follower`] asks. Every call blocks, and asks anew: answers of two calls may belong to
/// two chains, and the follower copes with that.
pub(super) trait Node {
    /// The last block that can be told.
    fn best_block(&self) -> Result<BlockHash, ChainError>;

    /// The block at `height` of the best chain; `None` above the last that can be told.
    fn block_hash(&self, height: u32) -> Result<Option<BlockHash>, ChainError>;

    /// The block with this hash, with at least those of its transactions that touch a watched
    /// script. An error if the answer is another block.
    fn block(&self, hash: BlockHash, height: u32) -> Result<Block, ChainError>;

    /// What is in the mempool, as far as this node sees it. `None` if it does not know yet, or
    /// never will: then nothing is taken for evicted.
    fn mempool(&self) -> Result<Option<HashSet<Txid>>, ChainError>;

    /// These transactions of the mempool, without those that have
    /// left it by now.
    fn transactions(&self, txids: &[Txid]) -> Result<Vec<Transaction>, ChainError>;
}

/// Where we are in the chain and the mempool.
pub(super) struct Follower {
    /// Blocks told or known from the locator, lowest first.
    known: VecDeque<BlockId>,
    floor: u32,
    /// Blocks told already and to be told again, lowest first: scripts were added since.
    again: VecDeque<BlockId>,
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

impl Follower {
    pub(super) fn new(start: Start) -> Self {
        let mut known: Vec<_> = start.locator;
        known.sort_unstable_by_key(|block| block.height);
        known.dedup_by_key(|block| block.height);
        Self {
            known: known.into(),
            floor: start.floor.max(1),
            again: VecDeque::new(),
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

    /// Tells the blocks from `height` on again, before any other: a script was added that they may
    /// touch.
    pub(super) fn tell_again(&mut self, height: u32) {
        let from = self
            .again
            .front()
            .map_or(height, |first| first.height.min(height));
        let told = self.known.iter().filter(|block| block.height >= from);
        // The locator is sparse and holds blocks that the listeners know from before.
        self.again = told.copied().collect();
        self.mempool.rest = 0;
    }

    /// The highest block told, or known from the start.
    pub(super) fn top(&self) -> Option<BlockId> {
        self.known.back().copied()
    }

    /// The height of the first block that will be told: above the highest known one, and not below
    /// the floor.
    pub(super) fn first_height(&self) -> u32 {
        self.top()
            .map_or(0, |top| top.height.saturating_add(1))
            .max(self.floor)
    }

    /// Takes one step: leave blocks that left the chain, or else take the next block, or else look
    /// at the mempool.
    pub(super) fn step(
        &mut self,
        node: &impl Node,
        now: u64,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        let best = node.best_block()?;
        if let Some(block) = self.again.front().copied() {
            let event = self.block_again(node, block)?;
            self.again.pop_front();
            // What has left the chain is told to have left below.
            if let Some(event) = event {
                return Ok(vec![event]);
            }
        }
        if self.known.back().is_some_and(|last| last.hash == best) {
            return self.step_mempool(node, best, now);
        }
        // A block that connects proves that the one below is still in the chain, which saves a
        // question for each block of a long catching up.
        let next = match self.next_block(node)? {
            Next::Block(event) => return Ok(vec![event]),
            next => next,
        };
        let left = self.leave_stale_blocks(node)?;
        match next {
            _ if !left.is_empty() => Ok(left),
            Next::None => self.step_mempool(node, best, now),
            Next::Unconnected | Next::Block(_) => self.start_at_floor(node),
        }
    }

    /// A block that was told before, if it is still in the best chain.
    fn block_again(
        &self,
        node: &impl Node,
        block: BlockId,
    ) -> Result<Option<ChainEvent>, ChainError> {
        if node.block_hash(block.height)? != Some(block.hash) {
            return Ok(None);
        }
        Ok(Some(ChainEvent::Connected {
            height: block.height,
            block: Arc::new(node.block(block.hash, block.height)?),
        }))
    }

    /// Forgets the blocks at the end that are not in the best chain, and says so.
    fn leave_stale_blocks(&mut self, node: &impl Node) -> Result<Vec<ChainEvent>, ChainError> {
        let mut left = Vec::new();
        while let Some(last) = self.known.back().copied() {
            match node.block_hash(last.height) {
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
    fn next_block(&mut self, node: &impl Node) -> Result<Next, ChainError> {
        let above = self
            .known
            .back()
            .map_or(0, |last| last.height.saturating_add(1));
        let height = above.max(self.floor);
        let Some(hash) = node.block_hash(height)? else {
            return Ok(Next::None);
        };
        if height > above && !self.known.is_empty() {
            return Ok(Next::Unconnected);
        }
        let block = node.block(hash, height)?;
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
    fn start_at_floor(&mut self, node: &impl Node) -> Result<Vec<ChainEvent>, ChainError> {
        let is_below = self
            .known
            .back()
            .is_some_and(|last| last.height.saturating_add(1) < self.floor);
        if !is_below {
            // A reorganisation came between two questions; the next step sees it whole.
            return Ok(Vec::new());
        }
        let Some(hash) = node.block_hash(self.floor)? else {
            return Ok(Vec::new());
        };
        let block = node.block(hash, self.floor)?;
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
        node: &impl Node,
        tip: BlockHash,
        now: u64,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        let mut evicted = Vec::new();
        if self.mempool.unfetched.is_empty() {
            if let Some(rest) = self.mempool.rest.checked_sub(1) {
                self.mempool.rest = rest;
                return Ok(Vec::new());
            }
            let Some(listed) = node.mempool()? else {
                return Ok(Vec::new());
            };
            if node.best_block()? != tip {
                // A block came between: what it confirmed is missing from the list, and would be
                // taken for evicted.
                return Ok(Vec::new());
            }
            evicted = self.mempool.compare(&listed);
        }
        let fetched = self.mempool.fetch(node);
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
    fn fetch(&mut self, node: &impl Node) -> Result<Vec<Arc<Transaction>>, ChainError> {
        let mut seen = Vec::new();
        let mut bytes = 0;
        while !self.unfetched.is_empty()
            && seen.len() < TRANSACTIONS_PER_STEP
            && bytes < BYTES_PER_STEP
        {
            let from = self.unfetched.len().saturating_sub(TRANSACTIONS_PER_BATCH);
            let fetched = match node.transactions(&self.unfetched[from..]) {
                Ok(fetched) => fetched,
                Err(_) if !seen.is_empty() => break,
                Err(error) => return Err(error),
            };
            // One that left the mempool between the listing and now was never told, so nothing is
            // owed.
            for transaction in fetched {
                let txid = transaction.compute_txid();
                bytes += serialize(&transaction).len();
                self.believed.remove(&txid);
                self.told.insert(txid);
                seen.push(Arc::new(transaction));
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
