//! What an egress may connect to.
//!
//! A name is resolved once, every address it leads to is checked, and only a [`Checked`] address
//! can be dialled. There is no second lookup, so there is nothing that DNS rebinding could change.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

mod address;
mod routes;

pub use address::{Prefix, PrefixError, is_public};

/// Ports that no preset but [`Preset::Open`] allows: mail (so that a seller's address is not used
/// for spam) and services that are meant for the local network only.
pub const DENIED_PORTS: [u16; 10] = [25, 135, 136, 137, 138, 139, 445, 465, 587, 1900];

/// How long the addresses of the own interfaces are believed. They change when a network is joined.
const INTERFACES_FRESH: Duration = Duration::from_secs(5);

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// A datagram.
    Udp,
}

/// Which ports a seller lets buyers reach. Addresses are checked alike in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// TCP 80 and 443, UDP 443. Names are resolved by the seller, so DNS itself is not needed.
    Web,
    /// All but [`DENIED_PORTS`] and 5353.
    #[default]
    Standard,
    /// All.
    Open,
}

/// An exception from all rules: one address or prefix, and one port or all (`*`).
///
/// Written `127.0.0.1:8080`, `[::1]:8080`, `10.1.0.0/16:443`, `[fd00::/8]:*`. For tests and local
/// networks: it opens the seller's own machine and neighbours to its buyers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Allow {
    prefix: Prefix,
    /// `None` is every port.
    port: Option<u16>,
}

impl Allow {
    fn covers(&self, address: SocketAddr) -> bool {
        self.prefix.contains(address.ip()) && self.port.is_none_or(|port| port == address.port())
    }
}

/// Text that is not an [`Allow`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not an address and port: {0:?} (write 127.0.0.1:8080, 10.1.0.0/16:443 or [::1]:*)")]
pub struct AllowError(String);

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || AllowError(text.to_owned());
        let (prefix, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = prefix
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        let prefix: Prefix = bracketed.unwrap_or(prefix).parse().map_err(|_| bad())?;
        if bracketed.is_some() != prefix.is_v6() {
            return Err(bad());
        }
        let port = match port {
            "*" => None,
            port => Some(
                port.parse()
                    .ok()
                    .filter(|&port| port != 0)
                    .ok_or_else(bad)?,
            ),
        };
        Ok(Self { prefix, port })
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix.is_v6() {
            write!(f, "[{}]", self.prefix)?;
        } else {
            write!(f, "{}", self.prefix)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => write!(f, ":*"),
        }
    }
}

impl Serialize for Allow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Allow {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What the operator decides; the rest of the policy is not up for decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Which ports.
    pub preset: Preset,
    /// Exceptions; empty unless a test or a local network needs them.
    pub allow: Vec<Allow>,
    /// More prefixes that are never reached, also through an exception.
    pub deny: Vec<Prefix>,
}

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// Private, local, reserved, multicast, documentation, or such an address in disguise.
    #[error("{0} is not an address of the public Internet")]
    NotPublic(IpAddr),
    /// An address of this machine.
    #[error("{0} belongs to this machine")]
    Own(IpAddr),
    /// A neighbour of this machine, even if its address is public.
    #[error("{0} is in a network of this machine")]
    OnLink(IpAddr),
    /// In the operator's deny list.
    #[error("{0} is denied by the operator")]
    Listed(IpAddr),
    /// The interfaces of this machine could never be read, so nobody knows what is near it.
    #[error("{0} may be near: the interfaces of this machine cannot be read")]
    Unknown(IpAddr),
    /// A port that the preset does not allow.
    #[error("port {0} is not allowed here")]
    Port(u16),
}

/// An address that the policy allowed at this moment; the only thing an egress dials or sends to.
///
/// Not to be kept: networks change, so it is made anew for every connection and datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked(SocketAddr);

impl Checked {
    /// The address.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

/// The egress policy of a seller.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    /// Addresses of this node as others see it, and of its control and RPC ports.
    own: Mutex<Vec<IpAddr>>,
    interfaces: Mutex<Interfaces>,
}

#[derive(Debug, Default)]
struct Interfaces {
    read_at: Option<Instant>,
    addresses: Vec<IpAddr>,
    on_link: Vec<Prefix>,
}

impl Policy {
    /// A policy with the operator's decisions. The own interfaces are read when they are needed.
    #[must_use]
    pub fn new(config: PolicyConfig) -> Self {
        Self {
            config,
            own: Mutex::default(),
            interfaces: Mutex::default(),
        }
    }

