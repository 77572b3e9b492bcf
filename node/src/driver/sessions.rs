//! Sessions: the machines of `market` on one side, streams, meters and tunnels on the other.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::session::{
    self, CloseReason, Event, Message, Output, Patience, PayFailure, Reading, Receipt,
    SignedMessage, buyer, seller,
};
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::{Bytes, Msat};
use bitmesh_wallet::channel::message::Message as ChannelMessage;
use bitmesh_wallet::keys::Role;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::closed::ClosedLease;
use super::{Driver, Wake};
use crate::control::api;
use crate::link::{Frame, Link, LinkEvent};
use crate::mesh::{Command, InboundStream, MeshStream, OpenError};
use crate::protocol::{Hello, RefusalCode};
use crate::records::{Kind, LeaseRecord};
use crate::tunnel::ingress::Notice;
use crate::tunnel::{Ended, Ingress, LANES, Meter};

/// First wait before a broken session is dialled again. A restart of the other side takes about as
/// long.
const REDIAL_FIRST: Duration = Duration::from_millis(200);

/// Longest wait between two dials of a broken session; several fit into a session's patience.
const REDIAL_MOST: Duration = Duration::from_secs(5);

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
enum End {
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
    pub(super) fn begin_session(&mut self, lease: Lease, role: Role) -> std::io::Result<()> {
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
        self.add_session(machine, Reading::ZERO)
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
        self.add_session(machine, reading)
            .map_err(|error| error.to_string())
    }

    fn add_session(&mut self, machine: Machine, reading: Reading) -> std::io::Result<()> {
        let now = self.clock.now();
        let (lease, role) = match &machine {
            Machine::Buyer(machine) => (machine.lease(), Role::Payer),
            Machine::Seller(machine) => (machine.lease(), Role::Payee),
        };
        let (id, peer, opened_at) = (lease.id(), other_side(lease, role), lease.accepted());
        let end = match role {
            Role::Payer => End::Buyer {
                ingress: self.bind_ingress()?,
                lanes: Vec::new(),
                redial_at: Some(now),
                redial_wait: REDIAL_FIRST,
            },
            Role::Payee => End::Seller {
                lanes: Vec::new(),
                cut: None,
            },
        };
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
        self.payments.lease_begun(role, peer, id);
        self.mesh_do(Command::Protect(peer));
        let paid = self.payments.session_paid(role, peer);
        if let Some(session) = self.sessions.get_mut(&id)
            && paid > Msat::ZERO
        {
            session.paid_in(paid, now);
        }
        self.drain_session(id);
        Ok(())
    }

