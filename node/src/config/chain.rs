//! `[chain]`: where blocks come from.

use std::path::PathBuf;

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
