//! Words on the wire: one encoding for every value, checked before it is believed.
//!
//! The encoding is CBOR in the deterministic form of RFC 8949 §4.2.1: shortest integers and
//! lengths, definite lengths only, map keys sorted and unique. Floats, tags and `undefined` do not
//! occur. [`decode`] refuses everything else, so a value has exactly one encoding and a digest of
//! its bytes names it.
//!
//! The CBOR reader underneath is lenient (it takes long forms, tags, trailing bytes and an array
//! where a byte string belongs), so nothing reaches it that [`decode`] has not walked first, and
//! what it makes of the bytes must encode back to the same bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

mod form;
pub(crate) mod map;

pub use form::FormError;
pub(crate) use map::cbor_map;
pub use map::{FIRST_OPTIONAL_KEY, Unknown};

/// How deep values may nest. A message of this project needs 4; the stack of a thread, hundreds.
pub const MAX_DEPTH: usize = 8;

/// Why bytes are not the value they should be. Whoever sent them is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// More bytes than such a value may have. Nothing was parsed.
    #[error("{length} bytes, at most {max} allowed")]
    TooLong {
        /// Bytes received.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not CBOR in its deterministic form.
    #[error(transparent)]
    Form(#[from] FormError),
    /// Well-formed, but not the fields this type has.
    #[error("unexpected content: {reason}")]
    Content {
        /// What the reader expected and found.
        reason: String,
    },
    /// Readable, but written another way than this value is written.
    #[error("not the only encoding of this value")]
    SecondEncoding,
}

/// Encodes `value` in the one form that [`decode`] accepts.
///
/// Maps must come out with sorted keys. Types made with this crate's field macro do; a derived
/// struct does if its field names are in order of length, then of bytes.
///
/// # Panics
///
/// Only if the `Serialize` implementation itself reports an error, which those of this project do
/// not: writing to memory cannot fail.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(TYPICAL_BYTES);
    ciborium::into_writer(value, &mut bytes).expect("writing to memory does not fail");
    bytes
}

/// First allocation of an encoding: most messages fit without growing.
const TYPICAL_BYTES: usize = 256;

/// Decodes exactly one value that fills `bytes`, in its one encoding and at most `max` bytes long.
///
/// # Errors
///
/// [`WireError::TooLong`] before anything is parsed, else the first thing found wrong.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, WireError> {
    if bytes.len() > max {
        return Err(WireError::TooLong {
            length: bytes.len(),
            max,
        });
    }
    form::check(bytes)?;
    let value: T =
        ciborium::de::from_reader_with_recursion_limit(bytes, MAX_DEPTH * 2).map_err(|error| {
            WireError::Content {
                reason: reason(error),
            }
        })?;
    if encodes_to(&value, bytes) {
        Ok(value)
    } else {
        Err(WireError::SecondEncoding)
    }
}

/// The human part of a reader's error. Bounded: it may quote what a peer sent.
fn reason(error: ciborium::de::Error<std::io::Error>) -> String {
    const MAX_CHARS: usize = 120;
    let reason = match error {
        ciborium::de::Error::Semantic(_, reason) => reason,
        ciborium::de::Error::Io(_) => "ends too early".to_owned(),
        ciborium::de::Error::Syntax(_) => "not text where text belongs".to_owned(),
        ciborium::de::Error::RecursionLimitExceeded => "nests too deep".to_owned(),
    };
    reason.chars().take(MAX_CHARS).collect()
}

/// Whether `value` encodes to exactly `expected`, without building the encoding.
fn encodes_to<T: Serialize>(value: &T, expected: &[u8]) -> bool {
    /// Takes what is written off the front of what is expected, and fails at the first difference.
    struct Comparer<'a>(&'a [u8]);

    impl std::io::Write for Comparer<'_> {
        fn write(&mut self, written: &[u8]) -> std::io::Result<usize> {
            match self.0.strip_prefix(written) {
                Some(rest) => {
                    self.0 = rest;
                    Ok(written.len())
                }
                None => Err(std::io::ErrorKind::InvalidData.into()),
            }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let mut comparer = Comparer(expected);
    ciborium::into_writer(value, &mut comparer).is_ok() && comparer.0.is_empty()
}

#[cfg(test)]
mod tests;
