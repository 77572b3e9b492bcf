//! Why a side says no, as a number on the wire.

use std::fmt;

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// Malformed, another version, or another chain.
    Unsupported,
    /// The capacity is outside what the payee accepts.
    Capacity,
    /// The expiry is outside what the payee accepts.
    Expiry,
    /// The payee takes no channels now.
    Busy,
    /// The payee knows no such channel.
    Unknown,
    /// The funding does not pay what was agreed.
    Funding,
    /// The voucher is invalid.
    Voucher,
    /// The channel is ending; nothing further is accepted.
    Closing,
    /// No such attempt to close together, or not any more. Begin another.
    Attempt,
    /// The fee, or the split, of a close together is not acceptable now.
    Split,
    /// A code of a later version.
    Other(u8),
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "not supported",
            Self::Capacity => "capacity not accepted",
            Self::Expiry => "expiry not accepted",
            Self::Busy => "busy",
            Self::Unknown => "no such channel",
            Self::Funding => "wrong funding",
            Self::Voucher => "invalid voucher",
            Self::Closing => "closing already",
            Self::Attempt => "no such attempt",
            Self::Split => "fee or split not accepted now",
            Self::Other(code) => return write!(f, "code {code}"),
        })
    }
}

impl RefusalCode {
    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Unsupported => 1,
            Self::Capacity => 2,
            Self::Expiry => 3,
            Self::Busy => 4,
            Self::Unknown => 5,
            Self::Funding => 6,
            Self::Voucher => 7,
            Self::Closing => 8,
            Self::Attempt => 9,
            Self::Split => 10,
            Self::Other(code) => code,
        }
    }

    /// From the number on the wire.
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Unsupported,
            2 => Self::Capacity,
            3 => Self::Expiry,
            4 => Self::Busy,
            5 => Self::Unknown,
            6 => Self::Funding,
            7 => Self::Voucher,
            8 => Self::Closing,
            9 => Self::Attempt,
            10 => Self::Split,
            other => Self::Other(other),
        }
    }
}
