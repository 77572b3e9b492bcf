//! The frames that a lane carries, byte for byte.
//!
//! ```text
//!  0      1            4              8
//!  | kind | length u24 | flow id u32  | payload: `length` bytes
//! ```
//!
//! All numbers are big-endian. A flow lives on one lane; its id is chosen by the buyer, grows with
//! every OPEN of that lane and is never used again. Each side ends its half of a flow exactly once:
//! with FIN (everything was sent), RST (given up) or, instead of OPENED, REFUSED; a RST may still
//! follow a FIN. When both halves have ended, the id is forgotten.
//!
//! Billed are the payload bytes of DATA and UDP frames, the early data of an OPEN, and
//! [`OPEN_COST`] for each OPEN. Headers and all other frames are not.

use thiserror::Error;

use super::destination::{Destination, DestinationError, MAX_ENCODED};

/// Bytes in front of every payload.
pub const HEADER: usize = 8;

/// Longest payload of a frame, chosen so that the largest frame is 64 KiB with its header and fills
/// four 16 KiB frames of yamux.
pub const MAX_PAYLOAD: usize = 64 * 1024 - HEADER;

/// Billed bytes of an OPEN, in the direction up: about what a TCP handshake costs the seller.
pub const OPEN_COST: u64 = 64;

/// What each side may send on a new flow before the first WINDOW frame, in payload bytes.
pub const FIRST_WINDOW: u32 = 256 * 1024;

/// What a side may have been granted and not yet used on one flow, at most. It carries 800 Mbit/s
/// over a 40 ms path, which is as much as the lane under it (`mesh.limits.stream_window_bytes`), and
/// it outlasts the milliseconds for which a busy machine leaves a reader waiting. What stalled readers
/// make a peer hold is bounded over all flows of a session.
pub const MAX_WINDOW: u32 = 4 * 1024 * 1024;

/// Longest early data in an OPEN: what an application sends before it hears that it is connected is
/// one request or one handshake message.
pub const MAX_EARLY: usize = 16 * 1024;

const OPEN: u8 = 1;
const OPENED: u8 = 2;
const REFUSED: u8 = 3;
const DATA: u8 = 4;
const FIN: u8 = 5;
const RST: u8 = 6;
const WINDOW: u8 = 7;
const UDP: u8 = 8;
const NOTICE: u8 = 9;

/// The id of a flow on its lane. Zero is no flow; it stands in frames about the whole session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

impl FlowId {
    /// In frames that are not about one flow.
    pub const NONE: Self = Self(0);
}

/// Why a seller did not open a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum Refusal {
    /// The egress policy of the seller forbids the address or the port.
    #[error("the seller's egress policy forbids this destination")]
    Forbidden = 1,
    /// The name does not resolve.
    #[error("the name does not resolve at the seller")]
    NameNotFound = 2,
    /// No route to the network.
    #[error("the seller has no route to this network")]
    NetworkUnreachable = 3,
    /// No route to the host.
    #[error("the seller cannot reach this host")]
    HostUnreachable = 4,
    /// The destination refused the connection.
    #[error("the destination refused the connection")]
    ConnectionRefused = 5,
    /// The destination did not answer in time.
    #[error("the destination did not answer in time")]
    TimedOut = 6,
    /// Too many flows are open, or were opened in the last seconds.
    #[error("too many flows at once or too many in a short time")]
    TooMany = 7,
    /// No credit: nothing is opened until the limit rises.
    #[error("paused until more is paid for")]
    Paused = 8,
    /// Anything else.
    #[error("the seller could not open the flow")]
    Failed = 9,
}

impl Refusal {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Forbidden,
            2 => Self::NameNotFound,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::ConnectionRefused,
            6 => Self::TimedOut,
            7 => Self::TooMany,
            8 => Self::Paused,
            // A later version may know more reasons; to this one they are all failures.
            _ => Self::Failed,
        }
    }
}

