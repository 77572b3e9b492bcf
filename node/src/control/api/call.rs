//! The table of calls, and what it generates.

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{lease, market, money, node};
use crate::control::error::ApiError;

/// Where a call is reached over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name of the call, as in [`Command`].
    pub name: &'static str,
    /// `GET`, `POST` or `PUT`. A `GET` changes nothing and carries its fields in the query.
    pub method: &'static str,
    /// Path with `{field}` where a field of the request stands.
    pub path: &'static str,
    /// What the call is for.
    pub about: &'static str,
}

/// A type that can describe itself as a JSON schema. Only tests need the description.
#[cfg(test)]
pub trait Described: schemars::JsonSchema {}
#[cfg(test)]
impl<T: schemars::JsonSchema> Described for T {}
/// A type that can describe itself as a JSON schema. Only tests need the description.
#[cfg(not(test))]
pub trait Described {}
#[cfg(not(test))]
impl<T> Described for T {}

/// The request of one call, tied to the type that answers it.
pub trait Request:
    Serialize + DeserializeOwned + Described + Into<Command> + Send + 'static
{
    /// What a success looks like.
    type Reply: Serialize + DeserializeOwned + Described + TryFrom<Reply, Error = Reply> + Send;
    /// Where the call is reached.
    const ROUTE: Route;

    /// How long the call itself asks to wait, on top of
    /// [`ANSWER_WITHIN`](crate::control::ANSWER_WITHIN).
    fn patience(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// Something done once for each kind of request: mounting a route, writing a document.
pub trait RequestVisitor {
    /// Called with each request type in the order of the table.
    fn visit<R: Request>(&mut self);
}

/// One call on its way to the driver.
///
/// The driver answers every call exactly once, with the reply that [`Request::Reply`] names for
/// it. Dropping `reply` unanswered tells the caller that the daemon is stopping.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes. Closed when the caller has gone away; a purchase that still waits
    /// for an offer should then be given up.
    pub reply: oneshot::Sender<Result<Reply, ApiError>>,
}

impl Call {
    /// Returns a call and the place where its answer arrives.
    pub fn new(command: impl Into<Command>) -> (Self, oneshot::Receiver<Result<Reply, ApiError>>) {
        let (reply, answer) = oneshot::channel();
        (
            Self {
                command: command.into(),
                reply,
            },
            answer,
        )
    }
}

macro_rules! calls {
    ($($(#[doc = $about:literal])+ $name:ident: $method:literal $path:literal, $room:ident => $reply:ident $(, waits $wait:ident)?;)+) => {
        /// One call of the control API.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Command { $($(#[doc = $about])+ $name($room::$name),)+ }

        $(
            impl From<$room::$name> for Command {
                fn from(request: $room::$name) -> Self {
                    Self::$name(request)
                }
            }

            impl Request for $room::$name {
                type Reply = $reply;
                const ROUTE: Route = Route {
                    name: stringify!($name),
                    method: $method,
                    path: $path,
                    about: concat!($($about),+),
                };
                $(
                    fn patience(&self) -> std::time::Duration {
                        std::time::Duration::from_secs(self.$wait)
                    }
                )?
            }
        )+

        impl Command {
            /// Returns the name of the call, for logs.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)+ }
            }
        }

        /// Visits every kind of request, in the order of the table.
        pub fn each_request(visitor: &mut impl RequestVisitor) {
            $(visitor.visit::<$room::$name>();)+
        }
    };
}

macro_rules! replies {
    ($($(#[doc = $about:literal])+ $name:ident,)+) => {
        /// What answers a [`Command`]. Several commands share a reply; [`Request::Reply`] says which.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Reply { $($(#[doc = $about])+ $name($name),)+ }

        $(
            impl From<$name> for Reply {
                fn from(reply: $name) -> Self {
                    Self::$name(reply)
                }
            }

            impl TryFrom<Reply> for $name {
                type Error = Reply;

                fn try_from(reply: Reply) -> Result<Self, Reply> {
                    match reply {
                        Reply::$name(reply) => Ok(reply),
                        other => Err(other),
                    }
                }
            }
        )+
    };
}

use super::{
    Address, Balance, Chain, Channel, ChannelClosed, ChannelRolledOver, Channels, ChannelsClosed,
    ChannelsOpened, ConfigChange, ConfigValues, Earnings, Identity, Lease, Leases, Offers,
    PeerAdded, Peers, Purchase, Selling, Sent, Status, Stopping, Transactions, Usage, Words,
};

calls! {
    /// One screen: roles, leases, money, and what is wrong.
    GetStatus: "GET" "/v1/status", node => Status;
    /// Who this node is and where it can be reached.
    GetId: "GET" "/v1/id", node => Identity;
    /// The peers this node is connected to.
    ListPeers: "GET" "/v1/peers", node => Peers;
    /// Connects to a peer, and remembers it until the daemon stops.
    AddPeer: "POST" "/v1/peers", node => PeerAdded;
    /// What the chain source sees.
    GetChain: "GET" "/v1/chain", node => Chain;
    /// Settings in force, and where each comes from.
    GetConfig: "GET" "/v1/config", node => ConfigValues;
    /// Changes one setting and writes it to the configuration file.
    SetConfig: "PUT" "/v1/config", node => ConfigChange;
    /// Stops the daemon: offers are withdrawn, sessions closed with a receipt, all of it durable.
    Shutdown: "POST" "/v1/shutdown", node => Stopping;

    /// Begins offering, and goes on after a restart.
    StartSelling: "POST" "/v1/sell/start", market => Selling;
    /// Withdraws the offer and closes the leases that are being served.
    StopSelling: "POST" "/v1/sell/stop", market => Selling;
    /// Withdraws the offer and serves the present leases to their end.
    PauseSelling: "POST" "/v1/sell/pause", market => Selling;
    /// Sets the price of offers from now on; leases keep theirs.
    SetPrice: "PUT" "/v1/sell/price", market => Selling;
    /// Sets how much may be sold. What the request leaves out stays as it is; with no field at
    /// all it only reports.
    SetLimits: "PUT" "/v1/sell/limits", market => Selling;
    /// Offers in this node's order book.
    ListOffers: "GET" "/v1/offers", market => Offers;
    /// Buys: finds the best offer, asks for a quote, pays and opens the tunnel.
    Buy: "POST" "/v1/buy", market => Purchase, waits wait_s;

    /// Leases on both sides.
    ListLeases: "GET" "/v1/leases", lease => Leases;
    /// One lease in full.
    ShowLease: "GET" "/v1/leases/{lease}", lease => Lease;
    /// Closes a lease with a final receipt. What was paid and not used stays as credit with the
    /// seller.
    CloseLease: "POST" "/v1/leases/{lease}/close", lease => Lease;
    /// Adds bytes to a bought lease at the price it has.
    ExtendLease: "POST" "/v1/leases/{lease}/extend", lease => Lease;
    /// How much each open lease has carried and cost. For a running view read `/v1/events`.
    GetUsage: "GET" "/v1/usage", lease => Usage;

    /// What the wallet holds.
    GetBalance: "GET" "/v1/wallet", money => Balance;
    /// A fresh address.
    ReceiveCoins: "POST" "/v1/wallet/receive", money => Address;
    /// Sends coins on chain, or says what sending them would cost.
    SendCoins: "POST" "/v1/wallet/send", money => Sent;
    /// Transactions that touched the wallet, newest first.
    ListTransactions: "GET" "/v1/wallet/history", money => Transactions;
    /// The twelve words that restore identity and wallet. Whoever reads them owns both.
    RevealWords: "POST" "/v1/wallet/backup", money => Words;
    /// Payment channels on both sides.
    ListChannels: "GET" "/v1/channels", money => Channels;
    /// Opens channels ahead of any lease. All sellers are asked first, for 15 s at most; one transaction
    /// then funds the channels with those that agreed.
    OpenChannels: "POST" "/v1/channels/open", money => ChannelsOpened;
    /// Opens a further channel with a seller, to be used when the one there is is used up. Leases go on.
    TopUpChannel: "POST" "/v1/channels/topup", money => ChannelsOpened;
    /// Closes a channel, together with the other side if that answers within 15 s. Else the payee takes
    /// what was paid, and the payer gets its refund once the channel has expired.
    CloseChannel: "POST" "/v1/channels/{channel}/close", money => ChannelClosed;
    /// One channel, with all that will happen to it.
    ShowChannel: "GET" "/v1/channels/{channel}", money => Channel;
    /// Closes every channel that this node is paid on and that is worth it, up to 60 in a
    /// transaction. Leases on them end.
    CloseAllChannels: "POST" "/v1/channels/close", money => ChannelsClosed;
    /// Carries a channel that this node pays from over into a new one with the same seller: one
    /// transaction pays the seller what was promised and funds the new channel with the rest.
    RolloverChannel: "POST" "/v1/channels/{channel}/rollover", money => ChannelRolledOver;
    /// Takes back what a channel holds that this node pays from, once it has expired. A node does it
    /// by itself, too.
    RefundChannel: "POST" "/v1/channels/{channel}/refund", money => ChannelClosed;
    /// What was sold and bought, billed, paid, received on chain and spent on fees.
    GetEarnings: "GET" "/v1/earnings", money => Earnings;
}

replies! {
    /// Answers [`Command::GetStatus`].
    Status,
    /// Answers [`Command::GetId`].
    Identity,
    /// Answers [`Command::ListPeers`].
    Peers,
    /// Answers [`Command::AddPeer`].
    PeerAdded,
    /// Answers [`Command::GetChain`].
    Chain,
    /// Answers [`Command::GetConfig`].
    ConfigValues,
    /// Answers [`Command::SetConfig`].
    ConfigChange,
    /// Answers [`Command::Shutdown`].
    Stopping,
    /// Answers the five commands about selling.
    Selling,
    /// Answers [`Command::ListOffers`].
    Offers,
    /// Answers [`Command::Buy`].
    Purchase,
    /// Answers [`Command::ListLeases`].
    Leases,
    /// Answers [`Command::ShowLease`], [`Command::CloseLease`] and [`Command::ExtendLease`].
    Lease,
    /// Answers [`Command::GetUsage`].
    Usage,
    /// Answers [`Command::GetBalance`].
    Balance,
    /// Answers [`Command::ReceiveCoins`].
    Address,
    /// Answers [`Command::SendCoins`].
    Sent,
    /// Answers [`Command::ListTransactions`].
    Transactions,
    /// Answers [`Command::RevealWords`].
    Words,
    /// Answers [`Command::ListChannels`].
    Channels,
    /// Answers [`Command::ShowChannel`].
    Channel,
    /// Answers [`Command::CloseChannel`] and [`Command::RefundChannel`].
    ChannelClosed,
    /// Answers [`Command::RolloverChannel`].
    ChannelRolledOver,
    /// Answers [`Command::CloseAllChannels`].
    ChannelsClosed,
    /// Answers [`Command::OpenChannels`] and [`Command::TopUpChannel`].
    ChannelsOpened,
    /// Answers [`Command::GetEarnings`].
    Earnings,
}
