//! What an operator can set about the mesh, with defaults that suit a node at home.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::address::{Address, is_dialable};
use super::resolve::is_named;

/// Port of QUIC (UDP) and TCP unless the operator says otherwise. Fixed, so that a forwarded port
/// stays forwarded.
pub const DEFAULT_PORT: u16 = 6366;

/// Most addresses in each list of the configuration.
const MAX_ADDRESSES: usize = 64;

/// Settings of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses to listen on. Port 0 takes any free port. Empty: this node only dials.
    pub listen: Vec<Address>,
    /// Addresses to tell others, for a node behind a forwarded port. Public addresses of the node's
    /// own interfaces are told without being listed here.
    pub announce: Vec<Address>,
    /// Nodes to find the others through, by address or name (`/dns/seed.example.org/tcp/6366/p2p/…`).
    /// Each must end in `/p2p/…`, so that nobody can answer in its place.
    pub bootstrap: Vec<Address>,
    /// Whether addresses in private networks may be dialled and told to others. For testnets and
    /// closed networks; on the internet it lets strangers make this node knock on its neighbours'
    /// doors.
    pub allow_private_addresses: bool,
    /// Whether this node answers for the distributed hash table.
    pub dht: DhtMode,
    /// Finding nodes on the local network.
    pub mdns: MdnsConfig,
    /// Gossip of offers.
    pub gossip: GossipConfig,
    /// Bounds on what others can make this node hold.
    pub limits: LimitsConfig,
    /// How long to wait for others.
    pub timeouts: TimeoutsConfig,
}

impl Default for Config {
    fn default() -> Self {
        let listen = [
            format!("/ip4/0.0.0.0/udp/{DEFAULT_PORT}/quic-v1"),
            format!("/ip6/::/udp/{DEFAULT_PORT}/quic-v1"),
            format!("/ip4/0.0.0.0/tcp/{DEFAULT_PORT}"),
            format!("/ip6/::/tcp/{DEFAULT_PORT}"),
        ];
        Self {
            listen: listen.iter().filter_map(|text| text.parse().ok()).collect(),
            announce: Vec::new(),
            bootstrap: Vec::new(),
            allow_private_addresses: false,
            dht: DhtMode::default(),
            mdns: MdnsConfig::default(),
            gossip: GossipConfig::default(),
            limits: LimitsConfig::default(),
            timeouts: TimeoutsConfig::default(),
        }
    }
}

/// A node's part in the distributed hash table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DhtMode {
    /// Answer once an address is known under which others reach this node.
    #[default]
    Auto,
    /// Answer always.
    Server,
    /// Only ask.
    Client,
}

/// Finding nodes on the local network by multicast DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MdnsConfig {
    /// Off hides the node from its local network; public Wi-Fi is a place for that.
    pub enabled: bool,
    /// Seconds between two queries. A query costs every node on the network one answer.
    pub query_interval_secs: u32,
    /// Use IPv6 multicast in place of IPv4.
    pub ipv6: bool,
}

impl Default for MdnsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            query_interval_secs: 60,
            ipv6: false,
        }
    }
}

/// Gossip of offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GossipConfig {
    /// Milliseconds between two rounds of mesh keeping. Lower finds lost messages sooner and costs
    /// more when idle.
    pub heartbeat_ms: u32,
    /// Nodes at one IP address beyond which each counts against the others' score. High enough for
    /// the shared addresses of mobile carriers. 0 turns the penalty off, which testnets need.
    pub nodes_per_ip: u32,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 1000,
            nodes_per_ip: 32,
        }
    }
}

