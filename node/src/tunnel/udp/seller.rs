//! The seller's side of an association: two sockets and a filter.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures::stream::FuturesUnordered;
use futures::{StreamExt, future};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::destination::{Destination, Host};
use super::super::egress::{Share, count_open};
use super::super::frame::{Frame, OPEN_COST, Refusal};
use super::super::link::{Link, Member, Seat};
use super::super::policy::{Checked, Protocol};
use super::super::socket::send_or_lose;
use super::{Association, IDLE, MAX_CONTACTS, MAX_DATAGRAM, Slot};

/// Datagrams to names that wait for their lookup. An application that sends to names sends to few.
const LOOKUPS: usize = 16;

/// Datagrams received from one socket before others get their turn.
const BATCH: usize = 32;

/// Ports of one peer that are remembered as sent to before. Beyond, the first of them counts as new
/// again: an application that speaks to more ports of one host is looking for open ones.
const MAX_PORTS: usize = 64;

pub(super) struct Side {
    share: Arc<Share>,
    v4: OnceLock<Option<UdpSocket>>,
    v6: OnceLock<Option<UdpSocket>>,
    contacts: Mutex<Contacts>,
    lookups: mpsc::Sender<(Destination, Box<[u8]>)>,
}

struct Contacts {
    /// At most [`MAX_CONTACTS`].
    peers: HashMap<IpAddr, Contact>,
    last_datagram: Instant,
}

struct Contact {
    /// When a datagram last went there or came from there; only peers of the last [`IDLE`] are heard.
    at: Instant,
    /// Where datagrams went; at most [`MAX_PORTS`].
    ports: Vec<u16>,
}

impl Contacts {
    fn knows(&self, address: SocketAddr) -> bool {
        let contact = self.peers.get(&address.ip());
        contact.is_some_and(|contact| contact.ports.contains(&address.port()))
    }

    /// Notes that a datagram goes to `address`; false if there are too many peers.
    fn sent(&mut self, address: SocketAddr, now: Instant) -> bool {
        let (ip, port) = (address.ip(), address.port());
        if !self.peers.contains_key(&ip) {
            if self.peers.len() >= MAX_CONTACTS {
                self.peers
                    .retain(|_, peer| now.saturating_duration_since(peer.at) < IDLE);
            }
            if self.peers.len() >= MAX_CONTACTS {
                return false;
            }
        }
        let contact = self.peers.entry(ip).or_insert_with(|| Contact {
            at: now,
            ports: Vec::new(),
        });
        contact.at = now;
        if !contact.ports.contains(&port) {
            if contact.ports.len() >= MAX_PORTS {
                contact.ports.remove(0);
            }
            contact.ports.push(port);
        }
        true
    }
}

/// Answers an OPEN for an association. Everything that could wait makes a refusal instead.
pub(in super::super) fn open(link: &Arc<Link>, seat: Seat, share: Arc<Share>, slot: Option<Slot>) {
    let (lookups, to_look_up) = mpsc::channel(LOOKUPS);
    let contacts = Contacts {
        peers: HashMap::new(),
        last_datagram: Instant::now(),
    };
    let side = Side {
        share,
        v4: OnceLock::new(),
        v6: OnceLock::new(),
        contacts: Mutex::new(contacts),
        lookups,
    };
    let association = Association::new(seat, Arc::clone(link), super::Side::Seller(side));
    if !link.admit(seat.lane, seat.id, Member::Udp(Arc::clone(&association))) {
        return;
    }
    let refusal = if slot.is_none() {
        count_open(link);
        Some(Refusal::TooMany)
    } else if !link
        .meter()
        .try_take_whole(link.inbound_direction(), OPEN_COST)
    {
        count_open(link);
        Some(Refusal::Paused)
    } else {
        None
    };
    if let Some(refusal) = refusal {
        association.end(&Frame::Refused(refusal));
        return;
    }
    // If the lane is gone the task ends at once.
    let _ = link.lane(seat.lane).push(seat.id, &Frame::Opened);
    link.spawn(async move {
        association.serve(to_look_up).await;
        association.end(&Frame::Fin);
        drop(slot);
    });
}