    /// Listens where the operator said, or on a free port if that one is taken by another session.
    fn bind_ingress(&self) -> std::io::Result<Ingress> {
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

    // What happened to a session.

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

    pub(super) fn session_deferred(&mut self, id: LeaseId, total: Msat) {
        let now = self.clock.now();
        if let Some(session) = self.sessions.get_mut(&id)
            && let Machine::Seller(machine) = &mut session.machine
        {
            machine.handle(seller::Input::Deferred { total }, now);
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

    // Streams.

    /// Buyer: opens the control stream and the lanes, in the background.
    fn dial_session(&mut self, id: LeaseId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.attempt += 1;
        let (to, attempt, mesh, wakes) = (
            session.peer,
            session.attempt,
            self.mesh.clone(),
            self.wakes.clone(),
        );
        tokio::spawn(async move {
            let lease = *id.as_bytes();
            let open = async {
                // The control stream first: with it the seller forgets the streams of an earlier try.
                let control = mesh.open_stream(to, Hello { lease, index: 0 }).await?;
                let mut lanes = Vec::with_capacity(LANES);
                for index in lane_indexes() {
                    lanes.push(mesh.open_stream(to, Hello { lease, index }).await?);
                }
                Ok::<_, OpenError>((control, lanes))
            };
            let streams = open.await;
            let _ = wakes
                .send(Wake::Dialled {
                    lease: id,
                    attempt,
                    streams,
                })
                .await;
        });
    }

    /// Buyer: the streams are there, or not.
    pub(super) fn session_dialled(
        &mut self,
        id: LeaseId,
        attempt: u64,
        streams: Result<(MeshStream, Vec<MeshStream>), OpenError>,
    ) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.attempt != attempt || session.ending().is_some() {
            return;
        }
        let (control, streams) = match streams {
            Ok(streams) => streams,
            Err(error) => {
                debug!(lease = %id, %error, "the session's streams did not open; trying again");
                self.redial_later(id);
                return;
            }
        };
        let wakes = self.wakes.clone();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.link = Some(start_link(control, wakes.clone(), id, attempt));
        session.was_attached = true;
        if let End::Buyer {
            redial_wait, lanes, ..
        } = &mut session.end
        {
            *redial_wait = REDIAL_FIRST;
            *lanes = streams;
        }
        let reading = session.reading();
        session.metered(reading, now);
        session.attached(now);
        let peer = session.peer;
        self.drain_session(id);
        self.payments.connected(peer, now);
    }

    /// Lets flows onto the lanes, once all lanes are there and the machine has said so.
    fn start_tunnel(&mut self, id: LeaseId) {
        let wakes = self.wakes.clone();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !session.may_flow {
            return;
        }
        let (attempt, rate) = (session.attempt, session.lease().rate());
        let meter = Arc::clone(&session.meter);
        let ended = move |ended| async move {
            let _ = wakes
                .send(Wake::TunnelEnded {
                    lease: id,
                    attempt,
                    ended,
                })
                .await;
        };
        match &mut session.end {
            End::Buyer { ingress, lanes, .. } if lanes.len() == LANES => {
                let mut attachment = ingress.attach(std::mem::take(lanes), meter);
                tokio::spawn(async move { ended(attachment.ended().await).await });
            }
            End::Seller { lanes, cut }
                if lanes.len() == LANES && lanes.iter().all(Option::is_some) =>
            {
                let token = CancellationToken::new();
                *cut = Some(token.clone());
                let lanes = lanes.drain(..).flatten().collect();
                self.outlet.serve(lanes, meter, rate, token, ended);
            }
            End::Buyer { .. } | End::Seller { .. } => return,
        }
        session.running = Some(attempt);
    }

    fn redial_later(&mut self, id: LeaseId) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let End::Buyer {
            redial_at,
            redial_wait,
            ..
        } = &mut session.end
        {
            *redial_at = now.checked_add(*redial_wait);
            *redial_wait = redial_wait.saturating_mul(2).min(REDIAL_MOST);
        }
    }

    /// Seller: a buyer opens one of a session's streams.
    pub(super) fn stream_came(&mut self, from: NodeId, stream: InboundStream) {
        let hello = stream.hello();
        let id = LeaseId::from_bytes(hello.lease);
        let is_ours = self.sessions.get(&id).is_some_and(|session| {
            session.peer == from && session.role() == Role::Payee && session.ending().is_none()
        });
        if !is_ours {
            stream.refuse(RefusalCode::Unknown);
            return;
        }
        let wakes = self.wakes.clone();
        tokio::spawn(async move {
            if let Ok(stream) = stream.accept().await {
                let wake = Wake::StreamOpened {
                    lease: id,
                    index: hello.index,
                    stream,
                };
                let _ = wakes.send(wake).await;
            }
        });
    }

    /// Seller: one of a session's streams is open.
    pub(super) fn stream_opened(&mut self, id: LeaseId, index: u8, stream: MeshStream) {
        let now = self.clock.now();
        let wakes = self.wakes.clone();
        if index == 0 {
            // A control stream begins a new connection: whatever is left of the old one is void.
            self.detach_session(id);
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            if session.ending().is_some() {
                return;
            }
            session.attempt += 1;
            session.link = Some(start_link(stream, wakes, id, session.attempt));
            session.was_attached = true;
            let reading = session.reading();
            session.metered(reading, now);
            session.attached(now);
            let peer = session.peer;
            self.drain_session(id);
            self.payments.connected(peer, now);
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let is_attached = session.link.is_some();
        let End::Seller { lanes, cut } = &mut session.end else {
            return;
        };
        let place = usize::from(index).wrapping_sub(1);
        if !is_attached || place >= LANES || cut.is_some() {
            return;
        }
        lanes.resize_with(LANES, || None);
        lanes[place] = Some(stream);
        self.start_tunnel(id);
    }

    /// The control stream said something, or broke.
    pub(super) fn link_event(&mut self, id: LeaseId, attempt: u64, event: LinkEvent) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.attempt != attempt {
            return;
        }
        let peer = session.peer;
        match event {
            LinkEvent::Broken => {
                self.detach_session(id);
                self.redial_later(id);
            }
            LinkEvent::Received(Frame::Session(bytes)) => {
                match Signed::<Message>::verify(&bytes, self.network) {
                    Ok(message) => {
                        // The reading as of now, so that the machine judges by the latest count.
                        let reading = session.reading();
                        session.metered(reading, now);
                        session.received(message, now);
                    }
                    Err(error) => {
                        warn!(lease = %id, %peer, %error, "a session message does not verify");
                        session.close_asked(CloseReason::Violation, now);
                    }
                }
                self.drain_session(id);
            }
            LinkEvent::Received(Frame::Channel(bytes)) => {
                self.channel_bytes(peer, &bytes, None);
            }
        }
    }

    /// The streams are gone.
    fn detach_session(&mut self, id: LeaseId) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.link.is_none() {
            return;
        }
        session.link = None;
        session.cut_tunnel();
        let reading = session.reading();
        session.metered(reading, now);
        session.detached(now);
        self.drain_session(id);
    }

