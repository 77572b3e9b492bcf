//! A chain and its mempool: who spends what, what a block holds, and what a reorganisation undoes.
//!
//! Signatures and scripts are checked by who hands a transaction in; here it is about order, fees
//! and conflicts.

use std::collections::BTreeMap;

use bitcoin::absolute::LockTime;
use bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut, Txid};

/// Why a transaction is not taken. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// What it spends does not exist, or a block has spent it.
    Missing,
    /// Its lock time has not come.
    NotFinal,
    /// It pays less than the mempool asks.
    FeeTooLow,
    /// Something in the mempool spends the same and pays no less.
    Conflict,
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Mempool,
    Block(u32),
}

/// What becomes of the transactions in the blocks that are undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Back into the mempool.
    Return,
    /// Gone, until somebody broadcasts them again.
    Vanish,
}

pub(crate) struct Chain {
    pub(crate) height: u32,
    /// What the mempool asks, in sat/vB.
    pub(crate) floor: u64,
    coins: BTreeMap<OutPoint, TxOut>,
    /// Every transaction that ever was in the mempool.
    known: BTreeMap<Txid, Transaction>,
    places: BTreeMap<Txid, Place>,
    /// In the order they came.
    mempool: Vec<Txid>,
}

impl Chain {
    pub(crate) fn new(height: u32) -> Self {
        Self {
            height,
            floor: 1,
            coins: BTreeMap::new(),
            known: BTreeMap::new(),
            places: BTreeMap::new(),
            mempool: Vec::new(),
        }
    }

    /// What the node estimates: what the mempool asks.
    pub(crate) fn feerate(&self) -> FeeRate {
        FeeRate::from_sat_per_vb(self.floor).expect("a small number")
    }

    /// A confirmed coin of somebody's wallet.
    pub(crate) fn mint(&mut self, outpoint: OutPoint, coin: TxOut) {
        self.coins.insert(outpoint, coin);
    }

    pub(crate) fn place(&self, txid: Txid) -> Option<Place> {
        self.places.get(&txid).copied()
    }

    pub(crate) fn confirmations(&self, txid: Txid) -> u32 {
        match self.place(txid) {
            Some(Place::Block(height)) => self.height + 1 - height,
            Some(Place::Mempool) | None => 0,
        }
    }

    /// What spends `outpoint`, in a block or the mempool.
    pub(crate) fn spender(&self, outpoint: OutPoint) -> Option<(&Transaction, Place)> {
        self.places.iter().find_map(|(txid, place)| {
            let tx = &self.known[txid];
            let spends = tx.input.iter().any(|i| i.previous_output == outpoint);
            spends.then_some((tx, *place))
        })
    }

    /// Everything in a block, with its height.
    pub(crate) fn mined(&self) -> impl Iterator<Item = (&Transaction, u32)> {
        self.places.iter().filter_map(|(txid, place)| match place {
            Place::Block(height) => Some((&self.known[txid], *height)),
            Place::Mempool => None,
        })
    }

    pub(crate) fn prevout(&self, outpoint: OutPoint) -> Option<&TxOut> {
        let made = || {
            let tx = self.known.get(&outpoint.txid)?;
            tx.output.get(outpoint.vout as usize)
        };
        self.coins.get(&outpoint).or_else(made)
    }

    /// What `tx` pays; nothing may be made of nothing.
    pub(crate) fn fee(&self, tx: &Transaction) -> Option<Amount> {
        let spent = tx.input.iter().try_fold(Amount::ZERO, |sum, input| {
            Some(sum + self.prevout(input.previous_output)?.value)
        })?;
        let made = tx.output.iter().map(|output| output.value).sum();
        Some(spent.checked_sub(made).expect("money made of nothing"))
    }

    fn exists(&self, outpoint: OutPoint) -> bool {
        self.coins.contains_key(&outpoint) || self.places.contains_key(&outpoint.txid)
    }

