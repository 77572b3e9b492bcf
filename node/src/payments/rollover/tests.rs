//! A buyer's and a seller's payments against each other in virtual time, on journals of real records and
//! a chain of two transactions; every write, sending and broadcast of a rollover is met by a crash.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Keypair, Secp256k1, SecretKey};
use bitcoin::{
    Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, Witness,
};
use bitmesh_market::identity::{Ed25519Signer, NodeId, Signer as _};
use bitmesh_market::lease::LeaseId;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::{Message, Renew};
use bitmesh_wallet::channel::params::{self, CLOSE_PATIENCE, PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::payee::Sighting;
use bitmesh_wallet::channel::record::Record;
use bitmesh_wallet::channel::{ProposalId, tx};
use bitmesh_wallet::keys::{Keys, Role};
use bitmesh_wallet::ledger::Ledger;

use super::super::{ChainFact, ChannelStage, Output, Payments, Policy};
use super::*;

const NETWORK: Network = Network::Regtest;
const START: u32 = 1_000;
const CAPACITY: u64 = 100_000;
const PAID: u64 = 40_000;
const ONE: FeeRate = FeeRate::from_sat_per_vb_u32(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Buyer,
    Seller,
}

/// Where a side crashes: at which of its effects, before it or after it.
#[derive(Clone, Copy, Debug)]
struct Fault {
    who: Who,
    at: usize,
    before: bool,
}

struct Side {
    payments: Payments,
    journal: Vec<Record>,
    watched: Vec<(ProposalId, OutPoint, Transaction)>,
    /// Writes, sendings and broadcasts so far, counted while a rollover goes on.
    effects: usize,
    news: Vec<Output>,
}

struct Pair {
    now: Instant,
    height: u32,
    buyer: Side,
    seller: Side,
    wire: VecDeque<(Who, Message)>,
    /// Transactions by their id, with the height of their block.
    chain: BTreeMap<Txid, (Transaction, Option<u32>)>,
    seed: u8,
    fault: Option<Fault>,
    has_crashed: bool,
    is_counting: bool,
}

#[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
fn epoch() -> Instant {
    Instant::now()
}

fn node(who: Who) -> NodeId {
    Ed25519Signer::from_seed([who as u8 + 1; 32]).node_id()
}

fn lease() -> LeaseId {
    LeaseId::from_bytes([9; 32])
}

fn script(seed: u8) -> ScriptBuf {
    let secp = Secp256k1::new();
    let key = Keypair::from_secret_key(&secp, &SecretKey::from_slice(&[seed; 32]).unwrap());
    ScriptBuf::new_p2tr(&secp, key.x_only_public_key().0, None)
}

fn payments(who: Who) -> Payments {
    let policy = Policy {
        payee: PayeePolicy::default(),
        payer: PayerPolicy::default(),
        zero_conf_total: Amount::from_sat(5_000),
        expiry_blocks: params::DEFAULT_TERM,
    };
    let keys = Keys::from_entropy(&[who as u8 + 1; 16], NETWORK);
    Payments::new(node(who), NETWORK, Arc::new(keys), policy, 1)
}

impl Side {
    fn new(who: Who) -> Self {
        Self {
            payments: payments(who),
            journal: Vec::new(),
            watched: Vec::new(),
            effects: 0,
            news: Vec::new(),
        }
    }

    fn channels(&self, stage: ChannelStage) -> Vec<ProposalId> {
        let channels = self.payments.channels().into_iter();
        let with = channels.filter(|view| view.stage == stage);
        with.map(|view| view.proposal).collect()
    }
}

impl Pair {
    /// A channel of 100,000 sat, deep, on which 40,000 were paid in a lease that goes on.
    fn trading() -> Self {
        let mut pair = Self {
            now: epoch(),
            height: START,
            buyer: Side::new(Who::Buyer),
            seller: Side::new(Who::Seller),
            wire: VecDeque::new(),
            chain: BTreeMap::new(),
            seed: 0,
            fault: None,
            has_crashed: false,
            is_counting: false,
        };
        pair.begin_lease(Who::Buyer);
        pair.begin_lease(Who::Seller);
        pair.tell_tip();
        let (seller, now) = (node(Who::Seller), pair.now);
        let capacity = Amount::from_sat(CAPACITY);
        let terms = Terms {
            seller,
            capacity,
            max_first: Amount::from_sat(2_000),
            change_script: script(0x10),
            nonce: [1; 16],
        };
        pair.buyer.payments.open(terms, now).unwrap();
        pair.talk();
        pair.mine(3);
        pair.pay(PAID);
        assert_eq!(pair.held(), Amount::from_sat(PAID));
        pair.is_counting = true;
        pair
    }

    fn side(&mut self, who: Who) -> &mut Side {
        match who {
            Who::Buyer => &mut self.buyer,
            Who::Seller => &mut self.seller,
        }
    }

    fn begin_lease(&mut self, who: Who) {
        let (role, peer) = match who {
            Who::Buyer => (Role::Payer, node(Who::Seller)),
            Who::Seller => (Role::Payee, node(Who::Buyer)),
        };
        // The channel there is holds as much as the lease may cost, so that it asks for no other.
        let reach = Msat::ZERO;
        self.side(who)
            .payments
            .lease_begun(role, peer, lease(), reach);
    }

    fn fresh(&mut self) -> [u8; 32] {
        self.seed += 1;
        [self.seed; 32]
    }

    fn channel(&self) -> ProposalId {
        let view = self
            .buyer
            .payments
            .channel_in_use(Role::Payer, node(Who::Seller));
        view.unwrap().proposal
    }

    fn held(&self) -> Amount {
        let view = self
            .seller
            .payments
            .channel_in_use(Role::Payee, node(Who::Buyer));
        view.unwrap().paid
    }

    /// Whether this effect is done. If the side crashes at it, nothing after it is.
    fn effect(&mut self, who: Who) -> (bool, bool) {
        if !self.is_counting {
            return (true, false);
        }
        let fault = self.fault;
        let side = self.side(who);
        side.effects += 1;
        let at = side.effects;
        match fault {
            Some(fault) if fault.who == who && fault.at == at && !self.has_crashed => {
                self.has_crashed = true;
                (!fault.before, true)
            }
            _ => (true, false),
        }
    }

    /// Performs what a side wants done, in order.
    fn drain(&mut self, who: Who) {
        while let Some(output) = self.side(who).payments.poll_output() {
            let now = self.now;
            match output {
                Output::Persist(record) => {
                    let (done, crashes) = self.effect(who);
                    if done {
                        let bytes = record.to_bytes();
                        let record = Record::from_bytes(&bytes).unwrap();
                        self.side(who).journal.push(record);
                    }
                    if crashes {
                        return self.restart(who);
                    }
                }
                Output::Send { message, .. } => {
                    let (done, crashes) = self.effect(who);
                    if done {
                        let to = match who {
                            Who::Buyer => Who::Seller,
                            Who::Seller => Who::Buyer,
                        };
                        self.wire.push_back((to, message));
                    }
                    if crashes {
                        return self.restart(who);
                    }
                }
                Output::Broadcast(tx) => {
                    let (done, crashes) = self.effect(who);
                    if done {
                        self.broadcast(&tx);
                    }
                    if crashes {
                        return self.restart(who);
                    }
                }
                Output::Fund {
                    channel,
                    script,
                    amount,
                } => {
                    let tx = coins_to(&script, amount);
                    let fee = Amount::from_sat(154);
                    let payments = &mut self.side(who).payments;
                    payments.funded(channel, tx, fee, now).unwrap();
                }
                Output::Watch {
                    channel,
                    outpoint,
                    funding,
                    ..
                } => {
                    let watched = &mut self.side(who).watched;
                    watched.retain(|(id, ..)| *id != channel);
                    watched.push((channel, outpoint, *funding));
                }
                Output::RolloverAgreed { channel } => {
                    let seed = self.fresh();
                    self.side(who).payments.carry_over(channel, seed, now);
                }
                Output::CloseWanted { channel } => {
                    let seed = self.fresh();
                    let payments = &mut self.side(who).payments;
                    let _ = payments.close_together(channel, ONE, seed, now);
                }
                Output::SplitDue { channel, next } => {
                    let seed = self.fresh();
                    let payments = &mut self.side(who).payments;
                    payments
                        .split_chosen(channel, script(0x20), ONE, seed, next, now)
                        .unwrap();
                }
                other => self.side(who).news.push(other),
            }
        }
    }

    /// Everything not performed is lost; what was written down is read again.
    fn restart(&mut self, who: Who) {
        let now = self.now;
        self.wire.retain(|(to, _)| *to != who);
        let side = self.side(who);
        side.payments = payments(who);
        side.watched.clear();
        let mut channels: Vec<(ProposalId, Vec<Record>)> = Vec::new();
        for record in &side.journal {
            match channels.iter_mut().find(|(id, _)| *id == record.proposal) {
                Some((_, records)) => records.push(record.clone()),
                None => channels.push((record.proposal, vec![record.clone()])),
            }
        }
        for (_, records) in channels {
            side.payments.restore(records, now).unwrap();
        }
        self.begin_lease(who);
        self.drain(who);
        self.tell_chain(who);
        let peer = match who {
            Who::Buyer => node(Who::Seller),
            Who::Seller => node(Who::Buyer),
        };
        self.side(who).payments.connected(peer, now);
        self.drain(who);
    }

    fn broadcast(&mut self, tx: &Transaction) {
        let spends = |other: &Transaction| {
            other.input.iter().any(|theirs| {
                let ours = tx.input.iter().map(|input| input.previous_output);
                ours.clone().any(|ours| ours == theirs.previous_output)
            })
        };
        // First seen wins, in this mempool.
        if !self.chain.values().any(|(known, _)| spends(known)) {
            self.chain.insert(tx.compute_txid(), (tx.clone(), None));
        }
    }

    fn mine(&mut self, blocks: u32) {
        for _ in 0..blocks {
            self.height += 1;
            let height = self.height;
            for (_, mined) in self.chain.values_mut() {
                mined.get_or_insert(height);
            }
            self.tell_tip();
            self.talk();
        }
    }

    fn tell_tip(&mut self) {
        for who in [Who::Buyer, Who::Seller] {
            self.tell_chain(who);
        }
    }

    fn tell_chain(&mut self, who: Who) {
        let (now, height) = (self.now, self.height);
        for (channel, outpoint, funding) in self.side(who).watched.clone() {
            let found = self.chain.get(&funding.compute_txid()).cloned();
            let fact = match found {
                Some((_, Some(mined))) => ChainFact::Confirmed(height + 1 - mined),
                Some((_, None)) => ChainFact::Seen(Sighting {
                    has_confirmed_inputs: true,
                    feerate: ONE,
                    wanted_feerate: ONE,
                }),
                None => continue,
            };
            self.side(who).payments.on_chain(channel, fact, now);
            self.drain(who);
            let mut spends = self.chain.values();
            let spend = spends.find(|(tx, _)| {
                tx.input
                    .iter()
                    .any(|input| input.previous_output == outpoint)
            });
            if let Some((tx, mined)) = spend.cloned() {
                let fact = ChainFact::Spent(Box::new(tx), mined);
                self.side(who).payments.on_chain(channel, fact, now);
                self.drain(who);
            }
        }
        let tip = BlockHeight::new(height);
        self.side(who).payments.tip_changed(tip, now);
        self.drain(who);
    }

    /// Delivers everything until nobody has anything to say.
    fn talk(&mut self) {
        self.drain(Who::Buyer);
        self.drain(Who::Seller);
        while let Some((to, message)) = self.wire.pop_front() {
            let now = self.now;
            let from = match to {
                Who::Buyer => node(Who::Seller),
                Who::Seller => node(Who::Buyer),
            };
            let bytes = message.to_bytes();
            let message = Message::from_bytes(&bytes).unwrap();
            let _ = self.side(to).payments.received(from, message, now);
            self.drain(to);
        }
    }

    fn sleep(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        for who in [Who::Buyer, Who::Seller] {
            self.side(who).payments.handle_timeout(now);
            self.drain(who);
        }
        self.talk();
    }

    fn pay(&mut self, sat: u64) {
        let (seller, now) = (node(Who::Seller), self.now);
        let total = Msat::from_sat(sat).unwrap();
        self.buyer.payments.pay(seller, total, now);
        self.talk();
    }

    fn wish(&mut self, capacity: Option<u64>) -> Wish {
        Wish {
            capacity: capacity.map(Amount::from_sat),
            feerate: ONE,
            max_min_first: Amount::from_sat(2_000),
            change_script: script(0x11),
            nonce: [self.fresh()[0]; 16],
        }
    }

    fn roll(&mut self) -> ProposalId {
        let (channel, now) = (self.channel(), self.now);
        let wish = self.wish(None);
        let begun = self.buyer.payments.roll_over(channel, wish, now);
        let next = begun.unwrap();
        self.drain(Who::Buyer);
        next
    }

    /// Time passes, blocks come, and whoever waits for something tries again.
    fn settle_down(&mut self) {
        self.talk();
        for _ in 0..4 {
            self.sleep(CLOSE_PATIENCE);
            self.tell_tip();
            self.talk();
        }
        self.mine(8);
        self.sleep(CLOSE_PATIENCE);
    }

    fn rolled(&self) -> Vec<(ProposalId, ProposalId)> {
        let news = self.buyer.news.iter();
        news.filter_map(|output| match output {
            Output::RolledOver { channel, next } => Some((*channel, *next)),
            _ => None,
        })
        .collect()
    }

    fn failures(&self) -> Vec<RolloverFailure> {
        let news = self.buyer.news.iter();
        news.filter_map(|output| match output {
            Output::RolloverFailed { failure, .. } => Some(*failure),
            _ => None,
        })
        .collect()
    }

    fn has_ended_a_lease(&self) -> bool {
        let ends = |output: &Output| matches!(output, Output::ChannelEnding { .. });
        self.buyer.news.iter().any(ends) || self.seller.news.iter().any(ends)
    }

    /// Both books add up after every record, and nothing is in two places.
    fn check_books(&self) {
        for side in [&self.buyer, &self.seller] {
            let mut ledger = Ledger::new();
            for record in &side.journal {
                ledger.post(record).unwrap();
                assert!(ledger.totals().adds_up(), "{record:?}");
            }
        }
    }
}

fn coins_to(script: &ScriptBuf, value: Amount) -> Transaction {
    let previous_output = OutPoint::new(Txid::from_byte_array([7; 32]), 0);
    Transaction {
        version: tx::VERSION,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output,
            witness: Witness::from_slice(&[[0x55; 64]]),
            ..TxIn::default()
        }],
        output: vec![TxOut {
            value,
            script_pubkey: script.clone(),
        }],
    }
}

