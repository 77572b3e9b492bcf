//! One lane: a byte stream to the other end of the tunnel that many flows share in turns.
//!
//! Writing is done by whoever has the turn, without a task or a queue in between. Turns are granted
//! first come, first served, one quantum each, which is what makes flows fair. Frames that are not
//! flow data go ahead of it through a small buffer that never blocks, so the reader of a lane can
//! always answer and always goes on reading: no flow, however stuck, stops another.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite};
use tokio::sync::{MutexGuard, Notify};

use super::ending::{Ended, Ending};
use super::frame::{FlowId, Frame, HEADER, MAX_PAYLOAD, data_header};

/// Payload bytes that a flow may send in one turn while others wait for theirs. With its header it
/// is one 16 KiB frame of yamux; a smaller one costs throughput, a larger one delays small flows.
pub(super) const QUANTUM: usize = 16 * 1024 - HEADER;

/// Payload bytes of a turn that nobody waits for.
pub(super) const LONG_QUANTUM: usize = MAX_PAYLOAD;

/// A read that got so much is worth passing on at once; after less, what comes in the same moment is
/// taken with it.
const GATHERED: usize = 32 * 1024;

/// Most bytes of control frames that may wait to be written. An honest peer reads all the time, so
/// that a few frames for each of 512 flows is the most that gathers; more means it does not read.
const MAX_CONTROL: usize = 128 * 1024;

/// What a lane must be. Write and read sides are used from different tasks.
///
/// Bytes must leave without a flush: a lane is never flushed, so it must not be a `BufWriter`.
pub trait LaneStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> LaneStream for T {}

/// The lane cannot be used any more; the session has ended or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneClosed;

/// The writing half, shared by all flows of the lane.
pub(super) struct Lane {
    stream: Arc<Shared>,
    outgoing: tokio::sync::Mutex<Outgoing>,
    control: Mutex<Vec<u8>>,
    control_waits: Notify,
    ending: Arc<Ending>,
}

struct Outgoing {
    /// One data frame: header and payload in place, so that it is written as one piece.
    frame: Box<[u8]>,
    /// Swapped with the waiting control frames, so that both keep their allocation.
    control: Vec<u8>,
    /// A write was begun and not finished: nothing sensible can follow it.
    torn: bool,
}

impl Lane {
    pub(super) fn new(stream: impl LaneStream, ending: Arc<Ending>) -> (Arc<Self>, LaneReader) {
        let stream = Arc::new(Shared::new(Box::new(stream)));
        let reader = LaneReader {
            stream: Arc::clone(&stream),
            failed: None,
        };
        let lane = Arc::new(Self {
            stream,
            outgoing: tokio::sync::Mutex::new(Outgoing {
                frame: vec![0; HEADER + LONG_QUANTUM].into(),
                control: Vec::new(),
                torn: false,
            }),
            control: Mutex::default(),
            control_waits: Notify::new(),
            ending,
        });
        (lane, reader)
    }

