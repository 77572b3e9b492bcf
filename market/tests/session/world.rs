//! A buyer, a seller, and all that lies between them: streams, lanes, meters, a channel, disks.
//!
//! Time is virtual and moves in ticks. Everything that is signed is sealed and verified as on the wire,
//! everything that is stored goes through its encoding. After every tick the bounds on what is at
//! stake are checked, so that no test can forget them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bitmesh_market::envelope::{Network, Signed};
use bitmesh_market::identity::{Ed25519Signer, Signer as _};
use bitmesh_market::lease::{Lease, Proposal, Proposed};
use bitmesh_market::offer::{Egress, Modes, Rails, Tunnels};
use bitmesh_market::quote::{Mode, Quote, QuoteId, RfqId, window_for};
use bitmesh_market::session::message::SignedMessage;
use bitmesh_market::session::record::Fact;
use bitmesh_market::session::{
    Ending, Event, Message, Output, Patience, Reading, Record, buyer, seller,
};
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_market::wire::Unknown;

pub(crate) const NETWORK: Network = Network::Regtest;
pub(crate) const KIB: u64 = 1_024;
/// The smallest window.
pub(crate) const W: u64 = 256 * KIB;
/// One step of the simulation.
pub(crate) const TICK: Duration = Duration::from_millis(10);

#[expect(
    clippy::disallowed_methods,
    reason = "virtual time has to start somewhere"
)]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}

pub(crate) fn unix() -> UnixTime {
    UnixTime::from_secs(1_800_000_000)
}

pub(crate) fn buyer_key() -> Ed25519Signer {
    Ed25519Signer::from_seed([0xb0; 32])
}

pub(crate) fn seller_key() -> Ed25519Signer {
    Ed25519Signer::from_seed([0x5e; 32])
}

/// The terms of a lease under test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deal {
    pub(crate) mode: Mode,
    pub(crate) price: u64,
    pub(crate) quota: u64,
    pub(crate) max_quota: u64,
    pub(crate) carried: u64,
    pub(crate) min_first: u64,
    pub(crate) term: Duration,
}

impl Default for Deal {
    fn default() -> Self {
        Self {
            mode: Mode::Prepaid,
            // A window costs 26.2 sat: rounding to whole satoshi is small beside it.
            price: 100_000_000,
            quota: 16 * W,
            max_quota: 64 * W,
            carried: 0,
            min_first: 0,
            term: Duration::from_secs(3_600),
        }
    }
}

impl Deal {
    pub(crate) fn lease(&self) -> Lease {
        let rate = BytesPerSecond::new(200_000);
        let until = unix().checked_add(self.term).unwrap();
        let quote = Quote {
            id: QuoteId::from_bytes([1; 16]),
            rfq: RfqId::from_bytes([2; 16]),
            buyer: buyer_key().node_id(),
            price: Price::from_msat_per_gb(self.price),
            rate,
            max_quota: Bytes::new(self.max_quota),
            window: window_for(rate),
            modes: Modes::PREPAID | Modes::POSTPAID,
            min_first: Msat::from_msat(self.min_first),
            carried: Msat::from_msat(self.carried),
            until,
            expires: unix(),
            rail: Rails::CHANNEL,
            tunnel: Tunnels::PROXY,
            egress: Egress::IPV4,
            assured: BytesPerSecond::new(1),
            unknown: Unknown::default(),
        };
        let quote = Signed::seal(quote, &seller_key(), NETWORK);
        let proposal = Proposal {
            quote: quote.as_bytes().to_vec().into(),
            quota: Bytes::new(self.quota),
            mode: self.mode,
            until,
            unknown: Unknown::default(),
        };
        let proposal = Signed::seal(proposal, &buyer_key(), NETWORK);
        let proposed = Proposed::verify(proposal.as_bytes(), NETWORK).unwrap();
        proposed.accept(unix(), &seller_key()).unwrap()
    }
}