#[test]
fn a_lease_goes_on_over_a_rollover_and_is_paid_at_once_on_the_next_channel() {
    let mut pair = Pair::trading();
    let before = pair.channel();

    let next = pair.roll();
    // A payment in the middle of it waits for the next channel, and a first payment is part of it.
    pair.pay(PAID + 100);
    pair.talk();
    pair.tell_tip();
    pair.talk();

    assert_eq!(pair.rolled(), [(before, next)]);
    assert!(!pair.has_ended_a_lease());
    assert_eq!(pair.channel(), next);
    let view = pair.buyer.payments.channel(next).unwrap();
    assert_eq!(view.capacity, Amount::from_sat(CAPACITY - PAID));
    assert_eq!(view.stage, ChannelStage::Unconfirmed);
    let paid = pair
        .buyer
        .payments
        .session_paid(Role::Payer, node(Who::Seller));
    let counts = pair
        .seller
        .payments
        .session_paid(Role::Payee, node(Who::Buyer));
    assert_eq!(paid, Msat::from_sat(PAID + 740).unwrap());
    assert_eq!(counts, paid, "it counts unconfirmed");

    // Far beyond what an unconfirmed funding from coins is trusted for, and not beyond one block's worth.
    pair.pay(PAID + 45_000);
    pair.tell_tip();
    pair.talk();
    assert_eq!(pair.held(), Amount::from_sat(45_000));
    pair.pay(PAID + 55_000);
    assert_eq!(pair.held(), Amount::from_sat(50_000));

    pair.mine(8);
    pair.pay(PAID + 55_000);
    assert_eq!(pair.held(), Amount::from_sat(55_000));
    for (side, role) in [(&pair.buyer, Role::Payer), (&pair.seller, Role::Payee)] {
        assert_eq!(side.channels(ChannelStage::Closed), [before], "{role:?}");
        assert_eq!(side.channels(ChannelStage::Open), [next], "{role:?}");
        let (old, new) = (
            side.payments.channel(before).unwrap(),
            side.payments.channel(next).unwrap(),
        );
        assert_eq!(old.carried_into, Some(new.id));
        assert_eq!(new.carried_from, Some(old.id));
    }
    pair.check_books();
}

