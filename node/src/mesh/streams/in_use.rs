//! Which nodes have session streams open with this one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;

/// Counts the session streams of each node, so that a connection that carries one is not taken for
/// idle.
///
/// Invariant: holds nodes with at least one [`Use`], and is as large as there are of those.
#[derive(Clone, Debug, Default)]
pub(crate) struct InUse(Arc<Mutex<HashMap<PeerId, usize>>>);

/// One stream's share of its node's count, taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct Use {
    table: InUse,
    peer: PeerId,
}

impl InUse {
    /// Counts one more stream.
    pub(crate) fn begin(&self, peer: PeerId) -> Use {
        self.change(peer, 1);
        Use {
            table: self.clone(),
            peer,
        }
    }

    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.contains_key(peer)
    }

    fn change(&self, peer: PeerId, by: isize) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(peer).or_insert(0);
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            table.remove(&peer);
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.table.change(self.peer, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_in_use_until_its_last_stream_is_gone() {
        let table = InUse::default();
        let peer = PeerId::random();

        let first = table.begin(peer);
        let second = table.begin(peer);
        assert!(table.contains(&peer));
        drop(first);
        assert!(table.contains(&peer));
        drop(second);

        assert!(!table.contains(&peer));
        assert!(table.0.lock().unwrap().is_empty());
    }
}