/// What an OPEN asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP connection to this destination.
    Tcp(Destination),
    /// A UDP association; each datagram names its own peer.
    Udp,
}

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// Whether the seller's side of the session flows or waits for credit. For display only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Bytes flow.
    Flowing,
    /// At least one flow waits for credit.
    Paused,
}

/// A frame, borrowed from the buffer it was read into.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Buyer only: open a flow; `early` is its first data.
    Open {
        /// What to open.
        target: Target,
        /// The first bytes of the flow, at most [`MAX_EARLY`]; none for UDP.
        early: &'a [u8],
    },
    /// Seller only: the flow is connected.
    Opened,
    /// Seller only: the flow will not be opened. Ends the seller's half.
    Refused(Refusal),
    /// Bytes of a TCP flow; never empty.
    Data(&'a [u8]),
    /// Everything was sent. Ends the sender's half.
    Fin,
    /// Given up. Ends the sender's half; whatever still arrives is counted and dropped.
    Rst,
    /// The receiver may be sent this many payload bytes more; never zero.
    Window(u32),
    /// A datagram to (from the buyer) or from (from the seller) `peer`.
    Udp {
        /// The other end of the datagram.
        peer: Destination,
        /// The datagram; may be empty.
        datagram: &'a [u8],
        /// Length of the whole payload, address included: what is billed.
        billed: usize,
    },
    /// Seller only, flow id zero: the session flows or waits for credit.
    Notice(Notice),
}

/// What is wrong with bytes that should be a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// No such kind.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The length does not fit the kind.
    #[error("a frame of kind {kind} cannot have {length} bytes")]
    BadLength {
        /// The kind as read.
        kind: u8,
        /// The length as read.
        length: usize,
    },
    /// The flow id is zero where there must be one, or the other way round.
    #[error("a frame of kind {0} with a wrong flow id")]
    BadFlow(u8),
    /// The destination in the payload.
    #[error("bad destination in a frame")]
    BadDestination(#[from] DestinationError),
    /// A code in the payload that this kind does not have.
    #[error("a frame of kind {0} with a code that is not defined")]
    BadCode(u8),
}

/// The first eight bytes of a frame, checked for everything that needs no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    length: usize,
    flow: FlowId,
}

impl Header {
    /// Reads a header. The length is bounded by the kind, so that a peer cannot make the reader
    /// wait for, or hold, more than that kind may be.
    ///
    /// # Errors
    ///
    /// Returns [`FrameError`] if no frame begins like this; the lane cannot be read any further.
    pub fn decode(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let [kind, l0, l1, l2, f0, f1, f2, f3] = bytes;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        let flow = FlowId(u32::from_be_bytes([f0, f1, f2, f3]));
        let bounds = match kind {
            OPEN => 1..=1 + MAX_ENCODED + MAX_EARLY,
            OPENED | FIN | RST => 0..=0,
            REFUSED | NOTICE => 1..=1,
            DATA => 1..=MAX_PAYLOAD,
            WINDOW => 4..=4,
            // The shortest address is 7 bytes.
            UDP => 7..=MAX_PAYLOAD,
            _ => return Err(FrameError::UnknownKind(kind)),
        };
        if !bounds.contains(&length) {
            return Err(FrameError::BadLength { kind, length });
        }
        if (flow == FlowId::NONE) != (kind == NOTICE) {
            return Err(FrameError::BadFlow(kind));
        }
        Ok(Self { kind, length, flow })
    }

    fn encode(kind: u8, length: usize, flow: FlowId) -> [u8; HEADER] {
        debug_assert!(
            length <= MAX_PAYLOAD,
            "a payload is at most 64 KiB less the header"
        );
        let [_, l0, l1, l2] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        let [f0, f1, f2, f3] = flow.0.to_be_bytes();
        [kind, l0, l1, l2, f0, f1, f2, f3]
    }

    /// Bytes of payload that follow.
    #[must_use]
    pub fn length(self) -> usize {
        self.length
    }

    /// The flow the frame is about.
    #[must_use]
    pub fn flow(self) -> FlowId {
        self.flow
    }

    /// Whether the payload is flow data, which may be handled in pieces as it arrives.
    #[must_use]
    pub fn is_data(self) -> bool {
        self.kind == DATA
    }
}

