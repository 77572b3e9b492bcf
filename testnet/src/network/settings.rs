//! The configuration of a node of a test network.
//!
//! What differs from a node's defaults is here and nowhere else: a regtest chain, addresses that a
//! node of the internet would not dial, and a web server that an egress would not reach.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use toml::{Table, Value, toml};

use crate::chain::Chain;

/// What the surroundings of a node decide about its configuration.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) chain: &'a Chain,
    /// The address that its mesh listens on.
    pub(crate) address: IpAddr,
    /// The port that its mesh listens on, for TCP and for QUIC.
    pub(crate) mesh_port: u16,
    /// The port of its proxy on its loopback address.
    pub(crate) proxy_port: u16,
    /// Nodes that it knows beforehand; with none it has to find them on the local network.
    pub(crate) bootstrap: &'a [String],
    /// What its egress may reach besides the internet.
    pub(crate) web: SocketAddr,
}

impl Surroundings<'_> {
    /// The configuration that follows, with `own` laid over it.
    pub(crate) fn settings(&self, own: &Table) -> Table {
        let mut settings = toml! {
            network = "regtest"

            [chain]
            // Blocks come when a test wants them, and the test waits.
            poll_ms = 100

            [mesh]
            allow_private_addresses = true

            [mesh.mdns]
            query_interval_secs = 2

            // All nodes share one address, or one machine behind a bridge.
            [mesh.gossip]
            nodes_per_ip = 0

            [mesh.limits]
            connections_per_ip = 1024
            pending_per_ip = 256

            // A coin of regtest costs nothing to mine, so there is nothing to wait for.
            [payments.zero_conf]
            min_age_s = 0
        };
        let (ip, port) = (self.address, self.mesh_port);
        let listen = [
            format!("/ip4/{ip}/udp/{port}/quic-v1"),
            format!("/ip4/{ip}/tcp/{port}"),
        ];
        set(
            &mut settings,
            &["chain", "bitcoind", "url"],
            self.chain.url(),
        );
        set(
            &mut settings,
            &["chain", "bitcoind", "cookie"],
            text(self.chain.cookie()),
        );
        set(&mut settings, &["mesh", "listen"], listen.to_vec());
        set(
            &mut settings,
            &["mesh", "bootstrap"],
            self.bootstrap.to_vec(),
        );
        set(
            &mut settings,
            &["mesh", "mdns", "enabled"],
            self.bootstrap.is_empty() && !ip.is_loopback(),
        );
        set(
            &mut settings,
            &["buy", "proxy"],
            format!("127.0.0.1:{}", self.proxy_port),
        );
        set(
            &mut settings,
            &["egress", "allow"],
            vec![self.web.to_string()],
        );
        lay_over(&mut settings, own);
        settings
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Sets a value by its path, making the tables on the way.
pub(crate) fn set(table: &mut Table, path: &[&str], value: impl Into<Value>) {
    let Some((last, tables)) = path.split_last() else {
        return;
    };
    let mut table = table;
    for name in tables {
        let entry = table
            .entry(*name)
            .or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else { return };
        table = inner;
    }
    table.insert((*last).to_owned(), value.into());
}

/// Lays `upper` over `lower`: tables are joined, everything else is replaced.
fn lay_over(lower: &mut Table, upper: &Table) {
    for (name, value) in upper {
        match (lower.get_mut(name), value) {
            (Some(Value::Table(lower)), Value::Table(upper)) => lay_over(lower, upper),
            _ => {
                lower.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_own_settings_win_over_those_of_the_network() {
        let chain = Chain::at(([127, 0, 0, 1], 1).into(), "/tmp/.cookie");
        let surroundings = Surroundings {
            chain: &chain,
            address: [127, 0, 0, 1].into(),
            mesh_port: 2,
            proxy_port: 3,
            bootstrap: &[],
            web: ([127, 0, 0, 1], 4).into(),
        };
        let own = toml! {
            [payments.zero_conf]
            min_age_s = 7
            [sell]
            enabled = true
        };

        let settings = surroundings.settings(&own);

        assert_eq!(
            settings["payments"]["zero_conf"]["min_age_s"].as_integer(),
            Some(7)
        );
        assert_eq!(settings["sell"]["enabled"].as_bool(), Some(true));
        assert_eq!(
            settings["mesh"]["mdns"]["query_interval_secs"].as_integer(),
            Some(2)
        );
        assert_eq!(settings["egress"]["allow"][0].as_str(), Some("127.0.0.1:4"));
        assert_eq!(
            settings["chain"]["bitcoind"]["url"].as_str(),
            Some("http://127.0.0.1:1")
        );
    }
}
