//! Both machines against each other, over a network that loses, repeats and reorders, with
//! crashes between any two outputs, on a chain that reorganises. Every run is a seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitcoin::{Amount, Transaction};
use bitmesh_wallet::channel::AttemptId;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ZeroConfBudget;
use bitmesh_wallet::channel::message::{ClosePartial, Message, RefusalCode, Refused};
use bitmesh_wallet::channel::params::{PayeePolicy, PayerPolicy, Tranche};
use bitmesh_wallet::channel::payee::{self, Payee, Sighting};
use bitmesh_wallet::channel::payer::{self, Payer};
use bitmesh_wallet::channel::record::{End, Fact, Record, compact};
use bitmesh_wallet::channel::tx;
use bitmesh_wallet::ledger::Ledger;

use crate::fixture::*;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, odds: u64) -> bool {
        odds > 0 && self.below(odds) == 0
    }
}

/// How bad the world is. Zero means never.
#[derive(Clone, Copy)]
struct Faults {
    loss: u64,
    repeat: u64,
    crash: u64,
    reorganise: u64,
}

const ROUGH: Faults = Faults {
    loss: 4,
    repeat: 4,
    crash: 12,
    reorganise: 10,
};
const CALM: Faults = Faults {
    loss: 0,
    repeat: 0,
    crash: 0,
    reorganise: 0,
};

#[derive(Clone, Copy, PartialEq)]
enum To {
    Payer,
    Payee,
}

/// What the chain holds of this channel.
#[derive(Default)]
struct Chain {
    height: u32,
    funding: Option<Transaction>,
    /// Height of the block that holds the funding.
    funded_at: Option<u32>,
    spend: Option<Transaction>,
    spent_at: Option<u32>,
}