/// The header of a DATA frame, for a payload that is already in its place behind it.
#[must_use]
pub fn data_header(flow: FlowId, length: usize) -> [u8; HEADER] {
    Header::encode(DATA, length, flow)
}

impl<'a> Frame<'a> {
    /// Reads the payload that belongs to `header`.
    ///
    /// # Errors
    ///
    /// Returns [`FrameError`] if the payload is not what the kind demands.
    ///
    /// # Panics
    ///
    /// If `payload` is not of the length that the header names.
    pub fn decode(header: Header, payload: &'a [u8]) -> Result<Self, FrameError> {
        assert_eq!(
            payload.len(),
            header.length,
            "the payload is what the header says"
        );
        let kind = header.kind;
        let bad_length = FrameError::BadLength {
            kind,
            length: header.length,
        };
        Ok(match kind {
            OPEN => {
                let (&protocol, rest) = payload.split_first().ok_or(bad_length)?;
                match protocol {
                    PROTOCOL_TCP => {
                        let (destination, len) = Destination::decode(rest)?.ok_or(bad_length)?;
                        let early = rest.get(len..).unwrap_or_default();
                        if early.len() > MAX_EARLY {
                            return Err(bad_length);
                        }
                        Self::Open {
                            target: Target::Tcp(destination),
                            early,
                        }
                    }
                    PROTOCOL_UDP if rest.is_empty() => Self::Open {
                        target: Target::Udp,
                        early: &[],
                    },
                    PROTOCOL_UDP => return Err(bad_length),
                    _ => return Err(FrameError::BadCode(kind)),
                }
            }
            OPENED => Self::Opened,
            REFUSED => Self::Refused(Refusal::from_code(payload[0])),
            DATA => Self::Data(payload),
            FIN => Self::Fin,
            RST => Self::Rst,
            WINDOW => {
                let delta: [u8; 4] = payload.try_into().map_err(|_| bad_length)?;
                match u32::from_be_bytes(delta) {
                    0 => return Err(FrameError::BadCode(kind)),
                    delta => Self::Window(delta),
                }
            }
            UDP => {
                let (peer, len) = Destination::decode(payload)?.ok_or(bad_length)?;
                let datagram = payload.get(len..).unwrap_or_default();
                Self::Udp {
                    peer,
                    datagram,
                    billed: payload.len(),
                }
            }
            NOTICE => match payload[0] {
                0 => Self::Notice(Notice::Flowing),
                1 => Self::Notice(Notice::Paused),
                _ => return Err(FrameError::BadCode(kind)),
            },
            _ => return Err(FrameError::UnknownKind(kind)),
        })
    }

    /// Appends the frame, header first.
    pub fn encode(&self, flow: FlowId, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        let kind = match self {
            Self::Open { target, early } => {
                match target {
                    Target::Tcp(destination) => {
                        out.push(PROTOCOL_TCP);
                        destination.encode(out);
                        out.extend_from_slice(early);
                    }
                    Target::Udp => out.push(PROTOCOL_UDP),
                }
                OPEN
            }
            Self::Opened => OPENED,
            Self::Refused(refusal) => {
                out.push(*refusal as u8);
                REFUSED
            }
            Self::Data(bytes) => {
                out.extend_from_slice(bytes);
                DATA
            }
            Self::Fin => FIN,
            Self::Rst => RST,
            Self::Window(delta) => {
                out.extend_from_slice(&delta.to_be_bytes());
                WINDOW
            }
            Self::Udp { peer, datagram, .. } => {
                peer.encode(out);
                out.extend_from_slice(datagram);
                UDP
            }
            Self::Notice(notice) => {
                out.push(match notice {
                    Notice::Flowing => 0,
                    Notice::Paused => 1,
                });
                NOTICE
            }
        };
        let header = Header::encode(kind, out.len() - start - HEADER, flow);
        out[start..start + HEADER].copy_from_slice(&header);
    }
}

#[cfg(test)]
mod tests;
