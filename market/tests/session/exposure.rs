//! One honest machine against a liar that says and does anything it has a signature for.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bitmesh_market::envelope::Signed;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::quote::Mode;
use bitmesh_market::session::message::{Body, Extension, Final, SignedMessage, Standing};
use bitmesh_market::session::{
    CloseReason, Event, Fault, Message, Output, Patience, PauseReason, PayFailure, Reading,
    Receipt, buyer, seller,
};
use bitmesh_market::units::{Bytes, Msat};
use proptest::prelude::*;

use crate::world::{
    Deal, Direction, NETWORK, Node, W, World, buyer_key, check_buyer, check_seller, epoch,
    seller_key, unix,
};

fn reading(up: u64, down: u64) -> Reading {
    Reading::new(Bytes::new(up), Bytes::new(down))
}

/// A seller with a buyer that is not to be trusted.
struct Robbed {
    lease: Lease,
    node: Node<seller::Seller>,
    now: Instant,
    /// What the buyer has signed last, true or not.
    last: Receipt,
    sent: Vec<Body>,
}

impl Robbed {
    fn new(deal: Deal) -> Self {
        let (lease, now) = (deal.lease(), epoch());
        let machine = seller::Seller::open(lease.clone(), Patience::default(), unix(), now);
        let mut node = Node::new(machine);
        node.disk.vouchered = lease.carried();
        Self {
            lease,
            node,
            now,
            last: Receipt {
                seq: 0,
                reading: Reading::ZERO,
                billed: Msat::ZERO,
                paid: Msat::ZERO,
            },
            sent: Vec::new(),
        }
    }

    fn tell(&mut self, input: seller::Input) {
        let mut inbox = VecDeque::from([input]);
        while let Some(input) = inbox.pop_front() {
            let machine = self.node.machine.as_mut().unwrap();
            machine.handle(input, self.now);
            self.drain(&mut inbox);
        }
    }

    fn drain(&mut self, inbox: &mut VecDeque<seller::Input>) {
        while let Some(output) = self.node.machine.as_mut().unwrap().poll_output() {
            match output {
                Output::Start(reading) => self.node.meter.start(reading),
                Output::SetLimit(limit) => self.node.meter.limit = limit,
                Output::SetMark(mark) => self.node.meter.mark = Some(mark),
                Output::Stop => {
                    self.node.meter.attached = false;
                    inbox.push_back(seller::Input::Stopped(self.node.meter.reading));
                }
                Output::Pay { .. } => panic!("a seller does not pay"),
                Output::Send(message) => self.sent.push(message.body),
                Output::Persist(record) => self.node.disk.write(&record),
                Output::Notify(event) => self.node.events.push(event),
            }
        }
    }

