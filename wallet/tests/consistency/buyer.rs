//! The buyer's node: it performs what the payer's machines ask for, in order, until it crashes.

use std::collections::{BTreeMap, VecDeque};

use bitcoin::Amount;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::{Close, Message};
use bitmesh_wallet::channel::params::PayerPolicy;
use bitmesh_wallet::channel::payer::{self, Payer, Proposal};
use bitmesh_wallet::channel::record::{Fact, Record};
use bitmesh_wallet::channel::voucher::Voucher;

use crate::fixture::{NETWORK, parties, sat};
use crate::journal::{Journal, by_channel};
use crate::keys::{BUYER_CHANGE, buyer_key};
use crate::world::{Crash, Effect, Eyes, News, STOP, Side, Standing, World};

pub(crate) struct Buyer {
    pub(crate) journal: Journal,
    pub(crate) machines: BTreeMap<ProposalId, Payer>,
    pub(crate) eyes: Eyes,
    todo: VecDeque<(ProposalId, payer::Output)>,
    next_key: u32,
    /// What is durable.
    pub(crate) promised: BTreeMap<ProposalId, Amount>,
    /// On which channels half of a signature on a split was given away, for which total.
    splits: BTreeMap<ProposalId, Amount>,
    /// How many channels were proposed: their nonces are random and never repeat.
    nonces: u8,
}

impl Buyer {
    pub(crate) fn new() -> Self {
        Self {
            journal: Journal::new(),
            machines: BTreeMap::new(),
            eyes: Eyes::default(),
            todo: VecDeque::new(),
            next_key: 0,
            promised: BTreeMap::new(),
            splits: BTreeMap::new(),
            nonces: 0,
        }
    }

    pub(crate) fn promised(&self, proposal: ProposalId) -> Amount {
        self.promised
            .get(&proposal)
            .copied()
            .unwrap_or(Amount::ZERO)
    }

    pub(crate) fn note(&mut self, record: &Record) {
        match record.fact {
            Fact::Promised { total, .. } => {
                self.promised.insert(record.proposal, total);
            }
            Fact::Splitting { total, .. } => {
                self.splits.insert(record.proposal, total);
            }
            Fact::Proposed { .. }
            | Fact::Accepted { .. }
            | Fact::Agreed { .. }
            | Fact::Funded { .. }
            | Fact::Held { .. }
            | Fact::Closing { .. }
            | Fact::Refunding { .. }
            | Fact::Settled(_)
            | Fact::Abandoned => {}
        }
    }

    /// Heights of what it has taken for final.
    pub(crate) fn finals(&self) -> impl Iterator<Item = u32> {
        let settled = self.machines.values().filter_map(Payer::settlement);
        settled.map(|settlement| settlement.height.get())
    }

    pub(crate) fn stages(&self) -> impl Iterator<Item = String> {
        let stage = |payer: &Payer| format!("buyer {:?}", payer.stage());
        self.machines.values().map(stage)
    }
}

impl World {
    /// The buyer wants a channel.
    pub(crate) fn propose(&mut self, capacity: u64, life: u32) {
        let Some(tip) = self.buyer.eyes.tip else {
            return;
        };
        let buyer = &mut self.buyer;
        let key_index = buyer.next_key;
        buyer.next_key += 1;
        buyer.nonces += 1;
        self.proposed += 1;
        let expiry = tip + life;
        let proposal = Proposal {
            nonce: [buyer.nonces; 16],
            network: NETWORK,
            parties: parties(),
            capacity: sat(capacity),
            expiry: BlockHeight::new(expiry),
            change_script: BUYER_CHANGE.clone(),
            max_min_first: sat(20_000),
            key_index,
            from: None,
        };
        let policy = PayerPolicy::default();
        let mut payer = Payer::propose(proposal, buyer_key(key_index), policy, self.now);
        let id = payer.proposal();
        let _ = payer.handle(payer::Input::TipChanged(BlockHeight::new(tip)), self.now);
        self.truths.entry(id).or_default().expiry = expiry;
        self.buyer.machines.insert(id, payer);
        self.drain_buyer();
    }

    pub(crate) fn tell_buyer(&mut self, proposal: ProposalId, input: payer::Input) {
        if let Some(payer) = self.buyer.machines.get_mut(&proposal) {
            let told = payer.handle(input, self.now);
            if let Err(error) = told {
                self.counts
                    .add("buyer refuses", std::mem::discriminant(&error));
            }
        }
        self.drain_buyer();
    }

    pub(crate) fn buyer_hears(&mut self, message: Message) {
        let subject = message.subject();
        let of = |(id, payer): (&ProposalId, &Payer)| {
            let channel = payer.channel().map(|channel| *channel.as_bytes());
            (*id.as_bytes() == subject || channel == Some(subject)).then_some(*id)
        };
        if let Some(proposal) = self.buyer.machines.iter().find_map(of) {
            self.tell_buyer(proposal, payer::Input::Received(message));
        }
    }

    pub(crate) fn buyer_reconnects(&mut self) {
        for proposal in self.buyers() {
            self.tell_buyer(proposal, payer::Input::Unreachable);
            self.tell_buyer(proposal, payer::Input::Reconnected);
        }
    }

