//! Where a flow wants to go: the one address form that SOCKS5, HTTP CONNECT and the frames share.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// Longest host name in text form, RFC 1035.
pub const MAX_NAME: usize = 253;

/// Longest encoding of a [`Destination`]: type, length, name, port.
pub(super) const MAX_ENCODED: usize = 1 + 1 + MAX_NAME + 2;

const TYPE_V4: u8 = 1;
const TYPE_NAME: u8 = 3;
const TYPE_V6: u8 = 4;

/// A host name that is safe to print and to resolve: ASCII letters, digits, `-`, `_` and `.`, no
/// empty label, at most [`MAX_NAME`] bytes, not an IP address.
///
/// It says nothing about where the name leads; only the egress resolves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(Box<str>);

impl HostName {
    /// The name as text, without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host as a peer or an application names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address. Nothing is resolved, but the egress policy still applies.
    Ip(IpAddr),
    /// A name, resolved at the egress only.
    Name(HostName),
}

/// A host and a port that is not zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port, never zero.
    pub port: u16,
}

/// Why bytes or text are not a [`Destination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DestinationError {
    /// The address type is none of IPv4, name and IPv6.
    #[error("unknown address type {0}")]
    UnknownType(u8),
    /// The name has a character, a length or a label that no host name has.
    #[error("not a host name")]
    BadName,
    /// Port zero, or no port.
    #[error("no port")]
    NoPort,
}

impl Destination {
    /// A destination from a host in text form, which may be an address.
    ///
    /// # Errors
    ///
    /// Returns [`DestinationError`] if the host is neither an address nor a host name, or the port
    /// is zero.
    pub fn new(host: &str, port: u16) -> Result<Self, DestinationError> {
        if port == 0 {
            return Err(DestinationError::NoPort);
        }
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name(host_name(host.as_bytes())?),
        };
        Ok(Self { host, port })
    }

    /// Parses `host:port` or `[v6]:port`, the target of an HTTP CONNECT.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_authority(text: &str) -> Result<Self, DestinationError> {
        let (host, port) = text.rsplit_once(':').ok_or(DestinationError::NoPort)?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(DestinationError::NoPort);
        }
        let port = port.parse().map_err(|_| DestinationError::NoPort)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(DestinationError::BadName)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| DestinationError::BadName)?;
            return Self::from((IpAddr::V6(ip), port)).with_port();
        }
        Self::new(host, port)
    }

    fn with_port(self) -> Result<Self, DestinationError> {
        if self.port == 0 {
            Err(DestinationError::NoPort)
        } else {
            Ok(self)
        }
    }

    /// Reads a destination from the front of `bytes`: the layout of SOCKS5 (type, address, port).
    ///
    /// Returns the destination and its length, or `None` if more bytes are needed. Never looks at
    /// more than 258 bytes.
    ///
    /// # Errors
    ///
    /// Returns [`DestinationError`] as soon as no continuation could be valid.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, DestinationError> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let (skip, len) = match kind {
            TYPE_V4 => (0, 4),
            TYPE_V6 => (0, 16),
            TYPE_NAME => match rest.first() {
                None => return Ok(None),
                Some(0) => return Err(DestinationError::BadName),
                Some(&len) => (1, usize::from(len)),
            },
            other => return Err(DestinationError::UnknownType(other)),
        };
        let Some(address) = rest.get(skip..skip + len) else {
            return Ok(None);
        };
        let Some(port) = rest.get(skip + len..skip + len + 2) else {
            return Ok(None);
        };
        let port = u16::from_be_bytes([port[0], port[1]]);
        let host = match kind {
            TYPE_V4 => {
                let octets: [u8; 4] = address.try_into().expect("four bytes were cut");
                Host::Ip(Ipv4Addr::from(octets).into())
            }
            TYPE_V6 => {
                let octets: [u8; 16] = address.try_into().expect("sixteen bytes were cut");
                Host::Ip(Ipv6Addr::from(octets).into())
            }
            _ => host(address)?,
        };
        let destination = Self { host, port }.with_port()?;
        Ok(Some((destination, 1 + skip + len + 2)))
    }

    /// Length of what [`encode`](Self::encode) appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let host = match &self.host {
            Host::Ip(IpAddr::V4(_)) => 4,
            Host::Ip(IpAddr::V6(_)) => 16,
            Host::Name(name) => 1 + name.0.len(),
        };
        1 + host + 2
    }

    /// Appends the layout that [`decode`](Self::decode) reads.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.host {
            Host::Ip(IpAddr::V4(ip)) => {
                out.push(TYPE_V4);
                out.extend_from_slice(&ip.octets());
            }
            Host::Ip(IpAddr::V6(ip)) => {
                out.push(TYPE_V6);
                out.extend_from_slice(&ip.octets());
            }
            Host::Name(name) => {
                out.push(TYPE_NAME);
                out.push(u8::try_from(name.0.len()).expect("a name has at most 253 bytes"));
                out.extend_from_slice(name.0.as_bytes());
            }
        }
        out.extend_from_slice(&self.port.to_be_bytes());
    }
}

