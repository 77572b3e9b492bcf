//! Several meshes in one process, over loopback. Nothing sleeps: every step waits for the event that
//! ends it, and for no longer than [`PATIENCE`].

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use bitmesh_market::envelope::Network;
use bitmesh_market::identity::NodeId;

use super::*;
use crate::protocol::topic::{Cell, Topic};

mod discovery;
mod gossip;
mod hostile;
mod limits;
mod requests;
mod streams;

/// Longer than anything here takes on a busy machine, shorter than anyone waits.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum Over {
    Tcp,
    Quic,
}

const BOTH: [Over; 2] = [Over::Tcp, Over::Quic];

struct Node {
    mesh: Mesh,
    events: mpsc::Receiver<Event>,
    address: Address,
}

fn config(over: Over) -> Config {
    let listen = match over {
        Over::Tcp => "/ip4/127.0.0.1/tcp/0",
        Over::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
    };
    let mut config = Config {
        listen: vec![listen.parse().unwrap()],
        allow_private_addresses: true,
        ..Config::default()
    };
    config.mdns.enabled = false;
    config.gossip.heartbeat_ms = 200;
    config.gossip.nodes_per_ip = 0;
    config.limits.connections_per_ip = 1000;
    config.limits.pending_per_ip = 1000;
    config.limits.process_memory_bytes = 0;
    config
}

fn seed() -> [u8; 32] {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    seed
}

fn cell(text: &str) -> Cell {
    text.parse().unwrap()
}

fn topic() -> Topic {
    Topic::offers(cell("u33d"))
}

impl Node {
    async fn start(over: Over) -> Self {
        Self::with(&config(over)).await
    }

    async fn with(config: &Config) -> Self {
        Self::on(Network::Regtest, config, seed()).await
    }

    async fn on(network: Network, config: &Config, seed: [u8; 32]) -> Self {
        let (mesh, mut events, _task) = start(config, network, seed).unwrap();
        let address = timeout(PATIENCE, async {
            loop {
                if let Some(Event::Listening(address)) = events.recv().await {
                    return address;
                }
            }
        });
        let address = address.await.unwrap().with_node(mesh.node()).unwrap();
        Self {
            mesh,
            events,
            address,
        }
    }

    fn id(&self) -> NodeId {
        self.mesh.node()
    }

    async fn tell(&self, command: Command) {
        self.mesh.send(command).await.unwrap();
    }

    /// Waits for an event; others before it are dropped.
    #[track_caller]
    fn until<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(Event) -> Option<T>,
    ) -> impl Future<Output = T> {
        let caller = std::panic::Location::caller();
        async move {
            let found = timeout(PATIENCE, async {
                loop {
                    let event = self.events.recv().await.expect("the mesh is up");
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
            });
            match found.await {
                Ok(found) => found,
                Err(_) => panic!("no {what}, waited for at {caller}"),
            }
        }
    }

    async fn connect(&mut self, other: &mut Self) {
        self.tell(Command::Dial(other.address.clone())).await;
        let (here, there) = (self.id(), other.id());
        self.until("connection out", |event| {
            matches!(event, Event::Connected(node) if node == there).then_some(())
        })
        .await;
        other
            .until("connection in", |event| {
                matches!(event, Event::Connected(node) if node == here).then_some(())
            })
            .await;
    }

    async fn inspect(&self) -> Snapshot {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Inspect(reply)).await;
        timeout(PATIENCE, answer).await.unwrap().unwrap()
    }

    /// Waits until the mesh stands as wanted, by looking again after each thing that happens there.
    async fn stands(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let found = timeout(PATIENCE, async {
            loop {
                let snapshot = self.inspect().await;
                if wanted(&snapshot) {
                    return snapshot;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        match found.await {
            Ok(snapshot) => snapshot,
            Err(_) => panic!("never: {what}; {:#?}", self.inspect().await),
        }
    }
}
