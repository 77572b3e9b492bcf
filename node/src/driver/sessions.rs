//! Sessions: the machines of `market` on one side, streams, meters and tunnels on the other.

mod outputs;
mod streams;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::session::{
    self, CloseReason, Output, Patience, PayFailure, Reading, Receipt, SignedMessage, buyer, seller,
};
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::{Bytes, Msat};
use bitmesh_wallet::keys::Role;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::closed::ClosedLease;
use super::{Driver, Wake};
use crate::link::Link;
use crate::mesh::{Command, MeshStream};
use crate::records::{Codec, Kind, LeaseRecord, WrittenOffRecord};
use crate::tunnel::{Ingress, Meter};

/// First wait before a broken session is dialled again. A restart of the other side takes about as
/// long.
const REDIAL_FIRST: Duration = Duration::from_millis(200);

/// One lease being carried out.
#[derive(Debug)]
pub(super) struct Session {
    machine: Machine,
    pub(super) peer: NodeId,
    pub(super) opened_at: UnixTime,
    pub(super) meter: Arc<Meter>,
    meter_watch: AbortHandle,
    link: Option<Link>,
    /// Set once the machine has said that flows may be attached to the present connection.
    may_flow: bool,
    /// Counts the connections of this session, so that news of an old one is told from the new.
    attempt: u64,
    /// The connection whose tunnel runs, until it has said that it no longer does.
    running: Option<u64>,
    /// Set when the machine waits for the meter's last word.
    is_stopping: bool,
    was_attached: bool,
    end: End,
    pub(super) speed: Speed,
    /// The last receipt that both signed.
    pub(super) receipted: Option<Receipt>,
}

#[derive(Debug)]
enum Machine {
    Buyer(Box<buyer::Buyer>),
    Seller(Box<seller::Seller>),
}

/// This node's end of the tunnel.
pub(super) enum End {
    Buyer {
        ingress: Ingress,
        /// Lanes that are open and carry nothing yet.
        lanes: Vec<MeshStream>,
        /// When to dial again, if the streams are gone.
        redial_at: Option<Instant>,
        redial_wait: Duration,
    },
    Seller {
        /// Lanes that have come so far, by their index less one.
        lanes: Vec<Option<MeshStream>>,
        /// Cuts the tunnel that runs.
        cut: Option<CancellationToken>,
    },
}

impl End {
    /// A buyer's, with the port for its applications: dialled at once.
    pub(super) fn buyer(ingress: Ingress, now: Instant) -> Self {
        Self::Buyer {
            ingress,
            lanes: Vec::new(),
            redial_at: Some(now),
            redial_wait: REDIAL_FIRST,
        }
    }

    /// A seller's, which waits for the buyer.
    pub(super) fn seller() -> Self {
        Self::Seller {
            lanes: Vec::new(),
            cut: None,
        }
    }

    fn role(&self) -> Role {
        match self {
            Self::Buyer { .. } => Role::Payer,
            Self::Seller { .. } => Role::Payee,
        }
    }
}

/// How fast a session has been lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    since: Instant,
    total: Bytes,
    /// Bytes per second over the last full period.
    pub(super) bytes_per_s: u64,
}

impl Speed {
    /// Over how long speed is averaged.
    const PERIOD: Duration = Duration::from_secs(2);

    fn new(now: Instant) -> Self {
        Self {
            since: now,
            total: Bytes::ZERO,
            bytes_per_s: 0,
        }
    }

    fn update(&mut self, total: Bytes, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < Self::PERIOD {
            return;
        }
        let delta = u128::from(total.saturating_sub(self.total).get());
        let rate = delta * 1_000 / elapsed.as_millis().max(1);
        *self = Self {
            since: now,
            total,
            bytes_per_s: u64::try_from(rate).unwrap_or(u64::MAX),
        };
    }
}

impl Session {
    pub(super) fn role(&self) -> Role {
        match self.machine {
            Machine::Buyer(_) => Role::Payer,
            Machine::Seller(_) => Role::Payee,
        }
    }

    pub(super) fn lease(&self) -> &Lease {
        match &self.machine {
            Machine::Buyer(machine) => machine.lease(),
            Machine::Seller(machine) => machine.lease(),
        }
    }

