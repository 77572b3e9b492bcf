//! One TCP flow: a socket on this side, a flow id on a lane, and a window each way.
//!
//! Towards the lane, bytes go from the socket straight into the lane's frame buffer when the flow
//! has its turn, so a flow that waits (for its turn, its window, the rate or credit) holds no bytes:
//! they stay in the socket and TCP slows the other end down. Towards the socket, the lane's reader
//! writes at once; only what the socket does not take is kept, at most the window.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::Shutdown;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::ending::Violation;
use super::frame::{FIRST_WINDOW, Frame, MAX_WINDOW, Refusal};
use super::lane::{LONG_QUANTUM, Lane, LaneClosed, QUANTUM};
use super::link::{Link, Role, Seat};
use super::meter::Credit;
use super::shaper::Rate;

/// How long a side that has been told that nobody reads it may go on talking.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// How much of that is read: nobody pays for it. An honest server stops within what was on its way;
/// one that sends without end would fill the seller's line for as long as it may talk.
const LINGER_BYTES: usize = 1024 * 1024;

/// A flow, shared by its own task and the reader of its lane.
pub(super) struct Flow {
    seat: Seat,
    link: Arc<Link>,
    /// What the peer allows to be sent, and is not yet sent.
    window: AtomicU32,
    /// The flow is to end: the peer reset it, the socket failed, or the session is over.
    given_up: AtomicBool,
    /// The peer has sent everything and reads nothing more: only its data is still to be delivered.
    peer_is_deaf: AtomicBool,
    /// Wakes the half that sends: window, `given_up`.
    wake_send: Notify,
    /// Wakes the half that receives: backlog, end, `given_up`, answer to an OPEN.
    wake_receive: Notify,
    inbound: Mutex<Inbound>,
}

/// Everything about the direction from the lane to the socket.
struct Inbound {
    socket: Option<Arc<TcpStream>>,
    /// What the socket did not take yet. At most `window` bytes.
    backlog: BytesMut,
    /// How many bytes at the end of the backlog are not counted yet and so must not move.
    uncounted: usize,
    /// What the peer may still send.
    granted: u32,
    /// What is to be granted again at the next occasion.
    consumed: u32,
    /// What the peer may have in flight; `granted + backlog + consumed` never exceeds it.
    window: u32,
    answer: Option<Result<(), Refusal>>,
    /// This side has sent FIN, RST or REFUSED.
    sent_end: bool,
    /// The peer's half: how it ended.
    received_end: Option<End>,
    /// Whatever arrives is counted and dropped.
    discarding: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// The flow is over; everything that must be said to the peer is said by the caller of `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GaveUp;

impl From<LaneClosed> for GaveUp {
    fn from(_: LaneClosed) -> Self {
        Self
    }
}

/// What became of a flow's entry in the table of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Frames may still come.
    Kept,
    /// Both halves have ended.
    Done,
}

impl Flow {
    pub(super) fn new(seat: Seat, link: Arc<Link>) -> Self {
        Self {
            seat,
            link,
            window: AtomicU32::new(FIRST_WINDOW),
            given_up: AtomicBool::new(false),
            peer_is_deaf: AtomicBool::new(false),
            wake_send: Notify::new(),
            wake_receive: Notify::new(),
            inbound: Mutex::new(Inbound {
                socket: None,
                backlog: BytesMut::new(),
                uncounted: 0,
                granted: FIRST_WINDOW,
                consumed: 0,
                window: FIRST_WINDOW,
                answer: None,
                sent_end: false,
                received_end: None,
                discarding: false,
            }),
        }
    }

    fn lane(&self) -> &Lane {
        self.link.lane(self.seat.lane)
    }

    fn inbound(&self) -> MutexGuard<'_, Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `delta` bytes of early data out of the window.
    pub(super) fn sent_early(&self, delta: usize) {
        self.use_window(delta);
    }

    fn use_window(&self, delta: usize) {
        let delta = u32::try_from(delta).expect("a turn is smaller than a window");
        self.window.fetch_sub(delta, SeqCst);
    }

    // What the reader of the lane tells the flow. None of these waits.

