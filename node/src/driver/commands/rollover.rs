//! Carrying channels over into the next: when an operator wants it, and by itself as the expiry comes near.

use bitcoin::Amount;
use bitmesh_market::identity::NodeId;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::record::Settlement;
use bitmesh_wallet::keys::Role;
use rand::RngExt;
use tracing::{info, warn};

use super::super::Driver;
use super::Answer;
use super::coins::Handed;
use crate::control::api;
use crate::control::error::resolve;
use crate::control::{ApiError, ErrorCode};
use crate::payments::{ChannelView, PaymentsError, RolloverError, RolloverFailure, Wish};

/// How long after its last lease a buyer still trades with a seller: a week covers who comes back each
/// weekend. Whoever comes later opens a channel anew, for the same fee.
const TRADES_FOR_S: u64 = 7 * 24 * 60 * 60;

/// How many times its own estimate of a first payment a buyer is ready to agree to, as in a purchase.
const FIRST_TOLERANCE: u64 = 2;

/// Somebody waits for a channel to be carried over.
#[derive(Debug)]
pub(in crate::driver) struct Rolling {
    channel: ProposalId,
    answer: Answer,
}

impl Driver {
    /// Buyer: carries a channel over with its seller.
    pub(super) fn roll_over_asked(&mut self, wanted: &api::RolloverChannel, answer: Answer) {
        match self.begin_rollover(wanted) {
            Ok(Begun::Asked(rolled)) => {
                let _ = answer.send(Ok(rolled.into()));
            }
            Ok(Begun::Rolling(channel)) => {
                self.rolling.push(Rolling { channel, answer });
                self.drain_payments();
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    fn begin_rollover(&mut self, wanted: &api::RolloverChannel) -> Result<Begun, ApiError> {
        let view = self.find_rollable(&wanted.channel)?;
        let capacity = wanted.capacity_sat.map(Amount::from_sat);
        if wanted.dry_run {
            let may = self.payments.may_roll_over(view.proposal, capacity);
            let (_, capacity) = may.map_err(|error| refused(&error))?;
            return Ok(Begun::Asked(plan(&view, capacity)));
        }
        self.roll_over(view.proposal, capacity, wanted.feerate_sat_per_kvb)?;
        Ok(Begun::Rolling(view.proposal))
    }

    fn roll_over(
        &mut self,
        channel: ProposalId,
        capacity: Option<Amount>,
        feerate_sat_per_kvb: Option<u64>,
    ) -> Result<(), ApiError> {
        // Before a script of the wallet is given out for it.
        self.payments
            .may_roll_over(channel, capacity)
            .map_err(|error| refused(&error))?;
        let change_script = self
            .wallet
            .change_script()
            .map_err(|error| ApiError::failure(error.to_string()))?;
        let first = self.payments.first_payment().sat_ceil();
        let wish = Wish {
            capacity,
            feerate: self.feerate_of(feerate_sat_per_kvb),
            max_min_first: Amount::from_sat(first.saturating_mul(FIRST_TOLERANCE)),
            change_script,
            nonce: rand::rng().random(),
        };
        let now = self.clock.now();
        self.payments
            .roll_over(channel, wish, now)
            .map_err(|error| refused(&error))?;
        Ok(())
    }

    /// A channel by its id, or the one in use with a seller by the seller's.
    fn find_rollable(&self, wanted: &str) -> Result<ChannelView, ApiError> {
        let no_channel = match self.find_channel(wanted) {
            Ok(view) => return Ok(view),
            Err(error) => error,
        };
        let channels = self.payments.channels();
        let mut sellers: Vec<String> = channels
            .iter()
            .filter(|view| view.role == Role::Payer && !view.is_adopted)
            .map(|view| view.peer.to_string())
            .collect();
        sellers.sort();
        sellers.dedup();
        let Ok(seller) = resolve("seller", sellers.iter().map(String::as_str), wanted) else {
            return Err(no_channel);
        };
        let view = channels.iter().find(|view| view.peer.to_string() == seller);
        view.and_then(|view| self.payments.channel_in_use(Role::Payer, view.peer))
            .ok_or(no_channel)
    }

    /// Buyer: the expiry comes near. The channel is carried over if this node still trades with the
    /// seller; else it runs out, and what is left comes back when the seller closes it.
    pub(in crate::driver) fn rollover_due(&mut self, channel: ProposalId, seller: NodeId) {
        let may = self.config.payments.carry_over && self.trades_with(seller);
        if !may || !self.connected.contains_key(&seller) {
            return;
        }
        info!(%channel, "the expiry comes near; carrying the channel over into a new one");
        self.payments.rollover_tried(channel);
        if let Err(error) = self.roll_over(channel, None, None) {
            warn!(%channel, error = error.message, "the channel is not carried over");
        }
    }

    /// Whether a lease with this seller is open, or one began within the last days.
    pub(in crate::driver) fn trades_with(&self, seller: NodeId) -> bool {
        let mut open = self.sessions.values();
        if open.any(|session| session.role() == Role::Payer && session.peer == seller) {
            return true;
        }
        let now = self.unix().secs();
        let mut closed = self.closed.iter();
        closed.any(|closed| {
            closed.role == Role::Payer
                && closed.lease.seller() == seller
                && now.saturating_sub(closed.opened_at.secs()) < TRADES_FOR_S
        })
    }

    /// Buyer: the seller agreed to the next channel.
    pub(in crate::driver) fn rollover_agreed(&mut self, channel: ProposalId) {
        let (seed, now) = (rand::rng().random(), self.clock.now());
        self.payments.carry_over(channel, seed, now);
    }

    /// Buyer: it is signed by both and on its way. Whoever waits for it is told.
    pub(in crate::driver) fn rolled_over(&mut self, channel: ProposalId, next: ProposalId) {
        let waiting = self.rolling.extract_if(.., |it| it.channel == channel);
        let waiting: Vec<_> = waiting.collect();
        let (Some(view), Some(next)) =
            (self.payments.channel(channel), self.payments.channel(next))
        else {
            return;
        };
        let txid = next.funding.map(|funding| funding.txid);
        let rolled = api::ChannelRolledOver {
            next: Some(next.id.clone()),
            txid: txid.map(|txid| txid.to_string()),
            expiry_height: Some(next.expiry),
            ..plan(&view, next.capacity)
        };
        for Rolling { answer, .. } in waiting {
            let handed = Handed::RolledOver(rolled.clone());
            self.answer_handed(Ok((txid, handed)), answer);
        }
    }

    /// Buyer: it came to nothing.
    pub(in crate::driver) fn rollover_failed(
        &mut self,
        channel: ProposalId,
        failure: RolloverFailure,
    ) {
        warn!(%channel, %failure, "the channel is not carried over; it is used as before");
        for Rolling { answer, .. } in self.rolling.extract_if(.., |it| it.channel == channel) {
            let error = ApiError::new(
                ErrorCode::Refused,
                format!("the channel was not carried over: {failure}"),
                "nothing was broadcast and nothing is lost: the channel is used as before, and what is \
                 left in it comes back when the seller closes it",
            );
            let _ = answer.send(Err(error));
        }
    }
}

/// How a wish to carry over goes on.
enum Begun {
    /// It was only asked what would come of it.
    Asked(api::ChannelRolledOver),
    Rolling(ProposalId),
}

fn plan(view: &ChannelView, capacity: Amount) -> api::ChannelRolledOver {
    let rest = view.settlement.map_or_else(
        || view.capacity.checked_sub(view.paid),
        |Settlement { returned, .. }| Some(returned),
    );
    let change = rest.and_then(|rest| rest.checked_sub(capacity));
    api::ChannelRolledOver {
        channel: view.id.clone(),
        next: None,
        txid: None,
        settled_sat: view.paid.to_sat(),
        capacity_sat: capacity.to_sat(),
        change_sat: change.unwrap_or(Amount::ZERO).to_sat(),
        expiry_height: None,
        broadcast: false,
    }
}

fn refused(error: &PaymentsError) -> ApiError {
    let hint = match error {
        PaymentsError::Rollover(RolloverError::NotPayer) => {
            "ask the buyer; or take what you were paid with \"bitmesh channels close\""
        }
        PaymentsError::Rollover(RolloverError::Unpaid) => {
            "it can be used as it is; nothing was changed"
        }
        PaymentsError::Rollover(RolloverError::Capacity { .. }) => {
            "leave --capacity out to carry everything over; for more, \"bitmesh channels topup\" opens a \
             further channel from coins"
        }
        PaymentsError::Opening => {
            "nothing was changed; ask again when that channel is made, in a few seconds"
        }
        PaymentsError::Rollover(
            RolloverError::NotOpen | RolloverError::NoPeer | RolloverError::Already,
        )
        | PaymentsError::Unknown
        | PaymentsError::NoTip
        | PaymentsError::NoKey
        | PaymentsError::TooMany
        | PaymentsError::Payer(_)
        | PaymentsError::Payee(_)
        | PaymentsError::Batch(_) => {
            "nothing was changed; \"bitmesh channels show\" says where it stands"
        }
    };
    ApiError::new(ErrorCode::Conflict, error.to_string(), hint)
}