#[test]
fn the_next_channel_has_the_sellers_key_of_the_one_before() {
    let mut pair = Pair::trading();
    let before = pair.channel();
    let next = pair.roll();
    pair.talk();

    let key = |id| {
        let contract = pair.buyer.payments.contract(id).unwrap();
        (contract.accept().payee_key, contract.open().payer_key)
    };
    assert_eq!(key(before).0, key(next).0);
    assert_ne!(key(before).1, key(next).1);

    // Also when it is carried over again, and after a restart of the seller.
    pair.mine(8);
    pair.restart(Who::Seller);
    pair.pay(PAID + 2_000);
    pair.roll();
    pair.talk();
    assert_eq!(pair.rolled().len(), 2);
}

/// Plays a rollover with a fault, to its end; whether the fault was met.
fn play(fault: Option<Fault>) -> (bool, Pair) {
    let mut pair = Pair::trading();
    pair.fault = fault;
    let before = pair.channel();
    pair.roll();
    pair.talk();
    pair.is_counting = true;
    pair.settle_down();
    pair.check_books();

    let unfunded = |side: &Side| {
        let channels = side.payments.channels().into_iter();
        let next = channels.filter(|it| it.stage == ChannelStage::Opening);
        next.count()
    };
    assert_eq!((unfunded(&pair.buyer), unfunded(&pair.seller)), (0, 0));
    let old = [&pair.buyer, &pair.seller].map(|it| it.payments.channel(before).unwrap());
    assert_eq!(old[0].settlement, old[1].settlement);
    assert_eq!(old[0].carried_into, old[1].carried_into);
    match (old[0].settlement, &old[0].carried_into) {
        (None, carried) => {
            assert_eq!(*carried, None);
            assert_eq!(old[0].stage, ChannelStage::Open);
            assert_eq!(old[1].stage, ChannelStage::Open);
        }
        (Some(settlement), carried) => {
            assert_eq!(settlement.paid(), Amount::from_sat(PAID));
            assert_eq!(settlement.returned, Amount::from_sat(CAPACITY - PAID));
            let open = [&pair.buyer, &pair.seller].map(|it| it.channels(ChannelStage::Open));
            assert_eq!(open[0], open[1]);
            assert_eq!(open[0].len(), usize::from(carried.is_some()));
        }
    }
    (pair.has_crashed, pair)
}

