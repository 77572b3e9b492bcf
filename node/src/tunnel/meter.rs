//! The meter: what a session has carried, and how much more it may carry.
//!
//! Both ends of a tunnel keep one each and count the same frames, so that the two agree to the byte
//! once nothing is in flight. Credit is reserved *before* a byte moves and committed when it has
//! moved; a flow without credit waits, which is backpressure and loses nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitmesh_market::units::Bytes;
use tokio::sync::Notify;

use bitmesh_market::session::Reading;

/// No mark is set.
const NO_MARK: u64 = u64::MAX;

/// Which way a byte travels, as the buyer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the buyer to the seller.
    Up,
    /// From the seller to the buyer.
    Down,
}

/// Counts the billed bytes of one session and holds its flows to a limit.
///
/// Invariant: [`reading`](Self::reading)`.total()` is never above the highest limit set so far, not
/// even for an instant, whatever the peer does. Both counts only grow.
///
/// A meter outlives its streams: the same one is given to the tunnel again after a reconnect.
#[derive(Debug)]
pub struct Meter {
    /// Counted bytes plus what open [`Credit`]s hold. This is the one number that flows contend for.
    reserved: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    limit: AtomicU64,
    mark: AtomicU64,
    mark_passed: AtomicBool,
    marked: Notify,
    /// Waiters stand in this queue; only its head listens for `raised`, so order is first come, first
    /// served and a raised limit wakes one task instead of all.
    queue: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    raised: Notify,
    starved: Notify,
    /// Bytes that were carried while no credit was left; counted as soon as the limit allows.
    owed: Mutex<Owed>,
    owes: AtomicBool,
}

#[derive(Debug, Default)]
struct Owed {
    up: u64,
    down: u64,
}

impl Meter {
    /// Starts counting at `start`, with the limit at the same place: nothing flows until
    /// [`set_limit`](Self::set_limit) raises it.
    #[must_use]
    pub fn new(start: Reading) -> Self {
        let total = start.total().get();
        Self {
            reserved: AtomicU64::new(total),
            up: AtomicU64::new(start.up.get()),
            down: AtomicU64::new(start.down.get()),
            limit: AtomicU64::new(total),
            mark: AtomicU64::new(NO_MARK),
            mark_passed: AtomicBool::new(false),
            marked: Notify::new(),
            queue: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            raised: Notify::new(),
            starved: Notify::new(),
            owed: Mutex::default(),
            owes: AtomicBool::new(false),
        }
    }

    /// What has been counted so far. Neither part ever shrinks.
    #[must_use]
    pub fn reading(&self) -> Reading {
        Reading {
            up: Bytes::new(self.up.load(SeqCst)),
            down: Bytes::new(self.down.load(SeqCst)),
        }
    }

    /// The running total at which flows stop.
    #[must_use]
    pub fn limit(&self) -> Bytes {
        Bytes::new(self.limit.load(SeqCst))
    }

    /// Sets the running total (not an increment) at which flows stop, and lets waiting flows go on
    /// if it is above what has been counted.
    ///
    /// A limit below the total stops flows at once; what has been counted stays counted.
    pub fn set_limit(&self, total: Bytes) {
        self.limit.store(total.get(), SeqCst);
        self.credit_changed();
    }

    /// Asks to be told, once, by [`marked`](Self::marked), when the running total reaches `total`.
    ///
    /// Replaces an earlier mark, told or not. A mark at or below the total fires at once.
    pub fn set_mark(&self, total: Bytes) {
        self.mark_passed.store(false, SeqCst);
        self.mark.store(total.get(), SeqCst);
        self.check_mark();
    }

    /// Waits until the total has reached the mark and returns the reading at that time.
    ///
    /// Completes once for each [`set_mark`](Self::set_mark), also when the mark was passed before
    /// this was called. For one listener: the driver. Dropping the future loses nothing.
    pub async fn marked(&self) -> Reading {
        loop {
            if self.mark_passed.swap(false, SeqCst) {
                return self.reading();
            }
            self.marked.notified().await;
        }
    }

    /// Whether a flow is waiting for credit at this moment.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// Waits until a flow has to wait for credit. For one listener: the session's own task.
    pub(super) async fn starved(&self) {
        while !self.is_starved() {
            self.starved.notified().await;
        }
    }