impl Side {
    /// Sends a datagram from the buyer on. What cannot be sent now is lost.
    pub(super) fn send(&self, peer: &Destination, datagram: &[u8]) {
        match &peer.host {
            Host::Ip(ip) => {
                let address = SocketAddr::new(*ip, peer.port);
                match self.share.check(address, Protocol::Udp) {
                    Ok(checked) => self.send_to(checked, datagram),
                    Err(denied) => tracing::debug!(%peer, %denied, "datagram dropped"),
                }
            }
            // Full means that lookups are slower than datagrams come.
            Host::Name(_) => drop(self.lookups.try_send((peer.clone(), datagram.into()))),
        }
    }

    fn send_to(&self, checked: Checked, datagram: &[u8]) {
        let address = checked.address();
        {
            let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            contacts.last_datagram = now;
            let may = contacts.knows(address) || self.share.may_contact(now);
            if !may || !contacts.sent(address, now) {
                return;
            }
        }
        if let Some(socket) = self.socket(address.ip()) {
            send_or_lose(socket, datagram, address);
        }
    }

    fn socket(&self, peer: IpAddr) -> Option<&UdpSocket> {
        let (socket, any) = match peer {
            IpAddr::V4(_) => (&self.v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (&self.v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let bind = || {
            let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
            socket.set_nonblocking(true).ok()?;
            UdpSocket::from_std(socket).ok()
        };
        socket.get_or_init(bind).as_ref()
    }

    fn hears(&self, from: IpAddr) -> bool {
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let Some(peer) = contacts.peers.get_mut(&from) else {
            return false;
        };
        if now.saturating_duration_since(peer.at) >= IDLE {
            return false;
        }
        peer.at = now;
        contacts.last_datagram = now;
        true
    }

    fn idle_at(&self) -> Instant {
        let contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        contacts.last_datagram + IDLE
    }
}

impl Association {
    /// Passes datagrams from the sockets to the buyer until the association is idle or over.
    async fn serve(&self, mut to_look_up: mpsc::Receiver<(Destination, Box<[u8]>)>) {
        let super::Side::Seller(side) = &self.side else {
            return;
        };
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut lookups = FuturesUnordered::new();
        loop {
            if self.has_given_up() {
                return;
            }
            let (v4, v6) = (bound(&side.v4), bound(&side.v6));
            tokio::select! {
                // A new socket, or the end.
                () = self.wake.notified() => {}
                () = readable(v4) => self.pass_on(side, v4, &mut buffer).await,
                () = readable(v6) => self.pass_on(side, v6, &mut buffer).await,
                Some((peer, datagram)) = to_look_up.recv(), if lookups.len() < LOOKUPS => {
                    lookups.push(async move {
                        (side.share.resolve(&peer, Protocol::Udp).await, datagram)
                    });
                }
                Some((found, datagram)) = lookups.next() => {
                    if let Some(&checked) = found.ok().as_deref().and_then(<[_]>::first) {
                        side.send_to(checked, &datagram);
                    }
                }
                () = sleep_until(side.idle_at()) => {
                    if side.idle_at() <= Instant::now() {
                        return;
                    }
                }
            }
        }
    }

    async fn pass_on(&self, side: &Side, socket: Option<&UdpSocket>, buffer: &mut [u8]) {
        let Some(socket) = socket else {
            return;
        };
        for _ in 0..BATCH {
            // An error here is about an earlier datagram (port unreachable), or nothing to receive.
            let Ok((len, from)) = socket.try_recv_from(buffer) else {
                return;
            };
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            if from.port() == 0 || !side.hears(from.ip()) {
                continue;
            }
            let rate = self.link.rate(len.max(1)).await;
            let passed = rate.len();
            rate.commit(passed);
            self.try_send(&Destination::from(from), &buffer[..len]);
        }
    }
}

fn bound(socket: &OnceLock<Option<UdpSocket>>) -> Option<&UdpSocket> {
    socket.get().and_then(Option::as_ref)
}

async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // An error shows again, and is cleared, when the datagram is received.
        Some(socket) => drop(socket.readable().await),
        None => future::pending().await,
    }
}
