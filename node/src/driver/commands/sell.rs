//! What is sold: beginning, ending, price and limits; and what others sell.

use bitmesh_market::session::CloseReason;
use bitmesh_market::units::BytesPerSecond;
use bitmesh_wallet::keys::Role;
use tracing::info;

use super::super::Driver;
use super::super::selling::Phase;
use super::Outcome;
use crate::control::api;
use crate::control::{ApiError, ErrorCode};

impl Driver {
    pub(super) fn start_selling(&mut self, wanted: api::StartSelling) -> Outcome {
        // All or nothing: a limit that cannot be must not leave a new price behind.
        let mut changes = Vec::new();
        changes.extend(wanted.price.as_ref().map(price_change));
        if let Some(limits) = &wanted.limits {
            changes.extend(self.limit_changes(limits)?);
        }
        self.change_terms(&changes)?;
        self.selling_becomes(Phase::Offering)
    }

    pub(super) fn pause_selling(&mut self) -> Outcome {
        self.selling_becomes(Phase::Paused)
    }

    pub(super) fn stop_selling(&mut self) -> Outcome {
        let selling: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.role() == Role::Payee)
            .map(|(id, _)| *id)
            .collect();
        for id in selling {
            self.close_session(id, CloseReason::SellerLeft);
        }
        self.selling_becomes(Phase::Stopped)
    }

    pub(super) fn selling_becomes(&mut self, phase: Phase) -> Outcome {
        let enabled = phase == Phase::Offering;
        if self.config.sell.enabled != enabled {
            self.write_settings(&[("sell.enabled", enabled.to_string())])?;
            self.config.sell.enabled = enabled;
        }
        self.selling.phase = phase;
        self.supply();
        let selling = self.selling_view();
        info!(phase = ?phase, price_msat_per_gb = selling.price_msat_per_gb, "selling");
        self.tell(Some(api::Event::SellingChanged {
            selling: selling.clone(),
        }));
        Ok(selling.into())
    }

    pub(super) fn set_price(&mut self, rule: &api::PriceRule) -> Outcome {
        self.change_terms(&[price_change(rule)])?;
        self.selling_changed()
    }

    pub(super) fn set_limits(&mut self, limits: &api::SellLimits) -> Outcome {
        let changes = self.limit_changes(limits)?;
        self.change_terms(&changes)?;
        self.selling_changed()
    }

    /// Writes changes of what is sold, all or none, and takes them over.
    pub(super) fn change_terms(
        &mut self,
        changes: &[(&'static str, String)],
    ) -> Result<(), ApiError> {
        if !changes.is_empty() {
            self.write_settings(changes)?;
            let config = self.config_on_disk()?;
            self.apply_live(&config);
        }
        Ok(())
    }

    pub(super) fn limit_changes(
        &self,
        limits: &api::SellLimits,
    ) -> Result<Vec<(&'static str, String)>, ApiError> {
        if let Some(leases) = limits
            .leases
            .filter(|leases| u16::try_from(*leases).is_err())
        {
            return Err(ApiError::new(
                ErrorCode::Usage,
                format!("{leases} leases at once are too many"),
                format!("nothing was changed; at most {} are possible", u16::MAX),
            ));
        }
        let bytes_per_s = |rate: u64| format!("{} B/s", BytesPerSecond::new(rate).get());
        let sell = &self.config.sell;
        let total = limits.rate_bytes_per_s;
        // A total below the rate of one lease takes that with it.
        let lease = limits
            .lease_rate_bytes_per_s
            .or(total.filter(|total| *total < sell.rate.get()));
        let total_change = ("sell.total_rate", total.map(bytes_per_s));
        let lease_change = ("sell.rate", lease.map(bytes_per_s));
        // Each step must hold by itself: the total first if it rises, last if it falls.
        let rises = total.is_none_or(|total| total >= sell.total_rate.get());
        let (first, second) = match rises {
            true => (total_change, lease_change),
            false => (lease_change, total_change),
        };
        let wanted = [
            first,
            second,
            (
                "sell.max_leases",
                limits.leases.map(|leases| leases.to_string()),
            ),
            (
                "sell.max_quota",
                limits.lease_bytes.map(|bytes| format!("{bytes} B")),
            ),
            (
                "sell.postpaid",
                limits.postpaid.map(|postpaid| postpaid.to_string()),
            ),
        ];
        let changes = wanted
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        Ok(changes.collect())
    }

    pub(super) fn selling_changed(&self) -> Outcome {
        let selling = self.selling_view();
        self.tell(Some(api::Event::SellingChanged {
            selling: selling.clone(),
        }));
        Ok(selling.into())
    }

    pub(super) fn list_offers(&self, wanted: &api::ListOffers) -> Outcome {
        let now = self.unix();
        let mut offers: Vec<api::Offer> = self
            .book
            .asks()
            .filter(|ask| ask.is_live(now))
            .map(|ask| self.offer_view(ask, now))
            .collect();
        let total = u32::try_from(offers.len()).unwrap_or(u32::MAX);
        offers.retain(|offer| {
            wanted
                .max_price_msat_per_gb
                .is_none_or(|max| offer.price_msat_per_gb <= max)
                && wanted
                    .min_rate_bytes_per_s
                    .is_none_or(|min| offer.rate_bytes_per_s >= min)
                && wanted
                    .bytes
                    .is_none_or(|b| (offer.min_bytes..=offer.max_bytes).contains(&b))
                && wanted.mode.is_none_or(|mode| offer.modes.contains(&mode))
                && wanted
                    .region
                    .as_ref()
                    .is_none_or(|region| offer.region.as_ref() == Some(region))
                && wanted
                    .from
                    .as_ref()
                    .is_none_or(|from| offer.seller.starts_with(from.as_str()))
        });
        match wanted.order {
            api::OfferOrder::Price => offers.sort_by_key(|offer| offer.price_msat_per_gb),
            api::OfferOrder::Rate => offers.sort_by_key(|o| std::cmp::Reverse(o.rate_bytes_per_s)),
            api::OfferOrder::Seen => offers.sort_by_key(|o| std::cmp::Reverse(o.seen_at)),
        }
        if let Some(limit) = wanted.limit.and_then(|limit| usize::try_from(limit).ok()) {
            offers.truncate(limit);
        }
        Ok(api::Offers { offers, total }.into())
    }
}

fn price_change(rule: &api::PriceRule) -> (&'static str, String) {
    let api::PriceRule::Fixed { price_msat_per_gb } = rule;
    ("sell.price", format!("{price_msat_per_gb} msat/GB"))
}
