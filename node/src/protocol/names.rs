//! Names of protocols. Each carries the bitcoin network and its own version, so that two nodes that
//! could not understand each other have nothing to negotiate.

use bitmesh_market::envelope::Network;

/// What identify tells a neighbour first: `/bitmesh/<network>/1`.
#[must_use]
pub fn node(of: Network) -> String {
    format!("/bitmesh/{}/1", of.as_str())
}

/// Requests and responses: `/bitmesh/<network>/rpc/1`.
#[must_use]
pub fn rpc(of: Network) -> String {
    format!("/bitmesh/{}/rpc/1", of.as_str())
}

/// Control streams and lanes of sessions: `/bitmesh/<network>/session/1`.
#[must_use]
pub fn session(of: Network) -> String {
    format!("/bitmesh/{}/session/1", of.as_str())
}

/// The distributed hash table: `/bitmesh/<network>/kad/1`.
#[must_use]
pub fn kad(of: Network) -> String {
    format!("/bitmesh/{}/kad/1", of.as_str())
}

/// What stands before every gossip topic: `/bitmesh/<network>/gossip`.
#[must_use]
pub fn gossip_prefix(of: Network) -> String {
    format!("/bitmesh/{}/gossip", of.as_str())
}

/// The gossip protocol itself: `/bitmesh/<network>/meshsub/1`.
#[must_use]
pub fn meshsub(of: Network) -> String {
    format!("/bitmesh/{}/meshsub/1", of.as_str())
}

/// The key under which the providers of a cell are found: `/bitmesh/<network>/cell/<cell>`.
#[must_use]
pub fn cell_prefix(of: Network) -> String {
    format!("/bitmesh/{}/cell/", of.as_str())
}
