//! Getting to a node: first the addresses heard of, then what the hash table says, then giving up.
//!
//! Pure: it is told what happened and says what to do next.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

/// Nodes being reached at once. The driver asks three sellers at a time; the rest is found nodes.
const MAX_ATTEMPTS: usize = 256;

/// What to do next about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Dial it at all addresses known.
    Dial,
    /// Ask the hash table where it is.
    Lookup,
    /// It cannot be reached; tell whoever waits.
    GiveUp,
    /// Nothing: an answer is still to come, or nobody waits.
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Dialling addresses heard of.
    First,
    /// Waiting for the hash table.
    Looking,
    /// Dialling addresses from the hash table.
    Last,
}

/// The nodes being reached.
///
/// Invariant: every attempt ends by its deadline, so every [`want`](Self::want) that was taken is
/// followed by [`connected`](Self::connected) or a [`Step::GiveUp`].
#[derive(Debug)]
pub(crate) struct Reach {
    patience: Duration,
    attempts: HashMap<NodeId, (Stage, Instant)>,
}

impl Reach {
    /// `patience` bounds a whole attempt: two dials and a lookup.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            attempts: HashMap::new(),
        }
    }

    /// Somebody wants a connection with a node that has none.
    pub(crate) fn want(&mut self, node: NodeId, now: Instant) -> Step {
        if self.attempts.contains_key(&node) {
            return Step::Wait;
        }
        if self.attempts.len() >= MAX_ATTEMPTS {
            return Step::GiveUp;
        }
        let deadline = now + self.patience;
        self.attempts.insert(node, (Stage::First, deadline));
        Step::Dial
    }

    /// A connection with the node is there.
    pub(crate) fn connected(&mut self, node: &NodeId) {
        self.attempts.remove(node);
    }

    /// A dial of the node ended badly.
    pub(crate) fn dial_failed(&mut self, node: &NodeId) -> Step {
        match self.attempts.get_mut(node) {
            Some((stage @ Stage::First, _)) => {
                *stage = Stage::Looking;
                Step::Lookup
            }
            // A dial somebody else made; the lookup's own is still to come.
            Some((Stage::Looking, _)) => Step::Wait,
            Some((Stage::Last, _)) => self.give_up(node),
            None => Step::Wait,
        }
    }

    /// The hash table answered.
    pub(crate) fn looked_up(&mut self, node: &NodeId, found: bool) -> Step {
        match self.attempts.get_mut(node) {
            Some((stage @ Stage::Looking, _)) if found => {
                *stage = Stage::Last;
                Step::Dial
            }
            Some((Stage::Looking, _)) => self.give_up(node),
            Some((Stage::First | Stage::Last, _)) | None => Step::Wait,
        }
    }

    fn give_up(&mut self, node: &NodeId) -> Step {
        self.attempts.remove(node);
        Step::GiveUp
    }

    /// When [`expired`](Self::expired) has something to tell.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.attempts.values().map(|(_, deadline)| *deadline).min()
    }

    /// Takes the nodes whose time is up: each is a [`Step::GiveUp`].
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<NodeId> {
        self.attempts
            .extract_if(|_, (_, deadline)| *deadline <= now)
            .map(|(node, _)| node)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};

    use super::*;

    fn node(n: u8) -> NodeId {
        Ed25519Signer::from_seed([n; 32]).node_id()
    }

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::from_std(std::time::Instant::now())
    }

    #[test]
    fn a_node_is_dialled_looked_up_dialled_again_and_given_up() {
        let mut reach = Reach::new(Duration::from_secs(10));
        let t0 = epoch();

        assert_eq!(reach.want(node(1), t0), Step::Dial);
        assert_eq!(reach.want(node(1), t0), Step::Wait);
        assert_eq!(reach.dial_failed(&node(1)), Step::Lookup);
        assert_eq!(reach.dial_failed(&node(1)), Step::Wait);
        assert_eq!(reach.looked_up(&node(1), true), Step::Dial);
        assert_eq!(reach.dial_failed(&node(1)), Step::GiveUp);
        assert_eq!(reach.dial_failed(&node(1)), Step::Wait);
        assert_eq!(reach.want(node(1), t0), Step::Dial);
    }

    #[test]
    fn a_lookup_that_finds_nothing_is_the_end() {
        let mut reach = Reach::new(Duration::from_secs(10));

        reach.want(node(1), epoch());
        reach.dial_failed(&node(1));

        assert_eq!(reach.looked_up(&node(1), false), Step::GiveUp);
        assert_eq!(reach.next_deadline(), None);
    }

    #[test]
    fn an_attempt_never_outlives_its_deadline() {
        let mut reach = Reach::new(Duration::from_secs(10));
        let t0 = epoch();
        reach.want(node(1), t0);
        reach.want(node(2), t0 + Duration::from_secs(1));

        let deadline = reach.next_deadline().unwrap();
        assert_eq!(deadline, t0 + Duration::from_secs(10));
        assert_eq!(reach.expired(deadline), [node(1)]);
        assert_eq!(reach.next_deadline(), Some(t0 + Duration::from_secs(11)));
    }

    #[test]
    fn what_comes_after_the_connection_means_nothing() {
        let mut reach = Reach::new(Duration::from_secs(10));
        reach.want(node(1), epoch());
        reach.dial_failed(&node(1));

        reach.connected(&node(1));

        assert_eq!(reach.looked_up(&node(1), true), Step::Wait);
        assert_eq!(reach.dial_failed(&node(1)), Step::Wait);
        assert_eq!(reach.next_deadline(), None);
    }

    #[test]
    fn attempts_are_bounded() {
        let mut reach = Reach::new(Duration::from_secs(10));
        let t0 = epoch();
        let mut nodes = (0u16..).map(|n| {
            let mut seed = [0; 32];
            seed[..2].copy_from_slice(&n.to_le_bytes());
            Ed25519Signer::from_seed(seed).node_id()
        });

        for node in nodes.by_ref().take(MAX_ATTEMPTS) {
            assert_eq!(reach.want(node, t0), Step::Dial);
        }

        assert_eq!(reach.want(nodes.next().unwrap(), t0), Step::GiveUp);
    }
}