#[test]
fn whoever_crashes_wherever_both_channels_end_right() {
    let (_, calm) = play(None);
    assert_eq!(calm.rolled().len(), 1);
    let (mut cases, mut rolled, mut kept, mut closed) = (0, 0, 0, 0);
    for who in [Who::Buyer, Who::Seller] {
        for before in [true, false] {
            for at in 1.. {
                let (met, mut pair) = play(Some(Fault { who, at, before }));
                if !met {
                    break;
                }
                cases += 1;
                let in_use = pair.channel();
                let view = pair.buyer.payments.channel(in_use).unwrap();
                match (&view.carried_from, view.stage) {
                    (Some(_), _) => rolled += 1,
                    (None, ChannelStage::Open) => kept += 1,
                    (None, _) => {
                        closed += 1;
                        continue;
                    }
                }
                // Trading goes on, on whichever it is.
                let already = view.paid;
                pair.pay(PAID + 3_000);
                pair.sleep(Duration::from_secs(60));
                assert!(pair.held() > already, "{who:?} {at} {before}");
                let promised = pair.buyer.payments.channel(in_use).unwrap().paid;
                assert_eq!(pair.held(), promised);
            }
        }
    }
    println!("{cases} crashes: {rolled} rolled over, {kept} kept, {closed} closed");
    assert!(
        cases > 40 && rolled > 0 && kept > 0,
        "{cases} {rolled} {kept} {closed}"
    );
}

