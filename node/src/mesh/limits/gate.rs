//! The limits as the first of the swarm's behaviours: what it refuses, no other ever sees.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialFailure, FromSwarm, ListenFailure, NetworkBehaviour,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::super::Direction;
use super::super::address::{host_of, ip_of, is_relayed, node_of};
use super::super::config::LimitsConfig;
use super::super::counters::Counters;
use super::{Carrier, Denied, Limits};

/// Refuses connections above the [`Limits`], and nodes whose key is not ed25519.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: Limits,
    counters: Arc<Counters>,
}

impl Gate {
    pub(crate) fn new(config: LimitsConfig, counters: Arc<Counters>) -> Self {
        Self {
            limits: Limits::new(config),
            counters,
        }
    }

    pub(crate) fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    fn answer(&self, result: Result<(), Denied>) -> Result<(), ConnectionDenied> {
        result.map_err(|denied| {
            self.counters.connections_denied.add_one();
            ConnectionDenied::new(denied)
        })
    }

    fn established(
        &mut self,
        id: ConnectionId,
        peer: &PeerId,
        direction: Direction,
        from: Option<IpAddr>,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.limits.end_pending(id);
        let result = match node_of(peer) {
            None => Err(Denied::NotANode),
            Some(_) => self.limits.check(peer, direction, from),
        };
        self.answer(result)?;
        Ok(dummy::ConnectionHandler)
    }
}

/// The host a connection came from. A relay's address says nothing about who is behind it.
fn host(remote: &Multiaddr) -> Option<IpAddr> {
    if is_relayed(remote) {
        None
    } else {
        ip_of(remote).map(host_of)
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let is_quic = local.iter().any(|part| matches!(part, Protocol::QuicV1));
        let carrier = if is_quic { Carrier::Quic } else { Carrier::Tcp };
        let result = self.limits.begin_in(id, host(remote), carrier);
        self.answer(result)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.established(id, &peer, Direction::In, host(remote))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        _: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let result = self.limits.begin_out(id);
        self.answer(result)?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.established(id, &peer, Direction::Out, None)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                let (direction, from) = match endpoint {
                    ConnectedPoint::Listener { send_back_addr, .. } => {
                        (Direction::In, host(send_back_addr))
                    }
                    ConnectedPoint::Dialer { .. } => (Direction::Out, None),
                };
                self.limits
                    .established(connection_id, peer_id, direction, from);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.limits.closed(connection_id);
            }
            FromSwarm::DialFailure(DialFailure { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.limits.end_pending(connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
