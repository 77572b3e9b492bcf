//! The seller's node: it performs what the payee's machines ask for, in order, until it crashes. It
//! may let vouchers wait for one another on their way to the disk, and then what follows waits too.

use std::collections::{BTreeMap, VecDeque};

use bitcoin::{Amount, FeeRate, Transaction, Txid};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ZeroConfBudget;
use bitmesh_wallet::channel::message::{Message, Open, RefusalCode, Refused};
use bitmesh_wallet::channel::params::PayeePolicy;
use bitmesh_wallet::channel::payee::{self, Acceptance, Payee, Sighting, Stage};
use bitmesh_wallet::channel::record::{Fact, Record, compact};
use bitmesh_wallet::channel::tx::{self, min_first_payment};
use bitmesh_wallet::channel::voucher::Voucher;
use bitmesh_wallet::ledger::Ledger;

use crate::buyer::ACCOUNTS;
use crate::disk::Disk;
use crate::fixture::{NETWORK, ONE, check_spend, parties};
use crate::keys::{SELLER_PAYOUT, seller_key};
use crate::world::{Crash, Effect, Eyes, Mode, News, STOP, Side, Standing, World};

pub(crate) struct Seller {
    pub(crate) disk: Disk,
    pub(crate) books: Ledger,
    pub(crate) machines: BTreeMap<ProposalId, Payee>,
    pub(crate) eyes: Eyes,
    /// Whether vouchers wait for one another.
    pub(crate) is_grouping: bool,
    todo: VecDeque<(ProposalId, payee::Output)>,
    /// Written, and not durable.
    unsynced: Vec<Record>,
    budget: ZeroConfBudget,
    next_key: u32,
    /// What is durable: the best voucher, and the last close.
    held: BTreeMap<ProposalId, Amount>,
    closes: BTreeMap<ProposalId, Txid>,
    /// What was bid for a close, in sat/vB.
    bids: BTreeMap<ProposalId, u64>,
    /// The last credit announced since the start.
    credited: BTreeMap<ProposalId, Amount>,
}

impl Seller {
    pub(crate) fn new() -> Self {
        Self {
            disk: Disk::new(),
            books: Ledger::new(),
            machines: BTreeMap::new(),
            eyes: Eyes::default(),
            is_grouping: false,
            todo: VecDeque::new(),
            unsynced: Vec::new(),
            budget: ZeroConfBudget::default(),
            next_key: 0,
            held: BTreeMap::new(),
            closes: BTreeMap::new(),
            bids: BTreeMap::new(),
            credited: BTreeMap::new(),
        }
    }

    pub(crate) fn held(&self, proposal: ProposalId) -> Amount {
        self.held.get(&proposal).copied().unwrap_or(Amount::ZERO)
    }

    /// Heights of what it has taken for final.
    pub(crate) fn finals(&self) -> impl Iterator<Item = u32> {
        let settled = self.machines.values().filter_map(Payee::settlement);
        settled.map(|settlement| settlement.height.get())
    }

    pub(crate) fn stages(&self) -> impl Iterator<Item = String> {
        let stage = |payee: &Payee| format!("seller {:?}", payee.stage());
        self.machines.values().map(stage)
    }
}

impl World {
    pub(crate) fn tell_seller(&mut self, proposal: ProposalId, input: payee::Input) {
        if let Some(payee) = self.seller.machines.get_mut(&proposal)
            && let Err(error) = payee.handle(input, self.now)
        {
            self.counts
                .add("seller refuses", std::mem::discriminant(&error));
        }
        self.drain_seller();
    }

    pub(crate) fn seller_hears(&mut self, message: Message) {
        let subject = message.subject();
        let of = |(id, payee): (&ProposalId, &Payee)| {
            let is_it = *id.as_bytes() == subject || *payee.channel().as_bytes() == subject;
            is_it.then_some(*id)
        };
        let known = self.seller.machines.iter().find_map(of);
        let code = match (known, message) {
            (Some(proposal), message) => {
                let payee = self.seller.machines.get_mut(&proposal);
                let payee = payee.expect("it was just found");
                let heard = payee.handle(payee::Input::Received(message), self.now);
                heard.err().and_then(|error| error.refusal())
            }
            (None, Message::Open(open)) => self.accept(open),
            (None, Message::Refused(_)) => None,
            (None, _) => Some(RefusalCode::Unknown),
        };
        self.drain_seller();
        if let Some(code) = code {
            let refused = Message::Refused(Refused { subject, code });
            self.send(Side::Buyer, refused.to_bytes());
        }
    }

