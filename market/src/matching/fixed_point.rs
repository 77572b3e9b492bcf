//! Logarithms in integers: no `libm`, so every platform ranks alike.

/// One, in the 16-bit fixed point of ranks.
pub(super) const ONE: i64 = 1 << 16;

/// `log2(value)` in 1/65536, rounded down. `value` must not be zero; zero counts as one.
pub(super) fn log2(value: u64) -> i64 {
    log2_bits(value.max(1), 16)
}

/// `log2(−log2(h))` in 1/65536 for `h = (draw + ½) / 2^32`: a standard Gumbel variable in bits,
/// between −32 and 5.05.
pub(super) fn gumbel(draw: u32) -> i64 {
    // −log2(h) = 33 − log2(2·draw + 1), kept in 32 bits of fraction since it comes close to zero.
    const FRACTION: u32 = 32;
    let odd = 2 * u64::from(draw) + 1;
    let exponential = (33 << FRACTION) - log2_bits(odd, FRACTION);
    log2(exponential.max(1).unsigned_abs()) - i64::from(FRACTION) * ONE
}

/// `log2(value)` with `fraction` bits behind the point, rounded down, for `value > 0`.
///
/// Squares the mantissa once per bit: its square passes 2 exactly when the next bit is one.
fn log2_bits(value: u64, fraction: u32) -> i64 {
    let whole = value.ilog2();
    let mut result = i64::from(whole);
    let mut mantissa = value << (63 - whole);
    for _ in 0..fraction {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let bit = (square >> 64) as u64 & 1;
        mantissa = (square >> bit) as u64;
        result = result << 1 | bit as i64;
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn powers_of_two_have_whole_logarithms() {
        for power in 0..64 {
            assert_eq!(log2(1 << power), i64::from(power) * ONE);
        }
        assert_eq!(log2(0), 0);
    }

    #[test]
    fn the_gumbel_draws_are_those_of_the_formula() {
        // The ends, and the median: −log2(½) = 1, whose logarithm is 0.
        assert_eq!(gumbel(0), 330_589);
        assert_eq!(gumbel(1 << 31), -1);
        assert_eq!(gumbel(u32::MAX), -2_097_152);
        for draw in [1, 12_345, 1 << 20, 3_000_000_000, 4_294_000_000] {
            let h = (f64::from(draw) + 0.5) / 2f64.powi(32);
            let expected = (-h.log2()).log2() * 65_536.0;
            let got = gumbel(draw) as f64;
            assert!((got - expected).abs() < 8.0, "{draw}: {got} {expected}");
        }
    }

    proptest! {
        #[test]
        fn a_logarithm_is_right_to_the_last_bit_but_one(value in 1u64..) {
            let expected = (value as f64).log2() * 65_536.0;
            let got = log2(value) as f64;
            prop_assert!(got <= expected + 0.01 && got > expected - 1.01, "{got} {expected}");
        }

        #[test]
        fn logarithms_and_draws_are_monotonic(a: u64, b: u64, c: u32, d: u32) {
            prop_assert!((a < b) <= (log2(a) <= log2(b)));
            prop_assert!((c < d) <= (gumbel(c) >= gumbel(d)));
        }
    }
}
