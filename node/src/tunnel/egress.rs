//! The seller's end: takes flows from a buyer's lanes and dials out for them.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::destination::{Destination, Host};
use super::ending::{Ended, Violation};
use super::flow::Flow;
use super::frame::{FlowId, Frame, Notice, OPEN_COST, Refusal, Target};
use super::lane::LaneStream;
use super::link::{Accept, Link, Member, Role, Seat};
use super::meter::Meter;
use super::policy::{Checked, Policy, Protocol};
use super::resolver::{MAX_ADDRESSES, Places, ResolveError, Resolver};
use super::shaper::LeaseShaper;
use super::{socket, udp};

/// How long all attempts to connect may take together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// After this, the next address of a name is tried beside the ones before (RFC 8305).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// How long an OPEN waits for credit before it is refused as paused.
const CREDIT_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// The longest an OPEN waits for its place under the open rate.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// Credit must be missing for this long before the buyer is told; payments on the way are faster.
const NOTICE_AFTER: Duration = Duration::from_millis(300);

/// What one buyer may have at once and in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows and associations at once, those that are still ending included.
    pub flows: usize,
    /// UDP associations at once, part of `flows`. Each holds up to two sockets.
    pub associations: usize,
    /// Flows opened in a second, in the long run.
    pub opens_per_second: u32,
    /// Flows opened at once after a pause.
    pub open_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 512,
            associations: 64,
            opens_per_second: 50,
            open_burst: 200,
        }
    }
}

/// A seller's way out: shared by all sessions.
pub struct Exit {
    policy: Policy,
    resolver: Arc<dyn Resolver>,
    limits: Limits,
}

impl Exit {
    /// A way out under `policy`, for buyers held to `limits` each.
    #[must_use]
    pub fn new(policy: Policy, resolver: Arc<dyn Resolver>, limits: Limits) -> Self {
        Self {
            policy,
            resolver,
            limits,
        }
    }

    /// The policy, to tell it of own addresses as they become known.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn check(
        &self,
        address: SocketAddr,
        protocol: Protocol,
    ) -> Result<Checked, super::policy::Denied> {
        self.policy.check(address, protocol)
    }
}

/// One buyer's share of the way out: what it uses up here, it uses up for itself.
pub(super) struct Share {
    exit: Arc<Exit>,
    lookups: Places,
    /// Peers of datagrams that were not sent to before.
    contacts: Mutex<OpenRate>,
}

impl Share {
    pub(super) fn new(exit: Arc<Exit>, now: Instant) -> Self {
        Self {
            lookups: Places::default(),
            contacts: Mutex::new(OpenRate::new(exit.limits, now)),
            exit,
        }
    }

    /// All addresses of a destination that may be reached.
    pub(super) async fn resolve(
        &self,
        destination: &Destination,
        protocol: Protocol,
    ) -> Result<Vec<Checked>, Refusal> {
        let found = match &destination.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => {
                let place = self.lookups.place().await;
                let found = self.exit.resolver.resolve(name.as_str(), place).await;
                found.map_err(|error| match error {
                    ResolveError::NotFound => Refusal::NameNotFound,
                    ResolveError::TimedOut => Refusal::TimedOut,
                })?
            }
        };
        if found.is_empty() {
            return Err(Refusal::NameNotFound);
        }
        let mut checked = Vec::with_capacity(found.len().min(MAX_ADDRESSES));
        for ip in found.into_iter().take(MAX_ADDRESSES) {
            match self.check(SocketAddr::new(ip, destination.port), protocol) {
                Ok(address) => checked.push(address),
                Err(denied) => tracing::debug!(%destination, %denied, "not dialled"),
            }
        }
        if checked.is_empty() {
            Err(Refusal::Forbidden)
        } else {
            Ok(checked)
        }
    }

    pub(super) fn check(
        &self,
        address: SocketAddr,
        protocol: Protocol,
    ) -> Result<Checked, super::policy::Denied> {
        self.exit.check(address, protocol)
    }

    /// Whether a datagram may go where none went before. A scan by datagrams is held to the rate of
    /// one by connections, though nothing is opened for it.
    pub(super) fn may_contact(&self, now: Instant) -> bool {
        self.contacts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit_now(now)
    }
}

