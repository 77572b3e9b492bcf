//! How often a buyer may make the seller write something down.

use std::time::{Duration, Instant};

/// Time that one message takes off the allowance. A buyer has a receipt to send four times a second at
/// the rate of its lease; eight times that leaves room for uneven flow.
const INTERVAL: Duration = Duration::from_millis(31);

/// Messages at once after a pause.
const BURST: u32 = 64;

/// A token bucket, kept as the moment at which it is full again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    full_at: Option<Instant>,
}

impl Pace {
    /// Takes a token; `false`, and nothing changes, if there is none.
    pub(super) fn keep(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let after = full_at.checked_add(INTERVAL);
        let is_within =
            after.is_some_and(|after| after.saturating_duration_since(now) <= INTERVAL * BURST);
        if is_within {
            self.full_at = after;
        }
        is_within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "virtual time has to start somewhere"
    )]
    fn a_burst_passes_and_then_one_in_each_interval() {
        let t0 = Instant::now();
        let mut pace = Pace::default();
        let mut kept = |ms| {
            let now = t0 + Duration::from_millis(ms);
            (0..1_000).filter(|_| pace.keep(now)).count()
        };
        assert_eq!(kept(0), 64);
        assert_eq!(kept(30), 0);
        assert_eq!(kept(31), 1);
        assert_eq!(kept(31 + 310), 10);
        assert_eq!(kept(60_000), 64);
    }
}
