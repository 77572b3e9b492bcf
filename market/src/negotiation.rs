//! From a match to a lease: ask for firm quotes, take the best, have it countersigned.
//!
//! Two machines, [`buyer::Buyer`] (one per purchase) and [`seller::Seller`] (one per node), of the shape
//! all machines here have; as in [`session`](crate::session), `poll_timeout` gives the reason beside the
//! moment. Requests and answers travel by request-response: every request has exactly one answer, or
//! fails.

use serde::{Deserialize, Serialize};

pub mod buyer;
mod limiter;
pub mod seller;

/// Why a seller does not quote, or does not accept. On the wire as a small number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It does not sell for the moment.
    NotSelling,
    /// It has no free slot or no free rate. Another time perhaps.
    NoCapacity,
    /// It is asked too often, by this buyer or by all together.
    TooManyRequests,
    /// The request cannot be read, or makes no sense.
    BadRequest,
    /// The quota is outside what it offers.
    Quota,
    /// It cannot promise a rate this high.
    Rate,
    /// It does not offer this mode.
    Mode,
    /// No way of paying in common.
    Rail,
    /// No kind of tunnel in common.
    Tunnel,
    /// The term is outside what it offers.
    Term,
    /// The buyer has a lease here already; the two share one channel.
    AlreadyLeased,
    /// It never gave this quote, or has forgotten it.
    QuoteUnknown,
    /// The quote is no longer firm.
    QuoteExpired,
}

impl Refusal {
    const ALL: [Self; 13] = [
        Self::NotSelling,
        Self::NoCapacity,
        Self::TooManyRequests,
        Self::BadRequest,
        Self::Quota,
        Self::Rate,
        Self::Mode,
        Self::Rail,
        Self::Tunnel,
        Self::Term,
        Self::AlreadyLeased,
        Self::QuoteUnknown,
        Self::QuoteExpired,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::NotSelling => 1,
            Self::NoCapacity => 2,
            Self::TooManyRequests => 3,
            Self::BadRequest => 4,
            Self::Quota => 5,
            Self::Rate => 6,
            Self::Mode => 7,
            Self::Rail => 8,
            Self::Tunnel => 9,
            Self::Term => 10,
            Self::AlreadyLeased => 11,
            Self::QuoteUnknown => 12,
            Self::QuoteExpired => 13,
        }
    }

    /// The refusal with this number; `None` for one of a later version, which is a refusal all the same.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// What a negotiation is waiting for; goes with the moment in `poll_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Buyer: for quotes.
    Quotes,
    /// Buyer: for the seller to countersign.
    Lease,
    /// Seller: for a quote to stop being firm.
    Expiry,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_numbers() {
        for (index, refusal) in (1..).zip(Refusal::ALL) {
            assert_eq!(refusal.code(), index);
            assert_eq!(Refusal::from_code(index), Some(refusal));
        }
        assert_eq!(Refusal::from_code(0), None);
        assert_eq!(Refusal::from_code(14), None);
    }
}
