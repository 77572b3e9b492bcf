//! Group commit: how long records may wait for one another before the disk is asked to sync, and what
//! waits with them.
//!
//! A voucher counts as paid only once it is durable. Syncing for each would make the disk the
//! bottleneck, so several may share one sync, as long as little value waits and not for long. Whatever
//! relies on a record is an *effect* and is handed in behind it; it comes out in order, and only
//! when the journal says that everything appended is durable.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bitcoin::Amount;

use super::{AppendError, Journal, Medium};

/// Value that may wait, in sat.
pub const MAX_VALUE: Amount = Amount::from_sat(100);

/// How long it may wait. About what a sync takes on a memory card, so that waiting at most doubles it.
pub const MAX_WAIT: Duration = Duration::from_millis(5);

/// Effects that may wait. Those of many more vouchers than come in [`MAX_WAIT`].
pub const MAX_EFFECTS: usize = 1024;

/// Records that were appended without a sync, and the effects behind them.
#[derive(Clone, Debug)]
pub struct GroupCommit<E> {
    value: Amount,
    since: Option<Instant>,
    is_hastened: bool,
    effects: VecDeque<E>,
}

impl<E> Default for GroupCommit<E> {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(private_bounds, reason = "only files outside of this crate's tests")]
impl<E> GroupCommit<E> {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self {
            value: Amount::ZERO,
            since: None,
            is_hastened: false,
            effects: VecDeque::new(),
        }
    }

    /// Appends a record that raises what is paid by `value`, an increment, and does not sync. Zero is
    /// fine, for records that carry no value.
    ///
    /// # Errors
    ///
    /// Returns [`AppendError`], and nothing was appended.
    pub fn append<F: Medium>(
        &mut self,
        journal: &mut Journal<F>,
        (kind, payload): (u8, &[u8]),
        value: Amount,
        now: Instant,
    ) -> Result<(), AppendError> {
        journal.append_deferred(kind, payload)?;
        self.value = self.value.checked_add(value).unwrap_or(Amount::MAX_MONEY);
        self.since.get_or_insert(now);
        Ok(())
    }

    /// Takes something that is to happen once everything appended so far is durable, and after
    /// everything handed in before.
    pub fn push(&mut self, effect: E) {
        self.effects.push_back(effect);
    }

    /// Makes the sync due at once: somebody waits for what stands behind it.
    pub const fn hasten(&mut self) {
        self.is_hastened = true;
    }

    /// Whether to sync now.
    pub fn is_due(&self, now: Instant) -> bool {
        let is_old = self.deadline().is_some_and(|deadline| deadline <= now);
        let is_much = self.value >= MAX_VALUE || self.effects.len() >= MAX_EFFECTS;
        self.since.is_some() && (is_old || is_much || self.is_hastened)
    }

    /// When to sync at the latest; `None` while no record waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.and_then(|since| since.checked_add(MAX_WAIT))
    }

    /// The next effect whose records are durable, whoever synced them. Call it until it returns `None`.
    pub fn pop<F: Medium>(&mut self, journal: &Journal<F>) -> Option<E> {
        if !journal.is_synced() {
            return None;
        }
        self.value = Amount::ZERO;
        self.since = None;
        self.is_hastened = false;
        self.effects.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults::{Handle, is_durable, journal};
    use super::*;
    use proptest::prelude::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do as the beginning of time"
    )]
    fn epoch() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_hundred_sat_are_synced_at_once() {
        let (t0, disk) = (epoch(), Handle::default());
        let (mut journal, mut group) = (journal(&disk), GroupCommit::<()>::new());
        let sat = Amount::from_sat;
        group.append(&mut journal, (6, b"99"), sat(99), t0).unwrap();
        assert!(!group.is_due(t0));

        group.append(&mut journal, (6, b"1"), sat(1), t0).unwrap();

        assert!(group.is_due(t0));
    }

    #[test]
    fn one_sat_waits_five_milliseconds_and_no_longer() {
        let (t0, disk) = (epoch(), Handle::default());
        let (mut journal, mut group) = (journal(&disk), GroupCommit::<()>::new());
        for at in [t0, t0 + MAX_WAIT / 2] {
            group
                .append(&mut journal, (6, b"1"), Amount::ONE_SAT, at)
                .unwrap();
        }

        assert_eq!(group.deadline(), Some(t0 + Duration::from_millis(5)));
        assert!(!group.is_due(t0 + MAX_WAIT - Duration::from_nanos(1)));
        assert!(group.is_due(t0 + MAX_WAIT));
        // Another record was synced meanwhile, and this one with it.
        journal.append(1, b"a lease").unwrap();
        assert_eq!(group.pop(&journal), None);
        assert_eq!(group.deadline(), None);
        assert!(!group.is_due(t0 + MAX_WAIT));
    }

    #[test]
    fn what_somebody_waits_for_is_due_at_once_and_only_while_a_record_waits() {
        let (t0, disk) = (epoch(), Handle::default());
        let (mut journal, mut group) = (journal(&disk), GroupCommit::<()>::new());
        group.hasten();
        assert!(!group.is_due(t0));

        group
            .append(&mut journal, (6, b""), Amount::ZERO, t0)
            .unwrap();

        assert!(group.is_due(t0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Voucher { sat: u64, effects: u8 },
        Elapse { micros: u64 },
        OtherRecord,
        SyncFails,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..60, 0u8..3).prop_map(|(sat, effects)| Step::Voucher { sat, effects }),
            4 => (0u64..4_000).prop_map(|micros| Step::Elapse { micros }),
            1 => Just(Step::OtherRecord),
            1 => Just(Step::SyncFails),
        ]
    }

    proptest! {
        /// A power cut may come after any step: what is left of the disk then is what was synced.
        #[test]
        fn whatever_happens_an_effect_comes_out_in_order_and_never_before_its_record_is_durable(
            steps in proptest::collection::vec(step(), 1..60)
        ) {
            let disk = Handle::default();
            let (mut journal, mut group) = (journal(&disk), GroupCommit::new());
            let (mut now, mut written, mut next) = (epoch(), 0u32, 0u32);
            for step in steps {
                match step {
                    Step::Voucher { sat, effects } => {
                        let bytes = written.to_be_bytes();
                        let value = Amount::from_sat(sat);
                        if group.append(&mut journal, (6, &bytes), value, now).is_ok() {
                            for _ in 0..effects {
                                group.push(written);
                            }
                            written += 1;
                        }
                    }
                    Step::Elapse { micros } => now += Duration::from_micros(micros),
                    Step::OtherRecord => {
                        let _ = journal.append(1, b"another");
                    }
                    Step::SyncFails => disk.fail_syncs(),
                }
                if group.is_due(now) {
                    let _ = journal.sync();
                }
                while let Some(effect) = group.pop(&journal) {
                    prop_assert!(effect >= next, "{effect} after {next}");
                    next = effect;
                    prop_assert!(is_durable(&disk, &effect.to_be_bytes()), "{effect}");
                }
            }
        }
    }
}
