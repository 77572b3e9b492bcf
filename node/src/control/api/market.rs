//! Selling, offers and buying.

use serde::{Deserialize, Serialize};

use super::{Lease, Timestamp};

/// When the buyer pays, relative to the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Ahead of the bytes, one window at a time.
    #[default]
    Prepaid,
    /// After the bytes, within the credit that the seller gives.
    Postpaid,
}

/// Asks to begin selling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartSelling {
    /// Price to begin with. Absent: the one in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceRule>,
    /// Limits to begin with. Absent: those in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<SellLimits>,
}

/// Asks to stop selling and to close the leases that are being served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StopSelling {}

/// Asks to take no further buyers and to serve the present ones to their end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PauseSelling {}

/// Asks to set the price of offers from now on. Leases keep the price they were made at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetPrice {
    /// The rule.
    pub price: PriceRule,
}

/// How the price is made. Later versions add rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum PriceRule {
    /// Always the same.
    Fixed {
        /// Price of 10^9 bytes.
        price_msat_per_gb: u64,
    },
}

/// Asks to set how much may be sold. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetLimits {
    /// The limits to change.
    #[serde(default)]
    pub limits: SellLimits,
}

/// How much may be sold. In a request an absent field means "as it is"; in a reply all are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SellLimits {
    /// For all buyers together, both directions summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_s: Option<u64>,
    /// For one lease, both directions summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_rate_bytes_per_s: Option<u64>,
    /// How many leases are served at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases: Option<u32>,
    /// Largest quota of one lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_bytes: Option<u64>,
    /// Whether buyers may pay after the bytes, within one window of credit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postpaid: Option<bool>,
}

/// The seller's side of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Selling {
    /// Whether it is offering.
    pub phase: SellPhase,
    /// How the price is made.
    pub rule: PriceRule,
    /// What a buyer who asks now is quoted.
    pub price_msat_per_gb: u64,
    /// Limits in force.
    pub limits: SellLimits,
    /// Leases being served.
    pub leases: u32,
    /// What they carry at the moment, both directions summed.
    pub rate_bytes_per_s: u64,
    /// How many connected peers the offer was handed to when it was last published.
    pub visible_to: u32,
    /// When the present offer expires unless it is published again. Absent while not offering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer_expires_at: Option<Timestamp>,
}

/// Whether a node is offering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SellPhase {
    /// Not offering and not serving.
    #[default]
    Stopped,
    /// Offering.
    Offering,
    /// Not offering; serving the leases there are to their end.
    Paused,
}

/// Asks for offers. Every field narrows the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListOffers {
    /// At most this price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price_msat_per_gb: Option<u64>,
    /// At least this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rate_bytes_per_s: Option<u64>,
    /// Offers a lease of at least this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Takes this mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// In this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// From this seller: a peer id or the beginning of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Order of the answer.
    #[serde(default)]
    pub order: OfferOrder,
    /// At most this many. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Order in which offers are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OfferOrder {
    /// Cheapest first.
    #[default]
    Price,
    /// Fastest first.
    Rate,
    /// Most recently seen first.
    Seen,
}

/// Offers in this node's order book.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Offers {
    /// Those that fit, in the order asked for.
    pub offers: Vec<Offer>,
    /// How many live offers the book holds, fitting or not.
    pub total: u32,
}

/// One seller's live offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Offer {
    /// Seller's peer id.
    pub seller: String,
    /// Price of 10^9 bytes, up and down summed.
    pub price_msat_per_gb: u64,
    /// Rate offered to one lease.
    pub rate_bytes_per_s: u64,
    /// Smallest quota it leases.
    pub min_bytes: u64,
    /// Largest quota it leases.
    pub max_bytes: u64,
    /// Ways of paying it takes.
    pub modes: Vec<Mode>,
    /// Kinds of tunnel: `proxy`.
    pub tunnels: Vec<String>,
    /// What its egress lets through, in a few words.
    pub egress: String,
    /// Region it says it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// When this node last received it.
    pub seen_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Whether the seller is connected right now.
    pub connected: bool,
    /// Whether this node has an open channel to the seller, so that no funding is needed.
    pub channel_open: bool,
}

