//! The lanes of one session, the flows on them, and the loop that reads a lane.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio_util::task::TaskTracker;

use super::ending::{Ended, Ending, Violation};
use super::flow::{Entry, Flow};
use super::frame::{FlowId, Frame, HEADER, Header, MAX_PAYLOAD, Notice, Target};
use super::lane::{Lane, LaneClosed, LaneReader, LaneStream};
use super::meter::{Direction, Meter};
use super::shaper::{LeaseShaper, Rate};
use super::udp::Association;

/// Read buffer of a lane. Must hold the largest frame that is handled whole, a datagram of 64 KiB;
/// a larger one saves few system calls and costs memory for each lane of each session.
const READ_BUFFER: usize = HEADER + MAX_PAYLOAD;

/// By how much all flows of a session together may grow beyond their first windows: 4 flows as fast
/// as their lanes, or 20 that get 1 MiB. It bounds what a peer can make this side hold.
const SPARE_WINDOW: u32 = 16 * 1024 * 1024;

/// Most bytes of all flows of a session together that wait to be delivered: because a server or an
/// application reads slowly, or because they are not paid for. What flows may have on the way by
/// their first windows alone is four times this, and would be a stranger's to fill; an honest page
/// or two of stuck uploads is a tenth of it. The flow that goes beyond is reset.
const MAX_HELD: usize = 32 * 1024 * 1024;

/// How long the lanes may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Which end of the tunnel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The ingress: opens flows, counts what it sends and what arrives.
    Buyer,
    /// The egress: dials, counts what it passes on in both directions.
    Seller,
}

/// One session's tunnel. Everything that belongs to it holds an [`Arc`] of this.
pub(super) struct Link {
    role: Role,
    meter: Arc<Meter>,
    shaper: LeaseShaper,
    ending: Arc<Ending>,
    lanes: Vec<Track>,
    /// Entries in all tables.
    flows: AtomicUsize,
    spare_window: AtomicU32,
    /// Bytes in the backlogs of all flows, at most [`MAX_HELD`].
    held: AtomicUsize,
    /// What the seller last said about credit.
    paused: AtomicBool,
    tasks: TaskTracker,
}

struct Track {
    lane: Arc<Lane>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    members: HashMap<FlowId, Member>,
    /// The highest id so far; a lower one that is not in the table is over.
    last: u32,
    /// The session is over; nobody may join.
    closed: bool,
}

/// What a flow id stands for.
#[derive(Clone)]
pub(super) enum Member {
    Tcp(Arc<Flow>),
    Udp(Arc<Association>),
}

/// Takes the OPEN frames of a session.
pub(super) trait Accept: Send + Sync + 'static {
    /// The peer opens a flow; its id is new. Must not wait.
    fn open(
        &self,
        link: &Arc<Link>,
        lane: usize,
        id: FlowId,
        target: Target,
        early: &[u8],
    ) -> Result<(), Violation>;
}

/// The lane number and the id of a flow that joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) lane: usize,
    pub(super) id: FlowId,
}

impl Link {
    pub(super) fn new(
        role: Role,
        streams: Vec<impl LaneStream>,
        meter: Arc<Meter>,
        shaper: LeaseShaper,
    ) -> (Arc<Self>, Vec<LaneReader>) {
        let ending = Arc::<Ending>::default();
        let mut readers = Vec::with_capacity(streams.len());
        let mut lanes = Vec::with_capacity(streams.len());
        for stream in streams {
            let (lane, reader) = Lane::new(stream, Arc::clone(&ending));
            readers.push(reader);
            lanes.push(Track {
                lane,
                table: Mutex::default(),
            });
        }
        let link = Self {
            role,
            meter,
            shaper,
            ending,
            lanes,
            flows: AtomicUsize::new(0),
            spare_window: AtomicU32::new(SPARE_WINDOW),
            held: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        };
        (Arc::new(link), readers)
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub(super) fn ending(&self) -> &Ending {
        &self.ending
    }

    /// The direction of bytes that arrive on a lane.
    pub(super) fn inbound_direction(&self) -> Direction {
        match self.role {
            Role::Buyer => Direction::Down,
            Role::Seller => Direction::Up,
        }
    }

    /// The direction of bytes that are written to a lane.
    pub(super) fn outbound_direction(&self) -> Direction {
        match self.role {
            Role::Buyer => Direction::Up,
            Role::Seller => Direction::Down,
        }
    }

    /// See [`LeaseShaper::take`].
    pub(super) async fn rate(&self, max: usize) -> Rate<'_> {
        self.shaper.take(max).await
    }

