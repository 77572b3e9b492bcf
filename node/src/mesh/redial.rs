//! Coming back to nodes that matter: those with sessions, always; bootstrap nodes, while there are
//! few others.
//!
//! Pure: it is told what happened and when, and says whom to dial.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use bitmesh_market::identity::NodeId;

use super::address::Address;

/// Neighbours above which bootstrap nodes are left alone: they serve the whole network.
const ENOUGH_NEIGHBOURS: usize = 8;

/// Addresses remembered for one node: those at which it was met last.
const MAX_ADDRESSES: usize = 4;

#[derive(Debug, Default)]
struct Target {
    bootstrap: bool,
    /// Sessions and whatever else holds on to the node.
    protections: u32,
    /// Newest last.
    addresses: Vec<Address>,
    connected: bool,
    failures: u32,
    /// When to dial next; `None` while connected or dialling.
    due: Option<Instant>,
}

/// The nodes to come back to.
///
/// Invariant: holds bootstrap nodes and protected nodes only.
#[derive(Debug)]
pub(crate) struct Redial {
    first: Duration,
    most: Duration,
    most_protected: usize,
    targets: HashMap<NodeId, Target>,
}

impl Redial {
    /// Waits `first` after a loss, twice as long after each failure, and never more than `most`.
    pub(crate) fn new(first: Duration, most: Duration, most_protected: usize) -> Self {
        Self {
            first,
            most,
            most_protected,
            targets: HashMap::new(),
        }
    }

    /// Adds a bootstrap address, to be dialled now.
    pub(crate) fn bootstrap(&mut self, node: NodeId, address: Address, now: Instant) {
        let target = self.targets.entry(node).or_default();
        target.bootstrap = true;
        target.due = Some(now);
        // All that are configured, which is a bounded list.
        if !target.addresses.contains(&address) {
            target.addresses.push(address);
        }
    }

    /// Holds on to a node once more. `None` if there are too many; else whether this is the first
    /// hold.
    pub(crate) fn protect(&mut self, node: NodeId, connected: bool, now: Instant) -> Option<bool> {
        let held = self
            .targets
            .values()
            .filter(|target| target.protections > 0)
            .count();
        let target = self.targets.entry(node).or_default();
        if target.protections == 0 && held >= self.most_protected {
            if !target.bootstrap {
                self.targets.remove(&node);
            }
            return None;
        }
        target.protections = target.protections.saturating_add(1);
        target.connected = connected;
        if !connected && target.due.is_none() {
            target.due = Some(now);
        }
        Some(target.protections == 1)
    }

    /// Lets go once. Returns whether that was the last hold.
    pub(crate) fn unprotect(&mut self, node: NodeId) -> bool {
        let Some(target) = self.targets.get_mut(&node) else {
            return false;
        };
        if target.protections == 0 {
            return false;
        }
        target.protections -= 1;
        let last = target.protections == 0;
        if last && !target.bootstrap {
            self.targets.remove(&node);
        }
        last
    }

    pub(crate) fn is_protected(&self, node: &NodeId) -> bool {
        self.targets
            .get(node)
            .is_some_and(|target| target.protections > 0)
    }

    /// Whether this node would dial the other if it were not connected.
    pub(crate) fn is_wanted(&self, node: &NodeId, neighbours: usize) -> bool {
        self.targets
            .get(node)
            .is_some_and(|target| target.wanted(neighbours))
    }

    /// Where the node was met before.
    pub(crate) fn addresses(&self, node: &NodeId) -> &[Address] {
        self.targets
            .get(node)
            .map_or(&[], |target| target.addresses.as_slice())
    }

    /// The node is connected; `dialled` is the address this node found it at, if it dialled.
    pub(crate) fn connected(&mut self, node: &NodeId, dialled: Option<Address>) {
        let Some(target) = self.targets.get_mut(node) else {
            return;
        };
        target.connected = true;
        target.failures = 0;
        target.due = None;
        if let Some(address) = dialled
            && !target.addresses.contains(&address)
        {
            if !target.bootstrap && target.addresses.len() >= MAX_ADDRESSES {
                target.addresses.remove(0);
            }
            if target.addresses.len() < MAX_ADDRESSES {
                target.addresses.push(address);
            }
        }
    }

    /// The last connection with the node is gone.
    pub(crate) fn disconnected(&mut self, node: &NodeId, now: Instant) {
        let wait = self.wait(node, 0);
        if let Some(target) = self.targets.get_mut(node) {
            target.connected = false;
            target.due = Some(now + wait);
        }
    }

    /// A dial of the node ended badly.
    pub(crate) fn dial_failed(&mut self, node: &NodeId, now: Instant) {
        let failures = match self.targets.get_mut(node) {
            Some(target) if !target.connected => {
                target.failures = target.failures.saturating_add(1);
                target.failures
            }
            Some(_) | None => return,
        };
        let wait = self.wait(node, failures);
        if let Some(target) = self.targets.get_mut(node) {
            target.due = Some(now + wait);
        }
    }

