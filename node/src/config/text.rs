//! Amounts as the operator writes them: text with a unit, `"120 sat/GB"`, never a bare number.
//!
//! Written back exactly, in the base unit, because a rounded figure in the file would change what
//! it says each time it is saved.

use std::fmt::Display;
use std::str::FromStr;

use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// An amount that can be written without loss.
pub(super) trait Exact {
    /// Returns the amount in its base unit, as text that reads back to the same value.
    fn exact(&self) -> String;
}

impl Exact for Bytes {
    fn exact(&self) -> String {
        format!("{} B", self.get())
    }
}

impl Exact for BytesPerSecond {
    fn exact(&self) -> String {
        format!("{} B/s", self.get())
    }
}

impl Exact for Price {
    fn exact(&self) -> String {
        format!("{} msat/GB", self.msat_per_gb())
    }
}

pub(super) fn serialize<T: Exact, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.exact())
}

pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(from)?;
    text.parse().map_err(D::Error::custom)
}
