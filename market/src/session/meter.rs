//! What a meter says: running totals of billed bytes.

use std::collections::VecDeque;

use super::Output;
use crate::units::Bytes;
use crate::wire::cbor_map;

cbor_map! {
    /// A meter's running totals since the lease began, in billed bytes.
    ///
    /// Totals only grow. Billed are the payload bytes of data and datagram frames in both directions,
    /// and a fixed sum for each flow that is opened; PROTOCOL says how much.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Reading {
        /// Bytes from the buyer towards the internet.
        1 => pub up: Bytes,
        /// Bytes from the internet towards the buyer.
        2 => pub down: Bytes,
    }
}

impl Reading {
    /// Nothing carried yet.
    pub const ZERO: Self = Self {
        up: Bytes::ZERO,
        down: Bytes::ZERO,
    };

    /// Makes a reading of the two running totals.
    #[must_use]
    pub const fn new(up: Bytes, down: Bytes) -> Self {
        Self { up, down }
    }

    /// Both directions together: what is billed.
    ///
    /// Saturates, so that a peer's nonsense stays comparable; no quota comes near the end of the range.
    #[must_use]
    pub const fn total(self) -> Bytes {
        self.up.saturating_add(self.down)
    }

    /// Of two readings of one meter, the later one: that with the higher total.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if other.total() > self.total() {
            other
        } else {
            self
        }
    }

    /// This reading cut down to a total of at most `most`, taken off the down side first.
    #[must_use]
    pub fn capped(self, most: Bytes) -> Self {
        let up = self.up.min(most);
        Self {
            up,
            down: self.down.min(most.saturating_sub(up)),
        }
    }

    /// Whether neither direction is behind `earlier`.
    #[must_use]
    pub fn covers(self, earlier: Self) -> bool {
        self.up >= earlier.up && self.down >= earlier.down
    }
}

/// What a meter was last told, so that it is told only what is new.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    limit: Option<Bytes>,
    mark: Option<Bytes>,
}

impl Gate {
    /// Has flows attached to a meter that goes on from `reading` and is told everything anew.
    pub(super) fn start(&mut self, reading: Reading, outputs: &mut VecDeque<Output>) {
        *self = Self::default();
        outputs.push_back(Output::Start(reading));
    }

    /// Sets how far the meter may run and when it is heard of next. Marks at or below `total` are
    /// left out: they would be reported at once and say nothing.
    pub(super) fn set(
        &mut self,
        total: Bytes,
        limit: Bytes,
        marks: impl IntoIterator<Item = Bytes>,
        outputs: &mut VecDeque<Output>,
    ) {
        let mark = marks
            .into_iter()
            .chain([limit])
            .filter(|mark| *mark > total)
            .min()
            .unwrap_or(Bytes::MAX);
        if self.limit.replace(limit) != Some(limit) {
            outputs.push_back(Output::SetLimit(limit));
        }
        if self.mark.replace(mark) != Some(mark) {
            outputs.push_back(Output::SetMark(mark));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(up: u64, down: u64) -> Reading {
        Reading::new(Bytes::new(up), Bytes::new(down))
    }

    #[test]
    fn the_later_of_two_readings_has_the_higher_total() {
        assert_eq!(reading(1, 9).later(reading(5, 2)), reading(1, 9));
        assert_eq!(reading(1, 9).later(reading(5, 6)), reading(5, 6));
    }

    #[test]
    fn a_reading_covers_another_if_neither_direction_is_behind() {
        assert!(reading(5, 9).covers(reading(5, 2)));
        assert!(!reading(5, 9).covers(reading(6, 0)));
    }

    #[test]
    fn a_reading_is_cut_down_on_the_down_side_first() {
        assert_eq!(reading(5, 9).capped(Bytes::new(20)), reading(5, 9));
        assert_eq!(reading(5, 9).capped(Bytes::new(8)), reading(5, 3));
        assert_eq!(reading(5, 9).capped(Bytes::new(4)), reading(4, 0));
    }

    #[test]
    fn an_absurd_reading_has_an_absurd_total_and_does_not_wrap() {
        assert_eq!(reading(u64::MAX, 1).total(), Bytes::MAX);
    }
}