    pub(crate) fn buyer_timeout(&mut self) {
        for payer in self.buyer.machines.values_mut() {
            payer.handle_timeout(self.now);
        }
        self.drain_buyer();
    }

    pub(crate) fn buyers(&self) -> Vec<ProposalId> {
        self.buyer.machines.keys().copied().collect()
    }

    pub(crate) fn look_buyer(&mut self) {
        if self.buyer.eyes.are_shut {
            return;
        }
        let all = self.buyers();
        for (proposal, news) in self.buyer.eyes.news(&self.chain, &all) {
            let input = match news {
                News::Funding(Standing::Seen) => payer::Input::FundingDepth { confirmations: 0 },
                News::Funding(Standing::Deep(confirmations)) => {
                    payer::Input::FundingDepth { confirmations }
                }
                News::Funding(Standing::Conflicted(confirmations)) => {
                    payer::Input::FundingConflicted { confirmations }
                }
                News::Funding(Standing::Dropped) => payer::Input::FundingDropped,
                News::Spent(tx, height) => payer::Input::Spent {
                    tx: Box::new(tx),
                    height: height.map(BlockHeight::new),
                },
                News::Unspent => payer::Input::Unspent,
                News::Tip(tip) => payer::Input::TipChanged(tip),
            };
            self.tell_buyer(proposal, input);
        }
    }

    /// Performs what there is to do, in order.
    fn drain_buyer(&mut self) {
        loop {
            let buyer = &mut self.buyer;
            for (proposal, payer) in &mut buyer.machines {
                let outputs = std::iter::from_fn(|| payer.poll_output());
                buyer.todo.extend(outputs.map(|output| (*proposal, output)));
            }
            let Some((proposal, output)) = buyer.todo.pop_front() else {
                break;
            };
            if self.perform_buyer(proposal, output).is_err() {
                self.restart_buyer();
                return;
            }
        }
        if self.buyer.eyes.is_new {
            self.look_buyer();
        }
    }

    fn perform_buyer(&mut self, proposal: ProposalId, output: payer::Output) -> Result<(), Crash> {
        match output {
            payer::Output::Persist(record) => {
                self.check_promise(&record);
                self.write(Side::Buyer, record, false)?;
            }
            payer::Output::Send(message) => self.show(Side::Buyer, Effect::Send, |world| {
                world.buyer_said(proposal, &message);
                world.send(Side::Seller, message.to_bytes());
            })?,
            payer::Output::Fund { script, amount } => {
                let (tx, fee) = self.fund(proposal, &script, amount);
                let tx = Box::new(tx);
                let input = payer::Input::FundingSigned { tx, fee };
                let payer = self.buyer.machines.get_mut(&proposal);
                let _ = payer.map(|payer| payer.handle(input, self.now));
            }
            payer::Output::Broadcast(tx) => self.show(Side::Buyer, Effect::Broadcast, |world| {
                world.broadcast(proposal, &tx);
                world.buyer.eyes.is_new = true;
            })?,
            payer::Output::Watch {
                outpoint, funding, ..
            } => {
                let tranche = self.buyer.machines[&proposal].tranche().cloned();
                let truth = self.truths.entry(proposal).or_default();
                assert!(
                    truth.tranche.is_none() || truth.tranche == tranche,
                    "funded twice"
                );
                truth.tranche = tranche;
                truth.funding = Some((*funding).clone());
                self.buyer.eyes.watch(proposal, outpoint, &funding);
            }
            payer::Output::Notify(event) => self.buyer_learns(proposal, event),
        }
        Ok(())
    }

    /// What leaves the buyer was written down, and is valid.
    fn buyer_said(&mut self, proposal: ProposalId, message: &Message) {
        let durable = self.buyer.promised(proposal);
        let truth = self.truths.entry(proposal).or_default();
        match message {
            Message::Voucher(voucher) => {
                assert!(voucher.total <= durable, "said before written down");
                let tranche = truth.tranche.as_ref().expect("a voucher is of a tranche");
                if voucher.total > truth.signed {
                    assert_eq!(tranche.verify(voucher), Ok(()), "an invalid voucher");
                    truth.signed = voucher.total;
                }
                assert!(truth.signed <= tranche.capacity(), "more than there is");
            }
            Message::Funding(funding) => {
                assert_eq!(truth.funding.as_ref(), Some(&funding.tx), "another funding");
            }
            Message::Open(open) => {
                let (key, id) = (open.payer_key, open.proposal());
                self.show_key(key, id);
            }
            Message::Close(close) => {
                if let Some((total, signature)) = close.promised {
                    let Close {
                        channel, tranche, ..
                    } = **close;
                    let voucher = Message::Voucher(Voucher {
                        channel,
                        tranche,
                        total,
                        signature,
                    });
                    self.buyer_said(proposal, &voucher);
                }
            }
            Message::ClosePartial(half) => {
                let split = self.buyer.splits.get(&proposal);
                let total = split.expect("half a signature, and nothing written down");
                truth.halves.insert(*total);
                let known = *self.partials.entry(half.attempt).or_insert(*half);
                assert_eq!(known, *half, "two signatures with one nonce");
            }
            Message::Accept(_)
            | Message::Depth(_)
            | Message::CloseAsk(_)
            | Message::CloseAck(_)
            | Message::CloseDone(_)
            | Message::Renew(_)
            | Message::Refused(_) => {}
        }
    }

