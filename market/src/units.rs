//! Money, bytes, rates and prices: integers whose unit is in the name of the constructor.
//!
//! This is the only place of the project that rounds. All of it works on running totals: a cost is
//! always `price.cost_of(total bytes)`, never a sum of increments, so that rounding happens once
//! and both sides of a trade agree however often each of them asks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

mod text;

pub use text::ParseUnitError;

/// Bytes in a gigabyte, the unit prices are quoted in. Decimal: a GB is 10^9 bytes.
pub const BYTES_PER_GB: u64 = 1_000_000_000;

/// Millisatoshi in a satoshi.
pub const MSAT_PER_SAT: u64 = 1_000;

/// An amount of money in millisatoshi.
///
/// Prices and running totals are kept in millisatoshi; a channel pays whole satoshi, so the border
/// to the wallet goes through [`sat_ceil`](Self::sat_ceil) (what is owed) or
/// [`sat_floor`](Self::sat_floor) (what is held).
///
/// [`Display`](std::fmt::Display) is for people: from 10 sat up it shows whole satoshi, rounded
/// down. Anything a machine reads uses [`msat`](Self::msat) or serde, which keep every digit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Msat(u64);

impl Msat {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest amount that can be held: more than every bitcoin there will be.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes an amount from millisatoshi.
    #[must_use]
    pub const fn from_msat(msat: u64) -> Self {
        Self(msat)
    }

    /// Makes an amount from whole satoshi; `None` if it does not fit.
    #[must_use]
    pub const fn from_sat(sat: u64) -> Option<Self> {
        match sat.checked_mul(MSAT_PER_SAT) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// The amount in millisatoshi.
    #[must_use]
    pub const fn msat(self) -> u64 {
        self.0
    }

    /// The amount in whole satoshi, rounded down: what a holder may count on.
    #[must_use]
    pub const fn sat_floor(self) -> u64 {
        self.0 / MSAT_PER_SAT
    }

    /// The amount in whole satoshi, rounded up: what settles a debt of this size.
    #[must_use]
    pub const fn sat_ceil(self) -> u64 {
        self.0.div_ceil(MSAT_PER_SAT)
    }

    /// The sum; `None` if it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference; `None` if `other` is more.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The difference, or nothing if `other` is more. For headroom, never for balances.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or [`Msat::MAX`]. For limits, never for balances.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Whether this is no money at all.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// A number of bytes, usually a running total.
///
/// [`Display`](std::fmt::Display) shows three significant digits in decimal units (`2.00 GB`);
/// parsing accepts decimal and binary units (`2GB`, `256KiB`) and insists on one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// None.
    pub const ZERO: Self = Self(0);
    /// More than any line carries; stands for "no limit" where a limit is compared.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a count from single bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The count in single bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum; `None` if it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference; `None` if `other` is more.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The sum, or [`Bytes::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero if `other` is more.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// A rate of transfer in bytes per second, both directions summed.
///
/// People meet it in bits: [`Display`](std::fmt::Display) shows `20 Mbit/s`, and parsing accepts
/// `20Mbit/s` as well as `2.5MB/s`. One Mbit/s is 125 000 bytes per second.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BytesPerSecond(u64);

impl BytesPerSecond {
    /// Makes a rate from bytes (not bits) per second.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Self {
        Self(bytes_per_second)
    }

    /// The rate in bytes (not bits) per second.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The bytes this rate carries in `duration`, rounded down; [`Bytes::MAX`] if it does not fit.
    #[must_use]
    pub fn over(self, duration: Duration) -> Bytes {
        const NANOS_PER_SECOND: u128 = 1_000_000_000;
        // u64::MAX bytes/s over Duration::MAX is about 2^158: split the multiplication.
        let whole = u128::from(self.0).saturating_mul(u128::from(duration.as_secs()));
        let part = u128::from(self.0) * u128::from(duration.subsec_nanos()) / NANOS_PER_SECOND;
        Bytes(u64::try_from(whole.saturating_add(part)).unwrap_or(u64::MAX))
    }
}

/// A price per gigabyte, in millisatoshi per 10^9 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Price(u64);

impl Price {
    /// Free of charge.
    pub const ZERO: Self = Self(0);
    /// The highest price that can be written down.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a price from millisatoshi per GB (10^9 bytes).
    #[must_use]
    pub const fn from_msat_per_gb(msat: u64) -> Self {
        Self(msat)
    }

    /// The price in millisatoshi per GB (10^9 bytes).
    #[must_use]
    pub const fn msat_per_gb(self) -> u64 {
        self.0
    }

    /// Returns the cost of `total` bytes, rounded up to a whole millisatoshi.
    ///
    /// Always pass the running total, never an increment: rounding then happens once per session
    /// instead of once per call, and the two sides agree however often each one asks.
    ///
    /// Returns `None` if the cost does not fit in [`Msat`].
    #[must_use]
    pub fn cost_of(self, total: Bytes) -> Option<Msat> {
        let product = u128::from(self.0) * u128::from(total.0);
        let msat = product.div_ceil(u128::from(BYTES_PER_GB));
        u64::try_from(msat).ok().map(Msat)
    }

    /// Returns the largest number of bytes whose cost is at most `total`.
    ///
    /// This is the exact inverse of [`cost_of`](Self::cost_of): one byte more would cost more than
    /// `total`. At a price of zero everything is paid for, and the answer is [`Bytes::MAX`].
    #[must_use]
    pub fn bytes_for(self, total: Msat) -> Bytes {
        if self.0 == 0 {
            return Bytes::MAX;
        }
        // ceil(p·n / G) <= t  ⇔  p·n / G <= t (t is whole)  ⇔  n <= t·G / p
        let bytes = u128::from(total.0) * u128::from(BYTES_PER_GB) / u128::from(self.0);
        Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
