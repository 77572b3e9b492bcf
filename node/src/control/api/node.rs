//! The node itself: status, identity, peers, chain, settings.

use serde::{Deserialize, Serialize};

use super::{Balance, Selling, Timestamp};

/// Why something is as it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reason {
    /// For programs: `quota_spent`, `wallet_empty`. Stable; new ones may be added.
    pub code: String,
    /// For people: what is the case, in lower case and without a full stop.
    pub message: String,
    /// What to do. Absent if nothing needs doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Asks for [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetStatus {}

/// One screen: roles, leases, money, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// `mainnet`, `signet`, `testnet4` or `regtest`.
    pub network: String,
    /// This node's peer id.
    pub node: String,
    /// Where it keeps its data.
    pub datadir: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_s: u64,
    /// Whether everything that it needs works; false exactly if `problems` is not empty.
    pub healthy: bool,
    /// What does not work, worst first.
    pub problems: Vec<Reason>,
    /// How many peers are connected.
    pub peers: u32,
    /// How many live offers of others are in the order book.
    pub offers: u32,
    /// The seller's side.
    pub selling: Selling,
    /// Open leases.
    pub leases: LeaseCounts,
    /// Address of the buyer's proxy (SOCKS5 and HTTP CONNECT). Absent while it is not listening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// What buyers have paid this node in all, on chain or not yet.
    pub earned_msat: u64,
    /// What this node has paid sellers in all.
    pub spent_msat: u64,
    /// Carried for buyers and not paid yet. Never more than one credit window per lease.
    pub outstanding_msat: u64,
    /// The wallet.
    pub wallet: Balance,
    /// The chain.
    pub chain: Chain,
}

/// How many leases are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeaseCounts {
    /// Where this node is the seller.
    pub selling: u32,
    /// Where this node is the buyer.
    pub buying: u32,
    /// Of both, how many are paused.
    pub paused: u32,
}

/// Asks for [`Identity`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetId {}

/// Who this node is and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Identity {
    /// Peer id.
    pub node: String,
    /// `mainnet`, `signet`, `testnet4` or `regtest`.
    pub network: String,
    /// Version of the daemon.
    pub version: String,
    /// Addresses that others can use as they stand: each ends with `/p2p/` and the peer id.
    pub addresses: Vec<String>,
}

/// Asks for [`Peers`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListPeers {}

/// Connected peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Peers {
    /// One entry a peer, in the order of their ids.
    pub peers: Vec<Peer>,
}

/// A connected peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Peer {
    /// Peer id.
    pub node: String,
    /// Address of the connection.
    pub address: String,
    /// Who dialled.
    pub direction: PeerDirection,
    /// Last measured round trip. Absent until there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u64>,
    /// When the connection was made.
    pub since: Timestamp,
    /// How many live offers of this peer are in the order book.
    pub offers: u32,
}

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PeerDirection {
    /// The peer dialled this node.
    Inbound,
    /// This node dialled the peer.
    Outbound,
}

/// Asks to connect to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AddPeer {
    /// Multiaddr with the peer's id at its end: `/ip4/192.0.2.7/udp/6366/quic-v1/p2p/12D3KooW…`.
    pub address: String,
}

/// The dial has begun; the peer appears in [`Peers`] once it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PeerAdded {
    /// Peer id from the address.
    pub node: String,
    /// Whether a connection to the peer exists already.
    pub connected: bool,
}

/// Asks for [`Chain`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetChain {}

/// What the chain source sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Chain {
    /// Kind and place of the source, without credentials: `bitcoind at 127.0.0.1:8332`.
    pub source: String,
    /// Whether the source answers.
    pub connected: bool,
    /// Height up to which the wallet has applied blocks.
    pub height: u32,
    /// The highest block that the source knows of; zero while it has not answered. The wallet is
    /// `height` of `source_height` blocks along.
    #[serde(default)]
    pub source_height: u32,
    /// Hash of the block at `height`, hex.
    pub tip: String,
    /// Whether the wallet has applied every block that the source knows.
    pub synced: bool,
    /// Fee for confirmation within 6 blocks. Absent while the source gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// What is wrong, if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Reason>,
}

/// Asks for settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetConfig {
    /// One setting, `sell.price`; or a section, `sell`. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Settings in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigValues {
    /// The file that [`SetConfig`] writes.
    pub file: String,
    /// One entry a setting, in the order of the keys.
    pub values: Vec<ConfigValue>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigValue {
    /// Dotted name: `sell.price`.
    pub key: String,
    /// Value in force. Secrets are shown as `"(hidden)"`.
    pub value: serde_json::Value,
    /// Where it comes from: `flag`, `env`, `file` or `default`.
    pub origin: String,
}

/// Asks to change a setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetConfig {
    /// Dotted name: `sell.price`.
    pub key: String,
    /// New value as it would stand in the file; a bare word is taken as text.
    pub value: String,
}

/// A setting was changed in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConfigChange {
    /// Dotted name.
    pub key: String,
    /// The value that the file has now.
    pub value: serde_json::Value,
    /// The file that was written.
    pub file: String,
    /// Whether the daemon must be restarted for the change to take effect.
    pub restart_needed: bool,
}

/// Asks the daemon to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Shutdown {}

/// The daemon is stopping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stopping {
    /// Process id of the daemon.
    pub pid: u32,
    /// Its data directory, whose lock is free once the daemon has ended.
    pub datadir: String,
    /// How many leases are being closed first.
    pub closing_leases: u32,
}
