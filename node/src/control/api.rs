//! Every word of the control API: one [`Command`] for each call, with its request and its reply.
//!
//! Three conventions hold throughout. Amounts are integers and the field's name carries the unit
//! (`paid_msat`, `received_sat`, `bytes`). Ids are strings. Moments are RFC 3339 in UTC, spans are
//! seconds. Within a major version fields are added and never removed; a reader skips what it
//! does not know, a request with a field that nobody knows is refused.

mod call;
mod event;
mod lease;
mod market;
mod money;
mod node;
mod time;

pub use call::{Call, Command, Reply, Request, RequestVisitor, Route, each_request};
pub use event::Event;
pub use lease::{
    CloseLease, ExtendLease, GetUsage, Lease, LeaseState, Leases, ListLeases, Reading, Receipt,
    Role, ShowLease, Usage, UsageLine,
};
pub use market::{
    Buy, Cheaper, CheaperChannel, Considered, Cost, ListOffers, Mode, Offer, OfferOrder, Offers,
    Outcome, PauseSelling, PriceRule, Purchase, Quote, SellLimits, SellPhase, Selling, SetLimits,
    SetPrice, StartSelling, StopSelling,
};
pub use money::{
    AccountBalance, Address, Audit, Balance, BatchClose, Channel, ChannelClosed, ChannelEnd,
    ChannelRole, ChannelRolledOver, ChannelState, ChannelStep, Channels, ChannelsClosed,
    ChannelsOpened, CloseAllChannels, CloseChannel, ClosedShare, Disagreement, Earnings,
    EarningsChannel, EarningsLease, GetBalance, GetEarnings, LedgerEntry, LeftOpen, ListChannels,
    ListTransactions, Misfit, NotOpened, OpenChannels, OpenedChannel, ReceiveCoins, Refund,
    RefundChannel, RevealWords, RolloverChannel, SendCoins, Sent, ShowChannel, StepKind,
    TopUpChannel, Totals, Transaction, TransactionKind, Transactions, Words,
};
pub use node::{
    AddPeer, Chain, ConfigChange, ConfigValue, ConfigValues, GetChain, GetConfig, GetId, GetStatus,
    Identity, LeaseCounts, ListPeers, Peer, PeerAdded, PeerDirection, Peers, Reason, SetConfig,
    Shutdown, Status, Stopping,
};
pub use time::{InvalidTimestampError, Timestamp};
