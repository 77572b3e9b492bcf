//! The order book's border: gossip in and out, pages to and from neighbours, the copy on disk.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitmesh_market::book::{AskId, Inserted};
use bitmesh_market::identity::NodeId;
use bitmesh_market::offer::{Verdict, VerifiedOffer};
use tracing::{debug, trace, warn};

use super::{Asked, Driver};
use crate::control::api;
use crate::mesh::{Command, MessageId, Verdict as Judged};
use crate::protocol::message::{MAX_PAGE_BYTES, Page};
use crate::protocol::{Cursor, Request, Response};

/// Pages asked of one neighbour after it connects. A page holds about a hundred offers, so this is a
/// full book; a neighbour that sends more has something else in mind.
const MAX_PAGES: u32 = 128;

/// A neighbour is asked for its book again no sooner than this: gossip brings what is new.
const SYNC_AGAIN: Duration = Duration::from_secs(60);

/// Neighbours remembered for [`SYNC_AGAIN`].
const MAX_SYNCED: usize = 1_024;

/// Bytes of asks in one answer; leaves room for the frame around them.
const PAGE_BYTES: usize = MAX_PAGE_BYTES;

/// Which neighbours' books were read, and when.
#[derive(Debug, Default)]
pub(super) struct Sync {
    begun: BTreeMap<NodeId, Instant>,
    pages: BTreeMap<NodeId, u32>,
}

impl Sync {
    /// Whether to ask this neighbour now; notes that it is asked.
    fn begin(&mut self, neighbour: NodeId, now: Instant) -> bool {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < SYNC_AGAIN;
        if self.begun.get(&neighbour).is_some_and(is_recent) {
            return false;
        }
        if self.begun.len() >= MAX_SYNCED {
            self.begun.retain(|_, at| is_recent(at));
        }
        if self.begun.len() >= MAX_SYNCED {
            return false;
        }
        self.begun.insert(neighbour, now);
        self.pages.insert(neighbour, 0);
        true
    }

    /// Whether to ask for one page more.
    fn go_on(&mut self, neighbour: NodeId) -> bool {
        let pages = self.pages.entry(neighbour).or_default();
        *pages += 1;
        *pages < MAX_PAGES
    }

    fn end(&mut self, neighbour: NodeId) {
        self.pages.remove(&neighbour);
    }
}

impl Driver {
    pub(super) fn peer_connected(&mut self, node: NodeId) {
        let now = self.clock.now();
        let since = self.unix();
        self.connected.insert(node, since);
        if self.sync.begin(node, now) {
            let after = Cursor::start();
            self.ask_mesh(
                node,
                Request::Asks { after },
                Asked::Asks { neighbour: node },
            );
        }
        self.payments.connected(node, now);
        // The peer reads this node's book by itself; what was said to nobody is said again.
        if self.selling.visible_to == 0 {
            self.restate_offer_soon();
        }
        self.tell(Some(api::Event::PeerConnected {
            node: node.to_string(),
        }));
    }

    pub(super) fn peer_disconnected(&mut self, node: NodeId) {
        self.connected.remove(&node);
        self.sync.end(node);
        self.tell(Some(api::Event::PeerDisconnected {
            node: node.to_string(),
        }));
    }

    /// Nodes that say they know a cell's offers: connecting to them brings their books.
    pub(super) fn providers_found(&mut self, nodes: &[NodeId]) {
        for node in nodes.iter().filter(|node| **node != self.node) {
            self.mesh_do(Command::Connect(*node));
        }
    }

    /// A signed offer came by gossip.
    pub(super) fn gossip(&mut self, from: NodeId, message: MessageId, bytes: &[u8]) {
        let verdict = self.take_offer(from, bytes);
        let verdict = match verdict {
            Verdict::Accept => Judged::Accept,
            Verdict::Ignore => Judged::Ignore,
            Verdict::Reject => Judged::Reject,
        };
        self.mesh_do(Command::Verdict { message, verdict });
    }

