//! Amounts as people type them, where [`bitmesh_market::units`] has no type for them.

use std::{str::FromStr, time::Duration};

use bitmesh_market::units::{Bytes, Msat, ParseUnitError};

/// An amount of money, in any unit that people write it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Money(pub Msat);

/// A bitcoin is 10^11 msat.
const BTC_DECIMALS: usize = 11;

impl FromStr for Money {
    type Err = String;

    /// Reads `500sat`, `250msat` or `0.0005 BTC`.
    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let bitcoin = ["BTC", "btc"]
            .iter()
            .find_map(|unit| trimmed.strip_suffix(unit));
        match bitcoin {
            Some(number) => bitcoin_in_msat(number.trim_end())
                .map(|msat| Self(Msat::from_msat(msat)))
                .ok_or_else(|| format!("\"{text}\" is no amount; write it like 0.0005BTC")),
            None => text
                .parse()
                .map(Self)
                .map_err(|error: ParseUnitError| error.to_string()),
        }
    }
}

fn bitcoin_in_msat(number: &str) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > BTC_DECIMALS || !digits(whole) || !digits(fraction) {
        return None;
    }
    format!("{whole}{fraction:0<BTC_DECIMALS$}").parse().ok()
}

/// How much to buy: a size, or money to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// So many bytes.
    Bytes(Bytes),
    /// So much traffic as this buys.
    Budget(Msat),
}

impl FromStr for Quantity {
    type Err = String;

    /// Reads `2GB` or `500sat`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse::<Bytes>(), text.parse::<Money>()) {
            (Ok(bytes), _) if bytes.get() == 0 => Err("nothing to buy".into()),
            (Ok(bytes), _) => Ok(Self::Bytes(bytes)),
            (_, Ok(Money(msat))) if msat.msat() == 0 => Err("nothing to spend".into()),
            (_, Ok(Money(msat))) => Ok(Self::Budget(msat)),
            (Err(_), Err(_)) => Err("write a size like 2GB or 500MiB, or money like 500sat".into()),
        }
    }
}

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// Returns the whole seconds of the span.
    pub fn seconds(self) -> u64 {
        self.0.as_secs()
    }
}

impl FromStr for Span {
    type Err = String;

    /// Reads `90s`, `30m`, `1h`, `2h30m`, `7d`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no span of time; write it like 30m, 2h30m or 7d");
        let mut seconds: u64 = 0;
        let mut rest = text.trim();
        let mut last_unit = u64::MAX;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, after) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let mut characters = after.chars();
            let unit = match characters.next() {
                Some('s') => 1,
                Some('m') => 60,
                Some('h') => 3_600,
                Some('d') => 86_400,
                _ => return Err(wrong()),
            };
            if unit >= last_unit {
                return Err(wrong());
            }
            last_unit = unit;
            seconds = number
                .checked_mul(unit)
                .and_then(|part| seconds.checked_add(part))
                .ok_or_else(|| format!("\"{text}\" is too long"))?;
            rest = characters.as_str().trim_start();
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// An amount of coins: whole satoshi, as the chain knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeSat(pub u64);

impl FromStr for WholeSat {
    type Err = String;

    /// Reads `50000sat`, `50 000 sat` or `0.0005BTC`.
    fn from_str(text: &str) -> Result<Self, String> {
        let Money(msat) = text.parse()?;
        if msat.sat_floor() != msat.sat_ceil() {
            return Err("the chain knows whole sat only".into());
        }
        match msat.sat_floor() {
            0 => Err("nothing to send".into()),
            sat => Ok(Self(sat)),
        }
    }
}

/// A fee rate in sat per 1000 virtual bytes, typed in sat per virtual byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feerate {
    /// Sat per 1000 virtual bytes.
    pub sat_per_kvb: u64,
}

/// No wallet of ours pays more: at 10,000 sat/vB a plain payment would cost a million sat.
const FEERATE_MAX: u64 = 10_000_000;

impl FromStr for Feerate {
    type Err = String;

    /// Reads `5`, `2.5` or `2.5sat/vB`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no fee rate; write it like 5 or 2.5 (sat/vB)");
        let number = text.trim().trim_end_matches("sat/vB").trim_end();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || fraction.len() > 3 || !digits(whole) || !digits(fraction) {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
        let sat_per_kvb = whole
            .checked_mul(1_000)
            .and_then(|whole| whole.checked_add(fraction));
        match sat_per_kvb {
            Some(rate) if rate < 1_000 => Err("nodes do not relay below 1 sat/vB".into()),
            Some(rate) if rate <= FEERATE_MAX => Ok(Self { sat_per_kvb: rate }),
            _ => Err("more than 10000 sat/vB is surely a mistake".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_a_size_or_money_and_needs_its_unit() {
        assert_eq!(
            "2GB".parse(),
            Ok(Quantity::Bytes(Bytes::new(2_000_000_000)))
        );
        assert_eq!(
            "500sat".parse(),
            Ok(Quantity::Budget(Msat::from_msat(500_000)))
        );
        for wrong in ["2", "GB", "2 sat/GB", "0GB", "0sat", "-1GB", ""] {
            assert!(wrong.parse::<Quantity>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_span_is_read_from_its_largest_unit_to_its_smallest() {
        let table = [
            ("90s", 90),
            ("30m", 1_800),
            ("2h30m", 9_000),
            ("2h 05m", 7_500),
            ("7d", 604_800),
        ];
        for (text, seconds) in table {
            assert_eq!(
                text.parse::<Span>().map(Span::seconds),
                Ok(seconds),
                "{text}"
            );
        }
        for wrong in [
            "",
            "1",
            "h",
            "30m2h",
            "1h1h",
            "1.5h",
            "-1h",
            "1w",
            "99999999999999999999s",
            "999999999999999d",
        ] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fee_rate_is_exact_and_never_absurd() {
        let table = [
            ("5", 5_000),
            ("2.5", 2_500),
            ("1.001sat/vB", 1_001),
            ("10000", 10_000_000),
        ];
        for (text, rate) in table {
            assert_eq!(text.parse(), Ok(Feerate { sat_per_kvb: rate }), "{text}");
        }
        for wrong in [
            "",
            ".5",
            "0.9",
            "-1",
            "1.0001",
            "10001",
            "1e3",
            "+5",
            "99999999999999999999",
        ] {
            assert!(wrong.parse::<Feerate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn coins_are_whole() {
        assert_eq!("50 000 sat".parse(), Ok(WholeSat(50_000)));
        assert_eq!("0.0005 BTC".parse(), Ok(WholeSat(50_000)));
        for wrong in ["0sat", "1.5sat", "1500msat", "50000", "0.000000001BTC"] {
            assert!(wrong.parse::<WholeSat>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bitcoin_are_exact_and_never_guessed() {
        let table = [
            ("1BTC", 100_000_000_000),
            ("0.00000001 BTC", 1_000),
            ("0.00000000001btc", 1),
            ("21000000BTC", 2_100_000_000_000_000_000),
            ("500sat", 500_000),
        ];
        for (text, msat) in table {
            assert_eq!(text.parse(), Ok(Money(Msat::from_msat(msat))), "{text}");
        }
        for wrong in [
            "BTC",
            ".5BTC",
            "-1BTC",
            "1e3BTC",
            "0.000000000001BTC",
            "999999999999BTC",
            "1mBTC",
        ] {
            assert!(wrong.parse::<Money>().is_err(), "{wrong}");
        }
    }
}