    /// Promises rise, are legal, and are made on a funding that can come to be.
    fn check_promise(&self, record: &Record) {
        let Fact::Promised { total, .. } = record.fact else {
            return;
        };
        let id = record.proposal;
        assert!(
            total > self.buyer.promised(id),
            "a promise that does not rise"
        );
        let truth = &self.truths[&id];
        let tranche = truth.tranche.as_ref().expect("a promise is on a tranche");
        assert!(tranche.legal(total).is_ok(), "an illegal total: {total}");
        if total <= truth.signed {
            // It catches up with what it had signed before it forgot.
            return;
        }
        let is_split = self.buyer.splits.contains_key(&id);
        assert!(!is_split, "promised after half of a close was given away");
        let told = self.buyer.eyes.told(id);
        assert!(
            !matches!(told.funding, Some(Standing::Conflicted(_))),
            "promised on a funding that is displaced"
        );
        assert!(told.spend.is_none(), "promised on what is spent");
        let tip = self.buyer.eyes.tip.expect("no promise without a tip");
        assert!(tip + STOP < truth.expiry, "promised too near the expiry");
    }

    fn buyer_learns(&mut self, proposal: ProposalId, event: payer::Event) {
        self.counts
            .add("buyer learns", std::mem::discriminant(&event));
        let input = match event {
            payer::Event::RefundDue => payer::Input::RefundAsked {
                feerate: self.chain.feerate(),
            },
            payer::Event::Paid { total } => {
                assert!(
                    total <= self.buyer.promised(proposal),
                    "paid before written down"
                );
                return;
            }
            payer::Event::CloseWanted => payer::Input::TogetherAsked {
                feerate: self.chain.feerate(),
                seed: self.draw(),
            },
            payer::Event::Negotiated { .. }
            | payer::Event::HalfSigned { .. }
            | payer::Event::CloseFailed { .. }
            | payer::Event::Closing { .. }
            | payer::Event::Funded { .. }
            | payer::Event::LimitChanged { .. }
            | payer::Event::CaughtUp { .. }
            | payer::Event::Refused { .. }
            | payer::Event::FundingDropped
            | payer::Event::FundingConflicted
            | payer::Event::Abandoned
            | payer::Event::PaymentsStopped
            | payer::Event::RolloverDue { .. }
            | payer::Event::Ending { .. }
            | payer::Event::Settled(_) => return,
        };
        let payer = self.buyer.machines.get_mut(&proposal);
        let _ = payer.map(|payer| payer.handle(input, self.now));
    }

    /// Everything not yet performed is lost; what was written down remains.
    pub(crate) fn restart_buyer(&mut self) {
        let records = self.read_back(Side::Buyer);
        let buyer = &mut self.buyer;
        buyer.todo.clear();
        buyer.eyes.forget();
        buyer.machines.clear();
        buyer.splits.clear();
        let durable = std::mem::take(&mut buyer.promised);
        buyer.next_key = 0;
        for (id, records) in by_channel(records) {
            records.iter().for_each(|record| buyer.note(record));
            let index = records[0].key_index().expect("the first record holds it");
            buyer.next_key = buyer.next_key.max(index + 1);
            let policy = PayerPolicy::default();
            let payer = Payer::restore(records, buyer_key(index), policy, self.now);
            let payer = payer.unwrap_or_else(|error| panic!("the buyer does not start: {error}"));
            buyer.machines.insert(id, payer);
        }
        for (id, before) in durable {
            assert!(
                buyer.promised(id) >= before,
                "a durable promise was forgotten"
            );
        }
        self.drain_buyer();
        self.look_buyer();
    }

    /// The buyer comes back from an older copy of its journal, one that knows of all its fundings.
    pub(crate) fn restore_old_buyer(&mut self, choice: u8) {
        let records = self.buyer.journal.disk.read();
        let is_beginning = |record: &Record| {
            matches!(
                record.fact,
                Fact::Proposed { .. } | Fact::Accepted { .. } | Fact::Funded { .. }
            )
        };
        let least = records
            .iter()
            .rposition(is_beginning)
            .map_or(0, |at| at + 1);
        let kept = least + usize::from(choice) % (records.len() - least + 1);
        self.counts.add("stale buyer", kept < records.len());
        self.buyer.promised.clear();
        self.buyer.journal.replace(&records[..kept]);
        self.restart_buyer();
    }

    pub(crate) fn check_buyer(&self) {
        let machines = &self.buyer.machines;
        self.buyer.journal.check(machines.keys().copied());
        for (id, payer) in machines {
            let durable = self.buyer.promised(*id);
            let signed = self.truths[id].signed;
            assert!(payer.promised() <= durable, "known and not written down");
            assert!(durable <= payer.open().capacity);
            assert!(
                payer.acknowledged() <= signed.max(durable),
                "held without a signature"
            );
        }
    }
}