    /// Flow data arrived.
    pub(super) fn on_data(&self, mut data: &[u8]) -> Result<(), Violation> {
        let direction = self.link.inbound_direction();
        let mut inbound = self.inbound();
        if inbound.received_end.is_some() {
            return Err(Violation::Unsolicited(self.seat.id));
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        inbound.granted = inbound
            .granted
            .checked_sub(len)
            .ok_or(Violation::OverWindow(self.seat.id))?;
        if inbound.discarding {
            self.link.meter().owe(direction, data.len() as u64);
            return Ok(());
        }
        // The buyer counts what arrives, the seller what it passes on.
        let mut counted = match self.link.role() {
            Role::Buyer => self.link.meter().charge(direction, data.len() as u64) as usize,
            Role::Seller => 0,
        };
        if inbound.backlog.is_empty()
            && let Some(socket) = &inbound.socket
        {
            let written = match self.link.role() {
                Role::Buyer => try_write(socket, &data[..counted]),
                Role::Seller => self.try_write_on_credit(socket, data),
            };
            match written {
                Ok(written) => {
                    data = &data[written..];
                    counted = counted.saturating_sub(written);
                    self.consumed(&mut inbound, written);
                }
                Err(_) => {
                    inbound.uncounted += data.len() - counted;
                    self.discard(&mut inbound);
                    drop(inbound);
                    self.give_up();
                    return Ok(());
                }
            }
        }
        if !data.is_empty() {
            if !self.link.hold(data.len()) {
                inbound.uncounted += data.len() - counted;
                self.discard(&mut inbound);
                drop(inbound);
                self.give_up();
                return Ok(());
            }
            inbound.backlog.extend_from_slice(data);
            inbound.uncounted += data.len() - counted;
            drop(inbound);
            self.wake_receive.notify_one();
        }
        Ok(())
    }

    fn try_write_on_credit(&self, socket: &TcpStream, data: &[u8]) -> io::Result<usize> {
        let Some(rate) = self.link.try_rate(data.len()) else {
            return Ok(0);
        };
        let direction = self.link.inbound_direction();
        let Some(credit) = self.link.meter().try_reserve(direction, data.len() as u64) else {
            rate.commit(0);
            return Ok(0);
        };
        let result = try_write(socket, &data[..credit.len() as usize]);
        let written = *result.as_ref().unwrap_or(&0);
        credit.commit(written as u64);
        rate.commit(written);
        result
    }

    /// The peer grants more.
    pub(super) fn on_window(&self, delta: u32) -> Result<(), Violation> {
        let grown = self.window.fetch_add(delta.min(MAX_WINDOW + 1), SeqCst);
        if delta > MAX_WINDOW || grown > MAX_WINDOW - delta {
            return Err(Violation::WindowTooLarge(self.seat.id));
        }
        self.wake_send.notify_one();
        Ok(())
    }

    /// The seller has connected.
    pub(super) fn on_opened(&self) -> Result<(), Violation> {
        self.on_answer(Ok(()))
    }

    fn on_answer(&self, answer: Result<(), Refusal>) -> Result<(), Violation> {
        let mut inbound = self.inbound();
        if inbound.answer.is_some() || inbound.received_end.is_some() {
            return Err(Violation::WrongState(self.seat.id));
        }
        inbound.answer = Some(answer);
        drop(inbound);
        self.wake_receive.notify_one();
        Ok(())
    }

    /// The seller has not opened the flow.
    pub(super) fn on_refused(&self, refusal: Refusal) -> Result<Entry, Violation> {
        self.on_answer(Err(refusal))?;
        Ok(self.on_reset())
    }

    /// The peer has sent everything.
    pub(super) fn on_fin(&self) -> Result<Entry, Violation> {
        let mut inbound = self.inbound();
        if inbound.received_end.is_some() {
            return Err(Violation::WrongState(self.seat.id));
        }
        inbound.received_end = Some(End::Fin);
        let entry = inbound.entry();
        drop(inbound);
        self.wake_receive.notify_one();
        Ok(entry)
    }

    /// The peer has given up, or has died.
    pub(super) fn on_reset(&self) -> Entry {
        let mut inbound = self.inbound();
        if inbound.received_end == Some(End::Fin) {
            let entry = inbound.entry();
            drop(inbound);
            self.peer_is_deaf.store(true, SeqCst);
            self.wake_send.notify_one();
            return entry;
        }
        inbound.received_end = Some(End::Reset);
        self.discard(&mut inbound);
        let entry = inbound.entry();
        drop(inbound);
        self.give_up();
        entry
    }

    /// Ends the flow from outside: the session is over.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, SeqCst);
        self.wake_send.notify_one();
        self.wake_receive.notify_one();
    }

