//! Which addresses are the public Internet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// IPv4 that is not the public Internet (IANA special-purpose registry, and what carriers, clouds
/// and relays use inside).
const DENIED_V4: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),       // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),      // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),   // carrier-grade NAT
    (Ipv4Addr::new(127, 0, 0, 0), 8),     // loopback
    (Ipv4Addr::new(169, 254, 0, 0), 16),  // link-local, cloud metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12),   // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),    // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),    // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24),  // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),  // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),   // benchmarking
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),  // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),     // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),     // reserved, broadcast
];

/// The only IPv6 that is global unicast; everything outside it is denied.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is denied inside [`GLOBAL_V6`].
const DENIED_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo, ORCHID
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4, which wraps any IPv4 address
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// The well-known prefix behind which a translator reaches IPv4.
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Whether an address is one that anybody on the Internet can reach, seen through IPv4-mapped and
/// NAT64 forms.
///
/// Says nothing about whose it is: the own address and those of neighbours may be public too.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match unwrap_nat64(ip) {
            Some(v4) => is_public_v4(v4),
            None => in_v6(v6, GLOBAL_V6) && !DENIED_V6.iter().any(|&prefix| in_v6(v6, prefix)),
        },
    }
}

/// The IPv4 address that an address behind NAT64 stands for.
pub(super) fn unwrap_nat64(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V6(v6) if in_v6(v6, NAT64) => {
            let [.., a, b, c, d] = v6.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    !DENIED_V4
        .iter()
        .any(|&(network, len)| in_v4(ip, network, len))
}

fn in_v4(ip: Ipv4Addr, network: Ipv4Addr, len: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
    (ip.to_bits() ^ network.to_bits()) & mask == 0
}

fn in_v6(ip: Ipv6Addr, (network, len): (Ipv6Addr, u8)) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    (ip.to_bits() ^ network.to_bits()) & mask == 0
}

/// An address prefix, such as `10.0.0.0/8` or `fd00::/8`; an address alone is a prefix of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    network: IpAddr,
    len: u8,
}

/// Text or numbers that are not a [`Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an address prefix")]
pub struct PrefixError;

impl Prefix {
    /// The network of `len` bits that `ip` is in. An IPv4-mapped address is its IPv4 address.
    ///
    /// # Errors
    ///
    /// Returns [`PrefixError`] if an address of this family does not have `len` bits.
    pub fn new(ip: IpAddr, len: u8) -> Result<Self, PrefixError> {
        const MAPPED_BITS: u8 = 96;
        let (ip, len) = match (ip.to_canonical(), len.checked_sub(MAPPED_BITS)) {
            // What is checked is never in mapped form, so a prefix in it would match nothing.
            (v4 @ IpAddr::V4(_), Some(rest)) if ip.is_ipv6() => (v4, rest),
            _ => (ip, len),
        };
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        if len > bits {
            return Err(PrefixError);
        }
        Ok(Self { network: ip, len })
    }

    /// Whether `ip` is in it. Compares within a family only.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.network, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => in_v4(ip, network, self.len),
            (IpAddr::V6(network), IpAddr::V6(ip)) => in_v6(ip, (network, self.len)),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    pub(super) fn is_v6(&self) -> bool {
        self.network.is_ipv6()
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((ip, len)) => Self::new(
                ip.parse().map_err(|_| PrefixError)?,
                len.parse().map_err(|_| PrefixError)?,
            ),
            None => {
                let ip: IpAddr = text.parse().map_err(|_| PrefixError)?;
                Self::new(ip, if ip.is_ipv4() { 32 } else { 128 })
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = if self.network.is_ipv4() { 32 } else { 128 };
        if self.len == alone {
            self.network.fmt(f)
        } else {
            write!(f, "{}/{}", self.network, self.len)
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
