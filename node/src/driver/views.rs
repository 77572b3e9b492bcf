//! What the node shows of itself: its state in the words of the control API.

use std::sync::Arc;

use bitmesh_market::book::Ask;
use bitmesh_market::lease::{Lease, LeaseId};
use bitmesh_market::offer::Modes;
use bitmesh_market::quote::Mode;
use bitmesh_market::session::{Receipt, Signatures};
use bitmesh_market::time::UnixTime;
use bitmesh_wallet::keys::Role;

use super::Driver;
use super::closed::ClosedLease;
use super::selling::Phase;
use super::sessions::Session;
use super::words;
use crate::control::api;
use crate::payments::{ChannelStage, ChannelView};

impl Driver {
    pub(super) fn offer_view(&self, ask: &Arc<Ask>, now: UnixTime) -> api::Offer {
        let terms = ask.terms();
        let seller = ask.seller();
        let mut modes = Vec::new();
        if terms.modes.contains(Modes::PREPAID) {
            modes.push(api::Mode::Prepaid);
        }
        if terms.modes.contains(Modes::POSTPAID) {
            modes.push(api::Mode::Postpaid);
        }
        api::Offer {
            seller: seller.to_string(),
            price_msat_per_gb: terms.price.msat_per_gb(),
            rate_bytes_per_s: terms.rate.get(),
            min_bytes: terms.min_quota.get(),
            max_bytes: terms.max_quota.get(),
            modes,
            tunnels: terms.tunnels.names().map(str::to_owned).collect(),
            egress: terms.egress.to_string(),
            region: terms.region.map(|region| region.as_str().to_owned()),
            seen_at: words::moment(self.seen.get(&ask.id()).copied().unwrap_or(now)),
            expires_at: words::moment(ask.expiry()),
            connected: self.connected.contains_key(&seller),
            channel_open: self
                .payments
                .channel_in_use(Role::Payer, seller)
                .is_some_and(|channel| channel.stage == ChannelStage::Open),
        }
    }

    pub(super) fn selling_view(&self) -> api::Selling {
        let sell = &self.config.sell;
        let price = sell.price.msat_per_gb();
        api::Selling {
            phase: match self.selling.phase {
                Phase::Stopped => api::SellPhase::Stopped,
                Phase::Offering => api::SellPhase::Offering,
                Phase::Paused => api::SellPhase::Paused,
            },
            rule: api::PriceRule::Fixed {
                price_msat_per_gb: price,
            },
            price_msat_per_gb: price,
            limits: api::SellLimits {
                rate_bytes_per_s: Some(sell.total_rate.get()),
                lease_rate_bytes_per_s: Some(sell.rate.get()),
                leases: Some(u32::from(sell.max_leases)),
                lease_bytes: Some(sell.max_quota.get()),
                postpaid: Some(sell.postpaid),
            },
            leases: u32::try_from(self.serving()).unwrap_or(u32::MAX),
            rate_bytes_per_s: self
                .sessions
                .values()
                .filter(|session| session.role() == Role::Payee)
                .map(|session| session.speed.bytes_per_s)
                .fold(0, u64::saturating_add),
            visible_to: u32::try_from(self.selling.visible_to).unwrap_or(u32::MAX),
            offer_expires_at: self.selling.expires.map(words::moment),
        }
    }

    /// A lease, open or closed.
    pub(super) fn lease_view(&self, id: LeaseId) -> Option<api::Lease> {
        match self.sessions.get(&id) {
            Some(session) => Some(self.open_lease_view(id, session)),
            None => self.closed.get(id).map(closed_lease_view),
        }
    }

