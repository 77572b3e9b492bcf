//! Both machines over whole lives on a real chain: journals on disk, the real watcher, the real
//! wallet, and books that add up at the end.

use std::time::{Duration, Instant};

use bitcoin::secp256k1::Keypair;
use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxOut};
use bitmesh_wallet::chain::bitcoind::Bitcoind;
use bitmesh_wallet::chain::watch::{WatchEvent, Watcher};
use bitmesh_wallet::chain::{ChainSource, Start};
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::Message;
use bitmesh_wallet::channel::params::{Contract, Parties, PayeePolicy, PayerPolicy};
use bitmesh_wallet::channel::payee::{self, Acceptance, Payee, Sighting};
use bitmesh_wallet::channel::payer::{self, Payer, Proposal};
use bitmesh_wallet::channel::record::{End, Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::channel::split::SPLIT_VBYTES;
use bitmesh_wallet::channel::{PartyId, tx};
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::ledger::{Ledger, Totals};
use bitmesh_wallet::store::Journal;

use crate::bitcoind::{NOW, Purse, Regtest, watch};

const CAPACITY: Amount = Amount::from_sat(100_000);
/// What the payer begins with.
const COINBASE: Amount = Amount::from_sat(5_000_000_000);
const ONE: FeeRate = FeeRate::from_sat_per_vb_u32(1);

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

#[expect(
    clippy::disallowed_methods,
    reason = "any instant will do as the beginning of time"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn parties() -> Parties {
    Parties {
        payer: PartyId::from_bytes([1; 32]),
        payee: PartyId::from_bytes([2; 32]),
    }
}

/// What either side has beside its machine.
struct Shell {
    purse: Purse,
    journal: Option<Journal>,
    records: Vec<Record>,
    source: Bitcoind,
    watcher: Watcher,
    outbox: Vec<Message>,
}

impl Shell {
    fn new(node: &Regtest, purse: Purse) -> Self {
        let (journal, _, _) = Journal::open(purse.store().join("journal")).unwrap();
        let source = node.source(Start::default());
        let watcher = Watcher::new(source.tip().unwrap().block);
        let source = node.source(watcher.start());
        let (records, outbox) = (Vec::new(), Vec::new());
        Self {
            purse,
            journal: Some(journal),
            records,
            source,
            watcher,
            outbox,
        }
    }

    fn persist(&mut self, record: Record) {
        self.journal
            .as_mut()
            .unwrap()
            .append(JOURNAL_KIND, &record.to_bytes())
            .unwrap();
        self.records.push(record);
    }

    /// The watcher only knows what it is told: what is in the mempool already is told again.
    fn watch(&mut self, outpoint: OutPoint, script: ScriptBuf, funding: &Transaction) {
        self.watcher.watch(outpoint, script, funding).unwrap();
        self.source
            .look_again(&[outpoint.txid], &[outpoint])
            .unwrap();
    }

    fn hear(&mut self) -> Vec<WatchEvent> {
        let mut told: Vec<_> = std::iter::from_fn(|| self.watcher.poll_event()).collect();
        told.extend(watch(&mut self.source, &mut self.watcher));
        told
    }

    /// Kills the process: only the disk remains.
    fn restart(&mut self, node: &Regtest) -> Vec<Record> {
        self.outbox.clear();
        self.journal = None;
        let (journal, entries, report) = Journal::open(self.purse.store().join("journal")).unwrap();
        assert_eq!(report.cut, 0);
        self.journal = Some(journal);
        self.records = entries
            .iter()
            .filter(|(kind, _)| *kind == JOURNAL_KIND)
            .map(|(_, bytes)| Record::from_bytes(bytes).unwrap())
            .collect();
        self.watcher = Watcher::restore(&self.watcher.snapshot()).unwrap();
        self.source = node.source(self.watcher.start());
        self.records.clone()
    }

    fn books(&self) -> Totals {
        let totals = Ledger::from_records(&self.records).unwrap().totals();
        assert!(totals.adds_up(), "{totals:?}");
        totals
    }
}

struct World {
    node: Regtest,
    now: Instant,
    payer: Payer,
    payer_key: Keypair,
    payers: Shell,
    payee: Payee,
    payee_key: Keypair,
    payees: Shell,
    events: Vec<payee::Event>,
    /// The output of the channel that is to follow.
    next: Option<TxOut>,
}

impl World {
    fn start() -> Self {
        let node = Regtest::start();
        let purse = Purse::rich(&node, 1, 1);
        let payee_purse = Purse::new(&node, 2);
        let payer_key = purse.keys.channel_keypair(Role::Payer, 0).unwrap();
        let payee_key = payee_purse.keys.channel_keypair(Role::Payee, 0).unwrap();
        let mut payers = Shell::new(&node, purse);
        let payees = Shell::new(&node, payee_purse);
        let now = epoch();
        let tip = BlockHeight::new(node.height());
        let proposal = Proposal {
            nonce: [3; 16],
            network: Network::Regtest,
            parties: parties(),
            capacity: CAPACITY,
            expiry: tip.checked_add(1_008).unwrap(),
            change_script: payers.purse.wallet.change_script().unwrap(),
            max_min_first: sat(1_000),
            key_index: 0,
            from: None,
        };
        let mut payer = Payer::propose(proposal, payer_key, PayerPolicy::default(), now);
        let acceptance = Acceptance {
            network: Network::Regtest,
            parties: parties(),
            min_first: tx::min_first_payment(ONE).unwrap(),
            tip,
            key_index: 0,
            from: None,
        };
        let open = payer.open().clone();
        let policy = PayeePolicy::default();
        let payee = Payee::accept(open, &acceptance, payee_key, policy).unwrap();
        payer.handle(payer::Input::TipChanged(tip), now).unwrap();
        let events = Vec::new();
        let mut world = Self {
            node,
            now,
            payer,
            payer_key,
            payers,
            payee,
            payee_key,
            payees,
            events,
            next: None,
        };
        world.run();
        world
    }

    /// Performs and delivers until nothing is left to do.
    fn run(&mut self) {
        loop {
            let mut is_quiet = true;
            while let Some(output) = self.payer.poll_output() {
                is_quiet = false;
                self.perform_payer(output);
            }
            while let Some(output) = self.payee.poll_output() {
                is_quiet = false;
                self.perform_payee(output);
            }
            for message in std::mem::take(&mut self.payers.outbox) {
                let message = Message::from_bytes(&message.to_bytes()).unwrap();
                self.payee
                    .handle(payee::Input::Received(message), self.now)
                    .unwrap();
            }
            for message in std::mem::take(&mut self.payees.outbox) {
                let message = Message::from_bytes(&message.to_bytes()).unwrap();
                self.payer
                    .handle(payer::Input::Received(message), self.now)
                    .unwrap();
            }
            is_quiet &= !self.hear_chain();
            if is_quiet {
                return;
            }
        }
    }

    fn perform_payer(&mut self, output: payer::Output) {
        match output {
            payer::Output::Persist(record) => self.payers.persist(record),
            payer::Output::Send(message) => self.payers.outbox.push(message),
            payer::Output::Fund { script, amount } => {
                self.payers.purse.sync();
                let (tx, preview) = self.payers.purse.wallet.fund(&script, amount, ONE).unwrap();
                let (tx, fee) = (Box::new(tx), preview.fee);
                self.payer
                    .handle(payer::Input::FundingSigned { tx, fee }, self.now)
                    .unwrap();
            }
            payer::Output::Broadcast(tx) => {
                self.payers.purse.wallet.record(&tx, NOW).unwrap();
                let _ = self.payers.source.broadcast(&tx);
            }
            payer::Output::Watch {
                outpoint,
                script,
                funding,
            } => {
                self.payers.watch(outpoint, script, &funding);
            }
            payer::Output::Notify(payer::Event::RefundDue) => {
                let input = payer::Input::RefundAsked { feerate: ONE };
                self.payer.handle(input, self.now).unwrap();
            }
            payer::Output::Notify(payer::Event::CloseWanted) => self.close_together(),
            payer::Output::Notify(_) => {}
        }
    }

    fn perform_payee(&mut self, output: payee::Output) {
        match output {
            payee::Output::Persist(record) => self.payees.persist(record),
            payee::Output::Send(message) => self.payees.outbox.push(message),
            payee::Output::Broadcast(tx) => {
                let _ = self.payees.source.broadcast(&tx);
            }
            payee::Output::Watch {
                outpoint,
                script,
                funding,
            } => {
                self.payees.watch(outpoint, script, &funding);
            }
            payee::Output::Notify(event) => {
                self.events.push(event);
                match event {
                    payee::Event::ZeroConfDue { want } => {
                        let input = payee::Input::ZeroConfGranted { limit: want };
                        self.payee.handle(input, self.now).unwrap();
                    }
                    payee::Event::CloseDue { .. } => self.close(),
                    payee::Event::SplitDue => {
                        let input = payee::Input::SplitChosen {
                            payout: self.payees.purse.address().script_pubkey(),
                            feerate: ONE,
                            seed: [2; 32],
                        };
                        self.payee.handle(input, self.now).unwrap();
                    }
                    payee::Event::RolloverWanted { .. } => {
                        let input = payee::Input::RolloverChosen {
                            payout: self.payees.purse.address().script_pubkey(),
                            feerate: ONE,
                            seed: [2; 32],
                            next: self.next.clone().unwrap(),
                        };
                        self.payee.handle(input, self.now).unwrap();
                    }
                    _ => {}
                }
            }
        }
    }

    fn close(&mut self) {
        let payout = self.payees.purse.address().script_pubkey();
        let input = payee::Input::CloseAsked {
            payout,
            feerate: ONE,
        };
        self.payee.handle(input, self.now).unwrap();
    }

    fn close_together(&mut self) {
        let input = payer::Input::TogetherAsked {
            feerate: ONE,
            seed: [1; 32],
        };
        self.payer.handle(input, self.now).unwrap();
    }

    fn hear_chain(&mut self) -> bool {
        let payers = self.payers.hear();
        let payees = self.payees.hear();
        let is_news = !payers.is_empty() || !payees.is_empty();
        for event in payers {
            let input = match event {
                WatchEvent::Seen { .. } => payer::Input::FundingDepth { confirmations: 0 },
                WatchEvent::Depth { confirmations, .. } => {
                    payer::Input::FundingDepth { confirmations }
                }
                WatchEvent::Conflicted { confirmations, .. } => {
                    payer::Input::FundingConflicted { confirmations }
                }
                WatchEvent::Dropped { .. } => payer::Input::FundingDropped,
                WatchEvent::Spent {
                    transaction,
                    height,
                    ..
                } => payer::Input::Spent {
                    tx: Box::new((*transaction).clone()),
                    height: height.map(BlockHeight::new),
                },
                WatchEvent::Unspent { .. } => payer::Input::Unspent,
            };
            self.payer.handle(input, self.now).unwrap();
        }
        for event in payees {
            let input = match event {
                WatchEvent::Seen { .. } => payee::Input::FundingSeen(Sighting {
                    has_confirmed_inputs: true,
                    feerate: ONE,
                    wanted_feerate: ONE,
                }),
                WatchEvent::Depth { confirmations, .. } => {
                    payee::Input::FundingConfirmed { confirmations }
                }
                WatchEvent::Conflicted { confirmations, .. } => {
                    payee::Input::FundingConflicted { confirmations }
                }
                WatchEvent::Dropped { .. } => payee::Input::FundingDropped,
                WatchEvent::Spent {
                    transaction,
                    height,
                    ..
                } => payee::Input::Spent {
                    tx: Box::new((*transaction).clone()),
                    height: height.map(BlockHeight::new),
                },
                WatchEvent::Unspent { .. } => payee::Input::Unspent,
            };
            self.payee.handle(input, self.now).unwrap();
        }
        is_news
    }

    fn mine(&mut self, blocks: u32) {
        self.node.mine_away(blocks);
        self.hear_chain();
        let tip = BlockHeight::new(self.node.height());
        self.payer
            .handle(payer::Input::TipChanged(tip), self.now)
            .unwrap();
        self.payee
            .handle(payee::Input::TipChanged(tip), self.now)
            .unwrap();
        self.run();
    }

    fn sleep(&mut self, wait: Duration) {
        self.now += wait;
        self.payer.handle_timeout(self.now);
        self.payee.handle_timeout(self.now);
        self.run();
    }

    fn pay(&mut self, total: u64) {
        let input = payer::Input::Pay { total: sat(total) };
        self.payer.handle(input, self.now).unwrap();
        self.run();
    }

    fn restart_payer(&mut self) {
        let records = self.payers.restart(&self.node);
        let policy = PayerPolicy::default();
        self.payer = Payer::restore(records, self.payer_key, policy, self.now).unwrap();
        let tip = BlockHeight::new(self.node.height());
        self.payer
            .handle(payer::Input::TipChanged(tip), self.now)
            .unwrap();
        self.run();
    }

    fn restart_payee(&mut self) {
        let records = self.payees.restart(&self.node);
        let policy = PayeePolicy::default();
        self.payee = Payee::restore(records, self.payee_key, policy).unwrap();
        let tip = BlockHeight::new(self.node.height());
        self.payee
            .handle(payee::Input::TipChanged(tip), self.now)
            .unwrap();
        self.run();
    }
}

#[test]
fn a_whole_life_from_the_proposal_to_the_payees_coins_adds_up_to_the_sat() {
    let mut world = World::start();
    world.pay(1);
    assert_eq!(world.payee.held(), sat(740));
    assert_eq!(world.payee.credited(), Amount::ZERO);
    world.sleep(Duration::from_secs(10));
    assert_eq!(world.payee.credited(), sat(740));

    world.mine(1);
    world.pay(30_000);
    world.restart_payer();
    world.restart_payee();
    assert_eq!(world.payee.held(), sat(30_000));
    assert_eq!(world.payee.credited(), sat(30_000));
    world.mine(2);
    // A later session on the same channel.
    world.pay(61_234);
    world.restart_payee();
    assert_eq!(world.payee.credited(), sat(61_234));
    assert_eq!(world.payer.stage(), payer::Stage::Open);
    assert_eq!(world.payee.stage(), payee::Stage::Open);

    world.close();
    world.run();
    assert_eq!(world.payer.stage(), payer::Stage::Ending);
    world.restart_payee();
    world.mine(6);

    let settlement = world.payee.settlement().unwrap();
    assert_eq!(world.payer.settlement(), Some(settlement));
    assert_eq!(settlement.paid(), sat(61_234));
    assert_eq!(settlement.fee, sat(tx::CLOSE_VBYTES));
    let (payer, payee) = (world.payers.books(), world.payees.books());
    assert_eq!(payer.paid, sat(61_234));
    assert_eq!(payer.returned, CAPACITY - sat(61_234));
    assert_eq!(payee.received + payee.close_fees, payer.paid);
    world.payers.purse.sync();
    world.payees.purse.sync();
    assert_eq!(world.payees.purse.wallet.balance().total(), payee.received);
    assert_eq!(
        world.payers.purse.wallet.balance().total(),
        COINBASE - payer.paid - payer.funding_fees
    );
}

#[test]
fn both_close_together_by_a_transaction_that_looks_like_any_other() {
    let mut world = World::start();
    world.mine(3);
    world.pay(61_234);
    let outpoint = world.payee.tranche().unwrap().outpoint();

    world.close_together();
    world.run();

    let close = world
        .payees
        .records
        .iter()
        .find_map(|record| match &record.fact {
            Fact::Closing { tx } => Some((**tx).clone()),
            _ => None,
        });
    let close = close.expect("both have signed");
    assert_eq!(close.input[0].previous_output, outpoint);
    let [signature] = &close.input[0].witness.to_vec()[..] else {
        panic!("{close:?}")
    };
    assert_eq!(signature.len(), 64);
    assert_eq!(close.vsize() as u64, SPLIT_VBYTES);
    // The node has taken it: it is in its mempool.
    assert!(world.node.is_in_mempool(&close));
    world.mine(6);
    let settlement = world.payee.settlement().unwrap();
    assert_eq!(world.payer.settlement(), Some(settlement));
    assert_eq!(settlement.end, End::Together);
    assert_eq!(settlement.paid(), sat(61_234));
    assert_eq!(settlement.fee, sat(SPLIT_VBYTES));
    let (payer, payee) = (world.payers.books(), world.payees.books());
    assert_eq!(payer.returned, sat(100_000 - 61_234));
    assert_eq!(payee.received, sat(61_234 - SPLIT_VBYTES));
}

/// What both agree on for a channel of `capacity` that follows the world's.
fn agree_on_next(world: &mut World, capacity: Amount) -> (Contract, Keypair) {
    let keys = &world.payers.purse.keys;
    let key = keys.channel_keypair(Role::Payer, 1).unwrap();
    let tip = BlockHeight::new(world.node.height());
    let from = Some(world.payer.proposal());
    let proposal = Proposal {
        nonce: [4; 16],
        network: Network::Regtest,
        parties: parties(),
        capacity,
        expiry: tip.checked_add(1_008).unwrap(),
        change_script: world.payers.purse.wallet.change_script().unwrap(),
        max_min_first: sat(1_000),
        key_index: 1,
        from,
    };
    let payer = Payer::propose(proposal, key, PayerPolicy::default(), world.now);
    let acceptance = Acceptance {
        network: Network::Regtest,
        parties: parties(),
        min_first: tx::min_first_payment(ONE).unwrap(),
        tip,
        key_index: 0,
        from,
    };
    let (open, policy) = (payer.open().clone(), PayeePolicy::default());
    let payee = Payee::accept(open, &acceptance, world.payee_key, policy).unwrap();
    (payee.contract().clone(), key)
}

/// Carries the world's channel over into one of `capacity`, and returns the transaction and the keys.
fn roll_over(world: &mut World, capacity: Amount) -> (Transaction, Contract, Keypair) {
    let (contract, key) = agree_on_next(world, capacity);
    world.next = Some(contract.output());
    let input = payer::Input::RolloverAsked {
        feerate: ONE,
        seed: [1; 32],
        next: Box::new(contract.clone()),
    };
    world.payer.handle(input, world.now).unwrap();
    world.run();
    let records = world.payees.records.iter();
    let mut rolled = records.filter_map(|record| match &record.fact {
        Fact::Closing { tx } => Some((**tx).clone()),
        _ => None,
    });
    let tx = rolled.next().expect("both have signed");
    (tx, contract, key)
}

#[test]
fn a_rollover_is_taken_by_a_node_and_the_next_channel_can_be_closed_on_top_of_it() {
    let mut world = World::start();
    world.mine(3);
    world.pay(61_234);
    let rest = sat(100_000 - 61_234);

    let (tx, contract, key) = roll_over(&mut world, rest);

    assert_eq!(tx.vsize() as u64, SPLIT_VBYTES);
    assert!(world.node.is_in_mempool(&tx));
    // The payee takes what is paid on the next channel before any block has it, as it may at any time.
    let next = contract.fund(&tx, 0).unwrap();
    let voucher = next.sign(&key, sat(5_000)).unwrap();
    let payout = world.payees.purse.address().script_pubkey();
    let close = tx::commitment(&next, &voucher, &world.payee_key, &payout, ONE).unwrap();
    world.payees.source.broadcast(&close).unwrap();
    assert!(world.node.is_in_mempool(&close));
    world.mine(6);
    let settlement = world.payee.settlement().unwrap();
    assert_eq!(world.payer.settlement(), Some(settlement));
    assert_eq!(settlement.returned, rest);
    assert_eq!(settlement.paid(), sat(61_234));
    assert_eq!(settlement.fee, sat(SPLIT_VBYTES));
    // The next channel's own refund is good, too, once that has expired.
    let refund = tx::refund(&next, &key, &payout, ONE).unwrap();
    assert_eq!(
        refund.input[0].previous_output,
        close.input[0].previous_output
    );
}

#[test]
fn a_rollover_into_less_returns_the_rest_and_has_its_measured_size() {
    let mut world = World::start();
    world.mine(3);
    world.pay(61_234);
    world.payers.purse.sync();
    let before = world.payers.purse.wallet.balance().total();

    let (tx, ..) = roll_over(&mut world, sat(20_000));

    assert_eq!(tx.vsize() as u64, tx::ROLLOVER_CHANGE_VBYTES);
    assert!(world.node.is_in_mempool(&tx));
    assert_eq!(tx.output[1].value, sat(100_000 - 61_234 - 20_000));
    world.mine(6);
    world.payers.purse.sync();
    let after = world.payers.purse.wallet.balance().total();
    assert_eq!(after - before, tx.output[1].value);
}

#[test]
fn the_words_find_a_channel_that_another_was_carried_over_into() {
    let mut world = World::start();
    world.mine(3);
    world.pay(61_234);
    let rest = sat(100_000 - 61_234);
    let payee_key = world.payer.contract().unwrap().accept().payee_key;
    let (tx, contract, key) = roll_over(&mut world, rest);
    world.mine(1);
    world.payers.purse.sync();

    let (height, term) = (world.node.height(), 1_008);
    let wallet = &mut world.payers.purse.wallet;
    let found = wallet.lost_next(&tx, payee_key, height, 0, term).unwrap();

    assert_eq!(found.outpoint(), contract.fund(&tx, 0).unwrap().outpoint());
    assert_eq!(found.capacity(), rest);
    assert_eq!(found.payer_key, key.x_only_public_key().0);
    assert_eq!((found.key_index, found.payee_key), (1, payee_key));
    assert_eq!(found.expiry, contract.open().expiry);
    // By another payee's key nothing is found, and nothing in a transaction that carries nothing over.
    let stranger = key.x_only_public_key().0;
    assert_eq!(wallet.lost_next(&tx, stranger, height, 0, term), None);
    let mut plain = tx;
    plain.output.remove(0);
    assert_eq!(wallet.lost_next(&plain, payee_key, height, 0, term), None);
}

#[test]
fn the_payee_closes_by_itself_a_day_before_the_expiry_when_the_payer_vanishes() {
    let mut world = World::start();
    world.mine(3);
    world.pay(50_000);
    world.mine(1_008 - 3 - 145);
    assert_eq!(world.payee.stage(), payee::Stage::Open);

    world.mine(1);
    assert_eq!(world.payee.stage(), payee::Stage::Closing);
    world.mine(6);

    assert_eq!(world.payee.settlement().unwrap().end, End::Commitment);
    assert_eq!(
        world.payees.books().received,
        sat(50_000 - tx::CLOSE_VBYTES)
    );
    assert_eq!(world.payers.books().paid, sat(50_000));
}

#[test]
fn the_payer_has_everything_back_after_the_expiry_when_the_payee_vanishes() {
    let mut world = World::start();
    world.mine(3);
    world.pay(50_000);
    // From here on the payee hears nothing and says nothing.
    world.node.mine_away(1_008 - 3 - 1);
    let alone = |world: &mut World| {
        for event in world.payers.hear() {
            if let WatchEvent::Spent {
                transaction,
                height,
                ..
            } = event
            {
                let (tx, height) = (
                    Box::new((*transaction).clone()),
                    height.map(BlockHeight::new),
                );
                world
                    .payer
                    .handle(payer::Input::Spent { tx, height }, world.now)
                    .unwrap();
            }
        }
        let tip = BlockHeight::new(world.node.height());
        world
            .payer
            .handle(payer::Input::TipChanged(tip), world.now)
            .unwrap();
        while let Some(output) = world.payer.poll_output() {
            world.perform_payer(output);
        }
    };
    alone(&mut world);
    assert_eq!(world.payer.stage(), payer::Stage::Open);
    world.node.mine_away(1);
    alone(&mut world);
    assert_eq!(world.payer.stage(), payer::Stage::Ending);
    world.node.mine_away(6);
    alone(&mut world);

    let books = world.payers.books();
    assert_eq!((books.paid, books.locked), (Amount::ZERO, Amount::ZERO));
    assert_eq!(books.refunded + books.refund_fees, CAPACITY);
    let fee = books.refund_fees.to_sat();
    assert!(
        (tx::REFUND_VBYTES - 1..=tx::REFUND_VBYTES).contains(&fee),
        "{fee}"
    );
    world.payers.purse.sync();
    assert_eq!(
        world.payers.purse.wallet.balance().total(),
        COINBASE - books.refund_fees - books.funding_fees
    );
}

#[test]
fn double_spent_funding_freezes_the_payee_at_what_it_granted() {
    let mut world = World::start();
    world.pay(1);
    world.sleep(Duration::from_secs(10));
    assert_eq!(world.payee.credited(), sat(740));
    let funding = world.payee.tranche().unwrap().outpoint().txid;
    let rate = FeeRate::from_sat_per_vb_u32(10);
    let theft = world
        .payers
        .purse
        .wallet
        .cancel(funding, rate, NOW)
        .unwrap();
    world.payers.source.broadcast(&theft).unwrap();

    world.run();

    assert_eq!(world.payee.stage(), payee::Stage::Conflicted);
    assert_eq!(world.payee.limit(), Amount::ZERO);
    assert_eq!(world.payer.stage(), payer::Stage::Conflicted);
    let tail = &world.events[world.events.len() - 3..];
    assert_eq!(
        tail,
        [
            payee::Event::ZeroConfLost,
            payee::Event::FundingConflicted,
            payee::Event::LimitChanged {
                limit: Amount::ZERO
            },
        ]
    );
    world.mine(6);
    assert_eq!(world.payee.stage(), payee::Stage::Abandoned);
    assert_eq!(world.payees.books().lost, sat(740));
    assert_eq!(world.payer.stage(), payer::Stage::Abandoned);
}
