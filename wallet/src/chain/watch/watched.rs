//! What is known of one watched output.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use serde::{Deserialize, Serialize};

use super::{REPORTED_CONFIRMATIONS, WatchEvent};

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    Mempool,
    Block(u32),
}

/// One output and what is known of it.
///
/// Invariant: if `funding` is set there are no `conflicts`; with neither, the last that was heard
/// is that all of them are gone, or nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Watched {
    pub(super) script: ScriptBuf,
    pub(super) inputs: Vec<OutPoint>,
    pub(super) funding: Option<Place>,
    /// What spends an input of the funding transaction in its place. No more than one for each
    /// input at a time: a source tells what is replaced as evicted.
    pub(super) conflicts: BTreeMap<Txid, Place>,
    pub(super) spend: Option<(Arc<Transaction>, Place)>,
}

impl Watched {
    /// What is to be told of the funding; nothing while nothing is known.
    pub(super) fn standing(&self, outpoint: OutPoint, tip: u32) -> Option<WatchEvent> {
        let depth = |place: Place| match place {
            Place::Mempool => 0,
            Place::Block(height) => tip.saturating_sub(height).saturating_add(1),
        };
        match self.funding {
            Some(Place::Mempool) => Some(WatchEvent::Seen { outpoint }),
            Some(place) => Some(WatchEvent::Depth {
                outpoint,
                confirmations: depth(place),
            }),
            None => {
                let (by, place) = self.deepest_conflict()?;
                Some(WatchEvent::Conflicted {
                    outpoint,
                    by,
                    confirmations: depth(place),
                })
            }
        }
    }

    fn deepest_conflict(&self) -> Option<(Txid, Place)> {
        let height = |place: Place| match place {
            Place::Block(height) => height,
            Place::Mempool => u32::MAX,
        };
        self.conflicts
            .iter()
            .map(|(txid, place)| (*txid, *place))
            .min_by_key(|(_, place)| height(*place))
    }

    /// The block in which the funding was decided, one way or the other.
    pub(super) fn height(&self) -> Option<u32> {
        match self.funding.or_else(|| Some(self.deepest_conflict()?.1)) {
            Some(Place::Block(height)) => Some(height),
            Some(Place::Mempool) | None => None,
        }
    }

    /// Whether its depth is still told.
    pub(super) fn is_shallow(&self, tip: u32) -> bool {
        self.height()
            .is_none_or(|height| tip.saturating_sub(height) < REPORTED_CONFIRMATIONS)
    }

    pub(super) fn spending(&self, outpoint: OutPoint) -> Option<WatchEvent> {
        let (transaction, place) = self.spend.as_ref()?;
        let height = match place {
            Place::Mempool => None,
            Place::Block(height) => Some(*height),
        };
        Some(WatchEvent::Spent {
            outpoint,
            transaction: Arc::clone(transaction),
            height,
        })
    }

    /// Returns whether that is news. The mempool never overrules a block.
    pub(super) fn take_funding(&mut self, place: Place) -> bool {
        if self.funding == Some(place) || (place == Place::Mempool && self.height().is_some()) {
            return false;
        }
        self.funding = Some(place);
        self.conflicts.clear();
        true
    }

    /// Returns whether that changes what is to be told.
    pub(super) fn take_conflict(&mut self, txid: Txid, place: Place) -> bool {
        let stands_in_block = |place: Option<Place>| matches!(place, Some(Place::Block(_)));
        if place == Place::Mempool
            && (stands_in_block(self.funding)
                || stands_in_block(self.conflicts.get(&txid).copied()))
        {
            return false;
        }
        let before = (self.funding, self.deepest_conflict());
        self.funding = None;
        self.conflicts.insert(txid, place);
        before != (self.funding, self.deepest_conflict())
    }

    /// Returns whether that is news. The mempool never overrules a block.
    pub(super) fn take_spend(&mut self, transaction: &Transaction, place: Place) -> bool {
        if let Some((known, at)) = &self.spend {
            let is_same = *at == place && **known == *transaction;
            if is_same || (place == Place::Mempool && matches!(at, Place::Block(_))) {
                return false;
            }
        }
        self.spend = Some((Arc::new(transaction.clone()), place));
        true
    }
}