    fn open_lease_view(&self, id: LeaseId, session: &Session) -> api::Lease {
        let role = session.role();
        let state = lease_state(session);
        let channel = self.payments.channel_in_use(role, session.peer);
        let reason = session
            .paused()
            .filter(|_| state != api::LeaseState::Opening);
        let mut view = bare_lease_view(session.lease(), role, session.opened_at);
        view.id = id.to_string();
        view.state = state;
        view.reason = reason.map(|reason| words::paused(reason, role));
        view.quota_bytes = session.quota().get();
        view.reading = reading_view(session.reading());
        view.billed_msat = session.cost().msat();
        view.paid_msat = session.paid().msat();
        view.receipt = session.receipt().map(|receipt| {
            let is_cosigned = session
                .receipted
                .is_some_and(|both| both.agrees_with(&receipt));
            receipt_view(receipt, is_cosigned)
        });
        view.speed_bytes_per_s = session.speed.bytes_per_s;
        view.proxy = session.proxy().map(|proxy| proxy.to_string());
        view.channel = channel.map(|channel| channel.id);
        view
    }

    pub(super) fn usage_line(&self, id: LeaseId) -> Option<api::UsageLine> {
        let session = self.sessions.get(&id)?;
        Some(api::UsageLine {
            lease: id.to_string(),
            role: words::role(session.role()),
            peer: session.peer.to_string(),
            state: lease_state(session),
            reading: reading_view(session.reading()),
            quota_bytes: session.quota().get(),
            billed_msat: session.cost().msat(),
            paid_msat: session.paid().msat(),
            speed_bytes_per_s: session.speed.bytes_per_s,
        })
    }

    pub(super) fn channel_view(&self, view: &ChannelView) -> api::Channel {
        let height = self.chain_tip.map_or(0, |tip| tip.block.height);
        let confirmations = view
            .funding
            .and_then(|outpoint| self.watched.get(&outpoint))
            .map_or(0, |watched| watched.confirmations);
        let (paid, capacity) = (view.paid.to_sat(), view.capacity.to_sat());
        let settled = view.settlement;
        api::Channel {
            id: view.id.clone(),
            role: channel_role(view.role),
            peer: view.peer.to_string(),
            state: channel_state(view),
            reason: channel_reason(view).or_else(|| self.waiting_reason(view)),
            capacity_sat: capacity,
            paid_sat: paid,
            remaining_sat: capacity.saturating_sub(paid),
            credit_msat: view.credit.msat(),
            exposure_limit_sat: view.limit.map(bitcoin::Amount::to_sat),
            funding: view.funding.map(|outpoint| outpoint.to_string()),
            confirmations,
            expiry_height: view.expiry,
            expires_in_blocks: view.expiry.saturating_sub(height),
            steps: self
                .payments
                .steps(view)
                .into_iter()
                .map(|step| words::channel_step(view.role, step, height))
                .collect(),
            refund: (view.role == Role::Payer && settled.is_none()).then_some(api::Refund {
                amount_sat: capacity,
                due: height > 0 && height >= view.expiry,
                txid: view
                    .ending
                    .filter(|_| view.stage == ChannelStage::Refunding)
                    .map(|txid| txid.to_string()),
            }),
            carried_from: view.carried_from.clone(),
            carried_into: view.carried_into.clone(),
            closing_txid: settled
                .map(|settlement| settlement.txid)
                .or(view.ending)
                .map(|txid| txid.to_string()),
            fees_sat: view.fees.to_sat(),
            opened_at: words::moment(view.opened_at),
        }
    }

    fn waiting_reason(&self, view: &ChannelView) -> Option<api::Reason> {
        let waiting = self.payments.waiting(view.proposal)?;
        Some(api::Reason {
            code: "close_waits".to_owned(),
            message: format!(
                "closing would cost {} of {} sat at {} sat/vB; it waits until that is at most half",
                waiting.fee.to_sat(),
                waiting.total.to_sat(),
                waiting.feerate,
            ),
            hint: Some(
                "it is looked at with every block; \"bitmesh channels close\" with --feerate closes \
                 it at a rate of your own"
                    .to_owned(),
            ),
        })
    }

    pub(super) fn balance_view(&self) -> api::Balance {
        let balance = self.wallet.balance();
        let (locked, claimable) = self.payments.at_stake();
        api::Balance {
            confirmed_sat: balance.confirmed.to_sat(),
            pending_sat: (balance.pending + balance.immature).to_sat(),
            locked_sat: locked.to_sat(),
            claimable_sat: claimable.to_sat(),
        }
    }

