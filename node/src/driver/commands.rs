//! What people ask of the node over the control API.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bitcoin::{FeeRate, Txid};
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::CloseReason;
use bitmesh_market::units::{Bytes, BytesPerSecond};
use bitmesh_wallet::chain::BroadcastError;
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::onchain::{HistoryEntry, Payment, SpendError, Status as TxStatus, Value};
use tokio::sync::oneshot;
use tracing::info;

use super::Driver;
use super::selling::Phase;
use super::sessions::Session;
use super::views::closed_view;
use super::words;
use crate::config::Config;
use crate::control::api::{self, Command, Reply};
use crate::control::error::resolve;
use crate::control::{ApiError, Call, ErrorCode};
use crate::mesh;
use crate::payments::{ChannelStage, ChannelView};
use crate::protocol::Topic;
use crate::settings::{self, SettingError};

type Answer = oneshot::Sender<Result<Reply, ApiError>>;
type Outcome = Result<Reply, ApiError>;

/// How long the answer to an extension or a close is waited for before the lease is shown as it is.
const SETTLING: Duration = Duration::from_secs(12);

/// How long the chain source may take to say whether it takes a transaction.
const HANDING: Duration = Duration::from_secs(10);

/// Somebody waits for an extension to be answered.
#[derive(Debug)]
pub(super) struct Extending {
    lease: LeaseId,
    answer: Answer,
    until: Instant,
}

/// Somebody waits to hear whether the network has taken a transaction.
#[derive(Debug)]
pub(super) struct Handing {
    txid: Txid,
    answer: Answer,
    until: Instant,
    /// The answer, but for whether it was taken.
    reply: Handed,
}

#[derive(Debug)]
enum Handed {
    Sent(api::Sent),
    Closed(api::ChannelClosed),
}

impl Handed {
    fn reply(self, broadcast: bool) -> Reply {
        match self {
            Self::Sent(sent) => api::Sent { broadcast, ..sent }.into(),
            Self::Closed(closed) => api::ChannelClosed {
                broadcast,
                ..closed
            }
            .into(),
        }
    }
}

/// Somebody waits for a lease to be closed.
#[derive(Debug)]
pub(super) struct Closing {
    lease: LeaseId,
    answer: Answer,
    until: Instant,
}

