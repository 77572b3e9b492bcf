//! Rates: what one lease may use, and how leases share what the seller has.
//!
//! Two token buckets in a row. A lease's flows take from the lease's allowance; when it is used up
//! the lease buys another portion from its own bucket and then from the common one. Each lease
//! stands in the common queue once, however many flows it has, so leases share evenly, and one that
//! is alone gets all there is.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitmesh_market::units::BytesPerSecond;
use tokio::time::Instant;

/// Smallest portion: one turn on a lane.
const MIN_PORTION: u64 = 16 * 1024;

/// Largest portion; more would make leases that share take turns of visible length.
const MAX_PORTION: u64 = 256 * 1024;

/// A portion is what flows in this time, within the bounds above.
const PORTION_TIME: Duration = Duration::from_millis(2);

/// What may pass at once after a pause is what flows in this time: timers are no finer than a
/// millisecond, and a bucket that holds less than their error would not reach its rate.
const BURST_TIME: Duration = Duration::from_millis(20);

/// Shares the seller's total rate between its leases. Clones share the same total.
#[derive(Clone, Debug)]
pub struct Shaper {
    total: Arc<Option<Gate>>,
}

impl Shaper {
    /// A shaper for `total` bytes per second over all leases and both directions; `None` does not
    /// limit the total.
    #[must_use]
    pub fn new(total: Option<BytesPerSecond>) -> Self {
        Self {
            total: Arc::new(total.map(Gate::new)),
        }
    }

    /// What one lease takes its bytes from; `None` does not limit the lease by itself.
    ///
    /// Keep it for the life of the lease and clone it into each attachment: two of them are two
    /// leases.
    #[must_use]
    pub fn lease(&self, rate: Option<BytesPerSecond>) -> LeaseShaper {
        let unlimited = rate.is_none() && self.total.is_none();
        let lease = Lease {
            own: rate.map(Gate::new),
            total: Arc::clone(&self.total),
            allowance: AtomicU64::new(0),
            queue: tokio::sync::Mutex::new(()),
        };
        LeaseShaper {
            lease: (!unlimited).then(|| Arc::new(lease)),
        }
    }
}

/// One lease's part of a [`Shaper`]. Clones are the same lease.
#[derive(Clone, Debug)]
pub struct LeaseShaper {
    lease: Option<Arc<Lease>>,
}

#[derive(Debug)]
struct Lease {
    own: Option<Gate>,
    total: Arc<Option<Gate>>,
    /// Bought and not used.
    allowance: AtomicU64,
    queue: tokio::sync::Mutex<()>,
}

impl LeaseShaper {
    /// No limit at all; what the buyer's side uses.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { lease: None }
    }

    /// Waits until between 1 and `max` bytes may pass. Flows of a lease wait in line.
    pub(super) async fn take(&self, max: usize) -> Rate<'_> {
        let Some(lease) = &self.lease else {
            return Rate {
                lease: None,
                len: max,
            };
        };
        if let Some(len) = lease.grab(max) {
            return Rate {
                lease: Some(lease),
                len,
            };
        }
        let _turn = lease.queue.lock().await;
        loop {
            if let Some(len) = lease.grab(max) {
                return Rate {
                    lease: Some(lease),
                    len,
                };
            }
            lease.buy().await;
        }
    }

    /// `len` bytes, if they may pass now and nobody waits.
    pub(super) fn try_take(&self, len: usize) -> Option<Rate<'_>> {
        let Some(lease) = &self.lease else {
            return Some(Rate { lease: None, len });
        };
        let _turn = lease.queue.try_lock().ok()?;
        while !lease.grab_all(len) {
            if !lease.try_buy() {
                return None;
            }
        }
        Some(Rate {
            lease: Some(lease),
            len,
        })
    }
}

impl Lease {
    fn grab(&self, max: usize) -> Option<usize> {
        let mut taken = 0;
        self.allowance
            .fetch_update(SeqCst, SeqCst, |left| {
                taken = left.min(max as u64);
                (taken > 0).then(|| left - taken)
            })
            .ok()?;
        usize::try_from(taken).ok()
    }

