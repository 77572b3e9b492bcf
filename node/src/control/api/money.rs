//! Wallet, channels and earnings.

use serde::{Deserialize, Serialize};

use super::{LeaseState, Reason, Role, Timestamp};

/// Asks for [`Balance`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetBalance {}

/// What the wallet holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Balance {
    /// Confirmed, and so what can be spent on a channel that works at once.
    pub confirmed_sat: u64,
    /// On its way to this wallet, change included, not in a block yet.
    pub pending_sat: u64,
    /// Locked in channels that this node pays from, and not paid yet: it comes back at close.
    pub locked_sat: u64,
    /// Paid to this node in channels that are not settled on chain yet, before closing fees.
    pub claimable_sat: u64,
}

/// Asks for a fresh address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ReceiveCoins {}

/// An address of the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Address {
    /// The address.
    pub address: String,
    /// The same as a `bitcoin:` link.
    pub uri: String,
}

/// Asks to send coins on chain. Exactly one of `amount_sat` and `all` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SendCoins {
    /// Where to.
    pub address: String,
    /// How much arrives; the fee comes on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount_sat: Option<u64>,
    /// Everything that is confirmed; the fee is taken from it.
    #[serde(default)]
    pub all: bool,
    /// Fee rate. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Say what it would cost; sign and send nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What was, or would be, sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sent {
    /// Transaction id. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// Where to.
    pub address: String,
    /// What arrives.
    pub amount_sat: u64,
    /// Fee.
    pub fee_sat: u64,
    /// Fee rate.
    pub feerate_sat_per_kvb: u64,
    /// Whether the network has taken it. If not, it is written down and handed over as soon as the
    /// chain source takes it.
    pub broadcast: bool,
}

/// Asks for transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListTransactions {
    /// At most this many. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Transactions that touched the wallet, newest first, unconfirmed before all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Transactions {
    /// One entry a transaction.
    pub transactions: Vec<Transaction>,
}

/// One transaction, seen from the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Transaction {
    /// Transaction id.
    pub txid: String,
    /// What it was for.
    pub kind: TransactionKind,
    /// What the wallet gained (or, below zero, lost), fee included.
    pub delta_sat: i64,
    /// Fee, where this wallet paid it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_sat: Option<u64>,
    /// 0 while unconfirmed.
    pub confirmations: u32,
    /// Block. Absent while unconfirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// When it was first seen, or the time of its block if that is all that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// What a transaction was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TransactionKind {
    /// Somebody paid an address of the wallet.
    Received,
    /// The wallet paid an address.
    Sent,
    /// It funds a channel of this node.
    Funding,
    /// It settles a channel.
    Settlement,
    /// It returns an expired channel to this node.
    Refund,
}

/// Asks for the twelve words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevealWords {
    /// Must be true: whoever sees the words owns the wallet.
    pub confirm: bool,
}

/// The twelve words that restore identity and coins. Channels and leases are in the journal alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Words {
    /// BIP-39 English words, in order.
    pub words: Vec<String>,
    /// Height from which a restored wallet must look for its coins.
    pub birth_height: u32,
}

impl std::fmt::Debug for Words {
    /// Never shows the words: this ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words")
            .field("birth_height", &self.birth_height)
            .finish_non_exhaustive()
    }
}

/// Asks for channels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListChannels {
    /// Closed ones too.
    #[serde(default)]
    pub all: bool,
}

/// Payment channels, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Channels {
    /// One entry a channel.
    pub channels: Vec<Channel>,
}

/// Which side of a channel this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChannelRole {
    /// This node funded it and pays from it.
    Payer,
    /// This node is paid.
    Payee,
}

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChannelState {
    /// Being negotiated; nothing is on chain.
    Opening,
    /// The funding is in the mempool.
    Unconfirmed,
    /// The funding is in a block.
    Open,
    /// A closing transaction is on its way.
    Closing,
    /// Expired; the payer's refund is due or on its way.
    Refunding,
    /// Settled on chain.
    Closed,
    /// The funding was replaced or vanished from the mempool; nothing more is carried for it.
    Conflicted,
}

