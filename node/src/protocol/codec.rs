//! Bytes to messages and back: the only place where a request or a response has an encoding.
//!
//! On the stream stands a frame: four bytes of length, big-endian, then that many bytes of CBOR, then
//! the end of the stream. The CBOR is `[kind, body]`, where `kind` is a small number and `body` a byte
//! string, or for asks an array. The length is checked against the cap before any memory is taken.
//!
//! Only deterministic CBOR is read (see [`bitmesh_market::wire`]), so a message has exactly one
//! spelling.

use std::io;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, request_response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::{ByteBuf, Bytes};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use bitmesh_market::wire;

use super::message::{
    Cursor, MAX_ASK_BYTES, MAX_CHANNEL_BYTES, MAX_DETAIL_BYTES, MAX_LEASE_BYTES, MAX_PAGE_ASKS,
    MAX_PAGE_BYTES, MAX_PROPOSAL_BYTES, MAX_QUOTE_BYTES, MAX_RFQ_BYTES, Refusal, RefusalCode,
    Request, Response,
};

/// Largest request, in bytes of CBOR: the largest body and its few bytes of frame.
pub const MAX_REQUEST_BYTES: usize = MAX_CHANNEL_BYTES + 16;

/// Largest response, in bytes of CBOR: a full page of asks with three bytes of header each.
pub const MAX_RESPONSE_BYTES: usize = 41 * 1024;

/// Bytes of requests that may be in the reading at once, over all peers: 200 of the largest, or some
/// thousands of the usual. Strangers who send slowly can fill this, and no more.
const READ_BUDGET_BYTES: usize = 8 * 1024 * 1024;

/// Memory is taken for a frame in steps of this as its bytes arrive, not by its announced length.
const STEP_BYTES: usize = 4 * 1024;

const KIND_RFQ: u8 = 1;
const KIND_PROPOSE: u8 = 2;
const KIND_CHANNEL: u8 = 3;
const KIND_ASKS: u8 = 4;

const KIND_QUOTE: u8 = 1;
const KIND_LEASE: u8 = 2;
const KIND_CHANNEL_REPLY: u8 = 3;
const KIND_ASKS_REPLY: u8 = 4;
const KIND_REFUSED: u8 = 5;

/// Bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The whole message is above its cap.
    #[error("message of {bytes} bytes is above the cap of {cap}")]
    TooLarge {
        /// Its length, announced or found.
        bytes: usize,
        /// What is allowed.
        cap: usize,
    },
    /// A part of the message is above its own cap.
    #[error("{part} is above its cap of {cap}")]
    PartTooLarge {
        /// Which part.
        part: &'static str,
        /// What is allowed.
        cap: usize,
    },
    /// Not the expected CBOR, or not in its one accepted spelling.
    #[error("message is malformed")]
    Malformed,
    /// A kind this version does not know.
    #[error("message of unknown kind {0}")]
    UnknownKind(u8),
    /// Something stands after the message.
    #[error("message is followed by more bytes")]
    Trailing,
}

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Encodes a request.
///
/// # Errors
///
/// [`CodecError::PartTooLarge`] if the caller's body is above its cap; nothing else.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, CodecError> {
    check_request(request)?;
    Ok(match request {
        Request::Rfq(body) => encode(KIND_RFQ, Bytes::new(body)),
        Request::Propose(body) => encode(KIND_PROPOSE, Bytes::new(body)),
        Request::Channel(body) => encode(KIND_CHANNEL, Bytes::new(body)),
        Request::Asks { after } => encode(KIND_ASKS, Bytes::new(after.as_bytes())),
    })
}