    pub(super) fn chain_view(&self) -> api::Chain {
        let tip = self.wallet.tip();
        api::Chain {
            source: self.source_name.clone(),
            connected: self.chain_tip.is_some() && self.chain_trouble.is_none(),
            height: tip.height,
            source_height: self.chain_tip.map_or(0, |tip| tip.headers),
            tip: tip.hash.to_string(),
            synced: self.is_synced(),
            feerate_sat_per_kvb: self.feerate.map(|rate| rate.saturating_mul(1_000)),
            problem: self.chain_trouble.as_ref().map(|message| api::Reason {
                code: "chain_unreachable".to_owned(),
                message: message.clone(),
                hint: Some(format!(
                    "check chain.{} in the configuration; it is being asked again",
                    self.config.chain.leads(self.network)
                )),
            }),
        }
    }

    pub(super) fn status_view(&self) -> api::Status {
        let mut problems = Vec::new();
        problems.extend(self.chain_view().problem);
        if self.chain_tip.is_none() && self.chain_trouble.is_none() {
            problems.push(api::Reason {
                code: "chain_starting".to_owned(),
                message: "the chain source has not answered yet".to_owned(),
                hint: None,
            });
        }
        let count = |role| {
            let leases = self
                .sessions
                .values()
                .filter(|session| session.role() == role);
            u32::try_from(leases.count()).unwrap_or(u32::MAX)
        };
        let paused = self
            .sessions
            .values()
            .filter(|session| session.paused().is_some())
            .count();
        let (earned, spent) = self.payments.paid_totals();
        let others = self
            .book
            .asks()
            .filter(|ask| ask.seller() != self.node)
            .count();
        let outstanding = self
            .sessions
            .values()
            .filter(|session| session.role() == Role::Payee)
            .map(|session| session.cost().saturating_sub(session.paid()).msat())
            .fold(0, u64::saturating_add);
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            network: self.network.to_string(),
            node: self.node.to_string(),
            datadir: self.datadir.display().to_string(),
            pid: std::process::id(),
            uptime_s: self
                .clock
                .now()
                .saturating_duration_since(self.started)
                .as_secs(),
            healthy: problems.is_empty(),
            problems,
            peers: u32::try_from(self.connected.len()).unwrap_or(u32::MAX),
            offers: u32::try_from(others).unwrap_or(u32::MAX),
            selling: self.selling_view(),
            leases: api::LeaseCounts {
                selling: count(Role::Payee),
                buying: count(Role::Payer),
                paused: u32::try_from(paused).unwrap_or(u32::MAX),
            },
            proxy: self
                .sessions
                .values()
                .find_map(Session::proxy)
                .map(|proxy| proxy.to_string()),
            earned_msat: earned.msat(),
            spent_msat: spent.msat(),
            outstanding_msat: outstanding,
            wallet: self.balance_view(),
            chain: self.chain_view(),
        }
    }

    /// Sends watchers the usage of every session that moved.
    pub(super) fn tell_usage(&mut self, now: std::time::Instant) {
        let ids: Vec<_> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            let moved = session.tick(now);
            if moved {
                let usage = self.usage_line(id);
                self.tell(usage.map(|usage| api::Event::Usage { usage }));
            }
        }
    }
}

fn lease_state(session: &Session) -> api::LeaseState {
    if session.ending().is_some() {
        api::LeaseState::Closed
    } else if session.is_closing() {
        api::LeaseState::Closing
    } else if !session.was_attached() {
        api::LeaseState::Opening
    } else if !session.is_attached() {
        api::LeaseState::Detached
    } else if session.paused().is_some() {
        api::LeaseState::Paused
    } else {
        api::LeaseState::Active
    }
}

