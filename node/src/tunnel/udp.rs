//! UDP associations: datagrams between one application and any number of peers.
//!
//! An association is a flow of UDP frames. Datagrams are never queued for credit, rate or lane: one
//! that cannot go now is lost, as on any other path.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::destination::Destination;
use super::ending::Violation;
use super::flow::Entry;
use super::frame::{Frame, MAX_PAYLOAD};
use super::link::{Link, Seat};

mod buyer;
mod seller;

pub(super) use buyer::relay;
pub(super) use seller::open as open_at_seller;

/// An association without a datagram for this long ends at the seller.
const IDLE: Duration = Duration::from_secs(60);

/// Peers that one association may talk to. Only they are heard (restricted cone); a peer-to-peer
/// application that wants more opens another association.
const MAX_CONTACTS: usize = 1024;

/// The largest UDP datagram, and so the size of every buffer that one is received into.
const MAX_DATAGRAM: usize = 64 * 1024;

/// An association, shared by its own task and the reader of its lane.
pub(super) struct Association {
    seat: Seat,
    link: Arc<Link>,
    ends: Mutex<Ends>,
    given_up: AtomicBool,
    wake: Notify,
    side: Side,
}

#[derive(Default)]
struct Ends {
    sent: bool,
    received: bool,
}

enum Side {
    Buyer(buyer::Side),
    Seller(seller::Side),
}

impl Association {
    fn new(seat: Seat, link: Arc<Link>, side: Side) -> Arc<Self> {
        Arc::new(Self {
            seat,
            link,
            ends: Mutex::default(),
            given_up: AtomicBool::new(false),
            wake: Notify::new(),
            side,
        })
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A datagram arrived on the lane. Never waits.
    pub(super) fn on_datagram(
        &self,
        peer: &Destination,
        datagram: &[u8],
        billed: usize,
    ) -> Result<(), Violation> {
        let (meter, direction) = (self.link.meter(), self.link.inbound_direction());
        let billed = billed as u64;
        let sent_end = {
            let ends = self.ends();
            if ends.received {
                return Err(Violation::Unsolicited(self.seat.id));
            }
            ends.sent
        };
        match &self.side {
            Side::Buyer(side) => {
                if !side.has_contacted(peer) {
                    return Err(Violation::Unsolicited(self.seat.id));
                }
                let counted = meter.charge(direction, billed);
                meter.owe(direction, billed - counted);
                if counted > 0 && !sent_end {
                    side.deliver(peer, datagram);
                }
            }
            Side::Seller(side) => {
                let rate = self.link.try_rate(datagram.len());
                if sent_end || rate.is_none() || !meter.try_take_whole(direction, billed) {
                    meter.owe(direction, billed);
                    return Ok(());
                }
                if let Some(rate) = rate {
                    rate.commit(datagram.len());
                }
                side.send(peer, datagram);
                self.wake.notify_one();
            }
        }
        Ok(())
    }

    /// The peer has ended its half; this side ends with it.
    pub(super) fn on_end(&self) -> Result<Entry, Violation> {
        {
            let mut ends = self.ends();
            if ends.received {
                return Err(Violation::WrongState(self.seat.id));
            }
            ends.received = true;
            if !std::mem::replace(&mut ends.sent, true) {
                self.say_end();
            }
        }
        self.give_up();
        Ok(Entry::Done)
    }

    /// Ends this side. What is still on its way here is counted and dropped.
    fn end(&self, last: &Frame<'_>) {
        let entry = {
            let mut ends = self.ends();
            if !std::mem::replace(&mut ends.sent, true) {
                // If the lane is gone, so is the association.
                let _ = self.link.lane(self.seat.lane).push(self.seat.id, last);
            }
            if ends.received {
                Entry::Done
            } else {
                Entry::Kept
            }
        };
        if entry == Entry::Done {
            self.link.forget(self.seat.lane, self.seat.id);
        }
        self.give_up();
    }

    fn say_end(&self) {
        let _ = self
            .link
            .lane(self.seat.lane)
            .push(self.seat.id, &Frame::Fin);
    }

    /// Stops the association's task.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, SeqCst);
        self.wake.notify_one();
    }

    fn has_given_up(&self) -> bool {
        self.given_up.load(SeqCst)
    }

    /// Sends a datagram if rate, credit and lane allow it now; counts it only then.
    fn try_send(&self, peer: &Destination, datagram: &[u8]) {
        let billed = peer.encoded_len() + datagram.len();
        if billed > MAX_PAYLOAD || self.has_given_up() {
            return;
        }
        let direction = self.link.outbound_direction();
        let meter = self.link.meter();
        let Some(credit) = meter.try_reserve(direction, billed as u64) else {
            return;
        };
        let frame = Frame::Udp {
            peer: peer.clone(),
            datagram,
            billed,
        };
        let lane = self.link.lane(self.seat.lane);
        lane.try_push_lossy(self.seat.id, &frame, || {
            meter.commit_whole(credit, billed as u64)
        });
    }
}

/// How many associations a session has.
pub(super) type Count = AtomicUsize;

/// One of a limited number of associations, for as long as it lives.
pub(super) struct Slot(Arc<Count>);

impl Slot {
    pub(super) fn take(count: &Arc<Count>, max: usize) -> Option<Self> {
        let taken = count.fetch_update(SeqCst, SeqCst, |n| (n < max).then_some(n + 1));
        taken.is_ok().then(|| Self(Arc::clone(count)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
