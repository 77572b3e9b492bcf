//! Where a node keeps its things, and the lock that keeps a second daemon away from them.
//!
//! User mode follows the XDG base directories. With `--datadir` everything, configuration and
//! socket included, is in that one folder, so that a testnet or a backup is one folder too.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bitmesh_market::envelope::Network;
use thiserror::Error;

/// Longest path that the kernel takes for a Unix socket, its final zero included (`sun_path`).
pub const SOCKET_PATH_MAX: usize = 108;

/// Name of the lock file in a data directory.
const LOCK_FILE: &str = "lock";

/// The variables that decide where things are, read once at the border so that the rest is a
/// function of its arguments.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
}

impl Environment {
    /// Reads the variables of this process.
    pub fn of_process() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Reads the variables through `lookup`. The XDG specification says that a path which is not
    /// absolute is to be ignored, and so it is.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let absolute = |name| {
            lookup(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            home: absolute("HOME"),
            config_home: absolute("XDG_CONFIG_HOME"),
            data_home: absolute("XDG_DATA_HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            runtime_dir: absolute("XDG_RUNTIME_DIR"),
        }
    }
}

/// Neither `--datadir` nor a home directory says where to put things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no home directory is set and no data directory was given")]
pub struct NoHomeError;

/// Where one node keeps its things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Configuration, TOML.
    pub config: PathBuf,
    /// Everything that belongs to this identity on this network.
    pub datadir: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Log of a daemon that was started in the background.
    pub log: PathBuf,
}

impl Paths {
    /// Returns the paths of a node on `network`.
    ///
    /// Without `datadir`: `~/.config/bitmesh/config.toml`, `~/.local/share/bitmesh/<network>/`,
    /// `~/.local/state/bitmesh/<network>.log` and `$XDG_RUNTIME_DIR/bitmesh/bitmesh.sock`
    /// (`bitmesh-<network>.sock` off mainnet), each moved by its XDG variable. With it, all four
    /// are inside.
    ///
    /// # Errors
    ///
    /// Returns [`NoHomeError`] if the home directory is needed and not known.
    pub fn new(
        network: Network,
        datadir: Option<&Path>,
        environment: &Environment,
    ) -> Result<Self, NoHomeError> {
        if let Some(datadir) = datadir {
            return Ok(Self {
                config: datadir.join("config.toml"),
                datadir: datadir.to_owned(),
                socket: datadir.join("bitmesh.sock"),
                log: datadir.join("bitmesh.log"),
            });
        }
        let under_home = |set: &Option<PathBuf>, otherwise: &str| match (set, &environment.home) {
            (Some(path), _) => Ok(path.join("bitmesh")),
            (None, Some(home)) => Ok(home.join(otherwise).join("bitmesh")),
            (None, None) => Err(NoHomeError),
        };
        let state = under_home(&environment.state_home, ".local/state")?;
        let runtime = match &environment.runtime_dir {
            Some(path) => path.join("bitmesh"),
            None => state.join("run"),
        };
        let socket = match network {
            Network::Mainnet => "bitmesh.sock".to_owned(),
            other => format!("bitmesh-{other}.sock"),
        };
        Ok(Self {
            config: under_home(&environment.config_home, ".config")?.join("config.toml"),
            datadir: under_home(&environment.data_home, ".local/share")?.join(network.to_string()),
            socket: runtime.join(socket),
            log: state.join(format!("{network}.log")),
        })
    }

    /// Returns where the configuration is looked for, which does not depend on the network: the
    /// configuration may be what names it.
    ///
    /// # Errors
    ///
    /// Returns [`NoHomeError`] if the home directory is needed and not known.
    pub fn config_file(
        datadir: Option<&Path>,
        environment: &Environment,
    ) -> Result<PathBuf, NoHomeError> {
        Self::new(Network::Mainnet, datadir, environment).map(|paths| paths.config)
    }

    /// The twelve words, mode 0400. The node's identity and coins follow from them.
    pub fn words(&self) -> PathBuf {
        self.datadir.join("words.txt")
    }

    /// The journal: money, leases and receipts.
    pub fn journal(&self) -> PathBuf {
        self.datadir.join("journal")
    }

    /// The wallet's view of the chain; built again from the words and the chain.
    pub fn wallet(&self) -> PathBuf {
        self.datadir.join("wallet")
    }

    /// The order book's cache; may be deleted at any time while the daemon is down.
    pub fn book(&self) -> PathBuf {
        self.datadir.join("book")
    }

    /// The lock file; holds the process id of the daemon that has it.
    pub fn lock(&self) -> PathBuf {
        self.datadir.join(LOCK_FILE)
    }
}

