//! Requests and responses between two nodes, one of each per stream.

use std::fmt;

use thiserror::Error;

/// Largest body of a request for a quote, in bytes.
pub const MAX_RFQ_BYTES: usize = 1024;

/// Largest body of a quote, in bytes.
pub const MAX_QUOTE_BYTES: usize = 2 * 1024;

/// Largest body of a proposal, in bytes. It embeds a quote.
pub const MAX_PROPOSAL_BYTES: usize = 4 * 1024;

/// Largest body of a countersigned lease, in bytes. It answers a proposal that the buyer holds.
pub const MAX_LEASE_BYTES: usize = 8 * 1024;

/// Largest body of a channel message, in bytes. Funding carries a whole transaction, which is
/// version 3 and so at most 10,000 virtual bytes; witnesses weigh a quarter.
pub const MAX_CHANNEL_BYTES: usize = 40 * 1024;

/// Largest signed ask in a page, in bytes. The same as gossip's cap: an ask comes by either way.
pub const MAX_ASK_BYTES: usize = super::topic::MAX_GOSSIP_BYTES;

/// Most asks in one page. A page of the largest asks fits [`MAX_RESPONSE_BYTES`](super::codec::MAX_RESPONSE_BYTES)
/// only if they are fewer; [`Page`] counts both.
pub const MAX_PAGE_ASKS: usize = 256;

/// Most bytes of asks in one page, all together.
pub const MAX_PAGE_BYTES: usize = 40 * 1024;

/// Largest place-holder in a list of asks, in bytes.
pub const MAX_CURSOR_BYTES: usize = 64;

/// Longest explanation in a refusal, in bytes of UTF-8.
pub const MAX_DETAIL_BYTES: usize = 160;

/// Where a page of asks goes on: opaque to the one who asks, chosen by the one who answers.
///
/// Invariant: at most [`MAX_CURSOR_BYTES`] long. An empty cursor is the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cursor(Vec<u8>);

impl Cursor {
    /// The beginning of the list.
    #[must_use]
    pub const fn start() -> Self {
        Self(Vec::new())
    }

    /// Makes a cursor of the answering node's own bytes; `None` if they are too many.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= MAX_CURSOR_BYTES).then_some(Self(bytes))
    }

    /// The bytes, exactly as the answering node chose them. From a stranger: validate before use.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the beginning of the list.
    #[must_use]
    pub fn is_start(&self) -> bool {
        self.0.is_empty()
    }
}

/// What one node asks another. Bodies are opaque here: signed where they need to be, by the layer
/// that reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A buyer asks for a firm quote. At most [`MAX_RFQ_BYTES`].
    Rfq(Vec<u8>),
    /// A buyer proposes a lease on a quote. At most [`MAX_PROPOSAL_BYTES`].
    Propose(Vec<u8>),
    /// A message of the payment channel outside a session. At most [`MAX_CHANNEL_BYTES`].
    Channel(Vec<u8>),
    /// A neighbour asks for the asks this node knows, a page at a time.
    Asks {
        /// Where the last page ended; [`Cursor::start`] for the first.
        after: Cursor,
    },
}

/// What the other node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// A signed quote. At most [`MAX_QUOTE_BYTES`].
    Quote(Vec<u8>),
    /// A countersigned lease. At most [`MAX_LEASE_BYTES`].
    Lease(Vec<u8>),
    /// The channel machine's answer. At most [`MAX_CHANNEL_BYTES`].
    Channel(Vec<u8>),
    /// One page of asks.
    Asks {
        /// Signed asks, exactly as their sellers made them. Build with [`Page`].
        asks: Vec<Vec<u8>>,
        /// Where the next page starts; `None` if this was the last.
        next: Option<Cursor>,
    },
    /// No, and why.
    Refused(Refusal),
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("refused ({code}): {detail}")]
pub struct Refusal {
    /// What the asking node should do next depends on this alone.
    pub code: RefusalCode,
    /// For a person to read. At most [`MAX_DETAIL_BYTES`], without control characters.
    pub detail: String,
}

impl Refusal {
    /// Makes a refusal; `detail` is cut to [`MAX_DETAIL_BYTES`] and cleaned of control characters,
    /// so that it can be made of anything.
    #[must_use]
    pub fn new(code: RefusalCode, detail: &str) -> Self {
        let mut clean = String::with_capacity(detail.len().min(MAX_DETAIL_BYTES));
        for character in detail.chars().filter(|character| !character.is_control()) {
            if clean.len() + character.len_utf8() > MAX_DETAIL_BYTES {
                break;
            }
            clean.push(character);
        }
        Self {
            code,
            detail: clean,
        }
    }
}

