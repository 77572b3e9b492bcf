//! A light node on a thread of its own, started anew whenever it runs out of peers.

use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bip157::chain::{BlockHeaderChanges, ChainState};
use bip157::{
    Builder, Client, Event, HashCheckpoint, Info, Package, Requester, TrustedPeer, Warning,
};
use bitcoin::{Block, BlockHash, FeeRate, Network, ScriptBuf, Transaction};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::Config;
use super::seen::Seen;
use crate::chain::BlockId;

/// Questions that wait for the node. The source asks one at a time.
const QUESTIONS: usize = 8;

/// How long the node gets for an answer. It asks one peer after another, each for a few seconds, so
/// this is some ten peers for a block.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long until the first new attempt at finding peers, and how long at most: each attempt takes
/// twice as long to come as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a connection to a peer that was named by the operator is kept. Others are changed every
/// two hours, so that no peer is believed for long.
const NAMED_PEER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a peer gets to accept a connection, and to answer.
const HANDSHAKE: Duration = Duration::from_secs(5);
const RESPONSE: Duration = Duration::from_secs(10);

/// Where an answer goes.
type Answer<T> = blocking::SyncSender<Result<T, String>>;

/// A question to the node.
pub(super) enum Ask {
    /// The block at this height, if there is one.
    Header(u32, Answer<Option<BlockId>>),
    /// The block with this hash.
    Block(BlockHash, Answer<Block>),
    /// What the block with this hash paid on average.
    Paid(BlockHash, Answer<FeeRate>),
    /// The least that peers relay.
    Floor(Answer<FeeRate>),
    /// Offer these to peers: a transaction, or a parent and its child. Answered at once.
    Offer(Vec<Transaction>, Answer<()>),
}

/// What both threads see.
struct Shared {
    seen: Mutex<Seen>,
    /// Why there are no peers, while there are none.
    problem: Mutex<Option<String>>,
}

/// A running light node. Dropping it ends it.
pub(super) struct Light {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    /// Ends the thread when dropped.
    _leash: oneshot::Sender<()>,
}

pub(super) fn genesis(network: Network) -> BlockId {
    let HashCheckpoint { height, hash } = HashCheckpoint::from_genesis(network);
    BlockId { height, hash }
}

/// The block from which headers are read if nothing better is known.
pub(super) fn checkpoint(network: Network) -> BlockId {
    match network {
        Network::Bitcoin => {
            let HashCheckpoint { height, hash } = HashCheckpoint::taproot_activation();
            BlockId { height, hash }
        }
        _ => genesis(network),
    }
}

/// Reads `host:port` of each peer.
pub(super) fn peers(texts: &[String]) -> Result<Vec<TrustedPeer>, String> {
    let read = |text: &String| {
        if let Ok(address) = text.parse::<std::net::SocketAddr>() {
            return Ok(TrustedPeer::from_socket_addr(address));
        }
        let named = text
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty() && !host.contains(['/', '@', ':', ' ']));
        match named.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            Some((host, port)) => Ok(TrustedPeer::from_hostname(host, port)),
            None => Err(format!("{text:?} is not a peer like 203.0.113.7:8333")),
        }
    };
    texts.iter().map(read).collect()
}

