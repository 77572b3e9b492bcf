//! Addresses of nodes, and which of them may be dialled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use bitmesh_market::identity::NodeId;

/// Where a node listens, as a multiaddr: `/ip4/192.0.2.1/udp/6366/quic-v1/p2p/12D3KooW…`.
///
/// Parsing checks the form only. Whether this node would dial it is decided when it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Multiaddr);

/// A text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not an address ({reason}); they look like /ip4/192.0.2.1/udp/6366/quic-v1")]
pub struct AddressError {
    /// What was read.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Address {
    pub(crate) const fn new(address: Multiaddr) -> Self {
        Self(address)
    }

    pub(crate) const fn multiaddr(&self) -> &Multiaddr {
        &self.0
    }

    /// The node that must answer at this address, if the address ends in `/p2p/…`.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        node_of_address(&self.0)
    }

    /// Reads the binary form of a multiaddr, as it stands in an offer.
    ///
    /// # Errors
    ///
    /// Returns [`AddressError`] if the bytes are no multiaddr.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AddressError> {
        Multiaddr::try_from(bytes.to_vec())
            .map(Self)
            .map_err(|error| AddressError {
                text: format!("{} bytes", bytes.len()),
                reason: error.to_string(),
            })
    }

    /// The binary form of the multiaddr.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// The same address with `/p2p/…` of `node` at its end; `None` if another node's is there.
    #[must_use]
    pub fn with_node(&self, node: NodeId) -> Option<Self> {
        self.0.clone().with_p2p(peer_of(node)).ok().map(Self)
    }

    /// The IP address and port, if it has both.
    #[must_use]
    pub fn socket(&self) -> Option<std::net::SocketAddr> {
        let ip = ip_of(&self.0)?;
        let port = self.0.iter().find_map(|part| match part {
            Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
            _ => None,
        })?;
        Some((ip, port).into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        text.parse().map(Self).map_err(|error| AddressError {
            text: text.to_owned(),
            reason: format!("{error}"),
        })
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The libp2p name of a node. The two are the same key in two wrappings.
pub(crate) fn peer_of(node: NodeId) -> PeerId {
    let mut bytes = [0; 38];
    bytes[..6].copy_from_slice(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20]);
    bytes[6..].copy_from_slice(node.as_bytes());
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// The node behind a libp2p name; `None` if its key is not a usable ed25519 key.
pub(crate) fn node_of(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
    NodeId::from_bytes(key.try_into().ok()?).ok()
}

pub(crate) fn node_of_address(address: &Multiaddr) -> Option<NodeId> {
    match address.iter().last()? {
        Protocol::P2p(peer) => node_of(&peer),
        _ => None,
    }
}

/// Whether the address goes through a relay instead of to the node itself.
pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|part| matches!(part, Protocol::P2pCircuit))
}

/// The IP address an address starts with. Names are not resolved.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

/// Whether an address is one on the public internet, in a form this node can dial directly.
///
/// What strangers tell must pass this before it is dialled or passed on: an address in a private
/// network would make nodes knock on their own neighbours' doors.
pub(crate) fn is_public(address: &Multiaddr) -> bool {
    is_dialable(address) && ip_of(address).is_some_and(is_public_ip)
}

/// Whether the form is one this node can dial directly: an IP address, then TCP or QUIC, then at most
/// the node's id.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    let parts: Vec<_> = address.iter().take(5).collect();
    let plain = match parts.as_slice() {
        [plain @ .., Protocol::P2p(_)] => plain,
        plain => plain,
    };
    matches!(
        plain,
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(1..)]
            | [
                Protocol::Ip4(_) | Protocol::Ip6(_),
                Protocol::Udp(1..),
                Protocol::QuicV1
            ]
    )
}

/// Whether an IP address is one of the public internet (IANA special-purpose registries).
pub(crate) fn is_public_ip(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    // Only global unicast, without Teredo, documentation and 6to4, which wrap other addresses.
    (0x2000..=0x3fff).contains(&a)
        && !(a == 0x2001 && b == 0)
        && !(a == 0x2001 && b == 0x0db8)
        && a != 0x2002
        && a != 0x3fff
}

/// What a limit per IP address counts as one: an IPv4 address, or an IPv6 /64, which one host has
/// whole.
pub(crate) fn host_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => IpAddr::V4(ip),
            None => {
                let [a, b, c, d, ..] = ip.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};

    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_node_and_its_libp2p_name_are_the_same_key() {
        let node = Ed25519Signer::from_seed([5; 32]).node_id();
        let key = libp2p::identity::Keypair::ed25519_from_bytes([5; 32]).unwrap();

        assert_eq!(peer_of(node), key.public().to_peer_id());
        assert_eq!(node_of(&peer_of(node)), Some(node));
        assert_eq!(peer_of(node).to_string(), node.to_string());
    }

    #[test]
    fn a_libp2p_name_of_another_kind_of_key_is_no_node() {
        // A SHA-256 multihash, as longer keys have.
        let peer: PeerId = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
            .parse()
            .unwrap();

        assert_eq!(node_of(&peer), None);
    }

    #[test]
    fn only_plain_tcp_and_quic_addresses_can_be_dialled() {
        let node = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        for good in [
            "/ip4/8.8.8.8/tcp/1".to_owned(),
            "/ip4/8.8.8.8/udp/1/quic-v1".to_owned(),
            format!("/ip6/2606:4700::1111/tcp/1/p2p/{node}"),
            format!("/ip4/8.8.8.8/udp/1/quic-v1/p2p/{node}"),
        ] {
            assert!(is_dialable(&addr(&good)), "{good}");
        }
        for bad in [
            "/ip4/8.8.8.8".to_owned(),
            "/ip4/8.8.8.8/tcp/0".to_owned(),
            "/ip4/8.8.8.8/udp/1".to_owned(),
            "/dns4/example.org/tcp/1".to_owned(),
            "/ip4/8.8.8.8/tcp/1/ws".to_owned(),
            format!("/ip4/8.8.8.8/tcp/1/p2p/{node}/p2p-circuit"),
            "/memory/5".to_owned(),
        ] {
            assert!(!is_dialable(&addr(&bad)), "{bad}");
        }
    }

    #[test]
    fn private_reserved_and_wrapped_addresses_are_not_public() {
        for public in [
            "8.8.8.8",
            "1.1.1.1",
            "100.63.0.1",
            "172.32.0.1",
            "2606:4700::1",
        ] {
            assert!(is_public_ip(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "fe80::1",
            "fd00::1",
            "ff02::fb",
            "2001::1",
            "2001:db8::1",
            "2002:808:808::1",
        ] {
            assert!(!is_public_ip(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn one_host_is_an_ipv4_address_or_an_ipv6_64() {
        let host = |text: &str| host_of(text.parse().unwrap());

        assert_eq!(host("2606:4700::1"), host("2606:4700::ffff:1"));
        assert_ne!(host("2606:4700::1"), host("2606:4700:0:1::1"));
        assert_eq!(host("::ffff:8.8.8.8"), host("8.8.8.8"));
        assert_ne!(host("8.8.8.8"), host("8.8.8.9"));
    }
}