/// One payment channel, seen from this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Channel {
    /// Channel id: 64 hex digits.
    pub id: String,
    /// Which side this node is.
    pub role: ChannelRole,
    /// Peer id of the other side.
    pub peer: String,
    /// Where it stands.
    pub state: ChannelState,
    /// Anything unusual about it, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Size of the funding output.
    pub capacity_sat: u64,
    /// Running total of vouchers.
    pub paid_sat: u64,
    /// What can still be paid.
    pub remaining_sat: u64,
    /// Paid and not yet used by a lease: the seller owes bytes for it.
    pub credit_msat: u64,
    /// Payee: most that this channel is trusted for at its present depth. Absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_limit_sat: Option<u64>,
    /// Funding output, `txid:vout`. Absent while opening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub funding: Option<String>,
    /// Confirmations of the funding.
    pub confirmations: u32,
    /// Height from which the payer can take everything back. The payee closes well before.
    pub expiry_height: u32,
    /// Blocks until then; 0 afterwards.
    pub expires_in_blocks: u32,
    /// What happens to it at which height unless it ends before, soonest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<ChannelStep>,
    /// The payer's way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<Refund>,
    /// The channel that it was carried over from: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_from: Option<String>,
    /// The channel that it was carried over into: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_into: Option<String>,
    /// Transaction that closes it, in a block or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_txid: Option<String>,
    /// Fees that this node has paid for it so far.
    pub fees_sat: u64,
    /// When it was made.
    pub opened_at: Timestamp,
}

/// Something that happens to a channel at a height.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChannelStep {
    /// What.
    pub what: StepKind,
    /// At this height of the chain.
    pub height: u32,
    /// Blocks until then.
    pub in_blocks: u32,
    /// Why, in a sentence.
    pub why: String,
}

/// What happens to a channel as its expiry comes near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The buyer carries it over into a new one, if the two still trade.
    CarriesOver,
    /// Nothing more is carried or paid on it.
    Stops,
    /// The seller asks the buyer to close it together.
    Asks,
    /// The seller closes it by itself.
    Closes,
    /// The seller bids more for its close.
    BidsMore,
    /// The seller bids up to half of what it was paid.
    BidsHalf,
    /// The buyer may take everything back.
    Expires,
}

/// A payer's refund.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refund {
    /// What would come back, before the fee, if the payee never closed.
    pub amount_sat: u64,
    /// Whether it can be taken now.
    pub due: bool,
    /// The refund transaction, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
}

/// Asks to open channels ahead of any lease, with one funding transaction for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OpenChannels {
    /// Sellers: peer ids, or beginnings of ids that this node knows. At most 32.
    pub peers: Vec<String>,
    /// What each channel holds. Absent: `payments.capacity_sat` of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_sat: Option<u64>,
    /// Leave out a seller whose first payment is above this; it is made when the channel is first used.
    /// Absent: twice what this node's own view of the fee rate makes a closing worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_first_msat: Option<u64>,
    /// Fee rate. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Say what it would cost; ask nobody and sign nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks for a further channel with a seller that this node has one with, to be used after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TopUpChannel {
    /// The seller: a peer id, or the beginning of one that this node knows.
    pub peer: String,
    /// What the further channel holds.
    pub amount_sat: u64,
    /// As in [`OpenChannels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_first_msat: Option<u64>,
    /// Fee rate. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Say what it would cost; ask nobody and sign nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Channels were, or would be, opened by one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChannelsOpened {
    /// The funding transaction. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// Its virtual size.
    pub vbytes: u64,
    /// What the channels lock up in all. Whatever is not paid comes back.
    pub capacity_sat: u64,
    /// Its fee, which this node pays.
    pub funding_fee_sat: u64,
    /// Fee of closing one of the channels, taken by its seller out of what it was paid.
    pub close_fee_sat: u64,
    /// The highest first payment that is agreed to if nothing else is said.
    pub max_first_sat: u64,
    /// Fee rate that these are reckoned with.
    pub feerate_sat_per_kvb: u64,
    /// Funding and all closings in parts per million of what the channels hold, rounded up.
    pub fee_share_ppm: u64,
    /// From this turnover on, over all channels, funding and closing are at most 5 % of it.
    pub turnover_sat: u64,
    /// Whether the network has taken it. If not, it is written down and handed over as soon as the
    /// chain source takes it.
    pub broadcast: bool,
    /// The channels.
    pub channels: Vec<OpenedChannel>,
    /// Sellers with which no channel was opened. Nothing was paid for them.
    pub left_out: Vec<NotOpened>,
}

/// One channel that was, or would be, opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OpenedChannel {
    /// Peer id of the seller.
    pub peer: String,
    /// Channel id. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// What it holds.
    pub capacity_sat: u64,
    /// Its share of the funding's fee.
    pub funding_fee_sat: u64,
    /// What its first payment will be at least. It is credit, not a fee. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sat: Option<u64>,
    /// Whether the twelve words alone bring it back. If not, its records do: make a backup.
    pub found_by_words: bool,
}

/// A seller with which no channel was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NotOpened {
    /// Peer id of the seller.
    pub peer: String,
    /// Why.
    pub reason: Reason,
}