    /// Waits for the right to write. Safe to drop while waiting.
    pub(super) async fn turn(&self) -> Turn<'_> {
        if let Ok(outgoing) = self.outgoing.try_lock() {
            return Turn {
                lane: self,
                outgoing,
                contended: false,
            };
        }
        Turn {
            lane: self,
            outgoing: self.outgoing.lock().await,
            contended: true,
        }
    }

    /// Puts a small frame ahead of all flow data that is not yet being written. Never waits.
    ///
    /// The caller sees to the order within a flow: only what may overtake the flow's own data, and
    /// only ends of flows that have sent none, may go this way.
    ///
    /// # Errors
    ///
    /// Returns [`LaneClosed`] and ends the session if the peer has stopped reading.
    pub(super) fn push(&self, flow: FlowId, frame: &Frame<'_>) -> Result<(), LaneClosed> {
        {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            if control.len() > MAX_CONTROL {
                drop(control);
                self.ending.end(Ended::NotReading);
                return Err(LaneClosed);
            }
            frame.encode(flow, &mut control);
        }
        self.control_waits.notify_one();
        Ok(())
    }

    /// Puts a frame that may be lost (a datagram) ahead of flow data, unless the lane is congested.
    /// If it goes, `count` is called before anybody can see it.
    pub(super) fn try_push_lossy(&self, flow: FlowId, frame: &Frame<'_>, count: impl FnOnce()) {
        {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            // Half, so that datagrams can never be the reason for which a session ends.
            if control.len() > MAX_CONTROL / 2 {
                return;
            }
            count();
            frame.encode(flow, &mut control);
        }
        self.control_waits.notify_one();
    }

    /// Writes control frames for which no flow has a turn soon enough. Runs until the session ends.
    pub(super) async fn run(&self) {
        loop {
            self.control_waits.notified().await;
            if self.control_is_empty() {
                continue;
            }
            if self.turn().await.flush_control().await.is_err() {
                return;
            }
        }
    }

    /// Tells the peer that nothing follows, as far as that is possible without waiting long.
    pub(super) async fn close(&self) {
        let mut stream = WriteHalf(&self.stream);
        // The peer is told so by the stream's end; if even that fails there is nobody to tell.
        let _ = poll_fn(|cx| stream.poll_close(cx)).await;
    }

    fn control_is_empty(&self) -> bool {
        self.control
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

/// The right to write to a lane, for one quantum.
pub(super) struct Turn<'a> {
    lane: &'a Lane,
    outgoing: MutexGuard<'a, Outgoing>,
    contended: bool,
}

impl Turn<'_> {
    /// How many payload bytes this turn is good for.
    pub(super) fn quantum(&self) -> usize {
        if self.contended {
            QUANTUM
        } else {
            LONG_QUANTUM
        }
    }

    /// Where the payload of the next data frame goes.
    pub(super) fn payload(&mut self) -> &mut [u8] {
        &mut self.outgoing.frame[HEADER..]
    }

    /// Writes a data frame of the first `length` bytes of [`payload`](Self::payload).
    ///
    /// Must not be dropped before it completes: a torn frame ends the session.
    pub(super) async fn send_data(mut self, flow: FlowId, length: usize) -> Result<(), LaneClosed> {
        self.flush_control().await?;
        self.outgoing.frame[..HEADER].copy_from_slice(&data_header(flow, length));
        let Outgoing { frame, torn, .. } = &mut *self.outgoing;
        self.lane.write(&frame[..HEADER + length], torn).await
    }

    /// Writes a frame in its order among the data frames of its flow. As [`send_data`](Self::send_data).
    pub(super) async fn send(mut self, flow: FlowId, frame: &Frame<'_>) -> Result<(), LaneClosed> {
        self.flush_control().await?;
        let Outgoing { control, torn, .. } = &mut *self.outgoing;
        frame.encode(flow, control);
        let result = self.lane.write(control, torn).await;
        control.clear();
        result
    }

    async fn flush_control(&mut self) -> Result<(), LaneClosed> {
        let Outgoing { control, torn, .. } = &mut *self.outgoing;
        {
            let mut waiting = self
                .lane
                .control
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if waiting.is_empty() {
                return if *torn { Err(LaneClosed) } else { Ok(()) };
            }
            std::mem::swap(&mut *waiting, control);
        }
        let result = self.lane.write(control, torn).await;
        control.clear();
        result
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.outgoing.torn {
            self.lane
                .ending
                .end(Ended::LaneLost("a frame was cut off".into()));
        }
    }
}

impl Lane {
    async fn write(&self, mut bytes: &[u8], torn: &mut bool) -> Result<(), LaneClosed> {
        if *torn {
            return Err(LaneClosed);
        }
        *torn = true;
        let mut stream = WriteHalf(&self.stream);
        while !bytes.is_empty() {
            let written = tokio::select! {
                biased;
                written = poll_fn(|cx| stream.poll_write(cx, bytes)) => written,
                () = self.ending.over() => return Err(LaneClosed),
            };
            match written {
                Ok(0) => {
                    self.ending
                        .end(Ended::LaneLost("closed for writing".into()));
                    return Err(LaneClosed);
                }
                Err(error) => {
                    self.ending.end(Ended::LaneLost(error.to_string()));
                    return Err(LaneClosed);
                }
                Ok(len) => bytes = &bytes[len..],
            }
        }
        *torn = false;
        Ok(())
    }
}

