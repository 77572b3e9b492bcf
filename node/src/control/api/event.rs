//! What the node tells those who watch.

use serde::{Deserialize, Serialize};

use super::{Balance, Channel, Lease, Offer, Role, Selling, UsageLine};

/// Something that happened, sent to every reader of `/v1/events`.
///
/// Events are for watching, not for bookkeeping: a reader that is too slow misses some and is told
/// so by [`Lagged`](Self::Lagged). Whatever must be exact is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// An offer entered the order book or replaced an older one.
    OfferSeen {
        /// The offer.
        offer: Offer,
    },
    /// An offer was withdrawn, expired or was evicted.
    OfferGone {
        /// Seller's peer id.
        seller: String,
    },
    /// A peer connected.
    PeerConnected {
        /// Peer id.
        node: String,
    },
    /// The last connection to a peer ended.
    PeerDisconnected {
        /// Peer id.
        node: String,
    },
    /// The seller's side changed: phase, price or limits.
    SellingChanged {
        /// The seller's side.
        selling: Selling,
    },
    /// A lease began to carry.
    LeaseOpened {
        /// The lease.
        lease: Lease,
    },
    /// A lease paused; its reason is in it.
    LeasePaused {
        /// The lease.
        lease: Lease,
    },
    /// A lease carries again.
    LeaseResumed {
        /// The lease.
        lease: Lease,
    },
    /// A lease is over; its reason is in it.
    LeaseClosed {
        /// The lease.
        lease: Lease,
    },
    /// A lease carried something. Told a few times a second while it does.
    Usage {
        /// Its running totals.
        usage: UsageLine,
    },
    /// A voucher was sent (buyer) or taken (seller).
    Payment {
        /// Which side this node is.
        role: Role,
        /// Lease it pays for.
        lease: String,
        /// Channel it was paid from.
        channel: String,
        /// What it adds.
        delta_msat: u64,
        /// Running total of the lease, credit carried in included.
        paid_msat: u64,
    },
    /// A channel changed its state.
    ChannelChanged {
        /// The channel.
        channel: Channel,
    },
    /// The wallet's balance changed.
    WalletChanged {
        /// The wallet.
        wallet: Balance,
    },
    /// A block was connected.
    BlockConnected {
        /// Its height.
        height: u32,
    },
    /// This reader was too slow. Made by the server.
    Lagged {
        /// How many events it missed.
        missed: u64,
    },
    /// The daemon is stopping; the stream ends here. Made by the server.
    Stopping {},
    /// An event of a later version that this reader does not know.
    #[serde(other, skip_serializing)]
    Unknown,
}

impl Event {
    /// The names of all events, as they stand in `type` and as a watcher asks for them.
    pub const NAMES: [&'static str; 16] = [
        "offer_seen",
        "offer_gone",
        "peer_connected",
        "peer_disconnected",
        "selling_changed",
        "lease_opened",
        "lease_paused",
        "lease_resumed",
        "lease_closed",
        "usage",
        "payment",
        "channel_changed",
        "wallet_changed",
        "block_connected",
        "lagged",
        "stopping",
    ];

    /// Returns the event's name as it stands in `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OfferSeen { .. } => "offer_seen",
            Self::OfferGone { .. } => "offer_gone",
            Self::PeerConnected { .. } => "peer_connected",
            Self::PeerDisconnected { .. } => "peer_disconnected",
            Self::SellingChanged { .. } => "selling_changed",
            Self::LeaseOpened { .. } => "lease_opened",
            Self::LeasePaused { .. } => "lease_paused",
            Self::LeaseResumed { .. } => "lease_resumed",
            Self::LeaseClosed { .. } => "lease_closed",
            Self::Usage { .. } => "usage",
            Self::Payment { .. } => "payment",
            Self::ChannelChanged { .. } => "channel_changed",
            Self::WalletChanged { .. } => "wallet_changed",
            Self::BlockConnected { .. } => "block_connected",
            Self::Lagged { .. } => "lagged",
            Self::Stopping {} => "stopping",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_names_is_that_of_the_schema() {
        let schema = schemars::schema_for!(Event).to_value();
        let kinds = schema["oneOf"].as_array().unwrap();
        let names: Vec<&str> = kinds
            .iter()
            .filter_map(|kind| kind["properties"]["type"]["const"].as_str())
            .filter(|name| *name != "unknown")
            .collect();
        assert_eq!(names, Event::NAMES);
    }
}
