//! The network of nodes: finding them, gossip, requests and session streams.
//!
//! One task owns libp2p's swarm. The rest of the node tells it [`Command`]s and hears [`Event`]s, both
//! through bounded queues, and knows other nodes as [`NodeId`] only: no type of libp2p leaves this
//! room.
//!
//! **When the driver is slow** the queue of events fills, and the mesh never waits for it. It keeps
//! what must not be lost (connections, answers to requests) in lists that are bounded by what the
//! driver itself asked for, answers new requests and streams with [`RefusalCode::Busy`], and ignores
//! gossip, which comes again. [`Counters`] tells how often.
//!
//! **Order.** [`Event::Connected`] comes before anything else of that node, and
//! [`Event::Disconnected`] after it. A request, once given to the mesh, has exactly one
//! [`Event::Response`].
//!
//! [`RefusalCode::Busy`]: crate::protocol::RefusalCode::Busy

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use bitmesh_market::identity::NodeId;

use crate::protocol::{Cell, Hello, Request, Response, Topic};

mod address;
mod behaviour;
mod bucket;
mod config;
mod counters;
mod discovery;
mod gossip;
mod limits;
mod outbox;
mod peers;
mod reach;
mod redial;
mod resolve;
mod rpc;
mod stream;
mod streams;
mod task;
mod transport;

pub use address::{Address, AddressError};
pub use config::{
    Config, ConfigError, DEFAULT_PORT, DhtMode, GossipConfig, LimitsConfig, MdnsConfig,
    TimeoutsConfig,
};
pub use counters::{Counters, CountersSnapshot};
pub use stream::{InboundStream, MeshStream, OpenError};
pub use task::{StartError, start};

/// Commands waiting for the mesh. The driver sends a handful per event; when the mesh cannot keep up
/// even so, the driver is told and nothing grows.
const COMMANDS: usize = 256;

/// Events waiting for the driver. At the largest request of 24 KiB each this is 12 MiB; a burst of
/// gossip of a few hundred offers fits.
const EVENTS: usize = 512;

/// The driver's own number for a request, given back with the answer. Must not be in use twice at
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The mesh's number for a request from another node that waits for an answer. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboundId(pub(crate) u64);

/// The mesh's number for a gossiped message that waits for a verdict. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub(crate) u64);

/// What the driver made of a gossiped message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Good: pass it on.
    Accept,
    /// Not wanted, and nobody's fault: drop it.
    Ignore,
    /// Bad, and whoever passed it on should have seen that: drop it and lower their score.
    Reject,
}

/// What the driver tells the mesh to do.
#[derive(Debug)]
pub enum Command {
    /// Take part in a topic. At most [`MAX_TOPICS`]; more are counted as refused.
    Subscribe(Topic),
    /// Leave a topic.
    Unsubscribe(Topic),
    /// Gossip a message of this node. Above the cap of gossip it is dropped and counted. Nobody
    /// listening is no error: who comes later asks.
    Publish {
        /// Where.
        topic: Topic,
        /// What, signed by its own rules.
        bytes: Vec<u8>,
    },
    /// Judge a message that came with [`Event::Gossip`]. Too late is no error.
    Verdict {
        /// Which.
        message: MessageId,
        /// Good or bad.
        verdict: Verdict,
    },
    /// Ask another node. Dials it if need be. Answered by one [`Event::Response`].
    Request {
        /// The driver's number.
        id: RequestId,
        /// Whom.
        to: NodeId,
        /// What.
        request: Request,
    },
    /// Answer a request that came with [`Event::Request`]. Too late is no error.
    Respond {
        /// Which.
        inbound: InboundId,
        /// What.
        response: Response,
    },
    /// Connect to a node at an address that the operator named, which must end in `/p2p/…`. Dialled
    /// wherever it leads.
    Dial(Address),
    /// Connect to a node at an address that a stranger told, for example in an offer. Dialled only if
    /// it is of the public Internet, or private ones are allowed, and no more often than addresses of
    /// strangers are.
    DialTold(Address),
    /// Connect to a node wherever it is: at addresses heard of, else by asking the hash table.
    Connect(NodeId),
    /// Close all connections with a node. Does not hold if the node is protected or dials again.
    Disconnect(NodeId),
    /// Keep connected with a node, whose session matters: never close for idleness or limits, dial
    /// again when lost. At most [`MAX_PROTECTED`]; counted, so every call needs its
    /// [`Unprotect`](Self::Unprotect).
    Protect(NodeId),
    /// Take back one [`Protect`](Self::Protect).
    Unprotect(NodeId),
    /// Let the hash table name this node as one of a cell. At most [`MAX_TOPICS`] cells.
    Provide(Cell),
    /// Let the hash table forget it, in time.
    StopProviding(Cell),
    /// Ask the hash table for nodes of a cell and connect to some. Answered by [`Event::Providers`].
    FindProviders(Cell),
    /// Open a session stream, direct connections first. Dials if need be.
    OpenStream {
        /// To whom.
        to: NodeId,
        /// For which session.
        hello: Hello,
        /// Told once: the accepted stream, or why there is none.
        reply: oneshot::Sender<Result<MeshStream, OpenError>>,
    },
    /// What this node thinks of another, from its own dealings: added to its gossip score. 0 is
    /// neutral, −100 excludes it from gossip.
    SetScore {
        /// Whom.
        node: NodeId,
        /// −100 to 100; cut to that.
        score: i32,
    },
    /// Tell how the mesh stands.
    Inspect(oneshot::Sender<Snapshot>),
}

