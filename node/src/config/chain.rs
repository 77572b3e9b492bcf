//! `[chain]`: where blocks come from.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use bitcoin::FeeRate;
use bitmesh_market::envelope::Network;
use bitmesh_wallet::chain::{electrum, esplora, filters};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::words;

/// Shortest time between two looks at the chain.
const MIN_POLL_MS: u64 = 10;

/// Peers whose filters may have to agree: more than that cost connections and add little.
const MOST_AGREEING: u8 = 15;

/// Where blocks come from, and how often to look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chain {
    /// Which source tells the chain. Absent: the bitcoind, where one is set below or the network is
    /// one of tests; else block filters, which need no server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Sources that must have each block as well before it counts. While they name other blocks, no
    /// credit is given for new ones.
    pub confirm: Vec<Source>,
    /// A bitcoind, which is trusted for its view of the chain. The only source that sees the whole
    /// mempool, and so the only one on which unconfirmed fundings may count.
    pub bitcoind: Bitcoind,
    /// Block filters of nodes of the network (BIP-157). Nobody has to be trusted, and nobody learns
    /// what is looked for.
    pub filters: Filters,
    /// An Esplora server, which is trusted and learns what is looked for.
    pub esplora: Server,
    /// An Electrum server, which is trusted and learns what is looked for.
    pub electrum: Server,
    /// Milliseconds between two looks at the chain and the mempool.
    pub poll_ms: u64,
}

/// A kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `chain.bitcoind`.
    Bitcoind,
    /// `chain.filters`.
    Filters,
    /// `chain.esplora`.
    Esplora,
    /// `chain.electrum`.
    Electrum,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bitcoind => "bitcoind",
            Self::Filters => "filters",
            Self::Esplora => "esplora",
            Self::Electrum => "electrum",
        })
    }
}

/// Whose block filters are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// The peers to ask and no others, as `host:port`. They have to serve filters: a bitcoind does
    /// with `blockfilterindex=1` and `peerblockfilters=1`. Empty: whoever the network's seeds name.
    pub peers: Vec<String>,
    /// Peers that must agree on the filters. With fewer connected, no block is told.
    pub agreeing: u8,
}

impl Default for Filters {
    fn default() -> Self {
        // Two: one alone could hide a payment.
        Self {
            peers: Vec::new(),
            agreeing: 2,
        }
    }
}

/// Where a server is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Its address: `https://blockstream.info/api` for Esplora, `ssl://electrum.example:50002` for
    /// Electrum; without encryption, `http://` and `tcp://`.
    pub url: String,
}

