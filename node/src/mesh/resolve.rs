//! Bootstrap addresses by name: `/dns/seed.example.org/tcp/6366/p2p/…`.
//!
//! Only the operator's own addresses are resolved. What strangers tell must be an IP address: a name
//! would let them decide later where this node knocks.

use std::net::IpAddr;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::address::is_dialable;

/// Addresses taken of one name.
const MAX_RESOLVED: usize = 8;

/// How long a resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which addresses of a name are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Both,
}

/// Whether the address is a name and then what this node could dial.
pub(crate) fn is_named(address: &Multiaddr) -> bool {
    name_of(address).is_some()
        && is_dialable(&with_ip(address, IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)))
}

/// The addresses behind a name; none if it cannot be resolved now.
pub(crate) async fn resolve(address: Multiaddr) -> Vec<Multiaddr> {
    let Some((name, family)) = name_of(&address) else {
        return Vec::new();
    };
    match timeout(PATIENCE, lookup_host((name.as_str(), 0))).await {
        Ok(Ok(found)) => found
            .map(|socket| socket.ip())
            .filter(|ip| match family {
                Family::V4 => ip.is_ipv4(),
                Family::V6 => ip.is_ipv6(),
                Family::Both => true,
            })
            .take(MAX_RESOLVED)
            .map(|ip| with_ip(&address, ip))
            .collect(),
        Ok(Err(error)) => {
            tracing::warn!(%address, %error, "cannot resolve");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(%address, "cannot resolve in time");
            Vec::new()
        }
    }
}

fn name_of(address: &Multiaddr) -> Option<(String, Family)> {
    match address.iter().next()? {
        Protocol::Dns(name) => Some((name.into_owned(), Family::Both)),
        Protocol::Dns4(name) => Some((name.into_owned(), Family::V4)),
        Protocol::Dns6(name) => Some((name.into_owned(), Family::V6)),
        _ => None,
    }
}

/// The address with its first part replaced.
fn with_ip(address: &Multiaddr, ip: IpAddr) -> Multiaddr {
    std::iter::once(Protocol::from(ip))
        .chain(address.iter().skip(1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_must_be_followed_by_what_can_be_dialled() {
        for good in [
            "/dns/seed.example.org/tcp/1",
            "/dns4/seed.example.org/udp/1/quic-v1",
            "/dns6/seed.example.org/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
        ] {
            assert!(is_named(&addr(good)), "{good}");
        }
        for bad in [
            "/ip4/192.0.2.1/tcp/1",
            "/dnsaddr/seed.example.org",
            "/dns/seed.example.org",
            "/dns/seed.example.org/udp/1",
        ] {
            assert!(!is_named(&addr(bad)), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_becomes_addresses_of_the_family_asked_for() {
        let found = resolve(addr("/dns4/localhost/udp/7/quic-v1")).await;

        assert_eq!(found, [addr("/ip4/127.0.0.1/udp/7/quic-v1")]);
        assert_eq!(resolve(addr("/ip4/127.0.0.1/tcp/7")).await, []);
    }
}
