use proptest::prelude::*;

use super::*;

fn msat(text: &str) -> Msat {
    text.parse().unwrap()
}

#[test]
fn money_is_read_in_satoshi_and_millisatoshi() {
    assert_eq!(msat("120sat"), Msat::from_msat(120_000));
    assert_eq!(msat("12 345 sat"), Msat::from_msat(12_345_000));
    assert_eq!(msat("12_345 sat"), Msat::from_msat(12_345_000));
    assert_eq!(msat("3.250 sat"), Msat::from_msat(3_250));
    assert_eq!(msat(" 250msat "), Msat::from_msat(250));
}

#[test]
fn money_is_never_rounded_when_read() {
    let err = "0.0001sat".parse::<Msat>().unwrap_err();
    assert_eq!(err.to_string(), "\"0.0001sat\" is finer than one msat");
    assert!("0.5msat".parse::<Msat>().is_err());
}

#[test]
fn a_number_without_a_unit_is_refused_with_an_example() {
    let err = "2".parse::<Bytes>().unwrap_err();
    assert_eq!(err.to_string(), "\"2\" has no unit; write it like 2GB");
    assert!("0".parse::<Msat>().is_err());
    assert!("sat".parse::<Msat>().is_err());
    assert!("".parse::<Price>().is_err());
    assert!("-1sat".parse::<Msat>().is_err());
    assert!("1.sat".parse::<Msat>().is_err());
    assert!(".5sat".parse::<Msat>().is_err());
    assert!("1.2.3sat".parse::<Msat>().is_err());
}

#[test]
fn separators_stand_before_each_three_digits_or_it_is_a_slip() {
    assert_eq!(msat("1 234 567sat"), Msat::from_msat(1_234_567_000));
    assert_eq!(msat("1\u{202f}234.5 sat"), Msat::from_msat(1_234_500));
    for slip in [
        "1 5sat",
        "1 2345sat",
        "1234 567sat",
        "1  234sat",
        "_123sat",
        "3.2 50 sat",
        "1_sat",
    ] {
        assert!(slip.parse::<Msat>().is_err(), "{slip}");
    }
}

#[test]
fn sizes_are_decimal_unless_they_say_binary() {
    let bytes = |text: &str| text.parse::<Bytes>().unwrap().get();
    assert_eq!(bytes("2GB"), 2_000_000_000);
    assert_eq!(bytes("1.5 MB"), 1_500_000);
    assert_eq!(bytes("256KiB"), 262_144);
    assert_eq!(bytes("1.3KiB"), 1_331);
    assert_eq!(bytes("1GiB"), 1 << 30);
    assert!("2Gb".parse::<Bytes>().is_err(), "Gb are gigabits");
    assert!("18446744073709551616B".parse::<Bytes>().is_err());
    assert!("20000PB".parse::<Bytes>().is_err());
}

#[test]
fn rates_are_read_in_bits_and_in_bytes() {
    let rate = |text: &str| text.parse::<BytesPerSecond>().unwrap().get();
    assert_eq!(rate("20Mbit/s"), 2_500_000);
    assert_eq!(rate("20Mbps"), 2_500_000);
    assert_eq!(rate("2.5MB/s"), 2_500_000);
    assert_eq!(rate("1MiB/s"), 1 << 20);
    assert_eq!(rate("7bit/s"), 0);
}

#[test]
fn prices_are_per_gigabyte_or_exact() {
    let price = |text: &str| text.parse::<Price>().unwrap().msat_per_gb();
    assert_eq!(price("120sat/GB"), 120_000);
    assert_eq!(price("3.250 sat/GB"), 3_250);
    assert_eq!(price("1msat/MB"), 1_000);
    assert_eq!(price("5sat / TB"), 5);
    assert!("1msat/TB".parse::<Price>().is_err());
    assert!("120sat".parse::<Price>().is_err());
}

#[test]
fn money_is_shown_grouped_and_with_millisatoshi_only_below_ten_satoshi() {
    let shown = |msat: u64| Msat::from_msat(msat).to_string();
    assert_eq!(shown(0), "0 sat");
    assert_eq!(shown(3_250), "3.250 sat");
    assert_eq!(shown(7), "0.007 sat");
    assert_eq!(shown(3_000), "3 sat");
    assert_eq!(shown(10_999), "10 sat");
    assert_eq!(shown(1_284_000), "1 284 sat");
    assert_eq!(shown(12_345_678), "12 345 sat");
    assert_eq!(shown(9_999), "9.999 sat");
    assert_eq!(shown(10_000), "10 sat");
    assert_eq!(shown(123_456_789_000), "123 456 789 sat");
    assert_eq!(Price::from_msat_per_gb(120_000).to_string(), "120 sat/GB");
    assert_eq!(Price::from_msat_per_gb(1_500).to_string(), "1.500 sat/GB");
}