/// The reason of a [`Refusal`], sorted by what the asking node does next.
///
/// One byte on the wire. A code this version does not know is kept as [`Other`](Self::Other), so
/// that an old node can still show it and treats it as "do not try again with this node".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The message could not be read. Trying the same again is useless.
    Malformed,
    /// This node does not do that (it does not sell, it does not offer that mode).
    Unsupported,
    /// Too much to do. Try again after a while, or elsewhere.
    Busy,
    /// This node asks too often. Slow down.
    TooFast,
    /// No free capacity for what is wanted.
    NoCapacity,
    /// The terms are not accepted.
    Declined,
    /// The quote, lease or other signed thing is no longer valid.
    Expired,
    /// No such lease, session or channel here.
    Unknown,
    /// A fault of the refusing node. Nothing the asking node did.
    Internal,
    /// A code of a later version.
    Other(u8),
}

impl RefusalCode {
    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Malformed => 1,
            Self::Unsupported => 2,
            Self::Busy => 3,
            Self::TooFast => 4,
            Self::NoCapacity => 5,
            Self::Declined => 6,
            Self::Expired => 7,
            Self::Unknown => 8,
            Self::Internal => 9,
            Self::Other(byte) => byte,
        }
    }

    /// Reads the byte on the wire; `None` for 0, which means "not refused" where a reply is one byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => return None,
            1 => Self::Malformed,
            2 => Self::Unsupported,
            3 => Self::Busy,
            4 => Self::TooFast,
            5 => Self::NoCapacity,
            6 => Self::Declined,
            7 => Self::Expired,
            8 => Self::Unknown,
            9 => Self::Internal,
            byte => Self::Other(byte),
        })
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("malformed"),
            Self::Unsupported => f.write_str("unsupported"),
            Self::Busy => f.write_str("busy"),
            Self::TooFast => f.write_str("too fast"),
            Self::NoCapacity => f.write_str("no capacity"),
            Self::Declined => f.write_str("declined"),
            Self::Expired => f.write_str("expired"),
            Self::Unknown => f.write_str("unknown"),
            Self::Internal => f.write_str("internal"),
            Self::Other(byte) => write!(f, "code {byte}"),
        }
    }
}

/// A page of asks while it is filled: never more than fits one response.
#[derive(Debug, Default)]
pub struct Page {
    asks: Vec<Vec<u8>>,
    bytes: usize,
}

impl Page {
    /// An empty page.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            asks: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds one signed ask if it fits; `false` means that the page is full and this ask belongs to
    /// the next one.
    ///
    /// An ask above [`MAX_ASK_BYTES`] can never be sent. It is left out and counts as added, so that
    /// a caller who pages through its book always gets on.
    pub fn push(&mut self, ask: &[u8]) -> bool {
        if ask.len() > MAX_ASK_BYTES {
            return true;
        }
        let Some(bytes) = self.bytes.checked_add(ask.len()) else {
            return false;
        };
        if self.asks.len() >= MAX_PAGE_ASKS || bytes > MAX_PAGE_BYTES {
            return false;
        }
        self.bytes = bytes;
        self.asks.push(ask.to_vec());
        true
    }

    /// The response; `next` is where the page after this one starts, `None` if this is the last.
    #[must_use]
    pub fn finish(self, next: Option<Cursor>) -> Response {
        Response::Asks {
            asks: self.asks,
            next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_never_carries_control_characters_or_more_than_its_cap() {
        let refusal = Refusal::new(
            RefusalCode::Busy,
            &format!("\u{1b}[31mred\r\n{}", "ä".repeat(500)),
        );

        assert!(refusal.detail.len() <= MAX_DETAIL_BYTES);
        assert!(refusal.detail.starts_with("[31mredä"));
        assert!(!refusal.detail.chars().any(char::is_control));
    }

    #[test]
    fn every_refusal_code_survives_the_wire() {
        assert_eq!(RefusalCode::from_byte(0), None);
        for byte in 1..=u8::MAX {
            assert_eq!(RefusalCode::from_byte(byte).unwrap().to_byte(), byte);
        }
    }

    #[test]
    fn a_page_is_full_by_count_or_by_bytes() {
        let mut by_count = Page::new();
        while by_count.push(&[0; 10]) {}
        assert_eq!(by_count.asks.len(), MAX_PAGE_ASKS);

        let mut by_bytes = Page::new();
        while by_bytes.push(&[0; MAX_ASK_BYTES]) {}
        assert!(by_bytes.bytes <= MAX_PAGE_BYTES);
        assert_eq!(by_bytes.asks.len(), MAX_PAGE_BYTES / MAX_ASK_BYTES);
    }

    #[test]
    fn an_ask_that_can_never_be_sent_does_not_stop_paging() {
        let mut page = Page::new();

        assert!(page.push(&[0; MAX_ASK_BYTES + 1]));
        assert!(page.push(&[0; 10]));

        assert_eq!(page.asks.len(), 1);
    }
}
