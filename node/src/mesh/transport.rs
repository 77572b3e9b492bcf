//! How bytes get from node to node: QUIC, and TCP with noise and yamux; and the one place that
//! decides which addresses may be dialled.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, OrTransport, Transport, TransportError, TransportEvent,
};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, identity, noise, quic, tcp, yamux};

use super::address::{is_dialable, is_public};
use super::config::{Config, millis};
use super::counters::Counters;

/// Streams on one connection, opened by either side: the sessions of a pair take 5 each, the mesh's
/// own protocols some 20.
const MAX_STREAMS: u32 = 128;

/// Addresses dialled although they are private, because the operator or the local network named
/// them.
const MAX_EXCEPTIONS: usize = 256;

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
            Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        });
    Ok(Guarded {
        inner: either.boxed(),
        rule,
    }
    .boxed())
}

/// Which addresses may be dialled.
///
/// Addresses come from everywhere: the hash table, identify, mDNS, the operator. Whatever their way,
/// each dial passes here.
#[derive(Debug)]
pub(crate) struct DialRule {
    allow_private: bool,
    /// Private addresses named by the operator or the local network, oldest first.
    exceptions: Mutex<VecDeque<Multiaddr>>,
    counters: Arc<Counters>,
}

impl DialRule {
    pub(crate) fn new(allow_private: bool, counters: Arc<Counters>) -> Self {
        Self {
            allow_private,
            exceptions: Mutex::new(VecDeque::new()),
            counters,
        }
    }

    /// Whether an address a stranger told may be kept and passed on.
    pub(crate) fn may_share(&self, address: &Multiaddr) -> bool {
        is_public(address) || (self.allow_private && is_dialable(address))
    }

    /// Lets one address be dialled that the operator or the local network named. The oldest such
    /// address is forgotten beyond [`MAX_EXCEPTIONS`].
    pub(crate) fn except(&self, address: &Multiaddr) {
        let address = without_node(address);
        if self.may_share(&address) {
            return;
        }
        let mut exceptions = self
            .exceptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if exceptions.contains(&address) {
            return;
        }
        if exceptions.len() >= MAX_EXCEPTIONS {
            exceptions.pop_front();
        }
        exceptions.push_back(address);
    }

    fn may_dial(&self, address: &Multiaddr) -> bool {
        let may = self.may_share(address)
            || (is_dialable(address)
                && self
                    .exceptions
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(&without_node(address)));
        if !may {
            self.counters.addresses_filtered.add_one();
        }
        may
    }
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
        if self.rule.may_dial(&address) {
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

    fn rule(allow_private: bool) -> DialRule {
        DialRule::new(allow_private, Arc::default())
    }

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn private_addresses_are_dialled_only_if_allowed_or_named_by_the_operator() {
        let router = addr("/ip4/192.168.1.1/tcp/80");
        let friend = addr("/ip4/192.168.1.2/tcp/6366");
        let public = addr("/ip4/8.8.8.8/tcp/6366");
        let strict = rule(false);
        strict.except(&friend);

        assert!(strict.may_dial(&public));
        assert!(strict.may_dial(&friend));
        assert!(!strict.may_dial(&router));
        assert!(!strict.may_share(&friend));
        assert!(rule(true).may_dial(&router));
        assert_eq!(strict.counters.snapshot().addresses_filtered, 1);
    }

    #[test]
    fn an_exception_holds_with_and_without_the_nodes_id() {
        let node = "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        let rule = rule(false);

        rule.except(&addr(&format!("/ip4/10.0.0.1/tcp/1{node}")));

        assert!(rule.may_dial(&addr("/ip4/10.0.0.1/tcp/1")));
        assert!(rule.may_dial(&addr(&format!("/ip4/10.0.0.1/tcp/1{node}"))));
        assert!(!rule.may_dial(&addr("/ip4/10.0.0.1/tcp/2")));
    }

    #[test]
    fn exceptions_are_bounded_and_the_oldest_goes_first() {
        let rule = rule(false);
        let nth = |n: usize| addr(&format!("/ip4/10.0.{}.{}/tcp/1", n / 256, n % 256));

        for n in 0..=MAX_EXCEPTIONS {
            rule.except(&nth(n));
        }

        assert!(!rule.may_dial(&nth(0)));
        assert!(rule.may_dial(&nth(1)));
        assert!(rule.may_dial(&nth(MAX_EXCEPTIONS)));
    }
}
