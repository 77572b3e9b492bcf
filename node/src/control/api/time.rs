//! Moments, as the API writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

const DAY: u64 = 86_400;

/// 9999-12-31T23:59:59Z, the last moment that RFC 3339 can write.
const LAST: u64 = 253_402_300_799;

/// A moment to the second, written `2026-03-01T12:00:00Z`: RFC 3339, always UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Returns the moment `seconds` after 1970-01-01T00:00:00Z. Moments after the year 9999 are
    /// drawn back to its end, which is as far as RFC 3339 goes.
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.min(LAST))
    }

    /// Returns the seconds since 1970-01-01T00:00:00Z.
    pub fn unix(self) -> u64 {
        self.0
    }
}

/// Text that is not a moment in the form `2026-03-01T12:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a UTC time like 2026-03-01T12:00:00Z")]
pub struct InvalidTimestampError;

// The civil calendar in closed form (Howard Hinnant, "chrono-Compatible Low-Level Date
// Algorithms"): years begin in March, so that the leap day is the last of its year.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0 / DAY + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let second = self.0 % DAY;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            second / 3_600,
            second / 60 % 60,
            second % 60
        )
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let punctuation = [
            (4, b'-'),
            (7, b'-'),
            (10, b'T'),
            (13, b':'),
            (16, b':'),
            (19, b'Z'),
        ];
        if bytes.len() != 20 || punctuation.iter().any(|&(at, mark)| bytes[at] != mark) {
            return Err(InvalidTimestampError);
        }
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().try_fold(0_u64, |sum, byte| {
                byte.is_ascii_digit()
                    .then(|| sum * 10 + u64::from(byte - b'0'))
            })
        };
        let all = (
            number(0, 4),
            number(5, 7),
            number(8, 10),
            number(11, 13),
            number(14, 16),
            number(17, 19),
        );
        let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) = all
        else {
            return Err(InvalidTimestampError);
        };
        let in_range = year >= 1970
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !in_range {
            return Err(InvalidTimestampError);
        }
        let shifted_year = if month <= 2 { year - 1 } else { year };
        let shifted_month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
        let year_of_era = shifted_year % 400;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = shifted_year / 400 * 146_097 + day_of_era - 719_468;
        let moment = Self(days * DAY + hour * 3_600 + minute * 60 + second);
        // A day that its month does not have lands in the next month and reads back differently.
        if moment.to_string() == text {
            Ok(moment)
        } else {
            Err(InvalidTimestampError)
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "A moment to the second: RFC 3339, always UTC.",
            "examples": ["2026-03-01T12:00:00Z"],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments_are_written_as_others_write_them() {
        // `date -u -d @N +%FT%TZ`
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_231_006_505, "2009-01-03T18:15:05Z"),
            (1_772_366_400, "2026-03-01T12:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(Timestamp::from_unix(seconds).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_moment_is_refused() {
        for text in [
            "",
            "2026-03-01",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-03-01T24:00:00Z",
            "2026-03-01T12:00:00+0",
            "2026-03-01 12:00:00Z",
            "20２6-03-01T12:00Z",
            "1969-12-31T23:59:59Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_reads_back_as_itself(seconds in 0..=LAST) {
            let moment = Timestamp::from_unix(seconds);
            prop_assert_eq!(moment.to_string().parse::<Timestamp>(), Ok(moment));
        }
    }
}
