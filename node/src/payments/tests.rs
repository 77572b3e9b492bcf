//! A buyer's and a seller's room, joined by what they say to one another.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, Witness};
use bitmesh_market::identity::{Ed25519Signer, NodeId, Signer as _};
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::PayFailure;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::Message;
use bitmesh_wallet::channel::params::{self, PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::record::{Fact, Record};
use bitmesh_wallet::channel::{ProposalId, tx};
use bitmesh_wallet::keys::{Keys, Role};
use proptest::prelude::*;

use super::*;

const NETWORK: Network = Network::Regtest;
const TIP: u32 = 1_000;
const CAPACITY: u64 = 20_000;

#[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
fn epoch() -> Instant {
    Instant::now()
}

fn id(seed: u8) -> NodeId {
    Ed25519Signer::from_seed([seed; 32]).node_id()
}

fn room(seed: u8) -> Payments {
    let policy = Policy {
        payee: PayeePolicy::default(),
        payer: PayerPolicy::default(),
        zero_conf_total: Amount::from_sat(5_000),
        expiry_blocks: params::DEFAULT_TERM,
    };
    let keys = Arc::new(Keys::from_entropy(&[seed; 16], NETWORK));
    let mut room = Payments::new(id(seed), NETWORK, keys, policy, 1);
    room.tip_changed(BlockHeight::new(TIP), epoch());
    room
}

fn sat(sat: u64) -> Msat {
    Msat::from_sat(sat).unwrap()
}

/// One buyer and some sellers. The buyer's wallet makes fundings out of nothing.
struct World {
    now: Instant,
    buyer: Payments,
    sellers: BTreeMap<NodeId, Payments>,
    /// Sellers that hear nothing.
    away: Vec<NodeId>,
    fundings: u32,
    records: Vec<Record>,
    broadcast: Vec<Transaction>,
    /// What the buyer's lease was told.
    told: Vec<Output>,
    /// What the seller's leases were told.
    sold: Vec<Output>,
    nonce: u8,
}

const BUYER: u8 = 200;

impl World {
    fn new(sellers: u8) -> Self {
        Self {
            now: epoch(),
            buyer: room(BUYER),
            sellers: (0..sellers).map(|seed| (id(seed), room(seed))).collect(),
            away: Vec::new(),
            fundings: 0,
            records: Vec::new(),
            broadcast: Vec::new(),
            told: Vec::new(),
            sold: Vec::new(),
            nonce: 0,
        }
    }

    fn seller(&mut self) -> &mut Payments {
        self.sellers.get_mut(&id(0)).unwrap()
    }

    fn terms(&mut self, seller: u8, capacity: u64) -> Terms {
        self.nonce += 1;
        Terms {
            seller: id(seller),
            capacity: Amount::from_sat(capacity),
            max_first: Amount::from_sat(1_000),
            change_script: ScriptBuf::from_bytes([&[0x51, 0x20][..], &[self.nonce; 32]].concat()),
            nonce: [self.nonce; 16],
        }
    }

    fn lease(&mut self, reach: u64) {
        let lease = LeaseId::from_bytes([9; 32]);
        self.buyer
            .lease_begun(Role::Payer, id(0), lease, sat(reach));
        self.seller()
            .lease_begun(Role::Payee, id(BUYER), lease, sat(reach));
    }

    /// A channel with the first seller, in a block.
    fn open(&mut self, capacity: u64) -> ProposalId {
        let terms = self.terms(0, capacity);
        let channel = self.buyer.open(terms, self.now).unwrap();
        self.run();
        self.bury(channel, 6);
        channel
    }

    fn bury(&mut self, channel: ProposalId, depth: u32) {
        let now = self.now;
        self.buyer
            .on_chain(channel, ChainFact::Confirmed(depth), now);
        for seller in self.sellers.values_mut() {
            seller.on_chain(channel, ChainFact::Confirmed(depth), now);
        }
        self.run();
    }

    fn funding(&mut self, outputs: Vec<(ScriptBuf, Amount)>) -> Transaction {
        self.fundings += 1;
        let outputs = outputs.into_iter().map(|(script_pubkey, value)| TxOut {
            value,
            script_pubkey,
        });
        Transaction {
            version: tx::VERSION,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint::new(Txid::from_byte_array([7; 32]), self.fundings),
                witness: Witness::from_slice(&[[0x55; 64]]),
                ..TxIn::default()
            }],
            output: outputs.collect(),
        }
    }

    /// Carries out whatever anybody wants, until nobody wants anything.
    fn run(&mut self) {
        while self.step() {}
    }

    fn step(&mut self) -> bool {
        if let Some(output) = self.buyer.poll_output() {
            self.of_buyer(output);
            return true;
        }
        let sellers: Vec<_> = self.sellers.keys().copied().collect();
        for id in sellers {
            if let Some(output) = self.sellers.get_mut(&id).unwrap().poll_output() {
                self.of_seller(id, output);
                return true;
            }
        }
        false
    }

    fn of_buyer(&mut self, output: Output) {
        let now = self.now;
        match output {
            Output::Persist(record) => self.records.push(record),
            Output::Send { to, message } if !self.away.contains(&to) => {
                let seller = self.sellers.get_mut(&to).unwrap();
                let _ = seller.received(id(BUYER), message, now);
            }
            Output::Fund {
                channel,
                script,
                amount,
            } => {
                let tx = self.funding(vec![(script, amount)]);
                let fee = Amount::from_sat(154);
                self.buyer.funded(channel, tx, fee, now).unwrap();
            }
            Output::Broadcast(tx) => self.broadcast.push(*tx),
            told @ (Output::Paid { .. }
            | Output::PayFailed { .. }
            | Output::ChannelEnding { .. }
            | Output::TopUpDue { .. }
            | Output::FundTogether { .. }) => self.told.push(told),
            _ => {}
        }
    }

    fn of_seller(&mut self, from: NodeId, output: Output) {
        match output {
            Output::Send { message, .. } => {
                let _ = self.buyer.received(from, message, self.now);
            }
            sold @ (Output::Paid { .. }
            | Output::ChannelEnding { .. }
            | Output::FundingLost { .. }
            | Output::FundingFound { .. }) => self.sold.push(sold),
            _ => {}
        }
    }

    /// Pays until the lease is told that `total` is paid, or that it is not.
    fn pay(&mut self, total: u64) -> Result<Msat, PayFailure> {
        loop {
            self.told.clear();
            self.buyer.pay(id(0), sat(total), self.now);
            self.run();
            let answer = self.answered().or_else(|| {
                // It waits for a further channel, and nobody opens one here.
                self.buyer.top_up_failed(id(0), self.now);
                self.run();
                self.answered()
            });
            match answer.expect("a wish is answered") {
                Ok(paid) if paid < sat(total) => {}
                answer => return answer,
            }
        }
    }

    fn answered(&self) -> Option<Result<Msat, PayFailure>> {
        self.told.iter().find_map(|told| match told {
            Output::Paid { total, .. } => Some(Ok(*total)),
            Output::PayFailed { failure, .. } => Some(Err(*failure)),
            _ => None,
        })
    }

    fn promised(&self) -> Vec<u64> {
        let mut channels = self.buyer.channels();
        channels.sort_by_key(|view| view.proposal);
        let pair = &self.buyer.bought[&id(0)];
        pair.channels
            .iter()
            .map(|id| channels.iter().find(|view| view.proposal == *id).unwrap())
            .map(|view| view.paid.to_sat())
            .collect()
    }

    fn credited(&self) -> u64 {
        let paid = self.sellers[&id(0)].session_paid(Role::Payee, id(BUYER));
        paid.sat_floor()
    }

    fn asked_for_more(&self) -> Option<Amount> {
        self.told.iter().find_map(|told| match told {
            Output::TopUpDue { lacking, .. } => Some(*lacking),
            _ => None,
        })
    }
}

