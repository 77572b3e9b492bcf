//! Group commit: how long vouchers may wait for one another before the disk is asked to sync.
//!
//! A voucher counts as paid only once it is durable. Syncing for each would make the disk the
//! bottleneck, so several may share one sync, as long as little value waits and not for long.

use std::time::{Duration, Instant};

use bitcoin::Amount;

/// Value that may wait, in sat.
pub const MAX_VALUE: Amount = Amount::from_sat(100);

/// How long it may wait.
pub const MAX_WAIT: Duration = Duration::from_millis(100);

/// Says when records appended without a sync have to be synced.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupCommit {
    value: Amount,
    since: Option<Instant>,
}

impl GroupCommit {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self {
            value: Amount::ZERO,
            since: None,
        }
    }

    /// A record that raises what is paid by `value` was appended and not synced. Zero is fine, for
    /// records that carry no value.
    pub fn appended(&mut self, value: Amount, now: Instant) {
        self.value = self.value.checked_add(value).unwrap_or(Amount::MAX_MONEY);
        self.since.get_or_insert(now);
    }

    /// Whether to sync now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.value >= MAX_VALUE || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// When to sync at the latest; `None` while nothing waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.and_then(|since| since.checked_add(MAX_WAIT))
    }

    /// Everything is durable.
    pub const fn synced(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do as the beginning of time"
    )]
    fn epoch() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_hundred_sat_are_synced_at_once() {
        let t0 = epoch();
        let mut group = GroupCommit::new();
        group.appended(Amount::from_sat(99), t0);
        assert!(!group.is_due(t0));

        group.appended(Amount::from_sat(1), t0);

        assert!(group.is_due(t0));
    }

    #[test]
    fn one_sat_waits_a_tenth_of_a_second_and_no_longer() {
        let t0 = epoch();
        let mut group = GroupCommit::new();
        group.appended(Amount::ONE_SAT, t0);
        group.appended(Amount::ONE_SAT, t0 + MAX_WAIT / 2);

        assert_eq!(group.deadline(), Some(t0 + MAX_WAIT));
        assert!(!group.is_due(t0 + MAX_WAIT - Duration::from_nanos(1)));
        assert!(group.is_due(t0 + MAX_WAIT));
    }

    #[test]
    fn nothing_is_due_after_a_sync() {
        let t0 = epoch();
        let mut group = GroupCommit::new();
        group.appended(Amount::from_sat(1_000), t0);

        group.synced();

        assert!(!group.is_due(t0 + MAX_WAIT));
        assert_eq!(group.deadline(), None);
    }
}
