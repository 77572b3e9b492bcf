//! The task that owns the swarm: it waits for one thing, does what follows from it, and waits again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::core::transport::ListenerId;
use libp2p::kad::QueryId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{self, DialError};
use libp2p::{Multiaddr, Swarm, identity};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use bitmesh_market::envelope::Network;
use bitmesh_market::identity::NodeId;

use super::address::{Address, ip_of, is_dialable, peer_of};
use super::behaviour::Behaviour;
use super::config::{Config, ConfigError, millis};
use super::counters::Counters;
use super::discovery::Observed;
use super::gossip::Verdicts;
use super::outbox::Outbox;
use super::peers::Peers;
use super::reach::{Reach, Step};
use super::redial::Redial;
use super::resolve::{is_named, resolve};
use super::rpc::{Inbox, Outstanding};
use super::stream::OpenError;
use super::streams::Opening;
use super::transport::{self, DialRule};
use super::{COMMANDS, Command, EVENTS, Event, MAX_PROTECTED, Mesh, RequestError, RequestId};
use crate::protocol::topic::Cell;

mod command;
mod event;
mod idle;

/// How long connections may take to say goodbye when the mesh ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often it is looked for connections nobody uses and addresses nobody comes by.
const REVIEW: Duration = Duration::from_secs(30);

/// How long after new nodes entered the routing table this node tells them what it provides. The
/// first are told soon; then not more often than this however fast the table grows.
const PROVIDE_FIRST: Duration = Duration::from_millis(500);
const PROVIDE_AGAIN: Duration = Duration::from_secs(60);

/// Streams that may be in negotiation on one connection at once, opened by the other side. What is
/// above waits in the other side's window.
const MAX_NEGOTIATING: usize = 64;

/// Why a mesh cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on; most often another process has the port.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Which.
        address: Address,
        /// What the system said.
        reason: String,
    },
    /// Something that holds for every node of this build failed.
    #[error("cannot start the network: {0}")]
    Internal(String),
}

/// Starts a mesh for the node whose ed25519 seed is given.
///
/// Must be called inside a tokio runtime. The mesh listens when this returns; where, is told by
/// [`Event::Listening`]. It ends, with its connections closed, when the last [`Mesh`] is dropped; the
/// handle tells when that is done.
///
/// # Errors
///
/// See [`StartError`]. An IPv6 address that cannot be listened on is no error as long as another
/// address can: machines without IPv6 are common.
pub fn start(
    config: &Config,
    network: Network,
    seed: [u8; 32],
) -> Result<(Mesh, mpsc::Receiver<Event>, JoinHandle<()>), StartError> {
    config.check()?;
    let internal = |error: &dyn std::fmt::Display| StartError::Internal(error.to_string());
    let key = identity::Keypair::ed25519_from_bytes(seed).map_err(|error| internal(&error))?;
    let local = key.public().to_peer_id();
    let node =
        super::address::node_of(&local).ok_or_else(|| internal(&"the seed makes no usable key"))?;
    let counters = Arc::new(Counters::default());
    let now = Instant::now();
    let rule = Arc::new(DialRule::new(
        config.allow_private_addresses,
        Arc::clone(&counters),
        now,
    ));
    let transport =
        transport::build(config, &key, Arc::clone(&rule)).map_err(|error| internal(&error))?;
    let behaviour =
        Behaviour::new(config, network, &key, &counters).map_err(|error| internal(&error))?;
    let idle = Duration::from_secs(config.timeouts.idle_secs.into());
    let settings = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(idle)
        .with_max_negotiating_inbound_streams(MAX_NEGOTIATING)
        .with_smart_dial();
    let mut swarm = Swarm::new(transport, behaviour, local, settings);
    let listeners = listen(&mut swarm, &config.listen)?;
    for address in &config.announce {
        swarm.add_external_address(address.multiaddr().clone());
    }

    let (to_mesh, commands) = mpsc::channel(COMMANDS);
    let (to_driver, events) = mpsc::channel(EVENTS);
    let dial = millis(config.timeouts.dial_ms);
    let request = millis(config.timeouts.request_ms);
    let mut redial = Redial::new(
        millis(config.timeouts.redial_first_ms),
        millis(config.timeouts.redial_most_ms),
        MAX_PROTECTED,
    );
    for address in &config.bootstrap {
        rule.name(address.multiaddr());
        // `check` has seen that each names its node.
        if let Some(bootstrap) = address.node()
            && bootstrap != node
        {
            redial.bootstrap(bootstrap, address.clone(), now);
        }
    }
    let task = Task {
        node,
        network,
        swarm,
        rule,
        outbox: Outbox::new(to_driver),
        counters: Arc::clone(&counters),
        peers: Peers::default(),
        reach: Reach::new(dial * 2),
        redial,
        waiting_streams: HashMap::new(),
        outstanding: Outstanding::new(request),
        inbox: Inbox::new(request),
        verdicts: Verdicts::new(millis(config.timeouts.verdict_ms)),
        topics: Vec::new(),
        cells: Vec::new(),
        scores: HashMap::new(),
        queries: HashMap::new(),
        observed: Observed::default(),
        listeners,
        lost_listeners: Vec::new(),
        listening: Vec::new(),
        resolving: JoinSet::new(),
        announced: Vec::new(),
        race: dial + Duration::from_secs(5),
        idle,
        crowded_in: crowded(config.limits.connections_in),
        crowded: crowded(config.limits.connections),
        review: now + REVIEW.min(idle),
        provide: None,
        provided_at: None,
    };
    let mesh = Mesh {
        node,
        commands: to_mesh,
        counters,
    };
    let handle = tokio::spawn(task.run(commands));
    Ok((mesh, events, handle))
}