    pub(super) fn quota(&self) -> Bytes {
        match &self.machine {
            Machine::Buyer(machine) => machine.quota(),
            Machine::Seller(machine) => machine.quota(),
        }
    }

    pub(super) fn paid(&self) -> Msat {
        match &self.machine {
            Machine::Buyer(machine) => machine.paid(),
            Machine::Seller(machine) => machine.paid(),
        }
    }

    pub(super) fn receipt(&self) -> Option<Receipt> {
        match &self.machine {
            Machine::Buyer(machine) => machine.receipt(),
            Machine::Seller(machine) => machine.receipt(),
        }
    }

    pub(super) fn paused(&self) -> Option<session::PauseReason> {
        match &self.machine {
            Machine::Buyer(machine) => machine.paused(),
            Machine::Seller(machine) => machine.paused(),
        }
    }

    pub(super) fn ending(&self) -> Option<session::Ending> {
        match &self.machine {
            Machine::Buyer(machine) => machine.ending(),
            Machine::Seller(machine) => machine.ending(),
        }
    }

    /// What this node's own meter says, and what that costs.
    pub(super) fn reading(&self) -> Reading {
        self.meter.reading()
    }

    pub(super) fn cost(&self) -> Msat {
        self.lease()
            .price()
            .cost_of(self.reading().total())
            .unwrap_or(Msat::MAX)
    }

    pub(super) fn proxy(&self) -> Option<std::net::SocketAddr> {
        match &self.end {
            End::Buyer { ingress, .. } => Some(ingress.local_addr()),
            End::Seller { .. } => None,
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    fn poll_output(&mut self) -> Option<Output> {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.poll_output(),
            Machine::Seller(machine) => machine.poll_output(),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let machine = match &self.machine {
            Machine::Buyer(machine) => machine.poll_timeout(),
            Machine::Seller(machine) => machine.poll_timeout(),
        };
        let redial = match &self.end {
            End::Buyer { redial_at, .. } => *redial_at,
            End::Seller { .. } => None,
        };
        machine.map(|(at, _why)| at).into_iter().chain(redial).min()
    }

    fn attached(&mut self, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::Attached, now),
            Machine::Seller(machine) => machine.handle(seller::Input::Attached, now),
        }
    }

    fn detached(&mut self, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::Detached, now),
            Machine::Seller(machine) => machine.handle(seller::Input::Detached, now),
        }
    }

    fn metered(&mut self, reading: Reading, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::Metered(reading), now),
            Machine::Seller(machine) => machine.handle(seller::Input::Metered(reading), now),
        }
    }

    fn stopped(&mut self, reading: Reading, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::Stopped(reading), now),
            Machine::Seller(machine) => machine.handle(seller::Input::Stopped(reading), now),
        }
    }

    fn received(&mut self, message: SignedMessage, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::Received(message), now),
            Machine::Seller(machine) => machine.handle(seller::Input::Received(message), now),
        }
    }

    fn paid_in(&mut self, total: Msat, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::Paid { total }, now),
            Machine::Seller(machine) => machine.handle(seller::Input::Paid { total }, now),
        }
    }

    fn close_asked(&mut self, reason: CloseReason, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle(buyer::Input::CloseAsked(reason), now),
            Machine::Seller(machine) => machine.handle(seller::Input::CloseAsked(reason), now),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match &mut self.machine {
            Machine::Buyer(machine) => machine.handle_timeout(now),
            Machine::Seller(machine) => machine.handle_timeout(now),
        }
    }

    /// Takes the flows off the lanes; what was counted stays counted. The tunnel's own task tells
    /// when nothing moves any more.
    fn cut_tunnel(&mut self) {
        self.may_flow = false;
        match &mut self.end {
            End::Buyer { ingress, lanes, .. } => {
                lanes.clear();
                ingress.detach();
            }
            End::Seller { lanes, cut } => {
                if let Some(cut) = cut.take() {
                    cut.cancel();
                }
                lanes.clear();
            }
        }
    }

    /// Whether the other side has ever been met.
    pub(super) fn was_attached(&self) -> bool {
        self.was_attached
    }

    /// Whether the session is on its way to its end.
    pub(super) fn is_closing(&self) -> bool {
        match &self.machine {
            Machine::Buyer(machine) => machine.is_closing(),
            Machine::Seller(machine) => machine.is_closing(),
        }
    }

    /// Follows the speed; returns whether anything has moved lately.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        let before = self.speed.bytes_per_s;
        self.speed.update(self.meter.reading().total(), now);
        before > 0 || self.speed.bytes_per_s > 0
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buyer { .. } => "Buyer",
            Self::Seller { .. } => "Seller",
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.meter_watch.abort();
    }
}

