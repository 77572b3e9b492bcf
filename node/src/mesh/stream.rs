//! Session streams as the rest of the node sees them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt as _};
use libp2p::Stream;
use thiserror::Error;

use super::streams::Use;
use crate::protocol::hello::{Hello, Reply};
use crate::protocol::message::RefusalCode;

/// A stream both sides have agreed on. Bytes in order; backpressure by the other side's reading.
///
/// Dropping it without [`close`](futures::AsyncWriteExt::close) resets it: the other side sees an error, not
/// an end.
pub struct MeshStream {
    stream: Stream,
    in_use: Use,
}

impl MeshStream {
    pub(crate) const fn new(stream: Stream, in_use: Use) -> Self {
        Self { stream, in_use }
    }
}

impl fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshStream")
            .field("in_use", &self.in_use)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read_vectored(cx, bufs)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// A stream another node opened, which waits for this node's answer.
///
/// Dropping it is an answer too: the other node sees [`OpenError::Broken`] at once.
pub struct InboundStream {
    hello: Hello,
    /// Boxed, so that a queue of events is not made of places for streams.
    stream: Box<MeshStream>,
}

impl InboundStream {
    pub(crate) fn new(hello: Hello, stream: MeshStream) -> Self {
        Self {
            hello,
            stream: Box::new(stream),
        }
    }

    /// Which session it wants to belong to. Nothing about it has been checked: the lease may not
    /// exist, or be another node's.
    #[must_use]
    pub const fn hello(&self) -> Hello {
        self.hello
    }

    /// Takes the stream. One byte is written; run it in a task of its own, not in the driver.
    ///
    /// # Errors
    ///
    /// The stream's own, if the other node has given up.
    pub async fn accept(mut self) -> io::Result<MeshStream> {
        Reply::Accepted.write(&mut self.stream).await?;
        Ok(*self.stream)
    }

    /// Turns the stream away. Never waits: if the reason cannot be written at once, the other node
    /// sees a broken stream instead.
    pub fn refuse(mut self, code: RefusalCode) {
        let told = async {
            Reply::Refused(code).write(&mut self.stream).await?;
            self.stream.close().await
        };
        // Ready at the first poll unless the connection is congested; then the drop resets it.
        let _ = told.now_or_never();
    }
}

impl fmt::Debug for InboundStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundStream")
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

/// Why a session stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No connection could be made, or no address is known.
    #[error("the node cannot be reached")]
    Unreachable,
    /// Not opened and accepted in time.
    #[error("the stream was not accepted in time")]
    Timeout,
    /// The connection or the stream broke, or the other node dropped it.
    #[error("the stream broke before it was accepted")]
    Broken,
    /// The other node speaks another version or does not take sessions.
    #[error("the node does not speak this protocol")]
    Unsupported,
    /// The other node said no.
    #[error("the node refused the stream: {0}")]
    Refused(RefusalCode),
    /// This node has too many streams in the opening, in all or to that node.
    #[error("too many streams are in the opening")]
    TooMany,
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Ended,
}
