//! What a running network says about itself to other processes, and how they speak with it.

use std::{
    fmt,
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use bitcoin::{Address, Amount, Network as BitcoinNetwork, Txid, address::NetworkUnchecked};
use bitmesh_node::control::{api::ReceiveCoins, client::Client};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::NetworkError;
use crate::{chain::Chain, process, wait};

/// The name of a network that was given none.
pub const DEFAULT_NAME: &str = "default";

/// The longest name: it is part of the path of each node's socket, which may have 107 bytes.
const LONGEST_NAME: usize = 20;

/// How long a network may take to end all its processes in order.
const DOWN: Duration = Duration::from_secs(60);

const STATE_FILE: &str = "network.json";
const LOCK_FILE: &str = "lock";

/// A running network, as its folder describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// The process that holds it together.
    pub pid: u32,
    /// Its folder, which goes when it goes.
    pub folder: PathBuf,
    /// The chain.
    pub chain: ChainState,
    /// The web server that stands for the internet, reachable through every seller.
    pub web: SocketAddr,
    /// The nodes, in the order they were started.
    pub nodes: Vec<NodeState>,
}

/// The chain of a running network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainState {
    /// What runs it, with its version.
    pub bitcoind: String,
    /// The pid of that.
    pub pid: u32,
    /// The address of its RPC.
    pub rpc: SocketAddr,
    /// The file that holds the password of its RPC.
    pub cookie: PathBuf,
}

/// One node of a running network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// `seller`, `buyer` or `bystander`.
    pub role: String,
    /// Its peer id.
    pub node: String,
    /// Price of 10^9 bytes, if it sells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_msat_per_gb: Option<u64>,
    /// What it was funded with, if it buys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub funds_sat: Option<u64>,
    /// The pid of its daemon.
    pub pid: u32,
    /// Its folder, for `--datadir`.
    pub datadir: PathBuf,
    /// Its control socket.
    pub socket: PathBuf,
    /// The file of its daemon's output.
    pub log: PathBuf,
    /// The address of its proxy, once it has bought.
    pub proxy: SocketAddr,
    /// Its network namespace, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl NodeState {
    /// Variables that make `bitmesh` speak to this node, and others to try it with.
    pub fn environment(&self, web: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            ("BITMESH_DATADIR", self.datadir.display().to_string()),
            ("TESTNET_PROXY", format!("socks5h://{}", self.proxy)),
            ("TESTNET_WEB", format!("http://{web}")),
        ]
    }
}

impl State {
    /// Reads the state of the running network `name`.
    ///
    /// # Errors
    ///
    /// Returns [`NetworkError::NotRunning`] if there is none; leftovers of a killed one do not count.
    pub fn of_running(name: &str) -> Result<Self, NetworkError> {
        let folder = folder_of(name)?;
        if !is_held(&folder) {
            return Err(NetworkError::NotRunning(name.to_owned()));
        }
        let failed = |source| NetworkError::Folder {
            path: folder.clone(),
            source,
        };
        match fs::read(folder.join(STATE_FILE)) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| failed(error.into())),
            // It holds its folder and has not come up yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NetworkError::NotRunning(name.to_owned()))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes the state so that other processes find it. They see all of it or none.
    pub(crate) fn publish(&self) -> io::Result<()> {
        let draft = self.folder.join(format!("{STATE_FILE}.draft"));
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(draft, self.folder.join(STATE_FILE))
    }