/// The reading half, for the one task that reads the lane.
pub(super) struct LaneReader {
    stream: Arc<Shared>,
    /// What ended the stream after bytes that were still to be handed over.
    failed: Option<io::Error>,
}

impl LaneReader {
    /// Reads some bytes; zero at the end of the stream.
    ///
    /// Transports hand over a packet or a frame at a time. What comes in the same moment is read as
    /// one: passed on in pieces, each would cost a system call and wake an application.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut filled = poll_fn(|cx| self.stream.poll_read(cx, buffer)).await?;
        if filled == 0 || filled >= GATHERED.min(buffer.len()) {
            return Ok(filled);
        }
        // The transport's tasks go first, with what they have at hand; nothing is waited for.
        tokio::task::yield_now().await;
        let rest = &mut buffer[filled..];
        match poll_fn(|cx| Poll::Ready(self.stream.poll_read(cx, rest))).await {
            Poll::Ready(Ok(len)) => filled += len,
            Poll::Ready(Err(error)) => self.failed = Some(error),
            Poll::Pending => {}
        }
        Ok(filled)
    }
}

/// A stream whose halves are polled by different tasks.
///
/// Some streams (yamux) register one waker for both directions: polled with the wakers of two tasks
/// they would forget one of them, and that task would sleep for ever. So the stream only ever sees
/// one waker, which wakes whichever halves are waiting.
struct Shared {
    stream: Mutex<Box<dyn LaneStream>>,
    halves: Arc<Halves>,
    waker: Waker,
}

#[derive(Default)]
struct Halves {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Halves {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl Shared {
    fn new(stream: Box<dyn LaneStream>) -> Self {
        let halves = Arc::<Halves>::default();
        let waker = Waker::from(Arc::clone(&halves));
        Self {
            stream: Mutex::new(stream),
            halves,
            waker,
        }
    }

    fn poll<T>(
        &self,
        half: &AtomicWaker,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut dyn LaneStream>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // Before polling, so that a wake in between is not lost.
        half.register(cx.waker());
        let result = {
            let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
            poll(
                Pin::new(&mut **stream),
                &mut Context::from_waker(&self.waker),
            )
        };
        let result = ready!(result);
        // Not waiting any more: the other half's wakes are none of our business.
        half.take();
        Poll::Ready(result)
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(&self.halves.reader, cx, |stream, cx| {
            stream.poll_read(cx, buffer)
        })
    }
}

struct WriteHalf<'a>(&'a Shared);

impl WriteHalf<'_> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll(&self.0.halves.writer, cx, |stream, cx| {
            stream.poll_write(cx, bytes)
        })
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(&self.0.halves.writer, cx, |stream, cx| {
            stream.poll_close(cx)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Hands over a piece at a time, as transports do, and then breaks.
    struct Pieces(VecDeque<&'static [u8]>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let Some(piece) = self.0.pop_front() else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            buffer[..piece.len()].copy_from_slice(piece);
            Poll::Ready(Ok(piece.len()))
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buffer.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn pieces_that_are_there_are_read_as_one_and_what_broke_after_them_is_told_next() {
        let pieces = Pieces(VecDeque::from([&b"ab"[..], b"cd", b"e"]));
        let (_lane, mut reader) = Lane::new(pieces, Arc::default());
        let mut buffer = [0; 64];

        assert_eq!(reader.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(buffer[..4], *b"abcd");
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 1);
        let broken = reader.read(&mut buffer).await.unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_full_buffer_is_not_waited_over() {
        let pieces = Pieces(VecDeque::from([&b"abcd"[..], b"e"]));
        let (_lane, mut reader) = Lane::new(pieces, Arc::default());
        let mut buffer = [0; 4];

        assert_eq!(reader.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 1);
    }
}