    fn accept(&mut self, open: Open) -> Option<RefusalCode> {
        let Some(tip) = self.seller.eyes.tip else {
            return Some(RefusalCode::Busy);
        };
        let key_index = self.seller.next_key;
        let acceptance = Acceptance {
            network: NETWORK,
            parties: parties(),
            min_first: min_first_payment(self.chain.feerate()).expect("it fits"),
            tip: BlockHeight::new(tip),
            key_index,
            from: None,
        };
        let (policy, key) = (PayeePolicy::default(), seller_key(key_index));
        match Payee::accept(open, &acceptance, key, policy) {
            Ok(payee) => {
                self.seller.next_key += 1;
                self.seller.machines.insert(payee.proposal(), payee);
                None
            }
            Err(error) => Some(error.refusal()),
        }
    }

    pub(crate) fn seller_reconnects(&mut self) {
        for proposal in self.sellers() {
            self.tell_seller(proposal, payee::Input::Unreachable);
            self.tell_seller(proposal, payee::Input::Reconnected);
        }
    }

    pub(crate) fn seller_timeout(&mut self) {
        for payee in self.seller.machines.values_mut() {
            payee.handle_timeout(self.now);
        }
        self.drain_seller();
    }

    pub(crate) fn sellers(&self) -> Vec<ProposalId> {
        self.seller.machines.keys().copied().collect()
    }

    pub(crate) fn close(&mut self, proposal: ProposalId, feerate: FeeRate) {
        let payout = SELLER_PAYOUT.clone();
        self.tell_seller(proposal, payee::Input::CloseAsked { payout, feerate });
    }

    pub(crate) fn look_seller(&mut self) {
        if self.seller.eyes.are_shut {
            return;
        }
        let all = self.sellers();
        for (proposal, news) in self.seller.eyes.news(&self.chain, &all) {
            let input = match news {
                News::Funding(Standing::Seen) => payee::Input::FundingSeen(self.sight(proposal)),
                News::Funding(Standing::Deep(confirmations)) => {
                    payee::Input::FundingConfirmed { confirmations }
                }
                News::Funding(Standing::Conflicted(confirmations)) => {
                    payee::Input::FundingConflicted { confirmations }
                }
                News::Funding(Standing::Dropped) => payee::Input::FundingDropped,
                News::Spent(tx, height) => payee::Input::Spent {
                    tx: Box::new(tx),
                    height: height.map(BlockHeight::new),
                },
                News::Unspent => payee::Input::Unspent,
                News::Tip(tip) => payee::Input::TipChanged(tip),
            };
            self.tell_seller(proposal, input);
        }
        self.bid_again();
    }

    /// A close that the mempool does not take at its fee is made again at a higher one.
    fn bid_again(&mut self) {
        for proposal in self.sellers() {
            let bid = self.seller.bids.get(&proposal).copied();
            let is_out = self.seller.eyes.told(proposal).spend.is_none();
            let is_closing = self.seller.machines[&proposal].stage() == Stage::Closing;
            if is_closing && is_out && bid.is_none_or(|bid| bid < self.chain.floor) {
                self.seller.bids.insert(proposal, self.chain.floor);
                self.close(proposal, self.chain.feerate());
            }
        }
    }

    fn sight(&self, proposal: ProposalId) -> Sighting {
        let funding = self.truths[&proposal].funding.as_ref();
        let rate = funding.and_then(|tx| {
            let fee = self.chain.fee(tx)?.to_sat();
            FeeRate::from_sat_per_vb(fee / tx.vsize() as u64)
        });
        Sighting {
            has_confirmed_inputs: true,
            feerate: rate.unwrap_or(FeeRate::ZERO),
            wanted_feerate: self.chain.feerate(),
        }
    }

    /// Performs what there is to do, in order, up to what has to wait for the disk.
    fn drain_seller(&mut self) {
        loop {
            self.pull_seller();
            let is_synced = self.seller.disk.is_synced();
            match self.seller.todo.front() {
                None => break,
                Some((_, payee::Output::Persist(_))) => {}
                Some(_) if is_synced => {}
                Some(_) => break,
            }
            let (proposal, output) = self.seller.todo.pop_front().expect("it was just seen");
            if self.perform_seller(proposal, output).is_err() {
                self.restart_seller();
                return;
            }
        }
        if self.seller.eyes.is_new {
            self.look_seller();
        }
    }