    /// See [`LeaseShaper::try_take`].
    pub(super) fn try_rate(&self, len: usize) -> Option<Rate<'_>> {
        self.shaper.try_take(len)
    }

    pub(super) fn lane(&self, lane: usize) -> &Lane {
        &self.lanes[lane].lane
    }

    /// How many flows are open or not yet ended by both sides.
    pub(super) fn flows(&self) -> usize {
        self.flows.load(SeqCst)
    }

    /// Whether the seller said that it waits for credit.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(SeqCst)
    }

    /// Runs a task that belongs to the session; [`run`](Self::run) waits for it at the end.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Lets a flow's window grow by `delta`, if the session has that to spare.
    pub(super) fn grow_window(&self, delta: u32) -> bool {
        self.spare_window
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(delta))
            .is_ok()
    }

    /// Gives back what [`grow_window`](Self::grow_window) took.
    pub(super) fn shrink_window(&self, delta: u32) {
        self.spare_window.fetch_add(delta, SeqCst);
    }

    /// Takes room for bytes that wait to be delivered, if the session has that.
    pub(super) fn hold(&self, len: usize) -> bool {
        self.held
            .fetch_update(SeqCst, SeqCst, |held| {
                held.checked_add(len).filter(|held| *held <= MAX_HELD)
            })
            .is_ok()
    }

    /// Gives back what [`hold`](Self::hold) took.
    pub(super) fn let_go(&self, len: usize) {
        self.held.fetch_sub(len, SeqCst);
    }

    fn table(&self, lane: usize) -> MutexGuard<'_, Table> {
        self.lanes[lane]
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane with the fewest flows.
    pub(super) fn quietest_lane(&self) -> usize {
        let counts = (0..self.lanes.len()).map(|lane| (self.table(lane).members.len(), lane));
        counts.min().map_or(0, |(_, lane)| lane)
    }

    /// Buyer: gives a new flow an id and says OPEN. Both happen as one, because ids must grow on the
    /// wire.
    ///
    /// # Errors
    ///
    /// Returns [`LaneClosed`] if the session is over; nothing was said.
    pub(super) fn open<T>(
        &self,
        lane: usize,
        frame: &Frame<'_>,
        make: impl FnOnce(Seat) -> (T, Member),
    ) -> Result<T, LaneClosed> {
        let mut table = self.table(lane);
        let Some(last) = table.last.checked_add(1).filter(|_| !table.closed) else {
            return Err(LaneClosed);
        };
        table.last = last;
        let id = FlowId(last);
        let (made, member) = make(Seat { lane, id });
        table.members.insert(id, member);
        self.flows.fetch_add(1, SeqCst);
        self.lane(lane).push(id, frame)?;
        Ok(made)
    }

    /// Seller: takes in a flow that the buyer has opened. Returns false if the session is over.
    pub(super) fn admit(&self, lane: usize, id: FlowId, member: Member) -> bool {
        let mut table = self.table(lane);
        if table.closed {
            return false;
        }
        table.members.insert(id, member);
        self.flows.fetch_add(1, SeqCst);
        true
    }

    /// Both halves of a flow have ended.
    pub(super) fn forget(&self, lane: usize, id: FlowId) {
        if self.table(lane).members.remove(&id).is_some() {
            self.flows.fetch_sub(1, SeqCst);
        }
    }

    /// Ends the session. The first reason given is the one that is told.
    pub(super) fn end(&self, reason: Ended) {
        self.ending.end(reason);
    }

    /// Carries the session until it ends, however that comes about, and cleans up after it: when
    /// this returns no byte moves any more and the meter stands still.
    ///
    /// If it is dropped the session ends too, but nothing waits for its tasks.
    pub(super) async fn run(
        self: Arc<Self>,
        readers: Vec<LaneReader>,
        accept: impl Accept,
    ) -> Ended {
        let _end = EndOnDrop(&self);
        let accept = Arc::new(accept);
        for (lane, reader) in readers.into_iter().enumerate() {
            let link = Arc::clone(&self);
            let accept = Arc::clone(&accept);
            self.spawn(async move {
                let reason = tokio::select! {
                    reason = link.read(lane, reader, &*accept) => reason,
                    () = link.ending.over() => return,
                };
                link.end(reason);
            });
            let link = Arc::clone(&self);
            self.spawn(async move {
                tokio::select! {
                    () = link.lane(lane).run() => {}
                    () = link.ending.over() => {}
                }
            });
        }
        let reason = self.ending.ended().await;
        self.give_up_all();
        self.tasks.close();
        self.tasks.wait().await;
        let closes = self.lanes.iter().map(|track| track.lane.close());
        // A peer that does not take part in closing does not keep anyone waiting.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, join_all(closes)).await;
        reason
    }

    fn give_up_all(&self) {
        for lane in 0..self.lanes.len() {
            let members: Vec<Member> = {
                let mut table = self.table(lane);
                table.closed = true;
                table.members.drain().map(|(_, member)| member).collect()
            };
            self.flows.fetch_sub(members.len(), SeqCst);
            for member in members {
                match member {
                    Member::Tcp(flow) => flow.give_up(),
                    Member::Udp(association) => association.give_up(),
                }
            }
        }
    }

    /// Reads a lane until it ends or breaks the rules. Never waits for anything but the lane, so
    /// that no flow can hold up another one, or the frames that would free it.
    async fn read(
        self: &Arc<Self>,
        lane: usize,
        mut reader: LaneReader,
        accept: &impl Accept,
    ) -> Ended {
        let mut buffer = vec![0; READ_BUFFER];
        let mut filled = 0;
        let mut parser = Parser { data: None };
        loop {
            let len = match reader.read(&mut buffer[filled..]).await {
                Ok(0) => return Ended::LaneLost("closed by the peer".into()),
                Ok(len) => len,
                Err(error) => return Ended::LaneLost(error.to_string()),
            };
            filled += len;
            match parser.parse(self, lane, &buffer[..filled], accept) {
                Ok(used) => {
                    buffer.copy_within(used..filled, 0);
                    filled -= used;
                }
                Err(violation) => return Ended::Violated(violation),
            }
            // Streams that are always ready must not keep this worker from everyone else.
            tokio::task::consume_budget().await;
        }
    }

    fn member(&self, lane: usize, id: FlowId) -> Result<Option<Member>, Violation> {
        let table = self.table(lane);
        match table.members.get(&id) {
            Some(member) => Ok(Some(member.clone())),
            None if id.0 <= table.last => Ok(None),
            None => Err(Violation::Unsolicited(id)),
        }
    }

    fn on_frame(
        self: &Arc<Self>,
        lane: usize,
        id: FlowId,
        frame: Frame<'_>,
        accept: &impl Accept,
    ) -> Result<(), Violation> {
        let from_buyer = matches!(frame, Frame::Open { .. });
        let from_seller = matches!(frame, Frame::Opened | Frame::Refused(_) | Frame::Notice(_));
        match self.role {
            Role::Buyer if from_buyer => return Err(Violation::WrongRole(id)),
            Role::Seller if from_seller => return Err(Violation::WrongRole(id)),
            Role::Buyer | Role::Seller => {}
        }
        match frame {
            Frame::Open { target, early } => {
                {
                    let mut table = self.table(lane);
                    if id.0 <= table.last {
                        return Err(Violation::IdReused(id));
                    }
                    table.last = id.0;
                }
                return accept.open(self, lane, id, target, early);
            }
            Frame::Notice(notice) => {
                self.paused.store(notice == Notice::Paused, SeqCst);
                return Ok(());
            }
            _ => {}
        }
        let entry = match (self.member(lane, id)?, frame) {
            (Some(Member::Tcp(flow)), frame) => match frame {
                Frame::Opened => flow.on_opened().map(|()| Entry::Kept)?,
                Frame::Refused(refusal) => flow.on_refused(refusal)?,
                Frame::Fin => flow.on_fin()?,
                Frame::Rst => flow.on_reset(),
                Frame::Window(delta) => flow.on_window(delta).map(|()| Entry::Kept)?,
                _ => return Err(Violation::WrongState(id)),
            },
            (Some(Member::Udp(association)), frame) => match frame {
                Frame::Opened => Entry::Kept,
                Frame::Refused(_) | Frame::Fin | Frame::Rst => association.on_end()?,
                Frame::Udp {
                    peer,
                    datagram,
                    billed,
                } => {
                    association.on_datagram(&peer, datagram, billed)?;
                    Entry::Kept
                }
                _ => return Err(Violation::WrongState(id)),
            },
            // Sent before the peer heard that the flow is over.
            (None, Frame::Rst | Frame::Window(_)) => Entry::Kept,
            // Nobody sends these after the end of its half, and without one there was no end.
            (None, _) => return Err(Violation::Unsolicited(id)),
        };
        if entry == Entry::Done {
            self.forget(lane, id);
        }
        Ok(())
    }
}

