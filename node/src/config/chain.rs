//! `[chain]`: where blocks come from.

use std::net::IpAddr;
use std::path::PathBuf;

use bitmesh_market::envelope::Network;
use serde::{Deserialize, Serialize};

/// Where blocks come from, and how often to look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chain {
    /// The bitcoind this node trusts for its view of the chain.
    pub bitcoind: Bitcoind,
    /// Milliseconds between two looks at the chain and the mempool.
    pub poll_ms: u64,
}

impl Default for Chain {
    fn default() -> Self {
        // Two seconds: a block comes every ten minutes, but a funding seen in the mempool lets a
        // buyer go online at once, and two seconds is what a person will wait.
        Self {
            bitcoind: Bitcoind::default(),
            poll_ms: 2_000,
        }
    }
}

/// How to reach a bitcoind over its RPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bitcoind {
    /// Its address, for example `http://127.0.0.1:8332`. Empty means: the network's usual port here.
    pub url: String,
    /// The cookie file that bitcoind writes. Read anew on every connection, because a restart of
    /// bitcoind changes it. Empty means: the usual place under `~/.bitcoin`.
    pub cookie: PathBuf,
    /// User name, where no cookie is used. Its password is in `password_file`.
    pub user: Option<String>,
    /// A file that holds the password of `user`, never the password itself.
    pub password_file: Option<PathBuf>,
}

impl Chain {
    /// Where the source is, for people. Holds no secret.
    pub(crate) fn place(&self, network: Network) -> String {
        self.bitcoind
            .address(network)
            .trim_start_matches("http://")
            .to_owned()
    }
}

impl Bitcoind {
    /// The address to call, with the network's usual port where none was given.
    pub(crate) fn address(&self, network: Network) -> String {
        if !self.url.is_empty() {
            return self.url.clone();
        }
        let port = match network {
            Network::Mainnet => 8_332,
            Network::Signet => 38_332,
            Network::Testnet4 => 48_332,
            Network::Regtest => 18_443,
        };
        format!("http://127.0.0.1:{port}")
    }

    /// The host in [`address`](Self::address), if it is named by its IP address.
    pub(crate) fn host(&self, network: Network) -> Option<IpAddr> {
        let address = self.address(network);
        let authority = address
            .split_once("://")
            .map_or(&*address, |(_, rest)| rest);
        let authority = authority.split('/').next().unwrap_or_default();
        let host = match authority.rsplit_once(':') {
            // The last colon of a bare IPv6 address is not before a port.
            Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
            Some(_) | None => authority,
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        bare.unwrap_or(host).parse().ok()
    }

    /// The cookie file, in bitcoind's usual place where none was given.
    pub(crate) fn cookie_file(&self, network: Network) -> PathBuf {
        if !self.cookie.as_os_str().is_empty() {
            return self.cookie.clone();
        }
        let folder = match network {
            Network::Mainnet => "",
            Network::Signet => "signet",
            Network::Testnet4 => "testnet4",
            Network::Regtest => "regtest",
        };
        let home = std::env::var_os("HOME")
            .map(PathBuf::from)
            .unwrap_or_default();
        home.join(".bitcoin").join(folder).join(".cookie")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_bitcoind_is_read_from_its_address() {
        for (url, host) in [
            ("", Some("127.0.0.1")),
            ("http://203.0.113.7:8332", Some("203.0.113.7")),
            ("http://203.0.113.7", Some("203.0.113.7")),
            ("203.0.113.7:8332", Some("203.0.113.7")),
            ("http://[2001:db8::7]:8332/", Some("2001:db8::7")),
            ("http://[2001:db8::7]", Some("2001:db8::7")),
            ("http://bitcoind.example:8332", None),
        ] {
            let bitcoind = Bitcoind {
                url: url.to_owned(),
                ..Bitcoind::default()
            };

            let expected = host.map(|host| host.parse().unwrap());
            assert_eq!(bitcoind.host(Network::Mainnet), expected, "{url:?}");
        }
    }
}