    /// Takes what the machines want done, and holds it against what they know at this moment.
    fn pull_seller(&mut self) {
        let seller = &mut self.seller;
        for (proposal, payee) in &mut seller.machines {
            while let Some(output) = payee.poll_output() {
                if let payee::Output::Notify(payee::Event::Credited { total }) = output {
                    let exposure = &payee.contract().accept().exposure;
                    let limit = match seller.eyes.told(*proposal).funding {
                        Some(Standing::Seen) => exposure.limit(0),
                        Some(Standing::Deep(confirmations)) => exposure.limit(confirmations),
                        Some(Standing::Conflicted(_) | Standing::Dropped) | None => Amount::ZERO,
                    };
                    assert!(
                        total <= limit,
                        "credited {total} where {limit} may be at risk"
                    );
                }
                seller.todo.push_back((*proposal, output));
            }
        }
    }

    fn perform_seller(&mut self, proposal: ProposalId, output: payee::Output) -> Result<(), Crash> {
        match output {
            payee::Output::Persist(record) => self.write_seller(record)?,
            payee::Output::Send(message) => {
                let mode = self.effect(Side::Seller, Effect::Send);
                if mode == Some(Mode::Before) {
                    return Err(Crash);
                }
                self.seller_said(proposal, &message);
                self.send(Side::Buyer, message.to_bytes());
                if mode.is_some() {
                    return Err(Crash);
                }
            }
            payee::Output::Broadcast(tx) => {
                let mode = self.effect(Side::Seller, Effect::Broadcast);
                if mode == Some(Mode::Before) {
                    return Err(Crash);
                }
                self.check_close(proposal, &tx);
                self.broadcast(proposal, &tx);
                self.seller.eyes.is_new = true;
                if mode.is_some() {
                    return Err(Crash);
                }
            }
            payee::Output::Watch {
                outpoint, funding, ..
            } => self.seller.eyes.watch(proposal, outpoint, &funding),
            payee::Output::Notify(event) => self.seller_learns(proposal, event),
        }
        Ok(())
    }

    /// What leaves the seller was written down.
    fn seller_said(&mut self, proposal: ProposalId, message: &Message) {
        let durable = self.seller.held(proposal);
        match message {
            Message::Accept(accept) => {
                let key = accept.payee_key;
                self.show_key(key, proposal);
                let is_known = self.seller.books.channel(proposal).is_some();
                assert!(is_known, "accepted before written down");
            }
            Message::Depth(depth) => {
                let said = depth.held.map_or(Amount::ZERO, |(total, _)| total);
                assert!(said <= durable, "said to hold what is not written down");
            }
            Message::CloseDone(_) => {
                let is_known = self.seller.closes.contains_key(&proposal);
                assert!(is_known, "said to close what is not written down");
            }
            Message::Open(_)
            | Message::Renew(_)
            | Message::Funding(_)
            | Message::Voucher(_)
            | Message::Close(_)
            | Message::CloseAsk(_)
            | Message::CloseAck(_)
            | Message::ClosePartial(_)
            | Message::Refused(_) => {}
        }
    }

    /// A close pays out everything that is held, and was written down.
    fn check_close(&self, proposal: ProposalId, tx: &Transaction) {
        let truth = &self.truths[&proposal];
        let Some(settlement) = truth.tranche.as_ref().and_then(|t| t.settlement(tx, None)) else {
            return;
        };
        let durable = self.seller.closes.get(&proposal);
        assert_eq!(durable, Some(&settlement.txid), "a close not written down");
        let held = self.seller.held(proposal);
        assert_eq!(settlement.paid(), held, "closed with less than is held");
    }

    fn write_seller(&mut self, record: Record) -> Result<(), Crash> {
        let waits = self.seller.is_grouping && matches!(record.fact, Fact::Held { .. });
        let mode = self.effect(Side::Seller, Effect::Write);
        if mode == Some(Mode::Before) {
            return Err(Crash);
        }
        self.seller.disk.write(&record);
        self.seller.unsynced.push(record);
        match mode {
            Some(Mode::Torn) => {
                let where_ = self.effects.wrapping_mul(0x9e37_79b9);
                self.seller.disk.tear(where_);
                return Err(Crash);
            }
            Some(Mode::Unsynced) => {
                self.seller.disk.lose();
                return Err(Crash);
            }
            None if waits => {}
            Some(Mode::Before | Mode::After) | None => self.seller_remembers(),
        }
        match mode {
            Some(_) => Err(Crash),
            None => Ok(()),
        }
    }