impl Driver {
    /// Begins the session of a lease that both have signed. The lease is durable when this returns.
    pub(super) fn begin_session(&mut self, lease: Lease, end: End) {
        let role = end.role();
        if role == Role::Payer {
            let (seller, carried) = (lease.seller(), lease.carried());
            if let Some(total) = self.payments.credit_recognised(seller, carried) {
                let record = WrittenOffRecord::new(seller, total);
                self.persist(Kind::WrittenOff, &record.to_bytes());
            }
        }
        let record = LeaseRecord::new(role, &lease);
        self.persist(Kind::Lease, &record.to_bytes());
        let (at, now) = (self.clock.unix(), self.clock.now());
        let machine = match role {
            Role::Payer => Machine::Buyer(Box::new(buyer::Buyer::open(
                lease,
                Patience::default(),
                at,
                now,
            ))),
            Role::Payee => Machine::Seller(Box::new(seller::Seller::open(
                lease,
                Patience::default(),
                at,
                now,
            ))),
        };
        self.add_session(machine, Reading::ZERO, end);
    }

    /// Takes a session up again after a restart. One that had closed only leaves what it billed.
    pub(super) fn resume_session(
        &mut self,
        lease: Lease,
        role: Role,
        records: Vec<session::Record>,
    ) -> Result<(), String> {
        let (at, now) = (self.clock.unix(), self.clock.now());
        let opened_at = lease.accepted();
        let (machine, reading) = match role {
            Role::Payer => {
                let machine = buyer::Buyer::restore(lease, records, Patience::default(), at, now)
                    .map_err(|error| error.to_string())?;
                let reading = machine.reading();
                (Machine::Buyer(Box::new(machine)), reading)
            }
            Role::Payee => {
                let machine = seller::Seller::restore(lease, records, Patience::default(), at, now)
                    .map_err(|error| error.to_string())?;
                let reading = machine.reading();
                (Machine::Seller(Box::new(machine)), reading)
            }
        };
        let ending = match &machine {
            Machine::Buyer(machine) => machine.ending(),
            Machine::Seller(machine) => machine.ending(),
        };
        if let Some(ending) = ending {
            let (lease, quota) = match &machine {
                Machine::Buyer(machine) => (machine.lease(), machine.quota()),
                Machine::Seller(machine) => (machine.lease(), machine.quota()),
            };
            let peer = other_side(lease, role);
            self.payments.restore_billed(role, peer, ending.billed());
            let channel = self
                .payments
                .channel_in_use(role, peer)
                .map(|channel| channel.id);
            let lease = lease.clone();
            self.closed.add(ClosedLease {
                lease,
                role,
                opened_at,
                quota,
                ending,
                channel,
            });
            return Ok(());
        }
        let end = match role {
            Role::Payer => End::buyer(self.bind_somewhere().map_err(|e| e.to_string())?, now),
            Role::Payee => End::seller(),
        };
        self.add_session(machine, reading, end);
        Ok(())
    }

    fn add_session(&mut self, machine: Machine, reading: Reading, end: End) {
        let now = self.clock.now();
        let (lease, role) = match &machine {
            Machine::Buyer(machine) => (machine.lease(), Role::Payer),
            Machine::Seller(machine) => (machine.lease(), Role::Payee),
        };
        let (id, peer, opened_at) = (lease.id(), other_side(lease, role), lease.accepted());
        let quota = match &machine {
            Machine::Buyer(machine) => machine.quota(),
            Machine::Seller(machine) => machine.quota(),
        };
        let reach = lease.price().cost_of(quota).unwrap_or(Msat::MAX);
        let meter = Arc::new(Meter::new(reading));
        let meter_watch = self.watch_meter(id, Arc::clone(&meter));
        let session = Session {
            machine,
            peer,
            opened_at,
            meter,
            meter_watch,
            link: None,
            may_flow: false,
            attempt: 0,
            running: None,
            is_stopping: false,
            was_attached: false,
            end,
            speed: Speed::new(now),
            receipted: None,
        };
        self.sessions.insert(id, session);
        self.payments.lease_begun(role, peer, id, reach);
        self.mesh_do(Command::Protect(peer));
        self.sync_journal();
        if self.broken {
            return;
        }
        let paid = self.payments.session_paid(role, peer);
        if let Some(session) = self.sessions.get_mut(&id)
            && paid > Msat::ZERO
        {
            session.paid_in(paid, now);
        }
        self.drain_session(id);
    }