#[test]
fn a_seller_that_refuses_or_is_silent_leaves_the_channel_as_it_was() {
    // Too little is left for a channel.
    let mut small = Pair::trading();
    small.pay(CAPACITY - 9_000);
    small.roll();
    small.talk();
    let refused = RolloverFailure::Refused(RefusalCode::Capacity);
    assert_eq!(small.failures(), [refused]);

    let mut silent = Pair::trading();
    silent.roll();
    silent.wire.clear();
    silent.pay(PAID + 1_000);
    assert_eq!(silent.held(), Amount::from_sat(PAID), "it waits");
    silent.sleep(CLOSE_PATIENCE);
    assert_eq!(silent.failures(), [RolloverFailure::Silent]);

    let mut gone = Pair::trading();
    gone.roll();
    gone.wire.clear();
    let now = gone.now;
    gone.buyer.payments.unreachable(node(Who::Seller), now);
    gone.talk();
    assert_eq!(
        gone.failures(),
        [RolloverFailure::Signing(CloseFailure::Unreachable)]
    );
    silent.talk();
    assert_eq!(silent.held(), Amount::from_sat(PAID + 1_000));
    for pair in [&small, &silent, &gone] {
        assert!(!pair.has_ended_a_lease());
        assert_eq!(pair.buyer.channels(ChannelStage::Opening), []);
        assert_eq!(pair.buyer.channels(ChannelStage::Open).len(), 1);
    }
}