#[test]
fn a_payment_that_does_not_fit_fills_the_first_channel_and_begins_the_next() {
    let mut world = World::new(1);
    world.lease(40_000);
    world.open(CAPACITY);
    world.open(CAPACITY);
    world.pay(15_000).unwrap();
    assert_eq!(world.promised(), [15_000, 0]);

    let paid = world.pay(26_000);

    assert_eq!(paid, Ok(sat(26_000)));
    assert_eq!(world.promised(), [CAPACITY, 6_000]);
    assert_eq!(world.credited(), 26_000);
}

#[test]
fn the_dust_below_a_full_channel_is_credit_and_the_next_begins_with_its_first_payment() {
    let mut world = World::new(1);
    world.lease(40_000);
    world.open(CAPACITY);
    world.open(CAPACITY);

    // Inside the gap: all of the first channel is paid.
    assert_eq!(world.pay(CAPACITY - 100), Ok(sat(CAPACITY)));
    assert_eq!(world.promised(), [CAPACITY, 0]);
    // One satoshi more costs the first payment of the next, which is credit.
    let first = world.buyer.first_payment();
    let paid = world.pay(CAPACITY + 1).unwrap();

    assert_eq!(paid, sat(CAPACITY).saturating_add(first));
    assert_eq!(paid.sat_floor(), world.credited());
}

