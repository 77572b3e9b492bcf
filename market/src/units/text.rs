//! Units as people write and read them.
//!
//! Parsing is exact: digits are scaled in integers, a missing unit is an error because a bare
//! number has cost people money, and an amount of money finer than a millisatoshi is refused
//! rather than rounded. Bytes and rates written as fractions round down to whole bytes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::{BYTES_PER_GB, Bytes, BytesPerSecond, MSAT_PER_SAT, Msat, Price};

/// Why a text is not an amount, a size, a rate or a price. Carries what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseUnitError {
    /// There is no number at the front of the text.
    #[error("\"{text}\" does not start with a number; write it like {example}")]
    Number {
        /// What was written.
        text: String,
        /// A text that would have been accepted.
        example: &'static str,
    },
    /// There is a number but no unit behind it.
    #[error("\"{text}\" has no unit; write it like {example}")]
    NoUnit {
        /// What was written.
        text: String,
        /// A text that would have been accepted.
        example: &'static str,
    },
    /// The unit is not one of those accepted here.
    #[error("unknown unit \"{unit}\"; write it like {example}")]
    Unit {
        /// The unit that was written.
        unit: String,
        /// A text that would have been accepted.
        example: &'static str,
    },
    /// The number is finer than the smallest unit there is.
    #[error("\"{text}\" is finer than one {smallest}")]
    TooFine {
        /// What was written.
        text: String,
        /// The smallest unit.
        smallest: &'static str,
    },
    /// The number does not fit.
    #[error("\"{text}\" is too large")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// What to do with a remainder below the smallest unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remainder {
    Refuse(&'static str),
    Drop,
}

/// A unit as `numerator / denominator` of the smallest one.
type Scale = (u128, u128);

/// Digits of a fraction that are read. More cannot matter: the largest unit is 10^18 of the smallest.
const MAX_FRACTION_DIGITS: usize = 18;

/// Splits `text` into number and unit, finds the unit's scale and applies it without floats.
fn parse(
    text: &str,
    example: &'static str,
    remainder: Remainder,
    scale_of: impl Fn(&str) -> Option<Scale>,
) -> Result<u64, ParseUnitError> {
    let trimmed = text.trim();
    let is_number = |c: char| c.is_ascii_digit() || c == '.' || is_grouping(c);
    let end = trimmed.find(|c| !is_number(c)).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit = unit.trim();

    let bad_number = || ParseUnitError::Number {
        text: text.to_owned(),
        example,
    };
    let (whole, fraction) = match number.trim_end().split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number.trim_end(), None),
    };
    let whole = ungrouped(whole).ok_or_else(bad_number)?;
    let is_fraction =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
    let fraction = match fraction {
        Some(fraction) if !is_fraction(fraction) => return Err(bad_number()),
        Some(fraction) => fraction.trim_end_matches('0'),
        None => "",
    };
    if unit.is_empty() {
        return Err(ParseUnitError::NoUnit {
            text: text.to_owned(),
            example,
        });
    }
    let (numerator, denominator) = scale_of(unit).ok_or_else(|| ParseUnitError::Unit {
        unit: unit.to_owned(),
        example,
    })?;

    let too_large = || ParseUnitError::TooLarge {
        text: text.to_owned(),
    };
    if fraction.len() > MAX_FRACTION_DIGITS {
        return Err(ParseUnitError::TooFine {
            text: text.to_owned(),
            smallest: "digit this can hold",
        });
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let parts: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| bad_number())?
    };
    let base = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| too_large())?);
    // The whole part and the fraction are scaled apart so that neither product can wrap:
    // whole < 2^64 and scale <= 10^18 < 2^60; parts < base <= 10^18.
    let scaled_whole = u128::from(whole) * numerator;
    let scaled_parts = parts * numerator;
    let total = scaled_whole
        .checked_mul(base)
        .and_then(|whole| whole.checked_add(scaled_parts));
    let divisor = base * denominator;
    let (value, left) = match total {
        Some(total) => (total / divisor, total % divisor),
        // Only reachable for values whose whole part alone is far beyond 64 bits.
        None => return Err(too_large()),
    };
    if let (Remainder::Refuse(smallest), true) = (remainder, left != 0) {
        return Err(ParseUnitError::TooFine {
            text: text.to_owned(),
            smallest,
        });
    }
    u64::try_from(value).map_err(|_| too_large())
}

/// Characters people and programs put between groups of three digits.
fn is_grouping(c: char) -> bool {
    matches!(c, ' ' | '_' | '\u{a0}' | '\u{2009}' | '\u{202f}')
}

/// The digits of a whole number; `None` if there are none, or separators stand anywhere but before
/// each three digits (`1 5` is a slip of the finger, not fifteen).
fn ungrouped(number: &str) -> Option<String> {
    let mut groups = number.split(is_grouping);
    let first = groups.next()?;
    let is_digits = |group: &str| group.bytes().all(|c| c.is_ascii_digit());
    let mut digits = first.to_owned();
    let mut has_groups = false;
    for group in groups {
        if group.len() != 3 {
            return None;
        }
        has_groups = true;
        digits.push_str(group);
    }
    let first_is_right = !first.is_empty() && (!has_groups || first.len() <= 3);
    (first_is_right && is_digits(&digits)).then_some(digits)
}