/// Reads a request.
///
/// # Errors
///
/// See [`CodecError`]. Never panics and never takes more memory than a small multiple of `bytes`.
pub fn decode_request(bytes: &[u8]) -> Result<Request, CodecError> {
    let (kind, body) = split(bytes, MAX_REQUEST_BYTES)?;
    let body = decode::<ByteBuf>(body)?.into_vec();
    let request = match kind {
        KIND_RFQ => Request::Rfq(body),
        KIND_PROPOSE => Request::Propose(body),
        KIND_CHANNEL => Request::Channel(body),
        KIND_ASKS => Request::Asks {
            after: cursor(body)?,
        },
        kind => return Err(CodecError::UnknownKind(kind)),
    };
    check_request(&request)?;
    Ok(request)
}

/// Encodes a response.
///
/// # Errors
///
/// [`CodecError::PartTooLarge`] if the caller's body is above its cap; nothing else.
pub fn encode_response(response: &Response) -> Result<Vec<u8>, CodecError> {
    check_response(response)?;
    Ok(match response {
        Response::Quote(body) => encode(KIND_QUOTE, Bytes::new(body)),
        Response::Lease(body) => encode(KIND_LEASE, Bytes::new(body)),
        Response::Channel(body) => encode(KIND_CHANNEL_REPLY, Bytes::new(body)),
        Response::Asks { asks, next } => encode(
            KIND_ASKS_REPLY,
            (
                asks.iter().map(|ask| Bytes::new(ask)).collect::<Vec<_>>(),
                next.as_ref().map(|next| Bytes::new(next.as_bytes())),
            ),
        ),
        Response::Refused(refusal) => encode(
            KIND_REFUSED,
            (refusal.code.to_byte(), refusal.detail.as_str()),
        ),
    })
}

/// Reads a response.
///
/// # Errors
///
/// See [`CodecError`]. Never panics and never takes more memory than a small multiple of `bytes`.
pub fn decode_response(bytes: &[u8]) -> Result<Response, CodecError> {
    let (kind, body) = split(bytes, MAX_RESPONSE_BYTES)?;
    let response = match kind {
        KIND_QUOTE => Response::Quote(decode::<ByteBuf>(body)?.into_vec()),
        KIND_LEASE => Response::Lease(decode::<ByteBuf>(body)?.into_vec()),
        KIND_CHANNEL_REPLY => Response::Channel(decode::<ByteBuf>(body)?.into_vec()),
        KIND_ASKS_REPLY => {
            let (asks, next) = decode::<(Vec<ByteBuf>, Option<ByteBuf>)>(body)?;
            Response::Asks {
                asks: asks.into_iter().map(ByteBuf::into_vec).collect(),
                next: next.map(|next| cursor(next.into_vec())).transpose()?,
            }
        }
        KIND_REFUSED => {
            let (code, detail) = decode::<(u8, String)>(body)?;
            let code = RefusalCode::from_byte(code).ok_or(CodecError::Malformed)?;
            // The words of a stranger end up on a terminal: nothing but what a refusal may hold.
            let refusal = Refusal::new(code, &detail);
            if refusal.detail != detail {
                return Err(CodecError::Malformed);
            }
            Response::Refused(refusal)
        }
        kind => return Err(CodecError::UnknownKind(kind)),
    };
    check_response(&response)?;
    Ok(response)
}

/// `[kind, body]`: an array of two is the byte 0x82, a kind below 24 is itself.
fn encode(kind: u8, body: impl Serialize) -> Vec<u8> {
    debug_assert!(kind < 24);
    let mut bytes = vec![0x82, kind];
    bytes.append(&mut wire::encode(&body));
    bytes
}

fn split(bytes: &[u8], cap: usize) -> Result<(u8, &[u8]), CodecError> {
    if bytes.len() > cap {
        return Err(CodecError::TooLarge {
            bytes: bytes.len(),
            cap,
        });
    }
    match bytes {
        [0x82, kind @ 0..24, body @ ..] => Ok((*kind, body)),
        _ => Err(CodecError::Malformed),
    }
}

fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    wire::decode(bytes, bytes.len()).map_err(|_| CodecError::Malformed)
}

fn cursor(bytes: Vec<u8>) -> Result<Cursor, CodecError> {
    Cursor::from_bytes(bytes).ok_or(CodecError::PartTooLarge {
        part: "cursor",
        cap: super::message::MAX_CURSOR_BYTES,
    })
}

