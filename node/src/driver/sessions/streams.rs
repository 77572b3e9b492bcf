//! A session's streams: opening them, taking them, losing them.

use std::sync::Arc;
use std::time::Duration;

use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::{CloseReason, Message};
use bitmesh_wallet::channel::message::Message as ChannelMessage;
use bitmesh_wallet::keys::Role;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::super::{Driver, Wake};
use super::{End, REDIAL_FIRST};
use crate::link::{Frame, Link, LinkEvent};
use crate::mesh::{InboundStream, MeshStream, OpenError};
use crate::protocol::{Hello, RefusalCode};
use crate::tunnel::{Ended, LANES};

/// Longest wait between two dials of a broken session; several fit into a session's patience.
const REDIAL_MOST: Duration = Duration::from_secs(5);

impl Driver {
    /// Buyer: opens the control stream and the lanes, in the background.
    pub(super) fn dial_session(&mut self, id: LeaseId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.attempt += 1;
        let (to, attempt, mesh, wakes) = (
            session.peer,
            session.attempt,
            self.mesh.clone(),
            self.wakes.clone(),
        );
        tokio::spawn(async move {
            let lease = *id.as_bytes();
            let open = async {
                // The control stream first: with it the seller forgets the streams of an earlier try.
                let control = mesh.open_stream(to, Hello { lease, index: 0 }).await?;
                let mut lanes = Vec::with_capacity(LANES);
                for index in lane_indexes() {
                    lanes.push(mesh.open_stream(to, Hello { lease, index }).await?);
                }
                Ok::<_, OpenError>((control, lanes))
            };
            let streams = open.await;
            let _ = wakes
                .send(Wake::Dialled {
                    lease: id,
                    attempt,
                    streams,
                })
                .await;
        });
    }