/// A meter as the tunnel has it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    pub(crate) reading: Reading,
    pub(crate) limit: Bytes,
    pub(crate) mark: Option<Bytes>,
    pub(crate) attached: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

impl Meter {
    /// Takes up to `n` bytes off the credit.
    pub(crate) fn take(&mut self, direction: Direction, n: u64) -> u64 {
        let room = self.limit.saturating_sub(self.reading.total()).get();
        let n = if self.attached { n.min(room) } else { 0 };
        let side = match direction {
            Direction::Up => &mut self.reading.up,
            Direction::Down => &mut self.reading.down,
        };
        *side = Bytes::new(side.get() + n);
        n
    }

    /// Attaches flows and goes on from `reading`.
    pub(crate) fn start(&mut self, reading: Reading) {
        self.attached = true;
        self.reading = reading;
    }

    /// The reading, once, when the mark is reached.
    pub(crate) fn reached(&mut self) -> Option<Reading> {
        self.mark.take_if(|mark| self.reading.total() >= *mark)?;
        Some(self.reading)
    }
}

/// What travels on the control stream.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Session(Vec<u8>),
    Voucher(Msat),
}

/// One direction of everything that travels, in order, each with its time of arrival.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(crate) control: VecDeque<(Instant, Packet)>,
    pub(crate) lane: VecDeque<(Instant, u64)>,
}

impl Pipe {
    /// The next packet that has arrived by `now`.
    fn arrived(&mut self, now: Instant) -> Option<Packet> {
        let (at, _) = self.control.front()?;
        if *at > now {
            return None;
        }
        self.control.pop_front().map(|(_, packet)| packet)
    }
}

/// What a machine has on its disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) records: Vec<Vec<u8>>,
    /// The channel's running total for this session; at the buyer what it vouchered, at the seller
    /// what it holds.
    pub(crate) vouchered: Msat,
    /// The total of the last receipt written down.
    pub(crate) signed: u64,
}

impl Disk {
    pub(crate) fn write(&mut self, record: &Record) {
        if let Fact::Receipted(held) = &record.fact {
            let message = SignedMessage::verify(&held.message, NETWORK).unwrap();
            let receipt = message.content().body.buyer_receipt().unwrap();
            self.signed = receipt.reading.total().get();
        }
        self.records.push(record.to_bytes());
    }

    pub(crate) fn read(&self) -> Vec<Record> {
        self.records
            .iter()
            .map(|bytes| Record::from_bytes(bytes).unwrap())
            .collect()
    }
}

#[derive(Debug)]
pub(crate) struct Node<M> {
    /// `None` while the process is down.
    pub(crate) machine: Option<M>,
    pub(crate) disk: Disk,
    pub(crate) meter: Meter,
    pub(crate) events: Vec<Event>,
    pub(crate) crashes: u64,
    /// Bytes that really passed, whatever a machine remembers.
    pub(crate) truth: u64,
    /// Outputs to perform before the process dies.
    pub(crate) dies_after: Option<usize>,
    /// Outputs performed.
    pub(crate) steps: usize,
}

impl<M> Node<M> {
    pub(crate) fn new(machine: M) -> Self {
        Self {
            machine: Some(machine),
            disk: Disk::default(),
            meter: Meter::default(),
            events: Vec::new(),
            crashes: 0,
            truth: 0,
            dies_after: None,
            steps: 0,
        }
    }

