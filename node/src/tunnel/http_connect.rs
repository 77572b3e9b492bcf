//! HTTP CONNECT (RFC 9110 section 9.3.6): pure parsing of a growing buffer, and the answers.

use super::destination::Destination;
use super::frame::Refusal;

/// Longest request head that is read. Browsers send a few hundred bytes.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// The answer after which the tunnel is open.
pub(super) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A request that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// Not HTTP/1, or the target of a CONNECT is not `host:port`.
    BadRequest,
    /// A request of another kind, for example for a page.
    NotConnect,
    /// The head does not end.
    TooLong,
}

/// Whether `byte` can begin an HTTP request.
pub(super) fn begins(byte: u8) -> bool {
    byte.is_ascii_uppercase()
}

/// Reads a request head. Returns the destination and the length of the head; `None` if more bytes
/// are needed.
pub(super) fn head(bytes: &[u8]) -> Result<Option<(Destination, usize)>, Malformed> {
    let line_end = bytes.iter().position(|&b| b == b'\n');
    let line = &bytes[..line_end.unwrap_or(bytes.len()).min(MAX_HEAD)];
    // Said as early as possible: most wrong requests are complete and wait for this.
    let method = line.split(|&b| b == b' ').next().unwrap_or_default();
    let is_connect = if method.len() < line.len() {
        method == b"CONNECT"
    } else {
        b"CONNECT".starts_with(line)
    };
    if !is_connect {
        return Err(if line.iter().all(u8::is_ascii) {
            Malformed::NotConnect
        } else {
            Malformed::BadRequest
        });
    }
    let Some(end) = find_end(bytes) else {
        return if bytes.len() >= MAX_HEAD {
            Err(Malformed::TooLong)
        } else {
            Ok(None)
        };
    };
    if end > MAX_HEAD {
        return Err(Malformed::TooLong);
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = std::str::from_utf8(line).map_err(|_| Malformed::BadRequest)?;
    let mut words = line.split(' ');
    let (Some(_), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed::BadRequest);
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(Malformed::BadRequest);
    }
    let destination = Destination::from_authority(target).map_err(|_| Malformed::BadRequest)?;
    Ok(Some((destination, end)))
}

/// The length of the head: up to and with the first empty line.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let mut line_start = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte == b'\n' {
            if matches!(&bytes[line_start..at], [] | [b'\r']) {
                return Some(at + 1);
            }
            line_start = at + 1;
        }
    }
    None
}

/// The answer to a request that is none.
pub(super) fn malformed_answer(malformed: Malformed) -> Vec<u8> {
    match malformed {
        Malformed::BadRequest => answer("400 Bad Request", "", "this is not a CONNECT request"),
        Malformed::NotConnect => answer(
            "405 Method Not Allowed",
            "Allow: CONNECT\r\n",
            "this proxy only does CONNECT: with curl add --proxytunnel, \
             or use it as a SOCKS5 proxy (socks5h://)",
        ),
        Malformed::TooLong => answer(
            "431 Request Header Fields Too Large",
            "",
            "the request head is too long",
        ),
    }
}

/// The answer to a request whose flow was not opened; `text` says why, for people.
pub(super) fn refusal_answer(refusal: Refusal, text: &str) -> Vec<u8> {
    match refusal {
        Refusal::Forbidden => answer("403 Forbidden", "", text),
        Refusal::Paused => answer("402 Payment Required", "", text),
        Refusal::TooMany => answer("503 Service Unavailable", "Retry-After: 1\r\n", text),
        Refusal::TimedOut => answer("504 Gateway Timeout", "", text),
        Refusal::NameNotFound
        | Refusal::NetworkUnreachable
        | Refusal::HostUnreachable
        | Refusal::ConnectionRefused
        | Refusal::Failed => answer("502 Bad Gateway", "", text),
    }
}

/// The answer while no session is attached.
pub(super) fn unavailable_answer(text: &str) -> Vec<u8> {
    answer("503 Service Unavailable", "Retry-After: 5\r\n", text)
}

fn answer(status: &str, headers: &str, text: &str) -> Vec<u8> {
    let length = "bitmesh: \n".len() + text.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n\
         bitmesh: {text}\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests;
