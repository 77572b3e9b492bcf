//! The seller's node: it performs what the payee's machines ask for, in order, until it crashes. It
//! may let vouchers wait for one another on their way to the disk, and then what follows waits too.

use std::collections::{BTreeMap, VecDeque};

use bitcoin::{Amount, FeeRate, Transaction, Txid};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::closing::Outputs;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ZeroConfBudget;
use bitmesh_wallet::channel::message::{Message, Open, RefusalCode, Refused};
use bitmesh_wallet::channel::params::PayeePolicy;
use bitmesh_wallet::channel::payee::{self, Acceptance, Payee, Sighting};
use bitmesh_wallet::channel::record::{Fact, Record};
use bitmesh_wallet::channel::tx::{self, min_first_payment};
use bitmesh_wallet::channel::voucher::Voucher;

use crate::fixture::{NETWORK, ONE, check_spend, parties};
use crate::journal::{Journal, by_channel};
use crate::keys::{SELLER_PASSES_OVER, SELLER_PAYOUT, seller_key};
use crate::world::{Crash, Effect, Eyes, News, STOP, Side, Standing, World};

pub(crate) struct Seller {
    pub(crate) journal: Journal,
    pub(crate) machines: BTreeMap<ProposalId, Payee>,
    pub(crate) eyes: Eyes,
    /// Whether vouchers wait for one another.
    pub(crate) is_grouping: bool,
    pub(crate) todo: VecDeque<(ProposalId, payee::Output)>,
    budget: ZeroConfBudget,
    next_key: u32,
    /// No key below is used any more, since a backup does not know which were.
    least_key: u32,
    /// How often it came back from a backup.
    pub(crate) restored: u32,
    /// What is durable: the best voucher, and the last close.
    held: BTreeMap<ProposalId, Amount>,
    closes: BTreeMap<ProposalId, Txid>,
    /// The last credit announced since the start.
    credited: BTreeMap<ProposalId, Amount>,
}