#[test]
fn a_channel_is_opened_for_a_lease_that_needs_it_when_the_first_is_half_used_up() {
    let mut world = World::new(1);
    world.lease(50_000);
    world.open(CAPACITY);

    world.pay(9_999).unwrap();
    assert_eq!(world.asked_for_more(), None);
    world.pay(10_000).unwrap();
    assert_eq!(world.asked_for_more(), Some(Amount::from_sat(30_000)));
    // Once is enough.
    world.pay(12_000).unwrap();
    assert_eq!(world.asked_for_more(), None);

    world.open(CAPACITY);
    world.pay(29_000).unwrap();
    assert_eq!(world.asked_for_more(), None);
    world.pay(31_000).unwrap();
    assert_eq!(world.asked_for_more(), Some(Amount::from_sat(10_000)));
}

#[test]
fn a_lease_that_its_channels_can_pay_for_opens_no_other() {
    let mut world = World::new(1);
    world.lease(CAPACITY);
    world.open(CAPACITY);

    for total in (1_000..=CAPACITY).step_by(1_000) {
        world.pay(total).unwrap();
        assert_eq!(world.asked_for_more(), None, "at {total}");
    }
}

#[test]
fn a_payment_waits_for_the_channel_that_is_being_opened_and_fails_if_none_can_be() {
    let mut world = World::new(1);
    world.lease(50_000);
    world.open(CAPACITY);
    world.pay(CAPACITY).unwrap();
    world.told.clear();

    world.buyer.pay(id(0), sat(CAPACITY + 2_000), world.now);
    world.run();
    assert!(world.told.is_empty(), "{:?}", world.told);
    world.buyer.top_up_failed(id(0), world.now);
    world.run();

    let spent = PayFailure::CapacitySpent;
    assert!(matches!(
        world.told[..],
        [Output::PayFailed { failure, .. }] if failure == spent
    ));
    // The next block is another chance.
    world.told.clear();
    world
        .buyer
        .tip_changed(BlockHeight::new(TIP + 1), world.now);
    world.run();
    assert_eq!(world.asked_for_more(), Some(Amount::from_sat(30_000)));
}

#[test]
fn a_seller_that_wants_to_close_does_not_make_its_buyer_open_another_channel() {
    let mut world = World::new(1);
    world.lease(19_000);
    let channel = world.open(CAPACITY);
    world.pay(5_000).unwrap();
    world.told.clear();

    let now = world.now;
    let feerate = world.buyer.feerate();
    world
        .buyer
        .close_together(channel, feerate, [3; 32], now)
        .unwrap();
    world.buyer.pay(id(0), sat(6_000), now);
    world.run();

    assert_eq!(world.asked_for_more(), None);
}

