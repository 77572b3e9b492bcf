//! Token buckets: how often a neighbour may do something.

use std::time::Duration;

use tokio::time::Instant;

/// Lets `burst` through at once and `per_second` in the long run.
///
/// Invariant: never holds more than `burst` tokens, whatever the clock does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    burst: u32,
    per_second: u32,
    /// In thousandths, so that slow rates refill smoothly.
    tokens_milli: u64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self {
            burst,
            per_second,
            tokens_milli: u64::from(burst) * 1000,
            at: now,
        }
    }

    /// Takes `cost` tokens if there are so many; `false` leaves them for something cheaper.
    pub(crate) fn take(&mut self, cost: u32, now: Instant) -> bool {
        self.refill(now);
        match self.tokens_milli.checked_sub(u64::from(cost) * 1000) {
            Some(left) => {
                self.tokens_milli = left;
                true
            }
            None => false,
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        // Whole milliseconds only; the rest stays on the clock.
        self.at += Duration::from_millis(millis.min(u64::from(u32::MAX)));
        // A token a second is one thousandth a millisecond.
        let gained = millis.saturating_mul(self.per_second.into());
        let full = u64::from(self.burst) * 1000;
        self.tokens_milli = self.tokens_milli.saturating_add(gained).min(full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_burst_through_and_then_its_rate() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let t0 = Instant::from_std(std::time::Instant::now());
        let mut bucket = Bucket::new(10, 2, t0);

        assert_eq!((0..20).filter(|_| bucket.take(1, t0)).count(), 10);
        let later = t0 + Duration::from_millis(1400);
        assert_eq!((0..20).filter(|_| bucket.take(1, later)).count(), 2);
        let much_later = later + Duration::from_secs(1_000_000);
        assert_eq!((0..20).filter(|_| bucket.take(1, much_later)).count(), 10);
    }

    #[test]
    fn a_clock_that_jumps_back_gives_nothing() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let t0 = Instant::from_std(std::time::Instant::now());
        let t1 = t0 + Duration::from_secs(10);
        let mut bucket = Bucket::new(1, 1, t1);

        assert!(bucket.take(1, t1));
        assert!(!bucket.take(1, t0));
        assert!(!bucket.take(1, t1));
    }

    #[test]
    fn asking_often_does_not_lose_parts_of_milliseconds() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let t0 = Instant::from_std(std::time::Instant::now());
        let mut bucket = Bucket::new(1, 1, t0);
        assert!(bucket.take(1, t0));

        let mut taken = 0;
        for step in 1..=4000u64 {
            if bucket.take(1, t0 + Duration::from_micros(step * 500)) {
                taken += 1;
            }
        }

        assert_eq!(taken, 2);
    }
}
