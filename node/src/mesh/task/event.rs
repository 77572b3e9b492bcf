//! Telling the driver what happened, and what follows from it within the mesh.

use std::net::IpAddr;

use libp2p::core::ConnectedPoint;
use libp2p::kad::{
    self, GetClosestPeersError, GetProvidersOk, InboundRequest, ProviderRecord, QueryId,
    QueryResult,
};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, PeerId, gossipsub, identify, mdns, ping, request_response};
use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

use super::super::address::{Address, ip_of, is_dialable, is_public, is_relayed, node_of, peer_of};
use super::super::behaviour::BehaviourEvent;
use super::super::discovery::{self, MAX_ADDRESSES};
use super::super::peers::NewConnection;
use super::super::reach::Step;
use super::super::{Direction, Event, MAX_PROVIDERS, Verdict, rpc, streams};
use super::{PROVIDE_AGAIN, PROVIDE_FIRST, Query, Task};
use crate::protocol::message::{Refusal, RefusalCode, Request, Response};
use crate::protocol::names;
use crate::protocol::topic::{MAX_GOSSIP_BYTES, Topic};

/// Neighbours above which this node does not connect to more that it merely hears of.
const ENOUGH_NEIGHBOURS: usize = 32;

/// Addresses the local network may name. It has no bound of its own on what it keeps, so above this
/// somebody is flooding it and it is turned off.
const MAX_LOCAL: usize = 2048;

/// Nodes of a cell this node connects to from one lookup.
const MAX_CONNECT: usize = 8;