struct EndOnDrop<'a>(&'a Link);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end(Ended::Detached);
        self.0.give_up_all();
    }
}

/// Where the reader of a lane stands between two reads.
struct Parser {
    /// A data frame that is not complete: its flow and what is missing.
    data: Option<(Arc<Flow>, usize)>,
}

impl Parser {
    /// Handles all frames in `bytes`, data also in part, and returns how many bytes were used.
    fn parse(
        &mut self,
        link: &Arc<Link>,
        lane: usize,
        bytes: &[u8],
        accept: &impl Accept,
    ) -> Result<usize, Violation> {
        let mut rest = bytes;
        loop {
            if let Some((flow, missing)) = &mut self.data {
                let len = rest.len().min(*missing);
                let (data, after) = rest.split_at(len);
                if len > 0 {
                    flow.on_data(data)?;
                }
                *missing -= len;
                rest = after;
                if *missing > 0 {
                    break;
                }
                self.data = None;
            }
            let Some((header, after)) = rest.split_first_chunk::<HEADER>() else {
                break;
            };
            let header = Header::decode(*header)?;
            if header.is_data() {
                match link.member(lane, header.flow())? {
                    Some(Member::Tcp(flow)) => self.data = Some((flow, header.length())),
                    Some(Member::Udp(_)) => return Err(Violation::WrongState(header.flow())),
                    None => return Err(Violation::Unsolicited(header.flow())),
                }
                rest = after;
                continue;
            }
            let Some((payload, after)) = after.split_at_checked(header.length()) else {
                break;
            };
            let frame = Frame::decode(header, payload)?;
            link.on_frame(lane, header.flow(), frame, accept)?;
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }
}

/// For the buyer: nobody opens flows to it.
pub(super) struct AcceptNothing;

impl Accept for AcceptNothing {
    fn open(
        &self,
        _: &Arc<Link>,
        _: usize,
        id: FlowId,
        _: Target,
        _: &[u8],
    ) -> Result<(), Violation> {
        Err(Violation::WrongRole(id))
    }
}