impl Default for Chain {
    fn default() -> Self {
        // Two seconds: a block comes every ten minutes, but a funding seen in the mempool lets a
        // buyer go online at once, and two seconds is what a person will wait.
        Self {
            source: None,
            confirm: Vec::new(),
            bitcoind: Bitcoind::default(),
            filters: Filters::default(),
            esplora: Server::default(),
            electrum: Server::default(),
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
    /// The source that tells the chain.
    pub fn leads(&self, network: Network) -> Source {
        match (self.source, network) {
            (Some(source), _) => source,
            (None, Network::Regtest | Network::Testnet4) => Source::Bitcoind,
            (None, Network::Mainnet | Network::Signet) if self.bitcoind.is_set() => {
                Source::Bitcoind
            }
            (None, Network::Mainnet | Network::Signet) => Source::Filters,
        }
    }

    /// Every source in use, the one that leads first.
    pub(crate) fn in_use(&self, network: Network) -> impl Iterator<Item = Source> {
        [self.leads(network)]
            .into_iter()
            .chain(self.confirm.iter().copied())
    }

    /// The hosts of the sources in use that are named by their IP address.
    pub(crate) fn hosts(&self, network: Network) -> Vec<IpAddr> {
        let hosts = self.in_use(network).flat_map(|source| match source {
            Source::Bitcoind => self.bitcoind.host(network).into_iter().collect(),
            Source::Filters => self
                .filters
                .peers
                .iter()
                .filter_map(|peer| host_of(peer))
                .collect(),
            Source::Esplora => host_of(&self.esplora.url).into_iter().collect(),
            Source::Electrum => host_of(&self.electrum.url).into_iter().collect::<Vec<_>>(),
        });
        hosts.collect()
    }

    pub(super) fn check(&self, network: Network) -> Result<(), ConfigError> {
        let refuse = |key, reason| Err(ConfigError::Value { key, reason });
        if self.poll_ms < MIN_POLL_MS {
            return refuse(
                "chain.poll_ms",
                format!("looking more often than every {MIN_POLL_MS} ms only costs power"),
            );
        }
        let sources: Vec<Source> = self.in_use(network).collect();
        for (at, source) in sources.iter().enumerate() {
            if sources.iter().take(at).any(|other| other == source) {
                return refuse(
                    "chain.confirm",
                    format!("{source} is in use already, and cannot confirm itself"),
                );
            }
            self.check_source(*source, network)?;
        }
        Ok(())
    }

    fn check_source(&self, source: Source, network: Network) -> Result<(), ConfigError> {
        let refuse = |key, reason| Err(ConfigError::Value { key, reason });
        match source {
            Source::Bitcoind => Ok(()),
            Source::Filters => {
                let Filters { peers, agreeing } = &self.filters;
                if network == Network::Regtest && peers.is_empty() {
                    return refuse(
                        "chain.filters.peers",
                        "regtest has no seeds that name peers; name one, host:port".to_owned(),
                    );
                }
                if !(1..=MOST_AGREEING).contains(agreeing) {
                    return refuse(
                        "chain.filters.agreeing",
                        format!("{agreeing} is outside 1 to {MOST_AGREEING} peers"),
                    );
                }
                let named = peers.len();
                if named > 0 && named < usize::from(*agreeing) {
                    return refuse(
                        "chain.filters.agreeing",
                        format!(
                            "{agreeing} peers are to agree, but chain.filters.peers names {named}; \
                             name more, or set this to {named}"
                        ),
                    );
                }
                let check = self.filters_config(network, None).check();
                check.or_else(|reason| refuse("chain.filters.peers", reason))
            }
            Source::Esplora => {
                let check = self.esplora_config(network, None).check();
                check.or_else(|reason| refuse("chain.esplora.url", reason))
            }
            Source::Electrum => {
                let check = self.electrum_config(network, None).check();
                check.or_else(|reason| refuse("chain.electrum.url", reason))
            }
        }
    }

    /// The filters, in the wallet's words.
    pub(crate) fn filters_config(
        &self,
        network: Network,
        fallback_feerate: Option<FeeRate>,
    ) -> filters::Config {
        filters::Config {
            network: words::bitcoin_network(network),
            peers: self.filters.peers.clone(),
            agreeing: self.filters.agreeing,
            fallback_feerate,
        }
    }

    /// The Esplora server, in the wallet's words.
    pub(crate) fn esplora_config(
        &self,
        network: Network,
        fallback_feerate: Option<FeeRate>,
    ) -> esplora::Config {
        esplora::Config {
            url: self.esplora.url.clone(),
            network: words::bitcoin_network(network),
            fallback_feerate,
        }
    }

    /// The Electrum server, in the wallet's words.
    pub(crate) fn electrum_config(
        &self,
        network: Network,
        fallback_feerate: Option<FeeRate>,
    ) -> electrum::Config {
        electrum::Config {
            url: self.electrum.url.clone(),
            network: words::bitcoin_network(network),
            fallback_feerate,
        }
    }
}

/// The host in an address with or without a scheme, if it is named by its IP address.
fn host_of(address: &str) -> Option<IpAddr> {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
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

impl Bitcoind {
    /// Whether somebody said where one is.
    fn is_set(&self) -> bool {
        *self != Self::default()
    }

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
        host_of(&self.address(network))
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

    fn refused(text: &str) -> String {
        crate::config::Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn without_a_word_filters_tell_the_chain_where_coins_are_real_and_bitcoind_where_they_are_not()
    {
        let none = Chain::default();
        assert_eq!(none.leads(Network::Mainnet), Source::Filters);
        assert_eq!(none.leads(Network::Signet), Source::Filters);
        assert_eq!(none.leads(Network::Regtest), Source::Bitcoind);
        let mut set = Chain::default();
        set.bitcoind.cookie = "/home/me/.cookie".into();
        assert_eq!(set.leads(Network::Mainnet), Source::Bitcoind);
        set.source = Some(Source::Esplora);
        assert_eq!(set.leads(Network::Mainnet), Source::Esplora);
    }

    #[test]
    fn a_source_that_cannot_work_is_refused_with_the_key_that_has_to_change() {
        for (text, key) in [
            ("[chain]\nsource = \"esplora\"", "chain.esplora.url"),
            ("[chain]\nsource = \"electrum\"", "chain.electrum.url"),
            (
                "[chain]\nsource = \"electrum\"\n[chain.electrum]\nurl = \"tcp://host\"",
                "chain.electrum.url",
            ),
            (
                "network = \"regtest\"\n[chain]\nsource = \"filters\"",
                "chain.filters.peers",
            ),
            (
                "[chain.filters]\npeers = [\"203.0.113.7:8333\"]",
                "chain.filters.agreeing",
            ),
            ("[chain.filters]\nagreeing = 0", "chain.filters.agreeing"),
            (
                "[chain.filters]\nagreeing = 1\npeers = [\"nowhere\"]",
                "chain.filters.peers",
            ),
            ("[chain]\nconfirm = [\"filters\"]", "chain.confirm"),
            ("[chain]\nconfirm = [\"esplora\"]", "chain.esplora.url"),
        ] {
            let error = refused(text);
            assert!(error.starts_with(key), "{text}: {error}");
        }
        assert!(refused("[chain]\nsource = \"oracle\"").contains("oracle"));
    }

    #[test]
    fn the_hosts_of_all_sources_in_use_are_known() {
        let chain = Chain {
            source: Some(Source::Electrum),
            confirm: vec![Source::Filters],
            electrum: Server {
                url: "tcp://192.0.2.1:50001".to_owned(),
            },
            esplora: Server {
                url: "http://192.0.2.9".to_owned(),
            },
            filters: Filters {
                peers: vec![
                    "[2001:db8::1]:8333".to_owned(),
                    "node.example:8333".to_owned(),
                ],
                agreeing: 1,
            },
            ..Chain::default()
        };
        let hosts = chain.hosts(Network::Mainnet);
        let expected = ["192.0.2.1", "2001:db8::1"];
        assert_eq!(hosts, expected.map(|host| host.parse::<IpAddr>().unwrap()));
    }

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
