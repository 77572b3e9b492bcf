//! What came, what went, and what it cost.

use bdk_wallet::chain::ChainPosition;
use bitcoin::{Amount, Txid};

use super::{Wallet, confirmations};

/// Where a transaction of the history stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not in a block.
    Pending {
        /// When it was first seen, in seconds of Unix time. `None` if its block was reorganised
        /// away before we saw it anywhere else.
        since: Option<u64>,
    },
    /// In a block.
    Confirmed {
        /// The height of the block.
        height: u32,
        /// The time in the block's header, in seconds of Unix time.
        time: u64,
        /// How deep it is; one for the tip.
        confirmations: u32,
    },
}

/// One transaction, as the wallet sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Its id.
    pub txid: Txid,
    /// What it pays to us, change included.
    pub received: Amount,
    /// What it takes from us, change and fee included.
    pub sent: Amount,
    /// The fee, if we paid it: every input is ours. `None` otherwise.
    pub fee: Option<Amount>,
    /// The fee, whoever paid it, if every input is known.
    pub network_fee: Option<Amount>,
    /// Whether it is confirmed, and since when.
    pub status: Status,
}

impl HistoryEntry {
    /// What it changed, in sat: above zero if we gained. The fee we paid is in it.
    pub fn net_sat(&self) -> i64 {
        let sat = |amount: Amount| {
            i64::try_from(amount.to_sat()).expect("no amount is above 21 million bitcoin")
        };
        sat(self.received) - sat(self.sent)
    }

    /// What others received from us, without the fee. Zero if we gained.
    pub fn paid(&self) -> Amount {
        let fee = self.fee.unwrap_or(Amount::ZERO);
        self.sent
            .checked_sub(self.received)
            .and_then(|rest| rest.checked_sub(fee))
            .unwrap_or(Amount::ZERO)
    }
}

impl Wallet {
    /// Every transaction that concerns the wallet, newest first: pending before confirmed.
    pub fn history(&self) -> Vec<HistoryEntry> {
        let tip = self.tip().height;
        let mut entries: Vec<_> = self
            .coins
            .transactions()
            .map(|tx| {
                let transaction = &tx.tx_node.tx;
                let (sent, received) = self.coins.sent_and_received(transaction);
                let network_fee = self.coins.calculate_fee(transaction).ok();
                let status = match &tx.chain_position {
                    ChainPosition::Confirmed { anchor, .. } => Status::Confirmed {
                        height: anchor.block_id.height,
                        time: anchor.confirmation_time,
                        confirmations: confirmations(&tx.chain_position, tip),
                    },
                    ChainPosition::Unconfirmed {
                        first_seen,
                        last_seen,
                    } => Status::Pending {
                        since: first_seen.or(*last_seen),
                    },
                };
                HistoryEntry {
                    txid: tx.tx_node.txid,
                    received,
                    sent,
                    fee: network_fee.filter(|_| self.is_ours_alone(transaction)),
                    network_fee,
                    status,
                }
            })
            .collect();
        entries.sort_by_key(|entry| {
            let age = match entry.status {
                Status::Pending { since } => (0, u64::MAX - since.unwrap_or(0)),
                Status::Confirmed { height, .. } => (1, u64::MAX - u64::from(height)),
            };
            (age, entry.txid)
        });
        entries
    }
}