/// Bounds on what others can make this node hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections others opened, at once. Below `connections`, so that this node can always dial.
    pub connections_in: u32,
    /// Connections in all, at once.
    pub connections: u32,
    /// Connections with one node, at once. More than one exists while the two dial each other.
    pub connections_per_node: u32,
    /// Connections with one host (IPv4 address or IPv6 /64), at once.
    pub connections_per_ip: u32,
    /// Handshakes others have begun, at once, over QUIC and as many over TCP.
    pub pending_in: u32,
    /// Dials under way, at once.
    pub pending_out: u32,
    /// Handshakes one host has begun, at once.
    pub pending_per_ip: u32,
    /// Bytes of memory of the whole process above which no connection is accepted. 0: no limit.
    pub process_memory_bytes: u64,
    /// Bytes that may be on the way to this node on one stream of a QUIC connection: the ceiling of a
    /// lane's speed is this per round trip. Over TCP a stream starts with 256 KiB and grows as it is
    /// read.
    pub stream_window_bytes: u32,
    /// Bytes that may be on the way to this node on one QUIC connection, over all its streams. What
    /// strangers can make this node hold is this times `connections_in`; over TCP it is 256 KiB for
    /// each of 128 streams.
    pub connection_window_bytes: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_in: 192,
            connections: 256,
            connections_per_node: 4,
            connections_per_ip: 16,
            pending_in: 128,
            pending_out: 32,
            pending_per_ip: 8,
            process_memory_bytes: 512 * 1024 * 1024,
            stream_window_bytes: 4 * 1024 * 1024,
            connection_window_bytes: 8 * 1024 * 1024,
        }
    }
}

/// How long to wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// Milliseconds for a connection to be made, handshakes included.
    pub dial_ms: u32,
    /// Milliseconds for a request to be answered, the dial included.
    pub request_ms: u32,
    /// Milliseconds for a session stream to be opened and accepted.
    pub stream_ms: u32,
    /// Milliseconds for the driver to judge a gossiped message; then it is ignored.
    pub verdict_ms: u32,
    /// Seconds after which a connection that nobody uses is closed.
    pub idle_secs: u32,
    /// Milliseconds of silence after which a QUIC connection counts as dead.
    pub silence_ms: u32,
    /// Milliseconds to wait before dialling a lost bootstrap or protected node again. Doubles with
    /// each failure.
    pub redial_first_ms: u32,
    /// Milliseconds above which that wait does not grow.
    pub redial_most_ms: u32,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            dial_ms: 10_000,
            request_ms: 10_000,
            stream_ms: 10_000,
            verdict_ms: 3_000,
            idle_secs: 120,
            silence_ms: 10_000,
            redial_first_ms: 1_000,
            redial_most_ms: 120_000,
        }
    }
}

