//! The time that signed things carry.
//!
//! [`UnixTime`] is one of three clocks that are never compared with one another: `Instant` is for
//! patience, `UnixTime` for what is signed, block height for channels. It is passed in by the
//! shell; nothing here reads a clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Whole seconds since 1970-01-01T00:00:00 UTC.
///
/// [`Display`](fmt::Display) writes RFC 3339 in UTC; serde keeps the number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixTime(u64);

impl UnixTime {
    /// Makes a time from seconds since the epoch.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs)
    }

    /// Seconds since the epoch.
    #[must_use]
    pub const fn secs(self) -> u64 {
        self.0
    }

    /// The time `duration` later, fractions of a second dropped; `None` if it does not fit.
    #[must_use]
    pub const fn checked_add(self, duration: Duration) -> Option<Self> {
        match self.0.checked_add(duration.as_secs()) {
            Some(secs) => Some(Self(secs)),
            None => None,
        }
    }

    /// The time `duration` later, or the end of time.
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }

    /// The time `duration` earlier, or the epoch.
    #[must_use]
    pub const fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_secs()))
    }

    /// How long until `later`; zero if that is not in the future.
    #[must_use]
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_secs(later.0.saturating_sub(self.0))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// 9999-12-31T23:59:59Z, the last moment RFC 3339 can write.
        const LAST: u64 = 253_402_300_799;
        if self.0 > LAST {
            return f.pad(&format!("@{}", self.0));
        }
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // Civil date from a count of days, years starting in March so that leap days come last.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        f.pad(&format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        ))
    }
}

/// How long a signed thing is good for, in whole seconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Ttl(u32);

impl Ttl {
    /// Makes a lifetime from seconds.
    #[must_use]
    pub const fn from_secs(secs: u32) -> Self {
        Self(secs)
    }

    /// The lifetime in seconds.
    #[must_use]
    pub const fn secs(self) -> u32 {
        self.0
    }

    /// The lifetime as a duration.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    /// When something made at `start` expires; `None` if that does not fit.
    #[must_use]
    pub const fn expiry(self, start: UnixTime) -> Option<UnixTime> {
        start.checked_add(self.as_duration())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_rfc_3339() {
        let shown = |secs| UnixTime::from_secs(secs).to_string();
        assert_eq!(shown(0), "1970-01-01T00:00:00Z");
        assert_eq!(shown(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(shown(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(shown(1_767_225_600), "2026-01-01T00:00:00Z");
        assert_eq!(shown(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(shown(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(shown(u64::MAX), "@18446744073709551615");
    }

    #[test]
    fn time_does_not_wrap() {
        let end = UnixTime::from_secs(u64::MAX);
        assert_eq!(end.checked_add(Duration::from_secs(1)), None);
        assert_eq!(end.saturating_add(Duration::MAX), end);
        assert_eq!(end.until(UnixTime::default()), Duration::ZERO);
        assert_eq!(Ttl::from_secs(1).expiry(end), None);
    }
}
