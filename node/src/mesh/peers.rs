//! Who is connected, and by which connections.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

use super::Direction;
use super::address::Address;
use super::bucket::Bucket;

/// Requests: ten quotes at once, and ten a second; see `rpc::cost`.
const REQUEST_BURST: u32 = 60;
const REQUEST_RATE: u32 = 20;

/// Session streams: twelve sessions starting at once.
const STREAM_BURST: u32 = 64;
const STREAM_RATE: u32 = 16;

/// Gossiped messages by one neighbour: a busy cell says some two a second, in bursts.
const GOSSIP_BURST: u32 = 512;
const GOSSIP_RATE: u32 = 64;

/// Identify messages by one neighbour: one at first and some when its addresses change.
const IDENTIFY_BURST: u32 = 8;
const IDENTIFY_RATE: u32 = 1;

/// Longest name of its software that a neighbour is remembered by.
const MAX_AGENT_CHARS: usize = 64;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) address: Multiaddr,
    pub(crate) direction: Direction,
    pub(crate) relayed: bool,
    since: Instant,
}

/// One connected node.
#[derive(Debug)]
pub(crate) struct Peer {
    /// In order of establishment; never empty.
    pub(crate) connections: Vec<Connection>,
    pub(crate) round_trip: Option<Duration>,
    pub(crate) agent: Option<String>,
    /// When something useful last came from the node, or was wanted of it.
    pub(crate) used: Instant,
    pub(crate) requests: Bucket,
    pub(crate) streams: Bucket,
    pub(crate) gossip: Bucket,
    pub(crate) identify: Bucket,
}

/// Who is connected. Bounded by the limits on connections.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    peers: HashMap<NodeId, Peer>,
}

impl Peers {
    pub(crate) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.peers.get_mut(node)
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<&Peer> {
        self.peers.get(node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
        self.peers.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// A connection is there. Returns the connections it takes the place of.
    ///
    /// A node dials only when it has no connection with the other. One that dials again although this
    /// node holds a connection with it has lost that one, by a crash or a change of network. Only
    /// connections older than `race` count: younger ones may be the two dialling each other.
    pub(crate) fn connected(
        &mut self,
        node: NodeId,
        connection: NewConnection,
        race: Duration,
        now: Instant,
    ) -> Vec<ConnectionId> {
        let peer = self.peers.entry(node).or_insert_with(|| Peer {
            connections: Vec::new(),
            round_trip: None,
            agent: None,
            used: now,
            requests: Bucket::new(REQUEST_BURST, REQUEST_RATE, now),
            streams: Bucket::new(STREAM_BURST, STREAM_RATE, now),
            gossip: Bucket::new(GOSSIP_BURST, GOSSIP_RATE, now),
            identify: Bucket::new(IDENTIFY_BURST, IDENTIFY_RATE, now),
        });
        let replaces = connection.direction == Direction::In && !connection.relayed;
        let replaced = peer
            .connections
            .iter()
            .filter(|old| replaces && now.saturating_duration_since(old.since) > race)
            .map(|old| old.id)
            .collect();
        peer.connections.push(Connection {
            id: connection.id,
            address: connection.address,
            direction: connection.direction,
            relayed: connection.relayed,
            since: now,
        });
        replaced
    }

    /// A connection is gone. Returns whether it was the node's last.
    pub(crate) fn closed(&mut self, node: &NodeId, id: ConnectionId) -> bool {
        let Some(peer) = self.peers.get_mut(node) else {
            return false;
        };
        peer.connections.retain(|connection| connection.id != id);
        if peer.connections.is_empty() {
            self.peers.remove(node);
            return true;
        }
        false
    }
}

/// A connection that has just been established.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) id: ConnectionId,
    pub(crate) address: Multiaddr,
    pub(crate) direction: Direction,
    pub(crate) relayed: bool,
}

impl Peer {
    /// The connection to show: direct before relayed, then the newest.
    pub(crate) fn best(&self) -> Option<&Connection> {
        let newest = |relayed| {
            self.connections
                .iter()
                .rev()
                .find(move |connection| connection.relayed == relayed)
        };
        newest(false).or_else(|| newest(true))
    }