/// Serves one buyer's session until it ends, and returns why it did.
///
/// `lanes` are the streams after the control stream, in any order. The meter's limit is what the
/// buyer may use; at the limit flows wait, without loss, until it is raised. When this returns, no
/// byte moves any more and the meter stands still. Dropping it ends the session as well.
///
/// Any number of sessions may run at once; they share what `shaper` was made from.
pub async fn serve(
    lanes: Vec<impl LaneStream>,
    meter: Arc<Meter>,
    shaper: LeaseShaper,
    exit: Arc<Exit>,
) -> Ended {
    let (link, readers) = Link::new(Role::Seller, lanes, meter, shaper);
    let now = Instant::now();
    let egress = Egress {
        limits: exit.limits,
        opens: Mutex::new(OpenRate::new(exit.limits, now)),
        associations: Arc::default(),
        share: Arc::new(Share::new(exit, now)),
    };
    let noticing = Arc::clone(&link);
    link.spawn(async move {
        tokio::select! {
            () = tell_when_paused(&noticing) => {}
            () = noticing.ending().over() => {}
        }
    });
    link.run(readers, egress).await
}

async fn tell_when_paused(link: &Link) {
    let tell = |notice| link.lane(0).push(FlowId::NONE, &Frame::Notice(notice));
    loop {
        link.meter().starved().await;
        tokio::time::sleep(NOTICE_AFTER).await;
        if !link.meter().is_starved() {
            continue;
        }
        if tell(Notice::Paused).is_err() {
            return;
        }
        while link.meter().is_starved() {
            tokio::time::sleep(NOTICE_AFTER).await;
        }
        if tell(Notice::Flowing).is_err() {
            return;
        }
    }
}

/// The seller's side of one session.
struct Egress {
    limits: Limits,
    share: Arc<Share>,
    opens: Mutex<OpenRate>,
    associations: Arc<udp::Count>,
}

impl Accept for Egress {
    fn open(
        &self,
        link: &Arc<Link>,
        lane: usize,
        id: FlowId,
        target: Target,
        early: &[u8],
    ) -> Result<(), Violation> {
        // An honest buyer stops at the limit, give or take what is on its way.
        if link.flows() >= self.limits.flows.saturating_mul(2) {
            return Err(Violation::TooManyFlows);
        }
        let now = Instant::now();
        let wait = if link.flows() < self.limits.flows {
            self.opens
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .admit(now)
        } else {
            None
        };
        let seat = Seat { lane, id };
        match target {
            Target::Tcp(destination) => {
                let flow = Arc::new(Flow::new(seat, Arc::clone(link)));
                if !link.admit(lane, id, Member::Tcp(Arc::clone(&flow))) {
                    return Ok(());
                }
                if !early.is_empty() {
                    flow.on_data(early)?;
                }
                match wait {
                    Some(wait) => {
                        let share = Arc::clone(&self.share);
                        let link_ = Arc::clone(link);
                        link.spawn(carry(link_, flow, destination, share, wait));
                    }
                    None => {
                        count_open(link);
                        flow.refuse(Refusal::TooMany);
                    }
                }
                Ok(())
            }
            Target::Udp => {
                let slot = udp::Slot::take(&self.associations, self.limits.associations);
                udp::open_at_seller(
                    link,
                    seat,
                    Arc::clone(&self.share),
                    slot.filter(|_| wait.is_some()),
                );
                Ok(())
            }
        }
    }
}

/// Counts an OPEN for which nothing is done: the buyer has counted it when it sent it.
pub(super) fn count_open(link: &Link) {
    link.meter().owe(link.inbound_direction(), OPEN_COST);
}

