//! The loop that joins everything: the only room where machines and shell meet.
//!
//! One task owns every machine of the node. It drains what machines want done, waits for exactly one
//! thing, tells the machine concerned, and begins again. Whatever is slow lives in a task or thread
//! of its own and reports here through bounded channels.

mod buying;
mod closed;
mod commands;
mod earnings;
mod money;
mod opening;
mod outlet;
mod requests;
mod selling;
mod sessions;
mod start;
mod trading;
mod views;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::Amount;
use bitmesh_market::book::{AskId, OrderBook};
use bitmesh_market::envelope::Network;
use bitmesh_market::identity::{Ed25519Signer, NodeId};
use bitmesh_market::lease::LeaseId;
use bitmesh_market::negotiation;
use bitmesh_market::session::{CloseReason, Reading};
use bitmesh_market::time::UnixTime;
use bitmesh_wallet::chain::watch::Watcher;
use bitmesh_wallet::chain::{BlockId, Tip};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::keys::Keys;
use bitmesh_wallet::onchain::{SpendError, Wallet};
use bitmesh_wallet::store::group::GroupCommit;
use bitmesh_wallet::store::{AppendError, Journal};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::buying::Purchases;
use self::closed::Closed;
use self::outlet::Outlet;
use self::selling::Desk;
use self::sessions::Session;
use self::trading::Sync;
use crate::cache::Cache;
use crate::chain::{Chain, ChainCommand, ChainUpdate};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{Call, api};
use crate::ledger::MOMENT_EVERY;
use crate::link::LinkEvent;
use crate::mesh::{self, InboundId, Mesh, MeshStream, OpenError, RequestId};
use crate::payments::{Output, Payments};
use crate::records::{Codec, Kind, MomentRecord};
use crate::tunnel::Ended;

pub use self::start::{StartError, run};

/// News from the shell's tasks that may wait for the driver. Each task waits when it is full, so this
/// bounds memory and slows whoever talks too much; 256 is some hundred sessions reporting at once.
const WAKES: usize = 256;

/// How often the driver looks after things that have no moment of their own: events for watchers,
/// expiry in the book, rebroadcasts.
const TICK: Duration = Duration::from_secs(1);

/// How long sessions may take to sign their last receipts when the node stops.
const STOPPING: Duration = Duration::from_secs(5);

/// What the transport gets to send what was said last: a withdrawal, a countersignature.
const FAREWELL: Duration = Duration::from_millis(150);

/// What wakes the driver, from tasks of the shell.
#[derive(Debug)]
enum Wake {
    /// A session's meter passed its mark.
    Metered { lease: LeaseId, reading: Reading },
    /// A control stream said something.
    Link {
        lease: LeaseId,
        attempt: u64,
        event: LinkEvent,
    },
    /// A session's streams are open, or not.
    Dialled {
        lease: LeaseId,
        attempt: u64,
        streams: Result<(MeshStream, Vec<MeshStream>), OpenError>,
    },
    /// A session's tunnel has ended.
    TunnelEnded {
        lease: LeaseId,
        attempt: u64,
        ended: Ended,
    },
    /// A stream that a buyer opened has been accepted.
    StreamOpened {
        lease: LeaseId,
        index: u8,
        stream: MeshStream,
    },
}

/// What a request of ours was about, for when its answer comes.
#[derive(Debug)]
enum Asked {
    /// A quote, for this purchase.
    Quote { purchase: u64, seller: NodeId },
    /// A lease, for this purchase.
    Lease { purchase: u64, seller: NodeId },
    /// A page of a neighbour's order book.
    Asks { neighbour: NodeId },
    /// Something about a channel.
    Channel { peer: NodeId },
}

/// The node, running.
struct Driver {
    // Who this is.
    node: NodeId,
    signer: Ed25519Signer,
    keys: Arc<Keys>,
    /// Whether the file with the words is under a passphrase: then they are not shown to whoever may ask.
    words_are_sealed: bool,
    network: Network,
    clock: Clock,
    config: Config,
    datadir: PathBuf,
    config_file: PathBuf,
    started: Instant,

