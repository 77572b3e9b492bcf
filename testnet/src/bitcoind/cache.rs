//! The cache: one folder per version, complete or absent.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
};

use super::{Bitcoind, Fetcher, Way, numbers};

/// Folders of the cache are named by this and the version.
const PREFIX: &str = "bitcoind-";

/// Half-filled folders are named by this. Whoever holds the lock may delete them.
const STAGE_PREFIX: &str = ".bitcoind-stage-";

/// `$XDG_CACHE_HOME/bitmesh`, or `~/.cache/bitmesh`.
pub(super) fn root() -> Option<PathBuf> {
    // The XDG rules say that a relative path is to be ignored.
    let given = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = given.or_else(|| env::home_dir().map(|home| home.join(".cache")))?;
    Some(base.join("bitmesh"))
}

/// The newest bitcoind of the cache that still runs.
pub(super) fn newest(root: &Path) -> Option<Bitcoind> {
    let mut versions: Vec<(Vec<u64>, PathBuf)> = fs::read_dir(root)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(PREFIX)?;
            Some((numbers(version), entry.path()))
        })
        .collect();
    versions.sort();
    let mut newest_first = versions.into_iter().rev();
    newest_first.find_map(|(_, folder)| Bitcoind::probe(&folder.join("bitcoind"), Way::Cached).ok())
}

/// Keeps every other process from filling the cache until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Waits until no other process fills the cache.
pub(super) fn lock(root: &Path, progress: &mut dyn FnMut(&str)) -> Result<Lock, String> {
    let path = root.join("bitcoind.lock");
    let told = |error: std::io::Error| format!("cannot lock {}: {error}", path.display());
    fs::create_dir_all(root).map_err(told)?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(told)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            progress("another process is getting bitcoind; waiting for it");
            file.lock().map_err(told)?;
        }
        Err(fs::TryLockError::Error(error)) => return Err(told(error)),
    }
    Ok(Lock { _file: file })
}

/// Fills a new folder by `fetcher`, tries what it holds, and only then gives the folder its name.
///
/// The caller holds the [`Lock`]. On failure the cache is as it was.
pub(super) fn fill(
    root: &Path,
    way: Way,
    fetcher: Fetcher,
    progress: &mut dyn FnMut(&str),
) -> Result<Bitcoind, String> {
    let told = |error: std::io::Error| format!("cannot write to {}: {error}", root.display());
    remove_leftovers(root);
    let stage = tempfile::Builder::new()
        .prefix(STAGE_PREFIX)
        .tempdir_in(root)
        .map_err(told)?;
    let content = stage.path().join("content");
    fs::create_dir(&content).map_err(told)?;
    fetcher(&content, progress)?;

    let staged = Bitcoind::probe(&content.join("bitcoind"), way)?;
    let home = root.join(format!("{PREFIX}{}", staged.version()));
    if home.exists() {
        // It was there and did not run, or `newest` had found it.
        fs::remove_dir_all(&home).map_err(told)?;
    }
    fs::rename(&content, &home).map_err(told)?;
    let found = Bitcoind::probe(&home.join("bitcoind"), way)?;
    progress(&format!("{found} is in the cache"));
    Ok(found)
}

/// Deletes what processes left that were killed while they filled the cache.
fn remove_leftovers(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(STAGE_PREFIX)
        {
            // What cannot be deleted takes room and does no harm.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