/// Asks to close a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloseChannel {
    /// Channel id, or a beginning of it that fits no other.
    pub channel: String,
    /// Fee rate. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Do not ask the other side to close together: what this side can do alone, at once.
    #[serde(default)]
    pub force: bool,
    /// Say what would come of it; broadcast nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// How a channel is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChannelEnd {
    /// Both sides signed one transaction.
    Together,
    /// The payee broadcast its best voucher.
    Alone,
    /// The payer took back what was in it after its expiry.
    Refund,
}

/// A closing transaction was, or would be, broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChannelClosed {
    /// Channel id.
    pub channel: String,
    /// How it is ended.
    pub how: ChannelEnd,
    /// Why it was not closed together, if that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// The closing transaction or refund. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// What this node receives by it, after the fee.
    pub received_sat: u64,
    /// Fee that this node pays.
    pub fee_sat: u64,
    /// Whether the network has taken it. If not, it is written down and handed over as soon as the
    /// chain source takes it.
    pub broadcast: bool,
}

/// Asks for one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ShowChannel {
    /// Channel id, or a beginning of it that fits no other.
    pub channel: String,
}

/// Asks to carry a channel over into a new one, which this node pays from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloverChannel {
    /// Channel id, or peer id of the seller for the channel in use with it; or a beginning of either
    /// that fits no other.
    pub channel: String,
    /// What the new channel is to hold. Absent: everything that was not paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_sat: Option<u64>,
    /// Fee rate that the seller's choice is held against. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Say what would come of it; ask nobody and broadcast nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// A channel was, or would be, carried over into a new one. The seller pays the fee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChannelRolledOver {
    /// Id of the channel that ends.
    pub channel: String,
    /// Id of the channel that follows. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The transaction that ends the one and funds the other. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// What the seller is paid out of the channel that ends, before the fee.
    pub settled_sat: u64,
    /// What the channel that follows holds.
    pub capacity_sat: u64,
    /// What comes back to the wallet.
    pub change_sat: u64,
    /// Height from which the channel that follows can be taken back. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry_height: Option<u32>,
    /// Whether the network has taken it. If not, it is written down and handed over as soon as the
    /// chain source takes it.
    pub broadcast: bool,
}

/// Asks to take back what a channel holds that this node pays from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RefundChannel {
    /// Channel id, or a beginning of it that fits no other.
    pub channel: String,
    /// Fee rate. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Say what would come of it; broadcast nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Asks to close every channel that this node is paid on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloseAllChannels {
    /// Fee rate. Absent: the present estimate for 6 blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feerate_sat_per_kvb: Option<u64>,
    /// Say what would come of it; broadcast nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Channels were, or would be, closed in batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChannelsClosed {
    /// One entry a transaction: up to 60 channels share one.
    pub closes: Vec<BatchClose>,
    /// Channels that stay open, since closing would cost more than half of what they have paid.
    pub left_open: Vec<LeftOpen>,
}

/// One transaction that closes channels: a batch, or the close of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BatchClose {
    /// Its id. Absent for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// Its virtual size.
    pub vbytes: u64,
    /// What this node receives by it, after the fee.
    pub received_sat: u64,
    /// Its fee, which this node pays.
    pub fee_sat: u64,
    /// Whether the network has taken it. If not, it is written down and handed over as soon as the
    /// chain source takes it.
    pub broadcast: bool,
    /// Why the network does not take it. It is offered again with every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Reason>,
    /// The channels that end in it.
    pub channels: Vec<ClosedShare>,
}

/// What one channel has of a transaction that closes several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClosedShare {
    /// Channel id.
    pub channel: String,
    /// Peer id of the buyer.
    pub peer: String,
    /// What it brings, after its share of the fee.
    pub received_sat: u64,
    /// Its share of the fee.
    pub fee_sat: u64,
    /// Whether a lease is being carried out on it, which ends with it.
    pub ends_lease: bool,
}

/// A channel that is not worth closing now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeftOpen {
    /// Channel id.
    pub channel: String,
    /// What it has paid.
    pub paid_sat: u64,
    /// What closing it alone would cost.
    pub fee_sat: u64,
}

/// Asks for [`Earnings`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GetEarnings {
    /// Count only what moved within the last so many seconds, everywhere: in the totals, and in the
    /// leases and channels, of which only those that moved are listed. What is open is as it stands
    /// now. Absent: all time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    /// Compare everybody who knows: the journal, sessions and channels, meters, signatures, and the
    /// chain.
    #[serde(default)]
    pub audit: bool,
    /// List every movement, at most 40,000 of them: if there are more, narrow the span.
    #[serde(default)]
    pub entries: bool,
}

