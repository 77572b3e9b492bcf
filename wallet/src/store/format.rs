//! The bytes of a journal.
//!
//! ```text
//! header   "bitmeshj" (8)  version (u32)  CRC-32C of the 12 bytes before (u32)
//! record   length of the payload (u32)  kind (u8)  flags (u8)
//!          CRC-32C of offset and the 6 bytes before (u32)
//!          payload
//!          CRC-32C of offset and everything before in this record (u32)
//! ```
//!
//! Numbers are little-endian; *offset* is the record's place in the file as u64, so that a record
//! is valid in one place only. Flag bit 0, the *barrier*, says that everything before this record
//! was durable when it was written. It tells a crash from damage: a crash can only spoil what
//! comes after the last barrier; a spoiled record with a barrier after it was durable once.

/// The first bytes of every journal.
pub const HEADER: [u8; 16] = header();

/// Version of this layout.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"bitmeshj";
/// Length of a record before its payload, in bytes.
pub const HEAD: usize = 10;
const TAIL: usize = 4;

/// What a record has beside its payload, in bytes.
pub(super) const AROUND: usize = HEAD + TAIL;

const BARRIER: u8 = 1;

/// The unit in which a disk writes all or nothing.
const SECTOR: usize = 512;

const fn header() -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = MAGIC;
    let [i, j, k, l] = VERSION.to_le_bytes();
    // CRC-32C of the bytes before; a test holds it against the function that is not `const`.
    let [m, n, o, p] = HEADER_CRC.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

const HEADER_CRC: u32 = 0x7b2c_3ceb;

/// Where a journal is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Offset of the first record that is not intact.
    pub offset: u64,
    /// How many records before it are.
    pub intact: usize,
}

/// What a journal's bytes hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Records and nothing else.
    Whole {
        /// They.
        entries: Vec<super::Entry>,
    },
    /// Records, then a write that a crash cut short.
    Torn {
        /// The records before.
        entries: Vec<super::Entry>,
        /// Length of the file up to which it is good.
        length: usize,
    },
    /// Another kind of file, or another version.
    Version,
    /// Something that was durable is not intact.
    Damaged(Damage),
}

/// Lays out a record that will stand at `offset`. `None` if it is too long or its kind is 0.
pub fn record(offset: u64, kind: u8, payload: &[u8], is_barrier: bool) -> Option<Vec<u8>> {
    if kind == 0 || payload.len() > super::MAX_PAYLOAD {
        return None;
    }
    let length = u32::try_from(payload.len()).ok()?;
    let mut bytes = Vec::with_capacity(HEAD + payload.len() + TAIL);
    bytes.extend(length.to_le_bytes());
    bytes.push(kind);
    bytes.push(if is_barrier { BARRIER } else { 0 });
    bytes.extend(crc(offset, &bytes).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(crc(offset, &bytes).to_le_bytes());
    Some(bytes)
}

/// Reads a journal. Pure: what to do about the answer is the caller's.
pub fn scan(bytes: &[u8]) -> Scan {
    let Some(rest) = bytes.strip_prefix(&HEADER) else {
        let is_ours = !is_other_version(bytes) && has_barrier_from(bytes, HEADER.len());
        return match is_ours || is_header_damaged(bytes) {
            true => Scan::Damaged(Damage {
                offset: 0,
                intact: 0,
            }),
            false => Scan::Version,
        };
    };
    let mut entries = Vec::new();
    let mut at = bytes.len() - rest.len();
    while at < bytes.len() {
        match read(bytes, at) {
            Read::Record {
                kind,
                payload,
                flags,
                ..
            } if is_known(flags) => {
                entries.push((kind, payload.to_vec()));
                at += AROUND + payload.len();
            }
            Read::Record { .. } => return Scan::Version,
            // Its head is intact, so its length is: all that follows is its own payload.
            Read::Short => {
                return Scan::Torn {
                    entries,
                    length: at,
                };
            }
            Read::Wrong { end, resume } => {
                let is_torn = has_empty_sector(bytes, at, end) && !has_barrier_from(bytes, resume);
                return match is_torn {
                    true => Scan::Torn {
                        entries,
                        length: at,
                    },
                    false => damaged(at, &entries),
                };
            }
        }
    }
    Scan::Whole { entries }
}

/// What stands at a place of a journal.
pub(super) enum Read<'a> {
    /// An intact record.
    Record {
        kind: u8,
        payload: &'a [u8],
        flags: u8,
    },
    /// The file ends before the record does.
    Short,
    /// A checksum does not match. The record ends at `end` at the latest; the next one can begin
    /// at `resume` at the earliest.
    Wrong { end: usize, resume: usize },
}

