//! The reference: streams of libp2p as it comes, with nothing of ours, between two processes.

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, identity::Keypair,
    multiaddr::Protocol, noise, swarm::SwarmEvent, tcp, yamux,
};
use libp2p_stream::{Behaviour, Control};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

use crate::{
    part::{Part, is_reached_at},
    sink::Flow,
    source::{BLOCK, ECHO, SEND},
    transport::Transport,
};

/// The name of the role of the process that sends.
pub(crate) fn role(transport: Transport) -> String {
    format!("bare-{transport}")
}

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bitmesh-bench/1");

/// The near end of a connection to a process that sends.
pub(crate) struct Bare {
    control: Control,
    peer: PeerId,
    running: JoinHandle<()>,
    _part: Part,
}

impl Bare {
    pub(crate) async fn connect(transport: Transport) -> Self {
        let part = Part::start(&role(transport));
        let address: Multiaddr = part.said.parse().expect("it says its address");
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            panic!("{address} does not name the node");
        };
        let mut swarm = swarm();
        let control = swarm.behaviour().new_control();
        swarm.dial(address).expect("it can be dialled");
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => break,
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
        let running = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self {
            control,
            peer,
            running,
            _part: part,
        }
    }

    /// Opens streams, one after the other, and asks all to send.
    pub(crate) async fn open(&self, flows: usize) -> Vec<Flow> {
        let mut streams = Vec::with_capacity(flows);
        while streams.len() < flows {
            // Some are lost: its acceptor drops what comes while it hands over another.
            streams.extend(self.open_one().await.ok());
        }
        let mut asked: Vec<Flow> = Vec::with_capacity(flows);
        for mut stream in streams {
            stream.write_all(&[SEND]).await.expect("it reads");
            stream.flush().await.expect("it reads");
            asked.push(Box::new(stream));
        }
        asked
    }

    /// A stream that the other side has taken.
    async fn open_one(&self) -> std::io::Result<Compat<Stream>> {
        let mut control = self.control.clone();
        let opened = control.open_stream(self.peer, PROTOCOL).await;
        let mut stream = opened.map_err(std::io::Error::other)?.compat();
        stream.write_all(&[ECHO]).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn swarm() -> Swarm<Behaviour> {
    SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )
        .expect("the settings are libp2p's own")
        .with_quic()
        .with_behaviour(|_| Behaviour::new())
        .expect("it cannot fail")
        .with_swarm_config(|config| config.with_idle_connection_timeout(std::time::Duration::MAX))
        .build()
}

/// What the process that sends does.
pub(crate) async fn serve(transport: Transport) {
    let mut swarm = swarm();
    let streams = swarm.behaviour().new_control().accept(PROTOCOL);
    let mut streams = streams.expect("it is asked once");
    tokio::spawn(async move {
        while let Some((_, stream)) = streams.next().await {
            // One that breaks is opened again, or was not needed any more.
            tokio::spawn(async move { answer(stream.compat()).await });
        }
    });
    let listen = transport.multiaddr(0).parse().expect("a form of libp2p's");
    swarm.listen_on(listen).expect("loopback has a free port");
    let peer = *swarm.local_peer_id();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            is_reached_at(address.with(Protocol::P2p(peer)));
        }
    }
}

async fn answer(mut stream: Compat<Stream>) -> std::io::Result<()> {
    let block = vec![7; BLOCK];
    loop {
        match stream.read_u8().await? {
            SEND => loop {
                stream.write_all(&block).await?;
            },
            other => stream.write_u8(other).await?,
        }
        stream.flush().await?;
    }
}
