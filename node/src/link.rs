//! The control stream of one session: what its two ends say beside the data.
//!
//! Vouchers and receipts have a stream of their own, so that none of them ever waits behind the
//! bytes it pays for: a seller that has stopped reading data because it is unpaid must still be
//! able to read the payment.
//!
//! One frame is a `u32` length (big endian, of what follows), one byte of kind, and the body.

use std::time::Duration;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Longest frame, kind byte included. The longest message is a channel's funding, said again after a
/// connection was lost.
const MAX_FRAME: usize = 41 * 1024;

/// Frames that may wait for the stream. A peer that does not read for this many is gone in all but
/// name, and the link is broken off rather than let the queue grow.
const OUTBOX: usize = 64;

/// Frames from the other end that are read at once, and in a second in the long run. A session says a
/// receipt and a voucher four times a second; whoever says more is slowed down by its own stream and
/// cannot keep the driver from the rest of the node.
const BURST: u32 = 128;
const PER_SECOND: u32 = 64;

/// One message on a control stream. The bodies are opaque here; who reads them checks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A message between the two session machines.
    Session(Vec<u8>),
    /// A message between the payer and payee machines.
    Channel(Vec<u8>),
}

/// What a link reports. `Broken` is the last thing it says.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The other end said something.
    Received(Frame),
    /// The stream ended, failed, or carried something that is not a frame.
    Broken,
}

/// The holder's end of a control stream. Dropping it closes the stream.
#[derive(Debug)]
pub(crate) struct Link {
    outbox: mpsc::Sender<Frame>,
    dropped: CancellationToken,
}

/// The other end has stopped reading, or the stream is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkClosed;

impl Link {
    /// Starts carrying frames over `stream`; what arrives is reported as `tag(event)` to `events`.
    ///
    /// Reports wait for room in `events`, so a peer that talks faster than the driver listens is
    /// slowed down by its own stream.
    pub(crate) fn start<S, E, F>(stream: S, events: mpsc::Sender<E>, tag: F) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        E: Send + 'static,
        F: Fn(LinkEvent) -> E + Send + 'static,
    {
        let (mut read, mut write) = stream.split();
        let (outbox, mut waiting) = mpsc::channel::<Frame>(OUTBOX);
        let dropped = CancellationToken::new();
        let reading = dropped.clone().run_until_cancelled_owned(async move {
            let mut pace = Pace::new(Instant::now());
            loop {
                sleep(pace.wait(Instant::now())).await;
                let event = match read_frame(&mut read).await {
                    Some(frame) => LinkEvent::Received(frame),
                    None => LinkEvent::Broken,
                };
                let last = matches!(event, LinkEvent::Broken);
                if events.send(tag(event)).await.is_err() || last {
                    return;
                }
            }
        });
        let writing = async move {
            while let Some(frame) = waiting.recv().await {
                if write.write_all(&encode(&frame)).await.is_err() || write.flush().await.is_err() {
                    return;
                }
            }
            // Best effort: the other end learns of the close from the stream's end either way.
            let _ = write.close().await;
        };
        // One task for both: a stream of yamux that waits for room remembers one waker for its two
        // directions, and would leave a second task asleep when the connection goes.
        tokio::spawn(async move { tokio::join!(reading, writing) });
        Self { outbox, dropped }
    }