struct World {
    /// The tranche both sides must come to.
    tranche: Tranche,
    dice: Dice,
    faults: Faults,
    now: Instant,
    payer: Payer,
    payer_log: Vec<Record>,
    payee: Option<Payee>,
    payee_log: Vec<Record>,
    budget: ZeroConfBudget,
    network: Vec<(To, Vec<u8>)>,
    chain: Chain,
    wanted: Amount,
    /// The highest credit the payee announced since it last started.
    credited: Amount,
    crashes: u32,
    /// Every half the payer gave away.
    halves: BTreeMap<AttemptId, ClosePartial>,
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let now = epoch();
        let chain = Chain {
            height: TIP.get(),
            ..Chain::default()
        };
        let payer = payer(now);
        let mut world = Self {
            tranche: tranche(),
            dice: Dice(seed),
            faults,
            now,
            payer,
            payer_log: Vec::new(),
            payee: None,
            payee_log: Vec::new(),
            budget: ZeroConfBudget::default(),
            network: Vec::new(),
            chain,
            wanted: Amount::ZERO,
            credited: Amount::ZERO,
            crashes: 0,
            halves: BTreeMap::new(),
        };
        // The first record is written with the proposal: a crash before it is no channel at all.
        let Some(payer::Output::Persist(record)) = world.payer.poll_output() else {
            panic!("a proposal begins with its record")
        };
        world.payer_log.push(record);
        world.tell_payer(payer::Input::TipChanged(TIP));
        world
    }

    fn tell_payer(&mut self, input: payer::Input) {
        // Refusals are part of the game: what matters is what the machines hold.
        let _ = self.payer.handle(input, self.now);
        self.drain_payer();
    }

    fn tell_payee(&mut self, input: payee::Input) {
        if let Some(payee) = &mut self.payee {
            let _ = payee.handle(input, self.now);
        }
        self.drain_payee();
    }

    fn drain_payer(&mut self) {
        while !self.dice.one_in(self.faults.crash * 8) {
            let Some(output) = self.payer.poll_output() else {
                return;
            };
            match output {
                payer::Output::Persist(record) => {
                    assert_eq!(Record::from_bytes(&record.to_bytes()).unwrap(), record);
                    self.payer_log.push(record);
                }
                payer::Output::Send(message) => {
                    if let Message::Voucher(voucher) = &message {
                        assert!(self.promised() >= voucher.total, "said before written down");
                    }
                    if let Message::ClosePartial(half) = &message {
                        let known = self.halves.entry(half.attempt).or_insert(*half);
                        assert_eq!(known, half, "two signatures with one nonce");
                    }
                    self.network.push((To::Payee, message.to_bytes()));
                }
                payer::Output::Fund { script, amount } => {
                    let tx = Box::new(funding_tx(&script, amount));
                    let input = payer::Input::FundingSigned { tx, fee: sat(154) };
                    let _ = self.payer.handle(input, self.now);
                }
                payer::Output::Broadcast(tx) => self.broadcast(*tx),
                payer::Output::Watch { .. } => {}
                payer::Output::Notify(payer::Event::RefundDue) => {
                    let input = payer::Input::RefundAsked { feerate: ONE };
                    let _ = self.payer.handle(input, self.now);
                }
                payer::Output::Notify(payer::Event::CloseWanted) => {
                    let seed = self.fresh();
                    let input = payer::Input::TogetherAsked { feerate: ONE, seed };
                    let _ = self.payer.handle(input, self.now);
                }
                payer::Output::Notify(_) => {}
            }
        }
        self.crash_payer();
    }

    fn drain_payee(&mut self) {
        while !self.dice.one_in(self.faults.crash * 8) {
            let Some(payee) = &mut self.payee else { return };
            let Some(output) = payee.poll_output() else {
                return;
            };
            match output {
                payee::Output::Persist(record) => {
                    assert_eq!(Record::from_bytes(&record.to_bytes()).unwrap(), record);
                    self.payee_log.push(record);
                }
                payee::Output::Send(message) => {
                    self.network.push((To::Payer, message.to_bytes()));
                }
                payee::Output::Broadcast(tx) => self.broadcast(*tx),
                payee::Output::Watch { .. } => {}
                payee::Output::Notify(event) => self.payee_event(event),
            }
        }
        self.crash_payee();
    }

    fn payee_event(&mut self, event: payee::Event) {
        use payee::Event;
        let Some(payee) = &mut self.payee else { return };
        match event {
            Event::Credited { total } => {
                assert!(total > self.credited, "credit only grows");
                assert!(
                    total <= held(&self.payee_log),
                    "counted before written down"
                );
                self.credited = total;
            }
            Event::ZeroConfDue { want } => {
                let limit = self.budget.grant(payee.proposal(), want);
                let _ = payee.handle(payee::Input::ZeroConfGranted { limit }, self.now);
            }
            Event::ZeroConfReleased => self.budget.release(payee.proposal()),
            Event::ZeroConfLost => {
                self.budget
                    .lost(payee.proposal(), BlockHeight::new(self.chain.height));
            }
            Event::CloseDue { .. } => {
                let input = payee::Input::CloseAsked {
                    payout: p2tr(0xaa),
                    feerate: ONE,
                };
                let _ = payee.handle(input, self.now);
            }
            Event::SplitDue => {
                let seed = Self::seed(&mut self.dice);
                let input = payee::Input::SplitChosen {
                    payout: p2tr(0xaa),
                    feerate: ONE,
                    seed,
                };
                let _ = payee.handle(input, self.now);
            }
            Event::Funded { .. }
            | Event::CloseFailed { .. }
            | Event::LimitChanged { .. }
            | Event::FundingDropped
            | Event::FundingConflicted
            | Event::FundingFound
            | Event::ServiceStopped
            | Event::Closing { .. }
            | Event::Ending { .. }
            | Event::Settled(_)
            | Event::RolloverDue { .. }
            | Event::RolloverWanted { .. }
            | Event::CooperationDue { .. }
            | Event::Abandoned => {}
        }
    }

    fn fresh(&mut self) -> [u8; 32] {
        Self::seed(&mut self.dice)
    }

    fn seed(dice: &mut Dice) -> [u8; 32] {
        let mut seed = [0; 32];
        seed.chunks_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&dice.next().to_be_bytes()));
        seed
    }

    /// Either operator wants to close together.
    fn close_together(&mut self) {
        match self.dice.one_in(2) {
            true => self.tell_payee(payee::Input::TogetherAsked),
            false => {
                let seed = self.fresh();
                self.tell_payer(payer::Input::TogetherAsked { feerate: ONE, seed });
            }
        }
    }

    /// Everything not yet performed is lost; what was written down remains.
    fn crash_payer(&mut self) {
        self.crashes += 1;
        let log = self.after_restart(&self.payer_log.clone());
        let policy = PayerPolicy::default();
        self.payer = Payer::restore(log, keypair(PAYER), policy, self.now).unwrap();
        assert_eq!(self.payer.promised(), self.promised());
        self.tell_chain_to_payer();
    }

    fn crash_payee(&mut self) {
        self.crashes += 1;
        self.credited = Amount::ZERO;
        self.payee = match self.payee_log.is_empty() {
            true => None,
            false => {
                let policy = PayeePolicy::default();
                let log = self.after_restart(&self.payee_log.clone());
                Some(Payee::restore(log, keypair(PAYEE), policy).unwrap())
            }
        };
        self.check_best_voucher();
        self.tell_chain_to_payee();
    }

    /// What is read back: the log, or what is left of it once the journal is compacted.
    fn after_restart(&mut self, log: &[Record]) -> Vec<Record> {
        let books = |log: &[Record]| Ledger::from_records(log).unwrap().totals();
        let small = compact(log.to_vec());
        assert_eq!(books(&small), books(log));
        assert!(books(log).adds_up());
        match self.dice.one_in(2) {
            true => small,
            false => log.to_vec(),
        }
    }

    fn promised(&self) -> Amount {
        let total = |record: &Record| match record.fact {
            Fact::Promised { total, .. } => Some(total),
            _ => None,
        };
        self.payer_log
            .iter()
            .filter_map(total)
            .max()
            .unwrap_or(Amount::ZERO)
    }

    fn broadcast(&mut self, tx: Transaction) {
        let funding = self.tranche.scripts().output();
        if tx
            .output
            .iter()
            .any(|output| output.script_pubkey == *funding)
        {
            self.chain.funding.get_or_insert(tx);
        } else if self.chain.funding.is_some() && self.chain.spent_at.is_none() {
            match check_spend(&self.tranche, &tx, self.chain.height + 1) {
                Ok(()) => self.chain.spend = Some(tx),
                Err(error) => panic!("an invalid transaction was broadcast: {error}"),
            }
        }
    }

    fn confirmations(&self, since: Option<u32>) -> u32 {
        since.map_or(0, |since| self.chain.height + 1 - since)
    }

    fn mine(&mut self) {
        let chain = &mut self.chain;
        chain.height += 1;
        if chain.funding.is_some() && chain.funded_at.is_none() {
            chain.funded_at = Some(chain.height);
        } else if chain.spend.is_some() && chain.spent_at.is_none() && chain.funded_at.is_some() {
            chain.spent_at = Some(chain.height);
        }
        self.tell_chain();
    }

    /// The last block is replaced by an empty one.
    fn reorganise(&mut self) {
        let chain = &mut self.chain;
        chain.funded_at = chain.funded_at.filter(|at| *at != chain.height);
        chain.spent_at = chain.spent_at.filter(|at| *at != chain.height);
        self.tell_chain();
    }

    fn tell_chain(&mut self) {
        self.tell_chain_to_payer();
        self.tell_chain_to_payee();
    }

    fn tell_chain_to_payer(&mut self) {
        let tip = BlockHeight::new(self.chain.height);
        if self.chain.funding.is_some() {
            let confirmations = self.confirmations(self.chain.funded_at);
            self.tell_payer(payer::Input::FundingDepth { confirmations });
        }
        if let Some(tx) = self.chain.spend.clone() {
            let height = self.chain.spent_at.map(BlockHeight::new);
            self.tell_payer(payer::Input::Spent {
                tx: Box::new(tx),
                height,
            });
        }
        self.tell_payer(payer::Input::TipChanged(tip));
    }

    fn tell_chain_to_payee(&mut self) {
        let tip = BlockHeight::new(self.chain.height);
        if self.chain.funding.is_some() {
            self.tell_payee(match self.confirmations(self.chain.funded_at) {
                0 => payee::Input::FundingSeen(Sighting {
                    has_confirmed_inputs: true,
                    feerate: ONE,
                    wanted_feerate: ONE,
                }),
                confirmations => payee::Input::FundingConfirmed { confirmations },
            });
        }
        if let Some(tx) = self.chain.spend.clone() {
            let height = self.chain.spent_at.map(BlockHeight::new);
            self.tell_payee(payee::Input::Spent {
                tx: Box::new(tx),
                height,
            });
        }
        self.tell_payee(payee::Input::TipChanged(tip));
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.dice.below(self.network.len() as u64) as usize;
        let (to, bytes) = match self.dice.one_in(self.faults.repeat) {
            true => self.network[at].clone(),
            false => self.network.swap_remove(at),
        };
        if self.dice.one_in(self.faults.loss) {
            return;
        }
        let message = Message::from_bytes(&bytes).unwrap();
        match (to, message) {
            (To::Payer, message) => self.tell_payer(payer::Input::Received(message)),
            (To::Payee, Message::Open(open)) if self.payee.is_none() => {
                let policy = PayeePolicy::default();
                let payee = Payee::accept(open, &acceptance(), keypair(PAYEE), policy).unwrap();
                self.payee = Some(payee);
                self.drain_payee();
            }
            (To::Payee, message) => self.refer(message),
        }
    }

    /// Tells the payee, and the payer if that refuses, as a node would.
    fn refer(&mut self, message: Message) {
        let subject = message.subject();
        let input = payee::Input::Received(message);
        let code = match &mut self.payee {
            None => Some(RefusalCode::Unknown),
            Some(payee) => payee
                .handle(input, self.now)
                .err()
                .and_then(|error| error.refusal()),
        };
        if let Some(code) = code {
            let refused = Message::Refused(Refused { subject, code });
            self.network.push((To::Payer, refused.to_bytes()));
        }
        self.drain_payee();
    }

    fn sleep(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.payer.handle_timeout(self.now);
        self.drain_payer();
        if let Some(payee) = &mut self.payee {
            payee.handle_timeout(self.now);
        }
        self.drain_payee();
    }

    fn pay(&mut self, delta: u64) {
        let total = self.wanted + sat(delta);
        if self
            .payer
            .handle(payer::Input::Pay { total }, self.now)
            .is_ok()
        {
            self.wanted = self.payer.promised().max(total.min(CAPACITY));
        }
        self.drain_payer();
    }

    fn step(&mut self) {
        match self.dice.below(16) {
            0..=6 => self.deliver(),
            7..=10 => {
                let delta = 1 + self.dice.below(4_000);
                self.pay(delta);
            }
            11..=12 => {
                let seconds = 1 + self.dice.below(12);
                self.sleep(seconds);
            }
            13 => match self.dice.one_in(self.faults.reorganise) {
                true => self.reorganise(),
                false => self.mine(),
            },
            14 => self.tell_payer(payer::Input::Reconnected),
            _ if self.dice.one_in(self.faults.crash) => match self.dice.one_in(2) {
                true => self.crash_payer(),
                false => self.crash_payee(),
            },
            _ => {}
        }
        self.check();
    }

    /// What must hold after every step.
    fn check(&self) {
        let promised = self.promised();
        assert!(promised <= CAPACITY);
        let legal = promised == Amount::ZERO || self.tranche.legal(promised).is_ok();
        assert!(legal, "a promise in the dust gap");
        if let Some(payee) = &self.payee {
            assert!(payee.held() <= promised, "held more than was ever promised");
            assert!(payee.credited() <= payee.held());
        }
    }

    /// The best voucher on disk makes a valid close, the same one after every restart.
    fn check_best_voucher(&mut self) {
        let Some(payee) = &self.payee else { return };
        assert_eq!(payee.held(), held(&self.payee_log));
        let Some(voucher) = payee.voucher() else {
            return;
        };
        let close = tx::commitment(&self.tranche, &voucher, &keypair(PAYEE), &p2tr(0xaa), ONE);
        let close = close.unwrap();
        check_spend(&self.tranche, &close, self.chain.height + 1).unwrap();
    }

    /// From here on nothing goes wrong, and everything must come right.
    fn settle_down(&mut self) {
        self.faults = CALM;
        for _ in 0..64 {
            self.sleep(60);
            while !self.network.is_empty() {
                self.deliver();
            }
            self.check();
        }
    }
}

