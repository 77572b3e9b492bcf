//! A walk over CBOR that accepts the deterministic form and nothing else.
//!
//! No allocation, bounded depth, every length checked against what is there: safe on any bytes.

use std::cmp::Ordering;

use thiserror::Error;

use super::MAX_DEPTH;

/// Where and why bytes are not CBOR in its deterministic form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what} at byte {offset}")]
pub struct FormError {
    /// Where the offending item starts.
    pub offset: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Checks that `bytes` are exactly one item in deterministic form.
pub(super) fn check(bytes: &[u8]) -> Result<(), FormError> {
    let mut walk = Walk { bytes, offset: 0 };
    walk.item(MAX_DEPTH)?;
    if walk.offset == bytes.len() {
        Ok(())
    } else {
        Err(wrong(walk.offset, "bytes after the end"))
    }
}

const fn wrong(offset: usize, what: &'static str) -> FormError {
    FormError { offset, what }
}

struct Walk<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Walk<'_> {
    /// Walks one item that may hold `depth` more levels.
    fn item(&mut self, depth: usize) -> Result<(), FormError> {
        let start = self.offset;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(wrong(start, "nests too deep"));
        };
        let (major, argument) = self.head()?;
        match major {
            // Unsigned and negative integers are their head.
            0 | 1 => Ok(()),
            2 => self.skip(start, argument).map(|_| ()),
            3 => {
                let text = self.skip(start, argument)?;
                match std::str::from_utf8(text) {
                    Ok(_) => Ok(()),
                    Err(_) => Err(wrong(start, "text that is not UTF-8")),
                }
            }
            4 => {
                self.require(start, argument)?;
                for _ in 0..argument {
                    self.item(depth)?;
                }
                Ok(())
            }
            5 => self.map(start, argument, depth),
            6 => Err(wrong(start, "a tag")),
            _ => match argument {
                // false, true, null
                20..=22 => Ok(()),
                _ => Err(wrong(start, "a float or unknown simple value")),
            },
        }
    }

    fn map(&mut self, start: usize, entries: u64, depth: usize) -> Result<(), FormError> {
        self.require(start, entries.saturating_mul(2))?;
        let mut previous: Option<(usize, usize)> = None;
        for _ in 0..entries {
            let key_start = self.offset;
            self.item(depth)?;
            let key = (key_start, self.offset);
            if let Some(previous) = previous
                && self.span(previous).cmp(self.span(key)) != Ordering::Less
            {
                return Err(wrong(key_start, "a map key out of order or twice"));
            }
            previous = Some(key);
            self.item(depth)?;
        }
        Ok(())
    }

    fn span(&self, (start, end): (usize, usize)) -> &[u8] {
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// Reads major type and argument, refusing every form but the shortest.
    fn head(&mut self) -> Result<(u8, u64), FormError> {
        let start = self.offset;
        let initial = self.byte(start)?;
        let (major, short) = (initial >> 5, initial & 0x1f);
        let (argument, least) = match short {
            0..=23 => return Ok((major, u64::from(short))),
            24 => (self.big_endian(start, 1)?, 24),
            25 => (self.big_endian(start, 2)?, 1 << 8),
            26 => (self.big_endian(start, 4)?, 1 << 16),
            27 => (self.big_endian(start, 8)?, 1 << 32),
            28..=30 => return Err(wrong(start, "a reserved length")),
            _ => return Err(wrong(start, "an indefinite length")),
        };
        if major == 7 {
            return Err(wrong(start, "a float or unknown simple value"));
        }
        if argument < least {
            return Err(wrong(
                start,
                "an integer or length that is not the shortest",
            ));
        }
        Ok((major, argument))
    }

    fn byte(&mut self, start: usize) -> Result<u8, FormError> {
        let Some(byte) = self.bytes.get(self.offset) else {
            return Err(wrong(start, "the end came too early"));
        };
        self.offset += 1;
        Ok(*byte)
    }

    fn big_endian(&mut self, start: usize, length: usize) -> Result<u64, FormError> {
        let mut argument = 0;
        for _ in 0..length {
            argument = argument << 8 | u64::from(self.byte(start)?);
        }
        Ok(argument)
    }

    /// Checks that at least `items` bytes are left: no item is shorter than one byte.
    fn require(&self, start: usize, items: u64) -> Result<usize, FormError> {
        let left = self.bytes.len() - self.offset;
        match usize::try_from(items) {
            Ok(items) if items <= left => Ok(items),
            _ => Err(wrong(start, "the end came too early")),
        }
    }

    fn skip(&mut self, start: usize, length: u64) -> Result<&[u8], FormError> {
        let length = self.require(start, length)?;
        let from = self.offset;
        self.offset += length;
        Ok(self.span((from, from + length)))
    }
}