    /// Listens where the operator said, or on a free port if that one is taken by another session.
    pub(super) fn bind_ingress(&self) -> std::io::Result<Ingress> {
        match Ingress::listen(self.config.buy.proxy) {
            Ok(ingress) => Ok(ingress),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let mut free = self.config.buy.proxy;
                free.set_port(0);
                Ingress::listen(free)
            }
            Err(error) => Err(error),
        }
    }

    /// The same for a lease that goes on after a restart, which no setting may stop: anywhere on this
    /// machine if need be.
    fn bind_somewhere(&self) -> std::io::Result<Ingress> {
        self.bind_ingress().or_else(|error| {
            let place = self.config.buy.proxy;
            warn!(%place, %error, "buy.proxy cannot be listened on; taking a free port of 127.0.0.1");
            Ingress::listen(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))
        })
    }

    /// Tells the driver, once for each mark, that a meter has passed it.
    fn watch_meter(&self, lease: LeaseId, meter: Arc<Meter>) -> AbortHandle {
        let wakes = self.wakes.clone();
        let task = tokio::spawn(async move {
            loop {
                let reading = meter.marked().await;
                if wakes.send(Wake::Metered { lease, reading }).await.is_err() {
                    return;
                }
            }
        });
        task.abort_handle()
    }

    pub(super) fn session_metered(&mut self, id: LeaseId, reading: Reading) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.speed.update(reading.total(), now);
        session.metered(reading, now);
        self.drain_session(id);
    }

    pub(super) fn session_paid(&mut self, id: LeaseId, total: Msat) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let before = session.paid();
        session.paid_in(total, now);
        if let Some(delta) = total.checked_sub(before).filter(|delta| !delta.is_zero()) {
            self.tell_payment(id, delta, total);
        }
        self.drain_session(id);
    }

    /// Tells a session of the seller's something about what pays for it.
    pub(super) fn session_funding(&mut self, id: LeaseId, input: seller::Input) {
        let now = self.clock.now();
        if let Some(session) = self.sessions.get_mut(&id)
            && let Machine::Seller(machine) = &mut session.machine
        {
            machine.handle(input, now);
            self.drain_session(id);
        }
    }

    pub(super) fn session_pay_failed(&mut self, id: LeaseId, failure: PayFailure) {
        let now = self.clock.now();
        if let Some(session) = self.sessions.get_mut(&id)
            && let Machine::Buyer(machine) = &mut session.machine
        {
            machine.handle(buyer::Input::PayFailed(failure), now);
            self.drain_session(id);
        }
    }

    pub(super) fn close_session(&mut self, id: LeaseId, reason: CloseReason) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.close_asked(reason, now);
        self.drain_session(id);
    }

    pub(super) fn extend_session(&mut self, id: LeaseId, quota: Bytes) {
        let now = self.clock.now();
        if let Some(session) = self.sessions.get_mut(&id)
            && let Machine::Buyer(machine) = &mut session.machine
        {
            machine.handle(buyer::Input::Extend { quota }, now);
            self.drain_session(id);
        }
    }

    pub(super) fn sessions_timed_out(&mut self, now: Instant) {
        let due: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.poll_timeout().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            session.handle_timeout(now);
            let redials = match &mut session.end {
                End::Buyer { redial_at, .. } if redial_at.is_some_and(|at| at <= now) => {
                    *redial_at = None;
                    true
                }
                End::Buyer { .. } | End::Seller { .. } => false,
            };
            if redials {
                self.dial_session(id);
            }
            self.drain_session(id);
        }
    }
}

/// The peer of a lease, seen from the side with this role.
pub(super) fn other_side(lease: &Lease, role: Role) -> NodeId {
    match role {
        Role::Payer => lease.seller(),
        Role::Payee => lease.buyer(),
    }
}