    // Machines.
    book: OrderBook,
    desk: negotiation::seller::Seller,
    purchases: Purchases,
    sessions: BTreeMap<LeaseId, Session>,
    payments: Payments,
    watcher: Watcher,
    wallet: Wallet,

    // What the driver remembers for the shell.
    selling: Desk,
    sync: Sync,
    closed: Closed,
    /// Connected peers, and since when.
    connected: BTreeMap<NodeId, UnixTime>,
    /// When each offer in the book was last received.
    seen: BTreeMap<AskId, UnixTime>,
    listening: BTreeSet<mesh::Address>,
    announced: Vec<mesh::Address>,
    asked: BTreeMap<RequestId, Asked>,
    next_request: u64,
    /// The request whose answer is the next channel message to that peer.
    answering: Option<(NodeId, InboundId)>,
    watched: BTreeMap<bitcoin::OutPoint, money::Watched>,
    /// Whether the chain thread was told what to follow, and with it every script known then.
    follows_chain: bool,
    /// What the chain source is and where.
    source_name: String,
    chain_tip: Option<Tip>,
    /// The tip that machines were last told of.
    told_tip: Option<BlockId>,
    chain_trouble: Option<String>,
    feerate: Option<u64>,
    /// Why the last channel was not funded, for whoever wanted it.
    funding_problem: Option<SpendError>,
    extending: Vec<commands::Waiting>,
    closing: Vec<commands::Waiting>,
    handing: Vec<commands::Handing>,
    /// The last mark of time in the journal.
    moment: Option<UnixTime>,
    /// Held by whoever folds the journal: it takes memory, so one at a time.
    folding: Arc<Semaphore>,
    together: Vec<commands::Together>,
    /// What waits for the journal to be synced.
    standing: GroupCommit<Output>,
    /// The total of the last voucher that came on each channel since the start, while it is open.
    held: BTreeMap<ProposalId, Amount>,
    rolling: Vec<commands::Rolling>,
    /// Channels that somebody waits for.
    openings: Vec<opening::Opening>,
    /// Set when the journal refuses a record: nothing may be said that is not written.
    broken: bool,
    next_tick: Instant,

    // Shell.
    mesh: Mesh,
    chain: Chain,
    journal: Journal,
    cache: Cache,
    outlet: Outlet,
    events: broadcast::Sender<api::Event>,
    wakes: mpsc::Sender<Wake>,
}

/// The ends of the channels on which the driver is woken.
struct Inboxes {
    shutdown: CancellationToken,
    calls: mpsc::Receiver<Call>,
    chain: mpsc::Receiver<ChainUpdate>,
    wakes: mpsc::Receiver<Wake>,
    mesh: mpsc::Receiver<mesh::Event>,
}

impl Driver {
    /// Runs until told to stop. Everything that must survive is on the disk when this returns.
    async fn run(mut self, mut inboxes: Inboxes) -> Result<(), StartError> {
        loop {
            self.drain();
            if self.broken {
                return Err(StartError::JournalRefuses);
            }
            let deadline = tokio::time::Instant::from_std(self.deadline());
            tokio::select! {
                biased;
                () = inboxes.shutdown.cancelled() => break,
                () = tokio::time::sleep_until(deadline) => self.timed_out(),
                Some(call) = inboxes.calls.recv() => {
                    if self.command(call).is_break() {
                        break;
                    }
                }
                Some(update) = inboxes.chain.recv() => self.chain_update(update),
                Some(wake) = inboxes.wakes.recv() => self.woken(wake),
                event = inboxes.mesh.recv() => match event {
                    Some(event) => self.mesh_event(event),
                    None => {
                        error!("the mesh has ended; stopping");
                        break;
                    }
                },
            }
        }
        self.stop(&mut inboxes).await;
        Ok(())
    }

    /// Performs what machines want done, until none wants anything.
    fn drain(&mut self) {
        self.drain_payments();
    }

    /// The earliest moment any machine wants to be woken.
    fn deadline(&self) -> Instant {
        let sessions = self.sessions.values().filter_map(Session::poll_timeout);
        let purchases = self.purchases.poll_timeout();
        let desk = self.desk.poll_timeout().map(|(at, _why)| at);
        let payments = self.payments.poll_timeout();
        let offer = self.selling.restate_at();
        sessions
            .chain(purchases)
            .chain(desk)
            .chain(payments)
            .chain(offer)
            .chain(self.standing.deadline())
            .chain([self.next_tick])
            .min()
            .expect("the tick is always there")
    }