#[test]
fn sizes_are_shown_with_three_significant_digits() {
    let shown = |bytes: u64| Bytes::new(bytes).to_string();
    assert_eq!(shown(0), "0 B");
    assert_eq!(shown(999), "999 B");
    assert_eq!(shown(1_000), "1.00 kB");
    assert_eq!(shown(262_144), "262 kB");
    assert_eq!(shown(94_149_999), "94.1 MB");
    assert_eq!(shown(999_499), "999 kB");
    assert_eq!(shown(999_500), "1.00 MB");
    assert_eq!(shown(9_994_999), "9.99 MB");
    assert_eq!(shown(9_995_000), "10.0 MB");
    assert_eq!(shown(99_949_999), "99.9 MB");
    assert_eq!(shown(99_950_000), "100 MB");
    assert_eq!(shown(3_000_000_000_000), "3.00 TB");
    assert_eq!(shown(40_000_000_000_000_000), "40.0 PB");
    assert_eq!(shown(2_000_000_000), "2.00 GB");
    assert_eq!(shown(u64::MAX), "18.4 EB");
}

#[test]
fn rates_are_shown_in_bits_without_idle_zeros() {
    let shown = |rate: u64| BytesPerSecond::new(rate).to_string();
    assert_eq!(shown(2_500_000), "20 Mbit/s");
    assert_eq!(shown(11_762_500), "94.1 Mbit/s");
    assert_eq!(shown(0), "0 bit/s");
    assert_eq!(shown(16_000), "128 kbit/s");
    assert_eq!(shown(12_500), "100 kbit/s");
    assert_eq!(shown(1_250_000_000), "10 Gbit/s");
    assert_eq!(shown(137_500_000_000), "1.1 Tbit/s");
    assert_eq!(BytesPerSecond::new(7).get(), 7);
}

#[test]
fn widths_are_honoured_so_that_tables_line_up() {
    assert_eq!(format!("{:>10}|", Bytes::new(5)), "       5 B|");
}

#[test]
fn a_rate_over_the_longest_time_does_not_wrap() {
    let rate = BytesPerSecond::new(u64::MAX);
    assert_eq!(rate.over(Duration::MAX), Bytes::MAX);
    assert_eq!(
        BytesPerSecond::new(1_000).over(Duration::from_millis(1_999)),
        Bytes::new(1_999)
    );
}

#[test]
fn sums_that_do_not_fit_are_none_or_stop_at_the_end() {
    let (one, two) = (Msat::from_msat(1), Msat::from_msat(2));
    assert_eq!(one.checked_add(two), Some(Msat::from_msat(3)));
    assert_eq!(Msat::MAX.checked_add(one), None);
    assert_eq!(two.checked_sub(one), Some(one));
    assert_eq!(one.checked_sub(two), None);
    assert_eq!(two.saturating_sub(one), one);
    assert_eq!(one.saturating_sub(two), Msat::ZERO);
    assert_eq!(one.saturating_add(one), two);
    assert_eq!(Msat::MAX.saturating_add(one), Msat::MAX);
    assert!(Msat::ZERO.is_zero() && !one.is_zero());

    let (one, two) = (Bytes::new(1), Bytes::new(2));
    assert_eq!(one.checked_add(two), Some(Bytes::new(3)));
    assert_eq!(Bytes::MAX.checked_add(one), None);
    assert_eq!(two.checked_sub(one), Some(one));
    assert_eq!(one.checked_sub(two), None);
    assert_eq!(two.saturating_sub(one), one);
    assert_eq!(one.saturating_sub(two), Bytes::ZERO);
    assert_eq!(one.saturating_add(one), two);
    assert_eq!(Bytes::MAX.saturating_add(one), Bytes::MAX);
    assert!(Bytes::ZERO.is_zero() && !one.is_zero());
}

#[test]
fn whole_satoshi_are_rounded_up_where_they_are_owed_and_down_where_they_are_held() {
    for (msat, floor, ceil) in [
        (0, 0, 0),
        (1, 0, 1),
        (999, 0, 1),
        (1_000, 1, 1),
        (1_001, 1, 2),
        (u64::MAX, 18_446_744_073_709_551, 18_446_744_073_709_552),
    ] {
        let amount = Msat::from_msat(msat);
        assert_eq!((amount.sat_floor(), amount.sat_ceil()), (floor, ceil));
    }
    assert_eq!(Msat::from_sat(7), Some(Msat::from_msat(7_000)));
    assert_eq!(Msat::from_msat(7_001).msat(), 7_001);
    assert_eq!(Msat::from_sat(u64::MAX / 1_000 + 1), None);
}

