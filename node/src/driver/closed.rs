//! What is left of leases that are over: the figures, for those who ask.

use std::collections::BTreeMap;

use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::session::Ending;
use bitmesh_market::time::UnixTime;
use bitmesh_market::units::{Bytes, Msat};
use bitmesh_wallet::keys::Role;

/// Leases remembered one by one. Older ones stay in the totals; a thousand is a month of a busy spot.
const REMEMBERED: usize = 1_000;

/// One lease that is over.
#[derive(Clone, Debug)]
pub(super) struct ClosedLease {
    pub(super) lease: Lease,
    pub(super) role: Role,
    pub(super) opened_at: UnixTime,
    /// With its extensions.
    pub(super) quota: Bytes,
    pub(super) ending: Ending,
    /// The channel that was in use when it ended.
    pub(super) channel: Option<String>,
}

/// Totals of all leases of one role that are over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClosedTotals {
    pub(super) bytes: Bytes,
    pub(super) billed: Msat,
    pub(super) leases: u32,
}

/// All leases that are over.
#[derive(Debug, Default)]
pub(super) struct Closed {
    leases: BTreeMap<LeaseId, ClosedLease>,
    order: std::collections::VecDeque<LeaseId>,
    bought: ClosedTotals,
    sold: ClosedTotals,
}

impl Closed {
    pub(super) fn add(&mut self, closed: ClosedLease) {
        let totals = match closed.role {
            Role::Payer => &mut self.bought,
            Role::Payee => &mut self.sold,
        };
        let ending = closed.ending;
        let bytes = ending
            .receipt
            .map_or(Bytes::ZERO, |receipt| receipt.reading.total());
        totals.bytes = totals.bytes.saturating_add(bytes);
        totals.billed = totals.billed.saturating_add(ending.billed());
        totals.leases = totals.leases.saturating_add(1);
        let id = closed.lease.id();
        self.order.push_back(id);
        self.leases.insert(id, closed);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.leases.remove(&oldest);
        }
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&ClosedLease> {
        self.leases.get(&id)
    }

    /// Newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ClosedLease> {
        self.order.iter().rev().filter_map(|id| self.leases.get(id))
    }

    pub(super) fn totals(&self, role: Role) -> ClosedTotals {
        match role {
            Role::Payer => self.bought,
            Role::Payee => self.sold,
        }
    }
}
