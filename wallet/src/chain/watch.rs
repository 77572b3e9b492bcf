//! Watches funding outputs: pure, by outpoint, safe under reorganisation.
//!
//! The watcher is told the chain by [`Watcher::apply`] and answers with events. For each output it
//! knows where the funding transaction is, whether another transaction took one of its inputs, and
//! what spends the output. It works on whole transactions, so it needs no index and no wallet on
//! the node behind it.
//!
//! It only knows what it was told. After [`Watcher::watch`], have the source
//! [watch](super::ChainSource::watch) the script too, from below the block that may hold the funding
//! already, and [look again](super::ChainSource::look_again) at the mempool for what it told before.
//! Blocks the watcher knows are searched again and change nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bitcoin::{BlockHash, OutPoint, ScriptBuf, Transaction, Txid};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::watched::{Place, Watched};
use super::{BlockId, ChainEvent, Start};

mod watched;

/// Outputs watched at once, at most: one per open channel, and a hundred times more than a busy
/// seller has.
pub const MAX_WATCHES: usize = 16_384;

/// Inputs of a funding transaction, at most: 10,000 vB, the limit of a version 3 transaction, hold
/// no more than this many of the smallest kind.
pub const MAX_FUNDING_INPUTS: usize = 250;

/// [`WatchEvent::Depth`] and [`WatchEvent::Conflicted`] are repeated with each block up to this
/// depth. Nothing that waits for depth waits for more.
pub const REPORTED_CONFIRMATIONS: u32 = 100;

/// Block hashes remembered to recognise a reorganisation; deeper than any.
const REMEMBERED_BLOCKS: usize = 1_000;

/// First byte of a snapshot.
const SNAPSHOT_VERSION: u8 = 1;

/// What happened to a watched output. Each arrives at least once; after
/// [`Watcher::tell_again`] they may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The funding transaction is in the mempool.
    Seen {
        /// The output.
        outpoint: OutPoint,
    },
    /// The funding transaction is in a block, this deep. Told with each block up to
    /// [`REPORTED_CONFIRMATIONS`]; fewer than before after a reorganisation.
    Depth {
        /// The output.
        outpoint: OutPoint,
        /// One for the last block.
        confirmations: u32,
    },
    /// Another transaction spends an input of the funding transaction. Told again with each block
    /// once that is confirmed.
    Conflicted {
        /// The output, which cannot come to be unless the conflict goes away.
        outpoint: OutPoint,
        /// The other transaction.
        by: Txid,
        /// How deep the other transaction is, zero in the mempool.
        confirmations: u32,
    },
    /// The funding transaction is neither in the mempool nor in a block, and nothing conflicts
    /// with it any more that we know of. Broadcast it again.
    Dropped {
        /// The output.
        outpoint: OutPoint,
    },
    /// A transaction spends the output. Told again when it moves into a block, and when another
    /// one takes its place.
    Spent {
        /// The output.
        outpoint: OutPoint,
        /// What spends it.
        transaction: Arc<Transaction>,
        /// The height of its block, `None` in the mempool.
        height: Option<u32>,
    },
    /// What spent the output is neither in the mempool nor in a block any more.
    Unspent {
        /// The output.
        outpoint: OutPoint,
    },
}

/// Why the watcher refused. It is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WatchError {
    /// It watches as much as it can.
    #[error("{MAX_WATCHES} outputs are watched already")]
    Full,
    /// The transaction does not make that output with that script.
    #[error("the funding transaction does not make output {outpoint} with the script given")]
    NotThatFunding {
        /// The output.
        outpoint: OutPoint,
    },
    /// The funding transaction spends more inputs than a version 3 transaction can.
    #[error("{got} inputs, at most {MAX_FUNDING_INPUTS} are watched")]
    TooManyInputs {
        /// How many it spends.
        got: usize,
    },
    /// The block does not follow on the last one; restart the source from [`Watcher::start`].
    #[error("block {height} does not follow on what was told up to height {told}")]
    Gap {
        /// The height of the block that was offered.
        height: u32,
        /// The height of the last block told.
        told: u32,
    },
    /// The bytes are not a snapshot of a watcher.
    #[error("not a snapshot of a watcher: {detail}")]
    Snapshot {
        /// What is wrong.
        detail: String,
    },
}