#[test]
fn a_cost_is_of_the_running_total_and_rounded_up_once() {
    let price = Price::from_msat_per_gb(1_500);
    for (bytes, msat) in [
        (0, 0),
        (1, 1),
        (666_666_666, 1_000),
        (666_666_667, 1_001),
        (1_000_000_000, 1_500),
        (1_000_000_001, 1_501),
    ] {
        let cost = price.cost_of(Bytes::new(bytes));
        assert_eq!(cost, Some(Msat::from_msat(msat)), "{bytes}");
    }
    assert_eq!(price.bytes_for(Msat::from_msat(1_000)).get(), 666_666_666);
    assert_eq!(Price::ZERO.bytes_for(Msat::ZERO), Bytes::MAX);
    assert_eq!(Price::MAX.cost_of(Bytes::MAX), None);
    assert_eq!(price.msat_per_gb(), 1_500);
}

#[test]
fn every_unit_means_what_it_says() {
    for (unit, bytes) in [
        ("B", 1),
        ("b", 1),
        ("byte", 1),
        ("bytes", 1),
        ("kB", 1_000),
        ("KB", 1_000),
        ("kb", 1_000),
        ("MB", 1_000_000),
        ("mb", 1_000_000),
        ("GB", 1_000_000_000),
        ("gb", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("tb", 1_000_000_000_000),
        ("PB", 1_000_000_000_000_000),
        ("pb", 1_000_000_000_000_000),
        ("KiB", 1_024),
        ("kib", 1_024),
        ("MiB", 1_048_576),
        ("mib", 1_048_576),
        ("GiB", 1_073_741_824),
        ("gib", 1_073_741_824),
        ("TiB", 1_099_511_627_776),
        ("tib", 1_099_511_627_776),
        ("PiB", 1_125_899_906_842_624),
        ("pib", 1_125_899_906_842_624),
    ] {
        assert_eq!(format!("3{unit}").parse(), Ok(Bytes::new(3 * bytes)));
        let rate = BytesPerSecond::new(3 * bytes);
        assert_eq!(format!("3{unit}/s").parse(), Ok(rate));
    }
    for (unit, bits) in [
        ("bit/s", 1),
        ("bps", 1),
        ("kbit/s", 1_000),
        ("kbps", 1_000),
        ("Mbit/s", 1_000_000),
        ("mbit/s", 1_000_000),
        ("Mbps", 1_000_000),
        ("mbps", 1_000_000),
        ("Gbit/s", 1_000_000_000),
        ("gbit/s", 1_000_000_000),
        ("Gbps", 1_000_000_000),
        ("gbps", 1_000_000_000),
    ] {
        let rate = BytesPerSecond::new(2 * bits);
        assert_eq!(format!("16{unit}").parse(), Ok(rate));
    }
    for (unit, msat) in [("msat", 1), ("msats", 1), ("sat", 1_000), ("sats", 1_000)] {
        assert_eq!(format!("3{unit}").parse(), Ok(Msat::from_msat(3 * msat)));
        let price = Price::from_msat_per_gb(3 * msat);
        assert_eq!(format!("3{unit}/GB").parse(), Ok(price));
    }
}

#[test]
fn as_many_digits_of_a_fraction_are_read_as_can_matter() {
    let read = "1.123456789012345678PB".parse::<Bytes>().unwrap();
    assert_eq!(read, Bytes::new(1_123_456_789_012_345));
    let error = "1.1234567890123456789PB".parse::<Bytes>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"1.1234567890123456789PB\" is finer than one digit this can hold"
    );
    // Zeros at the end are no digits.
    let read = "1.50000000000000000000PB".parse::<Bytes>().unwrap();
    assert_eq!(read, Bytes::new(1_500_000_000_000_000));
    assert_eq!(
        "0.999999999999999999GB".parse(),
        Ok(Bytes::new(999_999_999))
    );
}

#[test]
fn what_does_not_fit_is_too_large_and_what_just_fits_is_read() {
    assert_eq!("18446744073709551615B".parse(), Ok(Bytes::MAX));
    assert_eq!("18446744073709551.615sat".parse(), Ok(Msat::MAX));
    for text in ["18446744073709551616msat", "18446744073709551.616sat"] {
        let error = text.parse::<Msat>().unwrap_err();
        assert_eq!(error.to_string(), format!("\"{text}\" is too large"));
    }
    let error = "3parsec".parse::<Bytes>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown unit \"parsec\"; write it like 2GB"
    );
}