#[test]
fn a_lease_goes_on_when_one_of_two_channels_ends_and_ends_with_the_last() {
    let mut world = World::new(1);
    world.lease(30_000);
    let first = world.open(CAPACITY);
    let second = world.open(CAPACITY);
    world.pay(5_000).unwrap();
    world.sold.clear();
    let payout = ScriptBuf::from_bytes([&[0x51, 0x20][..], &[1; 32]].concat());
    let feerate = world.buyer.feerate();
    let now = world.now;

    let close = |world: &mut World, channel| {
        let seller = world.seller();
        assert!(!seller.ends_lease(first) || channel == second);
        seller.close(channel, payout.clone(), feerate, now).unwrap();
        let end = seller.payees[&channel].ending.clone().unwrap();
        let fact = ChainFact::Spent(Box::new(end), None);
        seller.on_chain(channel, fact.clone(), now);
        world.buyer.on_chain(channel, fact, now);
        world.run();
    };
    let is_ending = |output: &Output| matches!(output, Output::ChannelEnding { .. });
    close(&mut world, first);
    assert!(!world.told.iter().any(is_ending) && !world.sold.iter().any(is_ending));
    world.pay(8_000).unwrap();
    assert_eq!(world.promised(), [5_000, 3_000]);
    assert!(world.seller().ends_lease(second));

    close(&mut world, second);
    assert!(world.told.iter().any(is_ending), "{:?}", world.told);
    assert!(world.sold.iter().any(is_ending), "{:?}", world.sold);
}

#[test]
fn service_stops_while_any_channel_that_paid_for_it_is_out_of_sight() {
    let mut world = World::new(1);
    world.lease(40_000);
    let first = world.open(CAPACITY);
    let second = world.open(CAPACITY);
    let third = world.open(CAPACITY);
    world.pay(25_000).unwrap();
    world.sold.clear();
    let now = world.now;

    let mut tell = |channel, fact| {
        world.seller().on_chain(channel, fact, now);
        world.run();
        world
            .sold
            .drain(..)
            .map(|it| format!("{it:?}"))
            .collect::<Vec<_>>()
    };
    let lost = tell(first, ChainFact::Dropped);
    assert!(
        lost.iter().any(|it| it.starts_with("FundingLost")),
        "{lost:?}"
    );
    assert!(tell(second, ChainFact::Dropped).is_empty());
    // Nothing was paid through this one, and it is not needed once the others are there again.
    assert!(tell(third, ChainFact::Dropped).is_empty());
    assert!(tell(second, ChainFact::Confirmed(6)).is_empty());
    let found = tell(first, ChainFact::Confirmed(6));
    assert!(
        found.iter().any(|it| it.starts_with("FundingFound")),
        "{found:?}"
    );
}

#[test]
fn a_seller_takes_eight_channels_of_a_buyer_and_no_more() {
    let mut world = World::new(1);
    world.lease(1_000_000);
    for _ in 0..MAX_CHANNELS {
        world.open(CAPACITY);
    }
    let terms = world.terms(0, CAPACITY);
    assert!(matches!(
        world.buyer.open(terms, world.now),
        Err(PaymentsError::TooMany)
    ));

    // A buyer that does not count is refused.
    let forgotten = world.buyer.bought.get_mut(&id(0)).unwrap();
    forgotten.channels.truncate(1);
    let terms = world.terms(0, CAPACITY);
    let channel = world.buyer.open(terms, world.now).unwrap();
    world.run();

    assert_eq!(
        world.buyer.channel(channel).unwrap().stage,
        ChannelStage::Abandoned
    );
    let held = &world.sellers[&id(0)].payees;
    assert_eq!(held.len(), MAX_CHANNELS);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn whatever_is_paid_through_however_many_channels_nobody_has_more_at_stake_than_is_said(
        steps in prop::collection::vec((1_u64..6_000, any::<bool>()), 1..30),
    ) {
        let mut world = World::new(1);
        world.lease(150_000);
        world.open(CAPACITY);
        let first = world.buyer.first_payment().sat_ceil();
        let mut wanted = 0;
        for (more, opens) in steps {
            if opens && world.buyer.bought[&id(0)].channels.len() < MAX_CHANNELS {
                world.open(CAPACITY);
            }
            let before = world.credited();
            wanted += more;
            let paid = world.pay(wanted);

            let promised = world.promised();
            // Each is used up before the next is begun.
            let begun = promised.iter().take_while(|it| **it == CAPACITY).count();
            prop_assert!(promised.iter().skip(begun + 1).all(|it| *it == 0), "{promised:?}");
            // Both know the same, and no more is paid than what was asked for, what a satoshi and the
            // dust below a full channel round up, and one first payment.
            prop_assert_eq!(promised.iter().sum::<u64>(), world.credited());
            match paid {
                Ok(paid) => {
                    prop_assert!(paid >= sat(wanted));
                    let most = wanted.max(before) + first.max(329) + 329;
                    prop_assert!(paid <= sat(most), "{paid} of {wanted}");
                }
                Err(failure) => {
                    prop_assert_eq!(failure, PayFailure::CapacitySpent);
                    prop_assert!(promised.iter().all(|it| *it == CAPACITY), "{promised:?}");
                    return Ok(());
                }
            }
        }
    }
}