    /// Replaces the list of addresses that reach this machine or its RPC ports in ways its interfaces
    /// do not show: the public address of the router in front of it, the host of bitcoind.
    ///
    /// Buyers would otherwise reach the router's admin page, or forwarded ports, from inside.
    pub fn set_own_addresses(&self, own: Vec<IpAddr>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// One line for people: what a buyer may reach.
    #[must_use]
    pub fn preset(&self) -> Preset {
        self.config.preset
    }

    /// Checks one address. An IPv4 address wrapped into an IPv6 one is judged, and returned, as what
    /// it is; one behind NAT64 is judged as what it is and returned as given.
    ///
    /// # Errors
    ///
    /// Returns the first rule that denies it.
    pub fn check(&self, address: SocketAddr, protocol: Protocol) -> Result<Checked, Denied> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let inner = address::unwrap_nat64(address.ip());
        let faces: &[IpAddr] = match inner {
            Some(inner) => &[address.ip(), IpAddr::V4(inner)],
            None => &[address.ip()],
        };
        let listed = |ip: &&IpAddr| self.config.deny.iter().any(|prefix| prefix.contains(**ip));
        if let Some(&ip) = faces.iter().find(listed) {
            return Err(Denied::Listed(ip));
        }
        if address.port() != 0 && self.config.allow.iter().any(|allow| allow.covers(address)) {
            return Ok(Checked(address));
        }
        if !self.allows_port(address.port(), protocol) {
            return Err(Denied::Port(address.port()));
        }
        if !is_public(address.ip()) {
            return Err(Denied::NotPublic(address.ip()));
        }
        for &ip in faces {
            self.check_own(ip)?;
        }
        Ok(Checked(address))
    }

    fn allows_port(&self, port: u16, protocol: Protocol) -> bool {
        match (self.config.preset, protocol) {
            (_, _) if port == 0 => false,
            (Preset::Web, Protocol::Tcp) => matches!(port, 80 | 443),
            (Preset::Web, Protocol::Udp) => port == 443,
            (Preset::Standard, _) => !DENIED_PORTS.contains(&port) && port != 5353,
            (Preset::Open, _) => true,
        }
    }

    fn check_own(&self, ip: IpAddr) -> Result<(), Denied> {
        if self
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&ip)
        {
            return Err(Denied::Own(ip));
        }
        let mut interfaces = self
            .interfaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        interfaces.refresh(Instant::now(), if_addrs::get_if_addrs);
        interfaces.check(ip)
    }
}

impl Interfaces {
    fn refresh(
        &mut self,
        now: Instant,
        read: impl FnOnce() -> io::Result<Vec<if_addrs::Interface>>,
    ) {
        let fresh = |at: Instant| now.saturating_duration_since(at) < INTERFACES_FRESH;
        if self.read_at.is_some_and(fresh) {
            return;
        }
        match read() {
            Ok(found) => {
                self.addresses = found.iter().map(|interface| interface.ip()).collect();
                self.on_link = found.iter().filter_map(network_of).collect();
                self.on_link.extend(routes::on_link());
                self.read_at = Some(now);
            }
            // What was known stays in force; the next check tries again.
            Err(error) => tracing::warn!(%error, "cannot read the network interfaces"),
        }
    }

    fn check(&self, ip: IpAddr) -> Result<(), Denied> {
        if self.read_at.is_none() {
            return Err(Denied::Unknown(ip));
        }
        if self.addresses.contains(&ip) {
            return Err(Denied::Own(ip));
        }
        if self.on_link.iter().any(|prefix| prefix.contains(ip)) {
            return Err(Denied::OnLink(ip));
        }
        Ok(())
    }
}

/// The network that an interface is in, if it is one.
fn network_of(interface: &if_addrs::Interface) -> Option<Prefix> {
    let len = match &interface.addr {
        if_addrs::IfAddr::V4(v4) => v4.prefixlen,
        if_addrs::IfAddr::V6(v6) => v6.prefixlen,
    };
    near(interface.ip(), len)
}

/// A network next to this machine, if it is one: a prefix as short as a default route would deny the
/// whole Internet.
fn near(ip: IpAddr, len: u8) -> Option<Prefix> {
    const SHORTEST_V4: u8 = 8;
    const SHORTEST_V6: u8 = 32;
    let shortest = if ip.is_ipv4() {
        SHORTEST_V4
    } else {
        SHORTEST_V6
    };
    (len >= shortest)
        .then(|| Prefix::new(ip, len).ok())
        .flatten()
}

#[cfg(test)]
mod tests;
