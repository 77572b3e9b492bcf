//! How often one seller may change what it says.

use std::time::Duration;

use super::{CHANGE_BURST, CHANGE_INTERVAL};
use crate::time::UnixTime;

/// A token bucket as one number: when it will be full again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    full_at: UnixTime,
}

impl Bucket {
    /// How long an empty bucket takes to fill.
    const FILL_TIME: Duration = CHANGE_INTERVAL.saturating_mul(CHANGE_BURST as u32);

    /// Takes one token, or says when there is one. A bucket that was refused is unchanged.
    pub(super) fn take(&mut self, now: UnixTime) -> Result<(), UnixTime> {
        let full_at = if self.full_at > now.saturating_add(Self::FILL_TIME) {
            // Later than can be: the clock was set back. What was counted then means nothing.
            now
        } else {
            self.full_at.max(now)
        };
        let after = full_at.saturating_add(CHANGE_INTERVAL);
        let retry_at = after.saturating_sub(Self::FILL_TIME);
        if retry_at > now {
            return Err(retry_at);
        }
        self.full_at = after;
        Ok(())
    }

    /// From when on this bucket is as good as a new one.
    pub(super) const fn full_at(self) -> UnixTime {
        self.full_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    #[test]
    fn a_burst_passes_and_then_one_change_a_minute() {
        let mut bucket = Bucket::default();
        for _ in 0..CHANGE_BURST {
            assert_eq!(bucket.take(at(1_000)), Ok(()));
        }
        assert_eq!(bucket.take(at(1_000)), Err(at(1_060)));
        assert_eq!(bucket.take(at(1_059)), Err(at(1_060)));
        assert_eq!(bucket.take(at(1_060)), Ok(()));
        assert_eq!(bucket.take(at(1_060)), Err(at(1_120)));
    }

    #[test]
    fn a_rested_bucket_holds_no_more_than_a_burst() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(at(1_000)), Ok(()));
        let taken = (0..100).take_while(|_| bucket.take(at(9_000)).is_ok());
        assert_eq!(taken.count(), usize::from(CHANGE_BURST));
    }

    #[test]
    fn a_clock_set_back_shuts_nobody_out() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(at(1_000_000)), Ok(()));
        assert_eq!(bucket.take(at(1_000)), Ok(()));
    }
}
