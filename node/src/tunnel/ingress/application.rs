//! One application's connection: handshake, OPEN, answer, and then bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::super::destination::Destination;
use super::super::flow::Flow;
use super::super::frame::{Frame, MAX_EARLY, OPEN_COST, Refusal, Target};
use super::super::link::{Link, Member};
use super::super::{http_connect, socket, socks, udp};
use super::Shared;

/// For the whole handshake, however slowly its bytes come. Local programs need no milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// How long a new flow waits for a session, or for credit, before it fails. Longer than a reconnect
/// takes, shorter than applications wait.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// How long the seller may take to answer an OPEN. Longer than its own attempts to connect.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a failed application may take to read why, and how much it may say meanwhile.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
const FAREWELL_BYTES: usize = 64 * 1024;

/// The handshake is over: what was asked for, in which language to answer, and what came with it.
struct Asked {
    request: Request,
    language: Language,
    /// What the application sent before it got an answer.
    first: Bytes,
}

enum Request {
    Connect(Destination),
    Associate { port: u16 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Socks,
    Http,
}

/// Why a flow was not opened.
enum Failure {
    /// No session was attached in time.
    NoSession,
    /// The buyer's own limit leaves nothing to spend.
    OutOfCredit,
    /// This session carries as many flows as it may.
    TooMany,
    /// The session ended meanwhile.
    SessionEnded,
    /// The seller did not answer.
    NoAnswer {
        paused: bool,
    },
    Refused(Refusal),
}

/// The connection is of no further use: its handshake failed, and was answered if it can be.
struct Dismissed;

impl From<io::Error> for Dismissed {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    socket::prepare(&socket);
    let asked = match timeout(HANDSHAKE_TIMEOUT, handshake(&mut socket)).await {
        Ok(Ok(asked)) => asked,
        // Too slow, or malformed and answered.
        Ok(Err(Dismissed)) | Err(_) => return,
    };
    // What becomes of the connection after this the application sees for itself.
    let _ = match asked.request {
        Request::Connect(destination) => {
            connect(socket, &shared, destination, asked.language, asked.first).await
        }
        Request::Associate { port } => associate(socket, &shared, port).await,
    };
}

async fn handshake(socket: &mut TcpStream) -> Result<Asked, Dismissed> {
    let mut buffer = BytesMut::with_capacity(512);
    if socket.read_buf(&mut buffer).await? == 0 {
        return Err(Dismissed);
    }
    match buffer[0] {
        socks::VERSION => socks_handshake(socket, buffer).await,
        byte if http_connect::begins(byte) => http_handshake(socket, buffer).await,
        _ => Err(Dismissed),
    }
}

async fn socks_handshake(socket: &mut TcpStream, mut buffer: BytesMut) -> Result<Asked, Dismissed> {
    let (open, len) = loop {
        match socks::greeting(&buffer) {
            Ok(Some(greeting)) => break greeting,
            Ok(None) => more(socket, &mut buffer, socks::MAX_GREETING).await?,
            Err(socks::Malformed(_)) => return Err(Dismissed),
        }
    };
    buffer.advance(len);
    if !open {
        return dismiss(socket, &socks::NO_METHOD).await;
    }
    socket.write_all(&socks::NO_AUTHENTICATION).await?;
    let (request, len) = loop {
        match socks::request(&buffer) {
            Ok(Some(request)) => break request,
            Ok(None) => more(socket, &mut buffer, socks::MAX_REQUEST).await?,
            Err(socks::Malformed(Some(reply))) => {
                return dismiss(socket, &socks::reply(reply, None)).await;
            }
            Err(socks::Malformed(None)) => return Err(Dismissed),
        }
    };
    buffer.advance(len);
    let request = match request {
        socks::Request::Connect(destination) => Request::Connect(destination),
        socks::Request::Associate { port } => Request::Associate { port },
    };
    Ok(Asked {
        request,
        language: Language::Socks,
        first: buffer.freeze(),
    })
}

async fn http_handshake(socket: &mut TcpStream, mut buffer: BytesMut) -> Result<Asked, Dismissed> {
    let (destination, len) = loop {
        match http_connect::head(&buffer) {
            Ok(Some(head)) => break head,
            Ok(None) => more(socket, &mut buffer, http_connect::MAX_HEAD).await?,
            Err(malformed) => {
                return dismiss(socket, &http_connect::malformed_answer(malformed)).await;
            }
        }
    };
    buffer.advance(len);
    let request = Request::Connect(destination);
    Ok(Asked {
        request,
        language: Language::Http,
        first: buffer.freeze(),
    })
}

/// Reads more of a message that may have up to `max` bytes.
async fn more(socket: &mut TcpStream, buffer: &mut BytesMut, max: usize) -> Result<(), Dismissed> {
    // A parser that wants more than its message can have is a mistake; never read on for it.
    if buffer.len() >= max || socket.read_buf(buffer).await? == 0 {
        return Err(Dismissed);
    }
    Ok(())
}

async fn dismiss<T>(socket: &mut TcpStream, answer: &[u8]) -> Result<T, Dismissed> {
    farewell(socket, answer).await;
    Err(Dismissed)
}

/// Sends a last answer and sees to it that it arrives: closing a socket with unread bytes in it
/// would reset the connection and take the answer with it.
async fn farewell(socket: &mut TcpStream, answer: &[u8]) {
    let saying = async {
        socket.write_all(answer).await?;
        socket.shutdown().await?;
        let mut rest = FAREWELL_BYTES;
        let mut ignored = [0; 1024];
        while rest > 0 {
            match socket.read(&mut ignored).await? {
                0 => break,
                len => rest = rest.saturating_sub(len),
            }
        }
        io::Result::Ok(())
    };
    // The application may have gone; then nobody misses it.
    let _ = timeout(FAREWELL_TIMEOUT, saying).await;
}

async fn connect(
    mut socket: TcpStream,
    shared: &Shared,
    destination: Destination,
    language: Language,
    first: Bytes,
) -> io::Result<()> {
    let (flow, rest) = match open(shared, destination, first).await {
        Ok(opened) => opened,
        Err(failure) => {
            farewell(&mut socket, &failure.answer(shared, language)).await;
            return Ok(());
        }
    };
    let established = match language {
        Language::Socks => socks::reply(socks::Reply::Succeeded, None),
        Language::Http => http_connect::ESTABLISHED.to_vec(),
    };
    if let Err(error) = socket.write_all(&established).await {
        flow.abort().await;
        return Err(error);
    }
    flow.run(socket, rest).await;
    Ok(())
}

/// Opens a flow: one OPEN, one answer. Returns what of `first` the OPEN did not carry.
async fn open(
    shared: &Shared,
    destination: Destination,
    mut first: Bytes,
) -> Result<(Arc<Flow>, Bytes), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let link = timeout_at(deadline, shared.attached())
        .await
        .map_err(|_| Failure::NoSession)?;
    if !link.has_room() {
        return Err(Failure::TooMany);
    }
    let direction = link.outbound_direction();
    tokio::select! {
        biased;
        () = link.ending().over() => return Err(Failure::SessionEnded),
        paid = timeout_at(deadline, link.meter().take_whole(direction, OPEN_COST)) => {
            paid.map_err(|_| Failure::OutOfCredit)?;
        }
    }
    // Paid for; nothing may come in between now.
    let wanted = first.len().min(MAX_EARLY) as u64;
    let credit = link.meter().try_reserve(direction, wanted);
    let early = first.split_to(credit.as_ref().map_or(0, |credit| credit.len() as usize));
    let frame = Frame::Open {
        target: Target::Tcp(destination),
        early: &early,
    };
    let flow = link
        .open(link.quietest_lane(), &frame, |seat| {
            let flow = Arc::new(Flow::new(seat, Arc::clone(&link)));
            flow.sent_early(early.len());
            (Arc::clone(&flow), Member::Tcp(flow))
        })
        .map_err(|_| Failure::SessionEnded)?;
    if let Some(credit) = credit {
        credit.commit(early.len() as u64);
    }

