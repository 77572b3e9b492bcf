//! The two ways from node to node.

use std::fmt;

use bitmesh_tests::NodeSpec;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Quic,
    Tcp,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Quic, Self::Tcp];

    /// The address of a port of loopback, as libp2p writes it. Port 0 is any.
    pub(crate) fn multiaddr(self, port: u16) -> String {
        match self {
            Self::Quic => format!("/ip4/127.0.0.1/udp/{port}/quic-v1"),
            Self::Tcp => format!("/ip4/127.0.0.1/tcp/{port}"),
        }
    }

    /// Lets a node be reached this way only.
    pub(crate) fn only(self, node: NodeSpec) -> NodeSpec {
        node.set("mesh.listen", vec![self.multiaddr(0)])
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
        })
    }
}