    /// Reserves between 1 and `max` bytes, waiting in line until there is at least one.
    ///
    /// What is reserved may be less than `max` even when more is coming: data is cut there, so that
    /// the count stops at the limit exactly and not a frame before it.
    pub(super) async fn reserve(&self, direction: Direction, max: u64) -> Credit<'_> {
        if let Some(credit) = self.try_reserve(direction, max) {
            return credit;
        }
        let _waiting = Waiting::enter(self);
        let _turn = self.queue.lock().await;
        loop {
            let raised = self.raised.notified();
            if let Some(len) = self.grab(max) {
                return Credit {
                    meter: self,
                    direction,
                    len,
                };
            }
            raised.await;
        }
    }

    /// Reserves between 1 and `max` bytes if they are there and nobody waits for them.
    pub(super) fn try_reserve(&self, direction: Direction, max: u64) -> Option<Credit<'_>> {
        if self.is_starved() {
            return None;
        }
        let len = self.grab(max)?;
        Some(Credit {
            meter: self,
            direction,
            len,
        })
    }

    /// Waits until the limit leaves room for at least one byte and counts `delta` bytes, the part
    /// for which there is no room as [`owe`](Self::owe) does.
    ///
    /// For what cannot be cut: an OPEN, a datagram.
    pub(super) async fn take_whole(&self, direction: Direction, delta: u64) {
        let credit = self.reserve(direction, delta).await;
        self.commit_whole(credit, delta);
    }

    /// As [`take_whole`](Self::take_whole), but returns false and counts nothing where that would
    /// wait.
    pub(super) fn try_take_whole(&self, direction: Direction, delta: u64) -> bool {
        let Some(credit) = self.try_reserve(direction, delta) else {
            return delta == 0;
        };
        self.commit_whole(credit, delta);
        true
    }

    /// Counts `delta` bytes under a credit for some of them, the rest as [`owe`](Self::owe) does.
    pub(super) fn commit_whole(&self, credit: Credit<'_>, delta: u64) {
        let (direction, len) = (credit.direction, credit.len);
        credit.commit(len);
        self.owe(direction, delta - len);
    }

    /// Counts up to `delta` bytes that have arrived, ahead of everyone who waits, and returns how
    /// many the limit had room for.
    pub(super) fn charge(&self, direction: Direction, delta: u64) -> u64 {
        let Some(len) = self.grab(delta) else {
            return 0;
        };
        self.count(direction, len);
        len
    }

    /// Counts `delta` bytes that were carried, now as far as the limit has room and the rest as soon
    /// as it rises, ahead of everyone who waits.
    ///
    /// For bytes that the other end has counted and that are dropped here (a flow that was reset, a
    /// datagram without credit): without it the two meters would disagree for good.
    pub(super) fn owe(&self, direction: Direction, delta: u64) {
        let rest = delta - self.charge(direction, delta);
        if rest == 0 {
            return;
        }
        {
            let mut owed = self.lock_owed();
            let sum = match direction {
                Direction::Up => &mut owed.up,
                Direction::Down => &mut owed.down,
            };
            *sum = sum.saturating_add(rest);
            self.owes.store(true, SeqCst);
        }
        self.settle_owed();
    }

    /// Takes between 1 and `max` bytes out of what the limit leaves.
    fn grab(&self, max: u64) -> Option<u64> {
        let mut reserved = self.reserved.load(SeqCst);
        loop {
            let room = self.limit.load(SeqCst).saturating_sub(reserved);
            let len = room.min(max);
            if len == 0 {
                return None;
            }
            // Cannot wrap: the sum is at most the limit.
            match self
                .reserved
                .compare_exchange_weak(reserved, reserved + len, SeqCst, SeqCst)
            {
                Ok(_) => return Some(len),
                Err(seen) => reserved = seen,
            }
        }
    }

    /// Counts bytes that `reserved` already holds.
    fn count(&self, direction: Direction, len: u64) {
        if len == 0 {
            return;
        }
        match direction {
            Direction::Up => self.up.fetch_add(len, SeqCst),
            Direction::Down => self.down.fetch_add(len, SeqCst),
        };
        self.check_mark();
    }

    fn check_mark(&self) {
        let mark = self.mark.load(SeqCst);
        let total = self.reading().total().get();
        if mark != NO_MARK
            && total >= mark
            && self
                .mark
                .compare_exchange(mark, NO_MARK, SeqCst, SeqCst)
                .is_ok()
        {
            self.mark_passed.store(true, SeqCst);
            self.marked.notify_one();
        }
    }

    fn give_back(&self, len: u64) {
        if len > 0 {
            self.reserved.fetch_sub(len, SeqCst);
            self.credit_changed();
        }
    }

    fn credit_changed(&self) {
        self.settle_owed();
        if self.is_starved() {
            self.raised.notify_one();
        }
    }

    fn settle_owed(&self) {
        if !self.owes.load(SeqCst) {
            return;
        }
        let mut owed = self.lock_owed();
        let up = self.charge(Direction::Up, owed.up);
        owed.up -= up;
        let down = self.charge(Direction::Down, owed.down);
        owed.down -= down;
        self.owes.store(owed.up > 0 || owed.down > 0, SeqCst);
    }

    fn lock_owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes reserved in a [`Meter`] and not yet counted. Dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping credit gives it back"]
pub(super) struct Credit<'a> {
    meter: &'a Meter,
    direction: Direction,
    len: u64,
}

impl Credit<'_> {
    /// How many bytes may be moved under this credit.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Counts the `used` bytes that were moved and gives the rest back.
    pub(super) fn commit(mut self, used: u64) {
        debug_assert!(used <= self.len, "more was moved than reserved");
        let used = used.min(self.len);
        self.len -= used;
        self.meter.count(self.direction, used);
    }
}

impl Drop for Credit<'_> {
    fn drop(&mut self) {
        self.meter.give_back(self.len);
    }
}

/// Counts a task as waiting for credit for as long as it lives.
struct Waiting<'a>(&'a Meter);

impl<'a> Waiting<'a> {
    fn enter(meter: &'a Meter) -> Self {
        if meter.waiting.fetch_add(1, SeqCst) == 0 {
            meter.starved.notify_one();
        }
        Self(meter)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests;
