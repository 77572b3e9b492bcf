//! Rates: what one lease may use, and how leases share what the seller has.
//!
//! Two token buckets in a row. A lease's flows take from the lease's allowance; when it is used up
//! the lease takes another portion out of its own bucket, and out of its share, which it fills from
//! the common bucket. Each lease stands in the common queue once, however many flows it has, and gets
//! as much there as any other each time, however slow it is by itself. So leases that want more than
//! there is share it evenly, and one that is alone gets all there is.

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

    /// Sets the total anew, for leases that run as well. One that was made without a total has none.
    pub fn set_total(&self, total: BytesPerSecond) {
        if let Some(gate) = self.total.as_ref() {
            gate.set_rate(total);
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
            share: tokio::sync::Mutex::new(0),
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
    /// Passed both buckets and not used.
    allowance: AtomicU64,
    /// Passed the common bucket and not its own. Whoever holds this has the lease's turn.
    share: tokio::sync::Mutex<u64>,
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
        let mut share = lease.share.lock().await;
        loop {
            if let Some(len) = lease.grab(max) {
                return Rate {
                    lease: Some(lease),
                    len,
                };
            }
            lease.buy(&mut share).await;
        }
    }

    /// `len` bytes, if they may pass now and nobody waits.
    pub(super) fn try_take(&self, len: usize) -> Option<Rate<'_>> {
        let Some(lease) = &self.lease else {
            return Some(Rate { lease: None, len });
        };
        let mut share = lease.share.try_lock().ok()?;
        while !lease.grab_all(len) {
            if !lease.try_buy(&mut share) {
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

    /// What passes at once: no more than the common bucket gives in one turn.
    fn portion(&self) -> u64 {
        let gates = [self.own.as_ref(), self.total.as_ref().as_ref()];
        gates
            .iter()
            .flatten()
            .map(|gate| gate.portion())
            .min()
            .unwrap_or(MAX_PORTION)
    }

    fn try_buy(&self, share: &mut u64) -> bool {
        let portion = self.portion();
        if let Some(total) = self.total.as_ref()
            && *share < portion
        {
            let turn = total.portion();
            if !total.try_pass(turn) {
                return false;
            }
            *share += turn;
        }
        if self.own.as_ref().is_some_and(|own| !own.try_pass(portion)) {
            return false;
        }
        self.passed(portion, share);
        true
    }

    async fn buy(&self, share: &mut u64) {
        let portion = self.portion();
        if let Some(total) = self.total.as_ref()
            && *share < portion
        {
            let turn = total.portion();
            total.pass(turn).await;
            *share += turn;
        }
        if let Some(own) = &self.own {
            own.pass(portion).await;
        }
        self.passed(portion, share);
    }

    fn passed(&self, portion: u64, share: &mut u64) {
        *share = share.saturating_sub(portion);
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
    portion: AtomicU64,
    bucket: Mutex<Bucket>,
    queue: tokio::sync::Mutex<()>,
}

impl Gate {
    fn new(rate: BytesPerSecond) -> Self {
        let portion = portion_of(rate);
        Self {
            portion: AtomicU64::new(portion),
            bucket: Mutex::new(Bucket::new(rate, portion, Instant::now())),
            queue: tokio::sync::Mutex::new(()),
        }
    }

    fn set_rate(&self, rate: BytesPerSecond) {
        let portion = portion_of(rate);
        self.lock().set_rate(rate, portion, Instant::now());
        self.portion.store(portion, SeqCst);
    }

    /// What passes in one turn.
    fn portion(&self) -> u64 {
        self.portion.load(SeqCst)
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

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn portion_of(rate: BytesPerSecond) -> u64 {
    rate.over(PORTION_TIME)
        .get()
        .clamp(MIN_PORTION, MAX_PORTION)
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

fn burst_of(rate: BytesPerSecond, portion: u64) -> u128 {
    u128::from(rate.over(BURST_TIME).get().max(portion)) * TOKENS_PER_BYTE
}

impl Bucket {
    fn new(rate: BytesPerSecond, portion: u64, now: Instant) -> Self {
        let burst = burst_of(rate, portion);
        // Starts full, as after a pause.
        Self {
            rate: rate.get().max(1),
            tokens: burst,
            burst,
            filled_at: now,
        }
    }

    fn set_rate(&mut self, rate: BytesPerSecond, portion: u64, now: Instant) {
        self.fill(now);
        self.rate = rate.get().max(1);
        self.burst = burst_of(rate, portion);
        self.tokens = self.tokens.min(self.burst);
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        let earned = passed.as_nanos().saturating_mul(u128::from(self.rate));
        self.tokens = self.tokens.saturating_add(earned).min(self.burst);
    }

    /// Takes `len` bytes, or says how long to wait before they may be there.
    fn take(&mut self, len: u64, now: Instant) -> Option<Duration> {
        self.fill(now);
        // No more than there can ever be: who waits may have asked when the rate was higher.
        let cost = (u128::from(len) * TOKENS_PER_BYTE).min(self.burst);
        if let Some(left) = self.tokens.checked_sub(cost) {
            self.tokens = left;
            return None;
        }
        self.wait_for(cost)
    }

    fn wait_for(&self, cost: u128) -> Option<Duration> {
        let nanos = (cost - self.tokens).div_ceil(u128::from(self.rate));
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// Lets each of `leases` move what it can until the first has moved `goal`, and returns how far
    /// each came. Only what they got in the same time says anything: the machine may be busy.
    async fn race(leases: Vec<LeaseShaper>, goal: u64) -> Vec<u64> {
        let moved: Arc<[AtomicU64]> = leases.iter().map(|_| AtomicU64::new(0)).collect();
        let mut runs = tokio::task::JoinSet::new();
        for (runner, lease) in leases.into_iter().enumerate() {
            let moved = Arc::clone(&moved);
            runs.spawn(async move {
                while moved.iter().all(|moved| moved.load(SeqCst) < goal) {
                    let rate = lease.take(64 * 1024).await;
                    let len = rate.len();
                    rate.commit(len);
                    moved[runner].fetch_add(len as u64, SeqCst);
                    tokio::task::yield_now().await;
                }
            });
        }
        runs.join_all().await;
        moved.iter().map(|moved| moved.load(SeqCst)).collect()
    }

    fn leases<const N: usize>(line: &Shaper, rates: [u64; N]) -> Vec<LeaseShaper> {
        let lease = |rate| line.lease(Some(BytesPerSecond::new(rate)));
        rates.into_iter().map(lease).collect()
    }

    #[tokio::test]
    async fn leases_of_different_rates_share_a_line_that_is_too_narrow_evenly() {
        let line = Shaper::new(Some(BytesPerSecond::new(12 * MB)));

        let moved = race(leases(&line, [9 * MB, 90 * MB, 900 * MB]), 4 * MB).await;

        // By its own rate alone the slowest would get a tenth of the fastest. The bursts at the start are
        // not shared, and a busy machine may keep one waiting.
        let least = moved.iter().min().unwrap();
        assert!(least * 2 >= 4 * MB, "{moved:?}");
    }

    #[tokio::test]
    async fn what_a_slow_lease_leaves_is_there_for_the_others() {
        let line = Shaper::new(Some(BytesPerSecond::new(12 * MB)));

        let moved = race(leases(&line, [MB, 90 * MB]), 8 * MB).await;

        // An even share of the time would be 8 MB for both; at its rate it gets an eleventh of them.
        assert!(moved[0] <= 8 * MB / 6, "{moved:?}");
    }

    #[tokio::test]
    async fn a_new_total_holds_for_leases_that_run() {
        let line = Shaper::new(Some(BytesPerSecond::new(1_000 * MB)));
        let lease = leases(&line, [1_000 * MB]);
        race(lease.clone(), MB).await;

        line.set_total(BytesPerSecond::new(2 * MB));
        let begun = Instant::now();
        let moved = race(lease, 2 * MB).await[0];

        // What was bought before comes on top.
        let most = 2.0 * MB as f64 * begun.elapsed().as_secs_f64() + 600_000.0;
        assert!(moved as f64 <= most, "{moved} of {most}");
    }
}
