//! One connection's part in session streams.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
};
use libp2p::{PeerId, Stream, StreamProtocol};

use super::super::counters::Counters;
use super::super::stream::{InboundStream, MeshStream, OpenError};
use super::behaviour::Opening;
use super::in_use::InUse;
use super::upgrade::{Listen, Open, OpenFailure};
use crate::protocol::message::RefusalCode;

/// Streams of one connection that have said hello and wait for the swarm to take them. It takes them
/// at once unless it is behind; a session has 5.
const MAX_WAITING: usize = 32;

/// What the behaviour tells a connection.
#[derive(Debug)]
pub(crate) enum ToHandler {
    Open(Opening),
    KeepAlive(bool),
}

pub(crate) struct Handler {
    peer: PeerId,
    protocol: StreamProtocol,
    timeout: Duration,
    keep_alive: bool,
    in_use: InUse,
    /// Bounded by the openings there can be at all.
    to_open: VecDeque<Opening>,
    /// At most [`MAX_WAITING`].
    opened: VecDeque<InboundStream>,
    counters: Arc<Counters>,
}

impl Handler {
    pub(crate) fn new(
        peer: PeerId,
        protocol: StreamProtocol,
        timeout: Duration,
        keep_alive: bool,
        in_use: InUse,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            peer,
            protocol,
            timeout,
            keep_alive,
            in_use,
            to_open: VecDeque::new(),
            opened: VecDeque::new(),
            counters,
        }
    }

    fn mesh_stream(&self, stream: Stream) -> MeshStream {
        MeshStream::new(stream, self.in_use.begin(self.peer))
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = ToHandler;
    type ToBehaviour = InboundStream;
    type InboundProtocol = Listen;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opening;

    fn listen_protocol(&self) -> SubstreamProtocol<Listen> {
        let listen = Listen {
            protocol: self.protocol.clone(),
        };
        SubstreamProtocol::new(listen, ()).with_timeout(self.timeout)
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn on_behaviour_event(&mut self, event: ToHandler) {
        match event {
            ToHandler::Open(opening) => self.to_open.push_back(opening),
            ToHandler::KeepAlive(keep_alive) => self.keep_alive = keep_alive,
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Open, Opening, InboundStream>> {
        if let Some(stream) = self.opened.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(stream));
        }
        while let Some(opening) = self.to_open.pop_front() {
            if opening.is_abandoned() {
                continue;
            }
            let open = Open {
                protocol: self.protocol.clone(),
                hello: opening.hello(),
            };
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(open, opening).with_timeout(self.timeout),
            });
        }
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Listen, Open, (), Opening>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (hello, stream),
                info: (),
            }) => {
                let stream = InboundStream::new(hello, self.mesh_stream(stream));
                if self.opened.len() < MAX_WAITING {
                    self.opened.push_back(stream);
                } else {
                    self.counters.streams_overflowed.add_one();
                    stream.refuse(RefusalCode::Busy);
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: opening,
            }) => opening.finish(Ok(self.mesh_stream(stream))),
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: opening,
                error,
            }) => opening.finish(Err(match error {
                StreamUpgradeError::Timeout => OpenError::Timeout,
                StreamUpgradeError::Apply(OpenFailure::Refused(code)) => OpenError::Refused(code),
                StreamUpgradeError::Apply(OpenFailure::Io) | StreamUpgradeError::Io(_) => {
                    OpenError::Broken
                }
                StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
            })),
            _ => {}
        }
    }
}
