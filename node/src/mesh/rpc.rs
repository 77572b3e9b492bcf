//! Requests: which are under way, until when, and how many.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use libp2p::StreamProtocol;
use libp2p::request_response::{
    self, OutboundFailure, OutboundRequestId, ProtocolSupport, ResponseChannel,
};
use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

use super::{InboundId, RequestError, RequestId};
use crate::protocol::codec::FrameCodec;
use crate::protocol::message::{Request, Response};

/// Requests of this node under way at once, in all: three quotes for each of eighty purchases.
const MAX_OURS: usize = 256;

/// Requests of this node under way at once to one node.
const MAX_OURS_PER_NODE: usize = 16;

/// Requests of others that wait for the driver at once, in all. Each may be 24 KiB.
const MAX_THEIRS: usize = 256;

/// Requests of one node that wait for the driver at once.
const MAX_THEIRS_PER_NODE: usize = 8;

/// Streams for requests on one connection at once, of both sides.
const MAX_STREAMS: usize = 32;

pub(crate) type Behaviour = request_response::Behaviour<FrameCodec>;

pub(crate) fn behaviour(protocol: StreamProtocol, timeout: Duration) -> Behaviour {
    request_response::Behaviour::with_codec(
        FrameCodec::default(),
        [(protocol, ProtocolSupport::Full)],
        request_response::Config::default()
            .with_request_timeout(timeout)
            .with_max_concurrent_streams(MAX_STREAMS),
    )
}

/// What a request costs of the asking node's allowance: by the work it makes.
pub(crate) const fn cost(request: &Request) -> u32 {
    match request {
        Request::Rfq(_) => 2,
        Request::Propose(_) => 5,
        Request::Channel(_) => 2,
        // A page is up to 40 KiB for a question of 40 bytes.
        Request::Asks { after: _ } => 10,
    }
}

pub(crate) fn failure(error: OutboundFailure) -> RequestError {
    match error {
        OutboundFailure::DialFailure => RequestError::Unreachable,
        OutboundFailure::Timeout => RequestError::Timeout,
        OutboundFailure::ConnectionClosed => RequestError::Broken,
        OutboundFailure::UnsupportedProtocols => RequestError::Unsupported,
        OutboundFailure::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            RequestError::Protocol(error.to_string())
        }
        OutboundFailure::Io(_) => RequestError::Broken,
    }
}

/// A request of this node.
#[derive(Debug)]
struct Ours {
    id: RequestId,
    to: NodeId,
    /// Until it is sent.
    unsent: Option<Request>,
    wire: Option<OutboundRequestId>,
    deadline: Instant,
}

/// The requests of this node under way.
///
/// Invariant: each is taken out exactly once, by an answer, a failure or its deadline; so each has
/// exactly one end. Numbers grow with time, so the first one has the first deadline.
#[derive(Debug)]
pub(crate) struct Outstanding {
    patience: Duration,
    requests: BTreeMap<u64, Ours>,
    by_wire: HashMap<OutboundRequestId, u64>,
    next: u64,
}

impl Outstanding {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            requests: BTreeMap::new(),
            by_wire: HashMap::new(),
            next: 0,
        }
    }

    /// Takes a request; `false` if there are too many.
    pub(crate) fn add(
        &mut self,
        id: RequestId,
        to: NodeId,
        request: Request,
        now: Instant,
    ) -> bool {
        let to_node = self.requests.values().filter(|ours| ours.to == to).count();
        if self.requests.len() >= MAX_OURS || to_node >= MAX_OURS_PER_NODE {
            return false;
        }
        let number = self.next;
        self.next += 1;
        let ours = Ours {
            id,
            to,
            unsent: Some(request),
            wire: None,
            deadline: now + self.patience,
        };
        self.requests.insert(number, ours);
        true
    }

    /// Takes the next request that waits to be sent to a node, with a number for [`sent`](Self::sent).
    pub(crate) fn unsent(&mut self, to: NodeId) -> Option<(u64, Request)> {
        self.requests
            .iter_mut()
            .filter(|(_, ours)| ours.to == to)
            .find_map(|(number, ours)| Some((*number, ours.unsent.take()?)))
    }

    /// A request is on its way.
    pub(crate) fn sent(&mut self, number: u64, wire: OutboundRequestId) {
        if let Some(ours) = self.requests.get_mut(&number) {
            ours.wire = Some(wire);
            self.by_wire.insert(wire, number);
        }
    }

    /// A request came to its end; `None` if it had one before.
    pub(crate) fn finished(&mut self, wire: OutboundRequestId) -> Option<RequestId> {
        let number = self.by_wire.remove(&wire)?;
        self.requests.remove(&number).map(|ours| ours.id)
    }

    /// The node cannot be reached: takes all that wait to be sent to it.
    pub(crate) fn unreachable(&mut self, to: &NodeId) -> Vec<RequestId> {
        let mut ids = Vec::new();
        self.requests.retain(|_, ours| {
            let waits = ours.to == *to && ours.unsent.is_some();
            if waits {
                ids.push(ours.id);
            }
            !waits
        });
        ids
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.requests
            .first_key_value()
            .map(|(_, ours)| ours.deadline)
    }

    /// Takes one request out whose time is up.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<RequestId> {
        if self.next_deadline()? > now {
            return None;
        }
        let (_, ours) = self.requests.pop_first()?;
        if let Some(wire) = ours.wire {
            self.by_wire.remove(&wire);
        }
        Some(ours.id)
    }
}