    fn grab_all(&self, len: usize) -> bool {
        let wanted = len as u64;
        self.allowance
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(wanted))
            .is_ok()
    }

    fn portion(&self) -> u64 {
        let gates = [self.own.as_ref(), self.total.as_ref().as_ref()];
        gates
            .iter()
            .flatten()
            .map(|gate| gate.portion)
            .min()
            .unwrap_or(MAX_PORTION)
    }

    fn try_buy(&self) -> bool {
        let portion = self.portion();
        if self.own.as_ref().is_some_and(|own| !own.try_pass(portion)) {
            return false;
        }
        if self
            .total
            .as_ref()
            .as_ref()
            .is_some_and(|total| !total.try_pass(portion))
        {
            if let Some(own) = &self.own {
                own.give_back(portion);
            }
            return false;
        }
        self.allowance.fetch_add(portion, SeqCst);
        true
    }

    async fn buy(&self) {
        let portion = self.portion();
        if let Some(own) = &self.own {
            own.pass(portion).await;
        }
        if let Some(total) = self.total.as_ref() {
            total.pass(portion).await;
        }
        self.allowance.fetch_add(portion, SeqCst);
    }
}

/// Permission to pass some bytes. Dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping it gives the permission back"]
pub(super) struct Rate<'a> {
    lease: Option<&'a Lease>,
    len: usize,
}

impl Rate<'_> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Uses `used` bytes and gives the rest back.
    pub(super) fn commit(mut self, used: usize) {
        self.len = self.len.saturating_sub(used);
    }
}

impl Drop for Rate<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.lease {
            lease.allowance.fetch_add(self.len as u64, SeqCst);
        }
    }
}

/// A token bucket with a queue in front of it.
#[derive(Debug)]
struct Gate {
    portion: u64,
    bucket: Mutex<Bucket>,
    queue: tokio::sync::Mutex<()>,
}

impl Gate {
    fn new(rate: BytesPerSecond) -> Self {
        let portion = rate
            .over(PORTION_TIME)
            .get()
            .clamp(MIN_PORTION, MAX_PORTION);
        let bucket = Mutex::new(Bucket::new(rate, portion, Instant::now()));
        Self {
            portion,
            bucket,
            queue: tokio::sync::Mutex::new(()),
        }
    }

    async fn pass(&self, len: u64) {
        let _turn = self.queue.lock().await;
        loop {
            let wait = self.lock().take(len, Instant::now());
            match wait {
                None => return,
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Passes if there is no queue and nothing to wait for.
    fn try_pass(&self, len: u64) -> bool {
        let Ok(_turn) = self.queue.try_lock() else {
            return false;
        };
        self.lock().take(len, Instant::now()).is_none()
    }

    fn give_back(&self, len: u64) {
        self.lock().give_back(len);
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens by the nanosecond, so that no rate is rounded away: one byte is 10^9 tokens, and each
/// nanosecond brings `rate` of them.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    tokens: u128,
    burst: u128,
    filled_at: Instant,
}

const TOKENS_PER_BYTE: u128 = 1_000_000_000;

impl Bucket {
    fn new(rate: BytesPerSecond, portion: u64, now: Instant) -> Self {
        let burst = rate.over(BURST_TIME).get().max(portion);
        let burst = u128::from(burst) * TOKENS_PER_BYTE;
        // Starts full, as after a pause.
        Self {
            rate: rate.get().max(1),
            tokens: burst,
            burst,
            filled_at: now,
        }
    }

    /// Takes `len` bytes, or says how long to wait before they may be there.
    fn take(&mut self, len: u64, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        let earned = passed.as_nanos().saturating_mul(u128::from(self.rate));
        self.tokens = self.tokens.saturating_add(earned).min(self.burst);

        let cost = u128::from(len) * TOKENS_PER_BYTE;
        if let Some(left) = self.tokens.checked_sub(cost) {
            self.tokens = left;
            return None;
        }
        self.wait_for(cost)
    }

    fn give_back(&mut self, len: u64) {
        let tokens = u128::from(len) * TOKENS_PER_BYTE;
        self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
    }

    fn wait_for(&self, cost: u128) -> Option<Duration> {
        let nanos = (cost - self.tokens).div_ceil(u128::from(self.rate));
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }
}