    fn hear(&mut self, body: Body) {
        let lease = self.lease.id();
        let message = Signed::seal(Message { lease, body }, &buyer_key(), NETWORK);
        self.tell(seller::Input::Received(message));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let machine = self.node.machine.as_mut().unwrap();
        while machine.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            machine.handle_timeout(self.now);
            let mut inbox = VecDeque::new();
            while let Some(output) = machine.poll_output() {
                match output {
                    Output::Stop => {
                        self.node.meter.attached = false;
                        inbox.push_back(seller::Input::Stopped(self.node.meter.reading));
                    }
                    Output::Persist(record) => self.node.disk.write(&record),
                    Output::Notify(event) => self.node.events.push(event),
                    Output::Send(message) => self.sent.push(message.body),
                    Output::SetLimit(limit) => self.node.meter.limit = limit,
                    Output::SetMark(mark) => self.node.meter.mark = Some(mark),
                    Output::Start(_) | Output::Pay { .. } => panic!("not for want of time"),
                }
            }
        }
    }

    /// The seller's egress moves as much as its meter allows.
    fn take(&mut self, direction: Direction, n: u64) {
        self.node.truth += self.node.meter.take(direction, n);
        while let Some(reading) = self.node.meter.reached() {
            self.tell(seller::Input::Metered(reading));
        }
    }

    fn attach(&mut self) {
        self.tell(seller::Input::Attached);
        self.hear(Body::Attach(self.last));
    }

    fn detach(&mut self) {
        self.node.meter.attached = false;
        self.tell(seller::Input::Metered(self.node.meter.reading));
        self.tell(seller::Input::Detached);
    }

    fn pay(&mut self, more: u64) {
        let total = self
            .node
            .disk
            .vouchered
            .checked_add(Msat::from_msat(more))
            .unwrap();
        self.node.disk.vouchered = total;
        self.tell(seller::Input::Paid { total });
    }

    fn receipt(&mut self, seq: i64, up: u64, down: u64, honest: bool) -> Receipt {
        let seq = self.last.seq.saturating_add_signed(seq);
        let reading = reading(
            self.last.reading.up.get() + up,
            self.last.reading.down.get() + down,
        );
        let cost = self.lease.price().cost_of(reading.total()).unwrap();
        let receipt = Receipt {
            seq,
            reading,
            billed: if honest { cost } else { Msat::ZERO },
            paid: Msat::from_msat(u64::MAX),
        };
        if honest && seq > self.last.seq {
            self.last = receipt;
        }
        receipt
    }

    fn restart(&mut self) {
        let records = self.node.disk.read();
        let lease = self.lease.clone();
        let machine =
            seller::Seller::restore(lease, records, Patience::default(), unix(), self.now).unwrap();
        self.node.crash();
        self.node.machine = Some(machine);
        let total = self.node.disk.vouchered;
        self.tell(seller::Input::Paid { total });
    }

    fn faults(&self, fault: Fault) -> usize {
        let is_it = |event: &&Event| **event == Event::Ignored(fault);
        self.node.events.iter().filter(is_it).count()
    }
}

/// What a buyer that wants to be carried for nothing may try.
#[derive(Clone, Debug)]
enum Trick {
    Take {
        n: u64,
        up: bool,
    },
    Sign {
        seq: i64,
        up: u64,
        down: u64,
        honest: bool,
    },
    Attach {
        seq: i64,
        up: u64,
        down: u64,
        honest: bool,
    },
    Close {
        seq: i64,
        down: u64,
        honest: bool,
    },
    Pay(u64),
    Defer(u64),
    Extend {
        seq: u32,
        quota: u64,
    },
    Reattach,
    Detach,
    Reflect(u8),
    Pass(u64),
    SellerRestarts,
}