/// Watches any number of funding outputs, up to [`MAX_WATCHES`].
#[derive(Debug)]
pub struct Watcher {
    watched: BTreeMap<OutPoint, Watched>,
    /// Which watched outputs are made by a transaction that spends this input.
    by_input: BTreeMap<OutPoint, BTreeSet<OutPoint>>,
    /// The last blocks, lowest first, without gaps. Empty after a reorganisation that took all.
    blocks: VecDeque<BlockId>,
    /// The height of the block to be told next.
    next: u32,
    events: VecDeque<WatchEvent>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    watched: Vec<(OutPoint, Watched)>,
    blocks: Vec<BlockId>,
    next: u32,
}

impl Watcher {
    /// A watcher that has been told the chain up to `tip` and knows nothing of it.
    pub fn new(tip: BlockId) -> Self {
        Self {
            watched: BTreeMap::new(),
            by_input: BTreeMap::new(),
            blocks: VecDeque::from([tip]),
            next: tip.height.saturating_add(1),
            events: VecDeque::new(),
        }
    }

    /// The height of the last block told.
    pub fn height(&self) -> u32 {
        self.next.saturating_sub(1)
    }

    /// From where a source has to go on.
    pub fn start(&self) -> Start {
        let unconfirmed = self.watched.iter().flat_map(|(outpoint, watched)| {
            let funding = (watched.funding == Some(Place::Mempool)).then_some(outpoint.txid);
            let conflicts = watched
                .conflicts
                .iter()
                .filter(|(_, place)| **place == Place::Mempool)
                .map(|(txid, _)| *txid);
            let spend = watched
                .spend
                .as_ref()
                .filter(|(_, place)| *place == Place::Mempool)
                .map(|(tx, _)| tx.compute_txid());
            funding.into_iter().chain(conflicts).chain(spend)
        });
        Start {
            locator: self.blocks.iter().rev().copied().collect(),
            floor: self.blocks.front().map_or(self.next, |block| block.height),
            unconfirmed: unconfirmed.collect(),
            scripts: self
                .watched
                .values()
                .map(|watched| watched.script.clone())
                .collect(),
        }
    }

    /// Watches the output `outpoint` of `funding`. Watching it again tells again what is known.
    ///
    /// # Errors
    ///
    /// Returns [`WatchError`] if `funding` does not make that output, or there are too many.
    pub fn watch(
        &mut self,
        outpoint: OutPoint,
        script: ScriptBuf,
        funding: &Transaction,
    ) -> Result<(), WatchError> {
        let makes_it = outpoint.txid == funding.compute_txid()
            && usize::try_from(outpoint.vout)
                .ok()
                .and_then(|vout| funding.output.get(vout))
                .is_some_and(|output| output.script_pubkey == script);
        if !makes_it {
            return Err(WatchError::NotThatFunding { outpoint });
        }
        if self.watched.contains_key(&outpoint) {
            self.tell_again(&outpoint);
            return Ok(());
        }
        if funding.input.len() > MAX_FUNDING_INPUTS {
            return Err(WatchError::TooManyInputs {
                got: funding.input.len(),
            });
        }
        if self.watched.len() >= MAX_WATCHES {
            return Err(WatchError::Full);
        }
        let inputs = funding
            .input
            .iter()
            .map(|input| input.previous_output)
            .collect();
        let watched = Watched {
            script,
            inputs,
            funding: None,
            conflicts: BTreeMap::new(),
            spend: None,
        };
        self.insert(outpoint, watched);
        Ok(())
    }

    /// Stops watching an output: its channel is settled and deep enough.
    pub fn unwatch(&mut self, outpoint: &OutPoint) {
        let Some(watched) = self.watched.remove(outpoint) else {
            return;
        };
        for input in &watched.inputs {
            if let Some(outputs) = self.by_input.get_mut(input) {
                outputs.remove(outpoint);
                if outputs.is_empty() {
                    self.by_input.remove(input);
                }
            }
        }
    }

    /// The outputs watched, with their scripts: for a source that has to be told scripts.
    pub fn watched(&self) -> impl Iterator<Item = (&OutPoint, &ScriptBuf)> {
        self.watched
            .iter()
            .map(|(outpoint, watched)| (outpoint, &watched.script))
    }

    /// Tells again what is known of one output; nothing if nothing is.
    pub fn tell_again(&mut self, outpoint: &OutPoint) {
        let tip = self.height();
        let Some(watched) = self.watched.get(outpoint) else {
            return;
        };
        self.events.extend(watched.standing(*outpoint, tip));
        self.events.extend(watched.spending(*outpoint));
    }

