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
use bitmesh_node::control::{
    api::{Balance, GetBalance, GetStatus, ListTransactions, ReceiveCoins, SellPhase},
    client::Client,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::NetworkError;
use crate::{
    chain::Chain,
    process::{self, Afterwards},
    wait,
};

/// The name of a network that was given none.
pub const DEFAULT_NAME: &str = "default";

/// The longest name: it is part of the path of each node's socket, which may have 107 bytes.
const LONGEST_NAME: usize = 20;

/// How long a network may take to end all its processes in order.
const DOWN: Duration = Duration::from_secs(60);

/// How long the clean-up after a network may take, daemons of others included.
const CLEANED: Duration = Duration::from_secs(15);

/// How long a node may take to see coins that a block holds.
const SEEN: Duration = Duration::from_secs(60);

/// How long a node may take to say how it is.
const LOOK: Duration = Duration::from_secs(5);

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
    /// Whether its daemon answers; absent where it was not asked. Where it does, `price_msat_per_gb`
    /// is what it offers at now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
    /// What its wallet holds now, confirmed, if it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_sat: Option<u64>,
}

impl NodeState {
    /// Asks the node itself for what changes.
    async fn look(&mut self) {
        let client = Client::new(&self.socket);
        let answer = tokio::time::timeout(LOOK, client.call(&GetStatus {})).await;
        let Ok(Ok(status)) = answer else {
            self.answers = Some(false);
            return;
        };
        self.answers = Some(true);
        self.pid = status.pid;
        self.balance_sat = Some(status.wallet.confirmed_sat);
        let offers = status.selling.phase == SellPhase::Offering;
        self.price_msat_per_gb = offers.then_some(status.selling.price_msat_per_gb);
    }

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

    /// The same with what each node says of itself now.
    pub async fn looked_at(mut self) -> Self {
        futures::future::join_all(self.nodes.iter_mut().map(NodeState::look)).await;
        self
    }

    /// Pays `amount` to a node, mines a block, and waits until the node counts it as confirmed.
    /// Returns the transaction, and what the node has then.
    ///
    /// # Errors
    ///
    /// Returns an error if the node or bitcoind does not answer, or if the node does not see the
    /// coins, which it was paid nevertheless.
    pub async fn fund(&self, node: &str, amount: Amount) -> Result<(Txid, Balance), NetworkError> {
        let node = self.node(node)?;
        let client = Client::new(&node.socket);
        let address = address_of(&node.name, &client).await?;
        let chain = self.chain();
        let paid = chain.pay(&address, amount)?;
        chain.mine(1)?;
        let txid = paid.to_string();
        let what = format!("{} to see {txid}", node.name);
        let seen = wait::until_async(SEEN, what, || async {
            let history = ListTransactions { limit: None };
            let transactions = client.call(&history).await.ok()?.transactions;
            let ours = transactions.iter().find(|it| it.txid == txid)?;
            if ours.confirmations == 0 {
                return None;
            }
            client.call(&GetBalance {}).await.ok()
        });
        Ok((paid, seen.await?))
    }