    /// The disk is synced, and what waited for it is done.
    pub(crate) fn seller_syncs(&mut self) {
        if self.seller.disk.is_synced() {
            return;
        }
        match self.effect(Side::Seller, Effect::Write) {
            None => {
                self.seller_remembers();
                return self.drain_seller();
            }
            Some(Mode::After) => self.seller_remembers(),
            Some(Mode::Torn) => {
                let where_ = self.effects.wrapping_mul(0x9e37_79b9);
                self.seller.disk.tear(where_);
            }
            Some(Mode::Before | Mode::Unsynced) => self.seller.disk.lose(),
        }
        self.restart_seller();
    }

    fn seller_remembers(&mut self) {
        self.seller.disk.sync();
        for record in std::mem::take(&mut self.seller.unsynced) {
            let posted = self.seller.books.post(&record);
            assert!(posted.is_ok(), "the seller's books: {posted:?}");
            self.note_seller(&record);
        }
    }

    fn note_seller(&mut self, record: &Record) {
        let id = record.proposal;
        match &record.fact {
            Fact::Held { total, .. } => {
                let signed = self.truths[&id].signed;
                assert!(*total <= signed, "held more than was signed");
                let before = self.seller.held.insert(id, *total);
                assert!(before < Some(*total), "a better voucher was replaced");
            }
            Fact::Closing { tx } => {
                self.seller.closes.insert(id, tx.compute_txid());
            }
            Fact::Proposed { .. }
            | Fact::Accepted { .. }
            | Fact::Agreed { .. }
            | Fact::Funded { .. }
            | Fact::Promised { .. }
            | Fact::Splitting { .. }
            | Fact::Refunding { .. }
            | Fact::Settled(_)
            | Fact::Abandoned => {}
        }
    }

    fn seller_learns(&mut self, proposal: ProposalId, event: payee::Event) {
        use payee::Event;
        self.counts
            .add("seller learns", std::mem::discriminant(&event));
        let input = match event {
            Event::Credited { total } => return self.credited(proposal, total),
            Event::ZeroConfDue { want } => payee::Input::ZeroConfGranted {
                limit: self.seller.budget.grant(proposal, want),
            },
            Event::ZeroConfReleased => return self.seller.budget.release(proposal),
            Event::ZeroConfLost => {
                let tip = BlockHeight::new(self.chain.height);
                return self.seller.budget.lost(proposal, tip);
            }
            Event::CloseDue { .. } => {
                self.seller.bids.insert(proposal, self.chain.floor);
                payee::Input::CloseAsked {
                    payout: SELLER_PAYOUT.clone(),
                    feerate: self.chain.feerate(),
                }
            }
            Event::SplitDue => payee::Input::SplitChosen {
                payout: SELLER_PAYOUT.clone(),
                feerate: self.chain.feerate(),
                seed: self.draw(),
            },
            Event::CooperationDue { .. } => payee::Input::CooperationAsked,
            Event::Funded { .. }
            | Event::CloseFailed { .. }
            | Event::RolloverDue { .. }
            | Event::RolloverWanted { .. }
            | Event::LimitChanged { .. }
            | Event::FundingDropped
            | Event::FundingConflicted
            | Event::FundingFound
            | Event::ServiceStopped
            | Event::Closing { .. }
            | Event::Ending { .. }
            | Event::Settled(_)
            | Event::Abandoned => return,
        };
        let payee = self.seller.machines.get_mut(&proposal);
        let _ = payee.map(|payee| payee.handle(input, self.now));
    }

    /// The node serves for what is credited, so that must be durable, and more than before.
    fn credited(&mut self, proposal: ProposalId, total: Amount) {
        let durable = self.seller.held(proposal);
        assert!(total <= durable, "credited before written down");
        let last = self.seller.credited.insert(proposal, total);
        assert!(last < Some(total), "credit only grows");
        let tip = self.seller.eyes.tip.unwrap_or(0);
        let truth = self.truths.entry(proposal).or_default();
        if tip + STOP < truth.expiry {
            truth.served = truth.served.max(total);
        }
    }

