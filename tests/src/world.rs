//! A network for one test.

use std::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use bitcoin::Amount;
use bitmesh_node::control::api::{
    Balance, Buy, Channel, ChannelState, GetBalance, Lease, LeaseState, ListChannels, ListLeases,
    Purchase, ShowLease,
};
use bitmesh_testnet::{
    download::{Download, Downloaded},
    network::{Network, NodeSpec, Plan},
    process::last_lines,
    web::Content,
};

use crate::{bitcoind, bitmesh};

/// How long a test waits for what should take a second: only a fault takes that long, or a machine
/// with much else to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A network of real nodes for one test. It derefs to its [`Network`].
///
/// Dropping it ends all of it; if the test has failed, the end of each log is printed first.
#[derive(Debug)]
pub struct World {
    network: Network,
}

impl World {
    /// Starts a network of `nodes` on a chain of its own, and returns once every buyer has its coins
    /// and sees every seller.
    ///
    /// # Panics
    ///
    /// Panics with what did not work.
    pub async fn start(nodes: impl IntoIterator<Item = NodeSpec>) -> Self {
        Self::start_plan(nodes, false).await
    }

    /// The same with each node in a network namespace of its own, or `None` where that is not
    /// permitted.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn start_in_namespaces(nodes: impl IntoIterator<Item = NodeSpec>) -> Self {
        Self::start_plan(nodes, true).await
    }

    async fn start_plan(nodes: impl IntoIterator<Item = NodeSpec>, namespaces: bool) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        // A process may run several tests at once.
        let name = format!(
            "t{}-{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        );
        let plan = Plan::new(&name, bitmesh(), bitcoind().clone()).namespaces(namespaces);
        let plan = nodes.into_iter().fold(plan, Plan::with);
        let up = Network::up(plan, &mut |said| eprintln!("{said}")).await;
        Self {
            network: up.unwrap_or_else(|error| panic!("{error}")),
        }
    }

    /// One seller, `alice` at 100 sat/GB, and one buyer, `bob`, who has a million sat.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn of_two() -> Self {
        let funds = Amount::from_sat(1_000_000);
        Self::start([
            NodeSpec::seller("alice", 100_000),
            NodeSpec::buyer("bob", funds),
        ])
        .await
    }

    /// Has a node buy so many bytes, prepaid, and returns what came of it.
    ///
    /// # Panics
    ///
    /// Panics with the node's answer if it does not get a lease.
    pub async fn buy(&self, buyer: &str, bytes: u64) -> Purchase {
        let request = Buy {
            bytes: Some(bytes),
            ..Buy::default()
        };
        self.node(buyer)
            .ask(request)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts to download through a node's proxy.
    pub fn download(&self, buyer: &str, content: Content) -> Download {
        self.download_rest(buyer, content, 0)
    }

    /// Starts to download all but the first `from` bytes through a node's proxy.
    pub fn download_rest(&self, buyer: &str, content: Content, from: u64) -> Download {
        Download::start(
            self.node(buyer).proxy(),
            self.web().address(),
            content,
            from,
        )
    }

    /// Downloads through a node's proxy and returns once all of it has come as it was sent.
    ///
    /// # Panics
    ///
    /// Panics if it does not come within [`PATIENCE`].
    pub async fn fetch(&self, buyer: &str, content: Content) -> Downloaded {
        finish(self.download(buyer, content)).await
    }

    /// A lease as a node sees it.
    ///
    /// # Panics
    ///
    /// Panics with the node's answer if it knows no such lease.
    pub async fn lease(&self, node: &str, lease: &str) -> Lease {
        let request = ShowLease {
            lease: lease.to_owned(),
        };
        self.node(node)
            .ask(request)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Every lease that a node knows, newest first.
    ///
    /// # Panics
    ///
    /// Panics with the node's answer if it does not list them.
    pub async fn leases(&self, node: &str) -> Vec<Lease> {
        let request = ListLeases {
            all: true,
            role: None,
        };
        let answer = self.node(node).ask(request).await;
        answer.unwrap_or_else(|error| panic!("{error}")).leases
    }

    /// Waits until a lease is in `state` for a node, and returns it.
    ///
    /// # Panics
    ///
    /// Panics with the lease as it is if it does not come to that within [`PATIENCE`].
    pub async fn until_lease(&self, node: &str, lease: &str, state: LeaseState) -> Lease {
        let node = self.node(node);
        let request = ShowLease {
            lease: lease.to_owned(),
        };
        let what = format!("lease {lease:.8} to be {state:?}");
        let reached = |lease: Lease| (lease.state == state).then_some(lease);
        match node.until(PATIENCE, &what, request.clone(), reached).await {
            Ok(lease) => lease,
            Err(error) => panic!("{error}\nit is {:#?}", node.ask(request).await),
        }
    }

    /// Every channel that a node knows, newest first.
    ///
    /// # Panics
    ///
    /// Panics with the node's answer if it does not list them.
    pub async fn channels(&self, node: &str) -> Vec<Channel> {
        let answer = self.node(node).ask(ListChannels { all: true }).await;
        answer.unwrap_or_else(|error| panic!("{error}")).channels
    }

    /// Waits until a channel is in `state` for a node, and returns it.
    ///
    /// # Panics
    ///
    /// Panics with the channels as they are if it does not come to that within [`PATIENCE`].
    pub async fn until_channel(&self, node: &str, channel: &str, state: ChannelState) -> Channel {
        let what = format!("channel {channel:.8} to be {state:?}");
        let reached = |answer: bitmesh_node::control::api::Channels| {
            answer
                .channels
                .into_iter()
                .find(|it| it.id == channel && it.state == state)
        };
        let node = self.node(node);
        let request = ListChannels { all: true };
        match node.until(PATIENCE, &what, request.clone(), reached).await {
            Ok(channel) => channel,
            Err(error) => panic!("{error}\nthey are {:#?}", node.ask(request).await),
        }
    }

    /// What a node's wallet holds.
    ///
    /// # Panics
    ///
    /// Panics with the node's answer if it does not say.
    pub async fn balance(&self, node: &str) -> Balance {
        self.node(node)
            .ask(GetBalance {})
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Mines blocks, and waits until every node has seen the last.
    ///
    /// # Panics
    ///
    /// Panics if a node that runs does not see it within [`PATIENCE`].
    pub async fn mine(&self, blocks: u32) {
        self.chain()
            .mine(blocks)
            .unwrap_or_else(|error| panic!("{error}"));
        self.until_all_see_the_chain().await;
    }

    /// Waits until every node has seen the best block.
    ///
    /// # Panics
    ///
    /// As [`mine`](Self::mine).
    pub async fn until_all_see_the_chain(&self) {
        for node in self.nodes() {
            self.until_seen(node)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// Ends the network in order, as a test that has succeeded does.
    pub async fn end(self) {
        // `World` prints logs when it is dropped, so its network cannot be moved out of it.
        let mut world = self;
        for node in world.network.nodes_mut() {
            node.stop().unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Waits until a download has come as it was sent.
///
/// # Panics
///
/// Panics if it does not within [`PATIENCE`].
pub(crate) async fn finish(download: Download) -> Downloaded {
    let done = tokio::time::timeout(PATIENCE, download.finish()).await;
    let done = done.unwrap_or_else(|_| panic!("a download has not ended in {PATIENCE:?}"));
    done.unwrap_or_else(|error| panic!("{error}"))
}

impl Deref for World {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.network
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Network {
        &mut self.network
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in self.network.nodes() {
                eprintln!(
                    "--- the end of the log of {}\n{}",
                    node.name(),
                    last_lines(node.log())
                );
            }
        }
    }
}
