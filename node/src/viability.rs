//! Whether a channel is worth opening: what its two transactions cost, beside what is to be spent.
//!
//! All of it is integers. Shares are parts per million, rounded up, so that nothing looks cheaper than
//! it is.

use bitcoin::Amount;
use bitmesh_market::units::Msat;

/// Above this share of what is to be spent the buyer is warned: 10 %.
pub(crate) const HIGH_PPM: u64 = 100_000;

/// At this share or below a channel is worth its fees: 5 %.
pub(crate) const LOW_PPM: u64 = 50_000;

const MILLION: u128 = 1_000_000;

/// What the fees are beside the spending, in parts per million, rounded up. Nothing is to be spent on
/// a purchase that costs nothing: any fee is then beyond all measure.
pub(crate) fn share_ppm(fees: Amount, spend: Msat) -> u64 {
    if fees == Amount::ZERO {
        return 0;
    }
    let fees_msat = u128::from(fees.to_sat()) * 1_000;
    match u128::from(spend.msat()) {
        0 => u64::MAX,
        // Fees are at most all the bitcoin there is: less than 2^61 msat, and 2^81 for a millionth.
        spend => u64::try_from((fees_msat * MILLION).div_ceil(spend)).unwrap_or(u64::MAX),
    }
}

/// The least turnover, in sat, of which these fees are at most this share.
pub(crate) fn turnover(fees: Amount, share_ppm: u64) -> u64 {
    let fees = u128::from(fees.to_sat()) * MILLION;
    u64::try_from(fees.div_ceil(u128::from(share_ppm.max(1)))).unwrap_or(u64::MAX)
}

/// The highest fee rate, in sat per 1,000 virtual bytes, at which transactions of `vbytes` in all cost
/// at most this share of the spending. Zero if there is none.
pub(crate) fn feerate(vbytes: u64, spend: Msat, share_ppm: u64) -> u64 {
    // A millisatoshi a byte is a satoshi for a thousand.
    let fees_msat = u128::from(spend.msat()) * u128::from(share_ppm) / MILLION;
    u64::try_from(fees_msat / u128::from(vbytes.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bitcoin::FeeRate;
    use bitmesh_wallet::channel::tx::{CLOSE_VBYTES, FUNDING_VBYTES, LifeCycle};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turnovers_are_those_of_the_table() {
        for (sat_per_vb, turnover_sat) in [(1, 7_180), (5, 35_900), (20, 143_600)] {
            let feerate = FeeRate::from_sat_per_vb(sat_per_vb).unwrap();
            let fees = LifeCycle::estimate(feerate).unwrap().total().unwrap();

            assert_eq!(turnover(fees, LOW_PPM), turnover_sat);
        }
    }

    #[test]
    fn no_fees_are_no_share_and_any_fee_is_more_than_nothing() {
        assert_eq!(share_ppm(Amount::ZERO, Msat::ZERO), 0);
        assert_eq!(share_ppm(Amount::ONE_SAT, Msat::ZERO), u64::MAX);
        assert_eq!(share_ppm(Amount::MAX_MONEY, Msat::from_msat(1)), u64::MAX);
        assert_eq!(
            share_ppm(Amount::from_sat(359), Msat::from_msat(3_590_000)),
            HIGH_PPM
        );
        assert_eq!(
            share_ppm(Amount::from_sat(359), Msat::from_msat(3_589_999)),
            HIGH_PPM + 1
        );
    }

    fn amounts() -> impl Strategy<Value = Amount> {
        (0..=Amount::MAX_MONEY.to_sat()).prop_map(Amount::from_sat)
    }

    proptest! {
        #[test]
        fn a_share_is_the_least_number_of_millionths_that_covers_the_fees(
            fees in amounts(), spend in 1..=u64::MAX,
        ) {
            let share = share_ppm(fees, Msat::from_msat(spend));

            let fees_msat = u128::from(fees.to_sat()) * 1_000;
            let part = |ppm: u64| u128::from(spend) * u128::from(ppm);
            if share < u64::MAX {
                prop_assert!(fees_msat * MILLION <= part(share));
            }
            if share > 0 {
                prop_assert!(fees_msat * MILLION > part(share - 1));
            }
        }

        #[test]
        fn a_turnover_is_the_least_of_which_the_fees_are_that_share(
            fees in 1..1_000_000_000_u64, ppm in 1..=1_000_000_u64,
        ) {
            let fees = Amount::from_sat(fees);
            let sat = turnover(fees, ppm);

            let spend = |sat: u64| Msat::from_sat(sat).unwrap();
            prop_assert!(share_ppm(fees, spend(sat)) <= ppm);
            prop_assert!(share_ppm(fees, spend(sat - 1)) > ppm);
        }

        #[test]
        fn at_the_rate_that_is_named_the_fees_are_within_the_share_and_above_it_they_are_not(
            spend in 0..=u64::MAX / 2, ppm in 1..=1_000_000_u64,
        ) {
            let vbytes = FUNDING_VBYTES + CLOSE_VBYTES;
            let rate = feerate(vbytes, Msat::from_msat(spend), ppm);

            let fees_msat = |rate: u64| u128::from(rate) * u128::from(vbytes) * MILLION;
            let part = u128::from(spend) * u128::from(ppm);
            prop_assert!(fees_msat(rate) <= part);
            prop_assert!(fees_msat(rate + 1) > part);
        }
    }
}