/// Makes `path` and its parents, each new one for its owner only (0700).
///
/// # Errors
///
/// Returns what the file system says. Folders that exist keep their mode.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Why a data directory could not be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// A daemon is running on it. Two daemons with one identity and one wallet would sign against
    /// each other.
    #[error("another daemon{} is using {}", holder(*.pid), .datadir.display())]
    Held {
        /// The data directory.
        datadir: PathBuf,
        /// Its process id, if it could be read.
        pid: Option<u32>,
    },
    /// The lock file could not be opened.
    #[error("cannot lock {}: {source}", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

/// Proof that this process alone uses a data directory.
///
/// The kernel releases the lock when the process ends, however it ends, so there is no stale lock
/// to clean up. The file stays: removing it would let two processes lock two different files.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Returns whether a process has the lock of `datadir`. It may have changed when this returns.
    pub fn is_held(datadir: &Path) -> bool {
        let Ok(file) = File::open(datadir.join(LOCK_FILE)) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Takes the lock of the data directory, which must exist.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if another process, or this one, has it already.
    pub fn acquire(paths: &Paths) -> Result<Self, LockError> {
        let path = paths.lock();
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = match file.take(20).read_to_string(&mut text) {
                    Ok(_) => text.trim().parse().ok(),
                    Err(_) => None,
                };
                return Err(LockError::Held {
                    datadir: paths.datadir.clone(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::from_lookup(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn without_a_datadir_things_lie_where_xdg_says() {
        let home = environment(&[("HOME", "/home/ann"), ("XDG_RUNTIME_DIR", "/run/user/1000")]);
        let paths = Paths::new(Network::Mainnet, None, &home).unwrap();
        assert_eq!(
            paths.config,
            Path::new("/home/ann/.config/bitmesh/config.toml")
        );
        assert_eq!(
            paths.datadir,
            Path::new("/home/ann/.local/share/bitmesh/mainnet")
        );
        assert_eq!(
            paths.socket,
            Path::new("/run/user/1000/bitmesh/bitmesh.sock")
        );
        assert_eq!(
            paths.log,
            Path::new("/home/ann/.local/state/bitmesh/mainnet.log")
        );
    }

    #[test]
    fn two_networks_share_neither_data_nor_socket() {
        let home = environment(&[("HOME", "/home/ann")]);
        let main = Paths::new(Network::Mainnet, None, &home).unwrap();
        let test = Paths::new(Network::Regtest, None, &home).unwrap();
        assert_eq!(
            test.socket,
            Path::new("/home/ann/.local/state/bitmesh/run/bitmesh-regtest.sock")
        );
        assert_ne!(main.datadir, test.datadir);
        assert_ne!(main.socket, test.socket);
        assert_ne!(main.log, test.log);
    }

    #[test]
    fn each_xdg_variable_moves_its_own_part_and_a_relative_one_none() {
        let set = environment(&[
            ("HOME", "/home/ann"),
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_STATE_HOME", "relative"),
        ]);
        let paths = Paths::new(Network::Signet, None, &set).unwrap();
        assert_eq!(paths.config, Path::new("/c/bitmesh/config.toml"));
        assert_eq!(paths.datadir, Path::new("/d/bitmesh/signet"));
        assert_eq!(
            paths.log,
            Path::new("/home/ann/.local/state/bitmesh/signet.log")
        );
    }

    #[test]
    fn a_datadir_holds_everything_and_needs_no_home() {
        let paths = Paths::new(
            Network::Regtest,
            Some(Path::new("/t/ann")),
            &environment(&[]),
        )
        .unwrap();
        for path in [
            &paths.config,
            &paths.socket,
            &paths.log,
            &paths.words(),
            &paths.lock(),
        ] {
            assert!(path.starts_with("/t/ann"), "{}", path.display());
        }
        assert_eq!(
            Paths::new(Network::Mainnet, None, &environment(&[])),
            Err(NoHomeError)
        );
    }

    #[test]
    fn a_second_daemon_is_refused_and_told_who_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(Network::Regtest, Some(dir.path()), &environment(&[])).unwrap();

        let first = Lock::acquire(&paths).unwrap();
        let refused = Lock::acquire(&paths).unwrap_err();
        assert!(
            matches!(refused, LockError::Held { pid: Some(pid), .. } if pid == std::process::id()),
            "{refused}"
        );

        assert!(Lock::is_held(dir.path()));

        drop(first);
        assert!(!Lock::is_held(dir.path()));
        Lock::acquire(&paths).unwrap();
    }

    #[test]
    fn folders_are_made_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        create_private_dir(&inner).unwrap();
        for path in [&inner, inner.parent().unwrap()] {
            assert_eq!(
                fs::metadata(path).unwrap().permissions().mode() & 0o777,
                0o700
            );
        }
    }
}
