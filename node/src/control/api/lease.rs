//! Leases and their usage.

use serde::{Deserialize, Serialize};

use super::{Mode, Reason, Timestamp};

/// Which side of a lease this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This node pays.
    Buyer,
    /// This node carries.
    Seller,
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Signed by both; the channel or the tunnel is being made.
    Opening,
    /// Carrying.
    Active,
    /// Flows stand still without loss; `reason` says why and what to do.
    Paused,
    /// The two nodes have lost each other; the lease goes on if they meet again soon.
    Detached,
    /// The final receipt is being signed.
    Closing,
    /// Over; `reason` says why.
    Closed,
}

/// Asks for leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListLeases {
    /// Closed ones too.
    #[serde(default)]
    pub all: bool,
    /// Only those where this node has this role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// Leases, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Leases {
    /// One entry a lease.
    pub leases: Vec<Lease>,
}

/// Asks for one lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ShowLease {
    /// Lease id, or a beginning of it that fits no other.
    pub lease: String,
}

/// Asks to close a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloseLease {
    /// Lease id, or a beginning of it that fits no other.
    pub lease: String,
}

/// Asks to add quota to a bought lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExtendLease {
    /// Lease id, or a beginning of it that fits no other.
    pub lease: String,
    /// How much to add to the quota.
    pub bytes: u64,
}

/// Running totals of billed bytes. Up is from the buyer to the internet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reading {
    /// From the buyer to the internet.
    pub up_bytes: u64,
    /// From the internet to the buyer.
    pub down_bytes: u64,
}

/// The last receipt of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Receipt {
    /// Running number; a higher one replaces all before it.
    pub seq: u64,
    /// What the buyer signed for. This is what is billed.
    pub reading: Reading,
    /// Cost of that reading.
    pub billed_msat: u64,
    /// What had been paid when it was signed.
    pub paid_msat: u64,
    /// Whether the other side's signature is on it too.
    pub cosigned: bool,
}

/// One lease, seen from this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lease {
    /// Lease id: 64 hex digits.
    pub id: String,
    /// Which side this node is.
    pub role: Role,
    /// Peer id of the other side.
    pub peer: String,
    /// Where it stands.
    pub state: LeaseState,
    /// Why it is paused, detached or closed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When the buyer pays.
    pub mode: Mode,
    /// Price of 10^9 bytes, up and down summed.
    pub price_msat_per_gb: u64,
    /// Agreed rate, both directions summed.
    pub rate_bytes_per_s: u64,
    /// How far delivery and payment may be apart.
    pub window_bytes: u64,
    /// Quota, extensions included.
    pub quota_bytes: u64,
    /// This node's own count.
    pub reading: Reading,
    /// Cost of this node's own count.
    pub billed_msat: u64,
    /// What has been paid for this lease, credit carried in included. Ahead of `billed_msat` by at
    /// most the first payment or one window if prepaid; behind it by at most one window if postpaid.
    pub paid_msat: u64,
    /// Of `paid_msat`, credit from earlier leases with the same peer.
    pub carried_msat: u64,
    /// The last receipt. Absent until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
    /// Bytes per second of the last few seconds, both directions summed.
    pub speed_bytes_per_s: u64,
    /// Address of the buyer's proxy while this lease carries its traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The channel that pays for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// When both had signed.
    pub opened_at: Timestamp,
    /// When it ends even if quota is left. Absent: it has no such end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Timestamp>,
    /// When it was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
}

/// Asks for the usage of open leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetUsage {
    /// Only this lease: its id, or a beginning of it that fits no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// How much each open lease has carried and cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Usage {
    /// One entry an open lease, newest first.
    pub leases: Vec<UsageLine>,
}

/// How much one lease has carried and cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UsageLine {
    /// Lease id.
    pub lease: String,
    /// Which side this node is.
    pub role: Role,
    /// Peer id of the other side.
    pub peer: String,
    /// Where it stands.
    pub state: LeaseState,
    /// This node's own count.
    pub reading: Reading,
    /// Quota, extensions included.
    pub quota_bytes: u64,
    /// Cost of this node's own count.
    pub billed_msat: u64,
    /// What has been paid, credit carried in included.
    pub paid_msat: u64,
    /// Bytes per second of the last few seconds, both directions summed.
    pub speed_bytes_per_s: u64,
}