impl Task {
    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>, now: Instant) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event, now),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                if let Some(node) = node_of(&peer_id) {
                    self.on_connected(node, connection_id, &endpoint, now);
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                if let Some(node) = node_of(&peer_id) {
                    tracing::debug!(%node, ?cause, "connection closed");
                    self.on_closed(node, connection_id, now);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(?peer_id, %error, "dial failed");
                if let Some(node) = peer_id.as_ref().and_then(node_of) {
                    self.on_dial_failed(node, now);
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                self.listening.push(address.clone());
                self.outbox.push(Event::Listening(Address::new(address)));
                self.review_addresses();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => self.on_listening_ended(&[address]),
            SwarmEvent::ListenerClosed {
                listener_id,
                addresses,
                reason,
            } => {
                tracing::warn!(?addresses, ?reason, "stopped listening");
                self.lost_listeners
                    .extend(self.listeners.remove(&listener_id));
                self.on_listening_ended(&addresses);
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::debug!(%error, "listener reported an error");
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.tell_announced();
            }
            _ => {}
        }
    }

    fn on_connected(
        &mut self,
        node: NodeId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
        now: Instant,
    ) {
        let address = endpoint.get_remote_address().clone();
        let direction = match endpoint {
            ConnectedPoint::Dialer { .. } => Direction::Out,
            ConnectedPoint::Listener { .. } => Direction::In,
        };
        let connection = NewConnection {
            id,
            relayed: is_relayed(&address),
            address: address.clone(),
            direction,
        };
        for old in self.peers.connected(node, connection, self.race, now) {
            self.swarm.close_connection(old);
        }
        let dialled = (direction == Direction::Out).then(|| Address::new(address));
        if let Some(dialled) = &dialled
            && self.redial.is_protected(&node)
        {
            self.rule.name(dialled.multiaddr());
        }
        self.redial.connected(&node, dialled);
        self.reach.connected(&node);
        self.send_waiting(node);
        if let Some(score) = self.scores.get(&node).copied() {
            self.apply_score(node, score);
        }
    }

    fn on_closed(&mut self, node: NodeId, id: ConnectionId, now: Instant) {
        if self.peers.closed(&node, id) {
            self.redial.disconnected(&node, now);
            self.outbox.link(node, false);
        }
    }

    fn on_listening_ended(&mut self, addresses: &[Multiaddr]) {
        for address in addresses {
            let before = self.listening.len();
            self.listening.retain(|known| known != address);
            if self.listening.len() < before {
                let address = Address::new(address.clone());
                self.outbox.push(Event::ListeningEnded(address));
            }
            self.swarm.remove_external_address(address);
        }
        self.review_addresses();
    }

    /// Tells others the addresses of this node's own that may be told. Loopback only where there is
    /// nothing else: it means another machine to everyone on another machine.
    pub(super) fn review_addresses(&mut self) {
        let may_share: Vec<_> = self
            .listening
            .iter()
            .filter(|address| self.rule.may_share(address))
            .cloned()
            .collect();
        let is_loopback = |address: &Multiaddr| ip_of(address).is_some_and(|ip| ip.is_loopback());
        let only_loopback = may_share.iter().all(is_loopback);
        for address in may_share {
            if only_loopback || !is_loopback(&address) {
                self.swarm.add_external_address(address);
            } else {
                self.swarm.remove_external_address(&address);
            }
        }
        self.tell_announced();
    }

    fn tell_announced(&mut self) {
        let mut announced: Vec<_> = self
            .swarm
            .external_addresses()
            .cloned()
            .map(Address::new)
            .collect();
        announced.sort();
        if announced != self.announced {
            self.announced.clone_from(&announced);
            self.outbox.push(Event::Announced(announced));
        }
    }

    /// The node speaks this network's protocols: the driver may know of it.
    fn greet(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some() {
            self.outbox.link(node, true);
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Streams(event) => self.on_stream(event, now),
            BehaviourEvent::Rpc(event) => self.on_rpc(event, now),
            BehaviourEvent::Gossip(event) => self.on_gossip(event, now),
            BehaviourEvent::Dht(event) => self.on_dht(event, now),
            BehaviourEvent::Identify(event) => self.on_identify(event, now),
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result,
            }) => {
                // Whoever takes no pings misses none.
                if matches!(result, Err(ping::Failure::Unsupported)) {
                    return;
                }
                let peer = node_of(&peer).and_then(|node| self.peers.get_mut(&node));
                if peer.is_some_and(|peer| peer.pinged(connection, result.ok())) {
                    self.swarm.close_connection(connection);
                }
            }
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::Gate(never) => match never {},
            BehaviourEvent::Memory(never) => match never {},
        }
    }

    fn on_stream(&mut self, event: streams::Event, now: Instant) {
        let streams::Event { peer, stream } = event;
        let Some(from) = node_of(&peer) else {
            return;
        };
        let allowed = self
            .peers
            .get_mut(&from)
            .is_some_and(|peer| peer.streams.take(1, now));
        if !allowed {
            self.counters.streams_overflowed.add_one();
            return stream.refuse(RefusalCode::TooFast);
        }
        self.greet(from);
        match self.outbox.offer(Event::Stream { from, stream }) {
            Ok(()) => self.counters.streams_in.add_one(),
            Err(event) => {
                self.counters.streams_overflowed.add_one();
                if let Event::Stream { stream, .. } = event {
                    stream.refuse(RefusalCode::Busy);
                }
            }
        }
    }

    fn on_rpc(&mut self, event: request_response::Event<Request, Response>, now: Instant) {
        match event {
            request_response::Event::Message { peer, message, .. } => {
                let Some(from) = node_of(&peer) else {
                    return;
                };
                match message {
                    request_response::Message::Request {
                        request, channel, ..
                    } => self.on_request(from, request, channel, now),
                    request_response::Message::Response {
                        request_id,
                        response,
                    } => {
                        self.greet(from);
                        self.use_peer(&from, now);
                        if let Some(id) = self.outstanding.finished(request_id) {
                            self.respond(id, Ok(response));
                        }
                    }
                }
            }
            request_response::Event::OutboundFailure {
                request_id, error, ..
            } => {
                if let Some(id) = self.outstanding.finished(request_id) {
                    self.respond(id, Err(rpc::failure(error)));
                }
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "request of another node failed");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_request(
        &mut self,
        from: NodeId,
        request: Request,
        channel: request_response::ResponseChannel<Response>,
        now: Instant,
    ) {
        let cost = rpc::cost(&request);
        let allowed = self
            .peers
            .get_mut(&from)
            .is_some_and(|peer| peer.requests.take(cost, now));
        if !allowed {
            self.counters.requests_too_fast.add_one();
            return self.refuse(channel, RefusalCode::TooFast);
        }
        self.greet(from);
        let inbound = match self.inbox.add(from, channel, now) {
            Ok(inbound) => inbound,
            Err(channel) => {
                self.counters.requests_overflowed.add_one();
                return self.refuse(channel, RefusalCode::Busy);
            }
        };
        let event = Event::Request {
            from,
            inbound,
            request,
        };
        match self.outbox.offer(event) {
            Ok(()) => self.counters.requests_in.add_one(),
            Err(_) => {
                self.counters.requests_overflowed.add_one();
                if let Some(channel) = self.inbox.take(inbound) {
                    self.refuse(channel, RefusalCode::Busy);
                }
            }
        }
    }

    fn refuse(&mut self, channel: request_response::ResponseChannel<Response>, code: RefusalCode) {
        let response = Response::Refused(Refusal::new(code, ""));
        // An error says that the other node has given up.
        let _ = self
            .swarm
            .behaviour_mut()
            .rpc
            .send_response(channel, response);
    }

    fn on_gossip(&mut self, event: gossipsub::Event, now: Instant) {
        let gossipsub::Event::Message {
            propagation_source,
            message_id,
            message,
        } = event
        else {
            return;
        };
        let Some(waiting) = self
            .verdicts
            .add(message_id.clone(), propagation_source, now)
        else {
            self.counters.gossip_overflowed.add_one();
            self.swarm
                .behaviour_mut()
                .gossip
                .report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    gossipsub::MessageAcceptance::Ignore,
                );
            return;
        };
        let verdict = self.first_look(propagation_source, waiting, message, now);
        if let Some(verdict) = verdict
            && let Some(waiting) = self.verdicts.take(waiting)
        {
            self.judge(&waiting, verdict);
        }
    }

    /// Hands a message to the driver, or judges it without: by its size, its topic, and how much its
    /// bearer says.
    fn first_look(
        &mut self,
        bearer: PeerId,
        id: super::super::MessageId,
        message: gossipsub::Message,
        now: Instant,
    ) -> Option<Verdict> {
        let Some(from) = node_of(&bearer) else {
            return Some(Verdict::Ignore);
        };
        if message.data.len() > MAX_GOSSIP_BYTES {
            return Some(Verdict::Reject);
        }
        let Some(topic) = Topic::from_name(message.topic.as_str(), self.network) else {
            return Some(Verdict::Reject);
        };
        if !self
            .peers
            .get_mut(&from)
            .is_some_and(|peer| peer.gossip.take(1, now))
        {
            return Some(Verdict::Ignore);
        }
        self.greet(from);
        let event = Event::Gossip {
            from,
            message: id,
            topic,
            bytes: message.data,
        };
        if self.outbox.offer(event).is_err() {
            self.counters.gossip_overflowed.add_one();
            return Some(Verdict::Ignore);
        }
        None
    }

    fn on_identify(&mut self, event: identify::Event, now: Instant) {
        let identify::Event::Received {
            connection_id,
            peer_id,
            info,
        } = event
        else {
            return;
        };
        let Some(node) = node_of(&peer_id) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        if !peer.identify.take(1, now) {
            return;
        }
        if info.protocol_version != names::node(self.network) {
            tracing::debug!(%node, "not a node of this network");
            self.swarm.behaviour_mut().dht.remove_peer(&peer_id);
            // An error says that it is not connected, which is the aim.
            let _ = self.swarm.disconnect_peer_id(peer_id);
            return;
        }
        peer.set_agent(&info.agent_version);
        let witness = peer
            .connections
            .iter()
            .find(|connection| {
                connection.id == connection_id && connection.direction == Direction::In
            })
            .and_then(|connection| ip_of(&connection.address));
        if let Some(witness) = witness {
            self.on_observed(witness, info.observed_addr, now);
        }
        let dht = names::kad(self.network);
        if info
            .protocols
            .iter()
            .any(|protocol| protocol.as_ref() == dht)
        {
            self.add_to_dht(peer_id, &info.listen_addrs);
        }
        self.greet(node);
    }

    /// Somebody who connected to this node says at which address.
    fn on_observed(&mut self, witness: IpAddr, address: Multiaddr, now: Instant) {
        if !is_public(&address) {
            return;
        }
        if let Some(discovery::Change::Confirmed(address)) =
            self.observed.saw(witness, address, now)
        {
            self.swarm.add_external_address(address);
        }
    }

    pub(super) fn review_observed(&mut self, now: Instant) {
        while let Some(discovery::Change::Expired(address)) = self.observed.expired(now) {
            if !self.listening.contains(&address) {
                self.swarm.remove_external_address(&address);
            }
        }
    }

    fn add_to_dht(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        let dht = &mut self.swarm.behaviour_mut().dht;
        let known = dht
            .kbucket(peer)
            .and_then(|bucket| {
                bucket
                    .iter()
                    .find(|entry| *entry.node.key.preimage() == peer)
                    .map(|entry| entry.node.value.len())
            })
            .unwrap_or(0);
        let room = MAX_ADDRESSES.saturating_sub(known);
        let shared = addresses
            .iter()
            .filter(|address| self.rule.may_share(address));
        for address in shared.take(room) {
            dht.add_address(&peer, address.clone());
        }
    }

    fn on_dht(&mut self, event: kad::Event, now: Instant) {
        match event {
            kad::Event::InboundRequest {
                request:
                    InboundRequest::AddProvider {
                        record: Some(record),
                    },
            } => self.on_provider(record, now),
            kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            } => self.on_query(id, result, step.last, now),
            kad::Event::RoutingUpdated {
                is_new_peer: true, ..
            } => {
                let soonest = self.provided_at.map_or(now, |at| at + PROVIDE_AGAIN);
                if self.provide.is_none() && !self.cells.is_empty() {
                    self.provide = Some(soonest.max(now + PROVIDE_FIRST));
                }
            }
            _ => {}
        }
    }

    /// Another node says that it is in a cell.
    fn on_provider(&mut self, mut record: ProviderRecord, now: Instant) {
        if discovery::cell(&record.key, self.network).is_none() {
            return;
        }
        record
            .addresses
            .retain(|address| self.rule.may_share(address));
        record.addresses.truncate(MAX_ADDRESSES);
        let store = self.swarm.behaviour_mut().dht.store_mut();
        if let Err(error) = store.add_other(record, now.into_std()) {
            tracing::debug!(%error, "provider not kept");
        }
    }

    fn on_query(&mut self, id: QueryId, result: QueryResult, last: bool, now: Instant) {
        match result {
            QueryResult::GetProviders(result) => {
                if let Ok(GetProvidersOk::FoundProviders { providers, .. }) = result {
                    self.on_found(id, &providers, now);
                }
                if last && let Some(Query::Providers { cell, found }) = self.queries.remove(&id) {
                    self.outbox.push(Event::Providers { cell, nodes: found });
                }
            }
            QueryResult::GetClosestPeers(result) => {
                let peers = match result {
                    Ok(closest) => closest.peers,
                    Err(GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                if last && let Some(Query::Node(node)) = self.queries.remove(&id) {
                    let peer = peer_of(node);
                    let addresses = peers
                        .into_iter()
                        .find(|found| found.peer_id == peer)
                        .map(|found| found.addrs)
                        .unwrap_or_default();
                    self.on_looked_up(node, addresses, now);
                }
            }
            _ => {}
        }
    }

    /// Nodes of a cell. Some are connected to now, while the hash table still knows where they are.
    fn on_found<'a>(
        &mut self,
        id: QueryId,
        providers: impl IntoIterator<Item = &'a PeerId>,
        now: Instant,
    ) {
        let Some(Query::Providers { found, .. }) = self.queries.get_mut(&id) else {
            return;
        };
        let mut fresh = Vec::new();
        for node in providers.into_iter().filter_map(node_of) {
            if node != self.node && !found.contains(&node) && found.len() < MAX_PROVIDERS {
                found.push(node);
                if found.len() <= MAX_CONNECT {
                    fresh.push(node);
                }
            }
        }
        for node in fresh {
            self.want(node, now);
        }
    }

    fn on_looked_up(&mut self, node: NodeId, addresses: Vec<Multiaddr>, now: Instant) {
        let addresses: Vec<_> = addresses
            .into_iter()
            .filter(|address| self.rule.may_share(address))
            .take(MAX_ADDRESSES)
            .collect();
        match self.reach.looked_up(&node, !addresses.is_empty()) {
            Step::Dial => self.dial(node, addresses, now),
            step @ (Step::Lookup | Step::GiveUp | Step::Wait) => self.take_step(node, step, now),
        }
    }

    fn on_mdns(&mut self, event: mdns::Event) {
        let mdns::Event::Discovered(found) = event else {
            return;
        };
        let mdns = &mut self.swarm.behaviour_mut().mdns;
        let known = mdns
            .as_ref()
            .map_or(0, |mdns| mdns.discovered_nodes().len());
        if known > MAX_LOCAL {
            tracing::warn!(
                known,
                "the local network names too many nodes; not listening to it"
            );
            *mdns = Toggle::from(None);
            return;
        }
        for (peer, address) in found {
            let wanted = self.peers.len() < ENOUGH_NEIGHBOURS
                && is_dialable(&address)
                && !self.swarm.is_connected(&peer)
                && node_of(&peer).is_some();
            if !wanted {
                continue;
            }
            self.rule.name_local(&address);
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(vec![address])
                .extend_addresses_through_behaviour()
                .build();
            if let Err(error) = self.swarm.dial(options) {
                tracing::debug!(%peer, %error, "cannot dial a node of the local network");
            }
        }
    }
}
