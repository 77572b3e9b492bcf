//! What people ask of the node over the control API.

mod coins;
mod configuration;
mod leases;
mod rollover;
mod sell;

use std::ops::ControlFlow;

use tokio::sync::oneshot;

use super::Driver;
use super::words;
use crate::control::api::{self, Command, Reply};
use crate::control::{ApiError, Call, ErrorCode};
use crate::mesh;

pub(super) use self::coins::{Handed, Handing, Together};
pub(super) use self::leases::Waiting;
pub(super) use self::rollover::Rolling;

pub(super) type Answer = oneshot::Sender<Result<Reply, ApiError>>;
type Outcome = Result<Reply, ApiError>;

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
            Command::OpenChannels(wanted) => {
                self.open_channels(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::TopUpChannel(wanted) => {
                self.top_up_channel(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::CloseChannel(wanted) => {
                self.close_channel_asked(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::GetEarnings(wanted) => {
                self.earnings(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::ShowChannel(wanted) => self
                .find_channel(&wanted.channel)
                .map(|view| self.channel_view(&view).into()),
            Command::CloseAllChannels(wanted) => {
                self.close_all_channels(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::RolloverChannel(wanted) => {
                self.roll_over_asked(&wanted, reply);
                return ControlFlow::Continue(());
            }
            Command::RefundChannel(wanted) => {
                let refunded = self.refund_channel_asked(&wanted);
                self.answer_handed(refunded, reply);
                return ControlFlow::Continue(());
            }
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
}
