//! One chain source that leads, and others that confirm each block before it is told.
//!
//! Depth is what credit is given for, so depth is what is checked: a block near the tip is told only
//! when every source names the same block at its height. If one names another, nothing above is told
//! and [`poll`](ChainSource::poll) says who disagrees, so that no credit grows on blocks that may not
//! stay, and the operator sees it. If they agree again, it goes on by itself. A source that is behind
//! or does not answer holds blocks back too: it confirms nothing.

use std::collections::VecDeque;

use bitcoin::{FeeRate, OutPoint, ScriptBuf, Transaction, Txid};

use super::{
    Accepted, BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, ConfirmedOutput, Sight,
    Start, Tip, Verdict,
};

/// Blocks below the tip that are checked; deeper ones are under these, and no credit waits for more.
const CHECKED: u32 = 144;

/// A [`ChainSource`] whose blocks others confirm.
pub struct Checked {
    lead: Box<dyn ChainSource>,
    others: Vec<Box<dyn ChainSource>>,
    /// Events of the leader that wait until they are confirmed: those of one call.
    waiting: VecDeque<ChainEvent>,
}

impl Checked {
    /// `lead` tells the chain, each of `others` confirms it.
    pub fn new(lead: Box<dyn ChainSource>, others: Vec<Box<dyn ChainSource>>) -> Self {
        Self {
            lead,
            others,
            waiting: VecDeque::new(),
        }
    }

    /// Whether every other source has this block.
    fn confirm(&self, block: BlockId) -> Result<(), ChainError> {
        for other in &self.others {
            match other.block_at(block.height)? {
                Some(theirs) if theirs == block => {}
                // It does not know the chain so far down.
                Some(theirs) if theirs.height > block.height => {}
                Some(theirs) => {
                    return Err(ChainError::Disagreement {
                        height: block.height,
                        one: self.lead.name(),
                        ones: block.hash,
                        other: other.name(),
                        others: theirs.hash,
                    });
                }
                None => {
                    return Err(ChainError::Unavailable {
                        node: other.name(),
                        detail: format!("it has not reached block {} yet", block.height),
                    });
                }
            }
        }
        Ok(())
    }
}

impl ChainSource for Checked {
    fn name(&self) -> String {
        let others: Vec<String> = self.others.iter().map(|other| other.name()).collect();
        format!(
            "{}, confirmed by {}",
            self.lead.name(),
            others.join(" and ")
        )
    }

    fn sight(&self) -> Sight {
        self.lead.sight()
    }

    fn poll(&mut self, now: u64) -> Result<Vec<ChainEvent>, ChainError> {
        if self.waiting.is_empty() {
            self.waiting = self.lead.poll(now)?.into();
        }
        let Some(ChainEvent::Connected { height, block }) = self.waiting.front() else {
            return Ok(self.waiting.drain(..).collect());
        };
        let block = BlockId {
            height: *height,
            hash: block.block_hash(),
        };
        let tip = self.lead.tip()?;
        if tip.headers.saturating_sub(block.height) < CHECKED
            && let Err(error) = self.confirm(block)
        {
            // If the leader itself has given the block up, nobody ever hears of it; that it left is
            // told next, and means nothing to listeners who do not know it.
            if self.lead.block_at(block.height)? != Some(block) {
                self.waiting.clear();
                return Ok(Vec::new());
            }
            return Err(error);
        }
        Ok(self.waiting.drain(..).collect())
    }

    fn restart(&mut self, start: Start) {
        self.waiting.clear();
        self.lead.restart(start);
    }

    fn watch(&mut self, from: u32, scripts: &[ScriptBuf]) {
        self.lead.watch(from, scripts);
    }

    fn look_again(&mut self, txids: &[Txid], spent: &[OutPoint]) -> Result<(), ChainError> {
        self.lead.look_again(txids, spent)
    }

    /// Hands it to the leader, and to the others as well, so that none of them alone can hold it
    /// back. What the leader says counts.
    fn broadcast(&self, transaction: &Transaction) -> Result<Accepted, BroadcastError> {
        let outcome = self.lead.broadcast(transaction);
        for other in &self.others {
            let _ = other.broadcast(transaction);
        }
        outcome
    }

    fn broadcast_package(&self, package: &[Transaction]) -> Result<(), BroadcastError> {
        let outcome = self.lead.broadcast_package(package);
        for other in &self.others {
            let _ = other.broadcast_package(package);
        }
        outcome
    }

    fn test_accept(&self, transaction: &Transaction) -> Result<Verdict, ChainError> {
        self.lead.test_accept(transaction)
    }

    fn feerate(&self, target_blocks: u16) -> Result<FeeRate, ChainError> {
        self.lead.feerate(target_blocks)
    }

    fn tip(&self) -> Result<Tip, ChainError> {
        self.lead.tip()
    }

    fn block_at(&self, height: u32) -> Result<Option<BlockId>, ChainError> {
        self.lead.block_at(height)
    }

    fn confirmed_output(&self, outpoint: &OutPoint) -> Result<Option<ConfirmedOutput>, ChainError> {
        self.lead.confirmed_output(outpoint)
    }
}