/// Asks to buy. At least one of `bytes` and `budget_msat` is there; with both, whichever ends first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Buy {
    /// How much, up and down summed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Spend at most this on traffic. On-chain fees come on top and are in [`Cost`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_msat: Option<u64>,
    /// Pay at most this for 10^9 bytes. Absent: the limit in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price_msat_per_gb: Option<u64>,
    /// Take no quote whose first payment is above this. Absent: twice what this node's own view of the
    /// fee rate makes a closing worth. What is paid first is credit, but a seller that carries nothing
    /// for it keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_first_msat: Option<u64>,
    /// Close the lease after this long even if quota is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term_s: Option<u64>,
    /// Only sellers that offer at least this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rate_bytes_per_s: Option<u64>,
    /// When to pay.
    #[serde(default)]
    pub mode: Mode,
    /// Only sellers in this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Only this seller: a peer id or the beginning of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Ask for quotes and say what it would cost; commit to nothing and pay nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// If no offer fits, wait this long for one.
    #[serde(default)]
    pub wait_s: u64,
}

/// What came of a purchase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Purchase {
    /// The lease. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The quote that was, or would be, taken.
    pub quote: Quote,
    /// What it costs in all, fees included.
    pub cost: Cost,
    /// The sellers that were asked, in the order of asking.
    pub considered: Vec<Considered>,
    /// How many offers fitted the bid.
    pub fitting: u32,
    /// How long it took until the lease was open, or until the quote was there.
    pub took_ms: u64,
}

/// A seller's firm terms for this purchase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quote {
    /// Seller's peer id.
    pub seller: String,
    /// Price of 10^9 bytes, up and down summed.
    pub price_msat_per_gb: u64,
    /// The most that is carried in a second, both directions summed.
    pub rate_bytes_per_s: u64,
    /// What is there however many others share the seller's line.
    pub assured_bytes_per_s: u64,
    /// Quota of the lease.
    pub bytes: u64,
    /// How far delivery and payment may be apart; what either side has at stake.
    pub window_bytes: u64,
    /// When to pay.
    pub mode: Mode,
    /// First payment. It is credit, not a fee: bytes are carried for it. 0 on an open channel.
    pub min_first_msat: u64,
    /// Credit from earlier leases that the seller recognises.
    pub carried_msat: u64,
    /// What the seller's egress lets through, in a few words.
    pub egress: String,
    /// Until when the seller is bound by it.
    pub expires_at: Timestamp,
}

/// What a purchase costs from opening its channel to closing it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cost {
    /// The whole quota at the quoted price, carried credit not taken off.
    pub traffic_msat: u64,
    /// Most that will be paid to the seller for this lease: the traffic less carried credit, but
    /// at least the first payment.
    pub most_msat: u64,
    /// Whether a channel must be opened for it.
    pub opens_channel: bool,
    /// What the channel locks up. Whatever is not paid comes back.
    pub capacity_sat: u64,
    /// Channels that are opened one after another while the lease runs, since the purchase costs more
    /// than one may hold (`payments.max_capacity_sat`). Each costs as much in fees as the first.
    #[serde(default)]
    pub further_channels: u32,
    /// Fee of the funding transaction, paid by the buyer. 0 on an open channel.
    pub funding_fee_sat: u64,
    /// Fee of closing the channel, taken by the seller out of what it was paid.
    pub close_fee_sat: u64,
    /// Fee of the buyer's refund if the seller vanishes.
    pub refund_fee_sat: u64,
    /// Fee rate that these are reckoned with.
    pub feerate_sat_per_kvb: u64,
    /// Funding and closing in parts per million of the traffic's cost, rounded up. The channel stays
    /// open for later leases, so this is the share if it were used only once.
    pub fee_share_ppm: u64,
    /// From this turnover on, over all leases that use the channel, funding and closing are at most 5 %
    /// of it. 0 on an open channel.
    #[serde(default)]
    pub turnover_sat: u64,
    /// What would be cheaper, where funding and closing are more than 10 % of the traffic's cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cheaper: Option<Cheaper>,
}

/// What would be cheaper than opening a channel now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cheaper {
    /// The fee rate down from which funding and closing are at most 10 % of the traffic's cost.
    pub feerate_sat_per_kvb: u64,
    /// A channel that is open already, with room for as much, to a seller that offers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<CheaperChannel>,
}

/// An open channel to another seller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheaperChannel {
    /// Channel id.
    pub channel: String,
    /// Peer id of the seller.
    pub seller: String,
    /// What it asks for 10^9 bytes.
    pub price_msat_per_gb: u64,
}

/// One seller that was asked for a quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Considered {
    /// Seller's peer id.
    pub seller: String,
    /// Price of its quote; of its offer if it gave none.
    pub price_msat_per_gb: u64,
    /// Rate of its quote; of its offer if it gave none.
    pub rate_bytes_per_s: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// What it said, if it refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What came of asking one seller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its quote was, or would be, taken.
    Chosen,
    /// It gave a quote, and another was better.
    Quoted,
    /// It said no.
    Refused,
    /// It did not answer in time.
    NoAnswer,
}
