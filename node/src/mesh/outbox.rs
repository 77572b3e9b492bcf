//! Events on their way to the driver, with a bound on how many.

use std::collections::{HashSet, VecDeque};

use tokio::sync::mpsc;

use bitmesh_market::identity::NodeId;

use super::Event;

/// Places in the driver's queue that gossip, requests and streams of others leave free.
const RESERVED: usize = 64;

/// Entries in the backlog above which those that no longer say anything are swept out.
const SWEEP: usize = 4096;

#[derive(Debug)]
enum Entry {
    Event(Event),
    /// The node's link changed; what to say is decided when there is room to say it.
    Link(NodeId),
}

/// Events on their way to the driver.
///
/// Two kinds: what strangers cause ([`offer`](Self::offer)) is taken only while there is room, so a
/// slow driver bounds it. What the driver must hear ([`push`](Self::push), links) waits in a backlog
/// bounded by what the driver asked for and by who is connected: a node that comes and goes while
/// the driver does not look leaves no trace.
#[derive(Debug)]
pub(crate) struct Outbox {
    driver: mpsc::Sender<Event>,
    backlog: VecDeque<Entry>,
    /// Who is connected.
    linked: HashSet<NodeId>,
    /// Who the driver thinks is connected.
    told: HashSet<NodeId>,
    /// Who has an entry in the backlog.
    queued: HashSet<NodeId>,
}

impl Outbox {
    pub(crate) fn new(driver: mpsc::Sender<Event>) -> Self {
        Self {
            driver,
            backlog: VecDeque::new(),
            linked: HashSet::new(),
            told: HashSet::new(),
            queued: HashSet::new(),
        }
    }

    /// Takes an event the driver can do without; gives it back if there is no room.
    pub(crate) fn offer(&mut self, event: Event) -> Result<(), Event> {
        self.flush();
        if !self.backlog.is_empty() || self.driver.capacity() <= RESERVED {
            return Err(event);
        }
        self.driver.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(event) | mpsc::error::TrySendError::Closed(event) => {
                event
            }
        })
    }

    /// Takes an event the driver must hear. The caller bounds how many there can be.
    pub(crate) fn push(&mut self, event: Event) {
        self.backlog.push_back(Entry::Event(event));
        self.flush();
    }

    /// A node of this network is connected, or no more.
    pub(crate) fn link(&mut self, node: NodeId, connected: bool) {
        let changed = if connected {
            self.linked.insert(node)
        } else {
            self.linked.remove(&node)
        };
        if changed && self.queued.insert(node) {
            self.backlog.push_back(Entry::Link(node));
        }
        if self.backlog.len() > SWEEP {
            self.sweep();
        }
        self.flush();
    }

    pub(crate) fn is_linked(&self, node: &NodeId) -> bool {
        self.linked.contains(node)
    }

    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Hands over what there is room for.
    pub(crate) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let driver = self.driver.clone();
            let Ok(place) = driver.try_reserve() else {
                return;
            };
            if let Some(event) = self.next() {
                place.send(event);
            }
        }
    }

    /// Waits until the driver's queue has room. Cancel-safe.
    pub(crate) fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let driver = self.driver.clone();
        async move {
            if driver.reserve().await.is_err() {
                // Nobody listens. The task ends for another reason; until then this is not it.
                std::future::pending::<()>().await;
            }
        }
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            match self.backlog.pop_front()? {
                Entry::Event(event) => return Some(event),
                Entry::Link(node) => {
                    self.queued.remove(&node);
                    match (self.linked.contains(&node), self.told.contains(&node)) {
                        (true, false) => {
                            self.told.insert(node);
                            return Some(Event::Connected(node));
                        }
                        (false, true) => {
                            self.told.remove(&node);
                            return Some(Event::Disconnected(node));
                        }
                        (true, true) | (false, false) => {}
                    }
                }
            }
        }
    }

    fn sweep(&mut self) {
        let Self {
            backlog,
            linked,
            told,
            queued,
            ..
        } = self;
        backlog.retain(|entry| match entry {
            Entry::Event(_) => true,
            Entry::Link(node) => {
                let says_something = linked.contains(node) != told.contains(node);
                if !says_something {
                    queued.remove(node);
                }
                says_something
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};

    use super::*;

    fn node(n: u32) -> NodeId {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&n.to_le_bytes());
        Ed25519Signer::from_seed(seed).node_id()
    }

    fn filler() -> Event {
        Event::Announced(Vec::new())
    }

    fn drain(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
        let mut texts = Vec::new();
        while let Ok(event) = events.try_recv() {
            texts.push(format!("{event:?}"));
        }
        texts
    }

    #[test]
    fn what_strangers_cause_leaves_room_for_what_must_be_heard() {
        let (sender, mut events) = mpsc::channel(RESERVED + 20);
        let mut outbox = Outbox::new(sender);

        assert!((0..20).all(|_| outbox.offer(filler()).is_ok()));
        assert!(outbox.offer(filler()).is_err());
        for _ in 0..RESERVED + 10 {
            outbox.push(filler());
        }
        assert!(outbox.has_backlog());
        assert_eq!(drain(&mut events).len(), RESERVED + 20);
        assert!(outbox.offer(filler()).is_ok());
        assert_eq!(drain(&mut events).len(), 11, "the backlog goes first");
    }

    #[test]
    fn the_driver_hears_of_a_link_before_anything_else_of_the_node() {
        let (sender, mut events) = mpsc::channel(RESERVED + 1);
        let mut outbox = Outbox::new(sender);
        for _ in 0..=RESERVED {
            outbox.push(filler());
        }

        outbox.link(node(1), true);
        outbox.push(filler());
        outbox.link(node(1), false);
        drain(&mut events);
        outbox.link(node(1), true);
        outbox.flush();

        let texts = drain(&mut events);
        assert!(texts[0].starts_with("Connected"), "{texts:?}");
        assert_eq!(texts.len(), 2);
    }

    #[test]
    fn nodes_that_come_and_go_unseen_leave_no_trace() {
        let (sender, mut events) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        outbox.push(filler());

        for n in 0..10_000 {
            outbox.link(node(n % 500), true);
            outbox.link(node(n % 500), false);
        }
        assert!(outbox.backlog.len() <= 500);

        drain(&mut events);
        outbox.flush();
        assert_eq!(drain(&mut events), Vec::<String>::new());
        assert!(outbox.queued.is_empty() && outbox.told.is_empty());
    }

    #[test]
    fn the_backlog_of_links_is_swept() {
        let (sender, _events) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        outbox.push(filler());

        for n in 0..u32::try_from(SWEEP).unwrap() + 100 {
            outbox.link(node(n), true);
            outbox.link(node(n), false);
        }

        assert!(outbox.backlog.len() <= SWEEP);
        assert!(outbox.queued.len() <= SWEEP);
    }
}
