//! How many connections, with whom: counted here, and refused here before anything else looks.
//!
//! libp2p's own limits know no cap per host, and keep an entry for every node that was ever
//! connected. This counts in tables that hold nothing but what is connected now.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use thiserror::Error;

use super::Direction;
use super::config::LimitsConfig;

mod gate;

pub(crate) use gate::Gate;

/// A limit refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Denied {
    #[error("too many handshakes begun by others")]
    PendingIn,
    #[error("too many handshakes begun by this host")]
    PendingPerIp,
    #[error("too many dials")]
    PendingOut,
    #[error("too many connections opened by others")]
    In,
    #[error("too many connections")]
    Total,
    #[error("too many connections with this host")]
    PerIp,
    #[error("too many connections with this node")]
    PerNode,
    #[error("not an ed25519 key")]
    NotANode,
}

/// What a handshake comes over. Each has its own places: the source of a QUIC packet can be forged, so
/// anyone can fill those, and must not fill TCP's with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Tcp,
    Quic,
}

#[derive(Debug)]
struct Pending {
    host: Option<IpAddr>,
    carrier: Carrier,
}

#[derive(Debug)]
struct Established {
    peer: PeerId,
    /// Who dialled is told by this: only connections from outside count against their host.
    from: Option<IpAddr>,
}

/// What is connected and what is becoming connected.
///
/// Invariant: every table is as large as what it counts; a count that falls to zero is removed.
#[derive(Debug)]
pub(crate) struct Limits {
    config: LimitsConfig,
    pending_in: HashMap<ConnectionId, Pending>,
    pending_out: HashSet<ConnectionId>,
    established: HashMap<ConnectionId, Established>,
    pending_per_ip: HashMap<IpAddr, u32>,
    per_ip: HashMap<IpAddr, u32>,
    per_peer: HashMap<PeerId, u32>,
    inbound: u32,
    protected: HashSet<PeerId>,
}

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Self {
        Self {
            config,
            pending_in: HashMap::new(),
            pending_out: HashSet::new(),
            established: HashMap::new(),
            pending_per_ip: HashMap::new(),
            per_ip: HashMap::new(),
            per_peer: HashMap::new(),
            inbound: 0,
            protected: HashSet::new(),
        }
    }

    /// A protected node's connections pass the limits on established ones, so that strangers cannot
    /// crowd out a session. The caller bounds how many there are.
    pub(crate) fn protect(&mut self, peer: PeerId) {
        self.protected.insert(peer);
    }

    pub(crate) fn unprotect(&mut self, peer: &PeerId) {
        self.protected.remove(peer);
    }

    /// A stranger began a handshake from `host`.
    pub(crate) fn begin_in(
        &mut self,
        id: ConnectionId,
        host: Option<IpAddr>,
        carrier: Carrier,
    ) -> Result<(), Denied> {
        let same = |pending: &&Pending| pending.carrier == carrier;
        if self.pending_in.values().filter(same).count() >= size(self.config.pending_in) {
            return Err(Denied::PendingIn);
        }
        if let Some(host) = host
            && count(&self.pending_per_ip, &host) >= self.config.pending_per_ip
        {
            return Err(Denied::PendingPerIp);
        }
        if let Entry::Vacant(place) = self.pending_in.entry(id) {
            place.insert(Pending { host, carrier });
            if let Some(host) = host {
                add(&mut self.pending_per_ip, host);
            }
        }
        Ok(())
    }

    /// This node began a dial.
    pub(crate) fn begin_out(&mut self, id: ConnectionId) -> Result<(), Denied> {
        if self.pending_out.len() >= size(self.config.pending_out) {
            return Err(Denied::PendingOut);
        }
        self.pending_out.insert(id);
        Ok(())
    }

    /// A handshake or dial ended, well or not.
    pub(crate) fn end_pending(&mut self, id: ConnectionId) {
        self.pending_out.remove(&id);
        let pending = self.pending_in.remove(&id);
        if let Some(host) = pending.and_then(|pending| pending.host) {
            subtract(&mut self.pending_per_ip, &host);
        }
    }

    /// Whether a connection whose handshake succeeded may stay. Counts nothing yet: another part of
    /// the node may still refuse it.
    ///
    /// `from` is the host that dialled; `None` if this node did.
    pub(crate) fn check(
        &self,
        peer: &PeerId,
        direction: Direction,
        from: Option<IpAddr>,
    ) -> Result<(), Denied> {
        if count(&self.per_peer, peer) >= self.config.connections_per_node {
            return Err(Denied::PerNode);
        }
        if self.protected.contains(peer) {
            return Ok(());
        }
        if self.established.len() >= size(self.config.connections) {
            return Err(Denied::Total);
        }
        match direction {
            Direction::In if self.inbound >= self.config.connections_in => Err(Denied::In),
            Direction::In
                if from.is_some_and(|host| {
                    count(&self.per_ip, &host) >= self.config.connections_per_ip
                }) =>
            {
                Err(Denied::PerIp)
            }
            Direction::In | Direction::Out => Ok(()),
        }
    }

    /// A connection that passed [`check`](Self::check) is established.
    pub(crate) fn established(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        direction: Direction,
        from: Option<IpAddr>,
    ) {
        let from = match direction {
            // An address without an IP (a relay) still counts as inbound, against no host.
            Direction::In => Some(from.unwrap_or(NO_HOST)),
            Direction::Out => None,
        };
        let Entry::Vacant(place) = self.established.entry(id) else {
            return;
        };
        place.insert(Established { peer, from });
        add(&mut self.per_peer, peer);
        if let Some(host) = from {
            self.inbound = self.inbound.saturating_add(1);
            add(&mut self.per_ip, host);
        }
    }

    /// A connection is gone.
    pub(crate) fn closed(&mut self, id: ConnectionId) {
        let Some(Established { peer, from }) = self.established.remove(&id) else {
            return;
        };
        subtract(&mut self.per_peer, &peer);
        if let Some(host) = from {
            self.inbound = self.inbound.saturating_sub(1);
            subtract(&mut self.per_ip, &host);
        }
    }
}