    /// Puts a peer's signed offer into the book, if it is good.
    fn take_offer(&mut self, from: NodeId, bytes: &[u8]) -> Verdict {
        let now = self.unix();
        let offer = match VerifiedOffer::verify(bytes, self.network, now) {
            Ok(offer) => offer,
            Err(error) => {
                debug!(%from, %error, "an offer is not believed");
                return error.verdict();
            }
        };
        if offer.seller() == self.node {
            // Our own, come back. What holds is what this node itself last said.
            return Verdict::Ignore;
        }
        match self.book.insert(offer, now) {
            Ok(inserted) => {
                self.book_changed(&inserted);
                Verdict::Accept
            }
            Err(refused) => {
                trace!(%from, %refused, "an offer is not put in the book");
                refused.verdict()
            }
        }
    }

    /// Follows a change of the book: the copy on disk, watchers, and bids that waited for it.
    pub(super) fn book_changed(&mut self, inserted: &Inserted) {
        for evicted in &inserted.evicted {
            self.forget_ask(*evicted);
        }
        let now = self.unix();
        if let Some(ask) = self.book.ask(inserted.id) {
            self.cache.keep_ask(inserted.id, ask.as_bytes());
            self.seen.insert(inserted.id, now);
            let offer = self.offer_view(&ask.clone(), now);
            self.tell(Some(api::Event::OfferSeen { offer }));
        } else {
            self.forget_ask(inserted.id);
            let seller = inserted.id.seller().to_string();
            self.tell(Some(api::Event::OfferGone { seller }));
        }
        for bid in &inserted.woken {
            self.bid_woken(*bid);
        }
    }

    fn forget_ask(&mut self, id: AskId) {
        self.cache.forget_ask(id);
        self.seen.remove(&id);
    }

    pub(super) fn expire_book(&mut self) {
        let now = self.unix();
        if self.book.next_expiry().is_none_or(|at| at > now) {
            return;
        }
        for id in self.book.expire(now) {
            self.forget_ask(id);
            self.tell(Some(api::Event::OfferGone {
                seller: id.seller().to_string(),
            }));
        }
    }

    /// A neighbour asks for a page of the book.
    pub(super) fn page_of_book(&self, after: &Cursor) -> Response {
        let after = after
            .as_bytes()
            .try_into()
            .ok()
            .and_then(|bytes| AskId::from_bytes(bytes).ok());
        let found = self.book.page(after, PAGE_BYTES, self.unix());
        let mut page = Page::new();
        for statement in &found.statements {
            // An offer has at least 100 bytes, so a page of PAGE_BYTES never has too many.
            page.push(statement);
        }
        page.finish(
            found
                .next
                .and_then(|id| Cursor::from_bytes(id.to_bytes().to_vec())),
        )
    }

    /// A page of a neighbour's book came.
    pub(super) fn page_came(&mut self, neighbour: NodeId, asks: &[Vec<u8>], next: Option<Cursor>) {
        for ask in asks {
            // Whoever keeps what no honest node does has a book that is not worth reading.
            if self.take_offer(neighbour, ask) == Verdict::Reject {
                warn!(%neighbour, "its order book holds what is no offer; reading no further");
                self.sync.end(neighbour);
                return;
            }
        }
        match next {
            Some(after) if !asks.is_empty() && self.sync.go_on(neighbour) => {
                self.ask_mesh(
                    neighbour,
                    Request::Asks { after },
                    Asked::Asks { neighbour },
                );
            }
            Some(_) | None => self.sync.end(neighbour),
        }
    }

    /// Reads the book's copy on disk back, as if a neighbour had sent it.
    pub(super) fn restore_book(&mut self) {
        let kept: Vec<_> = self.cache.asks().collect();
        for bytes in kept {
            let _ = self.take_offer(self.node, &bytes);
        }
    }
}