fn bare_lease_view(lease: &Lease, role: Role, opened_at: UnixTime) -> api::Lease {
    api::Lease {
        id: lease.id().to_string(),
        role: words::role(role),
        peer: super::sessions::other_side(lease, role).to_string(),
        state: api::LeaseState::Closed,
        reason: None,
        mode: match lease.mode() {
            Mode::Prepaid => api::Mode::Prepaid,
            Mode::Postpaid => api::Mode::Postpaid,
        },
        price_msat_per_gb: lease.price().msat_per_gb(),
        rate_bytes_per_s: lease.rate().get(),
        window_bytes: lease.window().get(),
        quota_bytes: lease.quota().get(),
        reading: api::Reading::default(),
        billed_msat: 0,
        paid_msat: 0,
        carried_msat: lease.carried().msat(),
        receipt: None,
        speed_bytes_per_s: 0,
        proxy: None,
        channel: None,
        opened_at: words::moment(opened_at),
        ends_at: Some(words::moment(lease.until())),
        closed_at: None,
    }
}

fn closed_lease_view(closed: &ClosedLease) -> api::Lease {
    let mut view = bare_lease_view(&closed.lease, closed.role, closed.opened_at);
    let is_cosigned = closed.ending.signatures == Signatures::Both;
    view.reason = Some(words::closed(closed.ending.reason));
    view.billed_msat = closed.ending.billed().msat();
    view.channel = closed.channel.clone();
    view.quota_bytes = closed.quota.get();
    if let Some(receipt) = closed.ending.receipt {
        view.reading = reading_view(receipt.reading);
        view.paid_msat = receipt.paid.msat();
        view.receipt = Some(receipt_view(receipt, is_cosigned));
    }
    view
}

pub(super) fn closed_view(closed: &ClosedLease) -> api::Lease {
    closed_lease_view(closed)
}

fn reading_view(reading: bitmesh_market::session::Reading) -> api::Reading {
    api::Reading {
        up_bytes: reading.up.get(),
        down_bytes: reading.down.get(),
    }
}

fn receipt_view(receipt: Receipt, is_cosigned: bool) -> api::Receipt {
    api::Receipt {
        seq: receipt.seq,
        reading: reading_view(receipt.reading),
        billed_msat: receipt.billed.msat(),
        paid_msat: receipt.paid.msat(),
        cosigned: is_cosigned,
    }
}

pub(super) fn channel_role(role: Role) -> api::ChannelRole {
    match role {
        Role::Payer => api::ChannelRole::Payer,
        Role::Payee => api::ChannelRole::Payee,
    }
}

pub(super) fn channel_state(view: &ChannelView) -> api::ChannelState {
    match view.stage {
        ChannelStage::Opening => api::ChannelState::Opening,
        ChannelStage::Unconfirmed => api::ChannelState::Unconfirmed,
        ChannelStage::Open => api::ChannelState::Open,
        ChannelStage::Closing => api::ChannelState::Closing,
        ChannelStage::Refunding => api::ChannelState::Refunding,
        ChannelStage::Closed | ChannelStage::Abandoned => api::ChannelState::Closed,
        ChannelStage::Conflicted => api::ChannelState::Conflicted,
    }
}

fn channel_reason(view: &ChannelView) -> Option<api::Reason> {
    let (code, message) = match view.stage {
        ChannelStage::Abandoned => ("abandoned", "nothing came of it; no money was in it"),
        ChannelStage::Conflicted => (
            "conflicted",
            "the funding is being replaced or was lost; nothing is paid",
        ),
        ChannelStage::Unconfirmed | ChannelStage::Open if view.is_adopted => (
            "found_on_chain",
            "found by the words, its records lost; what its seller does not claim is taken back \
             after the expiry",
        ),
        ChannelStage::Opening
        | ChannelStage::Unconfirmed
        | ChannelStage::Open
        | ChannelStage::Closing
        | ChannelStage::Refunding
        | ChannelStage::Closed => return None,
    };
    Some(api::Reason {
        code: code.to_owned(),
        message: message.to_owned(),
        hint: None,
    })
}