    /// Nothing moves any more in the tunnel of one connection.
    pub(super) fn tunnel_ended(&mut self, id: LeaseId, attempt: u64, ended: &Ended) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.running != Some(attempt) {
            return;
        }
        session.running = None;
        if session.is_stopping {
            session.is_stopping = false;
            let reading = session.reading();
            session.stopped(reading, now);
            self.drain_session(id);
            return;
        }
        if session.attempt != attempt || session.link.is_none() {
            return;
        }
        match ended {
            Ended::Violated(violation) => {
                warn!(lease = %id.short(), %violation, "the other side broke the tunnel's rules");
                self.close_session(id, CloseReason::Violation);
            }
            Ended::Detached | Ended::LaneLost(_) | Ended::NotReading => {
                debug!(lease = %id.short(), %ended, "the tunnel ended; connecting again");
                self.detach_session(id);
                self.redial_later(id);
            }
        }
    }

    /// Sends a message of the payment channel over the peer's session, if one is attached.
    pub(super) fn send_on_session(&self, to: NodeId, message: &ChannelMessage) -> bool {
        let open = self
            .sessions
            .values()
            .find(|session| session.peer == to && session.link.is_some());
        let Some(link) = open.and_then(|session| session.link.as_ref()) else {
            return false;
        };
        link.send(Frame::Channel(message.to_bytes())).is_ok()
    }

    // Outputs.

    /// Performs everything a session's machine asks for, in order.
    pub(super) fn drain_session(&mut self, id: LeaseId) {
        let mut ended = None;
        loop {
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            let Some(output) = session.poll_output() else {
                break;
            };
            match output {
                Output::Start(reading) => {
                    if session.reading() != reading {
                        session.meter_watch.abort();
                        session.meter = Arc::new(Meter::new(reading));
                        let meter = Arc::clone(&session.meter);
                        let watch = self.watch_meter(id, meter);
                        if let Some(session) = self.sessions.get_mut(&id) {
                            session.meter_watch = watch;
                        }
                    }
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.may_flow = true;
                    }
                    self.start_tunnel(id);
                }
                Output::SetLimit(total) => session.meter.set_limit(total),
                Output::SetMark(total) => session.meter.set_mark(total),
                Output::Stop => {
                    let now = self.clock.now();
                    session.cut_tunnel();
                    if session.running.is_some() {
                        session.is_stopping = true;
                    } else {
                        let reading = session.reading();
                        session.stopped(reading, now);
                    }
                }
                Output::Pay { total } => {
                    let (peer, now) = (session.peer, self.clock.now());
                    self.payments.pay(peer, total, now);
                }
                Output::Send(message) => {
                    let sealed = Signed::seal(message, &self.signer, self.network);
                    if let Some(link) = &session.link
                        && link
                            .send(Frame::Session(sealed.as_bytes().to_vec()))
                            .is_err()
                    {
                        let (attempt, wakes) = (session.attempt, self.wakes.clone());
                        tokio::spawn(async move {
                            let event = LinkEvent::Broken;
                            let _ = wakes
                                .send(Wake::Link {
                                    lease: id,
                                    attempt,
                                    event,
                                })
                                .await;
                        });
                    }
                }
                Output::Persist(record) => {
                    let bytes = record.to_bytes();
                    self.persist(Kind::Session, &bytes);
                }
                Output::Notify(event) => {
                    if let Event::Closed(ending) = &event {
                        ended = Some(*ending);
                    }
                    self.session_event(id, event);
                }
            }
        }
        if let Some(ending) = ended {
            self.end_session(id, ending);
        }
    }

    fn session_event(&mut self, id: LeaseId, event: Event) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match event {
            Event::Paused(reason) => {
                info!(lease = %id.short(), ?reason, "paused");
                if let End::Buyer { ingress, .. } = &mut session.end {
                    ingress.set_notice(Some(Notice(super::words::pause_notice(reason, id))));
                }
                let lease = self.lease_view(id);
                self.tell(lease.map(|lease| api::Event::LeasePaused { lease }));
            }
            Event::Resumed => {
                info!(lease = %id.short(), "carrying");
                if let End::Buyer { ingress, .. } = &mut session.end {
                    ingress.set_notice(None);
                }
                let lease = self.lease_view(id);
                self.purchase_carries(id);
                self.tell(lease.map(|lease| api::Event::LeaseResumed { lease }));
            }
            Event::Extended { .. } | Event::NotExtended { .. } => self.extension_answered(id),
            Event::Receipted(receipt) => {
                session.receipted = Some(receipt);
                let usage = self.usage_line(id);
                self.tell(usage.map(|usage| api::Event::Usage { usage }));
            }
            Event::PayFailed(failure) => warn!(lease = %id.short(), ?failure, "a payment failed"),
            Event::Ignored(fault) => debug!(lease = %id.short(), ?fault, "a message was ignored"),
            Event::Closed(ending) => {
                info!(lease = %id.short(), reason = ?ending.reason, signatures = ?ending.signatures, "closed");
            }
        }
    }

    /// The machine has ended: settle the account and let go of everything.
    fn end_session(&mut self, id: LeaseId, ending: session::Ending) {
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        let (role, peer) = (session.role(), session.peer);
        session.link = None;
        session.cut_tunnel();
        self.payments.lease_over(role, peer, id, ending.billed());
        if !self.sessions.values().any(|other| other.peer == peer) {
            self.mesh_do(Command::Unprotect(peer));
        }
        let channel = self
            .payments
            .channel_in_use(role, peer)
            .map(|channel| channel.id);
        let (lease, opened_at) = (session.lease().clone(), session.opened_at);
        let quota = session.quota();
        self.closed.add(ClosedLease {
            lease,
            role,
            opened_at,
            quota,
            ending,
            channel,
        });
        let lease = self.lease_view(id);
        self.purchase_failed(id, ending.reason);
        self.close_answered(id);
        self.tell(lease.map(|lease| api::Event::LeaseClosed { lease }));
        if role == Role::Payee {
            self.slot_free(id);
            self.restate_offer_if_needed();
        }
    }
}

/// Indexes of the lanes among a session's streams; 0 is the control stream.
fn lane_indexes() -> impl Iterator<Item = u8> {
    (1..).take(LANES)
}

/// The peer of a lease, seen from the side with this role.
pub(super) fn other_side(lease: &Lease, role: Role) -> NodeId {
    match role {
        Role::Payer => lease.seller(),
        Role::Payee => lease.buyer(),
    }
}

fn start_link(
    stream: MeshStream,
    wakes: tokio::sync::mpsc::Sender<Wake>,
    lease: LeaseId,
    attempt: u64,
) -> Link {
    Link::start(stream, wakes, move |event| Wake::Link {
        lease,
        attempt,
        event,
    })
}
