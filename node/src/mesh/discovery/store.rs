//! What this node keeps for the hash table: which nodes are in which cells, and nothing else.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Instant;

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};

/// Cells kept for others. A cell is some 40 km wide; a node is near the keys of a few.
const MAX_CELLS: usize = 512;

/// Nodes kept for one cell: one answer's worth.
const MAX_PER_CELL: usize = 20;

/// Cells one node may be kept in: its own and the eight around it, and some regions.
const MAX_PER_NODE: u32 = 16;

/// Nodes by cell.
///
/// Invariant: `per_node` counts what `cells` holds of others. At most [`MAX_CELLS`] ×
/// [`MAX_PER_CELL`] entries of others; this node's own are bounded by its commands.
#[derive(Debug)]
pub(crate) struct CellStore {
    local: PeerId,
    cells: HashMap<RecordKey, Vec<ProviderRecord>>,
    per_node: HashMap<PeerId, u32>,
}

impl CellStore {
    pub(crate) fn new(local: PeerId) -> Self {
        Self {
            local,
            cells: HashMap::new(),
            per_node: HashMap::new(),
        }
    }

    /// Takes what another node said about itself. Its key and addresses have been checked.
    ///
    /// # Errors
    ///
    /// [`Error::MaxProvidedKeys`] if there is no room; nothing changed but that what had expired is
    /// gone.
    pub(crate) fn add_other(&mut self, record: ProviderRecord, now: Instant) -> Result<()> {
        if record.provider == self.local {
            return Ok(());
        }
        if let Some(known) = self
            .cells
            .get_mut(&record.key)
            .and_then(|cell| cell.iter_mut().find(|known| **known == record))
        {
            *known = record;
            return Ok(());
        }
        let is_full = |store: &Self| {
            let cell = store.cells.get(&record.key);
            cell.map_or(store.cells.len() >= MAX_CELLS, |cell| {
                cell.len() >= MAX_PER_CELL
            }) || store.per_node.get(&record.provider).copied().unwrap_or(0) >= MAX_PER_NODE
        };
        if is_full(self) {
            self.sweep(now);
        }
        if is_full(self) {
            return Err(Error::MaxProvidedKeys);
        }
        let count = self.per_node.entry(record.provider).or_insert(0);
        *count = count.saturating_add(1);
        self.cells
            .entry(record.key.clone())
            .or_default()
            .push(record);
        Ok(())
    }

    fn sweep(&mut self, now: Instant) {
        let Self {
            cells, per_node, ..
        } = self;
        cells.retain(|_, cell| {
            cell.retain(|record| {
                let expired = record.is_expired(now);
                if expired {
                    subtract(per_node, &record.provider);
                }
                !expired
            });
            !cell.is_empty()
        });
    }
}

fn subtract(per_node: &mut HashMap<PeerId, u32>, peer: &PeerId) {
    if let Some(count) = per_node.get_mut(peer) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            per_node.remove(peer);
        }
    }
}

impl RecordStore for CellStore {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    /// Takes what this node says about itself; for others see [`add_other`](Self::add_other).
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider != self.local {
            return Err(Error::MaxProvidedKeys);
        }
        let cell = self.cells.entry(record.key.clone()).or_default();
        cell.retain(|known| known.provider != record.provider);
        cell.push(record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.cells.get(key).cloned().unwrap_or_default()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let provided: Vec<_> = self
            .cells
            .values()
            .flatten()
            .filter(|record| record.provider == self.local)
            .map(Cow::Borrowed)
            .collect();
        provided.into_iter()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        let Some(cell) = self.cells.get_mut(key) else {
            return;
        };
        let before = cell.len();
        cell.retain(|record| record.provider != *peer);
        if cell.len() < before && *peer != self.local {
            subtract(&mut self.per_node, peer);
        }
        if cell.is_empty() {
            self.cells.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn epoch() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        Instant::now()
    }

    fn record(cell: usize, provider: PeerId, now: Instant) -> ProviderRecord {
        let key = RecordKey::new(&format!("cell-{cell}"));
        let mut record = ProviderRecord::new(key, provider, Vec::new());
        record.expires = Some(now + TTL);
        record
    }

    fn store() -> CellStore {
        CellStore::new(PeerId::random())
    }

    #[test]
    fn one_node_cannot_fill_the_store_and_many_cannot_fill_it_for_ever() {
        let mut store = store();
        let now = epoch();
        let greedy = PeerId::random();
        let taken = (0..100)
            .filter(|cell| store.add_other(record(*cell, greedy, now), now).is_ok())
            .count();
        assert_eq!(taken, usize::try_from(MAX_PER_NODE).unwrap());

        for cell in 0..2 * MAX_CELLS {
            let _ = store.add_other(record(cell, PeerId::random(), now), now);
        }
        assert_eq!(store.cells.len(), MAX_CELLS);
        let honest = PeerId::random();
        assert!(store.add_other(record(9999, honest, now), now).is_err());

        let later = now + TTL + Duration::from_secs(1);
        assert!(store.add_other(record(9999, honest, later), later).is_ok());
        assert_eq!(store.cells.len(), 1);
        assert_eq!(store.per_node.len(), 1);
    }

    #[test]
    fn a_cell_holds_one_answers_worth_and_a_node_once() {
        let mut store = store();
        let now = epoch();
        let first = PeerId::random();
        store.add_other(record(1, first, now), now).unwrap();
        store.add_other(record(1, first, now), now).unwrap();
        assert_eq!(store.providers(&RecordKey::new(b"cell-1")).len(), 1);

        for _ in 0..50 {
            let _ = store.add_other(record(1, PeerId::random(), now), now);
        }

        let held = store.providers(&RecordKey::new(b"cell-1"));
        assert_eq!(held.len(), MAX_PER_CELL);
        assert!(held.iter().any(|record| record.provider == first));
        // Who is known stays fresh even if the cell is full.
        let later = now + TTL / 2;
        assert!(store.add_other(record(1, first, later), later).is_ok());
    }

    #[test]
    fn this_nodes_own_cells_are_told_apart() {
        let mut store = store();
        let now = epoch();
        let local = store.local;
        store.add_provider(record(1, local, now)).unwrap();
        store
            .add_other(record(1, PeerId::random(), now), now)
            .unwrap();
        store.add_other(record(2, local, now), now).unwrap();

        assert_eq!(store.provided().count(), 1);
        assert_eq!(store.providers(&RecordKey::new(b"cell-1")).len(), 2);
        store.remove_provider(&RecordKey::new(b"cell-1"), &local);
        assert_eq!(store.provided().count(), 0);
        assert_eq!(store.providers(&RecordKey::new(b"cell-1")).len(), 1);
    }

    #[test]
    fn values_are_never_kept() {
        let mut store = store();

        assert!(store.put(Record::new(b"key".to_vec(), vec![1])).is_err());
        assert_eq!(store.records().count(), 0);
    }
}
