//! The buyer's side of an association: one loopback socket between an application and the lane.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::super::destination::{Destination, Host};
use super::super::frame::{Frame, OPEN_COST, Target};
use super::super::link::{Link, Member};
use super::super::socket::send_or_lose;
use super::super::socks;
use super::{Association, MAX_CONTACTS, MAX_DATAGRAM};

/// Between two OPENs of one application: each is billed, and a seller that refuses one will refuse
/// the next.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Datagrams taken from the application before others get their turn.
const BATCH: usize = 32;

pub(super) struct Side {
    socket: Arc<UdpSocket>,
    application: SocketAddr,
    contacts: Mutex<Contacts>,
}

/// Whom the application has sent to. Only they can be billed for.
#[derive(Default)]
struct Contacts {
    addresses: HashSet<IpAddr>,
    /// It has sent to a name; the seller chose the address, so any may answer.
    named: bool,
    wrapped: Vec<u8>,
}

impl Side {
    fn contacts(&self) -> std::sync::MutexGuard<'_, Contacts> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a peer of the application; false if there are too many.
    fn contact(&self, peer: &Destination) -> bool {
        let mut contacts = self.contacts();
        match &peer.host {
            Host::Name(_) => {
                contacts.named = true;
                true
            }
            Host::Ip(ip) => {
                let ip = ip.to_canonical();
                let room = contacts.addresses.len() < MAX_CONTACTS;
                contacts.addresses.contains(&ip) || (room && contacts.addresses.insert(ip))
            }
        }
    }

    pub(super) fn has_contacted(&self, peer: &Destination) -> bool {
        let contacts = self.contacts();
        match &peer.host {
            Host::Ip(ip) => contacts.named || contacts.addresses.contains(&ip.to_canonical()),
            Host::Name(_) => false,
        }
    }

    pub(super) fn deliver(&self, peer: &Destination, datagram: &[u8]) {
        let mut contacts = self.contacts();
        socks::wrap_datagram(peer, datagram, &mut contacts.wrapped);
        send_or_lose(&self.socket, &contacts.wrapped, self.application);
    }
}

/// Carries the datagrams of one application for as long as its control connection is open, over
/// whichever session `link` gives at the time.
///
/// `port` is where the application said it would send from, zero if it did not.
pub(in super::super) async fn relay(
    mut control: TcpStream,
    socket: UdpSocket,
    port: u16,
    link: impl Fn() -> Option<Arc<Link>>,
) -> io::Result<()> {
    let host = control.peer_addr()?.ip().to_canonical();
    let socket = Arc::new(socket);
    let mut relay = Relay {
        socket: Arc::clone(&socket),
        open: None,
        opened_at: None,
    };
    let mut application = (port != 0).then(|| SocketAddr::new(host, port));
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            // The association lives as long as the connection that asked for it.
            read = control.read(&mut ignored) => if read? == 0 { return Ok(()) },
            ready = socket.readable() => {
                ready?;
                for _ in 0..BATCH {
                    let Ok((len, from)) = socket.try_recv_from(&mut buffer) else {
                        break;
                    };
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    if from.ip() != host || *application.get_or_insert(from) != from {
                        continue;
                    }
                    if let Some((peer, datagram)) = socks::datagram(&buffer[..len]) {
                        relay.send(from, &peer, datagram, &link);
                    }
                }
            }
        }
    }
}

struct Relay {
    socket: Arc<UdpSocket>,
    open: Option<Arc<Association>>,
    opened_at: Option<Instant>,
}

impl Relay {
    fn send(
        &mut self,
        application: SocketAddr,
        peer: &Destination,
        datagram: &[u8],
        link: &impl Fn() -> Option<Arc<Link>>,
    ) {
        self.open = self
            .open
            .take()
            .filter(|association| !association.has_given_up());
        if self.open.is_none() {
            self.open = self.open(application, link);
        }
        if let Some(association) = &self.open
            && let super::Side::Buyer(side) = &association.side
            && side.contact(peer)
        {
            association.try_send(peer, datagram);
        }
    }

    fn open(
        &mut self,
        application: SocketAddr,
        link: &impl Fn() -> Option<Arc<Link>>,
    ) -> Option<Arc<Association>> {
        let now = Instant::now();
        if self
            .opened_at
            .is_some_and(|at| now.saturating_duration_since(at) < REOPEN_AFTER)
        {
            return None;
        }
        let link = link()?;
        if !link.has_room()
            || !link
                .meter()
                .try_take_whole(link.outbound_direction(), OPEN_COST)
        {
            return None;
        }
        self.opened_at = Some(now);
        let side = Side {
            socket: Arc::clone(&self.socket),
            application,
            contacts: Mutex::default(),
        };
        let frame = Frame::Open {
            target: Target::Udp,
            early: &[],
        };
        let opened = link.open(link.quietest_lane(), &frame, |seat| {
            let association = Association::new(seat, Arc::clone(&link), super::Side::Buyer(side));
            (Arc::clone(&association), Member::Udp(association))
        });
        opened.ok()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(association) = self.open.take() {
            association.end(&Frame::Fin);
        }
    }
}