#[test]
fn a_close_that_is_mined_in_the_middle_ends_it_and_nothing_is_lost() {
    let mut pair = Pair::trading();
    let (channel, now) = (pair.channel(), pair.now);
    let next = pair.roll();
    // The seller closes alone as the buyer's wish is on its way.
    let closed = pair.seller.payments.close(channel, script(0x20), ONE, now);
    closed.unwrap();
    pair.drain(Who::Seller);
    pair.settle_down();

    assert_eq!(pair.rolled(), []);
    assert_eq!(pair.failures().len(), 1);
    for side in [&pair.buyer, &pair.seller] {
        let view = side.payments.channel(channel).unwrap();
        assert_eq!(view.stage, ChannelStage::Closed);
        assert_eq!(view.settlement.unwrap().paid(), Amount::from_sat(PAID));
    }
    let given_up = pair.buyer.payments.channel(next).unwrap();
    assert_eq!(given_up.stage, ChannelStage::Abandoned);
    assert_eq!(pair.seller.channels(ChannelStage::Opening), []);
    pair.check_books();
}

#[test]
fn whoever_has_nothing_to_carry_over_makes_the_seller_write_nothing() {
    let mut pair = Pair::trading();
    let before = pair.channel();
    let template = pair.buyer.payments.payers[&before].machine.open().clone();
    let written = |pair: &Pair| pair.seller.journal.len();
    let start = written(&pair);
    let renew = |pair: &mut Pair, from: Who, before: ProposalId, nonce: u8| {
        let mut open = template.clone();
        open.nonce = [nonce; 16];
        open.payer = super::super::party(node(from));
        open.capacity = Amount::from_sat(CAPACITY - PAID);
        let renew = Message::Renew(Box::new(Renew { from: before, open }));
        let now = pair.now;
        let _ = pair.seller.payments.received(node(from), renew, now);
        pair.drain(Who::Seller);
        pair.wire.clear();
    };

    // Of a channel that is nobody's, or another's.
    renew(&mut pair, Who::Buyer, ProposalId::from_bytes([3; 32]), 1);
    renew(&mut pair, Who::Seller, before, 2);
    assert_eq!(written(&pair), start);

    // Of its own: four within six blocks, one of them at a time, and no key of the seller's.
    let keys = pair.seller.payments.next_payee_key;
    for nonce in 10..50 {
        renew(&mut pair, Who::Buyer, before, nonce);
    }
    assert_eq!(pair.seller.payments.next_payee_key, keys);
    assert_eq!(pair.seller.channels(ChannelStage::Opening).len(), 1);
    assert!(
        written(&pair) <= start + 2 * 4,
        "{}",
        written(&pair) - start
    );
    pair.mine(6);
    renew(&mut pair, Who::Buyer, before, 60);
    assert!(written(&pair) > start + 2 * 3);
}