fn held(log: &[Record]) -> Amount {
    let total = |record: &Record| match record.fact {
        Fact::Held { total, .. } => Some(total),
        _ => None,
    };
    log.iter().filter_map(total).max().unwrap_or(Amount::ZERO)
}

/// `BITMESH_SEEDS=n` runs more; a failure names its seed.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("BITMESH_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok());
    0..count.unwrap_or(200)
}

fn for_each_seed(run: impl Fn(u64)) {
    for seed in seeds() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = result {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn whatever_happens_both_sides_agree_in_the_end() {
    for_each_seed(|seed| {
        let mut world = World::new(seed, ROUGH);
        for _ in 0..400 {
            world.step();
        }
        world.settle_down();
        for _ in 0..4 {
            world.mine();
        }
        world.settle_down();

        let payee = world.payee.as_ref().unwrap();
        assert_eq!(payee.held(), world.promised());
        assert_eq!(payee.credited(), payee.held());
        assert_eq!(world.payer.acknowledged(), world.promised());
        assert_eq!(world.payer.stage(), payer::Stage::Open);
    });
}

#[test]
fn whatever_happens_the_payee_is_paid_what_it_holds() {
    for_each_seed(|seed| {
        let mut world = World::new(seed, ROUGH);
        for _ in 0..300 {
            world.step();
        }
        world.settle_down();
        // The payer is never heard of again.
        world.pay(740);
        world.network.clear();
        let held = world.payee.as_ref().unwrap().held();
        world.chain.height = EXPIRY.get() - 145;
        world.mine();
        for _ in 0..10 {
            world.mine();
        }

        let payee = world.payee.as_ref().unwrap();
        let Some(settlement) = payee.settlement() else {
            assert_eq!(held, Amount::ZERO, "{payee:?}");
            return;
        };
        assert_eq!(settlement.paid(), held);
        assert_eq!(world.payer.settlement(), Some(settlement));
        let sum = settlement.returned + settlement.received + settlement.fee;
        assert_eq!(sum, CAPACITY);
    });
}

#[test]
fn whatever_happens_the_payer_gets_everything_back_from_a_payee_that_vanished() {
    for_each_seed(|seed| {
        let mut world = World::new(seed, ROUGH);
        for _ in 0..300 {
            world.step();
        }
        world.settle_down();
        world.payee = None;
        world.payee_log.clear();
        world.chain.height = EXPIRY.get() - 1;
        for _ in 0..10 {
            world.mine();
        }

        let settlement = world.payer.settlement().unwrap();
        assert_eq!(settlement.returned, CAPACITY - settlement.fee);
        assert_eq!(settlement.fee, sat(tx::REFUND_VBYTES));
    });
}

#[test]
fn whatever_happens_two_that_want_to_close_together_both_get_what_is_theirs() {
    for_each_seed(|seed| {
        let mut world = World::new(seed, ROUGH);
        for _ in 0..200 {
            world.step();
        }
        // They ask again and again, in the middle of payments, crashes and lost messages.
        for _ in 0..12 {
            world.close_together();
            for _ in 0..20 {
                world.step();
            }
        }
        world.settle_down();
        for _ in 0..4 {
            world.sleep(2);
            world.close_together();
            while !world.network.is_empty() {
                world.deliver();
            }
        }
        for _ in 0..10 {
            world.mine();
            world.settle_down();
        }

        let payee = world.payee.as_ref().unwrap();
        let (held, promised) = (payee.held(), world.promised());
        let Some(settlement) = payee.settlement() else {
            panic!(
                "not settled: {:?}, {:?}",
                payee.stage(),
                world.payer.stage()
            )
        };
        assert_eq!(settlement.end, End::Together);
        assert_eq!(settlement.paid(), held, "the payee is paid what it holds");
        assert_eq!(held, promised, "and holds what was promised");
        assert_eq!(world.payer.settlement(), Some(settlement));
        let sum = settlement.returned + settlement.received + settlement.fee;
        assert_eq!(sum, CAPACITY);
        for log in [&world.payer_log, &world.payee_log] {
            assert!(Ledger::from_records(log).unwrap().totals().adds_up());
        }
    });
}

#[test]
fn the_runs_meet_the_faults_they_are_meant_to_meet() {
    let mut crashes = 0;
    let mut promised = Vec::new();
    for seed in 0..20 {
        let mut world = World::new(seed, ROUGH);
        for _ in 0..400 {
            world.step();
        }
        crashes += world.crashes;
        promised.push(world.promised());
    }
    assert!(crashes > 100, "{crashes}");
    assert!(
        promised
            .iter()
            .filter(|total| **total > sat(10_000))
            .count()
            > 10,
        "{promised:?}"
    );
    assert!(
        promised.contains(&CAPACITY),
        "no run pays everything: {promised:?}"
    );
}