/// What the mesh tells the driver.
#[derive(Debug)]
pub enum Event {
    /// This node listens at an address.
    Listening(Address),
    /// It does so no more.
    ListeningEnded(Address),
    /// The whole list of addresses under which others are told to reach this node.
    Announced(Vec<Address>),
    /// A node of this network is connected. Ask it for its asks.
    Connected(NodeId),
    /// The last connection with the node is gone.
    Disconnected(NodeId),
    /// A message came and waits for a verdict.
    Gossip {
        /// The neighbour who passed it on, not its author.
        from: NodeId,
        /// For the verdict.
        message: MessageId,
        /// Where.
        topic: Topic,
        /// What. At most 2 KiB; nothing else has been checked.
        bytes: Vec<u8>,
    },
    /// Another node asks.
    Request {
        /// Who.
        from: NodeId,
        /// For the answer.
        inbound: InboundId,
        /// What.
        request: Request,
    },
    /// A request of this node was answered, or never will be.
    Response {
        /// The driver's number.
        id: RequestId,
        /// What came of it.
        result: Result<Response, RequestError>,
    },
    /// The hash table's answer: at most [`MAX_PROVIDERS`] nodes, none of which has been proved to be
    /// there.
    Providers {
        /// Where.
        cell: Cell,
        /// Who, without this node.
        nodes: Vec<NodeId>,
    },
    /// Another node opened a session stream. It waits for [`InboundStream::accept`] or
    /// [`InboundStream::refuse`].
    Stream {
        /// Who.
        from: NodeId,
        /// The stream.
        stream: InboundStream,
    },
}

/// Most topics and cells a node takes part in: its own and the eight around it, and some regions.
pub const MAX_TOPICS: usize = 32;

/// Most nodes protected at once: more sessions than a node carries.
pub const MAX_PROTECTED: usize = 1024;

/// Most nodes in one answer of the hash table.
pub const MAX_PROVIDERS: usize = 64;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No connection could be made, or no address is known.
    #[error("the node cannot be reached")]
    Unreachable,
    /// No answer in time. The other node may have done what was asked.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke. The other node may have done what was asked.
    #[error("the connection broke before the answer came")]
    Broken,
    /// The other node speaks another version or does not take requests.
    #[error("the node does not speak this protocol")]
    Unsupported,
    /// The other node's answer, or the driver's request, broke the rules of its encoding.
    #[error("the message broke the protocol: {0}")]
    Protocol(String),
    /// This node has too many requests under way, in all or to that node.
    #[error("too many requests are under way")]
    TooMany,
}

/// The mesh does not take the command now.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The queue is full. Try again; nothing was done.
    #[error("the mesh has {COMMANDS} commands waiting")]
    Full(Command),
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Closed(Command),
}

/// How the mesh stands, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// This node.
    pub node: NodeId,
    /// Where it listens.
    pub listening: Vec<Address>,
    /// Where others are told to reach it.
    pub announced: Vec<Address>,
    /// Who is connected.
    pub neighbours: Vec<Neighbour>,
    /// Whether this node answers for the hash table.
    pub dht_server: bool,
    /// Nodes in the hash table's routing table.
    pub dht_nodes: usize,
    /// What happened so far.
    pub counters: CountersSnapshot,
}

/// One connected node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Who.
    pub node: NodeId,
    /// The address of its newest direct connection.
    pub address: Address,
    /// Who dialled.
    pub direction: Direction,
    /// Round trip in microseconds, once measured.
    pub round_trip_us: Option<u64>,
    /// What software it says it runs. From a stranger: at most 64 printable characters.
    pub agent: Option<String>,
    /// Whether a session keeps the connection.
    pub protected: bool,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The other node.
    In,
    /// This node.
    Out,
}

/// The way to tell the mesh. Clones speak to the same mesh; it ends when the last is dropped.
#[derive(Clone, Debug)]
pub struct Mesh {
    node: NodeId,
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
}

impl Mesh {
    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Gives a command without waiting.
    ///
    /// # Errors
    ///
    /// See [`CommandError`]; the command comes back.
    pub fn try_send(&self, command: Command) -> Result<(), CommandError> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(command) => CommandError::Full(command),
                mpsc::error::TrySendError::Closed(command) => CommandError::Closed(command),
            })
    }

    /// Gives a command, waiting for room in the queue.
    ///
    /// # Errors
    ///
    /// [`CommandError::Closed`] if the mesh has ended.
    pub async fn send(&self, command: Command) -> Result<(), CommandError> {
        self.commands
            .send(command)
            .await
            .map_err(|mpsc::error::SendError(command)| CommandError::Closed(command))
    }

    /// Opens a session stream; the same as [`Command::OpenStream`], waited for.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn open_stream(&self, to: NodeId, hello: Hello) -> Result<MeshStream, OpenError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::OpenStream { to, hello, reply };
        self.send(command).await.map_err(|_| OpenError::Ended)?;
        answer.await.unwrap_or(Err(OpenError::Ended))
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> CountersSnapshot {
        self.counters.snapshot()
    }
}

#[cfg(test)]
mod tests;