impl Light {
    /// Starts a node above `base`. With `follows`, it reads filters, for listeners who were told the
    /// chain up to that height and have those scripts; without, headers alone.
    pub(super) fn start(
        config: &Config,
        base: BlockId,
        follows: Option<(u32, &Vec<ScriptBuf>)>,
    ) -> Self {
        let follows = follows.map(|(told, scripts)| (told, scripts.as_slice()));
        let shared = Arc::new(Shared {
            seen: Mutex::new(Seen::new(base, follows)),
            problem: Mutex::default(),
        });
        let (asks, questions) = mpsc::channel(QUESTIONS);
        let (leash, end) = oneshot::channel();
        let task = Task {
            config: config.clone(),
            shared: Arc::clone(&shared),
            questions,
        };
        let started = thread::Builder::new()
            .name("filters".to_owned())
            .spawn(move || task.run(base, end));
        if let Err(error) = started {
            shared.trouble(format!("the system gives no thread: {error}"));
        }
        Self {
            shared,
            asks,
            _leash: leash,
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen()
    }

    /// Whether there is somebody to ask.
    pub(super) fn check(&self) -> Result<(), String> {
        let problem = self.shared.problem.lock();
        match &*problem.unwrap_or_else(PoisonError::into_inner) {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Ask) -> Result<T, String> {
        let (answer, answered) = blocking::sync_channel(1);
        self.asks
            .try_send(question(answer))
            .map_err(|_| "the node has ended or is overwhelmed".to_owned())?;
        answered
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err("no peer answers".to_owned()))
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What is behind it is whole between any two calls.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self, problem: impl Into<Option<String>>) {
        let mut slot = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = problem.into();
    }
}

/// What runs on the thread.
struct Task {
    config: Config,
    shared: Arc<Shared>,
    questions: mpsc::Receiver<Ask>,
}

impl Task {
    fn run(mut self, base: BlockId, end: oneshot::Receiver<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    _ = end => {}
                    () = self.keep_going(base) => {}
                }
            }),
            Err(error) => self.shared.trouble(format!("no async runtime: {error}")),
        }
    }

    /// Runs one node after another, each until it has no peers left.
    async fn keep_going(&mut self, mut base: BlockId) {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.run_node(base).await {
                pause = FIRST_PAUSE;
            }
            let waits = tokio::time::sleep(pause);
            tokio::pin!(waits);
            loop {
                tokio::select! {
                    () = &mut waits => break,
                    ask = self.questions.recv() => match ask {
                        Some(ask) => refuse(ask),
                        None => return,
                    },
                }
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            base = self.shared.seen().start_over();
        }
    }

    /// Runs a node until it has no peers left. Whether it had any.
    async fn run_node(&mut self, base: BlockId) -> bool {
        let checkpoint = HashCheckpoint::new(base.height, base.hash);
        let mut builder = Builder::new(self.config.network)
            .chain_state(ChainState::Checkpoint(checkpoint))
            .required_peers(self.config.agreeing)
            .handshake_timeout(HANDSHAKE)
            .response_timeout(RESPONSE)
            .fetch_witness_data();
        let named = peers(&self.config.peers).unwrap_or_default();
        if !named.is_empty() {
            builder = builder
                .add_peers(named)
                .whitelist_only()
                .maximum_connection_time(NAMED_PEER);
        }
        if !self.shared.seen().reads_filters() {
            builder = builder.headers_only_sync();
        }
        let (node, client) = builder.build();
        let Client {
            requester,
            mut info_rx,
            mut warn_rx,
            mut event_rx,
        } = client;
        let run = node.run();
        tokio::pin!(run);
        let mut had_peers = false;
        let mut last_warning = None;
        loop {
            tokio::select! {
                ended = &mut run => {
                    let why = match ended {
                        Ok(()) => "it was stopped".to_owned(),
                        Err(error) => last_warning.unwrap_or_else(|| error.to_string()),
                    };
                    self.shared.trouble(format!("no peer to be reached: {why}; trying again"));
                    return had_peers;
                }
                Some(event) = event_rx.recv() => self.take(event),
                Some(info) = info_rx.recv() => {
                    if matches!(info, Info::SuccessfulHandshake) {
                        had_peers = true;
                        self.shared.trouble(None);
                    }
                }
                Some(warning) = warn_rx.recv() => {
                    debug!(%warning, "the light node");
                    if !matches!(warning, Warning::NeedConnections { .. }) {
                        last_warning = Some(warning.to_string());
                    }
                }
                ask = self.questions.recv() => match ask {
                    Some(ask) => {
                        tokio::spawn(answer(requester.clone(), ask));
                    }
                    None => return had_peers,
                },
            }
        }
    }

    fn take(&self, event: Event) {
        let mut seen = self.shared.seen();
        match event {
            Event::ChainUpdate(BlockHeaderChanges::Connected(header)) => {
                seen.connected(header.height, header.header);
            }
            Event::ChainUpdate(BlockHeaderChanges::Reorganized {
                accepted,
                reorganized,
            }) => {
                let lowest = reorganized
                    .iter()
                    .chain(&accepted)
                    .map(|it| it.height)
                    .min();
                if let Some(lowest) = lowest {
                    let accepted = accepted.into_iter().map(|it| (it.height, it.header));
                    seen.reorganised(lowest, accepted.collect());
                }
            }
            Event::ChainUpdate(BlockHeaderChanges::ForkAdded(_)) => {}
            Event::IndexedFilter(filter) => {
                let (height, hash) = (filter.height(), filter.block_hash());
                seen.filtered(height, hash, filter.block_filter());
            }
            Event::FiltersSynced(_) => seen.completed(),
        }
    }
}

/// Answers that there is nobody to ask.
fn refuse(ask: Ask) {
    fn nobody<T>(answer: &Answer<T>) {
        let _ = answer.try_send(Err("no peer to ask; trying again".to_owned()));
    }
    match ask {
        Ask::Header(_, answer) => nobody(&answer),
        Ask::Block(_, answer) => nobody(&answer),
        Ask::Paid(_, answer) | Ask::Floor(answer) => nobody(&answer),
        Ask::Offer(_, answer) => nobody(&answer),
    }
}

/// Passes one question on. Whoever asked may have lost patience.
async fn answer(requester: Requester, ask: Ask) {
    match ask {
        Ask::Header(height, answer) => {
            let header = requester.get_header(height).await;
            let block = header.map(|header| {
                header.map(|header| BlockId {
                    height,
                    hash: header.block_hash(),
                })
            });
            let _ = answer.try_send(block.map_err(|error| error.to_string()));
        }
        Ask::Block(hash, answer) => {
            let fetched = tokio::time::timeout(PATIENCE, requester.get_block(hash)).await;
            let block = match fetched {
                Ok(Ok(block)) => Ok(block.block),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no peer has the block".to_owned()),
            };
            let _ = answer.try_send(block);
        }
        Ask::Paid(hash, answer) => {
            let paid = tokio::time::timeout(PATIENCE, requester.average_fee_rate(hash)).await;
            let paid = match paid {
                Ok(Ok(feerate)) => Ok(feerate),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no peer has the block".to_owned()),
            };
            let _ = answer.try_send(paid);
        }
        Ask::Floor(answer) => {
            let floor = requester.broadcast_min_feerate().await;
            let _ = answer.try_send(floor.map_err(|error| error.to_string()));
        }
        Ask::Offer(transactions, answer) => {
            let offers = match <[Transaction; 2]>::try_from(transactions) {
                Ok([parent, child]) => {
                    match Package::new_one_parent_one_child(parent.clone(), child.clone()) {
                        Ok(package) => vec![package],
                        Err(_) => vec![parent.into(), child.into()],
                    }
                }
                Err(transactions) => transactions.into_iter().map(Package::from).collect(),
            };
            for package in offers {
                // It is offered to every peer that comes, and answered when one takes it. Those who
                // have it already never do.
                tokio::spawn({
                    let requester = requester.clone();
                    async move { requester.submit_package(package).await }
                });
            }
            let _ = answer.try_send(Ok(()));
        }
    }
}