/// Listens on all addresses. A machine without IPv6 is no error as long as something is listened on.
fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Address],
) -> Result<HashMap<ListenerId, Address>, StartError> {
    let mut failed = None;
    let mut listeners = HashMap::new();
    for address in addresses {
        match swarm.listen_on(address.multiaddr().clone()) {
            Ok(id) => drop(listeners.insert(id, address.clone())),
            Err(error) => {
                let error = StartError::Listen {
                    address: address.clone(),
                    reason: innermost(&error),
                };
                if !ip_of(address.multiaddr()).is_some_and(|ip| ip.is_ipv6()) {
                    return Err(error);
                }
                tracing::warn!(%error, "going on without it");
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if listeners.is_empty() => Err(error),
        Some(_) | None => Ok(listeners),
    }
}

/// The words of the system at the bottom of a chain of errors.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Three quarters of a limit: above that, connections of no use make room.
fn crowded(limit: u32) -> usize {
    usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX)
}

/// What a lookup in the hash table is for.
#[derive(Debug)]
enum Query {
    /// Nodes of a cell, found so far.
    Providers { cell: Cell, found: Vec<NodeId> },
    /// Where a node is.
    Node(NodeId),
}

/// Everything the mesh knows. Each table is bounded where it is defined.
struct Task {
    node: NodeId,
    network: Network,
    swarm: Swarm<Behaviour>,
    rule: Arc<DialRule>,
    outbox: Outbox,
    counters: Arc<Counters>,
    peers: Peers,
    reach: Reach,
    redial: Redial,
    /// Streams that wait for a connection; bounded by the openings there can be.
    waiting_streams: HashMap<NodeId, Vec<Opening>>,
    outstanding: Outstanding,
    inbox: Inbox,
    verdicts: Verdicts,
    /// At most `MAX_TOPICS`.
    topics: Vec<crate::protocol::Topic>,
    /// At most `MAX_TOPICS`.
    cells: Vec<Cell>,
    /// Scores that are not neutral; at most `MAX_SCORES`.
    scores: HashMap<NodeId, i32>,
    /// At most `MAX_QUERIES`.
    queries: HashMap<QueryId, Query>,
    observed: Observed,
    /// As configured, by the listener that serves it.
    listeners: HashMap<ListenerId, Address>,
    /// As configured, without a listener; tried again at each review.
    lost_listeners: Vec<Address>,
    listening: Vec<Multiaddr>,
    /// Names of bootstrap nodes being resolved; at most one of each node.
    resolving: JoinSet<(NodeId, Vec<Multiaddr>)>,
    announced: Vec<Address>,
    /// How long two nodes dialling each other may overlap.
    race: Duration,
    /// How long a connection may be of no use.
    idle: Duration,
    /// Connections above which room is made for others.
    crowded_in: usize,
    crowded: usize,
    review: Instant,
    /// When to tell again what this node provides.
    provide: Option<Instant>,
    provided_at: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.review_addresses();
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command, Instant::now()),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event, Instant::now()),
                Some(resolved) = self.resolving.join_next() => {
                    if let Ok((node, addresses)) = resolved {
                        self.on_resolved(node, addresses, Instant::now());
                    }
                }
                () = self.outbox.room(), if self.outbox.has_backlog() => self.outbox.flush(),
                () = sleep_until(deadline) => self.on_deadline(Instant::now()),
            }
        }
        self.farewell().await;
    }

    /// Closes all connections, so that others need not wait for silence.
    async fn farewell(mut self) {
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // An error says that it is not connected, which is the aim.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let gone = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        // Whoever is too slow finds out by silence.
        let _ = timeout(FAREWELL, gone).await;
    }

    fn next_deadline(&self) -> Instant {
        [
            self.verdicts.next_deadline(),
            self.outstanding.next_deadline(),
            self.inbox.next_deadline(),
            self.reach.next_deadline(),
            self.redial.next_deadline(self.peers.len()),
            self.provide,
        ]
        .into_iter()
        .flatten()
        .fold(self.review, Instant::min)
    }

    fn on_deadline(&mut self, now: Instant) {
        while let Some(waiting) = self.verdicts.expired(now) {
            self.counters.gossip_expired.add_one();
            self.judge(&waiting, super::Verdict::Ignore);
        }
        while let Some(id) = self.outstanding.expired(now) {
            self.respond(id, Err(RequestError::Timeout));
        }
        while self.inbox.expired(now) {
            self.counters.requests_unanswered.add_one();
        }
        for node in self.reach.expired(now) {
            self.give_up(node);
        }
        for node in self.redial.due(self.peers.len(), now) {
            self.come_back(node, now);
        }
        if self.provide.is_some_and(|at| at <= now) {
            self.provide = None;
            self.provided_at = Some(now);
            for cell in self.cells.clone() {
                self.provide(&cell);
            }
        }
        if self.review <= now {
            self.review = now + REVIEW.min(self.idle);
            self.review_observed(now);
            self.review_idle(now);
            self.listen_again();
        }
    }

    /// Gets connected with a node, unless it is or that is under way.
    fn want(&mut self, node: NodeId, now: Instant) {
        if self.swarm.is_connected(&peer_of(node)) {
            return;
        }
        let step = self.reach.want(node, now);
        if step == Step::GiveUp {
            // Too many at once. Who matters is come back to.
            self.redial.dial_failed(&node, now);
        }
        self.take_step(node, step, now);
    }

    /// Dials a node that matters; one that is known by name is looked up first.
    fn come_back(&mut self, node: NodeId, now: Instant) {
        let named: Vec<_> = self
            .redial
            .addresses(&node)
            .iter()
            .map(Address::multiaddr)
            .filter(|address| is_named(address))
            .cloned()
            .collect();
        if named.is_empty() {
            return self.want(node, now);
        }
        self.resolving.spawn(async move {
            let mut addresses = Vec::new();
            for name in named {
                addresses.append(&mut resolve(name).await);
            }
            (node, addresses)
        });
    }

    fn on_resolved(&mut self, node: NodeId, addresses: Vec<Multiaddr>, now: Instant) {
        for address in &addresses {
            self.rule.name(address);
        }
        self.dial(node, addresses, now);
    }

    /// Listens again where a listener was lost.
    fn listen_again(&mut self) {
        for address in std::mem::take(&mut self.lost_listeners) {
            match self.swarm.listen_on(address.multiaddr().clone()) {
                Ok(id) => drop(self.listeners.insert(id, address)),
                Err(error) => {
                    tracing::warn!(%address, %error, "still cannot listen");
                    self.lost_listeners.push(address);
                }
            }
        }
    }

    fn take_step(&mut self, node: NodeId, step: Step, now: Instant) {
        match step {
            Step::Dial => self.dial(node, Vec::new(), now),
            Step::Lookup => self.look_up(node, now),
            Step::GiveUp => self.give_up(node),
            Step::Wait => {}
        }
    }

    /// Dials a node at the addresses given and all that are known.
    fn dial(&mut self, node: NodeId, mut addresses: Vec<Multiaddr>, now: Instant) {
        let known = self.redial.addresses(&node).iter();
        let known = known.map(Address::multiaddr);
        addresses.extend(known.filter(|address| is_dialable(address)).cloned());
        let options = DialOpts::peer_id(peer_of(node))
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(options) {
            // Somebody else's dial is under way; its end is this one's.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                tracing::debug!(%node, %error, "cannot dial");
                self.on_dial_failed(node, now);
            }
        }
    }

    fn on_dial_failed(&mut self, node: NodeId, now: Instant) {
        self.redial.dial_failed(&node, now);
        let step = self.reach.dial_failed(&node);
        self.take_step(node, step, now);
    }

    fn look_up(&mut self, node: NodeId, now: Instant) {
        if self.queries.len() >= command::MAX_QUERIES || self.dht_nodes() == 0 {
            let step = self.reach.looked_up(&node, false);
            return self.take_step(node, step, now);
        }
        let peer = peer_of(node);
        let query = self.swarm.behaviour_mut().dht.get_closest_peers(peer);
        self.queries.insert(query, Query::Node(node));
    }

    /// Tells all who wait for a node that it cannot be reached.
    fn give_up(&mut self, node: NodeId) {
        for id in self.outstanding.unreachable(&node) {
            self.respond(id, Err(RequestError::Unreachable));
        }
        for opening in self.waiting_streams.remove(&node).unwrap_or_default() {
            opening.finish(Err(OpenError::Unreachable));
        }
    }

    /// Sends what waited for a node's connection.
    fn send_waiting(&mut self, node: NodeId) {
        let peer = peer_of(node);
        while let Some((number, request)) = self.outstanding.unsent(node) {
            let wire = self.swarm.behaviour_mut().rpc.send_request(&peer, request);
            self.outstanding.sent(number, wire);
        }
        for opening in self.waiting_streams.remove(&node).unwrap_or_default() {
            // Gives the opening back only without a connection, and there is one.
            drop(self.swarm.behaviour_mut().streams.open(peer, opening));
        }
    }

    /// The node is of use: it said something good, or answered. What it wants itself does not count:
    /// that would be free for whoever wants to keep a place.
    fn use_peer(&mut self, node: &NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.used = now;
        }
    }

    fn respond(&mut self, id: RequestId, result: Result<crate::protocol::Response, RequestError>) {
        if result.is_err() {
            self.counters.requests_failed.add_one();
        }
        self.outbox.push(Event::Response { id, result });
    }

    fn dht_nodes(&mut self) -> usize {
        self.swarm
            .behaviour_mut()
            .dht
            .kbuckets()
            .map(|bucket| bucket.num_entries())
            .sum()
    }
}
