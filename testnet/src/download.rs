//! A client that moves files through a node's SOCKS5 proxy and checks every byte.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};

use crate::web::{Content, Uploaded};

/// How much is read at a time.
const CHUNK: usize = 64 << 10;

/// The longest head of an answer that is read.
const LONGEST_HEAD: u64 = 8 << 10;

/// A transfer did not end as it should.
#[derive(Debug, Error)]
pub enum TransferError {
    /// A connection could not be made or broke.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The proxy refused, with this reply code of RFC 1928.
    #[error("the proxy refuses with code {0}")]
    Refused(u8),
    /// The proxy does not speak SOCKS5 without authentication.
    #[error("the proxy answers {0:02x?}, which is not SOCKS5")]
    NotSocks([u8; 2]),
    /// The web server answered something else than success.
    #[error("the web server answers {0:?}")]
    Status(String),
    /// The transfer ended early.
    #[error("{got} bytes of {expected} arrived")]
    Short {
        /// How many arrived.
        got: u64,
        /// How many were announced.
        expected: u64,
    },
    /// Something else arrived than was sent.
    #[error("the SHA-256 of what arrived is not that of what was sent")]
    Corrupt,
}

fn at(step: &'static str) -> impl Fn(io::Error) -> TransferError {
    move |source| TransferError::Io { step, source }
}

/// Where a SOCKS5 proxy is asked to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Address(SocketAddr),
    /// A name, which the egress resolves, and a port. At most 255 bytes of name.
    Name(String, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl Target {
    fn encode(&self) -> Vec<u8> {
        let (mut bytes, port) = match self {
            Self::Address(address) => match address.ip() {
                IpAddr::V4(ip) => ([&[1][..], &ip.octets()].concat(), address.port()),
                IpAddr::V6(ip) => ([&[4][..], &ip.octets()].concat(), address.port()),
            },
            Self::Name(name, port) => {
                let name = &name.as_bytes()[..name.len().min(255)];
                let length = u8::try_from(name.len()).expect("cut to 255");
                ([&[3, length][..], name].concat(), *port)
            }
        };
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes
    }
}

/// Opens a connection to `target` through the SOCKS5 proxy at `proxy`.
///
/// # Errors
///
/// Returns [`TransferError::Refused`] with the proxy's code if it does not connect.
pub async fn connect(proxy: SocketAddr, target: &Target) -> Result<TcpStream, TransferError> {
    let mut stream = TcpStream::connect(proxy)
        .await
        .map_err(at("connecting to the proxy"))?;
    stream
        .set_nodelay(true)
        .map_err(at("connecting to the proxy"))?;
    stream
        .write_all(&[5, 1, 0])
        .await
        .map_err(at("greeting the proxy"))?;
    let mut chosen = [0; 2];
    stream
        .read_exact(&mut chosen)
        .await
        .map_err(at("greeting the proxy"))?;
    if chosen != [5, 0] {
        return Err(TransferError::NotSocks(chosen));
    }
    let request = [&[5, 1, 0][..], &target.encode()].concat();
    stream
        .write_all(&request)
        .await
        .map_err(at("asking the proxy to connect"))?;
    let mut reply = [0; 4];
    stream
        .read_exact(&mut reply)
        .await
        .map_err(at("waiting for the proxy to connect"))?;
    if reply[1] != 0 {
        return Err(TransferError::Refused(reply[1]));
    }
    let address_length = match reply[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(
            stream
                .read_u8()
                .await
                .map_err(at("reading the proxy's reply"))?,
        ),
        _ => return Err(TransferError::NotSocks([reply[0], reply[3]])),
    };
    let mut bound = vec![0; address_length + 2];
    stream
        .read_exact(&mut bound)
        .await
        .map_err(at("reading the proxy's reply"))?;
    Ok(stream)
}

/// A download that runs beside its caller.
#[derive(Debug)]
pub struct Download {
    received: Arc<AtomicU64>,
    task: JoinHandle<Result<Downloaded, TransferError>>,
}

/// A download that was complete and correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// How many bytes of content came; heads are not counted.
    pub length: u64,
    /// The SHA-256 of what came.
    pub sha256: [u8; 32],
    /// From the start to the first byte of content.
    pub first_byte: Duration,
    /// From the start to the last byte.
    pub took: Duration,
}

impl Download {
    /// Starts to download `content` from the [`Web`](crate::web::Web) at `web`, without its first
    /// `from` bytes, through the SOCKS5 proxy at `proxy`. Needs a tokio runtime.
    pub fn start(proxy: SocketAddr, web: SocketAddr, content: Content, from: u64) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(download(proxy, web, content, from, Arc::clone(&received)));
        Self { received, task }
    }

    /// How many bytes of content have come so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether it has ended, well or not.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end. Nothing bounds this wait.
    ///
    /// # Errors
    ///
    /// Returns an error if not every byte came, or came as it was sent.
    pub async fn finish(mut self) -> Result<Downloaded, TransferError> {
        (&mut self.task).await.unwrap_or_else(|ended| {
            Err(TransferError::Io {
                step: "running the download",
                source: io::Error::other(ended),
            })
        })
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures a transfer on a real network"
)]
fn now() -> Instant {
    Instant::now()
}