    fn has_given_up(&self) -> bool {
        self.given_up.load(SeqCst)
    }

    fn may_not_send(&self) -> bool {
        self.has_given_up() || self.peer_is_deaf.load(SeqCst)
    }

    /// Drops what is not delivered and counts what the peer has counted.
    fn discard(&self, inbound: &mut Inbound) {
        inbound.discarding = true;
        let backlog = std::mem::take(&mut inbound.backlog);
        self.link.let_go(backlog.len());
        let owed = std::mem::take(&mut inbound.uncounted);
        self.link
            .meter()
            .owe(self.link.inbound_direction(), owed as u64);
    }

    /// Grants the peer again what the socket has taken, in steps of half a window.
    fn consumed(&self, inbound: &mut Inbound, delta: usize) {
        inbound.consumed += u32::try_from(delta).expect("a backlog is smaller than 4 GiB");
        if inbound.consumed < inbound.window / 2 || inbound.received_end.is_some() {
            return;
        }
        let mut grant = std::mem::take(&mut inbound.consumed);
        // A reader that keeps up deserves a window that does not hold the sender back.
        if inbound.backlog.is_empty() && inbound.window < MAX_WINDOW {
            let growth = inbound.window.min(MAX_WINDOW - inbound.window);
            if self.link.grow_window(growth) {
                inbound.window += growth;
                grant += growth;
            }
        }
        inbound.granted += grant;
        // If the lane is gone the flow ends with it.
        let _ = self.lane().push(self.seat.id, &Frame::Window(grant));
    }

    // What the flow's own task does.

    /// Waits for the answer to the OPEN.
    pub(super) async fn answered(&self) -> Result<(), Refusal> {
        loop {
            if let Some(answer) = self.inbound().answer {
                return answer;
            }
            if self.has_given_up() {
                return Err(Refusal::Failed);
            }
            self.wake_receive.notified().await;
        }
    }