    /// Buyer: the streams are there, or not.
    pub(in crate::driver) fn session_dialled(
        &mut self,
        id: LeaseId,
        attempt: u64,
        streams: Result<(MeshStream, Vec<MeshStream>), OpenError>,
    ) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.attempt != attempt || session.ending().is_some() {
            return;
        }
        let (control, streams) = match streams {
            Ok(streams) => streams,
            Err(error) => {
                debug!(lease = %id, %error, "the session's streams did not open; trying again");
                self.redial_later(id);
                return;
            }
        };
        let wakes = self.wakes.clone();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.link = Some(start_link(control, wakes.clone(), id, attempt));
        session.was_attached = true;
        if let End::Buyer {
            redial_wait, lanes, ..
        } = &mut session.end
        {
            *redial_wait = REDIAL_FIRST;
            *lanes = streams;
        }
        let reading = session.reading();
        session.metered(reading, now);
        session.attached(now);
        let peer = session.peer;
        self.drain_session(id);
        self.payments.connected(peer, now);
    }

    /// Lets flows onto the lanes, once all lanes are there and the machine has said so.
    pub(super) fn start_tunnel(&mut self, id: LeaseId) {
        let wakes = self.wakes.clone();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !session.may_flow {
            return;
        }
        let (attempt, rate) = (session.attempt, session.lease().rate());
        let meter = Arc::clone(&session.meter);
        let ended = move |ended| async move {
            let _ = wakes
                .send(Wake::TunnelEnded {
                    lease: id,
                    attempt,
                    ended,
                })
                .await;
        };
        match &mut session.end {
            End::Buyer { ingress, lanes, .. } if lanes.len() == LANES => {
                let mut attachment = ingress.attach(std::mem::take(lanes), meter);
                tokio::spawn(async move { ended(attachment.ended().await).await });
            }
            End::Seller { lanes, cut }
                if lanes.len() == LANES && lanes.iter().all(Option::is_some) =>
            {
                let token = CancellationToken::new();
                *cut = Some(token.clone());
                let lanes = lanes.drain(..).flatten().collect();
                self.outlet.serve(lanes, meter, rate, token, ended);
            }
            End::Buyer { .. } | End::Seller { .. } => return,
        }
        session.running = Some(attempt);
    }

    fn redial_later(&mut self, id: LeaseId) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let End::Buyer {
            redial_at,
            redial_wait,
            ..
        } = &mut session.end
        {
            *redial_at = now.checked_add(*redial_wait);
            *redial_wait = redial_wait.saturating_mul(2).min(REDIAL_MOST);
        }
    }

    /// Seller: a buyer opens one of a session's streams.
    pub(in crate::driver) fn stream_came(&mut self, from: NodeId, stream: InboundStream) {
        let hello = stream.hello();
        let id = LeaseId::from_bytes(hello.lease);
        let is_ours = self.sessions.get(&id).is_some_and(|session| {
            session.peer == from && session.role() == Role::Payee && session.ending().is_none()
        });
        if !is_ours {
            stream.refuse(RefusalCode::Unknown);
            return;
        }
        let wakes = self.wakes.clone();
        tokio::spawn(async move {
            if let Ok(stream) = stream.accept().await {
                let wake = Wake::StreamOpened {
                    lease: id,
                    index: hello.index,
                    stream,
                };
                let _ = wakes.send(wake).await;
            }
        });
    }

    /// Seller: one of a session's streams is open.
    pub(in crate::driver) fn stream_opened(&mut self, id: LeaseId, index: u8, stream: MeshStream) {
        let now = self.clock.now();
        let wakes = self.wakes.clone();
        if index == 0 {
            // A control stream begins a new connection: whatever is left of the old one is void.
            self.detach_session(id);
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            if session.ending().is_some() {
                return;
            }
            session.attempt += 1;
            session.link = Some(start_link(stream, wakes, id, session.attempt));
            session.was_attached = true;
            let reading = session.reading();
            session.metered(reading, now);
            session.attached(now);
            let peer = session.peer;
            self.drain_session(id);
            self.payments.connected(peer, now);
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let is_attached = session.link.is_some();
        let End::Seller { lanes, cut } = &mut session.end else {
            return;
        };
        let place = usize::from(index).wrapping_sub(1);
        if !is_attached || place >= LANES || cut.is_some() {
            return;
        }
        lanes.resize_with(LANES, || None);
        lanes[place] = Some(stream);
        self.start_tunnel(id);
    }

    /// The control stream said something, or broke.
    pub(in crate::driver) fn link_event(&mut self, id: LeaseId, attempt: u64, event: LinkEvent) {
        if let LinkEvent::Received(Frame::Session(_)) = &event {
            // A voucher stands ahead of this message on the stream, and not behind it: what this side
            // signs in answer says what was paid.
            self.standing.hasten();
            self.drain_payments();
            if self.broken {
                return;
            }
        }
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.attempt != attempt {
            return;
        }
        let peer = session.peer;
        match event {
            LinkEvent::Broken => {
                self.detach_session(id);
                self.redial_later(id);
            }
            LinkEvent::Received(Frame::Session(bytes)) => {
                match Signed::<Message>::verify(&bytes, self.network) {
                    Ok(message) => {
                        // The reading as of now, so that the machine judges by the latest count.
                        let reading = session.reading();
                        session.metered(reading, now);
                        session.received(message, now);
                    }
                    Err(error) => {
                        warn!(lease = %id, %peer, %error, "a session message does not verify");
                        session.close_asked(CloseReason::Violation, now);
                    }
                }
                self.drain_session(id);
            }
            LinkEvent::Received(Frame::Channel(bytes)) => {
                self.channel_bytes(peer, &bytes, None);
            }
        }
    }

    /// The streams are gone.
    fn detach_session(&mut self, id: LeaseId) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.link.is_none() {
            return;
        }
        session.link = None;
        session.cut_tunnel();
        let reading = session.reading();
        session.metered(reading, now);
        session.detached(now);
        self.drain_session(id);
    }

    /// Nothing moves any more in the tunnel of one connection.
    pub(in crate::driver) fn tunnel_ended(&mut self, id: LeaseId, attempt: u64, ended: &Ended) {
        let now = self.clock.now();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.running != Some(attempt) {
            return;
        }
        session.running = None;
        if session.is_stopping {
            session.is_stopping = false;
            let reading = session.reading();
            session.stopped(reading, now);
            self.drain_session(id);
            return;
        }
        if session.attempt != attempt || session.link.is_none() {
            return;
        }
        let role = session.role();
        match ended {
            Ended::Violated(violation) => {
                warn!(lease = %id.short(), %violation, "the other side broke the tunnel's rules");
                self.close_session(id, CloseReason::Violation);
            }
            // It is the buyer who connects again. To the seller, lanes without more may be a buyer
            // that has stopped its flows to close: its last word is still on the control stream.
            Ended::Detached | Ended::LaneLost(_) | Ended::NotReading if role == Role::Payer => {
                debug!(lease = %id.short(), %ended, "the tunnel ended; connecting again");
                self.detach_session(id);
                self.redial_later(id);
            }
            Ended::Detached | Ended::LaneLost(_) | Ended::NotReading => {
                debug!(lease = %id.short(), %ended, "the tunnel ended; the buyer has the word");
            }
        }
    }

    /// Sends a message of the payment channel over the peer's session, if one is attached.
    pub(in crate::driver) fn send_on_session(&self, to: NodeId, message: &ChannelMessage) -> bool {
        let open = self
            .sessions
            .values()
            .find(|session| session.peer == to && session.link.is_some());
        let Some(link) = open.and_then(|session| session.link.as_ref()) else {
            return false;
        };
        link.send(Frame::Channel(message.to_bytes())).is_ok()
    }
}

/// Indexes of the lanes among a session's streams; 0 is the control stream.
fn lane_indexes() -> impl Iterator<Item = u8> {
    (1..).take(LANES)
}

fn start_link(stream: MeshStream, wakes: mpsc::Sender<Wake>, lease: LeaseId, attempt: u64) -> Link {
    Link::start(stream, wakes, move |event| Wake::Link {
        lease,
        attempt,
        event,
    })
}
