//! The behaviours of the swarm, in the order in which they see a connection.

use std::sync::Arc;

use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, identify, identity, mdns, memory_connection_limits, ping};

use bitmesh_market::envelope::Network;

use super::config::{Config, DhtMode, MdnsConfig, millis};
use super::counters::Counters;
use super::limits::Gate;
use super::{discovery, gossip, rpc, streams};
use crate::protocol::names;

/// How often a connection is tried, and how long an answer may take. Two misses in a row close it.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);

/// Nodes whose addresses are remembered beyond their connection.
const ADDRESS_BOOK: usize = 256;

/// What this node says it runs.
const AGENT: &str = concat!("bitmesh/", env!("CARGO_PKG_VERSION"));

/// All behaviours. `gate` and `memory` stand first: what they refuse, the others never hear of, so
/// none of them can keep anything for it.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) gate: Gate,
    pub(crate) memory: Toggle<memory_connection_limits::Behaviour>,
    pub(crate) streams: streams::Behaviour,
    pub(crate) rpc: rpc::Behaviour,
    pub(crate) gossip: gossip::Behaviour,
    pub(crate) dht: discovery::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    pub(crate) fn new(
        config: &Config,
        network: Network,
        key: &identity::Keypair,
        counters: &Arc<Counters>,
    ) -> Result<Self, String> {
        let local = key.public().to_peer_id();
        let protocol = |name: String| {
            StreamProtocol::try_from_owned(name).expect("protocol names start with a slash")
        };
        let memory = match config.limits.process_memory_bytes {
            0 => None,
            bytes => Some(memory_connection_limits::Behaviour::with_max_bytes(
                usize::try_from(bytes).unwrap_or(usize::MAX),
            )),
        };
        let identify = identify::Config::new(names::node(network), key.public())
            .with_agent_version(AGENT.to_owned())
            .with_hide_listen_addrs(true)
            .with_push_listen_addr_updates(true)
            .with_cache_size(ADDRESS_BOOK);
        let mut dht = discovery::behaviour(local, network);
        match config.dht {
            DhtMode::Auto => {}
            DhtMode::Server => dht.set_mode(Some(libp2p::kad::Mode::Server)),
            DhtMode::Client => dht.set_mode(Some(libp2p::kad::Mode::Client)),
        }
        let timeouts = config.timeouts;
        Ok(Self {
            gate: Gate::new(config.limits, Arc::clone(counters)),
            memory: Toggle::from(memory),
            streams: streams::Behaviour::new(
                protocol(names::session(network)),
                millis(timeouts.stream_ms),
                Arc::clone(counters),
            ),
            rpc: rpc::behaviour(protocol(names::rpc(network)), millis(timeouts.request_ms)),
            gossip: gossip::behaviour(config, network, key)?,
            dht,
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(
                ping::Config::new()
                    .with_interval(PING_INTERVAL)
                    .with_timeout(PING_INTERVAL),
            ),
            mdns: Toggle::from(mdns(config.mdns, local)),
        })
    }
}

/// Finding nodes on the local network is a comfort: a machine that does not allow it still works.
fn mdns(config: MdnsConfig, local: libp2p::PeerId) -> Option<mdns::tokio::Behaviour> {
    if !config.enabled {
        return None;
    }
    let interval = std::time::Duration::from_secs(config.query_interval_secs.into());
    let config = mdns::Config {
        // A node that is gone is forgotten after two queries it did not answer.
        ttl: interval * 3,
        query_interval: interval,
        enable_ipv6: config.ipv6,
    };
    mdns::tokio::Behaviour::new(config, local)
        .inspect_err(|error| tracing::warn!(%error, "no discovery on the local network"))
        .ok()
}