impl From<(IpAddr, u16)> for Destination {
    fn from((ip, port): (IpAddr, u16)) -> Self {
        Self {
            host: Host::Ip(ip),
            port,
        }
    }
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self::from((address.ip(), address.port()))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{}:{}", name.as_str(), self.port),
        }
    }
}

/// A host from the name field of SOCKS5, into which many clients put addresses too.
fn host(bytes: &[u8]) -> Result<Host, DestinationError> {
    let address = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok());
    match address {
        Some(ip) => Ok(Host::Ip(ip)),
        None => Ok(Host::Name(host_name(bytes)?)),
    }
}

fn host_name(bytes: &[u8]) -> Result<HostName, DestinationError> {
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    let well_formed = bytes.len() <= MAX_NAME
        && bytes.split(|&b| b == b'.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    let text = std::str::from_utf8(bytes).ok().filter(|_| well_formed);
    text.map(|text| HostName(text.to_ascii_lowercase().into()))
        .ok_or(DestinationError::BadName)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_destination() -> impl Strategy<Value = Destination> {
        let host = prop_oneof![
            any::<[u8; 4]>().prop_map(|ip| Host::Ip(Ipv4Addr::from(ip).into())),
            any::<[u8; 16]>().prop_map(|ip| Host::Ip(Ipv6Addr::from(ip).into())),
            "[a-z][a-z0-9_-]{0,40}(\\.[a-z][a-z0-9-]{0,20}){0,4}"
                .prop_map(|name| Host::Name(host_name(name.as_bytes()).unwrap())),
        ];
        (host, 1..=u16::MAX).prop_map(|(host, port)| Destination { host, port })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_every_prefix_asks_for_more(
            destination in any_destination(), tail in any::<[u8; 3]>(),
        ) {
            let mut bytes = Vec::new();
            destination.encode(&mut bytes);
            prop_assert!(bytes.len() <= MAX_ENCODED);
            prop_assert_eq!(bytes.len(), destination.encoded_len());

            for cut in 0..bytes.len() {
                prop_assert_eq!(Destination::decode(&bytes[..cut]), Ok(None));
            }

            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(Destination::decode(&bytes), Ok(Some((destination, len))));
        }

        #[test]
        fn any_bytes_decode_to_something_that_encodes_or_to_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            if let Ok(Some((destination, len))) = Destination::decode(&bytes) {
                prop_assert!(len <= bytes.len());
                let mut again = Vec::new();
                destination.encode(&mut again);
                let decoded = Destination::decode(&again);
                prop_assert_eq!(decoded, Ok(Some((destination, again.len()))));
            }
        }

        #[test]
        fn display_of_a_destination_is_an_authority(destination in any_destination()) {
            let text = destination.to_string();
            prop_assert_eq!(Destination::from_authority(&text), Ok(destination));
        }
    }

    #[test]
    fn names_that_no_resolver_should_see_are_rejected() {
        for name in [
            "",
            ".",
            "a..b",
            "a b",
            "caf\u{e9}.example",
            "a/b",
            "x\0y",
            "[::1]",
            "1:2",
        ] {
            assert_eq!(
                Destination::new(name, 80),
                Err(DestinationError::BadName),
                "{name:?}"
            );
        }
        assert!(Destination::new(&"a.".repeat(126), 80).is_ok());
        assert!(Destination::new(&"a.".repeat(128), 80).is_err());
        assert!(Destination::new(&"a".repeat(64), 80).is_err());
    }

    #[test]
    fn an_address_in_the_name_field_is_an_address() {
        let mut bytes = vec![TYPE_NAME, 9];
        bytes.extend_from_slice(b"127.0.0.1");
        bytes.extend_from_slice(&80u16.to_be_bytes());

        let (destination, _) = Destination::decode(&bytes).unwrap().unwrap();

        assert_eq!(destination.host, Host::Ip(Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn port_zero_is_no_port() {
        assert_eq!(
            Destination::new("a.example", 0),
            Err(DestinationError::NoPort)
        );
        assert_eq!(
            Destination::from_authority("a.example:0"),
            Err(DestinationError::NoPort)
        );
        assert_eq!(
            Destination::from_authority("[::1]:0"),
            Err(DestinationError::NoPort)
        );
        assert_eq!(
            Destination::from_authority("a.example:+1"),
            Err(DestinationError::NoPort)
        );
        assert_eq!(
            Destination::from_authority("a.example"),
            Err(DestinationError::NoPort)
        );
        assert_eq!(
            Destination::decode(&[TYPE_V4, 1, 2, 3, 4, 0, 0]),
            Err(DestinationError::NoPort)
        );
    }
}
