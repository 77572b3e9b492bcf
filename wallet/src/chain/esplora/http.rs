//! As much of HTTP/1.1 (RFC 9112) as it takes to ask an Esplora server: one request at a time on one
//! connection that is kept, and answers of a bounded size.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Mutex, PoisonError};

use super::super::ChainError;
use super::super::wire::{Link, Place, invalid, read_line};

/// Bytes of one line of an answer's head.
const LINE: u64 = 8_192;

/// Lines of an answer's head.
const HEADER_LINES: usize = 100;

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The body as text, as far as it is.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// A client of one server. Its connection is made on first use, dropped on any doubt, and made anew
/// on the next request.
pub(super) struct Http {
    place: Place,
    link: Mutex<Option<BufReader<Link>>>,
}

impl Http {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            link: Mutex::default(),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Gets `path`, an answer of at most `most` bytes.
    pub(super) fn get(&self, path: &str, most: usize) -> Result<Answer, ChainError> {
        self.ask("GET", path, "", most)
    }

    /// Posts `body` to `path`, an answer of at most `most` bytes. What is posted is idempotent: it
    /// may arrive twice.
    pub(super) fn post(&self, path: &str, body: &str, most: usize) -> Result<Answer, ChainError> {
        self.ask("POST", path, body, most)
    }

    fn ask(&self, method: &str, path: &str, body: &str, most: usize) -> Result<Answer, ChainError> {
        let mut slot = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = slot.take();
        let host = self.place.to_string();
        let host = host.strip_suffix(&self.place.path).unwrap_or(&host);
        let prefix = &self.place.path;
        let length = body.len();
        let request = format!(
            "{method} {prefix}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bitmesh\r\n\
             Accept: */*\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        loop {
            let is_kept = kept.is_some();
            let mut link = match kept.take() {
                Some(link) => link,
                None => self
                    .place
                    .connect()
                    .map_err(|error| self.place.unavailable(error))?,
            };
            match exchange(&mut link, &request, most) {
                Ok((answer, keep)) => {
                    if keep {
                        *slot = Some(link);
                    }
                    return match answer.status {
                        429 | 500..=599 if method == "GET" => {
                            let Answer { status, .. } = answer;
                            Err(self.place.unavailable(format!("HTTP status {status}")))
                        }
                        _ => Ok(answer),
                    };
                }
                // The server closed a connection that was idle for long. That is found out here.
                Err(_) if is_kept => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(self.place.protocol(path, error));
                }
                Err(error) => return Err(self.place.unavailable(error)),
            }
        }
    }
}

/// Sends a request and reads its answer; and whether the connection can be used again.
fn exchange(link: &mut BufReader<Link>, request: &str, most: usize) -> io::Result<(Answer, bool)> {
    link.get_mut().begin();
    link.get_mut().write_all(request.as_bytes())?;
    link.get_mut().flush()?;
    read_answer(link, most)
}

fn read_answer(from: &mut impl BufRead, most: usize) -> io::Result<(Answer, bool)> {
    let line = read_line(from, LINE)?;
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|status| status.parse().ok());
    let (Some(status), "HTTP/1.1" | "HTTP/1.0") = (status, version) else {
        return Err(invalid("an answer that is not HTTP"));
    };
    let mut keep = version == "HTTP/1.1";
    let mut length = None;
    let mut is_chunked = false;
    for lines in 0.. {
        if lines == HEADER_LINES {
            return Err(invalid("too many header lines"));
        }
        let line = read_line(from, LINE)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| invalid("a broken header"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let value: usize = value.parse().map_err(|_| invalid("a broken length"))?;
            length = Some(value);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            is_chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            keep = !value.eq_ignore_ascii_case("close");
        }
    }
    let mut body = Vec::new();
    if is_chunked {
        read_chunks(from, most, &mut body)?;
    } else if let Some(length) = length {
        read_exactly(from, length, most, &mut body)?;
    } else if status != 204 {
        keep = false;
        let bound = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        from.take(bound).read_to_end(&mut body)?;
        if body.len() > most {
            return Err(invalid("an answer that is too large"));
        }
    }
    Ok((Answer { status, body }, keep))
}

fn read_chunks(from: &mut impl BufRead, most: usize, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(from, LINE)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| invalid("a broken chunk"))?;
        if size == 0 {
            break;
        }
        read_exactly(from, size, most.saturating_sub(body.len()), body)?;
        if !read_line(from, LINE)?.is_empty() {
            return Err(invalid("a broken chunk"));
        }
    }
    for _ in 0..HEADER_LINES {
        if read_line(from, LINE)?.is_empty() {
            return Ok(());
        }
    }
    Err(invalid("too many trailer lines"))
}

fn read_exactly(
    from: &mut impl BufRead,
    length: usize,
    most: usize,
    body: &mut Vec<u8>,
) -> io::Result<()> {
    if length > most {
        return Err(invalid("an answer that is too large"));
    }
    let read = from
        .take(u64::try_from(length).unwrap_or(u64::MAX))
        .read_to_end(body)?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<(u16, String, bool)> {
        let (answer, keep) = read_answer(&mut text.as_bytes(), 10)?;
        Ok((answer.status, answer.text(), keep))
    }

    #[test]
    fn a_body_ends_by_length_by_chunks_or_with_the_connection() {
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhellomore",
                (200, "hello", true),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
                (200, "hello", true),
            ),
            ("HTTP/1.0 404 Not Found\r\n\r\nhello", (404, "hello", false)),
            (
                "HTTP/1.1 200\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                (200, "", false),
            ),
        ] {
            let (status, body, keep) = read(text).unwrap();
            assert_eq!((status, body.as_str(), keep), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_that_is_too_large_or_broken_is_refused() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello world",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADER_LINES));
        assert!(read(&endless).is_err());
    }
}
