//! What the operator decides: the configuration file, its defaults and its checks.
//!
//! One TOML file. Every key has a default that is safe on an unknown network, unknown keys are
//! errors, and a value that cannot work is refused here with the key's name, before anything runs.

mod chain;
mod payments;
mod text;
mod trade;

use std::path::{Path, PathBuf};

use bitmesh_market::envelope::Network;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::chain::{Bitcoind, Chain, Filters, Server, Source};
pub use self::payments::{Payments, ZeroConf};
pub use self::trade::{Buy, Sell};
use crate::mesh;
use crate::tunnel::policy::PolicyConfig;

/// Everything the operator may set. `Config::default()` is a buyer on mainnet that sells nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which bitcoin network, and so which mesh: nodes of different networks never meet.
    pub network: Network,
    /// Where blocks come from.
    pub chain: Chain,
    /// The libp2p side: listening, bootstrap, discovery, limits.
    pub mesh: mesh::Config,
    /// What this node sells, if anything.
    pub sell: Sell,
    /// How this node buys.
    pub buy: Buy,
    /// What buyers may reach through this node.
    pub egress: PolicyConfig,
    /// Limits on what may be at stake in channels.
    pub payments: Payments,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            network: Network::Mainnet,
            chain: Chain::default(),
            mesh: mesh::Config::default(),
            sell: Sell::default(),
            buy: Buy::default(),
            egress: PolicyConfig::default(),
            payments: Payments::default(),
        }
    }
}

/// Why a configuration is refused. Nothing has been started or changed.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is there but could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML, or a key is unknown or of the wrong type. The message names the line.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file the text came from.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A key has a value that cannot work.
    #[error("{key}: {reason}")]
    Value {
        /// The key, dotted.
        key: &'static str,
        /// Why the value cannot work and what would.
        reason: String,
    },
}

impl Config {
    /// Reads the file at `path`. A file that does not exist reads as the defaults.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the file and the key or line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(&text).map_err(|error| match error {
            ConfigError::Parse { reason, .. } => ConfigError::Parse {
                path: path.to_owned(),
                reason,
            },
            other => other,
        })
    }

    /// Reads TOML text and checks it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the key or line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: PathBuf::from("configuration"),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values that cannot work together.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for the first such key.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.mesh.check().map_err(|error| ConfigError::Value {
            key: "mesh",
            reason: error.to_string(),
        })?;
        self.chain.check(self.network)?;
        self.sell.check()?;
        self.buy.check()?;
        self.payments.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_and_the_default_passes_its_own_check() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let config = Config::default();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_named_in_the_error() {
        let error = Config::parse("[sell]\nprise = \"1 sat/GB\"\n").unwrap_err();
        assert!(error.to_string().contains("prise"), "{error}");
    }

    #[test]
    fn a_value_that_cannot_work_is_refused_with_its_key() {
        let error = Config::parse("[payments]\nexpiry_blocks = 10\n").unwrap_err();
        assert!(
            error.to_string().starts_with("payments.expiry_blocks"),
            "{error}"
        );
    }

    #[test]
    fn nothing_private_is_reachable_and_nothing_is_sold_by_default() {
        let config = Config::default();
        assert!(!config.sell.enabled);
        assert!(config.egress.allow.is_empty());
    }
}
