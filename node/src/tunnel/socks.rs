//! SOCKS5 (RFC 1928), the part of it that an application needs: no authentication, CONNECT and UDP
//! ASSOCIATE. Pure parsing of a growing buffer; nothing here reads or waits.

use super::destination::{Destination, DestinationError, Host};
use super::frame::Refusal;
use std::net::{IpAddr, SocketAddr};

/// The first byte of every SOCKS5 message, by which the listener knows one.
pub(super) const VERSION: u8 = 5;

/// Answer to the greeting: no authentication.
pub(super) const NO_AUTHENTICATION: [u8; 2] = [VERSION, 0];

/// Answer to the greeting: none of the offered methods.
pub(super) const NO_METHOD: [u8; 2] = [VERSION, 0xff];

/// Longest greeting: version, count, 255 methods.
pub(super) const MAX_GREETING: usize = 2 + 255;

/// Longest request: version, command, reserved, and the longest name SOCKS5 can say.
pub(super) const MAX_REQUEST: usize = 3 + 1 + 1 + 255 + 2;

/// What an application asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A TCP connection.
    Connect(Destination),
    /// Datagrams, from this port if it says one.
    Associate {
        /// Zero if the application does not know yet.
        port: u16,
    },
}

/// Reply codes of RFC 1928 section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    TimedOut = 6,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Forbidden => Self::NotAllowed,
            Refusal::NameNotFound | Refusal::HostUnreachable => Self::HostUnreachable,
            Refusal::NetworkUnreachable => Self::NetworkUnreachable,
            Refusal::ConnectionRefused => Self::ConnectionRefused,
            Refusal::TimedOut => Self::TimedOut,
            Refusal::TooMany | Refusal::Paused | Refusal::Failed => Self::GeneralFailure,
        }
    }
}

/// Bytes that are not SOCKS5; the connection is closed, after the reply if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) Option<Reply>);

/// Reads a greeting. Returns whether it offers no authentication, and its length; `None` if more
/// bytes are needed.
pub(super) fn greeting(bytes: &[u8]) -> Result<Option<(bool, usize)>, Malformed> {
    match bytes {
        [version, ..] if *version != VERSION => Err(Malformed(None)),
        [_, 0, ..] => Err(Malformed(None)),
        [_, count, rest @ ..] => {
            let count = usize::from(*count);
            Ok(rest
                .get(..count)
                .map(|methods| (methods.contains(&0), 2 + count)))
        }
        [] | [_] => Ok(None),
    }
}

/// Reads a request. Returns it and its length; `None` if more bytes are needed.
pub(super) fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    const CONNECT: u8 = 1;
    const BIND: u8 = 2;
    const ASSOCIATE: u8 = 3;

    let (command, address) = match bytes {
        [version, ..] if *version != VERSION => return Err(Malformed(None)),
        [_, command, ..] if !(CONNECT..=ASSOCIATE).contains(command) => {
            return Err(Malformed(Some(Reply::CommandNotSupported)));
        }
        [_, BIND, ..] => return Err(Malformed(Some(Reply::CommandNotSupported))),
        [_, _, reserved, ..] if *reserved != 0 => {
            return Err(Malformed(Some(Reply::GeneralFailure)));
        }
        [_, command, _, address @ ..] => (*command, address),
        [] | [_] | [_, _] => return Ok(None),
    };
    if command == ASSOCIATE {
        return associate(address);
    }
    let decoded = Destination::decode(address).map_err(|error| {
        Malformed(Some(match error {
            DestinationError::UnknownType(_) => Reply::AddressTypeNotSupported,
            DestinationError::BadName | DestinationError::NoPort => Reply::GeneralFailure,
        }))
    })?;
    Ok(decoded.map(|(destination, len)| (Request::Connect(destination), 3 + len)))
}

/// The address of an ASSOCIATE is where the application will send from, usually not known: of all
/// forms only the port is of use, and it may be zero.
fn associate(address: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    let len = match address {
        [] => return Ok(None),
        [1, ..] => 1 + 4,
        [4, ..] => 1 + 16,
        [3] => return Ok(None),
        [3, len, ..] => 1 + 1 + usize::from(*len),
        [_, ..] => return Err(Malformed(Some(Reply::AddressTypeNotSupported))),
    };
    let port = address.get(len..len + 2);
    Ok(port.map(|port| {
        let port = u16::from_be_bytes([port[0], port[1]]);
        (Request::Associate { port }, 3 + len + 2)
    }))
}

/// A reply; `bound` is where the application is to send its datagrams, otherwise all zero.
pub(super) fn reply(code: Reply, bound: Option<SocketAddr>) -> Vec<u8> {
    let mut bytes = vec![VERSION, code as u8, 0];
    match bound.map(|bound| (bound.ip(), bound.port())) {
        Some((IpAddr::V4(ip), port)) => {
            bytes.push(1);
            bytes.extend_from_slice(&ip.octets());
            bytes.extend_from_slice(&port.to_be_bytes());
        }
        Some((IpAddr::V6(ip), port)) => {
            bytes.push(4);
            bytes.extend_from_slice(&ip.octets());
            bytes.extend_from_slice(&port.to_be_bytes());
        }
        None => bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0]),
    }
    bytes
}

/// Reads a datagram from the application: its destination and what to send there. `None` for one
/// that is malformed or a fragment, which is to be dropped (RFC 1928 section 7).
pub(super) fn datagram(bytes: &[u8]) -> Option<(Destination, &[u8])> {
    let address = bytes.strip_prefix(&[0, 0, 0])?;
    let (destination, len) = Destination::decode(address).ok()??;
    Some((destination, address.get(len..)?))
}

/// Puts a datagram for the application into `out`.
pub(super) fn wrap_datagram(from: &Destination, datagram: &[u8], out: &mut Vec<u8>) {
    debug_assert!(
        matches!(from.host, Host::Ip(_)),
        "datagrams come from addresses"
    );
    out.clear();
    out.extend_from_slice(&[0, 0, 0]);
    from.encode(out);
    out.extend_from_slice(datagram);
}

#[cfg(test)]
mod tests;
