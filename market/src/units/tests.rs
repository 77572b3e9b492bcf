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
    assert_eq!(Price::from_msat_per_gb(120_000).to_string(), "120 sat/GB");
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
    assert_eq!(shown(9_995_000), "10.0 MB");
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

proptest! {
    #[test]
    fn the_cost_is_the_smallest_amount_that_covers_the_bytes(price: u64, bytes: u64) {
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
    fn the_bytes_paid_for_are_the_most_that_the_amount_covers(price in 1u64.., msat: u64) {
        let price_per_gb = Price::from_msat_per_gb(price);
        let bytes = price_per_gb.bytes_for(Msat::from_msat(msat));
        prop_assert!(is_covered(price, bytes.get(), msat));
        if let Some(more) = bytes.get().checked_add(1) {
            prop_assert!(!is_covered(price, more, msat));
        }
    }

    #[test]
    fn cost_and_bytes_are_inverse(price: u64, bytes: u64) {
        let price = Price::from_msat_per_gb(price);
        if let Some(cost) = price.cost_of(Bytes::new(bytes)) {
            prop_assert!(price.bytes_for(cost) >= Bytes::new(bytes));
        }
    }

    #[test]
    fn a_running_total_never_costs_less_than_before(price: u64, a: u64, b: u64) {
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
    fn sizes_are_shown_within_half_a_percent(bytes: u64) {
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