/// What was sold and bought. Leases are remembered one by one up to a thousand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Earnings {
    /// Where this node was the seller.
    pub selling: Totals,
    /// Where this node was the buyer.
    pub buying: Totals,
    /// By lease, newest first.
    pub leases: Vec<EarningsLease>,
    /// By channel, newest first.
    pub channels: Vec<EarningsChannel>,
    /// From when on figures count. Absent: all time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What the audit found, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// Every movement, in the order of the journal and then of the chain, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<LedgerEntry>>,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Audit {
    /// Movements in the journal and on the chain.
    pub entries: u64,
    /// How many pairs of figures were compared.
    pub compared: u32,
    /// Whether the chain was compared. It is not while it has not been read to its end.
    pub chain: bool,
    /// Records of the journal that do not fit. What they would have moved is in no figure.
    pub misfits: Vec<Misfit>,
    /// Figures that do not agree.
    pub disagreements: Vec<Disagreement>,
    /// Every account with a balance. Together they are zero.
    pub balances: Vec<AccountBalance>,
}

/// A record of the journal that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Misfit {
    /// Which, or about what.
    pub whose: String,
    /// What is wrong with it.
    pub why: String,
}

/// Two figures that should agree and do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Disagreement {
    /// The lease, channel, transaction or peer.
    pub whose: String,
    /// The rule that is broken.
    pub rule: String,
    /// Where the first figure comes from.
    pub left: String,
    /// The first figure.
    pub left_figure: i64,
    /// Where the second figure comes from.
    pub right: String,
    /// The second figure.
    pub right_figure: i64,
    /// The first less the second.
    pub difference: i64,
    /// What is counted: `msat`, `sat`, `bytes` or `confirmations`.
    pub unit: String,
}

/// What one account holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AccountBalance {
    /// The account, as in [`LedgerEntry::from`].
    pub account: String,
    /// Which side this node is. Absent for what concerns the wallet alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Peer id of the other side. Absent for what concerns the wallet alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What is in it. Below zero if more came out than went in.
    pub balance_msat: i64,
}

/// One movement of money: what leaves one account is in the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LedgerEntry {
    /// When, to within a minute. Absent if nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Why: `funding`, `voucher`, `settlement`, `refund`, `abandoned`, `receipt`, `write_off`,
    /// `deposit` or `payment`.
    pub what: String,
    /// The account it left: `outside`, `coins`, `locked`, `claims`, `credit`, `unclaimed`, `earned`,
    /// `spent`, `written_off`, `fees` or `lost`.
    pub from: String,
    /// The account it went to.
    pub to: String,
    /// How much; never zero.
    pub amount_msat: u64,
    /// Bytes that a receipt signs for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Which side this node was. Absent for what concerns the wallet alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Peer id of the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// The channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The transaction, where the chain alone knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
}

/// Totals of one role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Bytes that the buyer signed for.
    pub bytes: u64,
    /// Their cost.
    pub billed_msat: u64,
    /// Vouchers.
    pub paid_sat: u64,
    /// Seller: received on chain, after fees. Buyer: returned on chain, after fees.
    pub received_sat: u64,
    /// Seller: vouchers not settled on chain yet. Buyer: locked in channels and not paid yet.
    pub open_sat: u64,
    /// On-chain fees that this node paid.
    pub fees_sat: u64,
    /// How many leases.
    pub leases: u32,
}

/// One lease in the accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EarningsLease {
    /// Lease id.
    pub lease: String,
    /// Which side this node was.
    pub role: Role,
    /// Peer id of the other side.
    pub peer: String,
    /// Where it stands.
    pub state: LeaseState,
    /// Bytes that the buyer signed for.
    pub bytes: u64,
    /// Their cost.
    pub billed_msat: u64,
    /// Paid for this lease, credit carried in not included.
    pub paid_msat: u64,
    /// The channel that paid for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// When both had signed.
    pub opened_at: Timestamp,
}

/// One channel in the accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EarningsChannel {
    /// Channel id.
    pub channel: String,
    /// Which side this node was.
    pub role: ChannelRole,
    /// Peer id of the other side.
    pub peer: String,
    /// Where it stands.
    pub state: ChannelState,
    /// Size of the funding output.
    pub capacity_sat: u64,
    /// Vouchers.
    pub paid_sat: u64,
    /// Payee: received on chain, after fees. Payer: returned on chain, after fees.
    pub received_sat: u64,
    /// On-chain fees that this node paid for it.
    pub fees_sat: u64,
}