    /// Everything not yet performed is lost; what was written down remains.
    pub(crate) fn restart_seller(&mut self) {
        self.counts.add("restart", Side::Seller);
        let mut records = self.seller.disk.read();
        let books = Ledger::from_records(&records).expect("the seller's books, read back");
        let small = compact(records.clone());
        let small_books = Ledger::from_records(&small).expect("the seller's books, compacted");
        assert_eq!(
            small_books.totals(),
            books.totals(),
            "compaction moves money"
        );
        if self.effects.is_multiple_of(3) {
            self.seller.disk.replace(&small);
            records = small;
        }
        let durable = std::mem::take(&mut self.seller.held);
        let vouchers = self.seller.machines.iter();
        let vouchers = vouchers.filter_map(|(id, payee)| Some((*id, payee.voucher()?)));
        let vouchers: BTreeMap<ProposalId, Voucher> = vouchers.collect();
        let seller = &mut self.seller;
        seller.todo.clear();
        seller.unsynced.clear();
        seller.machines.clear();
        seller.eyes.forget();
        seller.closes.clear();
        seller.bids.clear();
        seller.credited.clear();
        seller.budget = ZeroConfBudget::default();
        seller.books = books;
        seller.next_key = 0;
        let mut order = Vec::new();
        let mut channels: BTreeMap<ProposalId, Vec<Record>> = BTreeMap::new();
        for record in records {
            self.note_seller(&record);
            let channel = channels.entry(record.proposal).or_default();
            if channel.is_empty() {
                order.push(record.proposal);
            }
            channel.push(record);
        }
        for id in order {
            let records = channels.remove(&id).expect("it was put there");
            let index = records[0].key_index().expect("the first record holds it");
            self.seller.next_key = self.seller.next_key.max(index + 1);
            let payee = Payee::restore(records, seller_key(index), PayeePolicy::default());
            let payee = payee.unwrap_or_else(|error| panic!("the seller does not start: {error}"));
            self.seller.machines.insert(id, payee);
        }
        for (id, before) in durable {
            assert!(self.seller.held(id) >= before, "a durable voucher was lost");
        }
        for (id, payee) in &self.seller.machines {
            let (before, after) = (vouchers.get(id), payee.voucher());
            if before.map(|voucher| voucher.total) == after.map(|voucher| voucher.total) {
                assert_eq!(
                    before,
                    after.as_ref(),
                    "it would close otherwise than before"
                );
            }
        }
        self.check_best_vouchers();
        self.drain_seller();
        self.look_seller();
    }

    /// What is held on disk makes a valid close, whatever happens next.
    fn check_best_vouchers(&self) {
        for (id, payee) in &self.seller.machines {
            let Some(voucher) = payee.voucher() else {
                continue;
            };
            assert_eq!(
                voucher.total,
                self.seller.held(*id),
                "another voucher is held"
            );
            let tranche = payee.tranche().expect("a voucher is of a tranche");
            let index = self.seller_index(*id);
            let close = tx::commitment(tranche, &voucher, &seller_key(index), &SELLER_PAYOUT, ONE);
            let close = close.expect("the first payment is worth closing");
            assert_eq!(check_spend(tranche, &close, self.chain.height + 1), Ok(()));
        }
    }

    fn seller_index(&self, id: ProposalId) -> u32 {
        let key = self.seller.machines[&id].contract().accept().payee_key;
        let is_it = |index: &u32| seller_key(*index).x_only_public_key().0 == key;
        (0..self.seller.next_key).find(is_it).expect("it was used")
    }

    pub(crate) fn check_seller(&self) {
        let totals = self.seller.books.totals();
        assert!(totals.adds_up(), "the seller's books: {totals:?}");
        for (id, payee) in &self.seller.machines {
            let signed = self
                .truths
                .get(id)
                .map_or(Amount::ZERO, |truth| truth.signed);
            assert!(payee.held() <= signed, "held more than was signed");
            assert!(payee.credited() <= payee.held());
            let statement = self.seller.books.channel(*id);
            let Some(statement) = statement else { continue };
            let sum: i64 = ACCOUNTS
                .iter()
                .map(|a| statement.balance(*a).to_sat())
                .sum();
            assert_eq!(sum, 0, "money appeared or vanished");
        }
    }
}