fn check_request(request: &Request) -> Result<(), CodecError> {
    match request {
        Request::Rfq(body) => cap("request for a quote", body.len(), MAX_RFQ_BYTES),
        Request::Propose(body) => cap("proposal", body.len(), MAX_PROPOSAL_BYTES),
        Request::Channel(body) => cap("channel message", body.len(), MAX_CHANNEL_BYTES),
        Request::Asks { after: _ } => Ok(()),
    }
}

fn check_response(response: &Response) -> Result<(), CodecError> {
    match response {
        Response::Quote(body) => cap("quote", body.len(), MAX_QUOTE_BYTES),
        Response::Lease(body) => cap("lease", body.len(), MAX_LEASE_BYTES),
        Response::Channel(body) => cap("channel message", body.len(), MAX_CHANNEL_BYTES),
        Response::Asks { asks, next: _ } => {
            cap("count of asks", asks.len(), MAX_PAGE_ASKS)?;
            for ask in asks {
                cap("ask", ask.len(), MAX_ASK_BYTES)?;
            }
            // At most 64 asks of at most 2 KiB each: the sum cannot overflow.
            let bytes = asks.iter().map(Vec::len).sum();
            cap("page of asks", bytes, MAX_PAGE_BYTES)
        }
        Response::Refused(refusal) => {
            cap("refusal", refusal.detail.len(), MAX_DETAIL_BYTES)?;
            match refusal.code.to_byte() {
                0 => Err(CodecError::Malformed),
                _ => Ok(()),
            }
        }
    }
}

fn cap(part: &'static str, length: usize, cap: usize) -> Result<(), CodecError> {
    if length <= cap {
        Ok(())
    } else {
        Err(CodecError::PartTooLarge { part, cap })
    }
}

/// Reads and writes frames on libp2p streams.
///
/// Clones share one budget of bytes for requests in the reading. Responses are outside of it: their
/// number is bounded by what this node asked, and strangers must not be able to crowd them out.
#[derive(Clone, Debug)]
pub(crate) struct FrameCodec {
    budget: Arc<Semaphore>,
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self {
            budget: Arc::new(Semaphore::new(READ_BUDGET_BYTES)),
        }
    }
}

/// Takes a part of a budget. Never waits: whoever comes when all is taken is turned away, so that
/// slow senders cannot make the others queue.
fn hold(budget: &Arc<Semaphore>, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(budget)
        .try_acquire_many_owned(permits)
        .map_err(|_| io::Error::other("too many bytes of requests in the reading"))
}

/// Reads one frame and the end of the stream after it.
async fn read_frame(
    io: &mut (impl AsyncRead + Unpin),
    cap: usize,
    budget: Option<&Arc<Semaphore>>,
) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if bytes > cap {
        return Err(CodecError::TooLarge { bytes, cap }.into());
    }
    let mut held = Vec::new();
    let mut frame = Vec::new();
    while frame.len() < bytes {
        let start = frame.len();
        let step = (bytes - start).min(STEP_BYTES);
        if let Some(budget) = budget {
            held.push(hold(budget, step)?);
        }
        frame.resize(start + step, 0);
        io.read_exact(&mut frame[start..]).await?;
    }
    if io.read(&mut [0]).await? != 0 {
        return Err(CodecError::Trailing.into());
    }
    Ok(frame)
}

async fn write_frame(io: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(frame).await
}

impl request_response::Codec for FrameCodec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Response;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        let frame = read_frame(io, MAX_REQUEST_BYTES, Some(&self.budget)).await?;
        Ok(decode_request(&frame)?)
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        let frame = read_frame(io, MAX_RESPONSE_BYTES, None).await?;
        Ok(decode_response(&frame)?)
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Request,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_frame(io, &encode_request(&request)?).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Response,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_frame(io, &encode_response(&response)?).await
    }
}

#[cfg(test)]
mod tests;