/// Waits for the credit that an OPEN costs. An OPEN that is refused for lack of it is still counted.
pub(super) async fn pay_open(link: &Link) -> Result<(), Refusal> {
    let paid = link.meter().take_whole(link.inbound_direction(), OPEN_COST);
    match tokio::time::timeout(CREDIT_PATIENCE, paid).await {
        Ok(()) => Ok(()),
        Err(_) => {
            count_open(link);
            Err(Refusal::Paused)
        }
    }
}

/// A flow's life at the seller.
async fn carry(
    link: Arc<Link>,
    flow: Arc<Flow>,
    destination: Destination,
    share: Arc<Share>,
    wait: Duration,
) {
    let opening = async {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        dial(&share, &destination).await
    };
    // The OPEN is paid for whatever becomes of it, so this cannot be given up halfway.
    let paid = tokio::select! {
        paid = pay_open(&link) => paid,
        () = link.ending().over() => return,
    };
    let opened = match paid {
        Ok(()) => flow.unless_given_up(opening).await,
        Err(refusal) => Some(Err(refusal)),
    };
    match opened {
        // The buyer has given up; it still waits to hear that this side has too.
        None => flow.abort().await,
        Some(Err(refusal)) => flow.refuse(refusal),
        Some(Ok(socket)) => {
            if flow.accept().is_ok() {
                flow.run(socket, Bytes::new()).await;
            }
        }
    }
}

async fn dial(share: &Share, destination: &Destination) -> Result<TcpStream, Refusal> {
    let connecting = async {
        let addresses = share.resolve(destination, Protocol::Tcp).await?;
        connect_first(&addresses)
            .await
            .map_err(|error| refusal_for(&error))
    };
    let socket = tokio::time::timeout(DIAL_TIMEOUT, connecting)
        .await
        .unwrap_or(Err(Refusal::TimedOut))?;
    socket::prepare(&socket);
    Ok(socket)
}

/// Connects to the first address that answers, starting one after the other.
async fn connect_first(addresses: &[Checked]) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut rest = addresses.iter();
    let mut last_error = io::Error::from(io::ErrorKind::NotFound);
    loop {
        match rest.next() {
            Some(checked) => attempts.push(TcpStream::connect(checked.address())),
            None if attempts.is_empty() => return Err(last_error),
            None => {}
        }
        let next_address = async {
            if rest.len() > 0 {
                tokio::time::sleep(NEXT_ADDRESS_AFTER).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(socket) => return Ok(socket),
                Err(error) => last_error = error,
            },
            () = next_address => {}
        }
    }
}

fn refusal_for(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Refusal::ConnectionRefused,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Refusal::NetworkUnreachable
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::AddrNotAvailable => {
            Refusal::HostUnreachable
        }
        io::ErrorKind::TimedOut => Refusal::TimedOut,
        _ => Refusal::Failed,
    }
}

/// How fast a buyer opens flows: a bucket of opens that may go into debt for a while, so that a page
/// that opens many connections is slowed down and not broken.
#[derive(Debug)]
struct OpenRate {
    interval: Duration,
    burst: Duration,
    /// When the bucket would be empty, counted in intervals after now.
    busy_until: Instant,
}

impl OpenRate {
    fn new(limits: Limits, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / limits.opens_per_second.max(1);
        Self {
            interval,
            burst: interval.saturating_mul(limits.open_burst),
            busy_until: now,
        }
    }

    /// How long the next open has to wait; `None` if that would be too long.
    fn admit(&mut self, now: Instant) -> Option<Duration> {
        let busy_until = self.busy_until.max(now) + self.interval;
        let wait = (busy_until - now).saturating_sub(self.burst);
        if wait > OPEN_PATIENCE {
            return None;
        }
        self.busy_until = busy_until;
        Some(wait)
    }

    /// Whether another may go at once; if not, it does not count.
    fn admit_now(&mut self, now: Instant) -> bool {
        let busy_until = self.busy_until.max(now) + self.interval;
        let may = busy_until - now <= self.burst;
        if may {
            self.busy_until = busy_until;
        }
        may
    }
}

#[cfg(test)]
mod tests;
