//! `[payments]`: how much may be at stake in channels.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Shortest life of a channel that leaves room for every deadline before its expiry.
const MIN_EXPIRY_BLOCKS: u32 = 1_008;
/// Longest life of a channel: three months, so that a buyer whose seller vanished is not out of
/// its money for longer.
const MAX_EXPIRY_BLOCKS: u32 = 12_960;

/// Limits on what may be at stake in channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Payments {
    /// Blocks until the buyer may take its money back alone. 4,320 is thirty days.
    pub expiry_blocks: u32,
    /// Whether this node, as a buyer, carries a channel that is about to expire over into a new one by
    /// itself while it trades with the seller. Else the rest comes back when the seller closes.
    pub carry_over: bool,
    /// What a new channel holds when the purchase does not ask for more, in sat.
    pub capacity_sat: u64,
    /// The largest channel this node pays into or accepts, in sat.
    pub max_capacity_sat: u64,
    /// What this node accepts on fundings that no block holds yet.
    pub zero_conf: ZeroConf,
    /// What this node accepts on a funding with one confirmation, in sat.
    pub one_conf_sat: u64,
    /// What this node accepts on a funding with two confirmations, in sat. Three confirm all.
    pub two_conf_sat: u64,
    /// Fee rate in sat per virtual byte where the chain source has no estimate.
    pub fallback_feerate: u64,
}

/// What a seller risks on fundings that no block holds yet: they can be double-spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZeroConf {
    /// Most that one unconfirmed channel may have paid and be served for, in sat.
    pub per_channel_sat: u64,
    /// Most that all unconfirmed channels together may, in sat: identities are free.
    pub total_sat: u64,
    /// Seconds a funding must have been in the mempool first, so that a conflict can show.
    pub min_age_s: u64,
}

impl Default for Payments {
    fn default() -> Self {
        Self {
            expiry_blocks: 4_320,
            carry_over: true,
            capacity_sat: 20_000,
            max_capacity_sat: 1_000_000,
            zero_conf: ZeroConf::default(),
            one_conf_sat: 50_000,
            two_conf_sat: 250_000,
            fallback_feerate: 1,
        }
    }
}

impl Default for ZeroConf {
    fn default() -> Self {
        Self {
            per_channel_sat: 1_000,
            total_sat: 5_000,
            min_age_s: 10,
        }
    }
}

impl Payments {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason| Err(ConfigError::Value { key, reason });
        if !(MIN_EXPIRY_BLOCKS..=MAX_EXPIRY_BLOCKS).contains(&self.expiry_blocks) {
            return refuse(
                "payments.expiry_blocks",
                format!(
                    "{} is outside {MIN_EXPIRY_BLOCKS} to {MAX_EXPIRY_BLOCKS} blocks",
                    self.expiry_blocks
                ),
            );
        }
        if self.capacity_sat > self.max_capacity_sat {
            return refuse(
                "payments.capacity_sat",
                format!(
                    "{} sat is more than payments.max_capacity_sat ({} sat)",
                    self.capacity_sat, self.max_capacity_sat
                ),
            );
        }
        if self.zero_conf.per_channel_sat > self.zero_conf.total_sat {
            return refuse(
                "payments.zero_conf.per_channel_sat",
                "one channel may not risk more than all of them together (total_sat)".to_owned(),
            );
        }
        if self.fallback_feerate == 0 {
            return refuse(
                "payments.fallback_feerate",
                "1 sat per virtual byte is the least that every node relays".to_owned(),
            );
        }
        Ok(())
    }
}