    fn is_to_die(&mut self) -> bool {
        self.steps += 1;
        match &mut self.dies_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    pub(crate) fn crash(&mut self) {
        self.machine = None;
        self.meter = Meter::default();
        self.dies_after = None;
        self.crashes += 1;
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) lease: Lease,
    pub(crate) deal: Deal,
    pub(crate) now: Instant,
    pub(crate) t0: Instant,
    pub(crate) patience: Patience,
    pub(crate) latency: Duration,
    pub(crate) buyer: Node<buyer::Buyer>,
    pub(crate) seller: Node<seller::Seller>,
    pub(crate) is_connected: bool,
    pub(crate) to_seller: Pipe,
    pub(crate) to_buyer: Pipe,
    /// Bytes the application still wants to move.
    pub(crate) want_up: u64,
    pub(crate) want_down: u64,
    /// Bytes a tick can move in each direction.
    pub(crate) per_tick: u64,
    /// How often each control packet is delivered.
    pub(crate) copies: usize,
    pub(crate) is_paying: bool,
    /// What the channel pays at most for the moment: its funding is young. A payment beyond it is made
    /// up to it, and one of which nothing can be made is answered when the limit rises.
    pub(crate) payable: Msat,
    pub(crate) waiting: Option<Msat>,
    /// Whether vouchers reach the depth at which they count.
    pub(crate) is_deep: bool,
    /// Whether the seller's meter counts every byte it sends down twice.
    pub(crate) counts_double: bool,
}

impl World {
    pub(crate) fn new(deal: Deal) -> Self {
        let t0 = epoch();
        let lease = deal.lease();
        let patience = Patience::default();
        let buyer = buyer::Buyer::open(lease.clone(), patience, unix(), t0);
        let seller = seller::Seller::open(lease.clone(), patience, unix(), t0);
        let mut world = Self {
            lease,
            deal,
            now: t0,
            t0,
            patience,
            latency: Duration::from_millis(20),
            buyer: Node::new(buyer),
            seller: Node::new(seller),
            is_connected: false,
            to_seller: Pipe::default(),
            to_buyer: Pipe::default(),
            want_up: 0,
            want_down: 0,
            per_tick: 8 * KIB,
            copies: 1,
            is_paying: true,
            payable: Msat::MAX,
            waiting: None,
            is_deep: true,
            counts_double: false,
        };
        let carried = Msat::from_msat(deal.carried);
        world.buyer.disk.vouchered = carried;
        world.seller.disk.vouchered = carried;
        world
    }

    pub(crate) fn unix_now(&self) -> UnixTime {
        unix().checked_add(self.now - self.t0).unwrap()
    }

    pub(crate) fn cost(&self, bytes: u64) -> Msat {
        self.lease.price().cost_of(Bytes::new(bytes)).unwrap()
    }

    pub(crate) fn connect(&mut self) {
        if self.is_connected || self.buyer.machine.is_none() || self.seller.machine.is_none() {
            return;
        }
        self.is_connected = true;
        self.tell_seller(seller::Input::Attached);
        self.tell_buyer(buyer::Input::Attached);
    }

    /// Breaks the streams: what is in them is lost.
    pub(crate) fn disconnect(&mut self) {
        if !self.is_connected {
            return;
        }
        self.is_connected = false;
        self.to_seller = Pipe::default();
        self.to_buyer = Pipe::default();
        self.buyer.meter.attached = false;
        self.seller.meter.attached = false;
        let reading = self.buyer.meter.reading;
        self.tell_buyer(buyer::Input::Metered(reading));
        self.tell_buyer(buyer::Input::Detached);
        let reading = self.seller.meter.reading;
        self.tell_seller(seller::Input::Metered(reading));
        self.tell_seller(seller::Input::Detached);
    }

    pub(crate) fn crash_buyer(&mut self) {
        self.buyer.crash();
        self.disconnect();
    }

    pub(crate) fn crash_seller(&mut self) {
        self.seller.crash();
        self.disconnect();
    }

    /// Starts whatever process is down, from its disk.
    pub(crate) fn restart(&mut self) {
        let (at, now) = (self.unix_now(), self.now);
        if self.buyer.machine.is_none() {
            let records = self.buyer.disk.read();
            let machine =
                buyer::Buyer::restore(self.lease.clone(), records, self.patience, at, now).unwrap();
            self.buyer.machine = Some(machine);
            let total = self.buyer.disk.vouchered;
            self.tell_buyer(buyer::Input::Paid { total });
        }
        if self.seller.machine.is_none() {
            let records = self.seller.disk.read();
            let machine =
                seller::Seller::restore(self.lease.clone(), records, self.patience, at, now)
                    .unwrap();
            self.seller.machine = Some(machine);
            let total = self.seller.disk.vouchered;
            self.tell_seller(seller::Input::Paid { total });
        }
    }

