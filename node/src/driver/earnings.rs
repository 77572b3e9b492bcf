//! What was earned and spent, from the same figures that leases and channels show one by one.

use bitmesh_wallet::keys::Role;

use super::Driver;
use super::views;
use super::words;
use crate::control::api;

impl Driver {
    pub(super) fn earnings_view(&self, since: Option<u64>) -> api::Earnings {
        let channels = self.payments.channels();
        let mut earnings = api::Earnings {
            selling: self.totals(Role::Payee),
            buying: self.totals(Role::Payer),
            leases: Vec::new(),
            channels: Vec::new(),
        };
        for channel in &channels {
            let settled = channel.settlement;
            let received = settled.map_or(0, |settlement| match channel.role {
                Role::Payer => settlement.returned.to_sat(),
                Role::Payee => settlement.received.to_sat(),
            });
            earnings.channels.push(api::EarningsChannel {
                channel: channel.id.clone(),
                role: views::channel_role(channel.role),
                peer: channel.peer.to_string(),
                state: views::channel_state(channel),
                capacity_sat: channel.capacity.to_sat(),
                paid_sat: channel.paid.to_sat(),
                received_sat: received,
                fees_sat: channel.fees.to_sat(),
            });
        }
        let since = since.map_or(0, |since| self.unix().secs().saturating_sub(since));
        let open = self.sessions.keys().filter_map(|id| self.lease_view(*id));
        let closed = self.closed.iter().map(views::closed_view);
        for lease in open
            .chain(closed)
            .filter(|lease| lease.opened_at.unix() >= since)
        {
            earnings.leases.push(api::EarningsLease {
                lease: lease.id,
                role: lease.role,
                peer: lease.peer,
                state: lease.state,
                bytes: lease
                    .reading
                    .up_bytes
                    .saturating_add(lease.reading.down_bytes),
                billed_msat: lease.billed_msat,
                paid_msat: lease.paid_msat.saturating_sub(lease.carried_msat),
                channel: lease.channel,
                opened_at: lease.opened_at,
            });
        }
        earnings
    }

    fn totals(&self, role: Role) -> api::Totals {
        let closed = self.closed.totals(role);
        let mut totals = api::Totals {
            bytes: closed.bytes.get(),
            billed_msat: closed.billed.msat(),
            leases: closed.leases,
            ..api::Totals::default()
        };
        for session in self
            .sessions
            .values()
            .filter(|session| session.role() == role)
        {
            totals.bytes = totals.bytes.saturating_add(session.reading().total().get());
            totals.billed_msat = totals.billed_msat.saturating_add(session.cost().msat());
            totals.leases = totals.leases.saturating_add(1);
        }
        for channel in self
            .payments
            .channels()
            .iter()
            .filter(|channel| channel.role == role)
        {
            let paid = channel.paid.to_sat();
            totals.paid_sat = totals.paid_sat.saturating_add(paid);
            totals.fees_sat = totals.fees_sat.saturating_add(channel.fees.to_sat());
            match channel.settlement {
                Some(settlement) => {
                    let received = match role {
                        Role::Payer => settlement.returned,
                        Role::Payee => settlement.received,
                    };
                    totals.received_sat = totals.received_sat.saturating_add(received.to_sat());
                }
                None => {
                    let open = match role {
                        Role::Payer => channel.locked().to_sat(),
                        Role::Payee => paid,
                    };
                    totals.open_sat = totals.open_sat.saturating_add(open);
                }
            }
        }
        totals
    }

    /// The other side's words for a role, for lists.
    pub(super) fn role_matches(role: Option<api::Role>, other: Role) -> bool {
        role.is_none_or(|role| role == words::role(other))
    }
}