/// Schoolbook multiplication in 32-bit limbs: an oracle that shares no code with what it checks.
fn product(a: u64, b: u64) -> [u32; 4] {
    let (a, b) = ([a as u32, (a >> 32) as u32], [b as u32, (b >> 32) as u32]);
    let mut limbs = [0u64; 5];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            let p = u64::from(*x) * u64::from(*y);
            limbs[i + j] += p & 0xffff_ffff;
            limbs[i + j + 1] += p >> 32;
        }
    }
    let mut carry = 0;
    let mut out = [0u32; 4];
    for (limb, out) in limbs.iter().zip(&mut out) {
        let sum = limb + carry;
        *out = sum as u32;
        carry = sum >> 32;
    }
    out
}

/// Whether `price · bytes <= msat · 10^9`, compared limb by limb from the top.
fn is_covered(price: u64, bytes: u64, msat: u64) -> bool {
    let (cost, paid) = (product(price, bytes), product(msat, BYTES_PER_GB));
    cost.iter().rev().le(paid.iter().rev())
}

/// Numbers of every size. Of those drawn evenly, two hardly ever have a product that fits.
fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..=10_000u64,
        0..=10_000_000_000_000u64,
        (0..64u32).prop_map(|bit| 1 << bit),
    ]
}

proptest! {
    #[test]
    fn the_cost_is_the_smallest_amount_that_covers_the_bytes(
        price in numbers(),
        bytes in numbers(),
    ) {
        match Price::from_msat_per_gb(price).cost_of(Bytes::new(bytes)) {
            Some(cost) => {
                prop_assert!(is_covered(price, bytes, cost.msat()));
                if let Some(less) = cost.msat().checked_sub(1) {
                    prop_assert!(!is_covered(price, bytes, less));
                }
            }
            None => prop_assert!(!is_covered(price, bytes, u64::MAX)),
        }
    }

    #[test]
    fn the_bytes_paid_for_are_the_most_that_the_amount_covers(
        price in numbers(),
        msat in numbers(),
    ) {
        prop_assume!(price > 0);
        let price_per_gb = Price::from_msat_per_gb(price);
        let bytes = price_per_gb.bytes_for(Msat::from_msat(msat));
        prop_assert!(is_covered(price, bytes.get(), msat));
        if let Some(more) = bytes.get().checked_add(1) {
            prop_assert!(!is_covered(price, more, msat));
        }
    }

    #[test]
    fn cost_and_bytes_are_inverse(price in numbers(), bytes in numbers()) {
        let price = Price::from_msat_per_gb(price);
        if let Some(cost) = price.cost_of(Bytes::new(bytes)) {
            prop_assert!(price.bytes_for(cost) >= Bytes::new(bytes));
        }
    }

    #[test]
    fn a_running_total_never_costs_less_than_before(
        price in numbers(),
        a in numbers(),
        b in numbers(),
    ) {
        let price = Price::from_msat_per_gb(price);
        let (low, high) = (a.min(b), a.max(b));
        if let Some(dearer) = price.cost_of(Bytes::new(high)) {
            prop_assert!(price.cost_of(Bytes::new(low)) <= Some(dearer));
        }
    }

    #[test]
    fn money_below_ten_satoshi_reads_back_as_shown(amount in 0u64..10_000) {
        let amount = Msat::from_msat(amount);
        prop_assert_eq!(amount.to_string().parse::<Msat>().unwrap(), amount);
    }

    #[test]
    fn whole_satoshi_read_back_as_shown(sat in 0u64..=u64::MAX / 1_000) {
        let amount = Msat::from_sat(sat).unwrap();
        prop_assert_eq!(amount.to_string().parse::<Msat>().unwrap(), amount);
    }

    #[test]
    fn sizes_are_shown_within_half_a_percent(bytes in numbers()) {
        let shown: Bytes = match Bytes::new(bytes).to_string().strip_suffix(" EB") {
            // The largest sizes have no unit of their own in what is read.
            Some(_) => return Ok(()),
            None => Bytes::new(bytes).to_string().parse().unwrap(),
        };
        prop_assert!(shown.get().abs_diff(bytes) <= bytes / 200);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "[0-9 ._]{0,40}[a-zA-Z/]{0,8}") {
        let _ = text.parse::<Msat>();
        let _ = text.parse::<Bytes>();
        let _ = text.parse::<BytesPerSecond>();
        let _ = text.parse::<Price>();
    }
}