pub(super) fn read(bytes: &[u8], at: usize) -> Read<'_> {
    let offset = at as u64;
    let Some(head) = bytes.get(at..at + HEAD) else {
        return Read::Short;
    };
    let Some((kind, flags, end)) = fields(head, at) else {
        return Read::Wrong {
            end: bytes.len(),
            resume: at + 1,
        };
    };
    let Some(record) = bytes.get(at..end) else {
        return Read::Short;
    };
    let (covered, tail_crc) = record.split_at(record.len() - TAIL);
    if crc(offset, covered).to_le_bytes() != tail_crc {
        return Read::Wrong { end, resume: end };
    }
    Read::Record {
        kind,
        payload: &covered[HEAD..],
        flags,
    }
}

/// Kind, flags and end of the record of which `head` is the head. `None` if its checksum does not match,
/// or it claims more than a record holds.
fn fields(head: &[u8], at: usize) -> Option<(u8, u8, usize)> {
    let (fields, head_crc) = head.split_at_checked(HEAD - 4)?;
    let [a, b, c, d, kind, flags] = *fields else {
        return None;
    };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let is_intact =
        length <= super::MAX_PAYLOAD && crc(at as u64, fields).to_le_bytes() == head_crc;
    is_intact.then_some((kind, flags, at + AROUND + length))
}

/// The head of a record.
pub(super) struct Head {
    pub(super) kind: u8,
    /// Where the record ends, by its own word.
    pub(super) end: usize,
}

/// The head at a place, if there is an intact one of a record as this version writes them.
pub(super) fn head(bytes: &[u8], at: usize) -> Option<Head> {
    let head = bytes.get(at..at + HEAD)?;
    // Cheaper than a checksum, and all that is wrong with most of the noise.
    let is_plausible =
        matches!(head, [_, _, _, 0, kind, flags, ..] if *kind != 0 && is_known(*flags));
    if !is_plausible {
        return None;
    }
    let (kind, _, end) = fields(head, at)?;
    Some(Head { kind, end })
}

/// Whether this version knows all of these flags.
pub(super) const fn is_known(flags: u8) -> bool {
    flags & !BARRIER == 0
}

/// Whether a record that carries the barrier stands anywhere from `from` on. Its head alone is
/// proof: the checksum covers its place.
fn has_barrier_from(bytes: &[u8], from: usize) -> bool {
    (from..bytes.len().saturating_sub(HEAD - 1)).any(|at| match bytes[at..at + HEAD] {
        // Kind 0 is never written, and most of the noise is zeros.
        [_, _, _, _, 0, _, ..] => false,
        [_, _, _, _, _, flags, ..] if flags & BARRIER == 0 => false,
        _ => {
            let (fields, head_crc) = bytes[at..at + HEAD].split_at(HEAD - 4);
            crc(at as u64, fields).to_le_bytes() == head_crc
        }
    })
}

/// Whether the part of `at..end` in some sector is all zeros, as a sector that was never written
/// reads. A bit that flipped does not do that.
fn has_empty_sector(bytes: &[u8], at: usize, end: usize) -> bool {
    let mut from = at;
    while from < end {
        let to = end.min((from / SECTOR + 1) * SECTOR);
        if bytes[from..to].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

/// Whether the file begins with the intact header of another version.
pub(super) fn is_other_version(bytes: &[u8]) -> bool {
    bytes.split_at_checked(12).is_some_and(|(fields, rest)| {
        let is_intact = rest.starts_with(&crc32c::crc32c(fields).to_le_bytes());
        is_intact && fields.starts_with(&MAGIC) && !HEADER.starts_with(fields)
    })
}

/// Whether the file begins like a journal of this version, with some bits wrong.
fn is_header_damaged(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..HEADER.len()) else {
        return false;
    };
    let bits: u32 = header
        .iter()
        .zip(HEADER)
        .map(|(a, b)| (a ^ b).count_ones())
        .sum();
    /// Another version differs in version and checksum; a few flipped bits leave one intact.
    const FEW: u32 = 8;
    bits <= FEW && crc32c::crc32c(&header[..12]).to_le_bytes() != header[12..]
}

fn damaged(at: usize, entries: &[super::Entry]) -> Scan {
    Scan::Damaged(Damage {
        offset: at as u64,
        intact: entries.len(),
    })
}

pub(super) fn crc(offset: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_carries_the_checksum_of_its_fields() {
        assert_eq!(crc32c::crc32c(&HEADER[..12]).to_le_bytes(), HEADER[12..]);
    }
}