fn money_scale(unit: &str) -> Option<Scale> {
    match unit {
        "msat" | "msats" => Some((1, 1)),
        "sat" | "sats" => Some((u128::from(MSAT_PER_SAT), 1)),
        _ => None,
    }
}

/// Sizes in bytes. A lower-case `b` is accepted only where nothing is capital, because `Gb` means bits.
fn size_scale(unit: &str) -> Option<Scale> {
    let bytes = match unit {
        "B" | "b" | "byte" | "bytes" => 1,
        "kB" | "KB" | "kb" => 1_000,
        "MB" | "mb" => 1_000_000,
        "GB" | "gb" => 1_000_000_000,
        "TB" | "tb" => 1_000_000_000_000,
        "PB" | "pb" => 1_000_000_000_000_000,
        "KiB" | "kib" => 1 << 10,
        "MiB" | "mib" => 1 << 20,
        "GiB" | "gib" => 1 << 30,
        "TiB" | "tib" => 1 << 40,
        "PiB" | "pib" => 1 << 50,
        _ => return None,
    };
    Some((bytes, 1))
}

fn rate_scale(unit: &str) -> Option<Scale> {
    let bits = match unit {
        "bit/s" | "bps" => 1,
        "kbit/s" | "kbps" => 1_000,
        "Mbit/s" | "mbit/s" | "Mbps" | "mbps" => 1_000_000,
        "Gbit/s" | "gbit/s" | "Gbps" | "gbps" => 1_000_000_000,
        _ => return size_scale(unit.strip_suffix("/s")?),
    };
    Some((bits, 8))
}

fn price_scale(unit: &str) -> Option<Scale> {
    let (money, size) = unit.split_once('/')?;
    let (msat, _) = money_scale(money.trim())?;
    let (bytes, _) = size_scale(size.trim())?;
    Some((msat * u128::from(BYTES_PER_GB), bytes))
}

impl FromStr for Msat {
    type Err = ParseUnitError;

    /// Reads `120sat`, `12 345 sat`, `3.250 sat` or `250msat`.
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        parse(text, "100sat", Remainder::Refuse("msat"), money_scale).map(Self)
    }
}

impl FromStr for Bytes {
    type Err = ParseUnitError;

    /// Reads `2GB`, `1.5 MB` (decimal) or `256KiB` (binary); fractions of a byte round down.
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        parse(text, "2GB", Remainder::Drop, size_scale).map(Self)
    }
}

impl FromStr for BytesPerSecond {
    type Err = ParseUnitError;

    /// Reads `20Mbit/s`, `20Mbps` or `2.5MB/s`; fractions of a byte per second round down.
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        parse(text, "20Mbit/s", Remainder::Drop, rate_scale).map(Self)
    }
}

impl FromStr for Price {
    type Err = ParseUnitError;

    /// Reads `120sat/GB`, `3.250 sat/GB`, `1500msat/GB` or another size that comes out exact.
    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        parse(text, "120sat/GB", Remainder::Refuse("msat/GB"), price_scale).map(Self)
    }
}

/// Below this, millisatoshi are shown (surfaces: `3.250 sat`).
const SHOW_MSAT_BELOW: u64 = 10 * MSAT_PER_SAT;

/// Writes `12 345 sat`, or `3.250 sat` below ten satoshi.
fn money_text(msat: u64) -> String {
    let sat = msat / MSAT_PER_SAT;
    let rest = msat % MSAT_PER_SAT;
    if msat < SHOW_MSAT_BELOW && rest != 0 {
        format!("{sat}.{rest:03} sat")
    } else {
        format!("{} sat", grouped(sat))
    }
}

/// Puts a space between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Whether zeros at the end of a fraction are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Keep,
    Trim,
}

/// Writes `value` with three significant digits in the largest of `units` it reaches.
///
/// Rounds half up; `999_999` in decimal units is `1.00 MB`, not `1000 kB`. The first unit is shown
/// in whole numbers.
fn three_digits(value: u128, units: &[(&str, u128)], zeros: Zeros) -> String {
    // A unit is reached when the one below it would need a fourth digit.
    let reached = units
        .windows(2)
        .rev()
        .find(|pair| rounded(value, pair[0].1) >= 1_000)
        .map(|pair| pair[1]);
    let Some((name, size)) = reached else {
        let name = units.first().map_or("", |(name, _)| name);
        return format!("{value} {name}");
    };
    // Hundredths of the unit if that makes three digits, else tenths, else whole ones.
    let (hundredths, tenths) = (rounded(value * 100, size), rounded(value * 10, size));
    let mut text = if hundredths < 1_000 {
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    } else if tenths < 1_000 {
        format!("{}.{}", tenths / 10, tenths % 10)
    } else {
        rounded(value, size).to_string()
    };
    if zeros == Zeros::Trim && text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text} {name}")
}

/// `value / size`, rounded half up.
const fn rounded(value: u128, size: u128) -> u128 {
    (value * 2 + size) / (size * 2)
}

const SIZES: [(&str, u128); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("EB", 1_000_000_000_000_000_000),
];

const BIT_RATES: [(&str, u128); 5] = [
    ("bit/s", 1),
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
    ("Tbit/s", 1_000_000_000_000),
];

impl fmt::Display for Msat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&money_text(self.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&three_digits(u128::from(self.0), &SIZES, Zeros::Keep))
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(self.0) * 8;
        f.pad(&three_digits(bits, &BIT_RATES, Zeros::Trim))
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/GB", money_text(self.0)))
    }
}