    let answer = match timeout(ANSWER_TIMEOUT, flow.answered()).await {
        Ok(Ok(())) => return Ok((flow, first)),
        Ok(Err(_)) if link.ending().has_ended() => Failure::SessionEnded,
        Ok(Err(refusal)) => Failure::Refused(refusal),
        Err(_) => Failure::NoAnswer {
            paused: link.is_paused(),
        },
    };
    flow.abort().await;
    Err(answer)
}

async fn associate(control: TcpStream, shared: &Shared, port: u16) -> io::Result<()> {
    let mut control = control;
    let host = control.local_addr()?.ip();
    let relay_socket = UdpSocket::bind(SocketAddr::new(host, 0)).await?;
    let bound = relay_socket.local_addr()?;
    control
        .write_all(&socks::reply(socks::Reply::Succeeded, Some(bound)))
        .await?;
    udp::relay(control, relay_socket, port, || shared.link()).await
}

impl Failure {
    fn answer(&self, shared: &Shared, language: Language) -> Vec<u8> {
        let paused = || {
            let why = shared
                .notice()
                .map_or("no credit left".to_owned(), |notice| notice.0);
            format!("paused: {why}")
        };
        let (refusal, text) = match self {
            Self::NoSession | Self::SessionEnded => {
                let why = match self {
                    Self::NoSession => "no lease is connected",
                    _ => "the session ended",
                };
                let text = shared.notice().map_or(why.to_owned(), |notice| notice.0);
                return match language {
                    Language::Socks => socks::reply(socks::Reply::GeneralFailure, None),
                    Language::Http => http_connect::unavailable_answer(&text),
                };
            }
            Self::OutOfCredit | Self::NoAnswer { paused: true } => (Refusal::Paused, paused()),
            Self::Refused(Refusal::Paused) => (Refusal::Paused, paused()),
            Self::TooMany => (Refusal::TooMany, "too many connections at once".to_owned()),
            Self::NoAnswer { paused: false } => (
                Refusal::TimedOut,
                "the seller did not answer in time".to_owned(),
            ),
            Self::Refused(refusal) => (*refusal, refusal.to_string()),
        };
        match language {
            Language::Socks => socks::reply(refusal.into(), None),
            Language::Http => http_connect::refusal_answer(refusal, &text),
        }
    }
}

impl Link {
    /// Buyer: whether another flow may be opened.
    pub(in super::super) fn has_room(&self) -> bool {
        self.flows() < MAX_FLOWS
    }
}

/// Flows that a buyer opens at once in a session; what sellers allow by default.
const MAX_FLOWS: usize = 512;
