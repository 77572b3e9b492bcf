//! Doing what the driver says.

use libp2p::gossipsub::{IdentTopic, PublishError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

use super::super::address::{Address, node_of, peer_of};
use super::super::gossip::{Waiting, topic_score};
use super::super::stream::{MeshStream, OpenError};
use super::super::{
    Command, Event, InboundId, MAX_TOPICS, Neighbour, RequestError, RequestId, Snapshot, Verdict,
    discovery,
};
use super::{Query, Task};
use crate::protocol::hello::Hello;
use crate::protocol::message::{Refusal, RefusalCode, Request, Response};
use crate::protocol::topic::{Cell, MAX_GOSSIP_BYTES, Topic};

/// Lookups in the hash table under way at once.
pub(super) const MAX_QUERIES: usize = 64;

/// Scores remembered at once: the nodes this one dealt with lately.
const MAX_SCORES: usize = 1024;

/// The score that excludes from gossip, and its opposite.
const MOST_SCORE: i32 = 100;

/// Whose word an address is.
#[derive(Clone, Copy, Debug)]
enum Teller {
    /// It is dialled wherever it leads.
    Operator,
    /// It is dialled if the [rule](super::transport::DialRule) allows it.
    Stranger,
}

impl Task {
    pub(super) fn on_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Subscribe(topic) => self.subscribe(topic),
            Command::Unsubscribe(topic) => self.unsubscribe(&topic),
            Command::Publish { topic, bytes } => self.publish(&topic, bytes),
            Command::Verdict { message, verdict } => {
                if let Some(waiting) = self.verdicts.take(message) {
                    let from = node_of(&waiting.from);
                    if let Some(from) = from.filter(|_| verdict == Verdict::Accept) {
                        self.use_peer(&from, now);
                    }
                    self.judge(&waiting, verdict);
                }
            }
            Command::Request { id, to, request } => self.request(id, to, request, now),
            Command::Respond { inbound, response } => self.answer(inbound, response),
            Command::Dial(address) => self.dial_address(&address, Teller::Operator, now),
            Command::DialTold(address) => self.dial_address(&address, Teller::Stranger, now),
            Command::Connect(node) => self.want(node, now),
            Command::Disconnect(node) => {
                // An error says that it is not connected, which is the aim.
                let _ = self.swarm.disconnect_peer_id(peer_of(node));
            }
            Command::Protect(node) => self.protect(node, now),
            Command::Unprotect(node) => self.unprotect(node),
            Command::Provide(cell) => self.add_cell(cell),
            Command::StopProviding(cell) => self.remove_cell(&cell),
            Command::FindProviders(cell) => self.find_providers(cell),
            Command::OpenStream { to, hello, reply } => self.open_stream(to, hello, reply, now),
            Command::SetScore { node, score } => self.set_score(node, score),
            Command::Inspect(reply) => {
                // Nobody waiting any more is no fault.
                let _ = reply.send(self.snapshot());
            }
        }
    }

    fn refuse_command(&self, why: &str) {
        tracing::debug!(why, "command refused");
        self.counters.commands_refused.add_one();
    }

    fn subscribe(&mut self, topic: Topic) {
        if self.topics.contains(&topic) {
            return;
        }
        if self.topics.len() >= MAX_TOPICS {
            return self.refuse_command("too many topics");
        }
        let name = IdentTopic::new(topic.name(self.network));
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        let scored = gossip.set_topic_params(name.clone(), topic_score());
        debug_assert!(scored.is_ok(), "scoring is on");
        match gossip.subscribe(&name) {
            Ok(_) => self.topics.push(topic),
            Err(error) => self.refuse_command(&error.to_string()),
        }
    }

    fn unsubscribe(&mut self, topic: &Topic) {
        self.topics.retain(|known| known != topic);
        let name = IdentTopic::new(topic.name(self.network));
        self.swarm.behaviour_mut().gossip.unsubscribe(&name);
    }

    fn publish(&mut self, topic: &Topic, bytes: Vec<u8>) {
        if bytes.len() > MAX_GOSSIP_BYTES {
            self.counters.publish_failed.add_one();
            return;
        }
        let name = IdentTopic::new(topic.name(self.network));
        match self.swarm.behaviour_mut().gossip.publish(name, bytes) {
            // Without neighbours there is nobody to tell; who comes later asks.
            Ok(_) | Err(PublishError::Duplicate | PublishError::NoPeersSubscribedToTopic) => {}
            Err(error) => {
                tracing::debug!(%topic, %error, "cannot publish");
                self.counters.publish_failed.add_one();
            }
        }
    }

    pub(super) fn judge(&mut self, waiting: &Waiting, verdict: Verdict) {
        match verdict {
            Verdict::Accept => self.counters.gossip_accepted.add_one(),
            Verdict::Ignore => self.counters.gossip_ignored.add_one(),
            Verdict::Reject => self.counters.gossip_rejected.add_one(),
        }
        self.swarm
            .behaviour_mut()
            .gossip
            .report_message_validation_result(&waiting.id, &waiting.from, verdict.acceptance());
    }

    fn request(&mut self, id: RequestId, to: NodeId, request: Request, now: Instant) {
        if to == self.node {
            return self.respond(id, Err(RequestError::Unreachable));
        }
        if let Err(error) = crate::protocol::codec::encode_request(&request) {
            return self.respond(id, Err(RequestError::Protocol(error.to_string())));
        }
        if !self.outstanding.add(id, to, request, now) {
            return self.respond(id, Err(RequestError::TooMany));
        }
        if self.swarm.is_connected(&peer_of(to)) {
            self.send_waiting(to);
        } else {
            self.want(to, now);
        }
    }

    fn answer(&mut self, inbound: InboundId, response: Response) {
        let Some(channel) = self.inbox.take(inbound) else {
            return;
        };
        let response = match crate::protocol::codec::encode_response(&response) {
            Ok(_) => response,
            Err(error) => {
                // A fault of this node: the other one need not wait for its timeout.
                tracing::error!(%error, "response breaks its own rules");
                Response::Refused(Refusal::new(RefusalCode::Internal, ""))
            }
        };
        // An error says that the other node has given up.
        let _ = self
            .swarm
            .behaviour_mut()
            .rpc
            .send_response(channel, response);
    }

    fn dial_address(&mut self, address: &Address, teller: Teller, now: Instant) {
        let Some(node) = address.node() else {
            return self.refuse_command("address without a node");
        };
        if node == self.node || self.swarm.is_connected(&peer_of(node)) {
            return;
        }
        match teller {
            Teller::Operator => self.rule.name(address.multiaddr()),
            Teller::Stranger => {}
        }
        self.dial(node, vec![address.multiaddr().clone()], now);
    }

    fn protect(&mut self, node: NodeId, now: Instant) {
        let peer = peer_of(node);
        let connected = self.swarm.is_connected(&peer);
        match self.redial.protect(node, connected, now) {
            None => self.refuse_command("too many protected nodes"),
            Some(false) => {}
            Some(true) => {
                let behaviour = self.swarm.behaviour_mut();
                behaviour.gate.limits_mut().protect(peer);
                behaviour.streams.protect(peer);
                let dialled = self.peers.get(&node).and_then(|peer| peer.dialled());
                if let Some(dialled) = dialled {
                    self.rule.name(dialled.multiaddr());
                    self.redial.connected(&node, Some(dialled));
                }
            }
        }
    }

    fn unprotect(&mut self, node: NodeId) {
        if self.redial.unprotect(node) {
            let peer = peer_of(node);
            let behaviour = self.swarm.behaviour_mut();
            behaviour.gate.limits_mut().unprotect(&peer);
            behaviour.streams.unprotect(peer);
        }
    }

    fn add_cell(&mut self, cell: Cell) {
        if !self.cells.contains(&cell) {
            if self.cells.len() >= MAX_TOPICS {
                return self.refuse_command("too many cells");
            }
            self.cells.push(cell.clone());
        }
        self.provide(&cell);
    }

    pub(super) fn provide(&mut self, cell: &Cell) {
        let key = discovery::key(cell, self.network);
        if let Err(error) = self.swarm.behaviour_mut().dht.start_providing(key) {
            tracing::debug!(%cell, %error, "cannot provide");
        }
    }

    fn remove_cell(&mut self, cell: &Cell) {
        self.cells.retain(|known| known != cell);
        let key = discovery::key(cell, self.network);
        self.swarm.behaviour_mut().dht.stop_providing(&key);
    }

    fn find_providers(&mut self, cell: Cell) {
        if self.queries.len() >= MAX_QUERIES {
            let nodes = Vec::new();
            return self.outbox.push(Event::Providers { cell, nodes });
        }
        let key = discovery::key(&cell, self.network);
        let query = self.swarm.behaviour_mut().dht.get_providers(key);
        let found = Vec::new();
        self.queries.insert(query, Query::Providers { cell, found });
    }

    fn open_stream(
        &mut self,
        to: NodeId,
        hello: Hello,
        reply: oneshot::Sender<Result<MeshStream, OpenError>>,
        now: Instant,
    ) {
        let streams = &mut self.swarm.behaviour_mut().streams;
        let Some(opening) = streams.opening(hello, reply) else {
            return;
        };
        if to == self.node {
            return opening.finish(Err(OpenError::Unreachable));
        }
        if let Some(opening) = streams.open(peer_of(to), opening) {
            self.waiting_streams.entry(to).or_default().push(opening);
            self.want(to, now);
        }
    }

    fn set_score(&mut self, node: NodeId, score: i32) {
        let score = score.clamp(-MOST_SCORE, MOST_SCORE);
        if score == 0 {
            self.scores.remove(&node);
        } else if self.scores.len() >= MAX_SCORES && !self.scores.contains_key(&node) {
            return self.refuse_command("too many scores");
        } else {
            self.scores.insert(node, score);
        }
        self.apply_score(node, score);
    }

    /// Holds while the node is connected; has to be told anew for each connection.
    pub(super) fn apply_score(&mut self, node: NodeId, score: i32) {
        self.swarm
            .behaviour_mut()
            .gossip
            .set_application_score(&peer_of(node), f64::from(score));
    }

    fn snapshot(&mut self) -> Snapshot {
        let mut neighbours: Vec<_> = self
            .peers
            .iter()
            .filter(|(node, _)| self.outbox.is_linked(node))
            .filter_map(|(node, peer)| {
                let best = peer.best()?;
                Some(Neighbour {
                    node: *node,
                    address: Address::new(best.address.clone()),
                    direction: best.direction,
                    round_trip_us: peer
                        .round_trip
                        .and_then(|time| u64::try_from(time.as_micros()).ok()),
                    agent: peer.agent.clone(),
                    protected: self.redial.is_protected(node),
                })
            })
            .collect();
        neighbours.sort_by_key(|neighbour| neighbour.node);
        Snapshot {
            node: self.node,
            listening: self.listening.iter().cloned().map(Address::new).collect(),
            announced: self.announced.clone(),
            neighbours,
            dht_server: self.swarm.behaviour().dht.mode() == libp2p::kad::Mode::Server,
            dht_nodes: self.dht_nodes(),
            counters: self.counters.snapshot(),
        }
    }
}