fn trick() -> impl Strategy<Value = Trick> {
    let bytes = || prop_oneof![Just(0_u64), 0..W / 4, 0..4 * W];
    prop_oneof![
        8 => (0..3 * W, any::<bool>()).prop_map(|(n, up)| Trick::Take { n, up }),
        4 => (-2_i64..4, bytes(), bytes(), prop::bool::weighted(0.9))
            .prop_map(|(seq, up, down, honest)| Trick::Sign { seq, up, down, honest }),
        2 => (-2_i64..4, bytes(), bytes(), prop::bool::weighted(0.9))
            .prop_map(|(seq, up, down, honest)| Trick::Attach { seq, up, down, honest }),
        1 => (-2_i64..4, bytes(), any::<bool>())
            .prop_map(|(seq, down, honest)| Trick::Close { seq, down, honest }),
        4 => (0_u64..60_000).prop_map(Trick::Pay),
        1 => (0_u64..10_000_000).prop_map(Trick::Defer),
        1 => (0_u32..4, 0..20 * W).prop_map(|(seq, quota)| Trick::Extend { seq, quota }),
        3 => Just(Trick::Reattach),
        1 => Just(Trick::Detach),
        1 => any::<u8>().prop_map(Trick::Reflect),
        2 => (0_u64..20_000).prop_map(Trick::Pass),
        1 => Just(Trick::SellerRestarts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_buyer_is_carried_further_than_a_window_beyond_what_it_paid_or_signed(
        is_prepaid in any::<bool>(),
        tricks in proptest::collection::vec(trick(), 1..80),
    ) {
        let deal = Deal {
            mode: if is_prepaid { Mode::Prepaid } else { Mode::Postpaid },
            quota: 8 * W,
            max_quota: 16 * W,
            ..Deal::default()
        };
        let mut robbed = Robbed::new(deal);
        robbed.attach();
        for trick in tricks {
            match trick {
                Trick::Take { n, up: true } => robbed.take(Direction::Up, n),
                Trick::Take { n, up: false } => robbed.take(Direction::Down, n),
                Trick::Sign { seq, up, down, honest } => {
                    let receipt = robbed.receipt(seq, up, down, honest);
                    robbed.hear(Body::Receipt(receipt));
                }
                Trick::Attach { seq, up, down, honest } => {
                    let receipt = robbed.receipt(seq, up, down, honest);
                    robbed.hear(Body::Attach(receipt));
                }
                Trick::Close { seq, down, honest } => {
                    let receipt = Some(robbed.receipt(seq, 0, down, honest));
                    let reason = CloseReason::Completed;
                    robbed.hear(Body::Close(Final { reason, receipt }));
                }
                Trick::Pay(more) => robbed.pay(more),
                Trick::Defer(total) => {
                    robbed.tell(seller::Input::Deferred { total: Msat::from_msat(total) });
                }
                Trick::Extend { seq, quota } => {
                    let quota = Bytes::new(quota);
                    robbed.hear(Body::Extend(Extension { seq, quota }));
                }
                Trick::Reattach => {
                    robbed.detach();
                    robbed.attach();
                }
                Trick::Detach => robbed.detach(),
                Trick::Reflect(which) => robbed.hear(sellers_words(which, robbed.last)),
                Trick::Pass(ms) => robbed.pass(Duration::from_millis(ms)),
                Trick::SellerRestarts => robbed.restart(),
            }
            check_seller(&robbed.lease, &robbed.node);
            let machine = robbed.node.machine.as_ref().unwrap();
            prop_assert!(machine.drift() <= robbed.lease.window());
            prop_assert!(machine.quota() <= Bytes::new(deal.max_quota));
        }
    }
}

/// Words that only a seller says.
fn sellers_words(which: u8, receipt: Receipt) -> Body {
    let extension = Extension {
        seq: 1,
        quota: Bytes::new(16 * W),
    };
    let end = Final {
        reason: CloseReason::Completed,
        receipt: Some(receipt),
    };
    match which % 8 {
        0 => Body::Attached(Standing {
            extension,
            paid: Msat::from_msat(u64::MAX),
            latest: None,
        }),
        1 => Body::Countersigned(receipt),
        2 => Body::Extended(extension),
        3 => Body::ExtendRefused(extension),
        4 => Body::Pause(PauseReason::Unpaid),
        5 => Body::Resume,
        6 => Body::Leave(CloseReason::Completed),
        _ => Body::Closed(end),
    }
}

/// A buyer with a seller that is not to be trusted.
struct Milked {
    lease: Lease,
    deal: Deal,
    node: Node<buyer::Buyer>,
    now: Instant,
    /// Everything the buyer has put its name to, by number.
    signed: BTreeMap<u64, Receipt>,
    words: Vec<SignedMessage>,
    asked: u64,
}

impl Milked {
    fn new(deal: Deal) -> Self {
        let (lease, now) = (deal.lease(), epoch());
        let machine = buyer::Buyer::open(lease.clone(), Patience::default(), unix(), now);
        let mut node = Node::new(machine);
        node.disk.vouchered = lease.carried();
        Self {
            lease,
            deal,
            node,
            now,
            signed: BTreeMap::new(),
            words: Vec::new(),
            asked: 0,
        }
    }

    fn tell(&mut self, input: buyer::Input) {
        let mut inbox = VecDeque::from([input]);
        while let Some(input) = inbox.pop_front() {
            self.node.machine.as_mut().unwrap().handle(input, self.now);
            self.drain(&mut inbox);
        }
    }

    fn drain(&mut self, inbox: &mut VecDeque<buyer::Input>) {
        while let Some(output) = self.node.machine.as_mut().unwrap().poll_output() {
            match output {
                Output::Start(reading) => self.node.meter.start(reading),
                Output::SetLimit(limit) => self.node.meter.limit = limit,
                Output::SetMark(mark) => self.node.meter.mark = Some(mark),
                Output::Stop => {
                    self.node.meter.attached = false;
                    inbox.push_back(buyer::Input::Stopped(self.node.meter.reading));
                }
                Output::Pay { total } => {
                    self.asked += 1;
                    let total = Msat::from_sat(total.sat_ceil()).unwrap();
                    let total = total.max(self.node.disk.vouchered);
                    self.node.disk.vouchered = total;
                    inbox.push_back(buyer::Input::Paid { total });
                }
                Output::Send(message) => self.look_at(message),
                Output::Persist(record) => self.node.disk.records.push(record.to_bytes()),
                Output::Notify(event) => self.node.events.push(event),
            }
        }
    }

    /// What a buyer signs is true, at the agreed price, within the quota, and never taken back.
    fn look_at(&mut self, message: Message) {
        let words = Signed::seal(message, &buyer_key(), NETWORK);
        if let Some(receipt) = words.content().body.buyer_receipt() {
            let total = receipt.reading.total();
            assert!(total.get() <= self.node.truth, "signed for what never came");
            assert!(total.get() <= self.deal.max_quota);
            assert_eq!(Some(receipt.billed), self.lease.price().cost_of(total));
            let before = self.signed.insert(receipt.seq, *receipt);
            assert!(
                before.is_none_or(|before| before == *receipt),
                "one number, two receipts"
            );
            self.words.push(words);
        }
    }

    fn hear(&mut self, body: Body) {
        let lease = self.lease.id();
        let message = Signed::seal(Message { lease, body }, &seller_key(), NETWORK);
        self.tell(buyer::Input::Received(message));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for _ in 0..8 {
            let machine = self.node.machine.as_mut().unwrap();
            if machine.poll_timeout().is_none_or(|(at, _)| at > self.now) {
                return;
            }
            machine.handle_timeout(self.now);
            let mut inbox = VecDeque::new();
            self.drain(&mut inbox);
            for input in inbox {
                self.tell(input);
            }
        }
        panic!("a deadline is acted upon and does not go away");
    }

    /// Bytes for a flow that the buyer opened.
    fn take(&mut self, direction: Direction, n: u64) {
        self.node.truth += self.node.meter.take(direction, n);
        while let Some(reading) = self.node.meter.reached() {
            self.tell(buyer::Input::Metered(reading));
        }
    }

    fn detach(&mut self) {
        self.node.meter.attached = false;
        self.tell(buyer::Input::Metered(self.node.meter.reading));
        self.tell(buyer::Input::Detached);
    }

    fn restart(&mut self) {
        let records = self.node.disk.read();
        let lease = self.lease.clone();
        let machine =
            buyer::Buyer::restore(lease, records, Patience::default(), unix(), self.now).unwrap();
        self.node.crash();
        self.node.machine = Some(machine);
        let total = self.node.disk.vouchered;
        self.tell(buyer::Input::Paid { total });
    }

    fn check(&self) {
        check_buyer(
            &self.lease,
            self.node.truth,
            self.node.disk.vouchered,
            self.deal.max_quota,
        );
    }
}

/// What a seller that wants to be paid for nothing may try.
#[derive(Clone, Debug)]
enum Claim {
    Deliver {
        n: u64,
        up: bool,
    },
    Standing {
        seq: u32,
        quota: u64,
        paid: u64,
        word: Option<usize>,
    },
    Countersign {
        back: usize,
        more: u64,
    },
    Extended {
        seq: u32,
        quota: u64,
    },
    Pause(u8),
    Resume,
    Leave,
    Closed {
        back: usize,
        more: u64,
    },
    Reflect(usize),
    Wish(u64),
    Reattach,
    PayFails(u8),
    Pass(u64),
    BuyerRestarts,
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        8 => (0..2 * W, any::<bool>()).prop_map(|(n, up)| Claim::Deliver { n, up }),
        4 => (0_u32..3, 0..20 * W, 0_u64..1_000_000_000, any::<Option<usize>>())
            .prop_map(|(seq, quota, paid, word)| Claim::Standing { seq, quota, paid, word }),
        3 => (0_usize..4, prop_oneof![Just(0), 0..W])
            .prop_map(|(back, more)| Claim::Countersign { back, more }),
        2 => (0_u32..3, 0..20 * W).prop_map(|(seq, quota)| Claim::Extended { seq, quota }),
        3 => any::<u8>().prop_map(Claim::Pause),
        1 => Just(Claim::Resume),
        1 => Just(Claim::Leave),
        1 => (0_usize..4, prop_oneof![Just(0), 0..W])
            .prop_map(|(back, more)| Claim::Closed { back, more }),
        1 => any::<usize>().prop_map(Claim::Reflect),
        1 => (0..20 * W).prop_map(Claim::Wish),
        3 => Just(Claim::Reattach),
        1 => any::<u8>().prop_map(Claim::PayFails),
        2 => (0_u64..20_000).prop_map(Claim::Pass),
        1 => Just(Claim::BuyerRestarts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_seller_is_paid_for_more_than_a_window_beyond_what_it_carried(
        is_prepaid in any::<bool>(),
        carried in prop_oneof![Just(0), 0_u64..200_000],
        min_first in prop_oneof![Just(0), Just(740_000)],
        claims in proptest::collection::vec(claim(), 1..80),
    ) {
        let deal = Deal {
            mode: if is_prepaid { Mode::Prepaid } else { Mode::Postpaid },
            quota: 8 * W,
            max_quota: 16 * W,
            carried,
            min_first,
            ..Deal::default()
        };
        let mut milked = Milked::new(deal);
        milked.tell(buyer::Input::Attached);
        for claim in claims {
            let perturbed = |milked: &Milked, back: usize, more: u64| {
                let mut receipt = *milked.signed.values().rev().nth(back)?;
                receipt.reading.down = Bytes::new(receipt.reading.down.get() + more);
                receipt.billed = milked.lease.price().cost_of(receipt.reading.total())?;
                Some(receipt)
            };
            match claim {
                Claim::Deliver { n, up: true } => milked.take(Direction::Up, n),
                Claim::Deliver { n, up: false } => milked.take(Direction::Down, n),
                Claim::Standing { seq, quota, paid, word } => {
                    let words = &milked.words;
                    let latest = word.map(|word| match words.get(word % (words.len() + 1)) {
                        Some(word) => word.as_bytes().to_vec().into(),
                        None => vec![0x84; 40].into(),
                    });
                    milked.hear(Body::Attached(Standing {
                        extension: Extension { seq, quota: Bytes::new(quota) },
                        paid: Msat::from_msat(paid),
                        latest,
                    }));
                }
                Claim::Countersign { back, more } => {
                    if let Some(receipt) = perturbed(&milked, back, more) {
                        milked.hear(Body::Countersigned(receipt));
                    }
                }
                Claim::Extended { seq, quota } => {
                    let quota = Bytes::new(quota);
                    milked.hear(Body::Extended(Extension { seq, quota }));
                }
                Claim::Pause(which) => milked.hear(Body::Pause(match which % 6 {
                    0 => PauseReason::Unpaid,
                    1 => PauseReason::QuotaSpent,
                    2 => PauseReason::WaitingForConfirmation,
                    3 => PauseReason::AwaitingReceipt,
                    4 => PauseReason::SellerPaused,
                    _ => PauseReason::Detached,
                })),
                Claim::Resume => milked.hear(Body::Resume),
                Claim::Leave => milked.hear(Body::Leave(CloseReason::Policy)),
                Claim::Closed { back, more } => {
                    let receipt = perturbed(&milked, back, more);
                    let reason = CloseReason::Completed;
                    milked.hear(Body::Closed(Final { reason, receipt }));
                    let ending = milked.node.machine.as_ref().unwrap().ending().unwrap();
                    prop_assert!(ending.billed() <= milked.lease.price().cost_of(Bytes::new(milked.node.truth)).unwrap());
                }
                Claim::Reflect(word) => {
                    let words = &milked.words;
                    if let Some(word) = words.get(word % words.len().max(1)).cloned() {
                        milked.tell(buyer::Input::Received(word));
                    }
                }
                Claim::Wish(quota) => {
                    milked.tell(buyer::Input::Extend { quota: Bytes::new(quota) });
                }
                Claim::Reattach => {
                    milked.detach();
                    milked.tell(buyer::Input::Attached);
                }
                Claim::PayFails(which) => milked.tell(buyer::Input::PayFailed(match which % 8 {
                    0 => PayFailure::ChannelLost,
                    1 => PayFailure::CapacitySpent,
                    _ => PayFailure::Passing,
                })),
                Claim::Pass(ms) => milked.pass(Duration::from_millis(ms)),
                Claim::BuyerRestarts => milked.restart(),
            }
            milked.check();
        }
    }
}

#[test]
fn a_seller_that_takes_payment_and_carries_nothing_gets_a_window_at_most() {
    let mut milked = Milked::new(Deal::default());
    milked.tell(buyer::Input::Attached);
    let standing = Standing {
        extension: Extension {
            seq: 0,
            quota: milked.lease.quota(),
        },
        paid: Msat::ZERO,
        latest: None,
    };
    milked.hear(Body::Attached(standing.clone()));
    for _ in 0..100 {
        milked.hear(Body::Pause(PauseReason::Unpaid));
        milked.hear(Body::Resume);
        milked.detach();
        milked.tell(buyer::Input::Attached);
        milked.hear(Body::Attached(standing.clone()));
    }
    let window = milked.lease.price().cost_of(milked.lease.window()).unwrap();
    assert_eq!(milked.node.disk.vouchered.sat_ceil(), window.sat_ceil());
}

#[test]
fn a_seller_that_counts_double_is_paid_for_what_came() {
    for mode in [Mode::Prepaid, Mode::Postpaid] {
        let mut world = World::new(Deal {
            mode,
            ..Deal::default()
        });
        world.counts_double = true;
        world.connect();
        world.want_down = 8 * W;
        world.run(Duration::from_secs(90));
        let (buyer, seller) = (
            world.buyer_ending().unwrap(),
            world.seller_ending().unwrap(),
        );
        assert_eq!(seller.reason, CloseReason::MeterDispute);
        assert_eq!(buyer.billed(), world.cost(world.buyer.truth));
        assert_eq!(buyer.receipt, seller.receipt);
        // It hurts only itself: its own credit ends a window after what the buyer has signed for.
        assert!(world.buyer.truth <= 2 * W);
    }
}

#[test]
fn a_buyer_that_signs_for_half_of_it_is_cut_off_a_window_later() {
    let mut robbed = Robbed::new(Deal::default());
    robbed.attach();
    robbed.pay(10_000_000);
    for _ in 0..200 {
        robbed.pass(Duration::from_millis(250));
        robbed.take(Direction::Down, W / 8);
        let receipt = robbed.receipt(1, 0, W / 16, true);
        if robbed.last.reading.total().get() > robbed.node.truth {
            break;
        }
        robbed.hear(Body::Receipt(receipt));
    }
    robbed.take(Direction::Down, W);
    let signed = robbed.node.disk.signed;
    assert_eq!(robbed.node.truth, signed + W);
    robbed.pass(Duration::from_secs(31));
    assert!(
        robbed
            .sent
            .contains(&Body::Leave(CloseReason::MeterDispute))
    );
    robbed.pass(Duration::from_secs(6));
    let ending = robbed.node.machine.as_ref().unwrap().ending().unwrap();
    assert_eq!(ending.reason, CloseReason::MeterDispute);
    assert_eq!(ending.receipt.unwrap().reading.total().get(), signed);
}

#[test]
fn replayed_and_decreasing_receipts_change_nothing() {
    let mut robbed = Robbed::new(Deal::default());
    robbed.attach();
    robbed.pay(10_000_000);
    let old = robbed.receipt(1, 0, W / 4, true);
    robbed.hear(Body::Receipt(old));
    let new = robbed.receipt(1, 0, W / 4, true);
    robbed.hear(Body::Receipt(new));
    let limit = robbed.node.meter.limit;

    robbed.hear(Body::Receipt(old));
    let mut less = new;
    less.seq += 1;
    less.reading.down = Bytes::new(W / 8);
    less.billed = robbed.lease.price().cost_of(less.reading.total()).unwrap();
    robbed.hear(Body::Receipt(less));
    let mut same_number = new;
    same_number.reading.down = Bytes::new(W);
    same_number.billed = robbed
        .lease
        .price()
        .cost_of(same_number.reading.total())
        .unwrap();
    robbed.hear(Body::Receipt(same_number));
    assert_eq!(robbed.faults(Fault::Decreasing), 3);

    let mut cheap = new;
    cheap.seq += 1;
    cheap.reading.down = Bytes::new(W);
    robbed.hear(Body::Receipt(cheap));
    assert_eq!(robbed.faults(Fault::WrongCost), 1);

    let machine = robbed.node.machine.as_ref().unwrap();
    assert_eq!(machine.receipt(), Some(new));
    assert_eq!(robbed.node.meter.limit, limit);
}

#[test]
fn words_of_strangers_and_of_other_leases_are_not_heard() {
    let mut robbed = Robbed::new(Deal::default());
    robbed.attach();
    let receipt = robbed.receipt(1, 0, W / 4, true);
    let lease = robbed.lease.id();
    let body = Body::Receipt(receipt);
    let strangers = Message {
        lease,
        body: body.clone(),
    };
    let message = Signed::seal(strangers, &seller_key(), NETWORK);
    robbed.tell(seller::Input::Received(message));
    let lease = LeaseId::from_bytes([9; 32]);
    let message = Signed::seal(Message { lease, body }, &buyer_key(), NETWORK);
    robbed.tell(seller::Input::Received(message));

    assert_eq!(robbed.faults(Fault::WrongSigner), 1);
    assert_eq!(robbed.faults(Fault::WrongLease), 1);
    assert_eq!(robbed.node.disk.signed, 0);
}

#[test]
fn a_side_that_talks_nonsense_is_left() {
    let mut robbed = Robbed::new(Deal::default());
    robbed.attach();
    for which in 0..16 {
        robbed.hear(sellers_words(which, robbed.last));
    }
    assert!(robbed.sent.contains(&Body::Leave(CloseReason::Violation)));

    let mut milked = Milked::new(Deal::default());
    milked.tell(buyer::Input::Attached);
    let word = milked.words[0].clone();
    for _ in 0..16 {
        milked.tell(buyer::Input::Received(word.clone()));
    }
    let closing = |record: &bitmesh_market::session::Record| {
        record.fact == bitmesh_market::session::record::Fact::Closing(CloseReason::Violation)
    };
    assert!(milked.node.disk.read().iter().any(closing));
}

#[test]
fn a_buyer_that_signs_for_every_byte_is_not_written_down_every_time() {
    let mut robbed = Robbed::new(Deal::default());
    robbed.attach();
    robbed.pay(10_000_000);
    for _ in 0..200 {
        let receipt = robbed.receipt(1, 0, 1, true);
        robbed.hear(Body::Receipt(receipt));
    }
    assert!(robbed.node.disk.records.len() < 70);
    assert!(robbed.sent.contains(&Body::Leave(CloseReason::Violation)));
}

#[test]
fn a_second_attach_does_not_set_the_meter_back() {
    let mut robbed = Robbed::new(Deal::default());
    robbed.attach();
    robbed.pay(10_000_000);
    robbed.take(Direction::Down, W / 8);
    let before = robbed.node.meter.reading;
    robbed.hear(Body::Attach(robbed.last));
    assert_eq!(robbed.node.meter.reading, before);
    assert_eq!(robbed.faults(Fault::OutOfPlace), 1);
}

#[test]
fn a_silent_seller_is_left_when_it_does_not_countersign() {
    let mut milked = Milked::new(Deal::default());
    milked.tell(buyer::Input::Attached);
    milked.hear(Body::Attached(Standing {
        extension: Extension {
            seq: 0,
            quota: milked.lease.quota(),
        },
        paid: Msat::ZERO,
        latest: None,
    }));
    milked.pass(Duration::from_secs(31));
    milked.pass(Duration::from_secs(6));
    let ending = milked.node.machine.as_ref().unwrap().ending().unwrap();
    assert_eq!(ending.reason, CloseReason::SellerLeft);
}