impl Seller {
    pub(crate) fn new() -> Self {
        Self {
            journal: Journal::new(),
            machines: BTreeMap::new(),
            eyes: Eyes::default(),
            is_grouping: false,
            todo: VecDeque::new(),
            budget: ZeroConfBudget::default(),
            next_key: 0,
            least_key: 0,
            restored: 0,
            held: BTreeMap::new(),
            closes: BTreeMap::new(),
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
        let mut is_block = false;
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
                News::Spent(tx, height) => {
                    let height = height.map(BlockHeight::new);
                    let (spent, tx) = (self.paid_on().spent_in(&tx), Box::new(tx));
                    match spent {
                        Some(spent) if tx.input.len() > 1 => {
                            payee::Input::SpentInBatch { tx, height, spent }
                        }
                        Some(_) | None => payee::Input::Spent { tx, height },
                    }
                }
                News::Unspent => payee::Input::Unspent,
                News::Tip(tip) => {
                    is_block = true;
                    payee::Input::TipChanged(tip)
                }
            };
            self.tell_seller(proposal, input);
        }
        if is_block {
            self.plan_closes();
        }
    }

    /// The outputs of all channels it is paid on, with what has taken them.
    pub(crate) fn paid_on(&self) -> Outputs {
        let mut outputs = Outputs::new();
        for (id, payee) in &self.seller.machines {
            let is_known = payee.stage() != payee::Stage::Accepted;
            let tranche = self.truths.get(id).and_then(|truth| truth.tranche.as_ref());
            if let Some(tranche) = tranche.filter(|_| is_known) {
                outputs.insert(tranche.outpoint(), tranche.capacity(), payee.taken_by());
            }
        }
        outputs
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
    pub(crate) fn drain_seller(&mut self) {
        loop {
            self.pull_seller();
            let is_synced = self.seller.journal.disk.is_synced();
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
    pub(crate) fn pull_seller(&mut self) {
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
            payee::Output::Persist(record) => {
                let waits = self.seller.is_grouping && matches!(record.fact, Fact::Held { .. });
                self.write(Side::Seller, record, waits)?;
            }
            payee::Output::Send(message) => self.show(Side::Seller, Effect::Send, |world| {
                world.seller_said(proposal, &message);
                world.send(Side::Buyer, message.to_bytes());
            })?,
            payee::Output::Broadcast(tx) => {
                self.show(Side::Seller, Effect::Broadcast, |world| {
                    world.check_close(proposal, &tx);
                    world.broadcast(proposal, &tx);
                    world.seller.eyes.is_new = true;
                })?
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
                let is_known = self.seller.journal.books.channel(proposal).is_some();
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
        for (id, tranche) in self.spends(tx) {
            let settlement = self.settlement(tranche, tx);
            assert_eq!(
                settlement.paid(),
                self.seller.held(id),
                "closed with less than is held"
            );
            if id == proposal {
                let durable = self.seller.closes.get(&id);
                assert_eq!(durable, Some(&settlement.txid), "a close not written down");
            }
        }
    }

    /// The disk is synced, and what waited for it is done.
    pub(crate) fn seller_syncs(&mut self) {
        if self.seller.journal.disk.is_synced() {
            return;
        }
        match self.sync(Side::Seller) {
            Ok(()) => self.drain_seller(),
            Err(Crash) => self.restart_seller(),
        }
    }

    pub(crate) fn note_seller(&mut self, record: &Record) {
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
            Event::SplitDue => payee::Input::SplitChosen {
                payout: SELLER_PAYOUT.clone(),
                feerate: self.chain.feerate(),
                seed: self.draw(),
            },
            Event::CooperationDue { .. } => payee::Input::CooperationAsked,
            // What is due is planned with each block, for all channels together.
            Event::CloseDue { .. }
            | Event::Funded { .. }
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
        let records = self.read_back(Side::Seller);
        let durable = std::mem::take(&mut self.seller.held);
        let vouchers = self.seller.machines.iter();
        let vouchers = vouchers.filter_map(|(id, payee)| Some((*id, payee.voucher()?)));
        let vouchers: BTreeMap<ProposalId, Voucher> = vouchers.collect();
        let seller = &mut self.seller;
        seller.todo.clear();
        seller.machines.clear();
        seller.eyes.forget();
        seller.closes.clear();
        seller.credited.clear();
        seller.budget = ZeroConfBudget::default();
        seller.next_key = seller.least_key;
        for (id, records) in by_channel(records) {
            for record in &records {
                self.note_seller(record);
            }
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

    /// The seller comes back from an older copy of its journal, which may lack whole channels. It may
    /// lose what it was paid since, unless a buyer says it again.
    pub(crate) fn restore_old_seller(&mut self, choice: u8) {
        if self.seller.restored == MAX_RESTORED {
            return;
        }
        self.seller.restored += 1;
        let records = self.seller.journal.disk.read();
        let kept = usize::from(choice) % (records.len() + 1);
        let (old, gone) = records.split_at(kept);
        for (id, truth) in &mut self.truths {
            truth.is_behind |= gone.iter().any(|record| record.proposal == *id);
            truth.is_closed_before |= self.seller.closes.contains_key(id);
        }
        self.counts.add("stale seller", kept < records.len());
        self.seller.least_key = self.seller.next_key + SELLER_PASSES_OVER;
        self.seller.held.clear();
        self.seller.machines.clear();
        self.seller.journal.replace(old);
        self.restart_seller();
        for (id, truth) in &mut self.truths {
            truth.served = truth.served.min(self.seller.held(*id));
        }
        // It is another process, and whoever spoke to the old one speaks to it anew.
        self.network.clear();
        self.buyer_reconnects();
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
        let machines = &self.seller.machines;
        self.seller.journal.check(machines.keys().copied());
        for (id, payee) in machines {
            let signed = self
                .truths
                .get(id)
                .map_or(Amount::ZERO, |truth| truth.signed);
            assert!(payee.held() <= signed, "held more than was signed");
            assert!(payee.credited() <= payee.held());
        }
    }
}

/// How often a run's seller may come back from a backup: its keys are few.
const MAX_RESTORED: u32 = 2;