    fn timed_out(&mut self) {
        let now = self.clock.now();
        self.payments.handle_timeout(now);
        self.drain_payments();
        self.sessions_timed_out(now);
        self.purchases_timed_out(now);
        self.desk.handle_timeout(now);
        self.desk_outputs();
        self.offer_timed_out(now);
        if self.next_tick <= now {
            self.next_tick = now.checked_add(TICK).unwrap_or(now);
            self.tick(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.expire_book();
        self.drop_abandoned_calls(now);
        self.tell_usage(now);
        self.settle_waiting(now);
        self.settle_handing(now);
    }

    fn woken(&mut self, wake: Wake) {
        match wake {
            Wake::Metered { lease, reading } => self.session_metered(lease, reading),
            Wake::Link {
                lease,
                attempt,
                event,
            } => self.link_event(lease, attempt, event),
            Wake::Dialled {
                lease,
                attempt,
                streams,
            } => self.session_dialled(lease, attempt, streams),
            Wake::TunnelEnded {
                lease,
                attempt,
                ended,
            } => self.tunnel_ended(lease, attempt, &ended),
            Wake::StreamOpened {
                lease,
                index,
                stream,
            } => self.stream_opened(lease, index, stream),
        }
    }

    fn mesh_event(&mut self, event: mesh::Event) {
        match event {
            mesh::Event::Listening(address) => {
                self.listening.insert(address);
                self.restate_offer_soon();
            }
            mesh::Event::ListeningEnded(address) => {
                self.listening.remove(&address);
            }
            mesh::Event::Announced(addresses) => {
                self.announced = addresses;
                self.tell_own_addresses();
                self.restate_offer_soon();
            }
            mesh::Event::Connected(node) => self.peer_connected(node),
            mesh::Event::Disconnected(node) => self.peer_disconnected(node),
            mesh::Event::Gossip {
                from,
                message,
                topic: _,
                bytes,
            } => {
                self.gossip(from, message, &bytes);
            }
            mesh::Event::Request {
                from,
                inbound,
                request,
            } => {
                self.request(from, inbound, request);
            }
            mesh::Event::Response { id, result } => self.response(id, result),
            mesh::Event::Providers { cell: _, nodes } => self.providers_found(&nodes),
            mesh::Event::Stream { from, stream } => self.stream_came(from, stream),
        }
    }

    /// Withdraws what was offered and closes what is open, as far as peers help. Whoever is not
    /// reached in time keeps its last receipt, which is as good.
    async fn stop(&mut self, inboxes: &mut Inboxes) {
        self.selling.phase = selling::Phase::Stopped;
        self.withdraw_offer();
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close_session(id, CloseReason::Shutdown);
        }
        let until = tokio::time::Instant::now() + STOPPING;
        while !self.sessions.is_empty() && !self.broken {
            self.drain();
            let deadline = tokio::time::Instant::from_std(self.deadline());
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => break,
                () = tokio::time::sleep_until(deadline) => self.timed_out(),
                Some(wake) = inboxes.wakes.recv() => self.woken(wake),
                Some(event) = inboxes.mesh.recv() => self.mesh_event(event),
                else => break,
            }
        }
        // A voucher that came last is durable, and was answered.
        self.standing.hasten();
        self.drain();
        // The last words are in the streams' buffers, and the streams end with the process.
        tokio::time::sleep(FAREWELL).await;
        if let Err(error) = self.wallet.persist() {
            warn!(%error, "the wallet's cache was not written; it will be read from the chain");
        }
    }

    // Small things every room needs.

    /// Writes a record down. Durable on return; if the disk refuses, the node stops before it says
    /// anything that is not written.
    fn persist(&mut self, kind: Kind, bytes: &[u8]) {
        self.persist_raw(kind as u8, bytes);
    }

    fn persist_raw(&mut self, kind: u8, bytes: &[u8]) {
        let moment = self.moment_due();
        let written = tokio::task::block_in_place(|| {
            if let Some(moment) = moment {
                self.journal
                    .append_deferred(Kind::Moment as u8, &moment.to_bytes())?;
            }
            self.journal.append(kind, bytes)
        });
        self.written(written);
    }