#[test]
fn only_what_a_buyer_pays_from_and_has_paid_on_is_carried_over() {
    let pair = Pair::trading();
    let channel = pair.channel();
    let why = |payments: &Payments, capacity: Option<u64>| {
        let capacity = capacity.map(Amount::from_sat);
        match payments.may_roll_over(channel, capacity) {
            Err(PaymentsError::Rollover(error)) => Some(error),
            Ok(_) => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        why(&pair.seller.payments, None),
        Some(RolloverError::NotPayer)
    );
    assert_eq!(why(&pair.buyer.payments, None), None);
    assert_eq!(why(&pair.buyer.payments, Some(50_000)), None);
    for wrong in [60_001, 59_999] {
        let error = why(&pair.buyer.payments, Some(wrong));
        let (rest, most) = (Amount::from_sat(60_000), Amount::from_sat(59_670));
        assert_eq!(error, Some(RolloverError::Capacity { rest, most }));
    }
}

#[test]
fn near_the_expiry_the_driver_is_asked_every_hour_until_it_tries() {
    let mut pair = Pair::trading();
    let expiry = START + params::DEFAULT_TERM;
    let due = |pair: &mut Pair, left: u32, tries: bool| {
        pair.height = expiry - left;
        pair.tell_tip();
        let news = std::mem::take(&mut pair.buyer.news);
        let due: Vec<_> = news
            .into_iter()
            .filter_map(|output| match output {
                Output::RolloverDue { channel, .. } => Some(channel),
                _ => None,
            })
            .collect();
        if let (Some(channel), true) = (due.first(), tries) {
            pair.buyer.payments.rollover_tried(*channel);
        }
        due.len()
    };

    assert_eq!(due(&mut pair, 433, true), 0);
    // As long as the seller is away, with every block.
    assert_eq!(due(&mut pair, 432, false), 1);
    assert_eq!(due(&mut pair, 431, true), 1);
    for left in 426..431 {
        assert_eq!(due(&mut pair, left, true), 0, "{left}");
    }
    assert_eq!(due(&mut pair, 425, true), 1);
    assert_eq!(due(&mut pair, 288, true), 0);
}
