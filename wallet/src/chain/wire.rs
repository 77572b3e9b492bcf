//! A connection to a server that somebody else may run: blocking, bounded, over TCP or TLS.
//!
//! Whatever the other side does, an exchange ends before its deadline and reads no more than it was
//! allowed to.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::ChainError;

/// How long one exchange may take, connecting included. Long enough for a full block over a slow
/// line; short enough that a hung server is noticed between two blocks.
const EXCHANGE: Duration = Duration::from_secs(60);

/// How long each address of a server gets to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The certificate authorities of the web, and TLS 1.3 alone.
static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
});

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tls: bool,
    /// Name or address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// What follows the port, without a slash at its end.
    pub(super) path: String,
}

impl Place {
    /// Reads `scheme://host[:port][/path]`. `schemes` are the plain one and the one of TLS, each
    /// with its usual port, if it has one.
    pub(super) fn parse(url: &str, schemes: [(&str, Option<u16>); 2]) -> Result<Self, String> {
        let wanted = || {
            let [(plain, _), (tls, _)] = schemes;
            format!("{url:?} is not an address like {plain}://host:port or {tls}://host:port")
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wanted)?;
        let (tls, usual) = match schemes {
            [(plain, port), _] if scheme == plain => (false, port),
            [_, (tls, port)] if scheme == tls => (true, port),
            _ => return Err(wanted()),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, String::new()),
        };
        if authority.contains('@') || !url.chars().all(|c| c.is_ascii_graphic()) {
            return Err(wanted());
        }
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon of a bare IPv6 address is not before a port.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| wanted())?))
            }
            Some(_) | None => (authority, usual),
        };
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let port = port.ok_or_else(wanted)?;
        if host.is_empty() {
            return Err(wanted());
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// Connects. The exchange that follows must end within a minute of this.
    pub(super) fn connect(&self) -> io::Result<BufReader<Link>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    return self.secure(socket).map(BufReader::new);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn secure(&self, socket: TcpStream) -> io::Result<Link> {
        let deadline = deadline();
        let socket = Socket { socket, deadline };
        if !self.tls {
            return Ok(Link::Plain(socket));
        }
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::clone(&TLS), name).map_err(io::Error::other)?;
        Ok(Link::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// A [`ChainError::Unavailable`] about this server.
    pub(super) fn unavailable(&self, detail: impl ToString) -> ChainError {
        ChainError::Unavailable {
            node: self.to_string(),
            detail: detail.to_string(),
        }
    }

    /// A [`ChainError::Protocol`] about this server.
    pub(super) fn protocol(&self, call: impl ToString, detail: impl ToString) -> ChainError {
        ChainError::Protocol {
            node: self.to_string(),
            call: call.to_string(),
            detail: detail.to_string(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host, port, path, ..
        } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}{path}")
        } else {
            write!(f, "{host}:{port}{path}")
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "patience with a socket belongs to the shell, and no machine sees it"
)]
fn now() -> Instant {
    Instant::now()
}

fn deadline() -> Instant {
    let now = now();
    now.checked_add(EXCHANGE).unwrap_or(now)
}

/// A socket on which nothing lasts beyond a deadline.
#[derive(Debug)]
pub(super) struct Socket {
    socket: TcpStream,
    deadline: Instant,
}

impl Socket {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// A connection, plain or not.
#[derive(Debug)]
pub(super) enum Link {
    Plain(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Link {
    /// Begins another exchange, with a minute of its own.
    pub(super) fn begin(&mut self) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &mut stream.sock,
        };
        socket.deadline = deadline();
    }
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Link {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(from),
            Self::Tls(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Reads one line of at most `most` bytes, without its end.
pub(super) fn read_line(from: &mut impl BufRead, most: u64) -> io::Result<String> {
    let mut line = Vec::new();
    from.take(most).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        let detail = "a line without an end";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, detail));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| invalid("a line that is not text"))
}

/// What the other side said makes no sense.
pub(super) fn invalid(detail: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: [(&str, Option<u16>); 2] = [("tcp", None), ("ssl", Some(50_002))];

    #[test]
    fn an_address_names_its_scheme_and_a_port_where_there_is_no_usual_one() {
        let place = |tls, host: &str, port, path: &str| Place {
            tls,
            host: host.into(),
            port,
            path: path.into(),
        };
        for (url, expected) in [
            (
                "tcp://127.0.0.1:50001",
                place(false, "127.0.0.1", 50_001, ""),
            ),
            ("ssl://example.org", place(true, "example.org", 50_002, "")),
            (
                "ssl://[2001:db8::7]:1/api/",
                place(true, "2001:db8::7", 1, "/api"),
            ),
            (
                "ssl://[2001:db8::7]",
                place(true, "2001:db8::7", 50_002, ""),
            ),
        ] {
            assert_eq!(Place::parse(url, SCHEMES).unwrap(), expected, "{url}");
        }
        for url in [
            "example.org:1",
            "tcp://example.org",
            "http://example.org:1",
            "tcp://me:secret@example.org:1",
            "tcp://:1",
            "tcp://example.org:port",
            "tcp://exam ple.org:1",
            "tcp://example.org:1\r\nX: y",
        ] {
            assert!(Place::parse(url, SCHEMES).is_err(), "{url}");
        }
    }

    #[test]
    fn a_line_is_read_up_to_its_bound_and_no_further() {
        let mut text = io::Cursor::new(b"one\r\ntwo\nthree".to_vec());
        assert_eq!(read_line(&mut text, 100).unwrap(), "one");
        assert_eq!(read_line(&mut text, 4).unwrap(), "two");
        assert!(read_line(&mut text, 100).is_err());
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert!(read_line(&mut endless, 1_000).is_err());
    }
}