    /// Writes down a record that raises what is paid by `value`, without making it durable: nothing that
    /// relies on it may happen but through `standing`.
    fn persist_deferred(&mut self, kind: u8, bytes: &[u8], value: Amount) {
        let (moment, now) = (self.moment_due(), self.clock.now());
        let marked = moment.map_or(Ok(()), |moment| {
            self.journal
                .append_deferred(Kind::Moment as u8, &moment.to_bytes())
        });
        let record = (kind, bytes);
        let written =
            marked.and_then(|()| self.standing.append(&mut self.journal, record, value, now));
        self.written(written);
    }

    /// Makes everything written down so far durable. Called too before a figure that vouchers go into is
    /// taken from the payments room past its outputs.
    fn sync_journal(&mut self) {
        if self.journal.is_synced() {
            return;
        }
        let synced = tokio::task::block_in_place(|| self.journal.sync());
        self.written(synced);
    }

    fn written(&mut self, outcome: Result<(), AppendError>) {
        if let Err(error) = outcome {
            error!(%error, "the journal cannot be written; stopping before anything is promised");
            self.broken = true;
        }
    }

    /// The mark of time to write ahead of the next record, if the last one is too old or, since clocks
    /// are set back, too young.
    fn moment_due(&mut self) -> Option<MomentRecord> {
        let now = self.unix();
        let is_near = |last: UnixTime| now.secs().abs_diff(last.secs()) < MOMENT_EVERY.as_secs();
        if self.moment.is_some_and(is_near) {
            return None;
        }
        self.moment = Some(now);
        Some(MomentRecord::new(now))
    }

    fn mesh_do(&self, command: mesh::Command) {
        if let Err(error) = self.mesh.try_send(command) {
            warn!(%error, "the mesh did not take a command");
        }
    }

    fn ask_mesh(&mut self, to: NodeId, request: crate::protocol::Request, about: Asked) {
        let id = RequestId(self.next_request);
        self.next_request = self.next_request.wrapping_add(1);
        self.asked.insert(id, about);
        let command = mesh::Command::Request { id, to, request };
        if self.mesh.try_send(command).is_err() {
            self.response(id, Err(mesh::RequestError::TooMany));
        }
    }

    fn chain_do(&self, command: ChainCommand) {
        self.chain.ask(command);
    }

    /// Tells whoever watches. Nobody watching is fine.
    fn tell(&self, event: Option<api::Event>) {
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
    }

    /// Closes the way out to what leads back in: the addresses under which others reach this node,
    /// which may be those of the router in front of it, and the hosts of the chain sources.
    fn tell_own_addresses(&self) {
        let sources = self.config.chain.hosts(self.network);
        self.outlet
            .set_own_addresses(leads_back(&self.announced, &sources));
    }

    fn unix(&self) -> UnixTime {
        self.clock.unix()
    }
}

/// The addresses that no buyer may reach, although no interface of this machine has them.
fn leads_back(announced: &[mesh::Address], sources: &[IpAddr]) -> Vec<IpAddr> {
    let announced = announced.iter().filter_map(mesh::Address::socket);
    let mut own: Vec<_> = announced
        .map(|socket| socket.ip())
        .chain(sources.iter().copied())
        .map(|ip| ip.to_canonical())
        .collect();
    own.sort_unstable();
    own.dedup();
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_address_of_a_router_and_the_host_of_bitcoind_lead_back() {
        let announced: Vec<mesh::Address> = [
            "/ip4/1.2.3.4/tcp/6366",
            "/ip4/1.2.3.4/udp/6366/quic-v1",
            "/ip6/2600::7/tcp/6366",
            "/ip6/::ffff:4.3.2.1/tcp/6366",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        let bitcoind = "9.9.9.9".parse().unwrap();

        let own = leads_back(&announced, &[bitcoind]);

        let expected = ["1.2.3.4", "4.3.2.1", "9.9.9.9", "2600::7"];
        assert_eq!(own, expected.map(|text| text.parse::<IpAddr>().unwrap()));
    }
}