impl Driver {
    /// Does what one call asks. `Break` means that the node is to stop.
    pub(super) fn command(&mut self, call: Call) -> ControlFlow<()> {
        let Call { command, reply } = call;
        let outcome = match command {
            Command::GetStatus(_) => Ok(self.status_view().into()),
            Command::GetId(_) => Ok(self.id_view().into()),
            Command::ListPeers(_) => {
                self.list_peers(reply);
                return ControlFlow::Continue(());
            }
            Command::AddPeer(wanted) => self.add_peer(&wanted),
            Command::GetChain(_) => Ok(self.chain_view().into()),
            Command::GetConfig(wanted) => self.get_config(wanted.key.as_deref()),
            Command::SetConfig(wanted) => self.set_config(&wanted),
            Command::Shutdown(_) => {
                let closing_leases = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
                let datadir = self.datadir.display().to_string();
                let stopping = api::Stopping {
                    pid: std::process::id(),
                    datadir,
                    closing_leases,
                };
                let _ = reply.send(Ok(stopping.into()));
                return ControlFlow::Break(());
            }
            Command::StartSelling(wanted) => self.start_selling(wanted),
            Command::StopSelling(_) => self.stop_selling(),
            Command::PauseSelling(_) => self.pause_selling(),
            Command::SetPrice(wanted) => self.set_price(&wanted.price),
            Command::SetLimits(wanted) => self.set_limits(&wanted.limits),
            Command::ListOffers(wanted) => self.list_offers(&wanted),
            Command::Buy(wanted) => {
                self.buy(wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::ListLeases(wanted) => Ok(self.list_leases(&wanted).into()),
            Command::ShowLease(wanted) => self.find_lease(&wanted.lease).map(Reply::from),
            Command::CloseLease(wanted) => {
                self.close_lease(&wanted.lease, reply);
                return ControlFlow::Continue(());
            }
            Command::ExtendLease(wanted) => {
                self.extend_lease(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::GetUsage(wanted) => self.usage(wanted.lease.as_deref()),
            Command::GetBalance(_) => Ok(self.balance_view().into()),
            Command::ReceiveCoins(_) => self.receive_coins(),
            Command::SendCoins(wanted) => {
                let sent = self.send_coins(&wanted);
                self.answer_handed(sent.map(|(txid, sent)| (txid, Handed::Sent(sent))), reply);
                return ControlFlow::Continue(());
            }
            Command::ListTransactions(wanted) => Ok(self.transactions(wanted.limit).into()),
            Command::RevealWords(wanted) => self.reveal_words(wanted.confirm),
            Command::ListChannels(wanted) => Ok(self.list_channels(wanted.all).into()),
            Command::CloseChannel(wanted) => {
                let closed = self.close_channel_asked(&wanted);
                let closed = closed.map(|(txid, closed)| (txid, Handed::Closed(closed)));
                self.answer_handed(closed, reply);
                return ControlFlow::Continue(());
            }
            Command::GetEarnings(wanted) => Ok(self.earnings_view(wanted.since_s).into()),
        };
        let _ = reply.send(outcome);
        ControlFlow::Continue(())
    }

    // The node.

    fn id_view(&self) -> api::Identity {
        let addresses = self.announced.iter().chain(&self.listening);
        let mut addresses: Vec<String> = addresses
            .filter_map(|address| address.with_node(self.node))
            .map(|address| address.to_string())
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        api::Identity {
            node: self.node.to_string(),
            network: self.network.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses,
        }
    }

    fn list_peers(&self, answer: Answer) {
        let (mesh, now, since) = (self.mesh.clone(), self.unix(), self.connected.clone());
        let mut offers = std::collections::BTreeMap::<_, u32>::new();
        for ask in self.book.asks() {
            *offers.entry(ask.seller()).or_default() += 1;
        }
        tokio::spawn(async move {
            let (reply, snapshot) = oneshot::channel();
            let _ = mesh.send(mesh::Command::Inspect(reply)).await;
            let outcome = match snapshot.await {
                Ok(snapshot) => {
                    let peers = snapshot.neighbours.into_iter().map(|neighbour| api::Peer {
                        node: neighbour.node.to_string(),
                        address: neighbour.address.to_string(),
                        direction: match neighbour.direction {
                            mesh::Direction::In => api::PeerDirection::Inbound,
                            mesh::Direction::Out => api::PeerDirection::Outbound,
                        },
                        rtt_ms: neighbour.round_trip_us.map(|us| us.div_ceil(1_000)),
                        since: words::moment(since.get(&neighbour.node).copied().unwrap_or(now)),
                        offers: offers.get(&neighbour.node).copied().unwrap_or(0),
                    });
                    Ok(api::Peers {
                        peers: peers.collect(),
                    }
                    .into())
                }
                Err(_) => Err(ApiError::failure("the mesh has ended")),
            };
            let _ = answer.send(outcome);
        });
    }

    fn add_peer(&self, wanted: &api::AddPeer) -> Outcome {
        let hint = "addresses look like /ip4/192.0.2.7/udp/6366/quic-v1/p2p/12D3KooW…; \
                    \"bitmesh id\" prints those of a node";
        let address: mesh::Address =
            wanted
                .address
                .parse()
                .map_err(|error: mesh::AddressError| {
                    ApiError::new(ErrorCode::Usage, error.to_string(), hint)
                })?;
        let node = address.node().ok_or_else(|| {
            ApiError::new(
                ErrorCode::Usage,
                "the address does not end with /p2p/ and a node's id",
                hint,
            )
        })?;
        self.mesh_do(mesh::Command::Dial(address));
        let connected = self.connected.contains_key(&node);
        Ok(api::PeerAdded {
            node: node.to_string(),
            connected,
        }
        .into())
    }

    fn config_text(&self) -> Result<String, ApiError> {
        settings::read(&self.config_file).map_err(|error| ApiError::failure(error.to_string()))
    }

    fn get_config(&self, key: Option<&str>) -> Outcome {
        let text = self.config_text()?;
        // As the file says: what needs a restart is not in force yet.
        let written = Config::parse(&text).unwrap_or_else(|_| self.config.clone());
        let values = settings::list(&written, &text, key).map_err(setting_error)?;
        let values = values.into_iter().map(|setting| api::ConfigValue {
            key: setting.key,
            value: json(&setting.value),
            origin: setting.origin.as_str().to_owned(),
        });
        let file = self.config_file.display().to_string();
        Ok(api::ConfigValues {
            file,
            values: values.collect(),
        }
        .into())
    }

    fn set_config(&mut self, wanted: &api::SetConfig) -> Outcome {
        let value = self.write_settings(&[(&wanted.key, wanted.value.clone())])?;
        let config = self.config_on_disk()?;
        let restart_needed = !self.apply_live(&config);
        Ok(api::ConfigChange {
            key: wanted.key.clone(),
            value: json(&value),
            file: self.config_file.display().to_string(),
            restart_needed,
        }
        .into())
    }

    fn config_on_disk(&self) -> Result<Config, ApiError> {
        let text = self.config_text()?;
        Config::parse(&text).map_err(|error| ApiError::failure(error.to_string()))
    }

    /// Writes settings to the file, all or none. Returns the last one's value.
    fn write_settings(&self, changes: &[(&str, String)]) -> Result<toml::Value, ApiError> {
        let mut text = self.config_text()?;
        let mut value = toml::Value::Boolean(true);
        for (key, new) in changes {
            (text, value) = settings::set(&text, key, new).map_err(setting_error)?;
        }
        settings::write(&self.config_file, &text).map_err(|error| {
            ApiError::failure(format!(
                "cannot write {}: {error}",
                self.config_file.display()
            ))
        })?;
        Ok(value)
    }

    /// Takes over what can change while running. Returns whether that is all that changed.
    fn apply_live(&mut self, changed: &Config) -> bool {
        let mut live = self.config.clone();
        live.sell = changed.sell.clone();
        live.buy = changed.buy.clone();
        let is_all = live == *changed;
        let topics = self.topics();
        let was = std::mem::replace(&mut self.config, live);
        self.follow_topics(&topics);
        if was.sell != self.config.sell {
            self.outlet.set_total_rate(self.config.sell.total_rate);
            if was.sell.enabled != self.config.sell.enabled {
                self.selling.phase = match self.config.sell.enabled {
                    true => Phase::Offering,
                    false => Phase::Stopped,
                };
            }
            self.supply();
        }
        is_all
    }

    /// Leaves the topics of cells and regions that are no longer this node's, and joins the new ones.
    fn follow_topics(&mut self, before: &[Topic]) {
        let now = self.topics();
        for topic in before.iter().filter(|topic| !now.contains(topic)) {
            self.mesh_do(mesh::Command::Unsubscribe(topic.clone()));
            self.mesh_do(mesh::Command::StopProviding(topic.cell.clone()));
        }
        for topic in now.into_iter().filter(|topic| !before.contains(topic)) {
            self.mesh_do(mesh::Command::Subscribe(topic.clone()));
            self.mesh_do(mesh::Command::Provide(topic.cell.clone()));
            self.mesh_do(mesh::Command::FindProviders(topic.cell));
        }
    }

    // Selling.

    fn start_selling(&mut self, wanted: api::StartSelling) -> Outcome {
        // All or nothing: a limit that cannot be must not leave a new price behind.
        let mut changes = Vec::new();
        changes.extend(wanted.price.as_ref().map(price_change));
        if let Some(limits) = &wanted.limits {
            changes.extend(self.limit_changes(limits)?);
        }
        self.change_terms(&changes)?;
        self.selling_becomes(Phase::Offering)
    }

    fn pause_selling(&mut self) -> Outcome {
        self.selling_becomes(Phase::Paused)
    }

    fn stop_selling(&mut self) -> Outcome {
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

    fn selling_becomes(&mut self, phase: Phase) -> Outcome {
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

    fn set_price(&mut self, rule: &api::PriceRule) -> Outcome {
        self.change_terms(&[price_change(rule)])?;
        self.selling_changed()
    }

    fn set_limits(&mut self, limits: &api::SellLimits) -> Outcome {
        let changes = self.limit_changes(limits)?;
        self.change_terms(&changes)?;
        self.selling_changed()
    }

    /// Writes changes of what is sold, all or none, and takes them over.
    fn change_terms(&mut self, changes: &[(&'static str, String)]) -> Result<(), ApiError> {
        if !changes.is_empty() {
            self.write_settings(changes)?;
            let config = self.config_on_disk()?;
            self.apply_live(&config);
        }
        Ok(())
    }

    fn limit_changes(
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

    fn selling_changed(&self) -> Outcome {
        let selling = self.selling_view();
        self.tell(Some(api::Event::SellingChanged {
            selling: selling.clone(),
        }));
        Ok(selling.into())
    }

    fn list_offers(&self, wanted: &api::ListOffers) -> Outcome {
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

    // Leases.

    fn list_leases(&self, wanted: &api::ListLeases) -> api::Leases {
        let open = self
            .sessions
            .iter()
            .filter(|(_, session)| Self::role_matches(wanted.role, session.role()))
            .filter_map(|(id, _)| self.lease_view(*id));
        let mut leases: Vec<_> = open.collect();
        leases.sort_by_key(|lease| std::cmp::Reverse(lease.opened_at));
        if wanted.all {
            let closed = self
                .closed
                .iter()
                .filter(|c| Self::role_matches(wanted.role, c.role));
            leases.extend(closed.map(closed_view));
        }
        api::Leases { leases }
    }

    fn lease_id(&self, given: &str) -> Result<LeaseId, ApiError> {
        let open = self.sessions.keys().copied();
        let closed = self.closed.iter().map(|closed| closed.lease.id());
        let ids: Vec<_> = open.chain(closed).map(|id| (id.to_string(), id)).collect();
        let found = resolve("lease", ids.iter().map(|(text, _)| text.as_str()), given)?.to_owned();
        let found = ids.into_iter().find(|(text, _)| *text == found);
        found
            .map(|(_, id)| id)
            .ok_or_else(|| ApiError::not_found("lease", given))
    }

    fn find_lease(&self, given: &str) -> Result<api::Lease, ApiError> {
        let id = self.lease_id(given)?;
        self.lease_view(id)
            .ok_or_else(|| ApiError::not_found("lease", given))
    }

    fn close_lease(&mut self, given: &str, answer: Answer) {
        let id = match self.lease_id(given) {
            Ok(id) => id,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        let Some(role) = self.sessions.get(&id).map(Session::role) else {
            // Closing what is closed is done.
            let _ = answer.send(self.find_lease(given).map(Reply::from));
            return;
        };
        let until = self
            .clock
            .now()
            .checked_add(SETTLING)
            .unwrap_or(self.clock.now());
        self.closing.push(Closing {
            lease: id,
            answer,
            until,
        });
        let reason = match role {
            Role::Payer => CloseReason::BuyerLeft,
            Role::Payee => CloseReason::SellerLeft,
        };
        self.close_session(id, reason);
    }

    pub(super) fn close_answered(&mut self, id: LeaseId) {
        let view = self.lease_view(id);
        for closing in self
            .closing
            .extract_if(.., |closing| closing.lease == id)
            .collect::<Vec<_>>()
        {
            let outcome = view
                .clone()
                .ok_or_else(|| ApiError::not_found("lease", &id.to_string()));
            let _ = closing.answer.send(outcome.map(Reply::from));
        }
        self.extension_answered(id);
    }

    fn extend_lease(&mut self, wanted: &api::ExtendLease, answer: Answer) {
        let outcome = self.lease_id(&wanted.lease).and_then(|id| {
            let session = self.sessions.get(&id).ok_or_else(|| {
                ApiError::new(ErrorCode::Conflict, "the lease is closed", "buy again")
            })?;
            if session.role() != Role::Payer {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    "only the buyer extends a lease",
                    "ask the buyer to",
                ));
            }
            let quota = session
                .quota()
                .checked_add(Bytes::new(wanted.bytes))
                .filter(|quota| *quota <= session.lease().max_quota());
            let most = session.lease().max_quota();
            let quota = quota.ok_or_else(|| {
                ApiError::new(
                    ErrorCode::Refused,
                    format!("the seller leases at most {most} at once"),
                    "close this lease when it is used and buy again",
                )
            })?;
            let whole = session
                .lease()
                .price()
                .cost_of(quota)
                .unwrap_or(bitmesh_market::units::Msat::MAX);
            if !self.payments.can_reach(session.peer, whole) {
                return Err(ApiError::new(
                    ErrorCode::InsufficientFunds,
                    "the channel does not hold enough for that",
                    "close this lease and buy again: a new channel is opened",
                ));
            }
            Ok((id, quota))
        });
        match outcome {
            Ok((id, quota)) => {
                let until = self
                    .clock
                    .now()
                    .checked_add(SETTLING)
                    .unwrap_or(self.clock.now());
                self.extending.push(Extending {
                    lease: id,
                    answer,
                    until,
                });
                self.extend_session(id, quota);
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    pub(super) fn extension_answered(&mut self, id: LeaseId) {
        let view = self.lease_view(id);
        for waiting in self
            .extending
            .extract_if(.., |waiting| waiting.lease == id)
            .collect::<Vec<_>>()
        {
            let outcome = view
                .clone()
                .ok_or_else(|| ApiError::not_found("lease", &id.to_string()));
            let _ = waiting.answer.send(outcome.map(Reply::from));
        }
    }

    /// Answers those who have waited long enough with the lease as it stands.
    pub(super) fn settle_waiting(&mut self, now: Instant) {
        let late: Vec<_> = self
            .extending
            .iter()
            .map(|waiting| (waiting.lease, waiting.until))
            .chain(
                self.closing
                    .iter()
                    .map(|waiting| (waiting.lease, waiting.until)),
            )
            .filter(|(_, until)| *until <= now)
            .map(|(lease, _)| lease)
            .collect();
        for lease in late {
            self.close_answered(lease);
        }
        for Handing { answer, reply, .. } in self.handing.extract_if(.., |it| it.until <= now) {
            let _ = answer.send(Ok(reply.reply(false)));
        }
    }

    fn usage(&self, given: Option<&str>) -> Outcome {
        let ids: Vec<_> = match given {
            Some(given) => vec![self.lease_id(given)?],
            None => self.sessions.keys().copied().collect(),
        };
        let leases = ids
            .into_iter()
            .filter_map(|id| self.usage_line(id))
            .collect();
        Ok(api::Usage { leases }.into())
    }

    // Coins.

    fn receive_coins(&mut self) -> Outcome {
        let address = self
            .wallet
            .receive_address()
            .map_err(|error| ApiError::failure(error.to_string()))?;
        let uri = address.to_qr_uri();
        Ok(api::Address {
            address: address.to_string(),
            uri,
        }
        .into())
    }

    fn feerate_of(&self, asked: Option<u64>) -> FeeRate {
        match asked {
            Some(sat_per_kvb) => FeeRate::from_sat_per_kwu(sat_per_kvb.div_ceil(4)),
            None => self.payments.feerate(),
        }
    }

    /// Answers once it is known whether the network takes the transaction, if there is one.
    fn answer_handed(&mut self, made: Result<(Option<Txid>, Handed), ApiError>, answer: Answer) {
        match made {
            Ok((Some(txid), reply)) => {
                let now = self.clock.now();
                self.handing.push(Handing {
                    txid,
                    answer,
                    until: now.checked_add(HANDING).unwrap_or(now),
                    reply,
                });
            }
            Ok((None, reply)) => {
                let _ = answer.send(Ok(reply.reply(false)));
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    /// The chain source has taken a transaction, or has not.
    pub(super) fn handed(&mut self, txid: Txid, outcome: &Result<(), BroadcastError>) {
        let waiting = self.handing.extract_if(.., |it| it.txid == txid);
        for Handing { answer, reply, .. } in waiting {
            let _ = answer.send(match outcome {
                Ok(()) => Ok(reply.reply(true)),
                Err(BroadcastError::Chain(_)) => Ok(reply.reply(false)),
                Err(BroadcastError::Rejected(reason)) => Err(ApiError::new(
                    ErrorCode::Refused,
                    format!("the network does not take transaction {txid}: {reason}"),
                    "nothing is lost: it is written down and offered again with every block; a \
                     higher fee rate may help",
                )
                .with("txid", txid.to_string())),
            });
        }
    }

    fn send_coins(
        &mut self,
        wanted: &api::SendCoins,
    ) -> Result<(Option<Txid>, api::Sent), ApiError> {
        let usage = |message: String| {
            ApiError::new(
                ErrorCode::Usage,
                message,
                "nothing was sent; see \"bitmesh wallet send --help\"",
            )
        };
        let to = self
            .wallet
            .parse_address(&wanted.address)
            .map_err(|error| usage(error.to_string()))?;
        let value = match (wanted.amount_sat, wanted.all) {
            (Some(sat), false) => Value::Exact(bitcoin::Amount::from_sat(sat)),
            (None, true) => Value::Everything,
            (Some(_), true) | (None, false) => {
                return Err(usage("say either an amount or all".to_owned()));
            }
        };
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        let payment = Payment { to, value, feerate };
        let failed = |error: SpendError| match &error {
            SpendError::InsufficientFunds {
                needed, available, ..
            } => {
                let (needed, available) = (needed.to_sat(), available.to_sat());
                ApiError::new(
                    ErrorCode::InsufficientFunds,
                    error.to_string(),
                    "nothing was sent",
                )
                .with("needed_sat", needed)
                .with("available_sat", available)
            }
            SpendError::BelowDust { .. }
            | SpendError::AboveSupply { .. }
            | SpendError::FeerateTooHigh { .. }
            | SpendError::WrongNetwork
            | SpendError::TooLarge { .. } => usage(error.to_string()),
            SpendError::Build { .. } | SpendError::Sign(_) | SpendError::Changes(_) => {
                ApiError::failure(error.to_string())
            }
        };
        let (txid, preview) = if wanted.dry_run {
            (None, self.wallet.preview_send(&payment).map_err(failed)?)
        } else {
            let now = self.unix().secs();
            let (transaction, preview) = self.wallet.send(&payment, now).map_err(failed)?;
            self.broadcast(&transaction);
            (Some(transaction.compute_txid()), preview)
        };
        let sent = api::Sent {
            txid: txid.map(|txid| txid.to_string()),
            address: wanted.address.clone(),
            amount_sat: preview.value.to_sat(),
            fee_sat: preview.fee.to_sat(),
            feerate_sat_per_kvb: feerate.to_sat_per_kwu().saturating_mul(4),
            broadcast: false,
        };
        Ok((txid, sent))
    }

    fn transactions(&self, limit: Option<u32>) -> api::Transactions {
        let channels = self.payments.channels();
        let limit = limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX);
        let entries = self.wallet.history();
        let transactions = entries
            .iter()
            .take(limit)
            .map(|entry| transaction(entry, &channels));
        api::Transactions {
            transactions: transactions.collect(),
        }
    }

    fn reveal_words(&self, is_confirmed: bool) -> Outcome {
        if !is_confirmed {
            return Err(ApiError::new(
                ErrorCode::NotAuthorised,
                "whoever reads the twelve words owns this wallet",
                "confirm that nobody looks over your shoulder",
            ));
        }
        let words = self.keys.words();
        let words = words.split(' ').map(str::to_owned).collect();
        let birth_height = self.wallet.birthday().map_or(0, |block| block.height);
        Ok(api::Words {
            words,
            birth_height,
        }
        .into())
    }

    // Channels.

    fn list_channels(&self, all: bool) -> api::Channels {
        let is_over = |view: &ChannelView| {
            matches!(view.stage, ChannelStage::Closed | ChannelStage::Abandoned)
        };
        let channels = self.payments.channels();
        let shown = channels.iter().filter(|view| all || !is_over(view));
        api::Channels {
            channels: shown.map(|view| self.channel_view(view)).collect(),
        }
    }

    fn close_channel_asked(
        &mut self,
        wanted: &api::CloseChannel,
    ) -> Result<(Option<Txid>, api::ChannelClosed), ApiError> {
        let channels = self.payments.channels();
        let ids = channels.iter().map(|view| view.id.as_str());
        let channel = resolve("channel", ids, &wanted.channel)?.to_owned();
        let view = channels
            .iter()
            .find(|view| view.id == channel)
            .ok_or_else(|| ApiError::not_found("channel", &wanted.channel))?;
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        if wanted.dry_run {
            return Ok((None, would_close(view, feerate)?));
        }
        let conflict =
            |message: String, hint: &str| ApiError::new(ErrorCode::Conflict, message, hint);
        match view.role {
            Role::Payer => {
                let now = self.clock.now();
                let refund = self.payments.refund(view.proposal, feerate, now);
                refund.map_err(|error| {
                    conflict(
                        format!("the refund is {error}"),
                        "the seller can close it at any time; from the expiry on this node takes \
                         the rest back by itself",
                    )
                    .with("expiry_height", view.expiry)
                })?;
            }
            Role::Payee => self
                .close_channel(view.proposal, Some(feerate))
                .map_err(|error| {
                    conflict(
                        error,
                        "nothing was broadcast; a channel is closed once it has paid more than its \
                         fee",
                    )
                })?,
        }
        self.drain_payments();
        let (txid, received, fee) = self.payments.ending_of(view.proposal).ok_or_else(gone)?;
        let closed = api::ChannelClosed {
            channel,
            txid: Some(txid.to_string()),
            received_sat: received.to_sat(),
            fee_sat: fee.to_sat(),
            broadcast: false,
        };
        Ok((Some(txid), closed))
    }
}

/// What ending a channel alone would bring, by the sizes of its transactions.
fn would_close(view: &ChannelView, feerate: FeeRate) -> Result<api::ChannelClosed, ApiError> {
    let life = bitmesh_wallet::channel::tx::LifeCycle::estimate(feerate).ok_or_else(gone)?;
    let (held, fee) = match view.role {
        Role::Payer => (view.capacity, life.refund),
        Role::Payee => (view.paid, life.close),
    };
    let received = held.checked_sub(fee).unwrap_or(bitcoin::Amount::ZERO);
    Ok(api::ChannelClosed {
        channel: view.id.clone(),
        txid: None,
        received_sat: received.to_sat(),
        fee_sat: fee.to_sat(),
        broadcast: false,
    })
}

fn gone() -> ApiError {
    ApiError::failure("the channel has nothing to end with")
}

fn price_change(rule: &api::PriceRule) -> (&'static str, String) {
    let api::PriceRule::Fixed { price_msat_per_gb } = rule;
    ("sell.price", format!("{price_msat_per_gb} msat/GB"))
}

fn setting_error(error: SettingError) -> ApiError {
    let code = match &error {
        SettingError::Write(_) => ErrorCode::Failure,
        SettingError::Unknown { .. } => ErrorCode::NotFound,
        SettingError::Section(_) | SettingError::Config(_) => ErrorCode::Usage,
    };
    ApiError::new(
        code,
        error.to_string(),
        "\"bitmesh config get\" lists them; nothing was changed",
    )
}

fn json(value: &toml::Value) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}

fn transaction(entry: &HistoryEntry, channels: &[ChannelView]) -> api::Transaction {
    let is_funding = |view: &&ChannelView| view.funding.is_some_and(|o| o.txid == entry.txid);
    let is_ending = |view: &&ChannelView| view.settlement.is_some_and(|s| s.txid == entry.txid);
    let kind = if channels.iter().any(|view| is_funding(&view)) {
        api::TransactionKind::Funding
    } else if let Some(view) = channels.iter().find(is_ending) {
        match view.settlement.map(|settlement| settlement.end) {
            Some(bitmesh_wallet::channel::record::End::Refund) => api::TransactionKind::Refund,
            Some(bitmesh_wallet::channel::record::End::Commitment) | None => {
                api::TransactionKind::Settlement
            }
        }
    } else if entry.net_sat() >= 0 {
        api::TransactionKind::Received
    } else {
        api::TransactionKind::Sent
    };
    let (confirmations, height, at) = match entry.status {
        TxStatus::Confirmed {
            height,
            time,
            confirmations,
        } => (confirmations, Some(height), Some(time)),
        TxStatus::Pending { since } => (0, None, since),
    };
    api::Transaction {
        txid: entry.txid.to_string(),
        kind,
        delta_sat: entry.net_sat(),
        fee_sat: entry.fee.map(bitcoin::Amount::to_sat),
        confirmations,
        height,
        at: at.map(api::Timestamp::from_unix),
    }
}
