//! How bytes get from node to node: QUIC, and TCP with noise and yamux; and the one place that
//! decides which addresses may be dialled.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, OrTransport, Transport, TransportError, TransportEvent,
};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, identity, noise, quic, tcp, yamux};

use tokio::time::Instant;

use self::parting::Parting;
use super::address::{is_dialable, is_public};
use super::bucket::Bucket;
use super::config::{Config, millis};
use super::counters::Counters;

mod parting;

/// Streams on one connection, opened by either side: the sessions of a pair take 5 each, the mesh's
/// own protocols some 20.
const MAX_STREAMS: u32 = 128;

/// Addresses remembered because the operator named them, and as many because the local network did.
const MAX_NAMED: usize = 256;

/// Dials to addresses that strangers told: a lookup in the hash table makes some ten. A stranger can
/// tell hundreds of addresses in one answer; this is what it can make this node send into the world.
const DIAL_BURST: u32 = 128;
const DIAL_RATE: u32 = 16;

/// Builds the transports, closed to addresses that must not be dialled.
pub(crate) fn build(
    config: &Config,
    key: &identity::Keypair,
    rule: Arc<DialRule>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let dial = millis(config.timeouts.dial_ms);
    let silence = config.timeouts.silence_ms;
    let mut quic = quic::Config::new(key);
    quic.handshake_timeout = dial;
    quic.max_idle_timeout = silence;
    // Three keep-alives fit a silence, so that one may be lost.
    quic.keep_alive_interval = millis(silence / 3);
    quic.max_concurrent_stream_limit = MAX_STREAMS;
    quic.max_stream_data = config.limits.stream_window_bytes;
    quic.max_connection_data = config.limits.connection_window_bytes;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(usize::try_from(MAX_STREAMS).unwrap_or(usize::MAX));
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(yamux)
        .timeout(dial);
    let either =
        OrTransport::new(quic::tokio::Transport::new(quic), tcp).map(|either, _| match either {
            Either::Left((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
            Either::Right((peer, muxer)) => {
                let muxer = Parting::new(muxer, parting::GOODBYE);
                (peer, StreamMuxerBox::new(muxer))
            }
        });
    Ok(Guarded {
        inner: either.boxed(),
        rule,
    }
    .boxed())
}

/// Which addresses may be dialled, and how often.
///
/// Addresses come from everywhere: the hash table, identify, mDNS, the operator. Whatever their way,
/// each dial passes here.
#[derive(Debug)]
pub(crate) struct DialRule {
    allow_private: bool,
    book: Mutex<Book>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Book {
    /// Named by the operator, or dialled before for a session. Oldest first.
    named: VecDeque<Multiaddr>,
    /// Private addresses named by the local network. Oldest first.
    local: VecDeque<Multiaddr>,
    budget: Bucket,
}

impl DialRule {
    pub(crate) fn new(allow_private: bool, counters: Arc<Counters>, now: Instant) -> Self {
        Self {
            allow_private,
            book: Mutex::new(Book {
                named: VecDeque::new(),
                local: VecDeque::new(),
                budget: Bucket::new(DIAL_BURST, DIAL_RATE, now),
            }),
            counters,
        }
    }

    /// Whether an address a stranger told may be kept and passed on.
    pub(crate) fn may_share(&self, address: &Multiaddr) -> bool {
        is_public(address) || (self.allow_private && is_dialable(address))
    }

    /// Lets an address be dialled at any time, whoever else tells it: the operator named it, or a
    /// session depends on it. The oldest is forgotten beyond [`MAX_NAMED`].
    pub(crate) fn name(&self, address: &Multiaddr) {
        remember(&mut self.book().named, address);
    }

    /// Lets an address be dialled that the local network named, although it is private.
    pub(crate) fn name_local(&self, address: &Multiaddr) {
        if !self.may_share(address) {
            remember(&mut self.book().local, address);
        }
    }

    fn may_dial(&self, address: &Multiaddr, now: Instant) -> bool {
        let may = is_dialable(address) && {
            let bare = without_node(address);
            let mut book = self.book();
            book.named.contains(&bare)
                || ((self.may_share(address) || book.local.contains(&bare))
                    && book.budget.take(1, now))
        };
        if !may {
            self.counters.addresses_filtered.add_one();
        }
        may
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(list: &mut VecDeque<Multiaddr>, address: &Multiaddr) {
    let address = without_node(address);
    if list.contains(&address) {
        return;
    }
    if list.len() >= MAX_NAMED {
        list.pop_front();
    }
    list.push_back(address);
}

fn without_node(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}

/// A transport that dials only what the [`DialRule`] lets it.
struct Guarded {
    inner: Boxed<(PeerId, StreamMuxerBox)>,
    rule: Arc<DialRule>,
}

impl Transport for Guarded {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<(PeerId, StreamMuxerBox)> as Transport>::ListenerUpgrade;
    type Dial = <Boxed<(PeerId, StreamMuxerBox)> as Transport>::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        if self.rule.may_dial(&address, Instant::now()) {
            self.inner.dial(address, options)
        } else {
            Err(TransportError::MultiaddrNotSupported(address))
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::from_std(std::time::Instant::now())
    }

    fn rule(allow_private: bool) -> DialRule {
        DialRule::new(allow_private, Arc::default(), epoch())
    }

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn private_addresses_are_dialled_only_if_allowed_or_named_by_operator_or_local_network() {
        let router = addr("/ip4/192.168.1.1/tcp/80");
        let friend = addr("/ip4/192.168.1.2/tcp/6366");
        let neighbour = addr("/ip4/192.168.1.3/tcp/6366");
        let public = addr("/ip4/8.8.8.8/tcp/6366");
        let strict = rule(false);
        let now = epoch();
        strict.name(&friend);
        strict.name_local(&neighbour);

        assert!(strict.may_dial(&public, now));
        assert!(strict.may_dial(&friend, now));
        assert!(strict.may_dial(&neighbour, now));
        assert!(!strict.may_dial(&router, now));
        assert!(!strict.may_share(&friend));
        assert!(rule(true).may_dial(&router, now));
        assert_eq!(strict.counters.snapshot().addresses_filtered, 1);
    }

    #[test]
    fn an_address_is_named_with_and_without_the_nodes_id() {
        let node = "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        let rule = rule(false);
        let now = epoch();

        rule.name(&addr(&format!("/ip4/10.0.0.1/tcp/1{node}")));

        assert!(rule.may_dial(&addr("/ip4/10.0.0.1/tcp/1"), now));
        assert!(rule.may_dial(&addr(&format!("/ip4/10.0.0.1/tcp/1{node}")), now));
        assert!(!rule.may_dial(&addr("/ip4/10.0.0.1/tcp/2"), now));
    }

    #[test]
    fn the_local_network_cannot_push_out_what_the_operator_named() {
        let rule = rule(false);
        let now = epoch();
        let nth = |n: usize| addr(&format!("/ip4/10.0.{}.{}/tcp/1", n / 256, n % 256));
        rule.name(&addr("/ip4/10.9.9.9/tcp/1"));

        for n in 0..=MAX_NAMED {
            rule.name_local(&nth(n));
        }

        assert!(rule.may_dial(&addr("/ip4/10.9.9.9/tcp/1"), now));
        assert!(!rule.may_dial(&nth(0), now), "the oldest is forgotten");
        assert!(rule.may_dial(&nth(1), now));
        assert!(rule.may_dial(&nth(MAX_NAMED), now));
    }

    #[test]
    fn strangers_addresses_are_dialled_at_a_bounded_rate_and_named_ones_always() {
        let rule = rule(false);
        let now = epoch();
        let named = addr("/ip4/9.9.9.9/tcp/1");
        rule.name(&named);

        let dialled = (1..=2000u16)
            .filter(|port| rule.may_dial(&addr(&format!("/ip4/8.8.8.8/tcp/{port}")), now))
            .count();

        assert_eq!(dialled, usize::try_from(DIAL_BURST).unwrap());
        assert!(rule.may_dial(&named, now));
        let later = now + std::time::Duration::from_secs(1);
        assert!(rule.may_dial(&addr("/ip4/8.8.8.8/tcp/1"), later));
    }
}
