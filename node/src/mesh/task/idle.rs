//! Closing connections nobody uses.
//!
//! libp2p closes a connection on which no stream is open; but gossip holds streams open for as long
//! as the connection lives, so that would never be. What counts here is use.

use libp2p::PeerId;
use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

use super::super::Direction;
use super::super::address::peer_of;
use super::Task;

impl Task {
    /// Closes what has been of no use for long: at once if nothing is shared with the node, and if it
    /// is a neighbour in gossip once others may need the room, longest unused first.
    ///
    /// Protected nodes, those with session streams, and bootstrap nodes while this node needs them
    /// are left alone.
    pub(super) fn review_idle(&mut self, now: Instant) {
        let mut idle = Vec::new();
        let (mut inbound, mut all) = (0, 0);
        for (node, peer) in self.peers.iter() {
            let of_peer = peer.connections.len();
            let from_peer = peer
                .connections
                .iter()
                .filter(|connection| connection.direction == Direction::In)
                .count();
            all += of_peer;
            inbound += from_peer;
            if now.saturating_duration_since(peer.used) >= self.idle && !self.is_held(node) {
                idle.push((peer.used, *node, of_peer, from_peer));
            }
        }
        idle.sort_by_key(|(used, node, ..)| (*used, *node));
        for (_, node, of_peer, from_peer) in idle {
            let peer = peer_of(node);
            let is_crowded = all > self.crowded || (inbound > self.crowded_in && from_peer > 0);
            if is_crowded || !self.shares_a_topic(&peer) {
                all -= of_peer;
                inbound -= from_peer;
                // An error says that it is not connected, which is the aim.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
    }

    fn is_held(&self, node: &NodeId) -> bool {
        self.redial.is_wanted(node, self.peers.len())
            || self.swarm.behaviour().streams.is_in_use(&peer_of(*node))
    }

    fn shares_a_topic(&self, peer: &PeerId) -> bool {
        let gossip = &self.swarm.behaviour().gossip;
        gossip
            .all_peers()
            .find(|(known, _)| *known == peer)
            .is_some_and(|(_, topics)| {
                topics
                    .into_iter()
                    .any(|topic| gossip.topics().any(|ours| ours == topic))
            })
    }
}
