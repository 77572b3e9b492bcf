//! Being told the chain: blocks, reorganisations and the mempool.

use bdk_wallet::chain::{ConfirmationBlockTime, Indexer, Merge, TxUpdate};
use bdk_wallet::{ChangeSet, Update};
use bitcoin::{Block, Txid};
use std::sync::Arc;
use thiserror::Error;

use super::changes::ChangesError;
use super::{Flush, Wallet, load};
use crate::chain::{BlockId, ChainEvent};

/// Blocks without anything of ours are written down in groups of this many; after a crash they are
/// read again.
const BLOCKS_PER_WRITE: u32 = 128;

/// Every so many blocks the wallet forgets block hashes it has no use for, so that reading years of
/// chain does not keep one for each block.
const BLOCKS_PER_THINNING: u32 = 2_016;

/// How many of the last block hashes are always kept: deeper than any reorganisation.
const KEPT_BLOCKS: u32 = 1_000;

/// What an event meant to the wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing of ours changed, except confirmations.
    Unchanged,
    /// Balance or history changed.
    Changed,
}

/// Why an event could not be applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The block does not follow on the last one. Nothing changed; the source has to be
    /// [restarted](crate::chain::ChainSource::restart) from [`Wallet::start`].
    #[error("block {height} does not follow on block {} {}", tip.height, tip.hash)]
    Gap {
        /// The height of the block that was offered.
        height: u32,
        /// The last block the wallet has read.
        tip: BlockId,
    },
    /// What was learned could not be written down. It is kept in memory and written with the next
    /// change; if the process ends before that, it is read from the chain again.
    #[error(transparent)]
    Changes(#[from] ChangesError),
}

impl Wallet {
    /// Tells the wallet one event of the chain. See [`chain`](crate::chain) for the contract;
    /// events the wallet knows already change nothing.
    ///
    /// # Errors
    ///
    /// Returns [`ApplyError`]. After [`ApplyError::Gap`], restart the source from
    /// [`Wallet::start`]; after [`ApplyError::Changes`], the store needs the operator.
    pub fn apply(&mut self, event: &ChainEvent) -> Result<Applied, ApplyError> {
        match event {
            ChainEvent::Connected { height, block } => self.connect(*height, block),
            ChainEvent::Disconnected { height, hash } => {
                let known = self.coins.local_chain().get(*height);
                if *height == 0 || known.is_none_or(|known| known.hash() != *hash) {
                    return Ok(Applied::Unchanged);
                }
                self.rewind(*height)?;
                Ok(Applied::Changed)
            }
            ChainEvent::Mempool { at, seen, evicted } => {
                let seen: Vec<_> = seen
                    .iter()
                    .filter(|tx| self.coins.spk_index().is_tx_relevant(tx))
                    .cloned()
                    .collect();
                self.apply_mempool(*at, seen, evicted)
            }
        }
    }

    fn connect(&mut self, height: u32, block: &Block) -> Result<Applied, ApplyError> {
        let tip = self.tip();
        let parent = block.header.prev_blockhash;
        if height <= tip.height {
            let chain = self.coins.local_chain();
            let below = height.checked_sub(1).and_then(|below| chain.get(below));
            match chain.get(height) {
                Some(known) if known.hash() == block.block_hash() => {
                    return self.search_again(height, block);
                }
                Some(_) if height > 0 && below.is_none_or(|below| below.hash() == parent) => {
                    self.rewind(height)?;
                }
                Some(_) => return Err(ApplyError::Gap { height, tip }),
                // Thinned out, and so deeper than any reorganisation.
                None => return Ok(Applied::Unchanged),
            }
        }
        let tip = self.tip();
        let floor = self.birthday.map_or(1, |block| block.height.max(1));
        let follows = tip.height.checked_add(1) == Some(height) && tip.hash == parent;
        let starts = tip.height < floor && height <= floor && tip.height + 1 < height;
        if !follows && !starts {
            return Err(ApplyError::Gap { height, tip });
        }
        self.coins
            .apply_block_connected_to(block, height, tip)
            .map_err(|_| ApplyError::Gap { height, tip })?;
        self.unwritten_blocks += 1;
        self.unthinned_blocks += 1;
        let changed = self
            .coins
            .staged()
            .is_some_and(|staged| !staged.tx_graph.is_empty());
        if changed {
            let spent: Vec<_> = self
                .reserved
                .keys()
                .filter(|outpoint| {
                    block.txdata.iter().any(|tx| {
                        tx.input
                            .iter()
                            .any(|input| input.previous_output == **outpoint)
                    })
                })
                .copied()
                .collect();
            for outpoint in spent {
                self.reserved.remove(&outpoint);
            }
            self.write(Flush::Now)?;
        } else if self.unwritten_blocks >= BLOCKS_PER_WRITE {
            self.write(Flush::Later)?;
        }
        if self.unthinned_blocks >= BLOCKS_PER_THINNING {
            self.reload(thin_out)?;
            self.unthinned_blocks = 0;
        }
        Ok(if changed {
            Applied::Changed
        } else {
            Applied::Unchanged
        })
    }