    /// Waits a while until nothing is left of a network that has ended.
    pub(super) fn wait_for_clean_up(name: &str) {
        let Ok(folder) = folder_of(name) else { return };
        // If somebody holds it, it is the folder of another network by now.
        let over = || (!folder.exists() || is_held(&folder)).then_some(());
        let _ = wait::until(CLEANED, "its folder to go", over);
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
        let gone = |within| {
            wait::until(within, "its folder to go", || {
                (!folder.exists()).then_some(())
            })
        };
        if gone(CLEANED).is_err() {
            clean(&folder)?;
            gone(CLEANED)?;
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
            " #  {:widest$}  role       price         balance        proxy",
            "name"
        )?;
        for (index, node) in self.nodes.iter().enumerate() {
            let price = node
                .price_msat_per_gb
                .map(|msat| format!("{} sat/GB", thousandths(msat)));
            let balance = node.balance_sat.or(node.funds_sat);
            let balance = balance.map(|sat| format!("{sat} sat"));
            let (price, balance) = match node.answers {
                Some(false) => ("does not", "answer"),
                Some(true) | None => (
                    price.as_deref().unwrap_or("-"),
                    balance.as_deref().unwrap_or("-"),
                ),
            };
            writeln!(
                f,
                "{index:>2}  {:widest$}  {:9}  {price:12}  {balance:13}  {}",
                node.name, node.role, node.proxy
            )?;
        }
        let named = match self.name.as_str() {
            DEFAULT_NAME => String::new(),
            name => format!(" --name {name}"),
        };
        let with_role = |role: &str| self.nodes.iter().find(|node| node.role == role);
        match (with_role("seller"), with_role("buyer")) {
            (Some(_), Some(buyer)) => self.write_trade(f, &named, buyer)?,
            (seller, buyer) => {
                // One alone has nobody to trade with.
                if let Some(node) = seller.or(buyer).or(self.nodes.first()) {
                    let name = &node.name;
                    writeln!(
                        f,
                        "Try:     bitmesh testnet exec{named} {name} -- bitmesh status"
                    )?;
                }
            }
        }
        write!(f, "Stop:    bitmesh testnet down{named}")
    }
}