// Several sellers at once.

fn together(world: &mut World, sellers: u8) -> u64 {
    let terms: Vec<_> = (0..sellers).map(|it| world.terms(it, CAPACITY)).collect();
    world.buyer.open_together(terms, world.now).unwrap()
}

fn asked(world: &World) -> Option<u64> {
    world.told.iter().find_map(|told| match told {
        Output::FundTogether { opening } => Some(*opening),
        _ => None,
    })
}

/// One transaction for these channels.
fn funding_of(world: &mut World, channels: &[ProposalId]) -> Transaction {
    let outputs = channels.iter().rev().map(|channel| {
        let contract = world.buyer.contract(*channel).unwrap();
        (
            contract.scripts().output().clone(),
            contract.open().capacity,
        )
    });
    let outputs = outputs.collect();
    world.funding(outputs)
}

#[test]
fn one_transaction_is_asked_for_once_every_seller_has_agreed() {
    let mut world = World::new(3);
    let opening = together(&mut world, 3);
    world.run();

    assert_eq!(asked(&world), Some(opening));
    let members = world.buyer.take_opening(opening);
    assert_eq!(members.len(), 3);
    assert!(members.iter().all(|(_, _, left_out)| left_out.is_none()));
    let channels: Vec<_> = members.iter().map(|(channel, ..)| *channel).collect();
    let tx = funding_of(&mut world, &channels);
    let fee = Amount::from_sat(241);
    world
        .buyer
        .funded_together(&channels, &tx, fee, world.now)
        .unwrap();
    world.broadcast.clear();
    world.run();

    // Broadcast once, and known to every seller.
    assert_eq!(world.broadcast, std::slice::from_ref(&tx));
    for seller in world.sellers.values() {
        let channel = seller.payees.values().next().unwrap();
        assert_eq!(channel.funding.unwrap().txid, tx.compute_txid());
    }
    let mut fees: Vec<_> = channels
        .iter()
        .map(|it| world.buyer.channel(*it).unwrap().fees.to_sat())
        .collect();
    fees.sort_unstable();
    assert_eq!(fees, [80, 80, 81]);
}

#[test]
fn a_seller_that_refuses_or_is_away_is_left_out_and_the_others_are_funded() {
    let mut world = World::new(4);
    world.away.push(id(1));
    // This one has taken as many strangers as it takes.
    let refusing = world.sellers.get_mut(&id(2)).unwrap();
    while refusing.welcome.take(world.now) {}
    let opening = together(&mut world, 4);
    world.run();
    assert_eq!(asked(&world), None);

    world.now += Duration::from_secs(15);
    world.buyer.handle_timeout(world.now);
    world.run();

    assert_eq!(asked(&world), Some(opening));
    let members = world.buyer.take_opening(opening);
    let left_out = |seller: u8| {
        let found = members.iter().find(|(_, it, _)| *it == id(seller));
        found.unwrap().2
    };
    assert_eq!(left_out(0), None);
    assert_eq!(left_out(1), Some(LeftOut::Silent));
    let busy = bitmesh_wallet::channel::message::RefusalCode::Busy;
    assert_eq!(left_out(2), Some(LeftOut::Refused(busy)));
    assert_eq!(left_out(3), None);
    // Who comes too late has no part in it.
    world.away.clear();
    world.buyer.connected(id(1), world.now);
    world.run();
    let stages: Vec<_> = world.buyer.channels().iter().map(|it| it.stage).collect();
    let given_up = stages.iter().filter(|it| **it == ChannelStage::Abandoned);
    assert_eq!(given_up.count(), 2);
}

#[test]
fn a_seller_that_asks_for_more_than_was_agreed_is_left_out_at_once() {
    let mut world = World::new(2);
    world.sellers.get_mut(&id(1)).unwrap().feerate_changed(10);
    let opening = together(&mut world, 2);
    world.run();

    assert_eq!(asked(&world), Some(opening));
    let members = world.buyer.take_opening(opening);
    let dear = members.iter().find(|(_, it, _)| *it == id(1)).unwrap();
    assert_eq!(dear.2, Some(LeftOut::First(Amount::from_sat(4_430))));
}