    /// Queues one frame. Never waits.
    ///
    /// # Errors
    ///
    /// [`LinkClosed`] if the stream is gone or the other end has let [`OUTBOX`] frames pile up. The
    /// frame is not sent; what it said must be said again on the next link.
    pub(crate) fn send(&self, frame: Frame) -> Result<(), LinkClosed> {
        self.outbox.try_send(frame).map_err(|_| LinkClosed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Writing ends by itself once what was queued is written: a last receipt must go out.
        self.dropped.cancel();
    }
}

/// How fast frames are read.
#[derive(Debug)]
struct Pace {
    /// When a whole burst may be read again.
    full_at: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// How long to wait before the next frame, which is counted.
    fn wait(&mut self, now: Instant) -> Duration {
        let interval = Duration::from_secs(1) / PER_SECOND;
        self.full_at = self.full_at.max(now) + interval;
        (self.full_at - now).saturating_sub(interval * BURST)
    }
}

fn encode(frame: &Frame) -> Vec<u8> {
    let (kind, body) = match frame {
        Frame::Session(body) => (0_u8, body),
        Frame::Channel(body) => (1_u8, body),
    };
    let length = u32::try_from(body.len() + 1).expect("machines make messages far below MAX_FRAME");
    let mut bytes = Vec::with_capacity(5 + body.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

async fn read_frame<R: AsyncRead + Unpin>(read: &mut R) -> Option<Frame> {
    let mut length = [0; 4];
    read.read_exact(&mut length).await.ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    if length == 0 || length > MAX_FRAME {
        return None;
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.ok()?;
    let kind = body.remove(0);
    match kind {
        0 => Some(Frame::Session(body)),
        1 => Some(Frame::Channel(body)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
        tokio::time::timeout(Duration::from_secs(5), events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn frames_arrive_as_sent_and_the_end_of_the_stream_is_reported() {
        let (a, b) = tokio::io::duplex(64);
        let (at_a, _events_a) = mpsc::channel(8);
        let (at_b, mut events) = mpsc::channel(8);
        let a = Link::start(a.compat(), at_a, |event| event);
        let _b = Link::start(b.compat(), at_b, |event| event);

        a.send(Frame::Session(vec![7; 1_000])).unwrap();
        a.send(Frame::Channel(Vec::new())).unwrap();
        drop(a);

        let LinkEvent::Received(first) = next(&mut events).await else {
            panic!("no frame")
        };
        assert_eq!(first, Frame::Session(vec![7; 1_000]));
        let LinkEvent::Received(second) = next(&mut events).await else {
            panic!("no frame")
        };
        assert_eq!(second, Frame::Channel(Vec::new()));
        assert!(matches!(next(&mut events).await, LinkEvent::Broken));
    }

    #[tokio::test]
    async fn garbage_breaks_the_link_before_anything_is_allocated_for_it() {
        for garbage in [[0xff; 5].as_slice(), &[0, 0, 0, 0, 0], &[0, 0, 0, 1, 9]] {
            let (mut a, b) = tokio::io::duplex(64);
            let (at_b, mut events) = mpsc::channel(8);
            let _b = Link::start(b.compat(), at_b, |event| event);

            a.write_all(garbage).await.unwrap();

            assert!(matches!(next(&mut events).await, LinkEvent::Broken));
        }
    }

    #[tokio::test]
    async fn a_peer_that_never_stops_talking_is_heard_at_its_rate() {
        let (mut a, b) = tokio::io::duplex(64);
        let (at_b, mut events) = mpsc::channel(8);
        let _b = Link::start(b.compat(), at_b, |event| event);
        let talking = tokio::spawn(async move {
            // A kind and no body: the cheapest frame there is.
            while a.write_all(&[0, 0, 0, 1, 1]).await.is_ok() {}
        });
        let start = Instant::now();

        for _ in 0..BURST + PER_SECOND {
            assert!(matches!(next(&mut events).await, LinkEvent::Received(_)));
        }

        // A slow machine takes longer; none takes less.
        assert!(start.elapsed() >= Duration::from_millis(900));
        talking.abort();
    }

    #[test]
    fn frames_pass_at_once_up_to_the_burst_and_then_at_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(start);

        let at_once = (0..BURST).all(|_| pace.wait(start).is_zero());
        assert!(at_once);
        let waits: Vec<_> = (0..2 * PER_SECOND).map(|_| pace.wait(start)).collect();

        assert_eq!(waits.last(), Some(&Duration::from_secs(2)));
        let later = start + Duration::from_secs(60);
        assert!(pace.wait(later).is_zero());
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_is_noticed_instead_of_queued_for() {
        let (a, _b) = tokio::io::duplex(64);
        let (at_a, _events) = mpsc::channel(8);
        let a = Link::start(a.compat(), at_a, |event| event);

        let sent = (0..10_000)
            .take_while(|_| a.send(Frame::Session(vec![0; 64])).is_ok())
            .count();

        assert!(sent <= OUTBOX + 1, "{sent} frames were queued");
    }
}
