//! Connections over TCP that end when this side wants them to, and whose streams notice.
//!
//! Two things yamux leaves undone when a connection is closed from here. What is still to be sent is
//! sent first, and a peer that has stopped reading never lets it be sent. And whoever waits to read
//! from one of its streams is not woken. A peer that went silent would so keep its connection, and a
//! session its lease, for as long as it likes. QUIC needs none of this.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a goodbye may take. One that is read takes a round trip.
pub(super) const GOODBYE: Duration = Duration::from_secs(3);

/// A muxer whose close ends in time and is the end of its streams.
pub(super) struct Parting<M> {
    inner: M,
    goodbye: Duration,
    closing: Option<Pin<Box<Sleep>>>,
    /// Cancelled when it is closed.
    gone: CancellationToken,
}

impl<M> Parting<M> {
    pub(super) fn new(inner: M, goodbye: Duration) -> Self {
        Self {
            inner,
            goodbye,
            closing: None,
            gone: CancellationToken::new(),
        }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for Parting<M>
where
    M::Substream: Unpin,
{
    type Substream = Substream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_inbound(cx);
        polled.map_ok(|stream| Substream::new(stream, &this.gone))
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_outbound(cx);
        polled.map_ok(|stream| Substream::new(stream, &this.gone))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let this = self.get_mut();
        this.gone.cancel();
        if let Poll::Ready(closed) = Pin::new(&mut this.inner).poll_close(cx) {
            return Poll::Ready(closed);
        }
        let goodbye = this.goodbye;
        let closing = this
            .closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(goodbye)));
        // Whoever asked drops the connection then, and the socket with it.
        closing.as_mut().poll(cx).map(Ok)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.get_mut().inner).poll(cx)
    }
}

/// A stream that ends with its connection.
pub(super) struct Substream<S> {
    inner: S,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Substream<S> {
    fn new(inner: S, gone: &CancellationToken) -> Self {
        Self {
            inner,
            gone: Box::pin(gone.clone().cancelled_owned()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Substream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_read(cx, buffer) {
            Poll::Ready(read) => Poll::Ready(read),
            Poll::Pending => this.gone.as_mut().poll(cx).map(|()| Ok(0)),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Substream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use futures::{AsyncReadExt as _, FutureExt as _};
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The other side has stopped reading, and says nothing.
    #[derive(Default)]
    struct Stuck(Vec<tokio::io::DuplexStream>);

    impl StreamMuxer for Stuck {
        type Substream = Compat<tokio::io::DuplexStream>;
        type Error = Infallible;

        fn poll_inbound(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Result<Self::Substream, Infallible>> {
            Poll::Pending
        }

        fn poll_outbound(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Result<Self::Substream, Infallible>> {
            let (near, far) = tokio::io::duplex(1);
            self.get_mut().0.push(far);
            Poll::Ready(Ok(near.compat()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn poll(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Result<StreamMuxerEvent, Infallible>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_peer_that_has_stopped_reading_keeps_neither_its_connection_nor_its_streams() {
        let mut muxer = Parting::new(Stuck::default(), Duration::from_millis(50));
        let mut stream = poll_fn(|cx| Pin::new(&mut muxer).poll_outbound(cx))
            .await
            .unwrap();
        let mut buffer = [0; 8];
        assert!(stream.read(&mut buffer).now_or_never().is_none());
        let reading = tokio::spawn(async move { stream.read(&mut buffer).await.unwrap() });

        let closing = poll_fn(|cx| Pin::new(&mut muxer).poll_close(cx));

        let closed = tokio::time::timeout(PATIENCE, closing).await;
        assert_eq!(closed, Ok(Ok(())));
        let read = tokio::time::timeout(PATIENCE, reading).await;
        assert_eq!(read.unwrap().unwrap(), 0);
    }
}
