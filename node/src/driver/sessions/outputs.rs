//! What a session's machine wants done, performed in order.

use std::sync::Arc;

use bitmesh_market::envelope::Signed;
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::{Ending, Event, Output};
use bitmesh_market::units::Msat;
use bitmesh_wallet::keys::Role;
use tracing::{debug, info, warn};

use super::super::closed::ClosedLease;
use super::super::{Driver, Wake, words};
use super::End;
use crate::control::api;
use crate::link::{Frame, LinkEvent};
use crate::mesh::Command;
use crate::records::Kind;
use crate::tunnel::Meter;
use crate::tunnel::ingress::Notice;

impl Driver {
    /// Performs everything a session's machine asks for, in order.
    pub(in crate::driver) fn drain_session(&mut self, id: LeaseId) {
        let mut ended = None;
        loop {
            if self.broken {
                // What could not be written is not spoken of.
                return;
            }
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            let Some(output) = session.poll_output() else {
                break;
            };
            match output {
                Output::Start(reading) => {
                    if session.reading() != reading {
                        session.meter_watch.abort();
                        session.meter = Arc::new(Meter::new(reading));
                        let meter = Arc::clone(&session.meter);
                        let watch = self.watch_meter(id, meter);
                        if let Some(session) = self.sessions.get_mut(&id) {
                            session.meter_watch = watch;
                        }
                    }
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.may_flow = true;
                    }
                    self.start_tunnel(id);
                }
                Output::SetLimit(total) => session.meter.set_limit(total),
                Output::SetMark(total) => session.meter.set_mark(total),
                Output::Stop => {
                    let now = self.clock.now();
                    session.cut_tunnel();
                    if session.running.is_some() {
                        session.is_stopping = true;
                    } else {
                        let reading = session.reading();
                        session.stopped(reading, now);
                    }
                }
                Output::Pay { total } => {
                    let (peer, now) = (session.peer, self.clock.now());
                    self.payments.pay(peer, total, now);
                }
                Output::Send(message) => {
                    let sealed = Signed::seal(message, &self.signer, self.network);
                    if let Some(link) = &session.link
                        && link
                            .send(Frame::Session(sealed.as_bytes().to_vec()))
                            .is_err()
                    {
                        let (attempt, wakes) = (session.attempt, self.wakes.clone());
                        tokio::spawn(async move {
                            let event = LinkEvent::Broken;
                            let _ = wakes
                                .send(Wake::Link {
                                    lease: id,
                                    attempt,
                                    event,
                                })
                                .await;
                        });
                    }
                }
                Output::Persist(record) => {
                    let bytes = record.to_bytes();
                    self.persist(Kind::Session, &bytes);
                }
                Output::Notify(event) => {
                    if let Event::Closed(ending) = &event {
                        ended = Some(*ending);
                    }
                    self.session_event(id, event);
                }
            }
        }
        if let Some(ending) = ended {
            self.end_session(id, ending);
        }
    }

    fn session_event(&mut self, id: LeaseId, event: Event) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match event {
            Event::Paused(reason) => {
                info!(lease = %id.short(), ?reason, "paused");
                if let End::Buyer { ingress, .. } = &mut session.end {
                    ingress.set_notice(Some(Notice(words::pause_notice(reason, id))));
                }
                let lease = self.lease_view(id);
                self.tell(lease.map(|lease| api::Event::LeasePaused { lease }));
            }
            Event::Resumed => {
                info!(lease = %id.short(), "carrying");
                if let End::Buyer { ingress, .. } = &mut session.end {
                    ingress.set_notice(None);
                }
                let lease = self.lease_view(id);
                self.purchase_carries(id);
                self.tell(lease.map(|lease| api::Event::LeaseResumed { lease }));
            }
            Event::Extended { .. } => {
                let (role, peer, quota) = (session.role(), session.peer, session.quota());
                let reach = session.lease().price().cost_of(quota);
                if role == Role::Payer {
                    let reach = reach.unwrap_or(Msat::MAX);
                    self.payments.lease_extended(peer, reach);
                }
                self.extension_answered(id);
            }
            Event::NotExtended { .. } => self.extension_answered(id),
            Event::Receipted(receipt) => {
                session.receipted = Some(receipt);
                let usage = self.usage_line(id);
                self.tell(usage.map(|usage| api::Event::Usage { usage }));
            }
            Event::PayFailed(failure) => warn!(lease = %id.short(), ?failure, "a payment failed"),
            Event::Ignored(fault) => debug!(lease = %id.short(), ?fault, "a message was ignored"),
            Event::Closed(ending) => {
                info!(lease = %id.short(), reason = ?ending.reason, signatures = ?ending.signatures, "closed");
            }
        }
    }

    /// The machine has ended: settle the account and let go of everything.
    fn end_session(&mut self, id: LeaseId, ending: Ending) {
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        let (role, peer) = (session.role(), session.peer);
        session.link = None;
        session.cut_tunnel();
        self.payments.lease_over(role, peer, id, ending.billed());
        if !self.sessions.values().any(|other| other.peer == peer) {
            self.mesh_do(Command::Unprotect(peer));
        }
        let channel = self
            .payments
            .channel_in_use(role, peer)
            .map(|channel| channel.id);
        let (lease, opened_at) = (session.lease().clone(), session.opened_at);
        let quota = session.quota();
        self.closed.add(ClosedLease {
            lease,
            role,
            opened_at,
            quota,
            ending,
            channel,
        });
        let lease = self.lease_view(id);
        self.purchase_failed(id, ending.reason);
        self.close_answered(id);
        self.tell(lease.map(|lease| api::Event::LeaseClosed { lease }));
        if role == Role::Payee {
            self.slot_free(id);
            self.restate_offer_if_needed();
        }
    }
}