    /// Takes `tx` into the mempool, by the rules of relay that matter to a channel.
    pub(crate) fn accept(&mut self, tx: &Transaction) -> Result<(), Refusal> {
        let txid = tx.compute_txid();
        if self.places.contains_key(&txid) {
            return Ok(());
        }
        if !tx.input.iter().all(|i| self.exists(i.previous_output)) {
            return Err(Refusal::Missing);
        }
        if let LockTime::Blocks(height) = tx.lock_time
            && height.to_consensus_u32() > self.height
        {
            return Err(Refusal::NotFinal);
        }
        let fee = self.fee(tx).expect("what it spends exists");
        if fee < Amount::from_sat(self.floor * tx.vsize() as u64) {
            return Err(Refusal::FeeTooLow);
        }
        let mut replaced = Vec::new();
        for input in &tx.input {
            match self.spender(input.previous_output) {
                Some((_, Place::Block(_))) => return Err(Refusal::Missing),
                Some((other, Place::Mempool)) => replaced.push(other.compute_txid()),
                None => {}
            }
        }
        for other in &replaced {
            let other = &self.known[other];
            let pays = self.fee(other).expect("it was accepted");
            let is_better = fee >= pays + Amount::from_sat(tx.vsize() as u64)
                && fee.to_sat() * other.vsize() as u64 > pays.to_sat() * tx.vsize() as u64;
            if !is_better {
                return Err(Refusal::Conflict);
            }
        }
        replaced.into_iter().for_each(|other| self.evict(other));
        self.enter(tx.clone());
        Ok(())
    }

    fn enter(&mut self, tx: Transaction) {
        let txid = tx.compute_txid();
        self.known.insert(txid, tx);
        self.places.insert(txid, Place::Mempool);
        self.mempool.push(txid);
    }

    /// Puts `tx` into the mempool whatever it pays, in place of what it conflicts with there: a miner
    /// may do so. `false` if a block has spent what it spends.
    pub(crate) fn force(&mut self, tx: &Transaction) -> bool {
        for input in &tx.input {
            match self.spender(input.previous_output) {
                Some((_, Place::Block(_))) => return false,
                Some((other, Place::Mempool)) => self.evict(other.compute_txid()),
                None => {}
            }
        }
        self.enter(tx.clone());
        true
    }

    /// Drops a transaction from the mempool, and what depends on it.
    pub(crate) fn evict(&mut self, txid: Txid) {
        if self.places.get(&txid) != Some(&Place::Mempool) {
            return;
        }
        self.places.remove(&txid);
        self.mempool.retain(|other| *other != txid);
        let spends_it = |other: &&Txid| {
            let tx = &self.known[*other];
            tx.input.iter().any(|i| i.previous_output.txid == txid)
        };
        let children: Vec<Txid> = self.mempool.iter().filter(spends_it).copied().collect();
        children.into_iter().for_each(|child| self.evict(child));
    }

    /// Drops what no longer pays enough.
    pub(crate) fn evict_cheap(&mut self) {
        for txid in self.mempool.clone() {
            let tx = &self.known[&txid];
            let fee = self.fee(tx).expect("it was accepted");
            if fee < Amount::from_sat(self.floor * tx.vsize() as u64) {
                self.evict(txid);
            }
        }
    }

    /// The oldest transaction in the mempool that `is_wanted`.
    pub(crate) fn in_mempool(
        &self,
        is_wanted: impl Fn(&Transaction) -> bool,
    ) -> Option<&Transaction> {
        let mut waiting = self.mempool.iter().map(|txid| &self.known[txid]);
        waiting.find(|tx| is_wanted(tx))
    }

    /// One block; a miner may leave the mempool alone.
    pub(crate) fn mine(&mut self, is_empty: bool) {
        self.height += 1;
        if is_empty {
            return;
        }
        for txid in std::mem::take(&mut self.mempool) {
            self.places.insert(txid, Place::Block(self.height));
        }
    }

    /// Blocks up to `height`; the first takes the mempool.
    pub(crate) fn jump(&mut self, height: u32) {
        if height > self.height {
            self.mine(false);
            self.height = height;
        }
    }

    /// Undoes the last `depth` blocks; the caller mines others on top.
    pub(crate) fn undo(&mut self, depth: u32, fate: Fate) {
        self.height -= depth;
        // What was mined first comes back first, so that parents come before children.
        let mut undone: Vec<(u32, Txid)> = self
            .places
            .iter()
            .filter_map(|(txid, place)| match place {
                Place::Block(height) if *height > self.height => Some((*height, *txid)),
                Place::Block(_) | Place::Mempool => None,
            })
            .collect();
        undone.sort_by_key(|(height, _)| *height);
        for (_, txid) in &undone {
            self.places.remove(txid);
        }
        let waiting = std::mem::take(&mut self.mempool);
        for txid in &waiting {
            self.places.remove(txid);
        }
        let back = undone.iter().map(|(_, txid)| txid);
        let back: Vec<Txid> = match fate {
            Fate::Return => back.chain(&waiting).copied().collect(),
            Fate::Vanish => waiting,
        };
        // Two rounds, since a child of the same block may stand before its parent.
        for txid in back.iter().chain(&back) {
            let tx = self.known[txid].clone();
            let _ = self.accept(&tx);
        }
    }
}
