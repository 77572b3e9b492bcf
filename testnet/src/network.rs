//! A network of real nodes on a chain of their own.
//!
//! [`Network::up`] starts a bitcoind, a web server that stands for the internet, and each node's
//! daemon as a child process with a folder of its own; then it funds the buyers. Everything lives as
//! long as the [`Network`], or as the process that holds it, however that ends. While it runs, other
//! processes find it by its name through [`State`].
//!
//! By default all of it is on the loopback addresses of this machine and the nodes know of each other
//! beforehand. With [`Plan::namespaces`] each node is a host of its own on one local network, and has
//! to find the others by itself.

mod detached;
mod namespaces;
mod node;
mod ports;
mod settings;
mod state;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use bitcoin::Amount;
use bitmesh_node::control::{
    ApiError,
    api::{self, GetBalance, GetChain, ListOffers},
};
use thiserror::Error;

pub use self::{
    detached::up_detached,
    namespaces::NamespaceError,
    node::{Node, NodeError, NodeSpec, Role},
    state::{ChainState, DEFAULT_NAME, NodeState, State},
};
use self::{
    namespaces::Namespaces,
    node::Place,
    settings::Surroundings,
    state::{CLEAN_UP, Held, address_of},
};
use crate::{
    bitcoind::Bitcoind,
    chain::{Chain, ChainError, Reach, Regtest},
    process::{Afterwards, ProcessError},
    wait::TimedOut,
    web::Web,
};

/// The most nodes of one network: each is a process of some 30 MB.
pub const MOST_NODES: usize = 100;

/// What a buyer gets from the faucet: enough for some channels of the usual size and their fees.
pub const FUNDS: Amount = Amount::from_sat(1_000_000);

/// How long nodes may take to see a payment or an offer that is there.
const SEEN: Duration = Duration::from_secs(60);

/// Given to nodes in order; further ones are numbered.
const NAMES: [&str; 12] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory",
    "niaj",
];

/// Something that a network was asked for did not happen.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A network of that name runs already.
    #[error("the network {0} runs already; \"bitmesh testnet down\" ends it")]
    Running(String),
    /// No network of that name runs.
    #[error("no network {0} runs; \"bitmesh testnet up\" starts one")]
    NotRunning(String),
    /// A name cannot be that of a network.
    #[error(
        "a network's name has 1 to {longest} lower-case letters, digits and hyphens; {name:?} does not"
    )]
    BadName {
        /// The name.
        name: String,
        /// How long it may be.
        longest: usize,
    },
    /// The network has no such node.
    #[error("no node is called {name}; there are {}", .names.join(", "))]
    NoSuchNode {
        /// The name asked for.
        name: String,
        /// The names there are.
        names: Vec<String>,
    },
    /// A network of no nodes, or of too many.
    #[error("a network has 1 to {MOST_NODES} nodes, not {0}")]
    BadSize(usize),
    /// A node runs on another chain.
    #[error("{name} asks for coins at {address}, which is no regtest address")]
    NotRegtest {
        /// The node.
        name: String,
        /// Its address.
        address: String,
    },
    /// The network's folder cannot be used.
    #[error("cannot use {path}: {source}", path = .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A port cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// The process that was to hold the network ended without a word of why. Says what it wrote last.
    #[error("the network did not come up: {0}")]
    Ended(String),
    /// The process that was to hold the network failed with this.
    #[error(transparent)]
    Failed(ApiError),
    /// A node did not do what it was asked.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The chain did not do what it was asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The namespaces could not be made.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A process could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Something took too long.
    #[error(transparent)]
    Late(#[from] TimedOut),
}

/// A network to be started.
#[derive(Clone, Debug)]
pub struct Plan {
    name: String,
    bitmesh: PathBuf,
    bitcoind: Bitcoind,
    nodes: Vec<NodeSpec>,
    namespaces: bool,
}

impl Plan {
    /// A plan for no nodes yet, whose daemons will be the program `bitmesh`.
    pub fn new(name: &str, bitmesh: impl Into<PathBuf>, bitcoind: Bitcoind) -> Self {
        Self {
            name: name.to_owned(),
            bitmesh: bitmesh.into(),
            bitcoind,
            nodes: Vec::new(),
            namespaces: false,
        }
    }