    /// Waits for something on the flow's behalf; `None` if the flow was given up first.
    pub(super) async fn unless_given_up<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.or_give_up(&self.wake_receive, wait).await.ok()
    }

    /// Moves bytes both ways until both halves have ended.
    ///
    /// `first` is sent before anything that the socket holds. On return the peer has been told how
    /// this side ended, or the session is over. Must not be dropped before.
    pub(super) async fn run(self: &Arc<Self>, socket: TcpStream, first: Bytes) {
        let socket = Arc::new(socket);
        self.inbound().socket = Some(Arc::clone(&socket));
        // What arrived before there was a socket waits in the backlog.
        self.wake_receive.notify_one();

        let send = async {
            let sent = self.send(&socket, first).await;
            if sent.is_err() && !self.has_given_up() && self.peer_is_deaf.load(SeqCst) {
                self.say_reset().await?;
                self.read_for_nobody(&socket).await;
                return Ok(());
            }
            if sent.is_err() {
                self.give_up();
            }
            sent
        };
        let receive = async {
            let received = self.receive(&socket).await;
            if received.is_err() {
                self.give_up();
            }
            received
        };
        let (sent, received) = tokio::join!(send, receive);

        self.inbound().socket = None;
        if sent.is_err() || received.is_err() {
            // So that the application sees a broken connection and not a short, complete one.
            let _ = socket.set_zero_linger();
            self.abort().await;
        }
    }

    /// Tells the peer that this side gives up, unless it has been told how the flow ended.
    pub(super) async fn abort(self: &Arc<Self>) {
        let peer_knows = {
            let mut inbound = self.inbound();
            self.discard(&mut inbound);
            // After a FIN the peer may go on sending what nobody reads, unless it has ended too.
            inbound.sent_end && inbound.received_end.is_some()
        };
        if !peer_knows {
            // If it fails the session is over, and the flow with it.
            let _ = self.say_reset().await;
        }
    }

    async fn say_reset(self: &Arc<Self>) -> Result<(), GaveUp> {
        let said = self
            .lane()
            .turn()
            .await
            .send(self.seat.id, &Frame::Rst)
            .await;
        self.ended_sending();
        Ok(said?)
    }

    /// Answers an OPEN with a refusal. Nothing has been sent on the flow before.
    pub(super) fn refuse(self: &Arc<Self>, refusal: Refusal) {
        {
            let mut inbound = self.inbound();
            self.discard(&mut inbound);
        }
        let _ = self.lane().push(self.seat.id, &Frame::Refused(refusal));
        self.ended_sending();
    }

    /// Answers an OPEN. Data of this flow can only come after it.
    pub(super) fn accept(&self) -> Result<(), LaneClosed> {
        self.lane().push(self.seat.id, &Frame::Opened)
    }

    fn ended_sending(self: &Arc<Self>) {
        let entry = {
            let mut inbound = self.inbound();
            inbound.sent_end = true;
            inbound.entry()
        };
        if entry == Entry::Done {
            self.link.forget(self.seat.lane, self.seat.id);
        }
    }

    /// From the socket to the lane.
    async fn send(self: &Arc<Self>, socket: &TcpStream, first: Bytes) -> Result<(), GaveUp> {
        let wake = &self.wake_send;
        self.send_first(first).await?;
        // How much one turn was good for; nothing more is reserved for the next one.
        let mut quantum = LONG_QUANTUM;
        loop {
            self.or_give_up(wake, socket.readable())
                .await?
                .map_err(|_| GaveUp)?;
            let (rate, credit) = self.may_send(quantum).await?;
            let mut turn = self.or_give_up(wake, self.lane().turn()).await?;
            quantum = turn.quantum();

            let len = (credit.len() as usize).min(quantum);
            match socket.try_read(&mut turn.payload()[..len]) {
                Ok(0) => {
                    drop((credit, rate));
                    turn.send(self.seat.id, &Frame::Fin).await?;
                    self.ended_sending();
                    return Ok(());
                }
                Ok(len) => {
                    credit.commit(len as u64);
                    rate.commit(len);
                    self.use_window(len);
                    turn.send_data(self.seat.id, len).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(GaveUp),
            }
            // A socket that is always full must not keep this worker from everyone else.
            tokio::task::consume_budget().await;
        }
    }

    /// Sends bytes that were read from the socket before the flow had one.
    async fn send_first(&self, mut first: Bytes) -> Result<(), GaveUp> {
        while !first.is_empty() {
            let (rate, credit) = self.may_send(first.len().min(QUANTUM)).await?;
            let mut turn = self.or_give_up(&self.wake_send, self.lane().turn()).await?;

            let len = credit.len() as usize;
            turn.payload()[..len].copy_from_slice(&first[..len]);
            first.advance(len);
            credit.commit(len as u64);
            rate.commit(len);
            self.use_window(len);
            turn.send_data(self.seat.id, len).await?;
        }
        Ok(())
    }

    /// Waits for the window, the rate and the credit for up to `max` bytes.
    async fn may_send(&self, max: usize) -> Result<(Rate<'_>, Credit<'_>), GaveUp> {
        let wake = &self.wake_send;
        let window = loop {
            if self.may_not_send() {
                return Err(GaveUp);
            }
            match self.window.load(SeqCst) {
                0 => wake.notified().await,
                window => break window as usize,
            }
        };
        let rate = self
            .or_give_up(wake, self.link.rate(window.min(max)))
            .await?;
        let credit = self
            .link
            .meter()
            .reserve(self.link.outbound_direction(), rate.len() as u64);
        let credit = self.or_give_up(wake, credit).await?;
        Ok((rate, credit))
    }

    /// Waits for something that can be given up at any moment without harm.
    async fn or_give_up<T>(
        &self,
        wake: &Notify,
        wait: impl Future<Output = T>,
    ) -> Result<T, GaveUp> {
        let mut wait = std::pin::pin!(wait);
        loop {
            if self.has_given_up()
                || (self.peer_is_deaf.load(SeqCst) && std::ptr::eq(wake, &self.wake_send))
            {
                return Err(GaveUp);
            }
            tokio::select! {
                biased;
                ready = &mut wait => return Ok(ready),
                () = wake.notified() => {}
            }
        }
    }

    /// Reads what the peer does not want, for a while: closing a socket with unread bytes in it would
    /// reset the connection and destroy what is still on its way to the other side.
    async fn read_for_nobody(&self, socket: &TcpStream) {
        let reading = async {
            let mut nowhere = vec![0; 16 * 1024];
            let mut left = LINGER_BYTES;
            while socket.readable().await.is_ok() {
                match socket.try_read(&mut nowhere) {
                    Ok(0) => return,
                    Ok(len) if len >= left => break,
                    Ok(len) => {
                        left -= len;
                        tokio::task::consume_budget().await;
                    }
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    Err(_) => tokio::task::consume_budget().await,
                }
            }
            // What it was sent may still be on its way, so the socket stays, but it is read no more:
            // TCP stops whoever goes on.
            std::future::pending().await
        };
        let given_up = async {
            while !self.has_given_up() {
                self.wake_send.notified().await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(LINGER, reading) => {}
            () = given_up => {}
        }
    }

    /// From the backlog to the socket.
    async fn receive(&self, socket: &TcpStream) -> Result<(), GaveUp> {
        loop {
            match self.next() {
                Next::GiveUp => return Err(GaveUp),
                Next::Wait => self.wake_receive.notified().await,
                Next::Finish => {
                    // Fails only if the socket is gone already, which the other half will see.
                    let _ = rustix::net::shutdown(socket, Shutdown::Write);
                    return Ok(());
                }
                Next::Count(len) => {
                    let wake = &self.wake_receive;
                    let rate = self.or_give_up(wake, self.link.rate(len)).await?;
                    let direction = self.link.inbound_direction();
                    let credit = self.link.meter().reserve(direction, rate.len() as u64);
                    let credit = self.or_give_up(wake, credit).await?;
                    let mut inbound = self.inbound();
                    // It can only have grown, unless all was dropped and so owed.
                    let len = inbound.uncounted.min(credit.len() as usize);
                    inbound.uncounted -= len;
                    credit.commit(len as u64);
                    rate.commit(len);
                }
                Next::Write => {
                    let writable = self
                        .or_give_up(&self.wake_receive, socket.writable())
                        .await?;
                    writable.map_err(|_| GaveUp)?;
                    self.write_backlog(socket)?;
                    tokio::task::consume_budget().await;
                }
            }
        }
    }

    fn next(&self) -> Next {
        if self.has_given_up() {
            return Next::GiveUp;
        }
        let inbound = self.inbound();
        if inbound.backlog.len() > inbound.uncounted {
            Next::Write
        } else if inbound.uncounted > 0 {
            Next::Count(inbound.uncounted.min(LONG_QUANTUM))
        } else if inbound.received_end == Some(End::Fin) {
            Next::Finish
        } else {
            Next::Wait
        }
    }

    fn write_backlog(&self, socket: &TcpStream) -> Result<(), GaveUp> {
        let mut inbound = self.inbound();
        let counted = inbound.backlog.len() - inbound.uncounted;
        let written = try_write(socket, &inbound.backlog[..counted]).map_err(|_| GaveUp)?;
        inbound.backlog.advance(written);
        self.link.let_go(written);
        if inbound.backlog.is_empty() {
            // A flow that caught up holds nothing.
            inbound.backlog = BytesMut::new();
        }
        self.consumed(&mut inbound, written);
        Ok(())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let (window, held) = {
            let inbound = self.inbound();
            (inbound.window, inbound.backlog.len())
        };
        self.link.shrink_window(window - FIRST_WINDOW);
        self.link.let_go(held);
    }
}

impl Inbound {
    fn entry(&self) -> Entry {
        if self.sent_end && self.received_end.is_some() {
            Entry::Done
        } else {
            Entry::Kept
        }
    }
}

/// What the receiving half does next.
enum Next {
    GiveUp,
    Wait,
    Finish,
    Count(usize),
    Write,
}

/// Writes what the socket takes now.
fn try_write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    match socket.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}
