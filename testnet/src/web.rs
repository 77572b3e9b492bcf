//! A small web server to stand for the internet: files whose content follows from their address.
//!
//! - `GET /bytes/N?seed=S`: N bytes that [`Content`] describes, or the rest of them for a request with
//!   `Range: bytes=FROM-`;
//! - `PUT` or `POST /upload`: answers with the count and the SHA-256 of what was sent;
//! - `GET /address`: the address that the request came from, so that the egress is seen.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

/// The longest file served: more than any test moves.
const LONGEST: u64 = 1 << 36;

/// A file is made of numbers of so many bytes.
const WORD: u64 = 8;

/// How much of a file is made at a time.
const CHUNK: usize = 64 << 10;

/// A file that follows from a length and a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// How many bytes it has.
    pub length: u64,
    /// Which of the files of that length it is.
    pub seed: u64,
}

impl Content {
    /// The path of the file on a [`Web`].
    pub fn path(self) -> String {
        format!("/bytes/{}?seed={}", self.length, self.seed)
    }

    /// The bytes of the file, a piece at a time.
    pub fn chunks(self) -> impl Iterator<Item = Bytes> + Send + use<> {
        self.chunks_from(0)
    }

    /// The bytes of the file without its first `from`, a piece at a time.
    pub fn chunks_from(self, from: u64) -> impl Iterator<Item = Bytes> + Send + use<> {
        let mut word = from / WORD;
        let mut skip = usize::try_from(from % WORD).expect("less than a word");
        let mut left = self.length.saturating_sub(from);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let mut chunk = Vec::with_capacity(CHUNK);
            while chunk.len() < CHUNK {
                chunk.extend_from_slice(&split_mix(self.seed, word).to_le_bytes());
                word = word.wrapping_add(1);
            }
            chunk.drain(..std::mem::take(&mut skip));
            chunk.truncate(usize::try_from(left).unwrap_or(CHUNK));
            left -= chunk.len() as u64;
            Some(Bytes::from(chunk))
        })
    }

    /// The SHA-256 of the file.
    pub fn sha256(self) -> [u8; 32] {
        let mut hash = Sha256::new();
        self.chunks().for_each(|chunk| hash.update(&chunk));
        hash.finalize().into()
    }
}

/// A number of the sequence that SplitMix64 makes from `seed`: fast, and any of them at once.
fn split_mix(seed: u64, index: u64) -> u64 {
    let steps = index.wrapping_add(1);
    let mut mixed = seed.wrapping_add(steps.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What an upload answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// How many bytes arrived.
    pub length: u64,
    /// Their SHA-256, in hex.
    pub sha256: String,
}

/// A running web server. Dropping it stops it.
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
    served: Arc<AtomicU64>,
    task: JoinHandle<io::Result<()>>,
}

impl Web {
    /// Serves on `address`; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// Returns an error if the address cannot be bound.
    pub async fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let served = Arc::new(AtomicU64::new(0));
        let router = Router::new()
            .route("/bytes/{length}", get(bytes))
            .route("/upload", post(upload).put(upload))
            .route("/address", get(came_from))
            .with_state(Arc::clone(&served))
            .into_make_service_with_connect_info::<SocketAddr>();
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            served,
            task,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have come so far, answered or not.
    pub fn requests(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Deserialize)]
struct Seed {
    #[serde(default)]
    seed: u64,
}

async fn bytes(
    State(served): State<Arc<AtomicU64>>,
    Path(length): Path<u64>,
    Query(Seed { seed }): Query<Seed>,
    headers: HeaderMap,
) -> Response {
    served.fetch_add(1, Ordering::Relaxed);
    if length > LONGEST {
        return (
            StatusCode::BAD_REQUEST,
            format!("at most {LONGEST} bytes\n"),
        )
            .into_response();
    }
    let from = match headers.get(header::RANGE).map(range_start) {
        None => 0,
        Some(Some(from)) if from < length => from,
        Some(_) => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
    };
    let chunks = Content { length, seed }
        .chunks_from(from)
        .map(Ok::<_, io::Error>);
    let mut response = Body::from_stream(stream::iter(chunks)).into_response();
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length - from));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    response
}

/// Where `bytes=FROM-` begins. Other forms of a range are not needed and not served.
fn range_start(range: &HeaderValue) -> Option<u64> {
    range
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

async fn upload(
    State(served): State<Arc<AtomicU64>>,
    body: Body,
) -> Result<Json<Uploaded>, StatusCode> {
    served.fetch_add(1, Ordering::Relaxed);
    let (mut length, mut hash) = (0_u64, Sha256::new());
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        length += chunk.len() as u64;
        hash.update(&chunk);
    }
    Ok(Json(Uploaded {
        length,
        sha256: hex::encode(hash.finalize()),
    }))
}

async fn came_from(
    State(served): State<Arc<AtomicU64>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
) -> String {
    served.fetch_add(1, Ordering::Relaxed);
    format!("{from}\n")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> Vec<u8> {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }

    fn body(answer: &[u8]) -> &[u8] {
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        &answer[end + 4..]
    }

    #[test]
    fn a_file_has_its_length_and_its_start_does_not_depend_on_it() {
        for length in [0, 1, 7, 65_535, 65_536, 65_537, 200_000] {
            let bytes: Vec<u8> = Content { length, seed: 3 }.chunks().flatten().collect();
            assert_eq!(bytes.len() as u64, length);
            let longer: Vec<u8> = Content {
                length: 300_000,
                seed: 3,
            }
            .chunks()
            .flatten()
            .collect();
            assert!(longer.starts_with(&bytes));
        }
        assert_ne!(
            Content {
                length: 64,
                seed: 1
            }
            .sha256(),
            Content {
                length: 64,
                seed: 2
            }
            .sha256()
        );
    }

    #[tokio::test]
    async fn a_download_is_the_content_of_its_address() {
        let web = Web::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let content = Content {
            length: 150_001,
            seed: 9,
        };

        let request = format!(
            "GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            content.path()
        );
        let answer = ask(web.address(), &request).await;

        assert_eq!(Sha256::digest(body(&answer))[..], content.sha256());
        assert_eq!(web.requests(), 1);
    }

    #[test]
    fn a_rest_of_a_file_begins_where_it_is_asked_to() {
        let content = Content {
            length: 140_000,
            seed: 5,
        };
        let whole: Vec<u8> = content.chunks().flatten().collect();
        for from in [
            0, 1, 7, 8, 9, 65_535, 65_536, 70_001, 139_999, 140_000, 140_001,
        ] {
            let rest: Vec<u8> = content.chunks_from(from).flatten().collect();
            assert_eq!(
                rest,
                whole[usize::try_from(from).unwrap().min(whole.len())..]
            );
        }
    }

    #[tokio::test]
    async fn an_upload_answers_with_its_hash() {
        let web = Web::start("127.0.0.1:0".parse().unwrap()).await.unwrap();

        let request =
            "PUT /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
        let answer = ask(web.address(), request).await;

        let uploaded: Uploaded = serde_json::from_slice(body(&answer)).unwrap();
        assert_eq!(
            uploaded,
            Uploaded {
                length: 3,
                sha256: hex::encode(Sha256::digest("abc"))
            }
        );
    }
}
