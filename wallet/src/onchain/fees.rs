//! What to bid for block space.

use bitcoin::FeeRate;

/// Turns an estimate into a bid.
///
/// Invariant: `floor <= ceiling`, and the floor is at least one sat/vB: less is relayed by some
/// nodes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeePolicy {
    target_blocks: u16,
    floor: FeeRate,
    ceiling: FeeRate,
}

impl FeePolicy {
    /// A policy that asks for estimates of `target_blocks` and bids within the two limits. A floor
    /// below one sat/vB is raised to it, a ceiling below the floor to the floor.
    pub fn new(target_blocks: u16, floor: FeeRate, ceiling: FeeRate) -> Self {
        let floor = floor.max(FeeRate::BROADCAST_MIN);
        Self {
            target_blocks,
            floor,
            ceiling: ceiling.max(floor),
        }
    }

    /// The target to ask [`ChainSource::feerate`](crate::chain::ChainSource::feerate) for.
    pub fn target_blocks(&self) -> u16 {
        self.target_blocks
    }

    /// The bid for an estimate. `None` if the estimate is above the ceiling: then it is better to
    /// wait, or to ask the operator, than to bid what will not confirm.
    pub fn bid(&self, estimate: FeeRate) -> Option<FeeRate> {
        (estimate <= self.ceiling).then(|| estimate.max(self.floor))
    }
}

impl Default for FeePolicy {
    /// Six blocks, from 1 to 200 sat/vB. Above that, opening a channel costs more than most
    /// channels carry.
    fn default() -> Self {
        Self::new(6, FeeRate::BROADCAST_MIN, FeeRate::from_sat_per_vb_u32(200))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(sat_per_vb: u64) -> FeeRate {
        FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
    }

    #[test]
    fn a_bid_stays_within_its_limits() {
        let policy = FeePolicy::new(6, rate(2), rate(50));
        assert_eq!(policy.bid(rate(1)), Some(rate(2)));
        assert_eq!(policy.bid(rate(7)), Some(rate(7)));
        assert_eq!(policy.bid(rate(50)), Some(rate(50)));
        assert_eq!(policy.bid(rate(51)), None);
    }

    #[test]
    fn nonsense_limits_are_made_sensible() {
        let policy = FeePolicy::new(6, FeeRate::ZERO, FeeRate::ZERO);
        assert_eq!(policy.bid(FeeRate::ZERO), Some(rate(1)));
        assert_eq!(policy.bid(rate(2)), None);
    }
}