    /// A plan for `count` nodes, which sell and buy in turn: the first sells, the second buys. Each
    /// seller asks 20 sat per GB more than the one before, from 80 on.
    pub fn of_size(
        name: &str,
        count: usize,
        bitmesh: impl Into<PathBuf>,
        bitcoind: Bitcoind,
    ) -> Self {
        let plan = Self::new(name, bitmesh, bitcoind);
        in_turn(count).fold(plan, Self::with)
    }

    /// Adds a node.
    #[must_use]
    pub fn with(mut self, node: NodeSpec) -> Self {
        self.nodes.push(node);
        self
    }

    /// Puts each node into a network namespace of its own, which needs root.
    #[must_use]
    pub fn namespaces(mut self, yes: bool) -> Self {
        self.namespaces = yes;
        self
    }
}

/// So many nodes that sell and buy in turn.
fn in_turn(count: usize) -> impl Iterator<Item = NodeSpec> {
    (0..count).map(|index| {
        let name = NAMES
            .get(index)
            .map_or_else(|| format!("node{index}"), |name| (*name).to_owned());
        if index.is_multiple_of(2) {
            NodeSpec::seller(&name, 80_000 + 20_000 * (index / 2) as u64)
        } else {
            NodeSpec::buyer(&name, FUNDS)
        }
    })
}

/// A running network. Dropping it ends every process of it and deletes its folder.
#[derive(Debug)]
pub struct Network {
    // In the order in which they have to go.
    nodes: Vec<Node>,
    regtest: Regtest,
    web: Web,
    namespaces: Option<Namespaces>,
    held: Held,
    _after: Afterwards,
    name: String,
    bitmesh: PathBuf,
    bitcoind: Bitcoind,
}

impl Network {
    /// Starts all that `plan` says and returns once the buyers hold their coins and every node that
    /// buys sees the offer of every node that sells.
    ///
    /// `progress` is told, one sentence at a time, what is being done.
    ///
    /// # Errors
    ///
    /// Returns what did not work; nothing is left running then.
    pub async fn up(plan: Plan, progress: &mut dyn FnMut(&str)) -> Result<Self, NetworkError> {
        let Plan {
            name,
            bitmesh,
            bitcoind,
            nodes,
            namespaces,
        } = plan;
        if nodes.is_empty() || nodes.len() > MOST_NODES {
            return Err(NetworkError::BadSize(nodes.len()));
        }
        let held = state::hold(&name)?;
        let after = Afterwards::run(CLEAN_UP, [&held.folder])?;
        let namespaces = if namespaces {
            Some(Namespaces::make(nodes.len())?)
        } else {
            None
        };

        progress(&format!("starting {bitcoind} on regtest"));
        let reach = namespaces
            .as_ref()
            .map_or(Reach::LOOPBACK, |namespaces| Reach {
                address: namespaces.bridge_address(),
                allow: Some(namespaces.subnet()),
            });
        let here = reach.address;
        let folder = held.folder.join("bitcoind");
        let regtest = blocking({
            let bitcoind = bitcoind.clone();
            move || Regtest::start(&bitcoind, &folder, reach)
        })
        .await?;
        let listen = |source| NetworkError::Listen {
            address: here,
            source,
        };
        let web = Web::start((here, 0).into()).await.map_err(listen)?;

        let (nodes_to_start, nodes) = (nodes, Vec::new());
        let mut network = Self {
            nodes,
            regtest,
            web,
            namespaces,
            held,
            _after: after,
            name,
            bitmesh,
            bitcoind,
        };
        progress(&format!("starting {} nodes", nodes_to_start.len()));
        network.start_nodes(nodes_to_start).await?;
        network.fund_buyers(progress).await?;
        network.wait_for_offers(progress).await?;
        network.publish()?;
        Ok(network)
    }

    /// Starts the first node, and then, knowing where that is, all others at once.
    async fn start_nodes(&mut self, specs: Vec<NodeSpec>) -> Result<(), NetworkError> {
        let mut specs = specs.into_iter().enumerate();
        let Some((index, first)) = specs.next() else {
            return Ok(());
        };
        let first = self.start_node(index, first).await?;
        self.nodes.push(first);
        let others = specs.map(|(index, spec)| self.start_node(index, spec));
        let others = futures::future::try_join_all(others).await?;
        self.nodes.extend(others);
        Ok(())
    }