impl State {
    /// How to buy as `buyer`. Its proxy is a loopback address: of its own host if it has one, and then
    /// only programs that run there reach it.
    fn write_trade(
        &self,
        f: &mut fmt::Formatter<'_>,
        named: &str,
        buyer: &NodeState,
    ) -> fmt::Result {
        let name = &buyer.name;
        let fetch = r#"curl -x "$TESTNET_PROXY" -o /dev/null "$TESTNET_WEB/bytes/1000000""#;
        writeln!(
            f,
            "Try:     bitmesh testnet exec{named} {name} -- bitmesh buy 50MB"
        )?;
        if buyer.namespace.is_some() {
            writeln!(
                f,
                "         bitmesh testnet exec{named} {name} -- sh -c '{fetch}'"
            )?;
            return writeln!(
                f,
                "         bitmesh testnet exec{named} {name} -- bitmesh usage"
            );
        }
        writeln!(
            f,
            "         eval \"$(bitmesh testnet env{named} {name})\" && bitmesh status"
        )?;
        writeln!(f, "         {fetch}")
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
        if folder.exists() {
            clean(&folder)?;
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

/// Ends every daemon that still runs on a folder within the network's, deletes the network's folder, and
/// the base if it was the last.
///
/// The network's own daemons are gone by then; these are ones that somebody started by hand. Whoever
/// has the very lock file of such a folder open is its daemon, whatever its pid says and whoever had
/// that pid before. Asked first, killed after some seconds.
pub(crate) const CLEAN_UP: &str = r#"
has() { for fd in /proc/"$1"/fd/*; do [ "$fd" -ef "$2" ] && return 0; done; return 1; }
strays() {
    found=1
    for lock in "$2"/*/lock; do
        pid=; read -r pid <"$lock" || continue
        case $pid in ''|*[!0-9]*) continue ;; esac
        has "$pid" "$lock" && { found=0; [ "$1" = 0 ] || kill -"$1" "$pid"; }
    done
    return $found
}
if strays TERM "$1"; then
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        strays 0 "$1" || break
        sleep 0.3
    done
    strays KILL "$1"
fi
for try in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$1" && break
    sleep 0.2
done
rmdir "${1%/*}""#;

/// Does that now.
fn clean(folder: &Path) -> Result<(), NetworkError> {
    // Its end is waited for when it is dropped.
    drop(Afterwards::run(CLEAN_UP, [folder])?);
    Ok(())
}

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
        let keeper = Afterwards::run(CLEAN_UP, [&held.folder]).unwrap();

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

    fn node(name: &str, role: &str, namespace: Option<&str>) -> NodeState {
        NodeState {
            name: name.to_owned(),
            role: role.to_owned(),
            node: "12D3KooWExample".to_owned(),
            price_msat_per_gb: (role == "seller").then_some(80_000),
            funds_sat: (role == "buyer").then_some(1_000_000),
            pid: 1,
            datadir: "/t".into(),
            socket: "/t/bitmesh.sock".into(),
            log: "/t/log".into(),
            proxy: ([127, 0, 0, 1], 1080).into(),
            namespace: namespace.map(str::to_owned),
            answers: None,
            balance_sat: None,
        }
    }

    fn state(nodes: Vec<NodeState>) -> State {
        State {
            name: DEFAULT_NAME.to_owned(),
            pid: 1,
            folder: "/t".into(),
            chain: ChainState {
                bitcoind: "Bitcoin Core".to_owned(),
                pid: 2,
                rpc: ([127, 0, 0, 1], 18443).into(),
                cookie: "/t/.cookie".into(),
            },
            web: ([127, 0, 0, 1], 80).into(),
            nodes,
        }
    }

    #[test]
    fn only_what_works_from_here_is_suggested() {
        let here = state(vec![
            node("alice", "seller", None),
            node("bob", "buyer", None),
        ]);
        let text = here.to_string();
        assert!(text.contains("exec bob -- bitmesh buy"), "{text}");
        assert!(
            text.contains("\n         curl -x \"$TESTNET_PROXY\""),
            "{text}"
        );

        // The proxy of a host of its own is reached from there alone.
        let apart = state(vec![
            node("alice", "seller", Some("n0")),
            node("bob", "buyer", Some("n1")),
        ]);
        let text = apart.to_string();
        let fetch = "exec bob -- sh -c 'curl -x \"$TESTNET_PROXY\"";
        assert!(text.contains(fetch) && !text.contains("eval"), "{text}");

        let text = state(vec![node("alice", "seller", None)]).to_string();
        assert!(
            !text.contains("buy") && text.contains("exec alice -- bitmesh status"),
            "{text}"
        );
    }

    #[test]
    fn a_node_that_does_not_answer_is_shown_as_such() {
        let mut silent = node("bob", "buyer", None);
        silent.answers = Some(false);
        let mut rich = node("alice", "seller", None);
        (rich.answers, rich.balance_sat, rich.price_msat_per_gb) = (Some(true), Some(7), None);
        let text = state(vec![rich, silent]).to_string();
        let rows: Vec<&str> = text.lines().skip(3).take(2).collect();
        assert_eq!(
            rows[0],
            " 0  alice  seller     -             7 sat          127.0.0.1:1080"
        );
        assert_eq!(
            rows[1],
            " 1  bob    buyer      does not      answer         127.0.0.1:1080"
        );
    }

    #[test]
    fn a_daemon_that_somebody_started_by_hand_ends_with_the_folder_it_is_in() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("network/default");
        let node = folder.join("bob");
        fs::create_dir_all(&node).unwrap();
        let start = |lock: &Path| {
            let file = File::create(lock).unwrap();
            let child = std::process::Command::new("sleep")
                .arg("600")
                .stdin(file.try_clone().unwrap())
                .spawn()
                .unwrap();
            writeln!(&file, "{}", child.id()).unwrap();
            child
        };
        // One is the daemon of bob's folder. The other's pid stands there, which says nothing.
        let mut stray = start(&node.join("lock"));
        let other = base.path().join("other");
        let mut other_child = start(&other);
        fs::create_dir(folder.join("carol")).unwrap();
        fs::copy(&other, folder.join("carol/lock")).unwrap();

        // A child of ours that has ended is one that we wait for, or its files seem to be open still.
        let waiting = std::thread::spawn(move || stray.wait().unwrap());
        clean(&folder).unwrap();

        assert!(!waiting.join().unwrap().success());
        assert!(!folder.exists());
        assert!(
            other_child.try_wait().unwrap().is_none(),
            "a stranger was ended"
        );
        other_child.kill().unwrap();
        other_child.wait().unwrap();
    }

    #[test]
    fn amounts_are_written_without_needless_zeros() {
        assert_eq!(
            [100_000, 100_500, 1, 0].map(thousandths),
            ["100", "100.5", "0.001", "0"]
        );
    }
}
