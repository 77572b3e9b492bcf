//! Which connection a session stream is opened on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::super::address::is_relayed;
use super::super::counters::Counters;
use super::super::stream::{InboundStream, MeshStream, OpenError};
use super::handler::{Handler, ToHandler};
use super::in_use::InUse;
use crate::protocol::hello::Hello;

/// Streams in the opening at once, to all nodes: fifty sessions starting together.
const MAX_OPENINGS: usize = 256;

/// A stream this node wants, and whoever waits for it.
///
/// However it is dropped, the one who waits is told: dropping it unfinished, as happens when a
/// connection closes, tells that the stream broke.
pub(crate) struct Opening {
    hello: Hello,
    reply: Option<oneshot::Sender<Result<MeshStream, OpenError>>>,
    counters: Arc<Counters>,
    /// Given back when the opening ends.
    permit: Option<OwnedSemaphorePermit>,
}

impl Opening {
    pub(crate) const fn hello(&self) -> Hello {
        self.hello
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub(crate) fn finish(mut self, result: Result<MeshStream, OpenError>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<MeshStream, OpenError>) {
        if let Some(reply) = self.reply.take() {
            if result.is_err() {
                self.counters.streams_failed.add_one();
            }
            self.permit = None;
            // Nobody waiting any more drops the stream, which resets it.
            let _ = reply.send(result);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.tell(Err(OpenError::Broken));
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening")
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

/// A stream another node opened.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) peer: PeerId,
    pub(crate) stream: InboundStream,
}

/// A connection a stream could be opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    id: ConnectionId,
    relayed: bool,
}

pub(crate) struct Behaviour {
    protocol: StreamProtocol,
    timeout: Duration,
    /// In order of establishment. Holds connected nodes only.
    paths: HashMap<PeerId, Vec<Path>>,
    protected: HashSet<PeerId>,
    in_use: InUse,
    openings: Arc<Semaphore>,
    /// Bounded by the openings there can be, the nodes protected, and one swarm's poll of inbound
    /// streams: it is emptied before the next connection is looked at.
    events: VecDeque<ToSwarm<Event, ToHandler>>,
    waker: Option<Waker>,
    counters: Arc<Counters>,
}

impl Behaviour {
    pub(crate) fn new(
        protocol: StreamProtocol,
        timeout: Duration,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            protocol,
            timeout,
            paths: HashMap::new(),
            protected: HashSet::new(),
            in_use: InUse::default(),
            openings: Arc::new(Semaphore::new(MAX_OPENINGS)),
            events: VecDeque::new(),
            waker: None,
            counters,
        }
    }

    /// Takes a wish for a stream; `None` if there are too many, which the one who waits is told.
    pub(crate) fn opening(
        &self,
        hello: Hello,
        reply: oneshot::Sender<Result<MeshStream, OpenError>>,
    ) -> Option<Opening> {
        let permit = Arc::clone(&self.openings).try_acquire_owned().ok();
        let has_room = permit.is_some();
        let opening = Opening {
            hello,
            reply: Some(reply),
            counters: Arc::clone(&self.counters),
            permit,
        };
        if has_room {
            Some(opening)
        } else {
            opening.finish(Err(OpenError::TooMany));
            None
        }
    }

    /// Opens a stream on the best connection with `peer`.
    ///
    /// Returns the opening if there is no connection: the caller dials and comes again.
    pub(crate) fn open(&mut self, peer: PeerId, opening: Opening) -> Option<Opening> {
        let Some(path) = self.paths.get(&peer).and_then(|paths| best(paths)) else {
            return Some(opening);
        };
        self.push(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(path.id),
            event: ToHandler::Open(opening),
        });
        None
    }

    /// Keeps connections with `peer` although they are idle. The caller bounds how many there are.
    pub(crate) fn protect(&mut self, peer: PeerId) {
        if self.protected.insert(peer) {
            self.keep_alive(peer, true);
        }
    }

    pub(crate) fn unprotect(&mut self, peer: PeerId) {
        if self.protected.remove(&peer) {
            self.keep_alive(peer, false);
        }
    }

    /// Whether session streams are open with `peer`.
    pub(crate) fn is_in_use(&self, peer: &PeerId) -> bool {
        self.in_use.contains(peer)
    }

    fn keep_alive(&mut self, peer: PeerId, keep_alive: bool) {
        let paths = self.paths.get(&peer).cloned().unwrap_or_default();
        for path in paths {
            self.push(ToSwarm::NotifyHandler {
                peer_id: peer,
                handler: NotifyHandler::One(path.id),
                event: ToHandler::KeepAlive(keep_alive),
            });
        }
    }

    fn push(&mut self, event: ToSwarm<Event, ToHandler>) {
        self.events.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(&self, peer: &PeerId) -> Handler {
        Handler::new(
            *peer,
            self.protocol.clone(),
            self.timeout,
            self.protected.contains(peer),
            self.in_use.clone(),
            Arc::clone(&self.counters),
        )
    }
}

/// Direct before relayed, then the newest.
fn best(paths: &[Path]) -> Option<Path> {
    let newest = |relayed| paths.iter().rev().find(move |path| path.relayed == relayed);
    newest(false).or_else(|| newest(true)).copied()
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => self.paths.entry(peer_id).or_default().push(Path {
                id: connection_id,
                relayed: is_relayed(endpoint.get_remote_address()),
            }),
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => {
                if let Some(paths) = self.paths.get_mut(&peer_id) {
                    paths.retain(|path| path.id != connection_id);
                    if paths.is_empty() {
                        self.paths.remove(&peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        stream: THandlerOutEvent<Self>,
    ) {
        self.push(ToSwarm::GenerateEvent(Event { peer, stream }));
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(id: usize, relayed: bool) -> Path {
        Path {
            id: ConnectionId::new_unchecked(id),
            relayed,
        }
    }

    fn behaviour() -> Behaviour {
        Behaviour::new(
            StreamProtocol::new("/test/session/1"),
            Duration::from_secs(1),
            Arc::default(),
        )
    }

    const HELLO: Hello = Hello {
        lease: [1; 32],
        index: 0,
    };

    #[test]
    fn a_direct_connection_is_preferred_and_among_those_the_newest() {
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[path(1, true)]), Some(path(1, true)));
        assert_eq!(
            best(&[path(1, false), path(2, false), path(3, true)]),
            Some(path(2, false))
        );
    }

    #[test]
    fn openings_beyond_the_bound_are_told_so_and_room_comes_back() {
        let behaviour = behaviour();
        let mut waiting = Vec::new();
        let mut openings = Vec::new();
        for _ in 0..MAX_OPENINGS {
            let (reply, answer) = oneshot::channel();
            openings.push(behaviour.opening(HELLO, reply).unwrap());
            waiting.push(answer);
        }

        let (reply, mut answer) = oneshot::channel();
        assert!(behaviour.opening(HELLO, reply).is_none());
        assert_eq!(answer.try_recv().unwrap().unwrap_err(), OpenError::TooMany);

        openings.clear();
        let told = waiting[0].try_recv().unwrap().unwrap_err();
        assert_eq!(told, OpenError::Broken);
        let (reply, _answer) = oneshot::channel();
        assert!(behaviour.opening(HELLO, reply).is_some());
    }

    #[test]
    fn an_opening_without_a_connection_comes_back_to_the_caller() {
        let mut behaviour = behaviour();
        let (reply, mut answer) = oneshot::channel();
        let opening = behaviour.opening(HELLO, reply).unwrap();

        let back = behaviour.open(PeerId::random(), opening);

        assert!(back.is_some());
        assert!(answer.try_recv().is_err(), "nobody is told yet");
    }
}
