//! Replies as text for people: pure, so that a test can hold every screen still.

mod market;
mod money;
mod node;
mod table;
mod text;

pub use self::{
    market::{lease, leases, offers, opening, purchase, selling, usage},
    money::{
        address, balance, channel, channel_closed, channel_rolled_over, channels, channels_closed,
        channels_opened, earnings, entries_csv, sent, transactions, words,
    },
    node::{config_change, config_values, event, identity, peer_added, peers, status},
};