/// A configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A bootstrap address does not name the node that must answer.
    #[error("bootstrap address {0} must end in /p2p/ and the node's id")]
    BootstrapWithoutNode(Address),
    /// An address is not of a form that can be dialled.
    #[error("{list} address {address} is not an IP address or name, then TCP or QUIC")]
    NotDialable {
        /// Which list.
        list: &'static str,
        /// Which address.
        address: Address,
    },
    /// A list is longer than anyone needs.
    #[error("{list} has {length} addresses, more than {MAX_ADDRESSES}")]
    TooManyAddresses {
        /// Which list.
        list: &'static str,
        /// Its length.
        length: usize,
    },
    /// A number is outside of what works.
    #[error("{field} is {value}, it must be {least} to {most}")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// What was set.
        value: u64,
        /// The least that works.
        least: u64,
        /// The most that works.
        most: u64,
    },
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong; see [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        for (list, addresses) in [
            ("listen", &self.listen),
            ("announce", &self.announce),
            ("bootstrap", &self.bootstrap),
        ] {
            if addresses.len() > MAX_ADDRESSES {
                return Err(ConfigError::TooManyAddresses {
                    list,
                    length: addresses.len(),
                });
            }
        }
        if let Some(address) = self
            .bootstrap
            .iter()
            .find(|address| address.node().is_none())
        {
            return Err(ConfigError::BootstrapWithoutNode(address.clone()));
        }
        let is_dialable = |address: &&Address| is_dialable(address.multiaddr());
        let is_named = |address: &&Address| is_named(address.multiaddr());
        let bad_bootstrap = self
            .bootstrap
            .iter()
            .find(|address| !is_dialable(address) && !is_named(address));
        let bad_announce = self.announce.iter().find(|address| !is_dialable(address));
        for (list, bad) in [("bootstrap", bad_bootstrap), ("announce", bad_announce)] {
            if let Some(address) = bad {
                let address = address.clone();
                return Err(ConfigError::NotDialable { list, address });
            }
        }
        let LimitsConfig {
            connections_in,
            connections,
            connections_per_node,
            connections_per_ip,
            pending_in,
            pending_out,
            pending_per_ip,
            process_memory_bytes: _,
            stream_window_bytes,
            connection_window_bytes,
        } = self.limits;
        let TimeoutsConfig {
            dial_ms,
            request_ms,
            stream_ms,
            verdict_ms,
            idle_secs,
            silence_ms,
            redial_first_ms,
            redial_most_ms,
        } = self.timeouts;
        const MIB: u32 = 1024 * 1024;
        for (field, value, least, most) in [
            ("limits.connections", connections, 1, 100_000),
            ("limits.connections_in", connections_in, 0, connections),
            ("limits.connections_per_node", connections_per_node, 1, 64),
            ("limits.connections_per_ip", connections_per_ip, 1, 100_000),
            ("limits.pending_in", pending_in, 1, 10_000),
            ("limits.pending_out", pending_out, 1, 10_000),
            ("limits.pending_per_ip", pending_per_ip, 1, 10_000),
            // 256 KiB is where yamux starts and cannot go below.
            (
                "limits.stream_window_bytes",
                stream_window_bytes,
                MIB / 4,
                64 * MIB,
            ),
            (
                "limits.connection_window_bytes",
                connection_window_bytes,
                stream_window_bytes,
                256 * MIB,
            ),
            ("timeouts.dial_ms", dial_ms, 100, 120_000),
            ("timeouts.request_ms", request_ms, 100, 120_000),
            ("timeouts.stream_ms", stream_ms, 100, 120_000),
            ("timeouts.verdict_ms", verdict_ms, 50, 60_000),
            ("timeouts.idle_secs", idle_secs, 1, 86_400),
            ("timeouts.silence_ms", silence_ms, 500, 120_000),
            (
                "timeouts.redial_first_ms",
                redial_first_ms,
                10,
                redial_most_ms,
            ),
            ("timeouts.redial_most_ms", redial_most_ms, 10, 3_600_000),
            (
                "mdns.query_interval_secs",
                self.mdns.query_interval_secs,
                1,
                3600,
            ),
            ("gossip.heartbeat_ms", self.gossip.heartbeat_ms, 100, 60_000),
        ] {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::OutOfRange {
                    field,
                    value: value.into(),
                    least: least.into(),
                    most: most.into(),
                });
            }
        }
        Ok(())
    }
}

/// A configured number of milliseconds.
pub(crate) fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_usable_and_survive_toml() {
        let config = Config::default();

        let text = toml::to_string(&config).unwrap();

        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.listen.len(), 4);
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), config);
    }

    #[test]
    fn a_field_nobody_knows_is_an_error() {
        assert!(toml::from_str::<Config>("listne = []").is_err());
        assert!(toml::from_str::<Config>("[limits]\nconnection = 5").is_err());
    }

    #[test]
    fn a_bootstrap_address_must_name_its_node() {
        let mut config = Config {
            bootstrap: vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()],
            ..Config::default()
        };
        assert!(matches!(
            config.check(),
            Err(ConfigError::BootstrapWithoutNode(_))
        ));

        let node = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        config.bootstrap = vec![format!("/ip4/192.0.2.1/tcp/1/p2p/{node}").parse().unwrap()];
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn addresses_nobody_could_dial_are_refused_by_list() {
        let node = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        let mut config = Config {
            bootstrap: vec![
                format!("/dns/seed.example.org/tcp/1/p2p/{node}")
                    .parse()
                    .unwrap(),
            ],
            ..Config::default()
        };
        assert_eq!(config.check(), Ok(()));

        config.announce = vec!["/dns/me.example.org/tcp/1".parse().unwrap()];
        assert!(matches!(
            config.check(),
            Err(ConfigError::NotDialable {
                list: "announce",
                ..
            })
        ));
    }

    #[test]
    fn numbers_that_cannot_work_are_refused_by_name() {
        let mut config = Config::default();
        config.limits.connections_in = config.limits.connections + 1;

        assert!(matches!(
            config.check(),
            Err(ConfigError::OutOfRange {
                field: "limits.connections_in",
                ..
            })
        ));
    }
}