/// Stands for "no host" where a table wants one. Nobody can connect from it.
const NO_HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

fn size(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn count<K: std::hash::Hash + Eq>(table: &HashMap<K, u32>, key: &K) -> u32 {
    table.get(key).copied().unwrap_or(0)
}

fn add<K: std::hash::Hash + Eq>(table: &mut HashMap<K, u32>, key: K) {
    let count = table.entry(key).or_insert(0);
    *count = count.saturating_add(1);
}

fn subtract<K: std::hash::Hash + Eq>(table: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = table.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            table.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> LimitsConfig {
        LimitsConfig {
            connections_in: 6,
            connections: 8,
            connections_per_node: 2,
            connections_per_ip: 3,
            pending_in: 4,
            pending_out: 3,
            pending_per_ip: 2,
            ..LimitsConfig::default()
        }
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn host(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    fn connect(
        limits: &mut Limits,
        n: usize,
        peer: PeerId,
        direction: Direction,
        from: Option<IpAddr>,
    ) -> Result<(), Denied> {
        limits.check(&peer, direction, from)?;
        limits.established(id(n), peer, direction, from);
        Ok(())
    }

    #[test]
    fn handshakes_are_limited_in_all_and_per_host() {
        let mut limits = Limits::new(config());

        assert_eq!(limits.begin_in(id(1), host(1), Carrier::Tcp), Ok(()));
        assert_eq!(limits.begin_in(id(2), host(1), Carrier::Tcp), Ok(()));
        assert_eq!(
            limits.begin_in(id(3), host(1), Carrier::Tcp),
            Err(Denied::PendingPerIp)
        );
        assert_eq!(limits.begin_in(id(4), host(2), Carrier::Tcp), Ok(()));
        assert_eq!(limits.begin_in(id(5), host(3), Carrier::Tcp), Ok(()));
        assert_eq!(
            limits.begin_in(id(6), host(4), Carrier::Tcp),
            Err(Denied::PendingIn)
        );

        // The places of one are not those of the other.
        assert_eq!(limits.begin_in(id(6), host(4), Carrier::Quic), Ok(()));

        limits.end_pending(id(1));
        assert_eq!(limits.begin_in(id(7), host(1), Carrier::Tcp), Ok(()));
    }

    #[test]
    fn connections_are_limited_per_host_per_node_inbound_and_in_all() {
        let mut limits = Limits::new(config());
        let peers: Vec<_> = (0..12).map(|_| PeerId::random()).collect();

        for (n, peer) in peers.iter().enumerate().take(3) {
            assert_eq!(
                connect(&mut limits, n, *peer, Direction::In, host(1)),
                Ok(())
            );
        }
        assert_eq!(
            connect(&mut limits, 3, peers[3], Direction::In, host(1)),
            Err(Denied::PerIp)
        );
        for (n, peer) in peers.iter().enumerate().take(6).skip(3) {
            assert_eq!(
                connect(&mut limits, n, *peer, Direction::In, host(2)),
                Ok(())
            );
        }
        assert_eq!(
            connect(&mut limits, 6, peers[6], Direction::In, host(3)),
            Err(Denied::In)
        );
        // This node can still dial, also the hosts that are full.
        assert_eq!(
            connect(&mut limits, 6, peers[0], Direction::Out, None),
            Ok(())
        );
        assert_eq!(
            connect(&mut limits, 7, peers[0], Direction::Out, None),
            Err(Denied::PerNode)
        );
        assert_eq!(
            connect(&mut limits, 7, peers[7], Direction::Out, None),
            Ok(())
        );
        assert_eq!(
            connect(&mut limits, 8, peers[8], Direction::Out, None),
            Err(Denied::Total)
        );

        limits.closed(id(0));
        assert_eq!(
            connect(&mut limits, 9, peers[9], Direction::In, host(1)),
            Ok(())
        );
    }

    #[test]
    fn a_protected_node_passes_limits_that_strangers_have_filled() {
        let mut limits = Limits::new(config());
        for n in 0..8 {
            let from = host(u8::try_from(n).unwrap());
            limits.established(id(n), PeerId::random(), Direction::In, from);
        }
        let friend = PeerId::random();

        assert!(connect(&mut limits, 8, friend, Direction::In, host(9)).is_err());
        limits.protect(friend);
        assert_eq!(
            connect(&mut limits, 8, friend, Direction::In, host(9)),
            Ok(())
        );
        assert_eq!(
            connect(&mut limits, 9, friend, Direction::In, host(9)),
            Ok(())
        );
        // But not without end.
        assert_eq!(
            connect(&mut limits, 10, friend, Direction::In, host(9)),
            Err(Denied::PerNode)
        );
    }

    proptest! {
        #[test]
        fn whatever_happens_nothing_is_counted_once_all_is_closed(
            steps in proptest::collection::vec((0usize..20, 0u8..6, 0usize..4, 0u8..5), 0..200)
        ) {
            let mut limits = Limits::new(config());
            let peers: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
            for (n, what, peer, from) in steps {
                match what {
                    0 => drop(limits.begin_in(id(n), host(from), Carrier::Tcp)),
                    1 => drop(limits.begin_out(id(n))),
                    2 => limits.end_pending(id(n)),
                    3 => drop(connect(&mut limits, n, peers[peer], Direction::In, host(from))),
                    4 => drop(connect(&mut limits, n, peers[peer], Direction::Out, None)),
                    _ => limits.closed(id(n)),
                }
                prop_assert!(limits.pending_in.len() <= 4);
                prop_assert!(limits.inbound <= 6);
                prop_assert!(limits.established.len() <= 8);
                prop_assert!(limits.per_peer.values().all(|count| (1..=2).contains(count)));
                prop_assert!(limits.per_ip.values().all(|count| (1..=3).contains(count)));
            }
            for n in 0..20 {
                limits.end_pending(id(n));
                limits.closed(id(n));
            }
            prop_assert!(limits.pending_in.is_empty() && limits.pending_out.is_empty());
            prop_assert!(limits.pending_per_ip.is_empty() && limits.per_ip.is_empty());
            prop_assert!(limits.per_peer.is_empty() && limits.established.is_empty());
            prop_assert_eq!(limits.inbound, 0);
        }
    }
}
