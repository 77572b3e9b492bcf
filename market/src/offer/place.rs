//! Where a seller is: country, geohash cell, network addresses. All of it the seller's choice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// A country or region by its two capital letters (ISO 3166-1, or `EU`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region([u8; 2]);

/// The text is not two capital ASCII letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a region is two capital letters, like DE")]
pub struct BadRegionError;

impl Region {
    /// The two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a region is ASCII letters")
    }
}

impl FromStr for Region {
    type Err = BadRegionError;

    fn from_str(text: &str) -> Result<Self, BadRegionError> {
        let letters: [u8; 2] = text.as_bytes().try_into().map_err(|_| BadRegionError)?;
        if letters.iter().all(u8::is_ascii_uppercase) {
            Ok(Self(letters))
        } else {
            Err(BadRegionError)
        }
    }
}

/// Finest cell: 6 characters, about 1.2 × 0.6 km. Nobody needs to know more about a seller.
pub const MAX_CELL_CHARS: usize = 6;

/// A geohash cell of 1 to 6 characters. Each further character divides the cell by 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// Unused places are zero, so that derived equality and order are right.
    chars: [u8; MAX_CELL_CHARS],
}

/// The text is not a geohash of 1 to 6 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a cell is a geohash of 1 to 6 characters, like u33d")]
pub struct BadCellError;

impl Cell {
    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let length = self.chars.iter().take_while(|c| **c != 0).count();
        let chars = self.chars.get(..length).unwrap_or_default();
        std::str::from_utf8(chars).expect("a cell is ASCII")
    }

    /// Whether `other` lies in this cell or is this cell.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.as_str().starts_with(self.as_str())
    }
}

impl FromStr for Cell {
    type Err = BadCellError;

    fn from_str(text: &str) -> Result<Self, BadCellError> {
        const ALPHABET: &[u8] = b"0123456789bcdefghjkmnpqrstuvwxyz";
        let is_cell = (1..=MAX_CELL_CHARS).contains(&text.len())
            && text.bytes().all(|char| ALPHABET.contains(&char));
        if !is_cell {
            return Err(BadCellError);
        }
        let mut chars = [0; MAX_CELL_CHARS];
        for (place, char) in chars.iter_mut().zip(text.bytes()) {
            *place = char;
        }
        Ok(Self { chars })
    }
}

/// Longest address: a QUIC multiaddr with a name of 40 characters.
pub const MAX_ADDRESS_BYTES: usize = 64;

/// Where a seller can be dialled: a binary multiaddr, opaque to the market.
///
/// Only its length is checked here. Whoever dials decides whether it may be dialled at all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Box<[u8]>);

/// Empty, or longer than [`MAX_ADDRESS_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an address has 1 to 64 bytes")]
pub struct BadAddressError;

impl Address {
    /// Takes the binary form of a multiaddr.
    ///
    /// # Errors
    ///
    /// [`BadAddressError`] if it is empty or too long to be in an offer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadAddressError> {
        if (1..=MAX_ADDRESS_BYTES).contains(&bytes.len()) {
            Ok(Self(bytes.into()))
        } else {
            Err(BadAddressError)
        }
    }

    /// The binary multiaddr.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Self::from_bytes(&bytes).map_err(de::Error::custom)
    }
}

/// `Display`, `Debug` and serde through the text form.
macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(stringify!($name))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

as_text!(Region);
as_text!(Cell);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_contains_finer_cells_and_itself() {
        let cell = |text: &str| text.parse::<Cell>().unwrap();
        assert!(cell("u33").contains(&cell("u33d")));
        assert!(cell("u33").contains(&cell("u33")));
        assert!(!cell("u33d").contains(&cell("u33")));
        assert!(!cell("u33").contains(&cell("u34d")));
    }

    #[test]
    fn only_geohashes_are_cells_and_only_capital_pairs_are_regions() {
        for text in ["", "u33d8jx", "a", "U33", "u 3", "ü"] {
            assert!(text.parse::<Cell>().is_err(), "{text}");
        }
        for text in ["", "D", "de", "DEU", "1A", "ü"] {
            assert!(text.parse::<Region>().is_err(), "{text}");
        }
        assert_eq!("DE".parse::<Region>().unwrap().to_string(), "DE");
    }

    #[test]
    fn an_address_is_neither_empty_nor_long() {
        assert!(Address::from_bytes(&[]).is_err());
        assert!(Address::from_bytes(&[0; MAX_ADDRESS_BYTES]).is_ok());
        assert!(Address::from_bytes(&[0; MAX_ADDRESS_BYTES + 1]).is_err());
    }
}