    pub(crate) fn tell_buyer(&mut self, input: buyer::Input) {
        let mut inbox = VecDeque::from([input]);
        while let Some(input) = inbox.pop_front() {
            let Some(machine) = &mut self.buyer.machine else {
                return;
            };
            machine.handle(input, self.now);
            self.drain_buyer(&mut inbox);
        }
    }

    pub(crate) fn tell_seller(&mut self, input: seller::Input) {
        let mut inbox = VecDeque::from([input]);
        while let Some(input) = inbox.pop_front() {
            let Some(machine) = &mut self.seller.machine else {
                return;
            };
            machine.handle(input, self.now);
            self.drain_seller(&mut inbox);
        }
    }

    fn drain_buyer(&mut self, inbox: &mut VecDeque<buyer::Input>) {
        while let Some(output) = self
            .buyer
            .machine
            .as_mut()
            .and_then(buyer::Buyer::poll_output)
        {
            if self.buyer.is_to_die() {
                return self.crash_buyer();
            }
            match output {
                Output::Start(reading) => self.buyer.meter.start(reading),
                Output::SetLimit(limit) => self.buyer.meter.limit = limit,
                Output::SetMark(mark) => self.buyer.meter.mark = Some(mark),
                Output::Stop => {
                    self.buyer.meter.attached = false;
                    let reading = self.buyer.meter.reading;
                    inbox.push_back(buyer::Input::Stopped(reading));
                }
                Output::Pay { total } if self.is_paying => {
                    let total = Msat::from_sat(total.sat_ceil()).unwrap();
                    inbox.extend(self.voucher(total));
                }
                Output::Pay { .. } => {}
                Output::Send(message) => {
                    let sealed = Signed::seal(message, &buyer_key(), NETWORK);
                    self.check_signed(sealed.content());
                    self.post_to_seller(Packet::Session(sealed.as_bytes().to_vec()));
                }
                Output::Persist(record) => self.buyer.disk.write(&record),
                Output::Notify(event) => self.buyer.events.push(event),
            }
        }
    }

    fn voucher(&mut self, wanted: Msat) -> Option<buyer::Input> {
        let held = self.buyer.disk.vouchered;
        if wanted > held && held >= self.payable {
            self.waiting = Some(wanted);
            return None;
        }
        let total = wanted.min(self.payable).max(held);
        self.buyer.disk.vouchered = total;
        self.post_to_seller(Packet::Voucher(total));
        Some(buyer::Input::Paid { total })
    }

    /// The funding is deeper: all that is wanted can be paid.
    pub(crate) fn deepen(&mut self) {
        self.payable = Msat::MAX;
        if let Some(wanted) = self.waiting.take()
            && let Some(paid) = self.voucher(wanted)
        {
            self.tell_buyer(paid);
        }
    }

    fn drain_seller(&mut self, inbox: &mut VecDeque<seller::Input>) {
        while let Some(output) = self
            .seller
            .machine
            .as_mut()
            .and_then(seller::Seller::poll_output)
        {
            if self.seller.is_to_die() {
                return self.crash_seller();
            }
            match output {
                Output::Start(reading) => self.seller.meter.start(reading),
                Output::SetLimit(limit) => self.seller.meter.limit = limit,
                Output::SetMark(mark) => self.seller.meter.mark = Some(mark),
                Output::Stop => {
                    self.seller.meter.attached = false;
                    let reading = self.seller.meter.reading;
                    inbox.push_back(seller::Input::Stopped(reading));
                }
                Output::Pay { .. } => panic!("a seller does not pay"),
                Output::Send(message) => {
                    let sealed = Signed::seal(message, &seller_key(), NETWORK);
                    self.post_to_buyer(Packet::Session(sealed.as_bytes().to_vec()));
                }
                Output::Persist(record) => self.seller.disk.write(&record),
                Output::Notify(event) => self.seller.events.push(event),
            }
        }
    }