    async fn start_node(&self, index: usize, spec: NodeSpec) -> Result<Node, NetworkError> {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let namespaces = self.namespaces.as_ref();
        let address = namespaces.map_or(loopback, |namespaces| namespaces.address(index));
        // A namespace is new: there every port is free.
        let port = |address: IpAddr, otherwise: u16| match namespaces {
            Some(_) => Ok(otherwise),
            None => ports::free(address).map_err(|source| NetworkError::Listen { address, source }),
        };
        let mesh_port = port(address, 4780)?;
        let proxy_port = port(loopback, 1080)?;
        let bootstrap = match (namespaces, self.nodes.first()) {
            (None, Some(first)) => first.addresses().to_vec(),
            (Some(_), _) | (None, None) => Vec::new(),
        };
        let surroundings = Surroundings {
            chain: self.regtest.chain(),
            address,
            mesh_port,
            proxy_port,
            bootstrap: &bootstrap,
            web: self.web.address(),
        };
        let place = Place {
            bitmesh: &self.bitmesh,
            folder: self.held.folder.join(spec.name()),
            namespace: namespaces.and_then(|it| it.name(index)).map(str::to_owned),
            proxy: SocketAddr::new(loopback, proxy_port),
            settings: surroundings.settings(&spec.settings),
        };
        Ok(Node::start(spec, place).await?)
    }

    /// Starts one more node, which finds the others there. It is funded if it is a buyer.
    ///
    /// # Errors
    ///
    /// Returns what did not work. A network with namespaces takes no further nodes.
    pub async fn add(&mut self, spec: NodeSpec) -> Result<&mut Node, NetworkError> {
        if self.namespaces.is_some() {
            return Err(NetworkError::BadSize(self.nodes.len() + 1));
        }
        let node = self.start_node(self.nodes.len(), spec).await?;
        if let Role::Buyer { funds } = node.role() {
            self.fund(&[(&node, funds)]).await?;
        }
        self.nodes.push(node);
        self.publish()?;
        Ok(self.nodes.last_mut().expect("one was pushed"))
    }

    async fn fund_buyers(&self, progress: &mut dyn FnMut(&str)) -> Result<(), NetworkError> {
        let buyers: Vec<_> = self.buyers().collect();
        if buyers.is_empty() {
            return Ok(());
        }
        progress("funding the buyers");
        self.fund(&buyers).await
    }

    fn buyers(&self) -> impl Iterator<Item = (&Node, Amount)> {
        self.nodes.iter().filter_map(|node| match node.role() {
            Role::Buyer { funds } => Some((node, funds)),
            Role::Seller { .. } | Role::Bystander => None,
        })
    }

    /// Pays nodes with one transaction, and waits until each counts it as confirmed.
    async fn fund(&self, nodes: &[(&Node, Amount)]) -> Result<(), NetworkError> {
        let mut payments = Vec::new();
        for (node, amount) in nodes {
            let synced = |chain: api::Chain| chain.synced.then_some(());
            node.until(SEEN, "the chain", GetChain {}, synced).await?;
            payments.push((address_of(node.name(), node.client()).await?, *amount));
        }
        let chain = self.regtest.chain().clone();
        blocking(move || {
            chain.pay_all(&payments)?;
            chain.mine(1)
        })
        .await?;
        for (node, amount) in nodes {
            let what = format!("{amount} to be confirmed");
            let enough =
                |balance: api::Balance| (balance.confirmed_sat >= amount.to_sat()).then_some(());
            node.until(SEEN, &what, GetBalance {}, enough).await?;
        }
        Ok(())
    }

    async fn wait_for_offers(&self, progress: &mut dyn FnMut(&str)) -> Result<(), NetworkError> {
        let sellers = self
            .nodes
            .iter()
            .filter(|node| matches!(node.role(), Role::Seller { .. }));
        let sellers: Vec<_> = sellers.map(Node::id).collect();
        if sellers.is_empty() {
            return Ok(());
        }
        progress("waiting for the offers to spread");
        for (buyer, _) in self.buyers() {
            let all_seen = |offers: api::Offers| {
                let seen = |id: &&str| offers.offers.iter().any(|offer| offer.seller == **id);
                sellers.iter().all(seen).then_some(())
            };
            buyer
                .until(
                    SEEN,
                    "the offers of all sellers",
                    ListOffers::default(),
                    all_seen,
                )
                .await?;
        }
        Ok(())
    }