    /// Takes what is new to the wallet from a block that it has read: the first time it may have held
    /// less, from a source that did not know all of its scripts then.
    fn search_again(&mut self, height: u32, block: &Block) -> Result<Applied, ApplyError> {
        let anchor = ConfirmationBlockTime {
            block_id: BlockId {
                height,
                hash: block.block_hash(),
            },
            confirmation_time: block.header.time.into(),
        };
        let mut known = 0;
        loop {
            // One that spends another of the same block is relevant only once that is known.
            let mut update = TxUpdate::default();
            for transaction in &block.txdata {
                if self.coins.spk_index().is_tx_relevant(transaction) {
                    let txid = transaction.compute_txid();
                    update.txs.push(Arc::new(transaction.clone()));
                    update.anchors.insert((anchor, txid));
                }
            }
            if update.txs.len() == known {
                break;
            }
            known = update.txs.len();
            self.coins
                .apply_update(Update {
                    tx_update: update,
                    ..Update::default()
                })
                .expect("an update without blocks connects to any chain");
        }
        let is_news = |staged: &ChangeSet| !staged.tx_graph.is_empty();
        if !self.coins.staged().is_some_and(is_news) {
            return Ok(Applied::Unchanged);
        }
        self.write(Flush::Now)?;
        Ok(Applied::Changed)
    }

    /// Drops every block at `height` and above. What they confirmed is pending again.
    fn rewind(&mut self, height: u32) -> Result<(), ChangesError> {
        self.reload(|state| {
            for (_, hash) in state.local_chain.blocks.range_mut(height..) {
                *hash = None;
            }
        })
    }

    /// Changes what is stored and starts over from that. BDK has no way to take blocks off its
    /// chain; the change set is its documented interface for everything it knows.
    fn reload(&mut self, change: impl FnOnce(&mut ChangeSet)) -> Result<(), ChangesError> {
        self.write(Flush::Later)?;
        let mut state = self.changes.merged()?;
        change(&mut state);
        state.local_chain.blocks.retain(|_, hash| hash.is_some());
        self.changes.replace_all(&state)?;
        self.coins = load(state, &self.keys).expect("what was just stored loads again");
        Ok(())
    }

    fn apply_mempool(
        &mut self,
        at: u64,
        seen: Vec<Arc<bitcoin::Transaction>>,
        evicted: &[Txid],
    ) -> Result<Applied, ApplyError> {
        let evicted: Vec<Txid> = evicted
            .iter()
            .filter(|txid| {
                // Ours stay: see the module. Of the others, only those we hold.
                let transaction = self.coins.tx_graph().get_tx(**txid);
                transaction.is_some_and(|transaction| !self.is_ours(&transaction))
            })
            .copied()
            .collect();
        if seen.is_empty() && evicted.is_empty() {
            return Ok(Applied::Unchanged);
        }
        for transaction in &seen {
            self.release(transaction);
        }
        if !evicted.is_empty() {
            let evicted_at = self.tick(at);
            self.coins
                .apply_evicted_txs(evicted.into_iter().map(|txid| (txid, evicted_at)));
        }
        let seen_at = self.tick(at);
        self.coins
            .apply_unconfirmed_txs(seen.into_iter().map(|tx| (tx, seen_at)));
        if self.coins.staged().is_none() {
            return Ok(Applied::Unchanged);
        }
        self.write(Flush::Later)?;
        Ok(Applied::Changed)
    }
}

/// Forgets the hashes of blocks that are deep and confirm nothing of ours.
fn thin_out(state: &mut ChangeSet) {
    let Some((&tip, _)) = state.local_chain.blocks.last_key_value() else {
        return;
    };
    let recent = tip.saturating_sub(KEPT_BLOCKS);
    let anchors: std::collections::BTreeSet<u32> = state
        .tx_graph
        .anchors
        .iter()
        .map(|(anchor, _)| anchor.block_id.height)
        .collect();
    state
        .local_chain
        .blocks
        .retain(|height, _| *height == 0 || *height >= recent || anchors.contains(height));
}