    /// When [`due`](Self::due) may have somebody to dial.
    pub(crate) fn next_deadline(&self, neighbours: usize) -> Option<Instant> {
        self.targets
            .values()
            .filter(|target| target.wanted(neighbours))
            .filter_map(|target| target.due)
            .min()
    }

    /// Takes the nodes to dial now. Each is told of again only after
    /// [`dial_failed`](Self::dial_failed) or [`disconnected`](Self::disconnected).
    pub(crate) fn due(&mut self, neighbours: usize, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (node, target) in &mut self.targets {
            if target.wanted(neighbours) && target.due.is_some_and(|at| at <= now) {
                target.due = None;
                due.push(*node);
            }
        }
        due
    }

    /// Doubles with failures; spread by up to a quarter, differently for each pair of nodes, so that
    /// the many who lost one node do not come back at the same moment.
    fn wait(&self, node: &NodeId, failures: u32) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1 << failures.min(16))
            .min(self.most);
        let [spread, ..] = node.as_bytes();
        doubled + doubled / 4 * u32::from(*spread) / 255
    }
}

impl Target {
    fn wanted(&self, neighbours: usize) -> bool {
        self.protections > 0 || (self.bootstrap && neighbours < ENOUGH_NEIGHBOURS)
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_market::identity::{Ed25519Signer, Signer as _};

    use super::*;

    const FIRST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(60);

    fn node(n: u8) -> NodeId {
        Ed25519Signer::from_seed([n; 32]).node_id()
    }

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::from_std(std::time::Instant::now())
    }

    fn redial() -> Redial {
        Redial::new(FIRST, MOST, 2)
    }

    fn addr(n: u8) -> Address {
        format!("/ip4/192.0.2.{n}/tcp/1").parse().unwrap()
    }

    #[test]
    fn waits_double_up_to_the_most_and_start_again_after_success() {
        let mut redial = redial();
        let mut now = epoch();
        redial.bootstrap(node(1), addr(1), now);

        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(redial.due(0, now), [node(1)]);
            assert_eq!(redial.next_deadline(0), None, "only one dial at a time");
            redial.dial_failed(&node(1), now);
            let at = redial.next_deadline(0).unwrap();
            waits.push(at - now);
            now = at;
        }
        for (n, wait) in waits.iter().enumerate() {
            let exact = (FIRST * 2u32.pow(u32::try_from(n + 1).unwrap())).min(MOST);
            assert!((exact..=exact + exact / 4).contains(wait), "{n}: {wait:?}");
        }

        redial.connected(&node(1), None);
        redial.disconnected(&node(1), now);
        assert!(redial.next_deadline(0).unwrap() - now <= FIRST + FIRST / 4);
    }

    #[test]
    fn bootstrap_nodes_are_left_alone_when_there_are_enough_others() {
        let mut redial = redial();
        let now = epoch();
        redial.bootstrap(node(1), addr(1), now);

        assert_eq!(redial.due(ENOUGH_NEIGHBOURS, now), []);
        assert_eq!(redial.due(ENOUGH_NEIGHBOURS - 1, now), [node(1)]);
    }

    #[test]
    fn a_protected_node_is_come_back_to_however_many_others_there_are() {
        let mut redial = redial();
        let now = epoch();

        assert_eq!(redial.protect(node(1), true, now), Some(true));
        assert_eq!(redial.protect(node(1), true, now), Some(false));
        redial.connected(&node(1), Some(addr(1)));
        assert_eq!(redial.next_deadline(100), None);
        redial.disconnected(&node(1), now);
        let at = redial.next_deadline(100).unwrap();
        assert_eq!(redial.due(100, at), [node(1)]);
        assert_eq!(redial.addresses(&node(1)), [addr(1)]);

        assert!(!redial.unprotect(node(1)));
        assert!(redial.unprotect(node(1)));
        assert!(!redial.unprotect(node(1)));
        assert!(redial.targets.is_empty());
    }

    #[test]
    fn protections_are_bounded_and_letting_go_makes_room() {
        let mut redial = redial();
        let now = epoch();
        assert!(redial.protect(node(1), true, now).is_some());
        assert!(redial.protect(node(2), true, now).is_some());

        assert_eq!(redial.protect(node(3), true, now), None);
        assert_eq!(redial.targets.len(), 2);
        redial.unprotect(node(1));

        assert!(redial.protect(node(3), true, now).is_some());
    }

    #[test]
    fn a_protected_node_that_moves_is_remembered_at_its_last_addresses() {
        let mut redial = redial();
        redial.protect(node(1), true, epoch());

        for n in 1..=6 {
            redial.connected(&node(1), Some(addr(n)));
        }

        assert_eq!(
            redial.addresses(&node(1)),
            [addr(3), addr(4), addr(5), addr(6)]
        );
    }
}