    /// Where this node found the other, if it dialled.
    pub(crate) fn dialled(&self) -> Option<Address> {
        self.connections
            .iter()
            .rev()
            .find(|connection| connection.direction == Direction::Out)
            .map(|connection| Address::new(connection.address.clone()))
    }

    /// A ping was answered, or not. Returns whether the connection counts as dead: of two pings missed
    /// in a row, libp2p keeps the first to itself.
    pub(crate) fn pinged(&mut self, id: ConnectionId, round_trip: Option<Duration>) -> bool {
        if round_trip.is_some() {
            self.round_trip = round_trip;
        }
        let is_known = self.connections.iter().any(|it| it.id == id);
        is_known && round_trip.is_none()
    }

    /// Remembers what software the node says it runs, as far as it can be shown.
    pub(crate) fn set_agent(&mut self, agent: &str) {
        let shown: String = agent
            .chars()
            .filter(|character| character.is_ascii_graphic() || *character == ' ')
            .take(MAX_AGENT_CHARS)
            .collect();
        self.agent = (!shown.is_empty()).then_some(shown);
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};

    use super::*;

    const RACE: Duration = Duration::from_secs(15);

    fn node() -> NodeId {
        Ed25519Signer::from_seed([1; 32]).node_id()
    }

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::from_std(std::time::Instant::now())
    }

    fn connection(id: usize, direction: Direction) -> NewConnection {
        NewConnection {
            id: ConnectionId::new_unchecked(id),
            address: "/ip4/192.0.2.1/tcp/1".parse().unwrap(),
            direction,
            relayed: false,
        }
    }

    #[test]
    fn a_node_that_dials_again_has_lost_its_old_connections() {
        let mut peers = Peers::default();
        let t0 = epoch();
        let late = t0 + RACE * 2;
        let id = ConnectionId::new_unchecked;

        assert!(
            peers
                .connected(node(), connection(1, Direction::Out), RACE, t0)
                .is_empty()
        );
        assert!(
            peers
                .connected(node(), connection(2, Direction::In), RACE, t0)
                .is_empty(),
            "the two may have dialled each other"
        );
        assert_eq!(
            peers.connected(node(), connection(3, Direction::In), RACE, late),
            [id(1), id(2)]
        );
        assert!(
            peers
                .connected(node(), connection(4, Direction::Out), RACE, late + RACE * 2)
                .is_empty(),
            "only the other node's dial says something about it"
        );
    }

    #[test]
    fn the_last_connection_takes_the_node_with_it() {
        let mut peers = Peers::default();
        let id = ConnectionId::new_unchecked;
        peers.connected(node(), connection(1, Direction::Out), RACE, epoch());
        peers.connected(node(), connection(2, Direction::In), RACE, epoch());

        assert!(!peers.closed(&node(), id(1)));
        assert!(!peers.closed(&node(), id(1)));
        assert!(peers.closed(&node(), id(2)));
        assert_eq!(peers.len(), 0);
    }

    #[test]
    fn a_missed_ping_that_is_told_of_is_a_dead_connection() {
        let mut peers = Peers::default();
        let id = ConnectionId::new_unchecked(1);
        peers.connected(node(), connection(1, Direction::Out), RACE, epoch());
        let peer = peers.get_mut(&node()).unwrap();

        assert!(!peer.pinged(id, Some(Duration::from_millis(5))));
        assert!(peer.pinged(id, None));
        assert!(!peer.pinged(ConnectionId::new_unchecked(2), None));
        assert_eq!(peer.round_trip, Some(Duration::from_millis(5)));
    }

    #[test]
    fn what_a_neighbour_says_it_runs_can_be_shown() {
        let mut peers = Peers::default();
        peers.connected(node(), connection(1, Direction::Out), RACE, epoch());
        let peer = peers.get_mut(&node()).unwrap();

        peer.set_agent("\u{1b}[2Jbitmesh/1 ü\n");
        assert_eq!(peer.agent.as_deref(), Some("[2Jbitmesh/1 "));
        peer.set_agent(&"x".repeat(5000));
        assert_eq!(peer.agent.as_ref().map(String::len), Some(MAX_AGENT_CHARS));
        peer.set_agent("\0");
        assert_eq!(peer.agent, None);
    }
}
