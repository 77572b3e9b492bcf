//! What a purchase costs in all, and whether the wallet has it.

use bitcoin::Amount;
use bitmesh_market::envelope::Signed;
use bitmesh_market::quote::Quote;
use bitmesh_market::units::{Bytes, Msat};
use bitmesh_wallet::channel::params;
use bitmesh_wallet::channel::tx::LifeCycle;
use bitmesh_wallet::onchain::SpendError;

use super::super::Driver;
use super::gone;
use crate::control::api::{self, Reply};
use crate::control::{ApiError, ErrorCode};

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
        let has_room = quote.min_first.is_zero() && self.payments.has_room(seller, traffic);
        if !has_room && !fresh.is_zero() {
            let needed = most.max(traffic).sat_ceil();
            let wanted = needed
                .saturating_add(needed.saturating_mul(CAPACITY_SPARE) / 100)
                .max(self.config.payments.capacity_sat);
            let (needed, wanted) = (Amount::from_sat(needed), Amount::from_sat(wanted));
            let (capacity, fee) = match self.affordable(needed, wanted) {
                // What it would cost can be said without the coins for it.
                Err(error) if error.code == ErrorCode::InsufficientFunds && is_dry_run => {
                    (wanted, life.map_or(Amount::ZERO, |life| life.open))
                }
                found => found?,
            };
            cost.opens_channel = true;
            cost.capacity_sat = capacity.to_sat();
            cost.funding_fee_sat = fee.to_sat();
            let fees = u128::from(cost.funding_fee_sat.saturating_add(close)) * 1_000;
            let share = fees * 1_000_000 / u128::from(traffic.msat().max(1));
            cost.fee_share_ppm = u64::try_from(share).unwrap_or(u64::MAX);
        }
        Ok(cost)
    }

    /// The capacity to open a channel with: what is wanted if the wallet has it, else what is needed.
    pub(super) fn affordable(
        &mut self,
        needed: Amount,
        wanted: Amount,
    ) -> Result<(Amount, Amount), ApiError> {
        let most = Amount::from_sat(self.config.payments.max_capacity_sat);
        let needed = needed.max(smallest_channel());
        if needed > most {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("the purchase needs a channel of {} sat", needed.to_sat()),
                "buy less, or raise payments.max_capacity_sat",
            ));
        }
        let wanted = wanted.clamp(needed, most);
        if let Ok(fee) = self.funding_fee(wanted) {
            return Ok((wanted, fee));
        }
        match self.funding_fee(needed) {
            Ok(fee) => Ok((needed, fee)),
            Err(error) => Err(self.cannot_fund(&error, needed)),
        }
    }

    /// Says what is missing. The wallet knows the fee only for the coins that it has; one more coin
    /// makes the transaction larger, so the usual size is the least that is asked for.
    pub(super) fn cannot_fund(&self, error: &SpendError, capacity: Amount) -> ApiError {
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
pub(super) fn smallest_channel() -> Amount {
    params::PayeePolicy::default().min_capacity
}