#[test]
fn every_record_of_a_common_funding_stands_before_anything_is_said_of_it() {
    let mut world = World::new(3);
    let opening = together(&mut world, 3);
    world.run();
    let members = world.buyer.take_opening(opening);
    let channels: Vec<_> = members.iter().map(|(channel, ..)| *channel).collect();
    let tx = funding_of(&mut world, &channels);
    world
        .buyer
        .funded_together(&channels, &tx, Amount::from_sat(241), world.now)
        .unwrap();

    let outputs: Vec<_> = std::iter::from_fn(|| world.buyer.poll_output()).collect();
    let is_record = |output: &Output| matches!(output, Output::Persist(_));
    let records = outputs.iter().take_while(|it| is_record(it)).count();
    assert_eq!(records, 3);
    assert!(!outputs.iter().skip(records).any(is_record));
    let told = outputs.iter().filter(|it| {
        matches!(
            it,
            Output::Send {
                message: Message::Funding(_),
                ..
            } | Output::Broadcast(_)
        )
    });
    assert!(told.count() >= 1);
}

#[test]
fn a_crash_at_any_record_leaves_no_funding_or_one_that_every_channel_knows() {
    for survive in 0..=3 {
        let mut world = World::new(3);
        let opening = together(&mut world, 3);
        world.run();
        let members = world.buyer.take_opening(opening);
        let channels: Vec<_> = members.iter().map(|(channel, ..)| *channel).collect();
        let tx = funding_of(&mut world, &channels);
        let fee = Amount::from_sat(242);
        world
            .buyer
            .funded_together(&channels, &tx, fee, world.now)
            .unwrap();
        let mut records = std::mem::take(&mut world.records);
        let more: VecDeque<_> = std::iter::from_fn(|| world.buyer.poll_output())
            .filter_map(|output| match output {
                Output::Persist(record) => Some(record),
                _ => None,
            })
            .take(survive)
            .collect();
        records.extend(more);

        let (again, shared) = restarted(records, fee);

        let funded = again.payers.values().filter(|it| it.funding.is_some());
        let funded: Vec<_> = funded.map(|it| it.fees.to_sat()).collect();
        match survive {
            0 => assert!(funded.is_empty() && shared.is_empty()),
            _ => {
                assert_eq!(funded.len(), 3, "after {survive} records");
                assert_eq!(funded.iter().sum::<u64>(), 242);
            }
        }
    }
}

/// A buyer's room made from records, as a node does it at its start, and the common fundings in them.
fn restarted(records: Vec<Record>, fee: Amount) -> (Payments, Vec<Transaction>) {
    let mut again = room(BUYER);
    let mut by_channel: Vec<(ProposalId, Vec<Record>)> = Vec::new();
    let mut shared = Vec::new();
    for record in records {
        if let Fact::Funded { tx, .. } = &record.fact {
            shared.push((**tx).clone());
        }
        match by_channel.iter_mut().find(|(id, _)| *id == record.proposal) {
            Some((_, records)) => records.push(record),
            None => by_channel.push((record.proposal, vec![record])),
        }
    }
    for (_, records) in by_channel {
        again.restore(records, epoch()).unwrap();
    }
    again.complete(&shared, |_| Some(fee), epoch());
    (again, shared)
}

#[test]
fn strangers_may_propose_sixteen_channels_at_once_and_one_every_four_minutes() {
    let mut welcome = opening::Welcome::default();
    let t0 = epoch();
    let taken =
        |welcome: &mut opening::Welcome, now| (0..100).filter(|_| welcome.take(now)).count();

    assert_eq!(taken(&mut welcome, t0), 16);
    assert_eq!(taken(&mut welcome, t0 + Duration::from_secs(239)), 0);
    assert_eq!(taken(&mut welcome, t0 + Duration::from_secs(240)), 1);
    assert_eq!(
        taken(&mut welcome, t0 + Duration::from_secs(3 * 240 + 200)),
        2
    );
    assert_eq!(taken(&mut welcome, t0 + Duration::from_secs(1_000_000)), 16);
}
