//! What may be lost: the order book and the wallet's view of the chain, kept so that a start is quick.
//!
//! Everything here can be built again from neighbours and the chain. So damage is not an error: the
//! damaged store is set aside for whoever wants to look at it, a new one is begun, and the operator
//! is told once.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::{fs, io};

use bitmesh_market::book::AskId;
use tracing::warn;

/// Memory sled may use for pages, in bytes. The default of 1 GiB is more than a Pi has.
const PAGE_CACHE: u64 = 4 * 1024 * 1024;

/// Under which the watcher's place is kept.
const WATCHER: &[u8] = b"watcher";

/// The sled database of one node.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    db: sled::Db,
    asks: sled::Tree,
}

impl Cache {
    /// Opens the cache at `path`, or begins a new one if it is damaged.
    ///
    /// # Errors
    ///
    /// Only if a new one cannot be made either: the disk is full or not ours.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match Self::try_open(path) {
            Ok(cache) => Ok(cache),
            Err(reason) => {
                let aside = path.with_extension("damaged");
                warn!(
                    reason,
                    kept_at = %aside.display(),
                    "the cache is damaged; building it again from neighbours and the chain"
                );
                if aside.exists() {
                    fs::remove_dir_all(&aside)?;
                }
                if path.exists() {
                    fs::rename(path, &aside)?;
                }
                Self::try_open(path).map_err(io::Error::other)
            }
        }
    }

    fn try_open(path: &Path) -> Result<Self, String> {
        let open = || {
            let db = sled::Config::new()
                .path(path)
                .cache_capacity(PAGE_CACHE)
                .open()?;
            let asks = db.open_tree("asks")?;
            // Reading once shows the damage that opening did not look for.
            for entry in &asks {
                entry?;
            }
            Ok::<_, sled::Error>(Self { db, asks })
        };
        // sled 0.34 panics on some damage that it could report.
        match panic::catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(cache)) => Ok(cache),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("sled could not read its own files".to_owned()),
        }
    }

    /// Remembers where the watcher stands in the chain.
    pub(crate) fn keep_watcher(&self, snapshot: &[u8]) {
        if let Err(error) = self.db.insert(WATCHER, snapshot) {
            warn!(%error, "the watcher's place could not be kept; blocks will be read again");
        }
    }

    /// Forgets where the watcher stood, for good when this returns.
    ///
    /// # Errors
    ///
    /// What sled says.
    pub(crate) fn forget_watcher(&self) -> io::Result<()> {
        self.db
            .remove(WATCHER)
            .and_then(|_| self.db.flush())
            .map(drop)
            .map_err(io::Error::other)
    }

    /// Where the watcher stood, if that was kept.
    pub(crate) fn watcher(&self) -> Option<Vec<u8>> {
        self.db
            .get(WATCHER)
            .ok()
            .flatten()
            .map(|bytes| bytes.to_vec())
    }

    /// Remembers what stands in one place of the book, as received.
    pub(crate) fn keep_ask(&self, id: AskId, signed: &[u8]) {
        if let Err(error) = self.asks.insert(id.to_bytes(), signed) {
            warn!(%error, "an offer could not be kept; it will be heard again");
        }
    }

    /// Forgets what stood in one place of the book.
    pub(crate) fn forget_ask(&self, id: AskId) {
        if let Err(error) = self.asks.remove(id.to_bytes()) {
            warn!(%error, "an offer could not be forgotten; it will expire");
        }
    }

    /// The signed offers that were kept. Whoever reads them verifies them anew.
    pub(crate) fn asks(&self) -> impl Iterator<Item = Vec<u8>> {
        self.asks
            .iter()
            .values()
            .filter_map(Result::ok)
            .map(|bytes| bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let cache = Cache::open(&path).unwrap();
        cache.keep_ask(place(), b"offer");
        drop(cache);

        let cache = Cache::open(&path).unwrap();

        assert_eq!(cache.asks().collect::<Vec<_>>(), [b"offer".to_vec()]);
    }

    #[test]
    fn a_damaged_cache_is_set_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let cache = Cache::open(&path).unwrap();
        cache.keep_ask(place(), b"offer");
        cache.db.flush().unwrap();
        drop(cache);
        fs::write(path.join("conf"), b"this is not sled's").unwrap();

        let cache = Cache::open(&path).unwrap();

        assert_eq!(cache.asks().count(), 0);
        assert!(path.with_extension("damaged").exists());
        cache.keep_ask(place(), b"offer");
        assert_eq!(cache.asks().count(), 1);
    }

    fn place() -> AskId {
        use bitmesh_market::identity::{Ed25519Signer, Signer};
        AskId::new(Ed25519Signer::from_seed([1; 32]).node_id(), 0)
    }
}