    /// The next event. Take all of them after each call that may have caused some.
    pub fn poll_event(&mut self) -> Option<WatchEvent> {
        self.events.pop_front()
    }

    /// Tells the watcher one event of the chain. See [`chain`](super) for the contract.
    ///
    /// # Errors
    ///
    /// Returns [`WatchError::Gap`] for a block that does not follow; nothing changes then.
    pub fn apply(&mut self, event: &ChainEvent) -> Result<(), WatchError> {
        match event {
            ChainEvent::Connected { height, block } => {
                let this = BlockId {
                    height: *height,
                    hash: block.block_hash(),
                };
                let place = Place::Block(*height);
                if self.is_known(this) {
                    for transaction in &block.txdata {
                        self.see(transaction, place);
                    }
                    return Ok(());
                }
                if !self.follows(*height, block.header.prev_blockhash) {
                    return Err(WatchError::Gap {
                        height: *height,
                        told: self.height(),
                    });
                }
                if *height < self.next {
                    self.rewind(*height);
                }
                self.next = height.saturating_add(1);
                self.blocks.push_back(this);
                while self.blocks.len() > REMEMBERED_BLOCKS {
                    self.blocks.pop_front();
                }
                for transaction in &block.txdata {
                    self.see(transaction, place);
                }
                self.report_depths();
            }
            ChainEvent::Disconnected { height, hash } => {
                if self.is_known(BlockId {
                    height: *height,
                    hash: *hash,
                }) {
                    self.rewind(*height);
                }
            }
            ChainEvent::Mempool { seen, evicted, .. } => {
                for transaction in seen {
                    self.see(transaction, Place::Mempool);
                }
                self.evict(&evicted.iter().copied().collect());
            }
        }
        Ok(())
    }

    /// The whole state as bytes, to [`restore`](Self::restore) from. Events not yet taken are not
    /// in it: take them all first, or use [`tell_again`](Self::tell_again) after restoring.
    pub fn snapshot(&self) -> Vec<u8> {
        let snapshot = Snapshot {
            watched: self
                .watched
                .iter()
                .map(|(outpoint, w)| (*outpoint, w.clone()))
                .collect(),
            blocks: self.blocks.iter().copied().collect(),
            next: self.next,
        };
        let mut bytes = vec![SNAPSHOT_VERSION];
        ciborium::into_writer(&snapshot, &mut bytes).expect("writing to memory does not fail");
        bytes
    }

    /// The watcher that [`snapshot`](Self::snapshot) was taken of.
    ///
    /// # Errors
    ///
    /// Returns [`WatchError::Snapshot`] for other bytes. Then make a new watcher at a block below
    /// the oldest funding and watch everything again.
    pub fn restore(bytes: &[u8]) -> Result<Self, WatchError> {
        let wrong = |detail: String| WatchError::Snapshot { detail };
        let Some((&SNAPSHOT_VERSION, mut body)) = bytes.split_first() else {
            return Err(wrong("an unknown version".into()));
        };
        let snapshot: Snapshot =
            ciborium::from_reader(&mut body).map_err(|error| wrong(error.to_string()))?;
        if !body.is_empty() {
            return Err(wrong("trailing bytes".into()));
        }
        let mut expected = snapshot.next;
        let is_chain = snapshot.blocks.iter().rev().all(|block| {
            let follows = expected.checked_sub(1) == Some(block.height);
            expected = block.height;
            follows
        });
        if !is_chain || snapshot.blocks.len() > REMEMBERED_BLOCKS {
            return Err(wrong("its blocks are not a chain".into()));
        }
        if snapshot.watched.len() > MAX_WATCHES {
            return Err(wrong("too many outputs".into()));
        }
        let mut watcher = Self {
            watched: BTreeMap::new(),
            by_input: BTreeMap::new(),
            blocks: snapshot.blocks.into(),
            next: snapshot.next,
            events: VecDeque::new(),
        };
        for (outpoint, watched) in snapshot.watched {
            watcher.insert(outpoint, watched);
        }
        Ok(watcher)
    }

    fn insert(&mut self, outpoint: OutPoint, watched: Watched) {
        for input in &watched.inputs {
            self.by_input.entry(*input).or_default().insert(outpoint);
        }
        self.watched.insert(outpoint, watched);
    }