async fn download(
    proxy: SocketAddr,
    web: SocketAddr,
    content: Content,
    from: u64,
    received: Arc<AtomicU64>,
) -> Result<Downloaded, TransferError> {
    let start = now();
    let mut stream = connect(proxy, &web.into()).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {web}\r\nrange: bytes={from}-\r\nconnection: close\r\n\r\n",
        content.path()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(at("sending the request"))?;
    let mut stream = BufReader::with_capacity(CHUNK, stream);
    let expected = read_head(&mut stream).await?;
    if expected != content.length.saturating_sub(from) {
        return Err(TransferError::Short {
            got: expected,
            expected: content.length,
        });
    }

    // Compared as it comes: what differs is seen at once, whatever its length.
    let mut first_byte = None;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    for chunk in content.chunks_from(from) {
        let mut compared = 0;
        while compared < chunk.len() {
            let room = &mut buffer[..chunk.len() - compared];
            let read = stream.read(room).await.map_err(at("downloading"))?;
            if read == 0 {
                return Err(TransferError::Short {
                    got: received.load(Ordering::Relaxed),
                    expected,
                });
            }
            first_byte.get_or_insert_with(|| now() - start);
            if buffer[..read] != chunk[compared..compared + read] {
                return Err(TransferError::Corrupt);
            }
            hash.update(&buffer[..read]);
            compared += read;
            received.fetch_add(read as u64, Ordering::Relaxed);
        }
    }
    let took = now() - start;
    let first_byte = first_byte.unwrap_or(took);
    Ok(Downloaded {
        length: expected,
        sha256: hash.finalize().into(),
        first_byte,
        took,
    })
}

/// Uploads `content` to the web server at `web` through the proxy at `proxy`.
///
/// # Errors
///
/// Returns an error if the server did not receive every byte as it was sent.
pub async fn upload(
    proxy: SocketAddr,
    web: SocketAddr,
    content: Content,
) -> Result<(), TransferError> {
    let mut stream = connect(proxy, &web.into()).await?;
    let head = format!(
        "PUT /upload HTTP/1.1\r\nhost: {web}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        content.length
    );
    stream
        .write_all(head.as_bytes())
        .await
        .map_err(at("sending the request"))?;
    let mut hash = Sha256::new();
    for chunk in content.chunks() {
        hash.update(&chunk);
        stream.write_all(&chunk).await.map_err(at("uploading"))?;
    }
    let mut stream = BufReader::new(stream);
    let length = read_head(&mut stream).await?;
    let mut body = Vec::new();
    let mut rest = stream.take(length.min(LONGEST_HEAD));
    rest.read_to_end(&mut body)
        .await
        .map_err(at("reading the answer"))?;
    let answer: Uploaded =
        serde_json::from_slice(&body).map_err(|error| at("reading the answer")(error.into()))?;
    if answer.length < content.length {
        return Err(TransferError::Short {
            got: answer.length,
            expected: content.length,
        });
    }
    if answer.sha256 != hex::encode(hash.finalize()) {
        return Err(TransferError::Corrupt);
    }
    Ok(())
}

/// Reads the head of an answer and returns the length of its body.
async fn read_head(stream: &mut BufReader<impl AsyncRead + Unpin>) -> Result<u64, TransferError> {
    let step = "reading the answer";
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let mut rest = stream.take(LONGEST_HEAD - head.len() as u64);
        if rest.read_line(&mut head).await.map_err(at(step))? == 0 {
            return Err(TransferError::Io {
                step,
                source: io::ErrorKind::UnexpectedEof.into(),
            });
        }
    }
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 2") {
        return Err(TransferError::Status(status.to_owned()));
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| {
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())
                .flatten()
        });
    length.ok_or_else(|| TransferError::Status("no content-length".to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::web::Web;

    /// A SOCKS5 proxy for one connection, which changes a byte if `corrupt`.
    async fn proxy(corrupt: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut greeting = [0; 3];
            client.read_exact(&mut greeting).await.unwrap();
            client.write_all(&[5, 0]).await.unwrap();
            let mut request = [0; 10];
            client.read_exact(&mut request).await.unwrap();
            let ip: [u8; 4] = request[4..8].try_into().unwrap();
            let port = u16::from_be_bytes([request[8], request[9]]);
            let mut server = TcpStream::connect((IpAddr::from(ip), port)).await.unwrap();
            client
                .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            if corrupt {
                let mut head = vec![0; 512];
                let read = client.read(&mut head).await.unwrap();
                server.write_all(&head[..read]).await.unwrap();
                let mut answer = Vec::new();
                server.read_to_end(&mut answer).await.unwrap();
                *answer.last_mut().unwrap() ^= 1;
                client.write_all(&answer).await.unwrap();
            } else {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_file_and_the_rest_of_a_file_are_downloaded_through_a_proxy() {
        let web = Web::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let content = Content {
            length: 300_001,
            seed: 4,
        };

        for from in [0, 12_345, 300_000] {
            let download = Download::start(proxy(false).await, web.address(), content, from);
            assert_eq!(
                download.finish().await.unwrap().length,
                content.length - from
            );
        }
        upload(proxy(false).await, web.address(), content)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn one_wrong_bit_is_seen() {
        let web = Web::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let content = Content {
            length: 300_001,
            seed: 4,
        };

        let download = Download::start(proxy(true).await, web.address(), content, 0);
        assert!(matches!(
            download.finish().await,
            Err(TransferError::Corrupt)
        ));
    }
}
