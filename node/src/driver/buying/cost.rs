//! What a purchase costs in all, and whether the wallet has it.

use bitcoin::Amount;
use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::NodeId;
use bitmesh_market::quote::Quote;
use bitmesh_market::units::{Bytes, Msat};
use bitmesh_wallet::channel::tx::LifeCycle;
use bitmesh_wallet::channel::{params, tx};
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::onchain::SpendError;

use super::super::Driver;
use super::gone;
use crate::control::api::{self, Reply};
use crate::control::{ApiError, ErrorCode};
use crate::viability::{self, HIGH_PPM, LOW_PPM};

/// Room in a new channel beyond what the purchase needs, in percent: for an extension or two.
const CAPACITY_SPARE: u64 = 50;

impl Driver {
    /// What a quote costs in all, from opening a channel to closing it.
    pub(super) fn cost_of(
        &mut self,
        quote: &Signed<Quote>,
        quota: Bytes,
        is_dry_run: bool,
    ) -> Result<api::Cost, ApiError> {
        let (seller, quote) = (quote.signer(), quote.content());
        let traffic = quote.price.cost_of(quota).unwrap_or(Msat::MAX);
        let most = quote.effective_cost(quota).unwrap_or(Msat::MAX);
        let feerate = self.payments.feerate();
        let life = LifeCycle::estimate(feerate);
        let (close, refund) =
            life.map_or((0, 0), |life| (life.close.to_sat(), life.refund.to_sat()));
        let mut cost = api::Cost {
            traffic_msat: traffic.msat(),
            most_msat: most.msat(),
            close_fee_sat: close,
            refund_fee_sat: refund,
            feerate_sat_per_kvb: feerate.to_sat_per_kwu().saturating_mul(4),
            ..api::Cost::default()
        };
        // What the seller carries over as paid needs no channel.
        let fresh = traffic.saturating_sub(quote.carried);
        if fresh.is_zero() {
            return Ok(cost);
        }
        // A channel that was opened ahead is begun with its first payment.
        let first = Msat::from_sat(self.payments.first_due(seller).to_sat()).unwrap_or(Msat::MAX);
        let most = most.max(first);
        cost.most_msat = most.msat();
        if quote.min_first.is_zero() && self.payments.has_room(seller, traffic) {
            return Ok(cost);
        }
        let room = Msat::from_sat(self.payments.room_to_pay(seller).to_sat()).unwrap_or(Msat::MAX);
        let needed = most.max(traffic).saturating_sub(room).max(quote.min_first);
        let needed = needed.sat_ceil();
        let wanted = needed
            .saturating_add(needed.saturating_mul(CAPACITY_SPARE) / 100)
            .max(self.config.payments.capacity_sat);
        let (needed, wanted) = (Amount::from_sat(needed), Amount::from_sat(wanted));
        let (capacity, fee) = match self.affordable(needed, wanted) {
            // What it would cost can be said without the coins for it.
            Err(error) if error.code == ErrorCode::InsufficientFunds && is_dry_run => (
                wanted.min(self.largest_channel()),
                life.map_or(Amount::ZERO, |life| life.open),
            ),
            found => found?,
        };
        cost.opens_channel = true;
        cost.capacity_sat = capacity.to_sat();
        cost.funding_fee_sat = fee.to_sat();
        let channels = needed.to_sat().div_ceil(capacity.to_sat().max(1)).max(1);
        if channels > self.payments.channels_left(seller) {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!(
                    "the purchase needs {channels} channels of {} sat, more than a seller takes",
                    capacity.to_sat()
                ),
                "buy less, raise payments.max_capacity_sat, or close what is used up",
            ));
        }
        cost.further_channels = u32::try_from(channels - 1).unwrap_or(u32::MAX);
        let each = fee.to_sat().saturating_add(close);
        let fees = Amount::from_sat(each.saturating_mul(channels)).min(Amount::MAX_MONEY);
        cost.fee_share_ppm = viability::share_ppm(fees, traffic);
        cost.turnover_sat = viability::turnover(fees, LOW_PPM);
        if cost.fee_share_ppm > HIGH_PPM {
            let vbytes = (tx::FUNDING_VBYTES + tx::CLOSE_VBYTES).saturating_mul(channels);
            cost.cheaper = Some(api::Cheaper {
                feerate_sat_per_kvb: viability::feerate(vbytes, traffic, HIGH_PPM),
                channel: self.cheaper_channel(seller, quota),
            });
        }
        Ok(cost)
    }

    /// An open channel that can pay for as much, with another seller that offers.
    fn cheaper_channel(&self, than: NodeId, quota: Bytes) -> Option<api::CheaperChannel> {
        let asks = self.book.asks().filter(|ask| {
            let terms = ask.terms();
            let cost = terms.price.cost_of(quota).unwrap_or(Msat::MAX);
            ask.seller() != than
                && terms.max_quota >= quota
                && self.payments.has_room(ask.seller(), cost)
        });
        let ask = asks.min_by_key(|ask| (ask.terms().price, ask.seller()))?;
        let channel = self.payments.channel_in_use(Role::Payer, ask.seller())?;
        Some(api::CheaperChannel {
            channel: channel.id,
            seller: ask.seller().to_string(),
            price_msat_per_gb: ask.terms().price.msat_per_gb(),
        })
    }

    fn largest_channel(&self) -> Amount {
        Amount::from_sat(self.config.payments.max_capacity_sat)
    }

    /// The capacity to open a channel with: what is wanted if the wallet has it, else what is needed, and
    /// in either case no more than a channel may hold: what is needed beyond that, further channels pay,
    /// for which the wallet must have the coins as well.
    pub(in crate::driver) fn affordable(
        &mut self,
        needed: Amount,
        wanted: Amount,
    ) -> Result<(Amount, Amount), ApiError> {
        let most = self.largest_channel();
        let needed = needed.max(smallest_channel());
        let wanted = wanted.max(needed).min(most.max(smallest_channel()));
        let fee = self.funding_fee(needed.max(wanted));
        if let Ok(fee) = fee {
            return Ok((wanted, fee));
        }
        match self.funding_fee(needed) {
            Ok(fee) => Ok((needed.min(wanted), fee)),
            Err(error) => Err(self.cannot_fund(&error, needed)),
        }
    }

    /// Says what is missing. The wallet knows the fee only for the coins that it has; one more coin
    /// makes the transaction larger, so the usual size is the least that is asked for.
    pub(in crate::driver) fn cannot_fund(&self, error: &SpendError, capacity: Amount) -> ApiError {
        let usual = LifeCycle::estimate(self.payments.feerate())
            .and_then(|life| life.open.checked_add(capacity))
            .unwrap_or(capacity);
        match error {
            SpendError::InsufficientFunds {
                needed,
                available,
                pending,
            } => ApiError::new(
                ErrorCode::InsufficientFunds,
                format!(
                    "a channel of {} sat needs {} sat in the wallet, and {} sat can be spent",
                    capacity.to_sat(),
                    (*needed).max(usual).to_sat(),
                    available.to_sat()
                ),
                if *pending > Amount::ZERO {
                    "wait until the coins on their way are confirmed; nothing was spent"
                } else {
                    "send coins to an address from \"bitmesh wallet receive\"; nothing was spent"
                },
            )
            .with("needed_sat", (*needed).max(usual).to_sat())
            .with("available_sat", available.to_sat())
            .with("pending_sat", pending.to_sat()),
            other => ApiError::failure(format!("no channel can be funded: {other}")),
        }
    }

    pub(super) fn dry_run_reply(
        &mut self,
        id: u64,
        quote: &Signed<Quote>,
    ) -> Result<Reply, ApiError> {
        let quota = {
            let purchase = self.purchases.live.get(&id).ok_or_else(gone)?;
            match (purchase.wanted.bytes, purchase.wanted.budget_msat) {
                (Some(bytes), _) => Bytes::new(bytes),
                (None, budget) => quote
                    .content()
                    .price
                    .bytes_for(Msat::from_msat(budget.unwrap_or(0)))
                    .min(quote.content().max_quota),
            }
        };
        let cost = self.cost_of(quote, quota, true)?;
        let purchase = self.purchases.live.get(&id).ok_or_else(gone)?;
        Ok(purchase
            .reply(quote, quota, None, cost, self.clock.now())
            .into())
    }
}

/// The smallest channel that sellers accept by default.
pub(in crate::driver) fn smallest_channel() -> Amount {
    params::PayeePolicy::default().min_capacity
}