    /// Whether the block was told before. What is older than everything remembered is taken to be:
    /// no reorganisation is that deep.
    fn is_known(&self, block: BlockId) -> bool {
        let Some(first) = self.blocks.front() else {
            return false;
        };
        match block.height.checked_sub(first.height) {
            Some(at) => usize::try_from(at)
                .ok()
                .and_then(|at| self.blocks.get(at))
                .is_some_and(|known| *known == block),
            None => true,
        }
    }

    /// Whether a block at `height` goes on top of `parent`: on the last block, or on an earlier one
    /// in place of what was there.
    fn follows(&self, height: u32, parent: BlockHash) -> bool {
        if height > self.next {
            return false;
        }
        let below = self.blocks.front().and_then(|first| {
            let at = height.checked_sub(first.height)?.checked_sub(1)?;
            self.blocks.get(usize::try_from(at).ok()?)
        });
        // With nothing remembered below it, there is nothing to contradict it.
        below.is_none_or(|below| below.hash == parent)
    }

    /// A transaction is at `place`: in the mempool, or in a block of the best chain.
    fn see(&mut self, transaction: &Transaction, place: Place) {
        // A funding transaction spends the inputs that its own watch lists, so this finds all.
        let is_relevant = transaction.input.iter().any(|input| {
            self.watched.contains_key(&input.previous_output)
                || self.by_input.contains_key(&input.previous_output)
        });
        if !is_relevant {
            return;
        }
        let tip = self.height();
        let txid = transaction.compute_txid();
        for input in &transaction.input {
            let spent = input.previous_output;
            if let Some(watched) = self.watched.get_mut(&spent)
                && watched.take_spend(transaction, place)
            {
                self.events.extend(watched.spending(spent));
            }
            let Some(outputs) = self.by_input.get(&spent) else {
                continue;
            };
            for outpoint in outputs {
                let Some(watched) = self.watched.get_mut(outpoint) else {
                    continue;
                };
                let is_news = if outpoint.txid == txid {
                    watched.take_funding(place)
                } else {
                    watched.take_conflict(txid, place)
                };
                if is_news {
                    self.events.extend(watched.standing(*outpoint, tip));
                }
            }
        }
    }

    fn evict(&mut self, txids: &BTreeSet<Txid>) {
        if !txids.is_empty() {
            self.forget(self.height(), |txid, place| {
                place == Place::Mempool && txids.contains(&txid)
            });
        }
    }

    /// Takes the blocks at `height` and above back.
    fn rewind(&mut self, height: u32) {
        while self
            .blocks
            .back()
            .is_some_and(|block| block.height >= height)
        {
            self.blocks.pop_back();
        }
        let told = self.height();
        self.next = self.next.min(height);
        self.forget(
            told,
            |_, place| matches!(place, Place::Block(at) if at >= height),
        );
    }

    /// Forgets every transaction that `is_gone`, and tells what that changes since `told` was the
    /// height.
    fn forget(&mut self, told: u32, is_gone: impl Fn(Txid, Place) -> bool) {
        let tip = self.height();
        for (outpoint, watched) in &mut self.watched {
            let stood = watched.standing(*outpoint, told);
            watched.funding = watched
                .funding
                .filter(|place| !is_gone(outpoint.txid, *place));
            watched
                .conflicts
                .retain(|txid, place| !is_gone(*txid, *place));
            match watched.standing(*outpoint, tip) {
                None if stood.is_some() => self.events.push_back(WatchEvent::Dropped {
                    outpoint: *outpoint,
                }),
                stands if stands != stood && watched.is_shallow(tip) => self.events.extend(stands),
                _ => {}
            }
            let is_unspent = watched
                .spend
                .as_ref()
                .is_some_and(|(spend, place)| is_gone(spend.compute_txid(), *place));
            if is_unspent {
                watched.spend = None;
                self.events.push_back(WatchEvent::Unspent {
                    outpoint: *outpoint,
                });
            }
        }
    }

    /// Tells the new depth of everything that is in a block below the tip.
    fn report_depths(&mut self) {
        let tip = self.height();
        for (outpoint, watched) in &self.watched {
            // What is in the tip itself was told when it was seen there.
            if watched.height().is_some_and(|height| height < tip) && watched.is_shallow(tip) {
                self.events.extend(watched.standing(*outpoint, tip));
            }
        }
    }
}

#[cfg(test)]
mod tests;