    /// The node of that name.
    ///
    /// # Errors
    ///
    /// Returns an error that lists the names if there is none.
    pub fn node(&self, name: &str) -> Result<&NodeState, NetworkError> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| NetworkError::NoSuchNode {
                name: name.to_owned(),
                names: self.nodes.iter().map(|node| node.name.clone()).collect(),
            })
    }

    /// A way to talk to the network's bitcoind.
    pub fn chain(&self) -> Chain {
        Chain::at(self.chain.rpc, &self.chain.cookie)
    }

    /// Pays `amount` to a node and mines a block, so that it is confirmed.
    ///
    /// # Errors
    ///
    /// Returns an error if the node or bitcoind does not answer.
    pub async fn fund(&self, node: &str, amount: Amount) -> Result<Txid, NetworkError> {
        let node = self.node(node)?;
        let client = Client::new(&node.socket);
        let address = address_of(&node.name, &client).await?;
        let chain = self.chain();
        let paid = chain.pay(&address, amount)?;
        chain.mine(1)?;
        Ok(paid)
    }

    /// Ends the network and waits until nothing of it is left.
    ///
    /// # Errors
    ///
    /// Returns an error if its process is still there after a minute, having been killed at last.
    pub fn down(name: &str) -> Result<(), NetworkError> {
        let folder = folder_of(name)?;
        if let Some(pid) = holder(&folder) {
            let gone = |within| {
                wait::until(within, "the network to end", || {
                    (!is_held(&folder)).then_some(())
                })
            };
            let signal = |signal| {
                // It may end by itself in between.
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                pid.map(|pid| kill_process(pid, signal))
            };
            signal(Signal::TERM);
            if gone(DOWN).is_err() {
                signal(Signal::KILL);
                gone(DOWN)?;
            }
        } else if !folder.exists() {
            return Err(NetworkError::NotRunning(name.to_owned()));
        }
        // The keeper of the folder deletes it; after a power cut there is none.
        let late = wait::until(Duration::from_secs(5), "its folder to go", || {
            (!folder.exists()).then_some(())
        });
        if late.is_err() {
            fs::remove_dir_all(&folder)
                .or_else(|error| {
                    if error.kind() == io::ErrorKind::NotFound {
                        Ok(())
                    } else {
                        Err(error)
                    }
                })
                .map_err(|source| NetworkError::Folder {
                    path: folder,
                    source,
                })?;
        }
        Ok(())
    }
}

/// Asks a node for an address to pay it at.
pub(crate) async fn address_of(name: &str, client: &Client) -> Result<Address, NetworkError> {
    let refused = |source| {
        NetworkError::Node(super::NodeError::Refused {
            name: name.to_owned(),
            source,
        })
    };
    let answer = client.call(&ReceiveCoins {}).await.map_err(refused)?;
    let address: Result<Address<NetworkUnchecked>, _> = answer.address.parse();
    let address = address
        .ok()
        .and_then(|it| it.require_network(BitcoinNetwork::Regtest).ok());
    address.ok_or(NetworkError::NotRegtest {
        name: name.to_owned(),
        address: answer.address,
    })
}

impl fmt::Display for State {
    /// The network as a table, and how to use it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "bitcoin: regtest, {}, http://{}",
            self.chain.bitcoind, self.chain.rpc
        )?;
        writeln!(f, "web:     http://{} (reached through a seller)", self.web)?;
        let widest = self
            .nodes
            .iter()
            .map(|node| node.name.len())
            .max()
            .unwrap_or_default()
            .max(4);
        writeln!(
            f,
            " #  {:widest$}  role       price         funds          proxy",
            "name"
        )?;
        for (index, node) in self.nodes.iter().enumerate() {
            let price = node
                .price_msat_per_gb
                .map(|msat| format!("{} sat/GB", thousandths(msat)));
            let funds = node.funds_sat.map(|sat| format!("{sat} sat"));
            writeln!(
                f,
                "{index:>2}  {:widest$}  {:9}  {:12}  {:13}  {}",
                node.name,
                node.role,
                price.as_deref().unwrap_or("-"),
                funds.as_deref().unwrap_or("-"),
                node.proxy
            )?;
        }
        let buyer = self
            .nodes
            .iter()
            .find(|node| node.role == "buyer")
            .or(self.nodes.first());
        let Some(buyer) = buyer else { return Ok(()) };
        let named = match self.name.as_str() {
            DEFAULT_NAME => String::new(),
            name => format!(" --name {name}"),
        };
        writeln!(
            f,
            "Try:     bitmesh testnet exec{named} {} -- bitmesh buy 50MB",
            buyer.name
        )?;
        writeln!(
            f,
            "         eval \"$(bitmesh testnet env{named} {})\" && bitmesh status",
            buyer.name
        )?;
        writeln!(
            f,
            "         curl -x \"$TESTNET_PROXY\" -o /dev/null \"$TESTNET_WEB/bytes/1000000\""
        )?;
        write!(f, "Stop:    bitmesh testnet down{named}")
    }
}

