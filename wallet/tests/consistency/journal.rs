//! What both nodes do alike: they write down before they act, and a crash may meet them at each step.

use std::collections::BTreeMap;

use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::record::{Record, compact};
use bitmesh_wallet::ledger::{Account, Ledger};

use crate::disk::Disk;
use crate::world::{Crash, Effect, Mode, Side, World};

const ACCOUNTS: [Account; 7] = [
    Account::Coins,
    Account::Locked,
    Account::Counterparty,
    Account::Unclaimed,
    Account::Claims,
    Account::Fees,
    Account::Lost,
];

/// What a node has written down, and its books.
pub(crate) struct Journal {
    pub(crate) disk: Disk,
    /// Of what is durable.
    pub(crate) books: Ledger,
    /// Written, and not durable.
    unsynced: Vec<Record>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            disk: Disk::new(),
            books: Ledger::new(),
            unsynced: Vec::new(),
        }
    }

    /// What a start finds, with the books of it. Compaction, which a start may do, moves no money.
    fn read(&mut self, compacts: bool) -> Vec<Record> {
        let records = self.disk.read();
        let small = compact(records.clone());
        let small_books = Ledger::from_records(&small).expect("the books, compacted");
        self.unsynced.clear();
        self.books = Ledger::from_records(&records).expect("the books, read back");
        assert_eq!(
            small_books.totals(),
            self.books.totals(),
            "compaction moves money"
        );
        if !compacts {
            return records;
        }
        self.disk.replace(&small);
        small
    }

    /// Puts an older copy in the place of it.
    pub(crate) fn replace(&mut self, old: &[Record]) {
        self.disk.replace(old);
    }

    /// What is debited somewhere is credited elsewhere.
    pub(crate) fn check(&self, proposals: impl Iterator<Item = ProposalId>) {
        let totals = self.books.totals();
        assert!(totals.adds_up(), "the books: {totals:?}");
        for statement in proposals.filter_map(|id| self.books.channel(id)) {
            let balances = ACCOUNTS.iter().map(|account| statement.balance(*account));
            let sum: i64 = balances.map(|balance| balance.to_sat()).sum();
            assert_eq!(sum, 0, "money appeared or vanished");
        }
    }
}

/// The records of each channel, in the order in which the channels began.
pub(crate) fn by_channel(records: Vec<Record>) -> Vec<(ProposalId, Vec<Record>)> {
    let mut places = BTreeMap::new();
    let mut channels: Vec<(ProposalId, Vec<Record>)> = Vec::new();
    for record in records {
        let id = record.proposal;
        let place = *places.entry(id).or_insert_with(|| {
            channels.push((id, Vec::new()));
            channels.len() - 1
        });
        channels[place].1.push(record);
    }
    channels
}

impl World {
    fn journal(&mut self, side: Side) -> &mut Journal {
        match side {
            Side::Buyer => &mut self.buyer.journal,
            Side::Seller => &mut self.seller.journal,
        }
    }

    /// Does what the world sees of `side`, unless a crash comes before it.
    ///
    /// # Errors
    ///
    /// Returns [`Crash`] if there is one, before or after: what follows does not happen.
    pub(crate) fn show(
        &mut self,
        side: Side,
        effect: Effect,
        act: impl FnOnce(&mut Self),
    ) -> Result<(), Crash> {
        let mode = self.effect(side, effect);
        if mode != Some(Mode::Before) {
            act(self);
        }
        match mode {
            None => Ok(()),
            Some(_) => Err(Crash),
        }
    }

    /// Writes `record` down and makes it durable, unless it `waits` for others.
    ///
    /// # Errors
    ///
    /// Returns [`Crash`] if there is one: what follows does not happen.
    pub(crate) fn write(&mut self, side: Side, record: Record, waits: bool) -> Result<(), Crash> {
        let mode = self.effect(side, Effect::Write);
        if mode == Some(Mode::Before) {
            return Err(Crash);
        }
        let journal = self.journal(side);
        journal.disk.write(&record);
        journal.unsynced.push(record);
        match mode {
            None if waits => Ok(()),
            mode => self.finish(side, mode),
        }
    }

    /// Makes durable what waits, if anything does.
    ///
    /// # Errors
    ///
    /// Returns [`Crash`] if there is one: what follows does not happen.
    pub(crate) fn sync(&mut self, side: Side) -> Result<(), Crash> {
        if self.journal(side).disk.is_synced() {
            return Ok(());
        }
        let mode = self.effect(side, Effect::Write);
        self.finish(side, mode)
    }

    /// What was written reaches the disk as `mode` lets it.
    fn finish(&mut self, side: Side, mode: Option<Mode>) -> Result<(), Crash> {
        let where_ = self.effects.wrapping_mul(0x9e37_79b9);
        let journal = self.journal(side);
        match mode {
            Some(Mode::Torn) => journal.disk.tear(where_),
            Some(Mode::Before | Mode::Unsynced) => journal.disk.lose(),
            Some(Mode::After) | None => {
                journal.disk.sync();
                for record in std::mem::take(&mut journal.unsynced) {
                    self.remember(side, &record);
                }
            }
        }
        match mode {
            None => Ok(()),
            Some(_) => Err(Crash),
        }
    }

    fn remember(&mut self, side: Side, record: &Record) {
        let posted = self.journal(side).books.post(record);
        assert!(
            posted.is_ok(),
            "the books of the {side:?}: {posted:?}, {record:?}"
        );
        self.note(side, record);
    }

    /// Keeps what is held against what is said and done.
    fn note(&mut self, side: Side, record: &Record) {
        match side {
            Side::Buyer => self.buyer.note(record),
            Side::Seller => self.note_seller(record),
        }
    }

    /// What `side` finds when it starts.
    pub(crate) fn read_back(&mut self, side: Side) -> Vec<Record> {
        self.counts.add("restart", side);
        let compacts = self.effects.is_multiple_of(3);
        self.journal(side).read(compacts)
    }
}