    fn post_to_seller(&mut self, packet: Packet) {
        if self.is_connected {
            let at = self.now + self.latency;
            for _ in 0..self.copies {
                self.to_seller.control.push_back((at, packet.clone()));
            }
        }
    }

    fn post_to_buyer(&mut self, packet: Packet) {
        if self.is_connected {
            let at = self.now + self.latency;
            for _ in 0..self.copies {
                self.to_buyer.control.push_back((at, packet.clone()));
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(packet) = self.to_seller.arrived(self.now) {
            match packet {
                Packet::Session(bytes) => {
                    let message = SignedMessage::verify(&bytes, NETWORK).unwrap();
                    self.tell_seller(seller::Input::Received(message));
                }
                Packet::Voucher(total) => {
                    self.seller.disk.vouchered = self.seller.disk.vouchered.max(total);
                    self.tell_seller(if self.is_deep {
                        seller::Input::Paid { total }
                    } else {
                        seller::Input::Deferred { total }
                    });
                }
            }
        }
        while let Some(packet) = self.to_buyer.arrived(self.now) {
            let Packet::Session(bytes) = packet else {
                panic!("a seller sends no vouchers");
            };
            let message = SignedMessage::verify(&bytes, NETWORK).unwrap();
            self.tell_buyer(buyer::Input::Received(message));
        }
    }

    /// Moves payload as the tunnel does: the buyer counts what it sends up and what it receives down,
    /// the seller what it forwards up and what it sends down.
    fn carry(&mut self) {
        if !self.is_connected {
            return;
        }
        let arrival = self.now + self.latency;
        let n = self
            .buyer
            .meter
            .take(Direction::Up, self.want_up.min(self.per_tick));
        self.want_up -= n;
        self.buyer.truth += n;
        if n > 0 {
            self.to_seller.lane.push_back((arrival, n));
        }
        let n = self
            .seller
            .meter
            .take(Direction::Down, self.want_down.min(self.per_tick));
        self.want_down -= n;
        self.seller.truth += n;
        if self.counts_double {
            self.seller.meter.take(Direction::Down, n);
        }
        if n > 0 {
            self.to_buyer.lane.push_back((arrival, n));
        }
        while let Some((at, n)) = self.to_seller.lane.front_mut()
            && *at <= self.now
        {
            let taken = self.seller.meter.take(Direction::Up, *n);
            self.seller.truth += taken;
            *n -= taken;
            if *n > 0 {
                break;
            }
            self.to_seller.lane.pop_front();
        }
        while let Some((at, n)) = self.to_buyer.lane.front_mut()
            && *at <= self.now
        {
            let taken = self.buyer.meter.take(Direction::Down, *n);
            self.buyer.truth += taken;
            *n -= taken;
            if *n > 0 {
                break;
            }
            self.to_buyer.lane.pop_front();
        }
    }

    fn report(&mut self) {
        while let Some(reading) = self.buyer.meter.reached() {
            self.tell_buyer(buyer::Input::Metered(reading));
        }
        while let Some(reading) = self.seller.meter.reached() {
            self.tell_seller(seller::Input::Metered(reading));
        }
    }

    fn time_out(&mut self) {
        let buyer = self.buyer.machine.as_mut();
        if let Some(machine) = buyer
            && machine.poll_timeout().is_some_and(|(at, _)| at <= self.now)
        {
            machine.handle_timeout(self.now);
            let mut inbox = VecDeque::new();
            self.drain_buyer(&mut inbox);
            for input in inbox {
                self.tell_buyer(input);
            }
        }
        let seller = self.seller.machine.as_mut();
        if let Some(machine) = seller
            && machine.poll_timeout().is_some_and(|(at, _)| at <= self.now)
        {
            machine.handle_timeout(self.now);
            let mut inbox = VecDeque::new();
            self.drain_seller(&mut inbox);
            for input in inbox {
                self.tell_seller(input);
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        self.now += TICK;
        self.deliver();
        self.carry();
        self.report();
        self.time_out();
        self.check();
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// Runs until `done` or panics after `time`.
    #[track_caller]
    pub(crate) fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + time;
        while !done(self) {
            assert!(self.now < end, "not done after {time:?}: {self:#?}");
            self.tick();
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.want_down == 0
            && self.want_up == 0
            && self.to_buyer.lane.is_empty()
            && self.to_seller.lane.is_empty()
    }

    /// Ends it from the buyer's side and returns how it ended on both.
    pub(crate) fn close(&mut self) -> (Ending, Ending) {
        let reason = bitmesh_market::session::CloseReason::Completed;
        self.tell_buyer(buyer::Input::CloseAsked(reason));
        self.run_until(Duration::from_secs(30), |world| {
            world.buyer_ending().is_some() && world.seller_ending().is_some()
        });
        (self.buyer_ending().unwrap(), self.seller_ending().unwrap())
    }

    pub(crate) fn buyer_ending(&self) -> Option<Ending> {
        self.buyer.machine.as_ref()?.ending()
    }

    pub(crate) fn seller_ending(&self) -> Option<Ending> {
        self.seller.machine.as_ref()?.ending()
    }

    /// A buyer never signs for more than it took, nor at another price.
    fn check_signed(&self, message: &Message) {
        if let Some(receipt) = message.body.buyer_receipt() {
            let total = receipt.reading.total().get();
            assert!(total <= self.buyer.truth, "signed for what never came");
            assert_eq!(receipt.billed, self.cost(total));
        }
    }

    /// The promises of the session, on what really happened.
    pub(crate) fn check(&self) {
        check_buyer(
            &self.lease,
            self.buyer.truth,
            self.buyer.disk.vouchered,
            self.deal.max_quota,
        );
        check_seller(&self.lease, &self.seller);
    }
}

/// A buyer has paid at most for a window more than it used, or the first payment; the rest of a
/// satoshi on top.
pub(crate) fn check_buyer(lease: &Lease, used: u64, paid: Msat, quota: u64) {
    let ahead = match lease.mode() {
        Mode::Prepaid => lease.window().get(),
        Mode::Postpaid => 0,
    };
    let most = lease
        .price()
        .cost_of(Bytes::new((used + ahead).min(quota)))
        .unwrap()
        .max(lease.carried().checked_add(lease.min_first()).unwrap());
    let most = Msat::from_sat(most.sat_ceil()).unwrap();
    assert!(
        paid <= most,
        "paid {} msat having used {used} bytes; at most {} msat",
        paid.msat(),
        most.msat()
    );
}

/// A seller has delivered at most a window that is not signed for, and at most a window (postpaid) or
/// nothing (prepaid) that is not paid. A crash forgets at most a window.
pub(crate) fn check_seller(lease: &Lease, node: &Node<seller::Seller>) {
    let window = lease.window().get();
    let forgiven = node.crashes * window;
    let signed = node.disk.signed;
    assert!(
        node.truth <= signed + window + forgiven,
        "delivered {} bytes, signed for {signed}",
        node.truth
    );
    let credit = match lease.mode() {
        Mode::Prepaid => 0,
        Mode::Postpaid => window,
    };
    let paid = lease.price().bytes_for(node.disk.vouchered).get();
    assert!(
        node.truth <= paid.saturating_add(credit + forgiven),
        "delivered {} bytes, paid for {paid}",
        node.truth
    );
}