    /// Waits until a node has seen the best block and knows it for the best.
    ///
    /// # Errors
    ///
    /// Returns an error if it has not within a minute.
    pub async fn until_seen(&self, node: &Node) -> Result<(), NetworkError> {
        let height = self.chain().height()?;
        let seen = |chain: api::Chain| (chain.synced && chain.height >= height).then_some(());
        Ok(node
            .until(SEEN, &format!("block {height}"), GetChain {}, seen)
            .await?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.held.folder
    }

    /// Its chain.
    pub fn chain(&self) -> &Chain {
        self.regtest.chain()
    }

    /// Its bitcoind, to kill and start again.
    pub fn bitcoind(&mut self) -> &mut Regtest {
        &mut self.regtest
    }

    /// Its web server.
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// Its nodes, in the order they were started.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Its nodes, to kill and start again.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The node of that name.
    ///
    /// # Panics
    ///
    /// Panics if there is none: the names are the caller's own.
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// The node of that name, to kill and start again.
    ///
    /// # Panics
    ///
    /// As [`node`](Self::node).
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        let found = self.nodes.iter_mut().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// What other processes are told about it.
    pub fn state(&self) -> State {
        let nodes = self.nodes.iter().map(|node| {
            let (role, price, funds) = match node.role() {
                Role::Seller { price_msat_per_gb } => ("seller", Some(price_msat_per_gb), None),
                Role::Buyer { funds } => ("buyer", None, Some(funds.to_sat())),
                Role::Bystander => ("bystander", None, None),
            };
            NodeState {
                name: node.name().to_owned(),
                role: role.to_owned(),
                node: node.id().to_owned(),
                price_msat_per_gb: price,
                funds_sat: funds,
                pid: node.pid(),
                datadir: node.folder().to_owned(),
                socket: node.client().socket().to_owned(),
                log: node.log().to_owned(),
                proxy: node.proxy(),
                namespace: node.namespace().map(str::to_owned),
                answers: None,
                balance_sat: None,
            }
        });
        State {
            name: self.name.clone(),
            pid: std::process::id(),
            folder: self.held.folder.clone(),
            chain: ChainState {
                bitcoind: self.bitcoind.to_string(),
                pid: self.regtest.pid(),
                rpc: self.chain().address(),
                cookie: self.chain().cookie().to_owned(),
            },
            web: self.web.address(),
            nodes: nodes.collect(),
        }
    }

    fn publish(&self) -> Result<(), NetworkError> {
        let failed = |source| NetworkError::Folder {
            path: self.held.folder.clone(),
            source,
        };
        self.state().publish().map_err(failed)
    }

    /// Ends every node in order, so that their logs end as they should, and then the rest.
    pub async fn down(mut self) {
        let mut nodes = std::mem::take(&mut self.nodes);
        let stopping = nodes.drain(..).map(|mut node| {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = node.stop() {
                    tracing::warn!(%error, node = node.name(), "killed because it did not stop");
                }
            })
        });
        futures::future::join_all(stopping).await;
        // The rest waits for processes as well.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ChainError> + Send + 'static,
) -> Result<T, ChainError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

/// Waits for `SIGINT` or `SIGTERM`, or `SIGHUP` of a terminal that closes.
///
/// # Errors
///
/// Returns an error if the system does not let us wait for signals.
pub async fn asked_to_stop() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let [mut interrupt, mut terminate, mut hangup] = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_sell_and_buy_in_turn_as_the_readme_says() {
        let roles: Vec<_> = in_turn(5)
            .map(|node| (node.name().to_owned(), node.role()))
            .collect();
        let seller =
            |name: &str, price_msat_per_gb| (name.to_owned(), Role::Seller { price_msat_per_gb });
        let buyer = |name: &str| (name.to_owned(), Role::Buyer { funds: FUNDS });
        assert_eq!(
            roles,
            [
                seller("alice", 80_000),
                buyer("bob"),
                seller("carol", 100_000),
                buyer("dave"),
                seller("erin", 120_000),
            ]
        );
        let readme = include_str!("../../README.md");
        assert!(readme.contains("--nodes 5  # alice, carol and erin sell, bob and dave buy"));
        assert!(readme.contains("testnet env bob"));
    }
}
