//! A network namespace for each node, joined by a bridge: hosts on one local network.
//!
//! Needs root and `ip` of iproute2. Names and addresses are chance, so that two networks do not meet;
//! everything is removed when this is dropped or its process is killed.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use crate::process::{Afterwards, ProcessError};

/// Removes the bridge, the cables and the namespaces. The kernel would remove the cable of a namespace
/// too, but in its own time.
const REMOVE: &str = "ip link delete \"$1\"; shift; \
    for name; do ip link delete \"$name\"; ip netns delete \"$name\"; done";

/// The most nodes that one bridge joins: the hosts of its subnet less the bridge.
const MOST: usize = 253;

/// Namespaces that exist as long as this does.
#[derive(Debug)]
pub(crate) struct Namespaces {
    names: Vec<String>,
    subnet: [u8; 3],
    _after: Afterwards,
}

/// Namespaces could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Only root may make them, and in a container only if it was given the right to.
    #[error(
        "a namespace for each node needs root and CAP_NET_ADMIN; try again with sudo, or without --netns"
    )]
    NotPermitted,
    /// The subnet has no room.
    #[error("at most {MOST} nodes fit on one bridge")]
    TooMany,
    /// `ip` failed, or is not installed.
    #[error("{command}: {why}")]
    Ip {
        /// What was run.
        command: String,
        /// What it said.
        why: String,
    },
    /// The clean-up could not be prepared, so nothing was made.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl Namespaces {
    /// Makes `count` namespaces and the bridge.
    pub(crate) fn make(count: usize) -> Result<Self, NamespaceError> {
        if !rustix::process::geteuid().is_root() {
            return Err(NamespaceError::NotPermitted);
        }
        if count > MOST {
            return Err(NamespaceError::TooMany);
        }
        // At most 15 bytes may name an interface.
        let run = format!("bm{:06x}", rand::random_range(0..1_u32 << 24));
        let subnet = [10, rand::random_range(64..192), rand::random_range(0..=255)];
        let bridge = format!("{run}br");
        let names: Vec<_> = (0..count).map(|index| format!("{run}n{index}")).collect();

        // Before anything is made, so that nothing can be left.
        let after = Afterwards::run(REMOVE, [&bridge].into_iter().chain(&names))?;
        let made = Self {
            names,
            subnet,
            _after: after,
        };
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&[
            "address",
            "add",
            &format!("{}/24", made.bridge_address()),
            "dev",
            &bridge,
        ])?;
        ip(&["link", "set", &bridge, "up"])?;
        for (index, name) in made.names.iter().enumerate() {
            // The end of its cable at the bridge has the name of the namespace.
            let cable = name;
            let address = format!("{}/24", made.address(index));
            let gateway = made.bridge_address().to_string();
            ip(&["netns", "add", name])?;
            ip(&[
                "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name,
            ])?;
            ip(&["link", "set", cable, "master", &bridge, "up"])?;
            ip(&["-n", name, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            // Multicast needs a route as everything does.
            ip(&["-n", name, "route", "add", "default", "via", &gateway])?;
        }
        Ok(made)
    }

    /// The name of the namespace of a node.
    pub(crate) fn name(&self, index: usize) -> Option<&str> {
        self.names.get(index).map(String::as_str)
    }

    /// The address of a node.
    pub(crate) fn address(&self, index: usize) -> IpAddr {
        let [a, b, c] = self.subnet;
        let host = u8::try_from(index + 1).unwrap_or(u8::MAX);
        Ipv4Addr::new(a, b, c, host).into()
    }

    /// The address of this machine on the bridge.
    pub(crate) fn bridge_address(&self) -> IpAddr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, 254).into()
    }

    /// The addresses on the bridge, in CIDR notation.
    pub(crate) fn subnet(&self) -> String {
        let [a, b, c] = self.subnet;
        format!("{a}.{b}.{c}.0/24")
    }
}

fn ip(args: &[&str]) -> Result<(), NamespaceError> {
    let failed = |why| NamespaceError::Ip {
        command: format!("ip {}", args.join(" ")),
        why,
    };
    let output = Command::new("ip")
        .args(args)
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                failed("not installed; on Debian: apt-get install iproute2".to_owned())
            }
            _ => failed(error.to_string()),
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> bool {
        let list = |args: &[&str]| Command::new("ip").args(args).output().unwrap().stdout;
        let all = [list(&["netns", "list"]), list(&["-o", "link"])].concat();
        String::from_utf8_lossy(&all).contains(name)
    }

    #[test]
    fn namespaces_reach_each_other_and_are_gone_afterwards() {
        let made = match Namespaces::make(2) {
            Ok(made) => made,
            Err(NamespaceError::NotPermitted) => {
                return eprintln!("not permitted here: not tested");
            }
            Err(error) => panic!("{error}"),
        };
        let name = made.name(0).unwrap().to_owned();
        assert!(known(&name));
        let listener = std::net::TcpListener::bind((made.bridge_address(), 0)).unwrap();
        let route = Command::new("ip")
            .args(["-n", &name, "route", "get", &made.address(1).to_string()])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&route.stdout).contains("dev eth0"));

        drop((made, listener));
        assert!(!known(&name[..8]), "something of {name} is left");
    }
}