#[derive(Debug)]
struct Theirs {
    from: NodeId,
    channel: ResponseChannel<Response>,
    deadline: Instant,
}

/// The requests of others that wait for the driver.
///
/// Invariant: bounded in all and per node; numbers grow with time.
#[derive(Debug)]
pub(crate) struct Inbox {
    patience: Duration,
    requests: BTreeMap<u64, Theirs>,
    next: u64,
}

impl Inbox {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            requests: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes a request; gives the channel back if there are too many.
    pub(crate) fn add(
        &mut self,
        from: NodeId,
        channel: ResponseChannel<Response>,
        now: Instant,
    ) -> Result<InboundId, ResponseChannel<Response>> {
        let of_node = self
            .requests
            .values()
            .filter(|theirs| theirs.from == from)
            .count();
        if self.requests.len() >= MAX_THEIRS || of_node >= MAX_THEIRS_PER_NODE {
            return Err(channel);
        }
        let number = self.next;
        self.next += 1;
        let theirs = Theirs {
            from,
            channel,
            deadline: now + self.patience,
        };
        self.requests.insert(number, theirs);
        Ok(InboundId(number))
    }

    /// Takes the way to answer; `None` if it is too late.
    pub(crate) fn take(&mut self, inbound: InboundId) -> Option<ResponseChannel<Response>> {
        self.requests
            .remove(&inbound.0)
            .map(|theirs| theirs.channel)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.requests
            .first_key_value()
            .map(|(_, theirs)| theirs.deadline)
    }

    /// Drops one request whose time is up, which tells the other node.
    pub(crate) fn expired(&mut self, now: Instant) -> bool {
        match self.next_deadline() {
            Some(deadline) if deadline <= now => self.requests.pop_first().is_some(),
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};

    use super::*;

    fn node(n: u8) -> NodeId {
        Ed25519Signer::from_seed([n; 32]).node_id()
    }

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::from_std(std::time::Instant::now())
    }

    fn rfq() -> Request {
        Request::Rfq(vec![])
    }

    #[test]
    fn requests_are_bounded_per_node_and_in_all() {
        let mut outstanding = Outstanding::new(Duration::from_secs(10));
        let t0 = epoch();

        let mut taken = 0;
        for n in 0..40 {
            for _ in 0..20 {
                if outstanding.add(RequestId(0), node(n), rfq(), t0) {
                    taken += 1;
                }
            }
            assert!(taken <= (usize::from(n) + 1) * MAX_OURS_PER_NODE);
        }

        assert_eq!(taken, MAX_OURS);
    }

    #[test]
    fn every_request_has_exactly_one_end() {
        let mut outstanding = Outstanding::new(Duration::from_secs(10));
        let t0 = epoch();
        assert!(outstanding.add(RequestId(1), node(1), rfq(), t0));
        assert!(outstanding.add(RequestId(2), node(2), rfq(), t0));

        assert!(outstanding.unsent(node(1)).is_some());
        assert!(outstanding.unsent(node(1)).is_none());
        assert_eq!(outstanding.unreachable(&node(1)), []);
        assert_eq!(outstanding.unreachable(&node(2)), [RequestId(2)]);

        let deadline = outstanding.next_deadline().unwrap();
        assert_eq!(outstanding.expired(deadline), Some(RequestId(1)));
        assert_eq!(outstanding.expired(deadline), None);
        assert_eq!(outstanding.next_deadline(), None);
        assert!(outstanding.by_wire.is_empty());
    }
}