/// Thousandths as a decimal number without trailing zeros.
fn thousandths(number: u64) -> String {
    let text = format!("{}.{:03}", number / 1000, number % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A folder that this process holds: no other network takes it while the process lives.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) folder: PathBuf,
    _lock: File,
}

/// Makes and holds the folder of the network `name`. Leftovers of one that was killed are deleted.
pub(crate) fn hold(name: &str) -> Result<Held, NetworkError> {
    let folder = folder_of(name)?;
    let base = folder.parent().unwrap_or(Path::new("/")).to_owned();
    let failed = |source| NetworkError::Folder {
        path: folder.clone(),
        source,
    };
    loop {
        create_private(&base).map_err(failed)?;
        // A folder can be locked as a file can. Under this lock nobody else makes or deletes one.
        let making = File::open(&base).map_err(failed)?;
        making.lock().map_err(failed)?;
        if holder(&folder).is_some() || is_held(&folder) {
            return Err(NetworkError::Running(name.to_owned()));
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            // The last network but this one went, and took the base with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        }
        let mut lock = File::create_new(folder.join(LOCK_FILE)).map_err(failed)?;
        // Whoever looks whether it is held holds it for a moment.
        lock.lock().map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        return Ok(Held {
            folder,
            _lock: lock,
        });
    }
}

/// Deletes a network's folder once nobody writes there, and the base if it was the last.
pub(crate) const REMOVE_FOLDER: &str = "for try in 1 2 3 4 5 6 7 8 9 10; do \
    rm -rf \"$1\" && break; sleep 0.2; done; rmdir \"${1%/*}\"";

/// The folder of the network `name`, whether it is there or not.
fn folder_of(name: &str) -> Result<PathBuf, NetworkError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fits) {
        return Err(NetworkError::BadName {
            name: name.to_owned(),
            longest: LONGEST_NAME,
        });
    }
    let user = rustix::process::geteuid().as_raw();
    Ok(std::env::temp_dir()
        .join(format!("bitmesh-testnet-{user}"))
        .join(name))
}

/// Makes a folder that nobody else can use; refuses one that somebody else made.
fn create_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let found = fs::symlink_metadata(folder)?;
    let ours = found.is_dir()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o077 == 0;
    if ours {
        Ok(())
    } else {
        Err(io::Error::other(
            "it belongs to, or is open to, somebody else",
        ))
    }
}

/// Whether a living process holds the folder.
fn is_held(folder: &Path) -> bool {
    let lock = File::open(folder.join(LOCK_FILE));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The pid of the process that holds the folder.
fn holder(folder: &Path) -> Option<u32> {
    if !is_held(folder) {
        return None;
    }
    let pid = fs::read_to_string(folder.join(LOCK_FILE))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    process::exists(pid).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Afterwards;

    #[test]
    fn a_name_that_would_leave_the_folder_is_refused() {
        for name in ["", "..", "a/b", "A", "x y", "abcdefghijklmnopqrstu"] {
            assert!(
                matches!(folder_of(name), Err(NetworkError::BadName { .. })),
                "{name}"
            );
        }
        assert!(folder_of("abc-9").unwrap().ends_with("abc-9"));
    }

    #[test]
    fn a_folder_is_held_once_and_free_again_afterwards() {
        let name = format!("test-{}", std::process::id());
        let held = hold(&name).unwrap();
        let keeper = Afterwards::run(REMOVE_FOLDER, [&held.folder]).unwrap();

        assert!(matches!(hold(&name), Err(NetworkError::Running(_))));
        assert!(matches!(
            State::of_running(&name),
            Err(NetworkError::NotRunning(_))
        ));
        assert_eq!(holder(&held.folder), Some(std::process::id()));

        let folder = held.folder.clone();
        drop(held);
        // Another test's child may have it too, until it becomes its program.
        wait::until(Duration::from_secs(10), "release", || {
            (!is_held(&folder)).then_some(())
        })
        .unwrap();
        drop(keeper);
        assert!(!folder.exists());
    }

    #[test]
    fn amounts_are_written_without_needless_zeros() {
        assert_eq!(
            [100_000, 100_500, 1, 0].map(thousandths),
            ["100", "100.5", "0.001", "0"]
        );
    }
}
